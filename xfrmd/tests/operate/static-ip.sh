#!/usr/bin/env bash
# Builds the static `ip` that a test starts: iproute2's, of Debian 12's source, unmodified.
#
#   xfrmd/tests/operate/static-ip.sh
#
# It goes to $STATIC_IP_DIR (default /opt/static-ip). Needs curl, xz, gcc, make, pkg-config and the
# Debian mirror that apt uses.
set -euo pipefail

home=${STATIC_IP_DIR:-/opt/static-ip}
version=6.1.0
checksum=5ce12a0fec6b212725ef218735941b2dab76244db7e72646a76021b0537b43ab

if [ -x "$home/ip" ]; then
  echo "static $("$home/ip" -V), already there"
  exit
fi
mirror=$(cat /etc/apt/sources.list.d/*.sources 2>/dev/null | sed -n 's/^URIs: *\([^ ]*\).*/\1/p' | head -n 1)
[ -n "$mirror" ] || mirror=$(sed -n 's/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\).*/\2/p' /etc/apt/sources.list 2>/dev/null | head -n 1)
[ -n "$mirror" ] || { echo "static-ip.sh: apt knows no Debian mirror" >&2; exit 1; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
curl -fsS -o source.tar.xz "$mirror/pool/main/i/iproute2/iproute2_$version.orig.tar.xz"
echo "$checksum  source.tar.xz" | sha256sum -c --quiet
tar xf source.tar.xz
cd "iproute2-$version"
./configure >/dev/null
# What the machine happens to have, and a static library may lack.
sed -i '/RPC/d; /tirpc/d; /MNL/d; /mnl/d; /ELF/d; /elf/d; /BPF/d; /bpf/d; /SELINUX/d; /selinux/d; /CAP/d; /-lcap/d' config.mk
make -s -j"$(nproc)" SUBDIRS="lib ip" SHARED_LIBS=n CCOPTS="-O1 -w" LDFLAGS=-static all >build.log 2>&1 ||
  { tail -n 20 build.log >&2; exit 1; }
mkdir -p "$home"
cp ip/ip "$home/ip"
echo "static $("$home/ip" -V)"
