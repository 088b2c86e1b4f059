# deleteall and flush by filter: requests without ACK, many to a datagram.
for i in 1 2 3 4 5 6 7 8; do
  ip xfrm state add src 10.0.0.1 dst 10.0.0.$i proto esp spi 0x20$i reqid $((i % 3)) mode tunnel aead 'rfc4106(gcm(aes))' 0x0102030405060708090a0b0c0d0e0f1011121314 128
  ip xfrm policy add src 10.1.0.0/16 dst 10.2.$i.0/24 dir out priority $((i % 3))
done
ip xfrm state deleteall reqid 1
ip xfrm state list
ip xfrm policy deleteall priority 2
ip xfrm policy list
ip xfrm state deleteall dst 10.0.0.2
ip xfrm state count
ip xfrm state flush proto ah
ip xfrm state count
ip xfrm state deleteall
ip xfrm state count
