#!/bin/sh
# Tries the Debian package under a systemd of its own: installs it, carries packets between two
# network namespaces, kills the daemon and its keeper, stops the service.
#
#   cargo xtask deb && packaging/systemd/try.sh target/package/xfrmd_*.deb
#
# Needs root, systemd-nspawn (systemd-container) and nothing else: the machine's files are the
# container's, below a layer in memory, and nothing outside of it is touched.
set -eu
if [ "${1-}" != inside ]; then
    package=$(realpath "${1:?which package?}")
    scratch=$(mktemp -d)
    cleanup() {
        umount "$scratch/files" 2>/dev/null || true
        umount "$scratch" && rmdir "$scratch"
    }
    trap cleanup EXIT
    mount -t tmpfs tmpfs "$scratch"
    mkdir "$scratch/upper" "$scratch/work" "$scratch/files"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$scratch/upper,workdir=$scratch/work" "$scratch/files"
    mkdir -p "$scratch/files/opt/try"
    cp "$package" "$scratch/files/opt/try/xfrmd.deb"
    cp "$(realpath "$0")" "$scratch/files/opt/try/try.sh"
    cat > "$scratch/files/etc/systemd/system/try.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c '/bin/sh /opt/try/try.sh inside > /opt/try/try.log 2>&1; echo $? > /opt/try/try.status; poweroff'
UNIT
    wants="$scratch/files/etc/systemd/system/multi-user.target.wants"
    mkdir -p "$wants" && ln -s ../try.service "$wants/try.service"
    timeout 120 systemd-nspawn --directory="$scratch/files" --register=no --keep-unit --private-network \
        --capability=CAP_NET_ADMIN,CAP_NET_RAW --bind=/dev/net/tun --boot --quiet > "$scratch/console" 2>&1 || true
    cat "$scratch/files/opt/try/try.log" || cat "$scratch/console"
    exit "$(cat "$scratch/files/opt/try/try.status" 2>/dev/null || echo 1)"
fi

must() { # WHAT COMMAND...
    what=$1
    shift
    if "$@" > /tmp/output 2>&1; then
        echo "ok    $what"
    else
        echo "FAIL  $what"
        cat /tmp/output
        journalctl -u xfrmd --no-pager | tail -20
        exit 1
    fi
}
not() { ! "$@"; }
answered() { ip netns exec a ping -c 3 -i 0.2 -W 1 10.0.0.2; }
refused() { ip xfrm state 2>&1 | grep -q 'Connection refused'; }
quiet_journal() { ! journalctl -u xfrmd --no-pager | grep -E 'WARN|ERROR'; }
main_pid() { systemctl show -p MainPID --value xfrmd; }
children() { pgrep -P "$(main_pid)"; }
restarted() { # PID-BEFORE
    for _ in $(seq 100); do
        systemctl is-active xfrmd > /dev/null && [ "$(main_pid)" != "$1" ] && return
        sleep 0.1
    done
    return 1
}

must 'the package installs' dpkg -i /opt/try/xfrmd.deb
echo 'packets = true' > /etc/xfrmd/xfrmd.toml
systemctl stop xfrmd
must 'the service starts' systemctl enable --now xfrmd
must 'and is reloaded' systemctl reload xfrmd
eval "$(xfrmd env)"
ip netns add a
ip netns add b
ip -n a link add v0 type veth peer name v1 netns b
ip -n a addr add 10.0.0.1/24 dev v0
ip -n b addr add 10.0.0.2/24 dev v1
for end in 'a v0 10.0.0.1 10.0.0.2' 'b v1 10.0.0.2 10.0.0.1'; do
    set -- $end
    ip -n "$1" link set lo up
    ip -n "$1" link set "$2" up
    for sa in '10.0.0.1 10.0.0.2 0x100' '10.0.0.2 10.0.0.1 0x200'; do
        set -- "$1" "$2" "$3" "$4" $sa
        ip -n "$1" xfrm state add src "$5" dst "$6" proto esp spi "$7" reqid 1 mode transport replay-window 32 \
            aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128
    done
    ip -n "$1" xfrm policy add dir out src "$3" dst "$4" tmpl proto esp reqid 1 mode transport
    ip -n "$1" xfrm policy add dir in src "$4" dst "$3" tmpl proto esp reqid 1 mode transport
done
must 'packets are carried' answered
must 'nothing was warned of' quiet_journal
before=$(children)
kill -9 "$before"
must 'the daemon is there again, with its SAs' answered
must 'it is another one' not test "$before" = "$(children)"
keeper=$(main_pid)
kill -9 "$keeper"
must 'the service is there again after the end of the keeper' restarted "$keeper"
must 'and has its SAs, which systemd kept' answered
systemctl stop xfrmd xfrmd.socket
must 'while it is down, clients are refused' refused
