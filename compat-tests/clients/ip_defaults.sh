# Default policies and hash thresholds.
ip xfrm policy getdefault
ip xfrm policy setdefault in block fwd block out accept
ip xfrm policy getdefault
ip xfrm policy setdefault out block
ip xfrm policy getdefault
ip xfrm policy set hthresh4 24 16
ip xfrm policy set hthresh6 64 48
ip xfrm policy set hthresh4 33 16
ip -s -s xfrm policy count
