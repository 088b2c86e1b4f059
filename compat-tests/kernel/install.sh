#!/usr/bin/env bash
# Installs the kernels that the suite compares with: Debian's user-mode Linux
# builds, real kernels that run as an ordinary process.
#
#   compat-tests/kernel/install.sh [6.1|6.12|7.2]...     default: all three
#
# 6.1 comes from Debian 12, 6.12 from Debian 13, 7.2 from Debian unstable (which
# moves on: what lands may be newer, and the tests then say so). Each goes to
# $REFERENCE_KERNEL_DIR (default /opt/reference-kernel). Needs root, curl, dpkg,
# xz, the Debian mirror that apt uses, and kmod and patchelf (installed if missing).
set -euo pipefail

root=${REFERENCE_KERNEL_DIR:-/opt/reference-kernel}
[ $# -gt 0 ] || set -- 6.1 6.12 7.2

mirror=$(cat /etc/apt/sources.list.d/*.sources 2>/dev/null | sed -n 's/^URIs: *\([^ ]*\).*/\1/p' | head -n 1)
[ -n "$mirror" ] || mirror=$(sed -n 's/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\).*/\2/p' /etc/apt/sources.list 2>/dev/null | head -n 1)
[ -n "$mirror" ] || { echo "install.sh: apt knows no Debian mirror" >&2; exit 1; }

command -v modprobe >/dev/null || apt-get install -qy --no-install-recommends kmod >/dev/null
command -v patchelf >/dev/null || apt-get install -qy --no-install-recommends patchelf >/dev/null

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$root" /lib/modules

# fetch SUITE PACKAGE: downloads the newest build, prints where it is
fetch() {
  local index=$scratch/index.$1 path
  [ -s "$index" ] || curl -fsS "$mirror/dists/$1/main/binary-amd64/Packages.xz" | xz -dc >"$index"
  path=$(awk -v want="Package: $2" '$0 == want {here = 1} here && /^Filename:/ {print $2; exit} /^$/ {here = 0}' "$index")
  [ -n "$path" ] || { echo "install.sh: no $2 in $1" >&2; return 1; }
  curl -fsS -o "$scratch/${path##*/}" "$mirror/$path"
  echo "$scratch/${path##*/}"
}

for release in "$@"; do
  case $release in
    6.1) suite=bookworm name=oldstable ;;
    6.12) suite=trixie name=stable ;;
    7.2) suite=sid name=newest ;;
    *) echo "install.sh: no such kernel: $release" >&2; exit 2 ;;
  esac
  home=$root/$name
  if [ -x "$home/linux" ] && [ -s "$home/RELEASE" ]; then
    echo "$release: $(cat "$home/RELEASE"), already there"
    continue
  fi
  rm -rf "$home" "$scratch/unpacked"
  mkdir -p "$home/lib/modules" "$scratch/unpacked"
  dpkg -x "$(fetch $suite user-mode-linux)" "$scratch/unpacked"
  cp "$scratch/unpacked/usr/bin/linux.uml" "$home/linux"
  cp -r "$scratch"/unpacked/usr/lib/uml/modules/* "$home/lib/modules/"
  if ! "$home/linux" --version >/dev/null 2>&1; then
    # It wants a newer libc than this machine has: give it one of its own.
    dpkg -x "$(fetch sid libc6)" "$scratch/libc"
    mkdir -p "$root/libc"
    cp -r "$scratch"/libc/usr/lib/x86_64-linux-gnu/* "$root/libc/"
    patchelf --set-interpreter "$root/libc/ld-linux-x86-64.so.2" --set-rpath "$root/libc" "$home/linux"
  fi
  "$home/linux" --version >"$home/RELEASE"
  echo "$release: $(cat "$home/RELEASE")"
done
