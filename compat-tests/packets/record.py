#!/usr/bin/env python3
"""Records what a Linux kernel makes of packets: known SAs, known inner packets, outer packets as
captured, and what the kernel on the other side takes out of them again.

Run as root inside a kernel whose XFRM is to be recorded:   record.py [NAME-PART...] > packets.txt
The other way round, packets that somebody else made are given to that kernel, and what it does not
deliver as the inner packet is named:   record.py --take FILE      (FILE has case, sa, in and wire lines)

Two namespaces, a and b, joined by a veth pair. Each case installs one chain of SAs and an OUT policy
in a, sends inner packets there through raw sockets, and captures at the far end of the veth. Then b
gets the same SAs, the captured (or altered) frames are injected again, and what b's kernel delivers
is captured: at the packet socket for tunnel and BEET, at a raw socket for transport.

Format, one block per case, blank line between blocks:
  case NAME
  sa KEY=VALUE ...        one line per SA, innermost first
  in HEX                  inner packet given to a
  out HEX                 a frame that left a (several when fragmented)
  err ERRNO               sending failed instead
  wire HEX                what was put on the wire to b (only where it differs from `out`)
  got HEX                 what b delivered, = for what a was given (IPv6 transport: payload only, marked
                          got-payload)
  mib NAME                the counter that moved in b when nothing was delivered
In the mtu cases the hexadecimal text is cut after 64 bytes, and the length of the whole is in front:
LENGTH:HEX.
Keys and integers are hexadecimal where they begin with 0x.
"""
import ctypes
import errno
import itertools
import os
import select
import socket
import struct
import subprocess
import sys
import tempfile

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
A4, B4, A6, B6 = "10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"
INNER = {4: ("10.1.0.1", "10.2.0.1"), 6: ("fd01::1", "fd02::1")}
OUTER = {4: (A4, B4), 6: (A6, B6)}
MTU = 1500


def sh(command, check=True, ns=None):
    if ns:
        command = f"ip netns exec {ns} {command}" if not command.startswith("ip ") else f"ip -n {ns} {command[3:]}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip()}")
    return done


