#!/bin/sh
# A test of a script that configures IPsec, against a kernel that lives for as long as the test:
#
#     xfrmd run --check -- sh examples/shell/test.sh
#
# Needs xfrmd and ip; no root. --check makes it fail if anything is left behind at the end.
set -eu

fail() {
    echo "FAIL: $*" >&2
    exit 1
}

# What is tested: a tunnel between two sites goes up and down.
tunnel() {
    verb=$1
    case $verb in
    add) keys="aead rfc4106(gcm(aes)) 0x$(printf '%040d' 1) 128 replay-window 64 flag esn" ;;
    delete) keys= ;;
    esac
    for way in "10.0.0.1 10.0.0.2 0x1001 out 10.1.0.0/16 10.2.0.0/16" \
        "10.0.0.2 10.0.0.1 0x1002 in 10.2.0.0/16 10.1.0.0/16"; do
        # shellcheck disable=SC2086
        set -- $way
        if [ "$verb" = add ]; then
            # shellcheck disable=SC2086
            ip xfrm state add src "$1" dst "$2" proto esp spi "$3" reqid 1 mode tunnel $keys
            ip xfrm policy add src "$5" dst "$6" dir "$4" \
                tmpl src "$1" dst "$2" proto esp reqid 1 mode tunnel
        else
            ip xfrm state delete src "$1" dst "$2" proto esp spi "$3"
            ip xfrm policy delete src "$5" dst "$6" dir "$4"
        fi
    done
}

# Up: both SAs are there, and a packet between the sites would find its own.
tunnel add
[ "$(ip xfrm state list | grep -c '^src')" = 2 ] || fail "two SAs"
xfrmd explain out 10.1.0.5 10.2.0.7 | grep -q 'esp spi 0x00001001 .*: chosen' || fail "another SA"

# Nothing is wrong with it: replay windows, algorithms, SAs and policies that belong together.
xfrmd check || fail "findings"

# An SA that is there already is refused, as Linux refuses it.
if ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x1001 reqid 1 mode tunnel \
    aead 'rfc4106(gcm(aes))' 0x0000000000000000000000000000000000000002 128 2>/tmp/xfrm-example.$$; then
    fail "the same SA twice"
fi
grep -q 'File exists' /tmp/xfrm-example.$$ || fail "another error than EEXIST"
rm -f /tmp/xfrm-example.$$

# Down: nothing is left. Left out, this makes `xfrmd run --check` say what was forgotten.
[ -n "${FORGET:-}" ] || tunnel delete
echo ok
