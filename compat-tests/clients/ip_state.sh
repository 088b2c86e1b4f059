# States of every protocol, added, shown, updated, deleted.
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100 reqid 1 mode tunnel aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x101 reqid 2 mode transport enc 'cbc(aes)' 0x000102030405060708090a0b0c0d0e0f auth-trunc 'hmac(sha256)' 0x000102030405060708090a0b0c0d0e0f000102030405060708090a0b0c0d0e0f 128 sel src 10.0.0.1/32 dst 10.0.0.2/32 proto udp sport 500 dport 4500
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto ah spi 0x102 mode transport auth 'hmac(sha1)' 0x000102030405060708090a0b0c0d0e0f10111213 replay-window 16
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto comp spi 0x103 mode transport comp deflate
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto comp spi 0x104 mode tunnel comp deflate
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x105 mode beet enc 'ecb(cipher_null)' '' auth digest_null ''
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x106 reqid 3 mode tunnel flag noecn decap-dscp af-unspec esn replay-window 128 aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 64
ip xfrm state add src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x107 reqid 3 mode tunnel mark 0x10 mask 0xff if_id 7 encap espinudp 4500 4500 0.0.0.0 output-mark 5 mask 15 extra-flag dont-encap-dscp aead 'rfc7539esp(chacha20,poly1305)' 0x0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f2021222324 128
ip xfrm state add src 2001:db8::1 dst 2001:db8::2 proto esp spi 0x108 mode tunnel enc 'cbc(des3_ede)' 0x0102030405060708090a0b0c0d0e0f101112131415161718 auth 'hmac(md5)' 0x0102030405060708090a0b0c0d0e0f10
ip xfrm state
ip xfrm state get src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100
ip xfrm state update src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100 reqid 9 mode tunnel aead 'rfc4106(gcm(aes))' 0xff02030405060708090a0b0c0d0e0f1011121314 128 limit packet-soft 10 limit packet-hard 20
ip xfrm state get src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x100
ip xfrm state list proto ah
ip xfrm state list mode beet
ip xfrm state list src 2001:db8::/32
ip xfrm state list reqid 3
ip xfrm state delete src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x101
ip xfrm state delete src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x101
ip xfrm state get src 10.0.0.1 dst 10.0.0.2 proto esp spi 0x101
ip xfrm state count
ip xfrm state flush proto comp
ip xfrm state count
ip xfrm state flush
ip xfrm state
