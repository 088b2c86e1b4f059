"""Tests of code that talks NETLINK_XFRM, each against tables that are empty before and after it.

    xfrmd run -- pytest examples/pytest

The whole run has one instance; `clean` makes each test answer for what it leaves.
"""

import json
import os
import subprocess

import pytest


def pytest_configure(config):
    if "XFRMD_CONTROL" not in os.environ:
        raise pytest.UsageError("start it as: xfrmd run -- pytest ...  (it would change the host)")


def findings(*options):
    """What `xfrmd check` finds; its exit code is 1 if that is anything, and 2 if it failed."""
    done = subprocess.run(["xfrmd", "check", "-j", *options], stdout=subprocess.PIPE)
    assert done.returncode in (0, 1)
    report = json.loads(done.stdout)
    return [it for namespace in report["namespaces"] for it in namespace["findings"]]


@pytest.fixture
def check():
    """Looks for mistakes in what is configured."""
    return findings


@pytest.fixture(autouse=True)
def clean():
    """Fails a test that leaves SAs or policies, and removes them for the next one."""
    yield
    left = findings("--left")
    subprocess.run(["ip", "xfrm", "state", "flush"], check=True)
    subprocess.run(["ip", "xfrm", "policy", "flush"], check=True)
    left = [it["what"] for it in left if it["kind"] == "left-behind"]
    assert not left, "left behind: " + "; ".join(left)
