# Policies of every direction and shape, added, shown, updated, deleted.
ip xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out priority 100 tmpl src 10.0.0.1 dst 10.0.0.2 proto esp reqid 1 mode tunnel
ip xfrm policy add src 10.2.0.0/16 dst 10.1.0.0/16 dir in priority 100 tmpl src 10.0.0.2 dst 10.0.0.1 proto esp reqid 1 mode tunnel
ip xfrm policy add src 10.2.0.0/16 dst 10.1.0.0/16 dir fwd priority 100 tmpl src 10.0.0.2 dst 10.0.0.1 proto esp reqid 1 mode tunnel
ip xfrm policy add src 10.1.0.0/16 dst 10.2.0.0/16 dir out priority 200
ip xfrm policy add src 10.1.0.1/32 dst 10.2.0.1/32 proto tcp sport 80 dport 1024 dir out action block priority 50
ip xfrm policy add src 10.1.0.1/32 dst 10.2.0.1/32 proto icmp type 8 code 0 dir out action allow
ip xfrm policy add src 2001:db8:1::/48 dst 2001:db8:2::/48 dir out tmpl src 2001:db8::1 dst 2001:db8::2 proto comp mode tunnel level use tmpl src 2001:db8::1 dst 2001:db8::2 proto esp mode transport
ip xfrm policy add dst 10.9.0.0/16 dir out ptype sub mark 3 mask 7 if_id 12 flag localok icmp priority 7
ip xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir out index 4097 priority 9999 limit time-soft 1000 limit time-hard 2000 limit byte-soft 5
ip xfrm policy add src 0.0.0.0/0 dst 0.0.0.0/0 dir out priority 1
ip xfrm policy
ip xfrm policy list dir in
ip xfrm policy list ptype sub
ip xfrm policy list src 10.1.0.0/16
ip xfrm policy list priority 100
ip xfrm policy get src 10.1.0.0/16 dst 10.2.0.0/16 dir out
ip xfrm policy get dir out index 1
ip xfrm policy get dir out index 4097
ip xfrm policy get dir in index 1
ip xfrm policy update src 10.1.0.0/16 dst 10.2.0.0/16 dir out priority 55 action block
ip xfrm policy update src 10.77.0.0/16 dst 10.78.0.0/16 dir out
ip xfrm policy list dir out
ip xfrm policy delete src 10.1.0.0/16 dst 10.2.0.0/16 dir out
ip xfrm policy delete src 10.1.0.0/16 dst 10.2.0.0/16 dir out
ip xfrm policy delete dir out index 4097
ip xfrm policy delete dst 10.9.0.0/16 dir out ptype sub mark 3 mask 7 if_id 12
ip xfrm policy count
ip -s xfrm policy count
ip xfrm policy flush ptype sub
ip xfrm policy flush
ip xfrm policy
