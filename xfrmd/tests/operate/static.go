// What a Go program does with sockets that the library of the example does not: one case, by its name.
package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"
)

const (
	netlinkXfrm  = 6
	newSADInfo   = 0x22
	getSADInfo   = 0x23
	newSPDInfo   = 0x24
	getSPDInfo   = 0x25
	newPolicy    = 0x13
	ioUringSetup = 425
	udpEncap     = 100
	espInUDP     = 2
	// struct xfrm_userpolicy_info, and where it has the family.
	policyBytes  = 168
	policyFamily = 40
)

func check(fine bool, format string, values ...interface{}) {
	if !fine {
		_, _, line, _ := runtime.Caller(1)
		fmt.Fprintf(os.Stderr, "line %d: "+format+"\n", append([]interface{}{line}, values...)...)
		os.Exit(1)
	}
}

func open() int {
	fd, err := syscall.Socket(syscall.AF_NETLINK, syscall.SOCK_RAW|syscall.SOCK_CLOEXEC, netlinkXfrm)
	check(err == nil, "socket: %v", err)
	return fd
}

func ask(fd int, kind uint16, flags uint16, body []byte) ([]byte, error) {
	var request bytes.Buffer
	header := syscall.NlMsghdr{Len: uint32(16 + len(body)), Type: kind, Flags: syscall.NLM_F_REQUEST | flags, Seq: 1}
	binary.Write(&request, binary.LittleEndian, header)
	request.Write(body)
	if err := syscall.Sendto(fd, request.Bytes(), 0, &syscall.SockaddrNetlink{Family: syscall.AF_NETLINK}); err != nil {
		return nil, err
	}
	answer := make([]byte, 4096)
	n, from, err := syscall.Recvfrom(fd, answer, 0)
	if err != nil {
		return nil, err
	}
	if from.(*syscall.SockaddrNetlink).Pid != 0 {
		return nil, fmt.Errorf("from port %d", from.(*syscall.SockaddrNetlink).Pid)
	}
	return answer[:n], nil
}

func kindOf(answer []byte) uint16 { return binary.LittleEndian.Uint16(answer[4:]) }

func answers(fd int) error {
	answer, err := ask(fd, getSADInfo, 0, []byte{255, 255, 255, 255})
	if err == nil && kindOf(answer) != newSADInfo {
		err = fmt.Errorf("type %#x", kindOf(answer))
	}
	return err
}

// Policies of the instance of this thread's namespace.
func policies() uint32 {
	fd := open()
	defer syscall.Close(fd)
	answer, err := ask(fd, getSPDInfo, 0, []byte{255, 255, 255, 255})
	check(err == nil && kindOf(answer) == newSPDInfo, "GETSPDINFO: %v", err)
	// Behind the header, the flags and an attribute's header: those in, those out.
	return binary.LittleEndian.Uint32(answer[16+4+4+4:])
}

func addPolicy() {
	fd := open()
	defer syscall.Close(fd)
	policy := make([]byte, policyBytes)
	policy[policyFamily] = syscall.AF_INET
	policy[policyBytes-8] = 1 // out
	answer, err := ask(fd, newPolicy, syscall.NLM_F_ACK, policy)
	check(err == nil && binary.LittleEndian.Uint32(answer[16:]) == 0, "NEWPOLICY: %v %v", err, answer)
}

func numbers() {
	fd := open()
	copied, err := syscall.Dup(fd)
	check(err == nil && copied > fd && answers(copied) == nil, "dup: %v", err)
	err = syscall.Dup3(fd, 898, syscall.O_CLOEXEC)
	check(err == nil && answers(898) == nil, "dup3: %v", err)
	err = syscall.Dup3(fd, 70, 0)
	check(err == syscall.EBADF, "dup3 elsewhere: %v", err)
	syscall.Close(fd)
	err = answers(copied)
	check(err == nil, "the copy: %v", err)
}

func ports() {
	bind := func(port int) (int, error) {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_DGRAM, 0)
		check(err == nil, "socket: %v", err)
		err = syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
		return fd, err
	}
	fd, err := bind(0)
	check(err == nil, "bind: %v", err)
	name, err := syscall.Getsockname(fd)
	check(err == nil, "getsockname: %v", err)
	err = syscall.SetsockoptInt(fd, syscall.IPPROTO_UDP, udpEncap, espInUDP)
	check(err == nil, "UDP_ENCAP: %v", err)
	syscall.Close(fd)
	_, err = bind(name.(*syscall.SockaddrInet4).Port)
	check(err == nil, "the port is not free: %v", err)
}

func rings() {
	var parameters [256]byte
	_, _, errno := syscall.Syscall(ioUringSetup, 1, uintptr(unsafe.Pointer(&parameters)), 0)
	check(errno == syscall.ENOSYS, "io_uring_setup: %v", errno)
}

// A thread in a namespace of its own has the instance of that one.
func threads() {
	runtime.LockOSThread()
	addPolicy()
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread() // and never again unlocked: the thread ends here
		err := syscall.Unshare(syscall.CLONE_NEWNET)
		check(err == nil, "unshare: %v", err)
		check(policies() == 0, "policies of the other namespace")
		close(done)
	}()
	<-done
	check(policies() == 1, "policies")
}

// By vfork and exec, as os/exec does it; the child has the socket under its number.
func children() {
	fd := open()
	_, err := syscall.Dup(fd) // without FD_CLOEXEC
	check(err == nil, "dup: %v", err)
	me, err := os.Executable()
	check(err == nil, "%v", err)
	inherit := &syscall.ProcAttr{Files: []uintptr{0, 1, 2}, Env: os.Environ()}
	child, err := syscall.ForkExec(me, []string{me, "inherited", strconv.Itoa(fd + 1)}, inherit)
	check(err == nil, "fork: %v", err)
	var status syscall.WaitStatus
	_, err = syscall.Wait4(child, &status, 0, nil)
	check(err == nil && status.ExitStatus() == 0, "%v %v", err, status)
	err = answers(fd)
	check(err == nil, "afterwards: %v", err)
	// As descriptor 3 of a child it would be nobody's: so there is none.
	refused := &syscall.ProcAttr{Files: []uintptr{0, 1, 2, uintptr(fd)}, Env: os.Environ()}
	_, err = syscall.ForkExec(me, []string{me, "inherited", "3"}, refused)
	check(err == syscall.EBADF, "as descriptor 3: %v", err)
}

func inherited() {
	fd, _ := strconv.Atoi(os.Args[2])
	err := answers(fd)
	check(err == nil, "descriptor %d: %v", fd, err)
}

func main() {
	cases := map[string]func(){"numbers": numbers, "ports": ports, "rings": rings, "threads": threads,
		"children": children, "inherited": inherited}
	cases[os.Args[1]]()
}
