"""A client that speaks netlink itself, as a key manager does."""

import os
import socket
import struct
import subprocess

import pytest

NETLINK_XFRM = 6
XFRM_MSG_DELSA, XFRM_MSG_EXPIRE, XFRM_MSG_GETSADINFO = 0x11, 0x18, 0x23
NLM_F_REQUEST, NLM_F_ACK = 1, 4
NLMSG_ERROR = 2
XFRMGRP_EXPIRE = 2


def sa(verb, *more):
    base = ["src", "10.0.0.1", "dst", "10.0.0.2", "proto", "esp", "spi", "0x1001"]
    subprocess.run(["ip", "xfrm", "state", verb, *base, *more], check=True)


@pytest.fixture
def one_sa():
    sa("add", "mode", "tunnel", "aead", "rfc4106(gcm(aes))", "0x" + "01" * 20, "128")
    yield
    sa("delete")


@pytest.fixture
def kernel():
    """A socket, as libc or any binding opens it."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_XFRM) as it:
        it.bind((0, XFRMGRP_EXPIRE))
        it.settimeout(30)
        yield it


def request(kernel, kind, flags, body):
    kernel.send(struct.pack("=IHHII", 16 + len(body), kind, NLM_F_REQUEST | flags, 1, 0) + body)
    reply = kernel.recv(65536)
    return struct.unpack_from("=IHHII", reply)[1], reply[16:]


def test_an_sa_that_is_not_there_cannot_be_deleted(kernel):
    who = socket.inet_aton("10.0.0.2").ljust(16, b"\0") + struct.pack(">IHBB", 0x1001, 0, 50, 0)
    who = who[:20] + struct.pack("=H", socket.AF_INET) + who[22:]
    kind, body = request(kernel, XFRM_MSG_DELSA, NLM_F_ACK, who)
    assert kind == NLMSG_ERROR
    assert -struct.unpack_from("=i", body)[0] == 3  # ESRCH


def test_the_kernel_counts_sas(kernel, one_sa):
    kind, body = request(kernel, XFRM_MSG_GETSADINFO, 0, struct.pack("=I", 0))
    assert kind == 0x22
    assert struct.unpack_from("=I", body, 8)[0] == 1


def test_mistakes_are_found(check, one_sa):
    kinds = {finding["kind"] for finding in check()}
    assert {"one-way-sa", "sa-without-policy"} <= kinds


@pytest.mark.skipif("FORGET" not in os.environ, reason="shows what a leak looks like")
def test_that_forgets():
    sa("add", "mode", "tunnel", "aead", "rfc4106(gcm(aes))", "0x" + "01" * 20, "128")
