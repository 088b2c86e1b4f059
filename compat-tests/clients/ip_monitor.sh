# What a monitor sees, larval SAs and expiries included.

# A kernel looks for the modules of an algorithm when it is first asked for; that can take longer
# than the lifetimes below.
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100 mode tunnel aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x101 mode tunnel enc 'cbc(aes)' 0x000102030405060708090a0b0c0d0e0f
ip xfrm state flush

log=$(mktemp)
ip xfrm monitor >> "$log" 2>&1 & monitor=$!

# Waits until the monitor has told so many expiries, at most 30 seconds.
expiries() {
    for _ in $(seq 150); do
        [ "$(grep -c '^Expired' "$log")" -ge "$1" ] && return
        sleep 0.2
    done
}

# The monitor listens once it tells something; then its log begins.
for _ in $(seq 300); do
    ip xfrm policy setdefault in accept
    sleep 0.1
    [ -s "$log" ] && break
done
sleep 0.5
: > "$log"

ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100 reqid 1 mode tunnel aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128
ip xfrm state update src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100 reqid 1 mode tunnel aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128 limit byte-soft 77
ip xfrm state delete src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100
ip xfrm state allocspi src 10.0.0.1 dst 10.0.0.2 proto esp reqid 5 mode tunnel min 0x200 max 0x200
ip xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out tmpl src 10.0.0.1 dst 10.0.0.2 proto esp reqid 1 mode tunnel
ip xfrm policy update src 10.1.0.0/16 dst 10.2.0.0/16 dir out priority 3
ip xfrm policy delete src 10.1.0.0/16 dst 10.2.0.0/16 dir out
ip xfrm policy setdefault in accept
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x101 mode tunnel enc 'cbc(aes)' 0x000102030405060708090a0b0c0d0e0f limit time-soft 1 limit time-hard 4
expiries 2
ip xfrm policy add src 10.3.0.0/16 dst 10.4.0.0/16 dir fwd limit time-soft 1 limit time-hard 4
expiries 4
ip xfrm policy add src 10.5.0.0/16 dst 10.6.0.0/16 dir in
ip xfrm policy flush
ip xfrm state flush
sleep 0.5
kill "$monitor"; wait "$monitor" 2>/dev/null
cat "$log"; rm "$log"
ip xfrm state count
