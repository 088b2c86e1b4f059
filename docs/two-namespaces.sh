#!/bin/sh
# Two network namespaces joined by a veth pair, an xfrmd in each, transport mode ESP between them,
# and a ping through it. Needs root, ip, ping, and xfrmd in the PATH. Nothing outside is touched.
set -eu
case ${1-start} in
start) exec unshare -n "$0" left ;;
left) # The one namespace; the other is made from it.
    unshare -n "$0" right &
    sleep 0.5
    ip link set lo up
    ip link add v0 type veth peer name v1 netns $!
    ip addr add 10.0.0.1/24 dev v0
    ip link set v0 up
    exec xfrmd run --packets -- "$0" ends 10.0.0.1 10.0.0.2
    ;;
right)
    while ! ip addr add 10.0.0.2/24 dev v1 2>/dev/null; do sleep 0.1; done
    ip link set lo up
    ip link set v1 up
    exec xfrmd run --packets -- "$0" ends 10.0.0.2 10.0.0.1
    ;;
ends) # Under xfrmd: the SAs of both directions, then the policies.
    sa() {
        ip xfrm state add src "$1" dst "$2" proto esp spi "$3" reqid 1 mode transport \
            replay-window 32 aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128
    }
    sa 10.0.0.1 10.0.0.2 0x100
    sa 10.0.0.2 10.0.0.1 0x200
    ip xfrm policy add dir out src "$2" dst "$3" tmpl proto esp reqid 1 mode transport
    ip xfrm policy add dir in src "$3" dst "$2" tmpl proto esp reqid 1 mode transport
    sleep 1
    if [ "$2" = 10.0.0.1 ]; then
        ping -c 3 -i 0.2 "$3"
        ip -s xfrm state | grep -E '^src|bytes\), [0-9]'
    else
        sleep 2
    fi
    ;;
esac
