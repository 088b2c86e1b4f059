# What ip prints when Linux says no.
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 1 mode tunnel aead 'gcm(aes)' 0x0102030405060708090a0b0c0d0e0f1011121314 128
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 1 mode tunnel aead 'rfc4106(gcm(aes))' 0x01020304 128
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 1 mode tunnel enc 'cbc(aes)' 0x01020304
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto ah spi 1 mode tunnel
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto ah spi 1 mode tunnel
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto comp spi 0x10000 mode tunnel comp deflate
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto comp spi 0x100 mode beet comp deflate
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto comp spi 0x100 mode transport comp lzs
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 1 mode ro enc 'cbc(aes)' 0x000102030405060708090a0b0c0d0e0f
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 1 mode tunnel encap espinudp-nonike 4500 4500 0.0.0.0 enc 'cbc(aes)' 0x000102030405060708090a0b0c0d0e0f
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 1 mode tunnel flag esn enc 'cbc(aes)' 0x000102030405060708090a0b0c0d0e0f
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto route2 mode ro
ip xfrm state allocspi src 10.0.0.1 dst 10.0.0.2 proto esp min 5 max 4
ip xfrm state allocspi src 10.0.0.1 dst 10.0.0.2 proto comp min 1 max 70000
ip xfrm state delete src 10.0.0.1 dst 10.0.0.2 proto esp spi 1
ip xfrm state get src 10.0.0.1 dst 10.0.0.2 proto esp spi 1
ip xfrm policy delete src 10.1.0.0/16 dst 10.2.0.0/16 dir out
ip xfrm policy get dir out index 77
ip xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out index 8
ip xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out tmpl proto esp mode transport src 2001:db8::1 dst 2001:db8::2
ip xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out tmpl proto esp mode tunnel level use
ip xfrm state update src 10.0.0.1 dst 10.0.0.2 proto esp spi 9 mode tunnel enc 'cbc(aes)' 0x000102030405060708090a0b0c0d0e0f
