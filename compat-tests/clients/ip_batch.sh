# -batch: many requests from one process, one wrong among them.
batch=$(mktemp)
for i in $(seq 1 40); do
  echo "xfrm state add src 10.0.0.1 dst 10.0.0.$i proto esp spi 0x$i reqid $i mode tunnel aead rfc4106(gcm(aes)) 0x0102030405060708090a0b0c0d0e0f1011121314 128"
  echo "xfrm policy add src 10.1.0.0/16 dst 10.2.$i.0/24 dir out priority $i tmpl src 10.0.0.1 dst 10.0.0.$i proto esp reqid $i mode tunnel"
done > "$batch"
ip -batch "$batch"
ip -batch "$batch" 2>&1 | sed 's/Command failed .*:/Command failed FILE:/'
ip -force -batch "$batch" 2>&1 | sed 's/Command failed .*:/Command failed FILE:/' | head -n 6
rm "$batch"
ip xfrm state count
ip xfrm state
ip xfrm policy
ip xfrm state deleteall
ip xfrm policy deleteall
ip xfrm state count
ip xfrm policy count