def in_ns(name, make):
    """What `make` gives when it is called inside namespace `name` (a socket stays there)."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    away = os.open(f"/run/netns/{name}", os.O_RDONLY)
    try:
        assert LIBC.setns(away, CLONE_NEWNET) == 0
        return make()
    finally:
        LIBC.setns(home, CLONE_NEWNET)
        os.close(home)
        os.close(away)


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pton(text):
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def udp(src, dst, data, sport=1111, dport=2222):
    src, dst = pton(src), pton(dst)
    length = 8 + len(data)
    pseudo = src + dst + (struct.pack("!BBH", 0, 17, length) if len(src) == 4 else struct.pack("!II", length, 17))
    head = struct.pack("!HHHH", sport, dport, length, 0)
    check = checksum(pseudo + head + data) or 0xFFFF
    return head[:6] + struct.pack("!H", check) + data


def ip4(src, dst, proto, payload, tos=0, ident=0x1234, frag=0x4000, ttl=64, options=b""):
    ihl = 5 + len(options) // 4
    head = struct.pack("!BBHHHBBH4s4s", 0x40 | ihl, tos, ihl * 4 + len(payload), ident, frag, ttl, proto, 0,
                       pton(src), pton(dst)) + options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ip6(src, dst, proto, payload, tos=0, flow=0, hops=64, extension=b""):
    """`extension`: whole extension headers, the last of which names `proto` already."""
    first = proto if not extension else EXTENSION_FIRST
    return struct.pack("!IHBB16s16s", 6 << 28 | tos << 20 | flow, len(extension) + len(payload), first, hops,
                       pton(src), pton(dst)) + extension + payload


EXTENSION_FIRST = 0


def ext6(chain, proto):
    """[(type, body without its first two bytes)] as extension headers in front of `proto`."""
    out = b""
    for at, (_, body) in enumerate(chain):
        following = chain[at + 1][0] if at + 1 < len(chain) else proto
        pad = -(2 + len(body)) % 8
        assert pad == 0
        out += struct.pack("!BB", following, (2 + len(body)) // 8 - 1) + body
    return out


class Bed:
    def __init__(self):
        for ns in "ab":
            sh(f"ip netns add {ns}")
        sh("ip link add va netns a address 02:00:00:00:00:0a type veth peer name vb netns b address 02:00:00:00:00:0b")
        sysctl = "net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0 net.ipv4.conf.all.rp_filter=0 " \
                 "net.ipv4.conf.default.rp_filter=0 net.ipv6.conf.all.accept_ra=0 net.ipv6.conf.default.accept_ra=0 " \
                 "net.ipv4.conf.all.accept_source_route=1 net.ipv4.conf.default.accept_source_route=1 " \
                 "net.ipv6.conf.all.accept_source_route=1 net.ipv6.conf.default.accept_source_route=1"
        for ns, dev, own, peer, mac in (("a", "va", 0, 1, "02:00:00:00:00:0b"), ("b", "vb", 1, 0, "02:00:00:00:00:0a")):
            sh(f"sysctl -qw {sysctl}", ns=ns)
            sh("ip link set lo up", ns=ns)
            sh(f"sysctl -qw net.ipv6.conf.{dev}.accept_dad=0 net.ipv6.conf.{dev}.dad_transmits=0 "
               f"net.ipv6.conf.{dev}.addr_gen_mode=1 net.ipv6.conf.{dev}.router_solicitations=0", ns=ns)
            sh(f"ip addr add {OUTER[4][own]}/24 dev {dev}", ns=ns)
            sh(f"ip addr add {OUTER[6][own]}/64 dev {dev} nodad", ns=ns)
            sh(f"ip link set {dev} arp on mtu {MTU} up", ns=ns)
            for family in (4, 6):
                sh(f"ip addr add {INNER[family][own]}/{32 if family == 4 else 128} dev lo", ns=ns)
                sh(f"ip neigh replace {OUTER[family][peer]} lladdr {mac} dev {dev} nud permanent", ns=ns)
                sh(f"ip route add {INNER[family][peer]} via {OUTER[family][peer]} dev {dev} src {INNER[family][own]}", ns=ns)
            for offload in ("tx", "rx", "gro", "gso", "tso"):
                sh(f"ethtool -K {dev} {offload} off", ns=ns, check=False)
        # The care-of address of mobile IPv6 is a neighbour too.
        sh("ip neigh replace fd00::2b lladdr 02:00:00:00:00:0b dev va nud permanent", ns="a")
        self.tap_b = in_ns("b", lambda: self.packet_socket("vb"))
        self.tap_a = in_ns("a", lambda: self.packet_socket("va"))
        self.raw4 = in_ns("a", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
        self.raw6 = in_ns("a", lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW))
        self.sink4 = in_ns("b", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP))
        self.sink6 = in_ns("b", lambda: socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_UDP))
        self.encap_sockets = in_ns("b", self.make_encap_sockets)

    @staticmethod
    def packet_socket(dev):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        sock.bind((dev, 3))
        return sock

    @staticmethod
    def make_encap_sockets():
        made = []
        for family, address in ((socket.AF_INET, B4), (socket.AF_INET6, B6)):
            for port, kind in ((4500, 2), (4501, 1)):
                sock = socket.socket(family, socket.SOCK_DGRAM)
                sock.bind((address, port))
                try:
                    sock.setsockopt(socket.IPPROTO_UDP, 100, kind)
                except OSError:
                    pass
                made.append(sock)
        return made

    def got(self, packet):
        return "got =" if packet == self.inner else f"got {self.show(packet)}"

    def show(self, packet):
        return f"{len(packet)}:{packet[:64].hex()}" if self.brief else packet.hex()

    @staticmethod
    def drain(sock, wait):
        frames = []
        while select.select([sock], [], [], wait)[0]:
            frames.append(sock.recvfrom(70000))
            wait = 0.02
        return frames

    def frames(self, tap, wait, wanted_source):
        """IP packets that arrived at `tap` from the MAC address `wanted_source`."""
        out = []
        for frame, address in self.drain(tap, wait):
            if address[2] == socket.PACKET_OUTGOING or frame[6:12] != wanted_source:
                continue
            if frame[12:14] not in (b"\x08\x00", b"\x86\xdd"):
                continue
            packet = frame[14:]
            if packet[0] >> 4 == 6 and packet[6] == 58:
                continue
            # Ethernet pads short frames; a veth does not, so the length is the packet's.
            out.append(packet)
        return out

    def send_inner(self, packet):
        if packet[0] >> 4 == 4:
            self.raw4.sendto(packet, (socket.inet_ntop(socket.AF_INET, packet[16:20]), 0))
        else:
            self.raw6.sendto(packet, (socket.inet_ntop(socket.AF_INET6, packet[24:40]), 0))

    def inject(self, packet):
        kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
        self.tap_a.send(bytes.fromhex("02000000000b02000000000a") + kind + packet)

    def mib(self):
        text = sh("cat /proc/net/xfrm_stat", ns="b").stdout
        return dict((row.split()[0], int(row.split()[1])) for row in text.splitlines())

    def run(self, case):
        for ns in "ab":
            sh("ip xfrm state flush", ns=ns)
            sh("ip xfrm policy flush", ns=ns)
        for sock in (self.tap_a, self.tap_b, self.sink4, self.sink6):
            self.drain(sock, 0)
        lines = [f"case {case['name']}"]
        self.brief = case["name"].startswith("mtu-")
        sas = case["sas"]
        for sa in sas:
            lines.append("sa " + " ".join(f"{key}={value}" for key, value in sa.items()))
            done = sh("ip xfrm state add " + state_arguments(sa), ns="a", check=False)
            if done.returncode:
                print(f"# {case['name']}: {done.stderr.strip()}", file=sys.stderr)
                return None
        src, dst = case["flow"]
        templates = " ".join(template_arguments(sa) for sa in sas)
        sh(f"ip xfrm policy add src {src} dst {dst} dir out {templates}", ns="a")
        to_deliver = []
        for packet, alter in case["packets"]:
            lines.append(f"in {self.show(packet)}")
            try:
                self.send_inner(packet)
            except OSError as error:
                lines.append(f"err {errno.errorcode[error.errno]}")
                continue
            outs = self.frames(self.tap_b, 0.2, bytes.fromhex("02000000000a"))
            lines += [f"out {self.show(out)}" for out in outs]
            to_deliver.append((len(lines), packet, outs, alter))
        for sa in sas:
            sh("ip xfrm state add " + state_arguments(sa), ns="b")
        grown = 0
        # What travelled bare was delivered when it was sent.
        for sock in (self.tap_b, self.sink4, self.sink6):
            self.drain(sock, 0.02)
        for at, self.inner, outs, alter in to_deliver:
            extra = []
            before = self.mib()
            for out in outs:
                wires = alter(out) if alter else [out]
                for wire in wires:
                    if wire != out:
                        extra.append(f"wire {self.show(wire)}")
                    self.inject(wire)
            got = self.delivered(case, wires_of(outs, alter))
            extra += got
            if not got:
                after = self.mib()
                extra += [f"mib {name}" for name in after if after[name] != before[name]]
            lines[at + grown:at + grown] = extra
            grown += len(extra)
        return "\n".join(lines) + "\n"

    def take(self, blocks):
        """Gives b the packets of blocks in the format above; the names of those it did not deliver."""
        self.brief = False
        parsed = []
        for block in blocks:
            lines = [line.split(" ", 1) for line in block.splitlines()]
            sas = [dict(pair.split("=", 1) for pair in rest.split(" ")) for word, rest in lines if word == "sa"]
            parsed.append((dict(lines), sas))
        # All SAs at once: starting ip for each takes longer than all the packets.
        with tempfile.NamedTemporaryFile("w") as batch:
            batch.writelines(f"xfrm state add {state_arguments(sa)}\n" for _, sas in parsed for sa in sas)
            batch.flush()
            sh(f"ip -batch {batch.name}", ns="b")
        refused = []
        for words, sas in parsed:
            self.inner, wire = bytes.fromhex(words["in"]), bytes.fromhex(words["wire"])
            self.inject(wire)
            deliver = "tap" if sas[0]["mode"] != "transport" else f"sink{self.inner[0] >> 4}"
            got = self.delivered({"deliver": deliver}, [wire])
            payload = got[0].split(" ")[-1] if len(got) == 1 else None
            if got != ["got ="] and (deliver != "sink6" or not payload or not self.inner.hex().endswith(payload)):
                refused.append(f"{words['case']}: {got}")
            self.drain(self.tap_b, 0)
        return refused

    def delivered(self, case, wires):
        if case["deliver"] == "tap":
            arrived = self.frames(self.tap_b, 0.1, bytes.fromhex("02000000000a"))
            return [self.got(packet) for packet in arrived if packet not in wires]
        if case["deliver"] == "sink4":
            # The raw socket also gets what comes to UDP, encapsulated packets among it.
            return [self.got(packet) for packet, _ in self.drain(self.sink4, 0.1) if packet not in wires]
        arrived = [packet for packet, _ in self.drain(self.sink6, 0.1)]
        return [f"got-payload {self.show(packet)}" for packet in arrived if packet not in [wire[40:] for wire in wires]]


def wires_of(outs, alter):
    return [wire for out in outs for wire in (alter(out) if alter else [out])]


def state_arguments(sa):
    text = f"src {sa['src']} dst {sa['dst']} proto {sa['proto']}"
    if "spi" in sa:
        text += f" spi {sa['spi']}"
    text += f" mode {sa['mode']} reqid {sa['reqid']}"
    if "coa" in sa:
        text += f" coa {sa['coa']}"
    if "replay-window" in sa:
        text += f" replay-window {sa['replay-window']}"
    for key in ("replay-oseq", "replay-oseq-hi", "replay-seq", "replay-seq-hi"):
        if key in sa:
            text += f" {key} {sa[key]}"
    if "flags" in sa:
        text += " flag " + sa["flags"].replace(",", " ")
    if "aead" in sa:
        name, key, icv = sa["aead"].split(":")
        text += f" aead '{name}' {key} {icv}"
    if "auth" in sa:
        name, key, trunc = sa["auth"].split(":")
        text += f" auth-trunc '{name}' '{key if key != '0x' else ''}' {trunc}"
    if "enc" in sa:
        name, key = sa["enc"].split(":")
        text += f" enc '{name}' '{key if key != '0x' else ''}'"
    if "comp" in sa:
        text += f" comp {sa['comp']}"
    if "encap" in sa:
        kind, sport, dport = sa["encap"].split(":")
        text += f" encap {'espinudp' if kind == '2' else 'espinudp-nonike'} {sport} {dport} 0.0.0.0"
    if "sel-src" in sa:
        text += f" sel src {sa['sel-src']} dst {sa['sel-dst']}"
    if "xflags" in sa:
        text += " extra-flag " + sa["xflags"].replace(",", " ")
    if "tfcpad" in sa:
        text += f" tfcpad {sa['tfcpad']}"
    return text


def template_arguments(sa):
    text = f"tmpl src {sa['src']} dst {sa['dst']} "
    text += f"proto {sa['proto']} mode {sa['mode']} reqid {sa['reqid']}"
    return text


def key(count, first=1):
    return "0x" + bytes((first + i) & 0xFF for i in range(count)).hex()


AEADS = [f"rfc4106(gcm(aes)):{key(size)}:{icv}" for size in (20, 28, 36) for icv in (64, 96, 128)] + \
        [f"rfc4309(ccm(aes)):{key(size)}:{icv}" for size in (19, 27, 35) for icv in (64, 96, 128)] + \
        [f"rfc4543(gcm(aes)):{key(size)}:128" for size in (20, 28, 36)] + \
        [f"rfc7539esp(chacha20,poly1305):{key(36)}:128"]
AUTHS = [f"hmac(md5):{key(16, 65)}:96", f"hmac(md5):{key(16, 65)}:128", f"hmac(sha1):{key(20, 65)}:96",
         f"hmac(sha1):{key(20, 65)}:160", f"hmac(sha256):{key(32, 65)}:96", f"hmac(sha256):{key(32, 65)}:128",
         f"hmac(sha384):{key(48, 65)}:192", f"hmac(sha512):{key(64, 65)}:256", f"xcbc(aes):{key(16, 65)}:96",
         f"cmac(aes):{key(16, 65)}:96", f"hmac(rmd160):{key(20, 65)}:96", f"hmac(sm3):{key(32, 65)}:256"]
ENCS = ["ecb(cipher_null):0x", f"cbc(des):0x0123456789abcdef", f"cbc(des3_ede):{key(24, 3)}", f"cbc(cast5):{key(16)}",
        f"cbc(blowfish):{key(16)}", f"cbc(aes):{key(16)}", f"cbc(aes):{key(24)}", f"cbc(aes):{key(32)}",
        f"cbc(serpent):{key(32)}", f"cbc(camellia):{key(24)}", f"cbc(twofish):{key(16)}",
        f"rfc3686(ctr(aes)):{key(20)}", f"rfc3686(ctr(aes)):{key(36)}", f"cbc(sm4):{key(16)}"]
# The AH that has it needs no padding, in which Linux leaves whatever was there.
SHA1 = f"hmac(sha1):{key(20, 65)}:96"
SHA256 = f"hmac(sha256):{key(32, 65)}:128"
GCM = f"rfc4106(gcm(aes)):{key(20)}:128"
CBC = f"cbc(aes):{key(16)}"

# (mode, outer family, inner family)
SHAPES = [("transport", 4, 4), ("transport", 6, 6), ("tunnel", 4, 4), ("tunnel", 6, 6), ("tunnel", 6, 4),
          ("tunnel", 4, 6), ("beet", 4, 4), ("beet", 6, 6), ("beet", 6, 4), ("beet", 4, 6)]


def sa_of(shape, proto, **more):
    mode, outer, inner = shape
    src, dst = OUTER[outer]
    sa = {"proto": proto, "mode": mode, "src": src, "dst": dst, "spi": "0x1001", "reqid": 1}
    if mode != "transport":
        width = 32 if inner == 4 else 128
        sa["sel-src"], sa["sel-dst"] = (f"{address}/{width}" for address in INNER[inner])
    sa.update({name.replace("_", "-"): value for name, value in more.items()})
    return sa


def flow_of(shape):
    mode, outer, inner = shape
    return OUTER[outer] if mode == "transport" else INNER[inner]


def inner_of(shape, size=20, **more):
    src, dst = flow_of(shape)
    data = udp(src, dst, bytes(0x61 + i % 26 for i in range(size)))
    return (ip4 if shape[2] == 4 else ip6)(src, dst, 17, data, **more)


def case(name, shape, sas, packets=None, alter=None):
    packets = packets or [inner_of(shape)]
    deliver = "tap" if shape[0] != "transport" else f"sink{shape[2]}"
    return {"name": name, "sas": sas, "flow": flow_of(shape), "deliver": deliver,
            "packets": [packet if isinstance(packet, tuple) else (packet, alter) for packet in packets]}


def retos(tos, **fields):
    """An alteration of the outer header: another TOS or traffic class."""
    def alter(packet):
        packet = bytearray(packet)
        if packet[0] >> 4 == 4:
            packet[1] = tos
            packet[10:12] = b"\0\0"
            packet[10:12] = struct.pack("!H", checksum(bytes(packet[:(packet[0] & 15) * 4])))
        else:
            packet[0] = 0x60 | tos >> 4
            packet[1] = (tos & 15) << 4 | packet[1] & 15
        return [bytes(packet)]
    return alter


def flip_last(packet):
    return [packet[:-1] + bytes([packet[-1] ^ 1])]


def relength(packet):
    packet = bytearray(packet)
    if packet[0] >> 4 == 4:
        packet[2:4] = struct.pack("!H", len(packet))
        packet[10:12] = b"\0\0"
        packet[10:12] = struct.pack("!H", checksum(bytes(packet[:(packet[0] & 15) * 4])))
    else:
        packet[4:6] = struct.pack("!H", len(packet) - 40)
    return bytes(packet)


def cut(count):
    return lambda packet: [relength(packet[:-count])]


def truncate_payload(keep):
    def alter(packet):
        head = (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else 40
        return [relength(packet[:head + keep])]
    return alter


def thrice(packet):
    return [packet, packet, packet]


def shape_name(shape):
    mode, outer, inner = shape
    return f"{mode}{inner}" if mode == "transport" else f"{mode}{inner}in{outer}"


def short(spec):
    name, material, *rest = spec.split(":")
    return f"{name}-{(len(material) - 2) * 4}" + (f"-{rest[0]}" if rest else "")


def cases():
    for shape in SHAPES:
        where = shape_name(shape)
        for aead in AEADS:
            yield case(f"esp-{where}-{short(aead)}", shape, [sa_of(shape, "esp", aead=aead)])
        for enc in ENCS:
            yield case(f"esp-{where}-{short(enc)}-sha256", shape, [sa_of(shape, "esp", enc=enc, auth=SHA256)])
        for auth in AUTHS:
            yield case(f"esp-{where}-cbc-{short(auth)}", shape, [sa_of(shape, "esp", enc=CBC, auth=auth)])
        yield case(f"esp-{where}-cbc-noauth", shape, [sa_of(shape, "esp", enc=CBC)])
        yield case(f"esp-{where}-null-null", shape, [sa_of(shape, "esp", enc=ENCS[0], auth="digest_null:0x:0")])
        for auth in AUTHS:
            yield case(f"ah-{where}-{short(auth)}", shape, [sa_of(shape, "ah", auth=auth)])
        esn = dict(flags="esn", replay_window=128)
        for oseq, hi, tag in ((0, 0, "start"), (7, 5, "high"), (0xFFFFFFFE, 1, "wrap")):
            # b's window stands where the sender is, or the inferred high half would be another.
            more = dict(esn, replay_oseq=oseq, replay_oseq_hi=hi, replay_seq=oseq, replay_seq_hi=hi)
            packets = [inner_of(shape), inner_of(shape, size=21), inner_of(shape, size=22)]
            yield case(f"esp-{where}-esn-gcm-{tag}", shape, [sa_of(shape, "esp", aead=GCM, **more)], packets)
            yield case(f"esp-{where}-esn-cbc-{tag}", shape, [sa_of(shape, "esp", enc=CBC, auth=SHA256, **more)], packets)
            yield case(f"ah-{where}-esn-{tag}", shape, [sa_of(shape, "ah", auth=SHA1, **more)], packets)
        yield case(f"esp-{where}-udp", shape, [sa_of(shape, "esp", aead=GCM, encap="2:4500:4500")])
        yield case(f"esp-{where}-udp-cbc-esn", shape,
                   [sa_of(shape, "esp", enc=CBC, auth=SHA256, encap="2:4600:4500", flags="esn", replay_window=64)])
        yield case(f"esp-{where}-udp-nonike", shape, [sa_of(shape, "esp", aead=GCM, encap="1:4501:4501")])
        yield case(f"ah-{where}-align4", shape, [sa_of(shape, "ah", auth=SHA256, flags="align4")])
        # Every length modulo the block size, and the empty payload.
        lengths = [inner_of(shape, size=size) for size in range(0, 17)]
        yield case(f"esp-{where}-lengths-cbc", shape, [sa_of(shape, "esp", enc=CBC, auth=SHA256)], lengths)
        yield case(f"esp-{where}-lengths-gcm", shape, [sa_of(shape, "esp", aead=GCM)], lengths[:5])
        # DSCP and ECN on the way out and in.
        marks = ((None, None), ("noecn", None), ("decap-dscp", None), (None, "dont-encap-dscp"),
                 ("noecn,decap-dscp", "dont-encap-dscp"))
        for flags, xflags in marks if shape[0] == "tunnel" else marks[:1]:
            more = {}
            if flags:
                more["flags"] = flags
            if xflags:
                more["xflags"] = xflags
            packets = [inner_of(shape, tos=tos) for tos in (0, 1, 2, 3, 0xB8, 0xBB)]
            packets += [(inner_of(shape, tos=tos), retos(outer)) for tos, outer in
                        ((0, 3), (1, 3), (2, 3), (3, 0), (0xB9, 0x2B), (0x2A, 0xB8), (0xB8, 0xFF))]
            tag = "-".join(filter(None, (flags, xflags))) or "plain"
            yield case(f"esp-{where}-tos-{tag}".replace(",", "+"), shape, [sa_of(shape, "esp", aead=GCM, **more)], packets)
        # DF, id and TTL; flow label and hop limit.
        if shape[2] == 4:
            fields = [inner_of(shape, frag=frag, ident=ident, ttl=ttl) for frag, ident, ttl in
                      ((0, 0x1111, 64), (0x4000, 0x2222, 1), (0x4000, 0x3333, 255), (0, 0x4444, 3))]
        else:
            fields = [inner_of(shape, flow=flow, hops=hops) for flow, hops in ((0, 1), (0x12345, 255), (0xFFFFF, 64))]
        yield case(f"esp-{where}-fields", shape, [sa_of(shape, "esp", aead=GCM)], fields)
        yield case(f"ah-{where}-fields", shape, [sa_of(shape, "ah", auth=SHA1)], fields)
        yield case(f"esp-{where}-fields-nopmtudisc", shape, [sa_of(shape, "esp", aead=GCM, flags="nopmtudisc")], fields)
        # Sizes around the tunnel's MTU.
        overhead = 28 if shape[2] == 4 else 48
        for auth, tag in (({"aead": GCM}, "gcm"), ({"enc": CBC, "auth": SHA256}, "cbc")):
            sizes = [inner_of(shape, size=total - overhead) for total in (1280, 1281, 1400, 1420, 1430, 1440, 1446, 1450, 1460, 1480, 1500)]
            if shape[2] == 4:
                sizes += [inner_of(shape, size=total - overhead, frag=0) for total in (1446, 1460, 1500)]
            yield case(f"mtu-{where}-{tag}", shape, [sa_of(shape, "esp", **auth)], sizes)
        if shape[0] == "tunnel":
            for tfc in (1, 100, 200, 2000):
                yield case(f"esp-{where}-tfc{tfc}-gcm", shape, [sa_of(shape, "esp", aead=GCM, tfcpad=tfc)],
                           [inner_of(shape), inner_of(shape, size=100)])
            yield case(f"esp-{where}-tfc200-cbc", shape, [sa_of(shape, "esp", enc=CBC, auth=SHA256, tfcpad=200)])
        # IPv4 options, IPv6 extension headers.
        if shape[2] == 4:
            for tag, options in OPTIONS:
                yield case(f"esp-{where}-options-{tag}", shape, [sa_of(shape, "esp", aead=GCM)], [inner_of(shape, options=options)])
                yield case(f"ah-{where}-options-{tag}", shape, [sa_of(shape, "ah", auth=SHA1)], [inner_of(shape, options=options)])
        else:
            for tag, chain in EXTENSIONS:
                yield case(f"esp-{where}-ext-{tag}", shape, [sa_of(shape, "esp", aead=GCM)], [with_extensions(shape, chain)])
                yield case(f"ah-{where}-ext-{tag}", shape, [sa_of(shape, "ah", auth=SHA1)], [with_extensions(shape, chain)])
        # A window that does not divide 2^32, and one that does.
        for window in (100, 64):
            sa = sa_of(shape, "esp", aead=GCM, replay_window=window)
            yield case(f"replay-{where}-window{window}", shape, [sa], [inner_of(shape), inner_of(shape, size=21)], alter=thrice)
        # What is refused on the way in.
        spoils = [("icv", flip_last), ("cut1", cut(1)), ("cut16", cut(16)), ("short8", truncate_payload(8)),
                  ("short7", truncate_payload(7)), ("short0", truncate_payload(0)), ("short12", truncate_payload(12)),
                  ("short16", truncate_payload(16)), ("short17", truncate_payload(17))]
        for tag, alter in spoils:
            yield case(f"bad-esp-{where}-{tag}", shape, [sa_of(shape, "esp", aead=GCM)], alter=alter)
            yield case(f"bad-cbc-{where}-{tag}", shape, [sa_of(shape, "esp", enc=CBC, auth=SHA256)], alter=alter)
            yield case(f"bad-ah-{where}-{tag}", shape, [sa_of(shape, "ah", auth=SHA256)], alter=alter)
        if shape[0] in ("transport", "tunnel") and not (shape[0] == "tunnel" and shape[1] != shape[2]):
            comp = [inner_of(shape, size=size) for size in (20, 73, 74, 81, 82, 300, 1200)]
            noise = bytes((i * 167 + (i * i >> 3) * 89 + 13) & 0xFF for i in range(400))
            src, dst = flow_of(shape)
            comp.append((ip4 if shape[2] == 4 else ip6)(src, dst, 17, udp(src, dst, noise)))
            yield case(f"comp-{where}", shape, [sa_of(shape, "comp", comp="deflate", spi="0x1002")], comp)
            outer_esp = dict(sa_of(("transport",) + shape[1:], "esp", aead=GCM), reqid=2)
            yield case(f"comp-esp-{where}", shape, [sa_of(shape, "comp", comp="deflate", spi="0x1002"), outer_esp],
                       [inner_of(shape, size=20), inner_of(shape, size=300)])
        outer_ah = dict(sa_of(("transport", shape[1], shape[1]), "ah", auth=SHA1, spi="0x1003"), reqid=2)
        yield case(f"esp-ah-{where}", shape, [sa_of(shape, "esp", aead=GCM), outer_ah])
        outer_esp = dict(sa_of(("transport", shape[1], shape[1]), "esp", aead=GCM), reqid=2)
        yield case(f"ah-esp-{where}", shape, [sa_of(shape, "ah", auth=SHA1, spi="0x1003"), outer_esp])


def route_cases():
    """Mobile IPv6: what a leaves; b would have to be a mobile node to take it."""
    shape = ("transport", 6, 6)
    hao = {"proto": "hao", "mode": "ro", "src": A6, "dst": B6, "reqid": 1, "coa": "fd00::c0a"}
    route2 = dict(hao, proto="route2", coa="fd00::2b")
    for tag, sas in (("hao", [hao]), ("route2", [route2]), ("route2-hao", [route2, hao]),
                     ("hao-esp", [hao, dict(sa_of(shape, "esp", aead=GCM), reqid=2)]),
                     ("hao-ah", [hao, dict(sa_of(shape, "ah", auth=SHA1), reqid=2)]),
                     ("route2-hao-ah", [route2, hao, dict(sa_of(shape, "ah", auth=SHA1), reqid=2)])):
        packets = [inner_of(shape), with_extensions(shape, [(0, PAD4)]), with_extensions(shape, [(60, PAD4)])]
        yield case(f"ro-{tag}", shape, sas, packets)


OPTIONS = [
    ("nop", bytes([1, 1, 1, 0])),
    ("rr", bytes([7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
    ("ts", bytes([0x44, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
    ("ra", bytes([0x94, 4, 0, 0])),
    ("rr-ra", bytes([7, 7, 4, 0, 0, 0, 0, 0x94, 4, 0, 0, 0])),
    ("cipso", bytes([0x86, 10, 0, 0, 0, 1, 1, 4, 0, 1, 1, 0])),
    ("unknown", bytes([0x1E, 4, 5, 6])),
    ("unknown-copied", bytes([0x9E, 8, 1, 2, 3, 4, 5, 6])),
    ("longest", bytes([7, 39, 4] + [0] * 36 + [0])),
]
PAD4 = bytes([1, 4, 0, 0, 0, 0])
EXTENSIONS = [
    ("hop", [(0, PAD4)]),
    ("dest", [(60, PAD4)]),
    ("hop-dest", [(0, PAD4), (60, PAD4)]),
    ("dest-mutable", [(60, bytes([0x3E, 4, 1, 2, 3, 4]))]),
    ("dest-immutable", [(60, bytes([0x1E, 4, 1, 2, 3, 4]))]),
    ("hop-mutable-immutable", [(0, bytes([0x3E, 2, 1, 2, 0x1E, 6, 1, 2, 3, 4, 5, 6, 1, 0]))]),
    ("hop-pad1", [(0, bytes([0, 0, 0, 0, 1, 0]))]),
    ("dest-hao", [(60, bytes([1, 2, 0, 0, 0xC9, 16]) + pton("fd0a::99"))]),
    ("routing-done", [(43, bytes([2, 0, 0, 0, 0, 0]) + pton("fd02::77"))]),
    ("dest-routing-dest", [(60, PAD4), (43, bytes([2, 0, 0, 0, 0, 0]) + pton("fd02::77")), (60, PAD4)]),
    ("routing-left", [(43, bytes([2, 1, 0, 0, 0, 0]) + pton("fd00::77"))]),
    ("long-dest", [(60, bytes([1, 38]) + bytes(38) + bytes([0x3E, 20]) + bytes(range(20)))]),
]


def with_extensions(shape, chain):
    global EXTENSION_FIRST
    src, dst = flow_of(shape)
    EXTENSION_FIRST = chain[0][0]
    return ip6(src, dst, 17, udp(src, dst, b"behind extensions"), extension=ext6(chain, 17))


def main():
    wanted = sys.argv[1:] or [""]
    bed = Bed()
    if sys.argv[1:2] == ["--take"]:
        with open(sys.argv[2]) as file:
            blocks = [block for block in file.read().split("\n\n") if block.strip()]
        refused = bed.take(blocks)
        print(f"taken {len(blocks) - len(refused)} of {len(blocks)}", *refused, sep="\n")
        return
    print(f"# Recorded by compat-tests/packets/record.py on Linux {os.uname().release}.\n")
    for one in itertools.chain(cases(), route_cases()):
        if any(part in one["name"] for part in wanted):
            block = bed.run(one)
            if block:
                print(block, flush=True)


if __name__ == "__main__":
    main()
