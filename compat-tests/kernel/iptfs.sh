#!/usr/bin/env bash
# Makes the module that Debian's user-mode build of 7.2 lacks: IPTFS (CONFIG_XFRM_IPTFS).
#
#   compat-tests/kernel/iptfs.sh
#
# The kernel itself stays Debian's. It has loadable modules and no symbol versions, so a module
# made from Debian's source of the same series and with that kernel's own configuration loads,
# as long as no structure changed its layout in between: the source package may be some stable
# updates ahead of the build (7.2.13 and 7.2.7 when the goldens were recorded). The module lands
# beside the kernel, as xfrm_iptfs.ko; `run.sh -k 7.2-iptfs` loads it.
#
# Needs what install.sh needs, gcc, make, flex, bison and bc, 2 GB in $TMPDIR, and a minute.
set -euo pipefail

root=${REFERENCE_KERNEL_DIR:-/opt/reference-kernel}
home=$root/newest
[ -x "$home/linux" ] || { echo "iptfs.sh: kernel 7.2 is not installed: compat-tests/kernel/install.sh 7.2" >&2; exit 1; }
for tool in gcc make flex bison bc; do
  command -v $tool >/dev/null || { echo "iptfs.sh: no $tool" >&2; exit 1; }
done
release=$(cat "$home/RELEASE")
series=${release%.*}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch"/lists/partial "$scratch"/cache/archives/partial "$scratch"/source "$scratch"/build
mirror=$(cat /etc/apt/sources.list.d/*.sources 2>/dev/null | sed -n 's/^URIs: *\([^ ]*\).*/\1/p' | head -n 1)
[ -n "$mirror" ] || mirror=$(sed -n 's/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\).*/\2/p' /etc/apt/sources.list | head -n 1)
echo "deb [trusted=yes] $mirror sid main" >"$scratch/sources.list"
apt=(-o "Dir::Etc::sourcelist=$scratch/sources.list" -o Dir::Etc::sourceparts=/nonexistent
  -o "Dir::State::lists=$scratch/lists" -o "Dir::Cache=$scratch/cache" -o APT::Sandbox::User=root)
apt-get "${apt[@]}" -qq update
(cd "$scratch" && apt-get "${apt[@]}" -qq download "linux-source-$series" && dpkg -x linux-source-*.deb unpacked)
tar -C "$scratch/source" --strip-components=1 -xf "$scratch/unpacked/usr/src/linux-source-$series.tar.xz"

cd "$scratch/source"
"$home/linux" --showconfig >"$scratch/build/.config"
./scripts/config --file "$scratch/build/.config" --module XFRM_IPTFS
touch "$scratch/build/Module.symvers"
# The kernel looks at the release that a module names.
build=(make -s ARCH=um "SUBLEVEL=${release##*.}" KBUILD_MODPOST_WARN=1 "O=$scratch/build")
"${build[@]}" olddefconfig modules_prepare
"${build[@]}" net/xfrm/xfrm_iptfs.ko 2>"$scratch/log" || { cat "$scratch/log" >&2; exit 1; }
strip --strip-debug "$scratch/build/net/xfrm/xfrm_iptfs.ko" -o "$home/xfrm_iptfs.ko"
echo "$home/xfrm_iptfs.ko: $(modinfo -F vermagic "$home/xfrm_iptfs.ko")"
