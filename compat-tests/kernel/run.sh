#!/usr/bin/env bash
# Runs a command inside a reference kernel (see install.sh).
#
#   compat-tests/kernel/run.sh -k 6.1|6.12|7.2|7.2-iptfs [-s] [-m MEMORY] [-n TAP] [-r] [-t SECONDS] -- COMMAND [ARG...]
#
# -n joins it to this network namespace: its interface vec0 is the other end of TAP, a TAP device
# that exists. 7.2-iptfs is 7.2 with the module that iptfs.sh made.
# -r runs the command anew, twice at most, when the kernel itself crashed before the command ended
# (a user-mode kernel on a busy machine does now and then): that is no answer of Linux.
# -s seals it: once the modules that XFRM uses are loaded, none is loaded on
# demand, because a search for one that does not exist takes a tenth of a second.
#
# The command is root there, in this directory, with this environment, and sees
# and writes this machine's files; /run is empty, there is no network but
# loopback and what -n joins. Its output (both streams) and its exit code become this script's;
# 124 when it took longer than SECONDS (default 300). Booting takes 3 seconds.
set -euo pipefail

root=${REFERENCE_KERNEL_DIR:-/opt/reference-kernel}
release=7.2 memory=512M seconds=300 seal=: module= link= attempts=1
while getopts k:m:n:rst: option; do
  case $option in
    k) release=$OPTARG ;;
    m) memory=$OPTARG ;;
    n) link=vec0:transport=tap,ifname=$OPTARG,depth=64 ;;
    r) attempts=3 ;;
    s) seal='modprobe -qa $crypto; echo > /proc/sys/kernel/modprobe' ;;
    t) seconds=$OPTARG ;;
    *) exit 2 ;;
  esac
done
shift $((OPTIND - 1))
[ "${1:-}" = -- ] && shift
[ $# -gt 0 ] || { echo "usage: run.sh -k 6.1|6.12|7.2|7.2-iptfs [-s] [-m MEMORY] [-n TAP] [-r] [-t SECONDS] -- COMMAND [ARG...]" >&2; exit 2; }
case $release in
  6.1) name=oldstable ;;
  6.12) name=stable ;;
  7.2) name=newest ;;
  7.2-iptfs) name=newest module=$root/newest/xfrm_iptfs.ko ;;
  *) echo "run.sh: no such kernel: $release" >&2; exit 2 ;;
esac
home=$root/$name
[ -z "$module" ] || [ -e "$module" ] || { echo "run.sh: $module is not installed: compat-tests/kernel/iptfs.sh" >&2; exit 2; }
[ -x "$home/linux" ] || { echo "run.sh: kernel $release is not installed: compat-tests/kernel/install.sh $release" >&2; exit 2; }

box=$(mktemp -d /var/tmp/compat-kernel.XXXXXX)
trap 'rm -rf "$box"' EXIT
{
  echo '#!/bin/bash'
  export -p
  printf 'cd %q\n' "$PWD"
  printf 'exec'
  printf ' %q' "$@"
  echo
} >"$box/command"
cat >"$box/init" <<INIT
#!/bin/bash
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/shm /dev/net
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
mount --bind $home/lib/modules /lib/modules
for module in xfrm_user esp4 esp6 ah4 ah6 ipcomp ipcomp6 xfrm4_tunnel xfrm6_tunnel ip6_tunnel ipip \\
  mip6 tun esp4_offload esp6_offload authenc echainiv seqiv gcm ccm chacha20poly1305; do
  modprobe -q \$module
done
${module:+insmod $module || exit 1}
ip link set lo up
crypto="\$(cd /lib/modules/*/kernel/crypto && echo *.ko | sed 's/\.ko//g')"
$seal
timeout -k 5 $seconds bash $box/command </dev/null >$box/output 2>&1
echo \$? >$box/code
sync
poweroff -f
INIT
chmod +x "$box/init"
: >"$box/output"
tail -f -n +1 --pid=$$ "$box/output" 2>/dev/null &
tailer=$!
while [ ! -s "$box/code" ] && [ $((attempts--)) -gt 0 ]; do
  timeout -k 5 $((seconds + 60)) "$home/linux" mem="$memory" rootfstype=hostfs rootflags=/ rw init="$box/init" $link \
    con=null con0=null,null quiet </dev/null >"$box/console" 2>&1 || true
  [ -s "$box/code" ] || { echo "run.sh: the kernel ended before the command did" >&2; tail -n 20 "$box/console" >&2; }
done
sleep 0.2
kill "$tailer" 2>/dev/null || true
wait "$tailer" 2>/dev/null || true
[ -s "$box/code" ] || exit 125
exit "$(cat "$box/code")"
