// Tests of Go code that configures IPsec through github.com/vishvananda/netlink:
//
//	xfrmd run --check -- go test ./examples/go
//
// Go programs make their system calls without libc; xfrmd run serves them all the same. No root.
package xfrm

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

func TestMain(m *testing.M) {
	if os.Getenv("XFRMD_CONTROL") == "" {
		println("start it as: xfrmd run -- go test ...  (it would change the host)")
		os.Exit(2)
	}
	os.Exit(m.Run())
}

var local, remote = net.ParseIP("10.0.0.1"), net.ParseIP("10.0.0.2")

func sa(spi int) *netlink.XfrmState {
	return &netlink.XfrmState{
		Src: local, Dst: remote, Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TUNNEL,
		Spi: spi, Reqid: 1, ReplayWindow: 32,
		Aead: &netlink.XfrmStateAlgo{
			Name: "rfc4106(gcm(aes))", Key: make([]byte, 20), ICVLen: 128,
		},
	}
}

func policy(t *testing.T) *netlink.XfrmPolicy {
	_, from, err := net.ParseCIDR("10.1.0.0/16")
	if err != nil {
		t.Fatal(err)
	}
	_, to, err := net.ParseCIDR("10.2.0.0/16")
	if err != nil {
		t.Fatal(err)
	}
	return &netlink.XfrmPolicy{
		Src: from, Dst: to, Dir: netlink.XFRM_DIR_OUT,
		Tmpls: []netlink.XfrmPolicyTmpl{{
			Src: local, Dst: remote, Proto: netlink.XFRM_PROTO_ESP,
			Mode: netlink.XFRM_MODE_TUNNEL, Reqid: 1,
		}},
	}
}

func TestTunnelGoesUpAndDown(t *testing.T) {
	if err := netlink.XfrmStateAdd(sa(0x1001)); err != nil {
		t.Fatal(err)
	}
	if err := netlink.XfrmPolicyAdd(policy(t)); err != nil {
		t.Fatal(err)
	}
	states, err := netlink.XfrmStateList(netlink.FAMILY_V4)
	if err != nil || len(states) != 1 || states[0].Spi != 0x1001 {
		t.Fatalf("%v %v", states, err)
	}
	if err := netlink.XfrmStateAdd(sa(0x1001)); !errors.Is(err, syscall.EEXIST) {
		t.Fatalf("the same SA twice: %v", err)
	}
	if err := netlink.XfrmPolicyDel(policy(t)); err != nil {
		t.Fatal(err)
	}
	if os.Getenv("FORGET") == "" {
		if err := netlink.XfrmStateDel(sa(0x1001)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestManySAs(t *testing.T) {
	const count = 300
	for spi := 1; spi <= count; spi++ {
		if err := netlink.XfrmStateAdd(sa(0x10000 + spi)); err != nil {
			t.Fatal(spi, err)
		}
	}
	states, err := netlink.XfrmStateList(netlink.FAMILY_ALL)
	if err != nil || len(states) != count {
		t.Fatalf("%d %v", len(states), err)
	}
	if err := netlink.XfrmStateFlush(netlink.XFRM_PROTO_ESP); err != nil {
		t.Fatal(err)
	}
}

func TestExpiriesAreHeard(t *testing.T) {
	heard := make(chan netlink.XfrmMsg, 16)
	failed := make(chan error, 1)
	done := make(chan struct{})
	defer close(done)
	if err := netlink.XfrmMonitor(heard, done, failed, nl.XFRM_MSG_EXPIRE); err != nil {
		t.Fatal(err)
	}
	short := sa(0x2001)
	short.Limits.TimeHard = 1
	if err := netlink.XfrmStateAdd(short); err != nil {
		t.Fatal(err)
	}
	select {
	case message := <-heard:
		expired, ok := message.(*netlink.XfrmMsgExpire)
		if !ok || !expired.Hard || expired.XfrmState.Spi != 0x2001 {
			t.Fatalf("%+v", message)
		}
	case err := <-failed:
		t.Fatal(err)
	}
}
