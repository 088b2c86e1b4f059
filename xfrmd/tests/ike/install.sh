#!/usr/bin/env bash
# Installs the strongSwans that the IKE tests start: Debian's builds, unmodified but for where they
# look for libraries, each in a folder of its own, beside whatever the machine has.
#
#   xfrmd/tests/ike/install.sh [5.9|6.0]...     default: both
#
# 5.9 comes from Debian 12, 6.0 from Debian 13: the versions named below, or what the mirror has
# instead. Each goes to $IKE_DAEMONS_DIR (default /opt/ike-daemons), with the libraries it needs.
# Needs root, curl, dpkg, xz, the Debian mirror that apt uses, and patchelf (installed if missing).
# libreswan is the distribution's: apt-get install libreswan.
set -euo pipefail

root=${IKE_DAEMONS_DIR:-/opt/ike-daemons}
[ $# -gt 0 ] || set -- 5.9 6.0

mirror=$(cat /etc/apt/sources.list.d/*.sources 2>/dev/null | sed -n 's/^URIs: *\([^ ]*\).*/\1/p' | head -n 1)
[ -n "$mirror" ] || mirror=$(sed -n 's/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\).*/\2/p' /etc/apt/sources.list 2>/dev/null | head -n 1)
[ -n "$mirror" ] || { echo "install.sh: apt knows no Debian mirror" >&2; exit 1; }

command -v patchelf >/dev/null || apt-get install -qy --no-install-recommends patchelf >/dev/null

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# unpack SUITE PACKAGE [VERSION]: into $scratch/SUITE; another version if the mirror lacks it
unpack() {
  local index=$scratch/index.$1 path
  [ -s "$index" ] || curl -fsS "$mirror/dists/$1/main/binary-amd64/Packages.xz" | xz -dc >"$index"
  path=$(awk -v want="Package: $2" '$0 == want {here = 1} here && /^Filename:/ {print $2; exit} /^$/ {here = 0}' "$index")
  [ -n "$path" ] || { echo "install.sh: no $2 in $1" >&2; return 1; }
  if [ -z "${3-}" ] || ! curl -fsS -o "$scratch/deb" "$mirror/${path%/*}/${2}_$3_amd64.deb" 2>/dev/null; then
    curl -fsS -o "$scratch/deb" "$mirror/$path"
  fi
  dpkg -x "$scratch/deb" "$scratch/$1"
  [ -z "${3-}" ] || dpkg-deb -f "$scratch/deb" Version >"$scratch/version"
}

for version in "$@"; do
  case $version in
    5.9) suite=bookworm pinned=5.9.8-5+deb12u5 libraries="libssl3 libgcrypt20 libgpg-error0 libgmp10 libcap2 libsystemd0 liblz4-1 libzstd1 liblzma5" ;;
    6.0) suite=trixie pinned=6.0.1-6+deb13u6 libraries="libc6 libssl3t64 libgcrypt20 libgpg-error0 libgmp10 libcap2 libsystemd0 libzstd1 zlib1g" ;;
    *) echo "install.sh: no such strongSwan: $version" >&2; exit 2 ;;
  esac
  home=$root/$version
  if [ -s "$home/VERSION" ]; then
    echo "strongSwan $(cat "$home/VERSION"), already there"
    continue
  fi
  for package in charon-systemd strongswan-swanctl strongswan-libcharon libstrongswan libstrongswan-standard-plugins \
    libstrongswan-extra-plugins libcharon-extra-plugins; do
    unpack $suite $package $pinned
  done
  for package in $libraries; do unpack $suite "$package"; done
  rm -rf "$home"
  mkdir -p "$home/lib" /usr/lib/ipsec
  cp "$scratch/$suite"/usr/sbin/{charon-systemd,swanctl} "$home/"
  cp -r "$scratch/$suite/usr/lib/ipsec" "$home/ipsec"
  for folder in "$scratch/$suite"/{,usr/}lib/x86_64-linux-gnu; do
    [ ! -d "$folder" ] || cp -d "$folder"/*.so* "$home/lib/"
  done
  own=
  if [ -e "$home/lib/libc.so.6" ]; then
    # Its own libc only where this machine's is too old.
    if [[ $(ldd "$home/swanctl" 2>&1) =~ GLIBC_[0-9.]+.\ not\ found ]]; then
      own=$home/lib/ld-linux-x86-64.so.2
    else
      rm -f "$home"/lib/{ld-linux-x86-64.so.2,libc.so.6,libm.so.6,libpthread.so.0,libdl.so.2,libresolv.so.2,librt.so.1}
    fi
  fi
  for file in "$home"/{charon-systemd,swanctl} "$home"/ipsec/*.so* "$home"/ipsec/plugins/*.so "$home"/lib/*.so*; do
    [ ! -L "$file" ] || continue
    case $file in */ld-linux* | */libc.so.6) continue ;; esac
    patchelf --set-rpath "$home/ipsec:$home/lib" "$file"
  done
  [ -z "$own" ] || for file in charon-systemd swanctl; do patchelf --set-interpreter "$own" "$home/$file"; done
  mv "$scratch/version" "$home/VERSION"
  echo "strongSwan $(cat "$home/VERSION")"
done
