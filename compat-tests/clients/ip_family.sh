# -4 and -6.
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 1 enc 'cbc(aes)' 0x000102030405060708090a0b0c0d0e0f
ip xfrm state add src 2001:db8::1 dst 2001:db8::2 proto esp spi 1 enc 'cbc(aes)' 0x000102030405060708090a0b0c0d0e0f
ip xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out
ip xfrm policy add src 2001:db8:1::/48 dst 2001:db8:2::/48 dir out
ip -4 xfrm state
ip -6 xfrm state
ip -4 xfrm policy
ip -6 xfrm policy
ip -6 xfrm policy list dst 2001:db8:2::/48
ip -4 xfrm state deleteall
ip xfrm state
ip -6 xfrm policy deleteall
ip xfrm policy
