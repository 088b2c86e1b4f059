# -s: counters, lifetimes and table sizes.
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100 reqid 1 mode tunnel aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128 limit time-soft 1000 limit time-hard 2000 limit time-use-soft 100 limit time-use-hard 200 limit byte-soft 1000000 limit byte-hard 2000000 limit packet-soft 1000 limit packet-hard 2000
ip xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out tmpl src 10.0.0.1 dst 10.0.0.2 proto esp reqid 1 mode tunnel
ip -s xfrm state
ip -s xfrm policy
ip -s xfrm state count
ip -s xfrm policy count
ip -s -s xfrm policy count
ip -d xfrm state
ip -o xfrm policy
