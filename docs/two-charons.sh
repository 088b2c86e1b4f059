#!/bin/sh
# Two network namespaces joined by a veth pair, in each a strongSwan on an xfrmd: they agree on a tunnel
# between 10.1.0.0/24 and 10.2.0.0/24, a ping goes through it, the SAs are made anew, another ping.
#
# Needs root, ip, ping, xfrmd in the PATH, and strongSwan with swanctl: apt-get install charon-systemd
# strongswan-swanctl libstrongswan-standard-plugins, or xfrmd/tests/ike/install.sh, which puts it into a
# folder beside whatever is there. Nothing outside is touched.
set -eu
home=${IKE_DAEMONS_DIR:-/opt/ike-daemons}/5.9
if [ -x "$home/charon-systemd" ]; then own=yes; else home=/usr/sbin own=; fi
case ${1-start} in
start)
    [ -x "$home/charon-systemd" ] || { echo "$0: no charon-systemd: see its head" >&2; exit 1; }
    directory=$(mktemp -d)
    trap 'rm -rf "$directory"' EXIT
    unshare -m -n "$0" left "$directory"
    ;;
left) # The one namespace; the other is made from it.
    [ -z "$own" ] || mount --bind "$home/ipsec" /usr/lib/ipsec
    unshare -n "$0" right "$2" &
    while [ ! -e "$2/right" ]; do sleep 0.1; done
    ip link set lo up
    ip link add v0 type veth peer name v1 netns $!
    ip addr add 10.0.0.1/24 dev v0
    ip addr add 10.1.0.1/24 dev lo
    ip link set v0 up
    xfrmd run --packets -- "$0" charon "$2" 1 2
    wait
    ;;
right)
    : > "$2/right"
    while ! ip addr add 10.0.0.2/24 dev v1 2> /dev/null; do sleep 0.1; done
    ip addr add 10.2.0.1/24 dev lo
    ip link set lo up
    ip link set v1 up
    exec xfrmd run --packets -- "$0" charon "$2" 2 1
    ;;
charon) # Under xfrmd: the daemon, unmodified, and its configuration.
    at=$2/$3
    export STRONGSWAN_CONF="$at.strongswan.conf"
    cat > "$STRONGSWAN_CONF" <<STRONGSWAN
charon-systemd {
  load = random nonce openssl hmac kdf kernel-netlink socket-default vici
  plugins { vici { socket = unix://$at.vici } }
  journal { default = -1 }
}
swanctl { load = }
STRONGSWAN
    cat > "$at.swanctl.conf" <<SWANCTL
connections {
  tunnel {
    version = 2
    local_addrs = 10.0.0.$3
    remote_addrs = 10.0.0.$4
    local { auth = psk }
    remote { auth = psk }
    children {
      tunnel {
        local_ts = 10.$3.0.0/24
        remote_ts = 10.$4.0.0/24
        esp_proposals = aes128gcm16
      }
    }
  }
}
secrets { ike { secret = "known to both and nobody else" } }
SWANCTL
    "$home/charon-systemd" > "$at.log" 2>&1 &
    daemon=$!
    trap 'kill $daemon; wait' EXIT
    while [ ! -S "$at.vici" ]; do sleep 0.1; done
    swanctl() { "$home/swanctl" "$@" --uri "unix://$at.vici"; }
    swanctl --load-all --file "$at.swanctl.conf" > "$at.loaded" 2>&1
    if [ "$3" = 1 ]; then
        while ! swanctl --initiate --child tunnel --timeout 5 > "$at.said" 2>&1; do sleep 0.2; done
        tail -n 2 "$at.said"
        ping -c 3 -i 0.2 -I 10.1.0.1 10.2.0.1
        swanctl --rekey --child tunnel
        ping -c 3 -i 0.2 -I 10.1.0.1 10.2.0.1
        swanctl --list-sas
        swanctl --terminate --ike tunnel > /dev/null
        : > "$2/done"
    else
        # Until the other is done, or has failed.
        while [ -d "$2" ] && [ ! -e "$2/done" ]; do sleep 0.1; done
    fi
    ;;
esac
