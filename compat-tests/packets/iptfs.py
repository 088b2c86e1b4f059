#!/usr/bin/env python3
"""Records what Linux's IPTFS makes of packets, and what it takes out of payloads.

Run as root inside a kernel that has IPTFS (compat-tests/kernel/run.sh -k 7.2-iptfs):
  iptfs.py [NAME-PART...] > iptfs-7.2.txt
The other way round, packets that somebody else made are given to that kernel, and what it does
not deliver is named:
  iptfs.py --take FILE      (blocks as below, of `sa`, `wire` and `got` lines, SPIs all different)

The bed is record.py's, namespaces a and b, and a third, c, whose packets a forwards. An `out`
case sends inner packets from c within the initial delay of a's SA, so that they meet in its queue,
and captures what leaves a; then b, with the same SA, gets those packets and shows what it takes
out of them. An `in` case gives b payloads in ESP without encryption, made here byte by byte.
Lines say `in` packets as they are when a has forwarded them.

Blocks as record.py's, and these lines:
  limit BYTES             MTU of the path, which is 1500 otherwise
  burst                   the packets up to the next burst were in the queue together
  wire HEX                a packet put on the wire to b; `wire =N` is the Nth `out`
  wait                    time passed
  time FROM TO            milliseconds since the case's first: when that began, until when b was watched
  got HEX                 what b delivered since the line before; `got =N` is the Nth `in`
  mib NAME [COUNT]        a counter that moved since the line before: in a for `in`, in b for `wire`
"""
import os
import select
import socket
import struct
import sys
import time

import record
from record import A4, A6, B4, B6, INNER, OUTER, Bed, in_ns, ip4, ip6, pton, sh, udp

XFRM, NEWSA, NEWPOLICY = 6, 0x10, 0x13
AEAD, AUTH_TRUNC, CRYPT, TMPL, ESN, FLAGS, SA_DIR, ENCAP = 18, 20, 2, 5, 23, 24, 33, 4
IPTFS = {"drop-time": (36, "I"), "reorder-window": (37, "H"), "dont-frag": (38, ""), "init-delay": (39, "I"),
         "max-queue-size": (40, "I"), "pkt-size": (41, "I")}
MODE_IPTFS = 5
AF_UNSPEC = 32
FLAG_BITS = {"noecn": 1, "decap-dscp": 2, "esn": 128}
AGGFRAG = 144
FLOW = {4: ("10.1.0.2", INNER[4][1]), 6: ("fd01::2", INNER[6][1])}
SPI = 0x1001


def attr(kind, payload):
    return struct.pack("HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def address(text):
    return pton(text).ljust(16, b"\0")


def netlink(ns, kind, body):
    """One XFRM request inside a namespace; raises what the kernel answers."""
    sock = in_ns(ns, lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, XFRM))
    with sock:
        sock.bind((0, 0))
        sock.send(struct.pack("IHHII", 16 + len(body), kind, 0x5 | 0x400, 1, 0) + body)
        answer = sock.recv(65536)
        code = struct.unpack("i", answer[16:20])[0]
        if code:
            raise OSError(-code, f"{os.strerror(-code)}: {answer[36:]!r}")


def family_of(text):
    return socket.AF_INET6 if ":" in text else socket.AF_INET


def unhex(text):
    return bytes.fromhex(text.removeprefix("0x"))


def new_sa(ns, sa, direction):
    flags = AF_UNSPEC | sum(FLAG_BITS[name] for name in sa.get("flags", "").split(",") if name)
    info = bytes(56)  # any selector
    info += address(sa["dst"]) + struct.pack("!I", int(sa["spi"], 16)) + bytes([50, 0, 0, 0]) + address(sa["src"])
    info += struct.pack("QQQQ", *[2**64 - 1] * 4) + bytes(32) + bytes(32) + bytes(12)
    info += struct.pack("IIHBBB7x", 0, int(sa["reqid"]), family_of(sa["dst"]), MODE_IPTFS, 0, flags)
    assert len(info) == 224, len(info)

    def algorithm(kind, text, icv):
        name, key, bits = (text.split(":") + [""])[:3]
        key = unhex(key)
        head = name.encode().ljust(64, b"\0") + struct.pack("I", len(key) * 8)
        return attr(kind, head + (struct.pack("I", int(bits)) if icv else b"") + key)

    attrs = attr(SA_DIR, bytes([direction]))
    if "aead" in sa:
        attrs += algorithm(AEAD, sa["aead"], True)
    if "auth" in sa:
        attrs += algorithm(AUTH_TRUNC, sa["auth"], True)
    if "enc" in sa:
        attrs += algorithm(CRYPT, sa["enc"], False)
    if "esn" in sa.get("flags", ""):
        out, seq = int(sa.get("replay-oseq", "0"), 0), int(sa.get("replay-seq", "0"), 0)
        if direction == 2:
            seq = 0
        else:
            out = 0
        attrs += attr(ESN, struct.pack("IIIIII", 0 if direction == 2 else 2, out & 0xFFFFFFFF, seq & 0xFFFFFFFF,
                                       out >> 32, seq >> 32, 0 if direction == 2 else 64)
                      + bytes(0 if direction == 2 else 8))
    for name, (kind, form) in IPTFS.items():
        inward = name in ("drop-time", "reorder-window")
        if name in sa and inward == (direction == 1):
            attrs += attr(kind, struct.pack(form, int(sa[name])) if form else b"")
    netlink(ns, NEWSA, info + attrs)


def new_policy(ns, src, dst, sa, direction=1):
    family = family_of(src)
    width = 32 if family == socket.AF_INET else 128
    selector = address(dst) + address(src) + bytes(8) + struct.pack("HBBB3xiI", family, width, width, 0, 0, 0)
    info = selector + struct.pack("QQQQ", *[2**64 - 1] * 4) + bytes(32) + bytes(32)
    info += struct.pack("IIBBBB4x", 0, 0, direction, 0, 0, 0)
    template = address(sa["dst"]) + bytes([0, 0, 0, 0, 50, 0, 0, 0])
    template += struct.pack("H2x", family_of(sa["dst"])) + address(sa["src"])
    template += struct.pack("IBBBxIII", int(sa["reqid"]), MODE_IPTFS, 0, 0, 2**32 - 1, 2**32 - 1, 2**32 - 1)
    netlink(ns, NEWPOLICY, info + attr(TMPL, template))


class IptfsBed(Bed):
    brief = False

    def __init__(self):
        super().__init__()
        sh("ip netns add c")
        sh("ip link add ta netns a address 02:00:00:00:00:1a mtu 65535 type veth "
           "peer name tc netns c address 02:00:00:00:00:1c mtu 65535")
        sh("sysctl -qw net.ipv4.conf.all.forwarding=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.ta.rp_filter=0", ns="a")
        sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1", ns="c")
        for ns, dev in (("a", "ta"), ("c", "tc")):
            for offload in ("tx", "rx", "gro", "gso", "tso"):
                sh(f"ethtool -K {dev} {offload} off", ns=ns, check=False)
            sh(f"ip link set {dev} up", ns=ns)
        self.inner_routes()
        self.tap_c = in_ns("c", lambda: self.packet_socket("tc"))
        self.tap_b = in_ns("b", self.cooked_socket)

    @staticmethod
    def cooked_socket():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3))
        sock.bind(("vb", 3))
        return sock

    def frames(self, tap, wait, _):
        """IP packets that arrived. Linux gives some that it put together no link header, so the
        tap is one without; neither multicast listeners nor neighbours are of interest."""
        return [packet for packet, address in self.drain(tap, wait)
                if address[2] != socket.PACKET_OUTGOING and address[1] in (0x0800, 0x86DD)
                and (packet[0] >> 4 == 4 or packet[6] not in (0, 58))]

    def send_inner(self, packet):
        packet = bytearray(packet)
        if packet[0] >> 4 == 4:
            packet[8] += 1
            packet[10:12] = b"\0\0"
            packet[10:12] = struct.pack("!H", record.checksum(bytes(packet[:(packet[0] & 15) * 4])))
        else:
            packet[7] += 1
        kind = b"\x08\x00" if packet[0] >> 4 == 4 else b"\x86\xdd"
        self.tap_c.send(bytes.fromhex("02000000001a02000000001c") + kind + packet)

    def clear(self):
        for ns in "ab":
            sh("ip xfrm state flush", ns=ns)
            sh("ip xfrm policy flush", ns=ns)
        for sock in (self.tap_a, self.tap_b):
            self.drain(sock, 0)

    def counters(self, ns):
        text = sh("cat /proc/net/xfrm_stat", ns=ns).stdout
        return dict((row.split()[0], int(row.split()[1])) for row in text.splitlines())

    @staticmethod
    def moved(before, after):
        lines = []
        for name in after:
            count = after[name] - before[name]
            # What comes out of the tunnel meets no policy, and is to be seen only; what waited in
            # the window of the case before may still come.
            if count and name not in ("XfrmInNoPols", "XfrmInStateInvalid"):
                lines.append(f"mib {name}" + (f" {count}" if count != 1 else ""))
        return lines

    def mtu(self, size):
        for ns, dev in (("a", "va"), ("b", "vb")):
            sh(f"ip link set {dev} mtu {size}", ns=ns)
        if size >= 1280:
            # Gone with the IPv6 addresses when the device was narrower.
            for ns, dev, own, peer, mac in (("a", "va", 0, 1, "02:00:00:00:00:0b"), ("b", "vb", 1, 0, "02:00:00:00:00:0a")):
                sh(f"ip addr replace {OUTER[6][own]}/64 dev {dev} nodad", ns=ns)
                sh(f"ip neigh replace {OUTER[6][peer]} lladdr {mac} dev {dev} nud permanent", ns=ns)
        self.inner_routes()

    def inner_routes(self):
        """Inner packets may be longer than the path: what limits them is their own route's MTU."""
        for family in (4, 6):
            sh(f"ip route replace {INNER[family][1]} via {OUTER[family][1]} dev va mtu 65535", ns="a", check=False)

    def delivered_since(self, names, wires=()):
        lines = []
        for packet in self.frames(self.tap_b, 0.06, bytes.fromhex("02000000000a")):
            if packet in wires:
                continue
            lines.append(f"got ={names[packet]}" if packet in names else f"got {packet.hex()}")
        return lines

    def run_out(self, case):
        self.clear()
        sa = case["sa"]
        lines = [f"case {case['name']}", "sa " + " ".join(f"{key}={value}" for key, value in sa.items())]
        if case.get("limit"):
            lines.append(f"limit {case['limit']}")
            self.mtu(case["limit"])
        new_sa("a", sa, 2)
        for family in (4, 6):
            new_policy("a", *FLOW[family], sa)
        outs, names, count = [], {}, 0
        for burst in case["bursts"]:
            lines.append("burst")
            before = self.counters("a")
            for packet in burst:
                lines.append(f"in {packet.hex()}")
                names.setdefault(packet, count)
                count += 1
            for packet in burst:
                self.send_inner(packet)
            time.sleep(int(sa.get("init-delay", 0)) / 1e6)
            got = self.frames(self.tap_b, 0.1, bytes.fromhex("02000000000a"))
            lines += [f"out {packet.hex()}" for packet in got]
            outs += got
            lines += self.moved(before, self.counters("a"))
        if case.get("limit"):
            self.mtu(1500)
        new_sa("b", sa, 1)
        self.drain(self.tap_b, 0)
        return "\n".join(lines + self.deliver(case.get("alter", list)(outs), outs, names)) + "\n"

    def deliver(self, steps, outs, names):
        """Puts packets on the wire to b, and says what b makes of each; a number is a time to wait."""
        lines, wires = [], [step for step in steps if not isinstance(step, int)]
        outs = {packet: number for number, packet in enumerate(outs)}
        before, start = self.counters("b"), time.monotonic()
        for step in steps:
            now = time.monotonic()
            if isinstance(step, int):
                time.sleep(step / 1000)
                lines.append("wait")
            else:
                self.inject(step)
                lines.append(f"wire ={outs[step]}" if step in outs else f"wire {step.hex()}")
            got = self.delivered_since(names, wires)
            lines.append("time " + " ".join(str(round((at - start) * 1000)) for at in (now, time.monotonic())))
            after = self.counters("b")
            lines += got + self.moved(before, after)
            before = after
        return lines

    def run_in(self, case):
        self.clear()
        sa = case["sa"]
        lines = [f"case {case['name']}", "sa " + " ".join(f"{key}={value}" for key, value in sa.items())]
        new_sa("b", sa, 1)
        self.drain(self.tap_b, 0)
        steps = [step if isinstance(step, int) else esp(sa, *step) for step in case["steps"]]
        return "\n".join(lines + self.deliver(steps, [], {})) + "\n"

    def take_blocks(self, blocks):
        refused = []
        before = self.counters("b")
        for block in blocks:
            lines = [line.split(" ", 1) for line in block.splitlines() if not line.startswith("#")]
            words = dict(lines)
            sa = dict(pair.split("=", 1) for pair in words["sa"].split(" "))
            new_sa("b", sa, 1)
            wires = [bytes.fromhex(rest) for word, rest in lines if word == "wire"]
            for wire in wires:
                self.inject(wire)
            got = self.delivered_since({}, wires)
            wanted = [f"got {rest}" for word, rest in lines if word == "got"]
            if got != wanted:
                refused.append(f"{words['case']}: {len(got)} of {len(wanted)}")
        refused += self.moved(before, self.counters("b"))
        return refused


def esp(sa, sequence, payload, tos=0, proto=AGGFRAG):
    """A packet of an SA that neither encrypts nor authenticates."""
    pad = -(len(payload) + 2) % 4
    body = payload + bytes(range(1, pad + 1)) + bytes([pad, proto])
    body = struct.pack("!II", int(sa["spi"], 16), sequence & 0xFFFFFFFF) + body
    make = ip4 if ":" not in sa["dst"] else ip6
    return make(sa["src"], sa["dst"], 50, body, tos=tos)


def aggfrag(offset, *blocks, subtype=0, flags=0):
    head = struct.pack("!BBH", subtype, flags, offset)
    if subtype == 1:
        head += bytes(20)
    return head + b"".join(blocks)


GCM = f"rfc4106(gcm(aes)):{record.key(20)}:128"
CBC = f"cbc(aes):{record.key(16)}"
SHA1 = f"hmac(sha1):{record.key(20, 65)}:96"
NULL = "ecb(cipher_null):0x"


def sa_of(family=4, **more):
    src, dst = OUTER[family]
    sa = {"proto": "esp", "mode": "iptfs", "src": src, "dst": dst, "spi": f"{SPI:#x}", "reqid": 1}
    if not {"aead", "enc"} & set(more):
        sa["aead"] = GCM
    # Watching takes long; what is about times says so.
    sa["drop-time"] = 30_000_000
    sa.update({name.replace("_", "-"): value for name, value in more.items()})
    return sa


def inner(total, family=4, number=0, **more):
    """A UDP packet of `total` bytes."""
    src, dst = FLOW[family]
    head = 28 if family == 4 else 48
    data = bytes((number * 7 + i) & 0xFF for i in range(total - head))
    return (ip4 if family == 4 else ip6)(src, dst, 17, udp(src, dst, data), **more)


def out_cases():
    delay = 60_000

    def case(name, bursts, sa=None, **more):
        return dict({"name": name, "bursts": bursts, "sa": sa or sa_of(init_delay=delay)}, **more)

    def numbered(*sizes, family=4):
        return [inner(size, family, number) for number, size in enumerate(sizes)]

    for family in (4, 6):
        sa = sa_of(family, init_delay=delay)
        yield case(f"out{family}-one", [numbered(100)], sa)
        yield case(f"out{family}-three", [numbered(100, 101, 102)], sa)
        yield case(f"out{family}-both-families", [numbered(100, 99) + numbered(101, 120, family=6)], sa)
        yield case(f"out{family}-large", [numbered(4000)], sa)
        yield case(f"out{family}-large-and-small", [numbered(4000, 100, 60, 1400)], sa)
        yield case(f"out{family}-small-and-large", [numbered(100, 4000, 100)], sa)
        yield case(f"out{family}-many", [numbered(*[300 + i for i in range(20)])], sa)
        yield case(f"out{family}-two-bursts", [numbered(100, 101), numbered(102, 103)], sa)
        yield case(f"out{family}-longest", [numbered(65520 if family == 4 else 9000)], sa)
        # The room of a payload, and one byte less and more.
        room = 1500 - (60 if family == 4 else 80) + (4 if family == 4 else 4) - 2
        for more in (-5, -4, -3, -2, -1, 0, 1, 2, 3, 4):
            yield case(f"out{family}-room{more:+}", [numbered(room + more, 60)], sa)
        for left in (-1, 0, 1):
            yield case(f"out{family}-left{left:+}", [numbered(room - 103, 100 + left)], sa)
        for mtu in (1280, 1281, 1282, 1283, 1284, 1400, 1407):
            yield case(f"out{family}-mtu{mtu}", [numbered(3000, 100)], sa, limit=mtu)
        for cipher in ({"enc": CBC, "auth": SHA1}, {"enc": NULL}):
            tag = "cbc" if "auth" in cipher else "null"
            for mtu in range(1485 if tag == "cbc" else 1497, 1501):
                yield case(f"out{family}-{tag}-mtu{mtu}", [numbered(1600)],
                           sa_of(family, init_delay=delay, **cipher), limit=mtu)
        for size in (61, 100, 101, 102, 103, 104, 500, 1499, 1500, 2000):
            yield case(f"out{family}-pkt{size}", [numbered(300, 40, 41)],
                       sa_of(family, init_delay=delay, pkt_size=size + (20 if family == 6 else 0)))
    yield case("out4-mtu576", [numbered(1000, 100)], limit=576)
    yield case("out4-mtu68", [numbered(200)], limit=68)
    yield case("out4-dont-frag", [numbered(1441, 1442, 1443, 1444, 1500)], sa_of(init_delay=delay, dont_frag=1))
    yield case("out4-dont-frag-pkt", [numbered(457, 460, 461, 500)], sa_of(init_delay=delay, dont_frag=1, pkt_size=500))
    # Inner DF and id, TOS and ECN, hop limit do not show outside.
    marks = [inner(100, tos=tos, frag=frag, ttl=ttl) for tos, frag, ttl in ((0xB8, 0, 3), (3, 0x4000, 1), (2, 0, 254))]
    for number, packet in enumerate(marks):
        yield case(f"out4-fields{number}", [[packet]])
    yield case("out6-fields", [[inner(100, 6, tos=0xBB, flow=0x12345, hops=3)]], sa_of(6, init_delay=delay))
    # The queue's bound, and ECN beyond 95 of a hundred of it.
    yield case("out4-queue", [numbered(400, 400, 201, 200, 20 + 28)], sa_of(init_delay=delay, max_queue_size=1000))
    yield case("out4-queue0", [numbered(100)], sa_of(init_delay=delay, max_queue_size=0))
    ecn = [inner(475), inner(475, tos=1), inner(28, tos=1), inner(28, tos=2)]
    yield case("out4-queue-ecn", [ecn], sa_of(init_delay=delay, max_queue_size=1010))
    for tos in range(4):
        yield case(f"out4-ecn{tos}", [[inner(90, tos=0), inner(8 + 20, tos=tos | 0x28)]],
                   sa_of(init_delay=delay, max_queue_size=118))
        yield case(f"out6-ecn{tos}", [[inner(90, tos=0), inner(8 + 40, 6, tos=tos | 0x28)]],
                   sa_of(6, init_delay=delay, max_queue_size=138))
    # Lost and reordered on the way to b.
    stream = numbered(*[700 + 13 * i for i in range(20)])
    large = numbered(6000, 100, 5000, 200)
    for tag, bursts in (("stream", [stream]), ("large", [large])):
        yield case(f"lost-{tag}", bursts, alter=lambda outs: [out for at, out in enumerate(outs) if at != 2])
        yield case(f"swapped-{tag}", bursts, alter=lambda outs: [outs[0], outs[2], outs[1]] + outs[3:])
        yield case(f"reversed3-{tag}", bursts, alter=lambda outs: [outs[0], outs[3], outs[2], outs[1]] + outs[4:])
        yield case(f"window0-{tag}", bursts, sa_of(init_delay=delay, reorder_window=0),
                   alter=lambda outs: [outs[0], outs[2], outs[1]] + outs[3:])
        yield case(f"late-{tag}", bursts, sa_of(init_delay=delay, drop_time=50_000),
                   alter=lambda outs: [outs[0], outs[2], 120, outs[1]] + outs[3:])


def in_cases():
    whole = [inner(40 + number, number=number) for number in range(8)]
    whole6 = [inner(60 + number, 6, number=number) for number in range(3)]
    long = inner(400, number=9)
    long6 = inner(400, 6, number=10)
    sa = sa_of(enc=NULL)
    ordered = sa_of(enc=NULL, reorder_window=0)

    def case(name, steps, sa=sa):
        return {"name": name, "steps": steps, "sa": sa}

    one = aggfrag(0, whole[0])
    for tag, base in (("", sa), ("-v6", sa_of(6, enc=NULL))):
        yield case(f"in{tag}-one", [(1, one)], base)
        yield case(f"in{tag}-three", [(1, aggfrag(0, *whole[:3]))], base)
        yield case(f"in{tag}-mixed", [(1, aggfrag(0, whole[0], whole6[0], whole[1]))], base)
        yield case(f"in{tag}-padded", [(1, aggfrag(0, whole[0], bytes(33)))], base)
        yield case(f"in{tag}-fragments", [(1, aggfrag(0, whole[1], long[:100])), (2, aggfrag(300, long[100:], whole[2]))], base)
    # Header.
    for size in range(5):
        yield case(f"in-short{size}", [(1, one[:size]), (2, one)])
    yield case("in-all-pad", [(1, aggfrag(0, bytes(50)))])
    yield case("in-proto-ipip", [(1, one, 0, 4)])
    yield case("in-proto-dummy", [(1, one, 0, 59), (2, one)])
    yield case("in-cc", [(1, aggfrag(0, whole[0], subtype=1))])
    yield case("in-cc-fragments", [(1, aggfrag(0, whole[1], long[:100], subtype=1)), (2, aggfrag(300, long[100:], whole[2], subtype=1))])
    for size in (4, 8, 20, 23, 24):
        yield case(f"in-cc-short{size}", [(1, aggfrag(0, whole[0], subtype=1)[:size]), (2, one)])
    for subtype in (2, 16, 255):
        yield case(f"in-subtype{subtype}", [(1, aggfrag(0, whole[0], subtype=subtype)), (2, one)])
    for flags in (1, 2, 128):
        for subtype in (0, 1):
            yield case(f"in-flags{flags}-{subtype}", [(1, aggfrag(0, whole[0], subtype=subtype, flags=flags)), (2, one)])
    # Data blocks.
    yield case("in-version5", [(1, aggfrag(0, b"\x55" + bytes(30))), (2, one)])
    yield case("in-whole-then-version5", [(1, aggfrag(0, whole[0], whole[1], b"\x55" + bytes(30))), (2, one)])
    yield case("in-fragments-then-version5",
               [(1, aggfrag(0, long[:100])), (2, aggfrag(300, long[100:], whole[0], b"\x55" + bytes(30))), (3, one)])
    bad = bytearray(whole[1])
    bad[0] = 0x44
    yield case("in-ihl4", [(1, aggfrag(0, whole[0], bytes(bad), whole[2])), (2, one)])
    bad[0] = 0x4F
    yield case("in-ihl15-shorter", [(1, aggfrag(0, bytes(bad[:2]) + b"\0\x3b" + bytes(bad[4:]), whole[2])), (2, one)])
    for total in (0, 19, 20):
        head = bytes(whole[1][:2]) + struct.pack("!H", total) + bytes(whole[1][4:20])
        yield case(f"in-total{total}", [(1, aggfrag(0, whole[0], head, whole[2])), (2, one)])
    empty6 = ip6(*FLOW[6], 59, b"")
    yield case("in-empty6", [(1, aggfrag(0, whole[0], empty6, whole[2]))])
    yield case("in-block-offset-unasked", [(1, aggfrag(20, bytes(20), whole[0])), (2, aggfrag(5000, whole[0])), (3, one)])
    # An inner packet over several payloads.
    yield case("in-third-piece", [(1, aggfrag(0, long[:100])), (2, aggfrag(300, long[100:200])), (3, aggfrag(200, long[200:], whole[0]))])
    yield case("in-pieces-of-v6", [(1, aggfrag(0, long6[:50])), (2, aggfrag(350, long6[50:60])), (3, aggfrag(340, long6[60:], whole[0]))])
    yield case("in-cut-in-header", [(1, aggfrag(0, long[:10])), (2, aggfrag(390, long[10:], whole[0]))])
    yield case("in-cut-twice-in-header", [(1, aggfrag(0, long[:10])), (2, aggfrag(390, long[10:15])), (3, aggfrag(385, long[15:], whole[0]))])
    yield case("in-cut-in-header6", [(1, aggfrag(0, long6[:10])), (2, aggfrag(390, long6[10:20])), (3, aggfrag(380, long6[20:], whole[0]))])
    for size in range(1, 8):
        for tag, packet in (("4", long), ("6", long6)):
            yield case(f"in-runt{tag}-{size}", [(1, aggfrag(0, whole[0], packet[:size])),
                                                (2, aggfrag(400 - size, packet[size:], whole[1])), (3, one)])
    yield case("in-runt-then-little", [(1, aggfrag(0, long[:2])), (2, aggfrag(398, long[2:5])), (3, one)])
    yield case("in-runt-then-six", [(1, aggfrag(0, long[:2])), (2, aggfrag(398, long[2:6])), (3, aggfrag(394, long[6:], whole[0]))])
    yield case("in-runt-small-offset", [(1, aggfrag(0, long[:2])), (2, aggfrag(3, long[2:5], whole[0])), (3, one)])
    yield case("in-runt-short-total", [(1, aggfrag(0, long[:2])), (2, aggfrag(30, b"\0\x13" + long[4:32], whole[0])), (3, one)])
    yield case("in-runt-lost", [(1, aggfrag(0, long[:2])), (3, aggfrag(398, long[2:], whole[0])), (4, one)], ordered)
    yield case("in-offset-too-small", [(1, aggfrag(0, long[:100])), (2, aggfrag(299, long[100:399], whole[0])), (3, one)])
    yield case("in-offset-too-large", [(1, aggfrag(0, long[:100])), (2, aggfrag(310, long[100:], bytes(10), whole[0])), (3, one)])
    yield case("in-offset-grows", [(1, aggfrag(0, long[:100])), (2, aggfrag(301, long[100:200])), (3, aggfrag(200, long[200:], whole[0]))])
    yield case("in-pad-between", [(1, aggfrag(0, long[:100])), (2, aggfrag(0, bytes(60))), (3, aggfrag(300, long[100:], whole[0]))])
    yield case("in-offset-0-between", [(1, aggfrag(0, long[:100])), (2, aggfrag(0, *whole[1:3])), (3, aggfrag(300, long[100:], whole[0]))])
    yield case("in-cc-offset-0-between", [(1, aggfrag(0, long[:100])), (2, aggfrag(0, *whole[1:3], subtype=1)), (3, aggfrag(300, long[100:], whole[0]))])
    yield case("in-runt-offset-0-between", [(1, aggfrag(0, long[:2])), (2, aggfrag(0, *whole[1:3])), (3, aggfrag(398, long[2:], whole[0]))])
    yield case("in-middle-lost", [(1, aggfrag(0, long[:100])), (3, aggfrag(200, long[200:], whole[0])), (4, one)], ordered)
    yield case("in-older-meanwhile", [(5, aggfrag(0, long[:100])), (4, aggfrag(0, whole[3])), (6, aggfrag(300, long[100:], whole[0]))], ordered)
    yield case("in-older-without-assembly", [(5, aggfrag(0, whole[1])), (4, aggfrag(0, whole[2])), (6, aggfrag(0, whole[3]))], ordered)
    yield case("in-jumbo", [(1, aggfrag(0, inner(65535)[:1400]))] +
               [(2 + n, aggfrag(65535 - 1400 * (n + 1), inner(65535)[1400 * (n + 1):][:1400])) for n in range(46)])
    # DSCP and ECN.
    for flags in ("", "decap-dscp", "noecn"):
        marked = dict(sa, flags=flags) if flags else sa
        tosses = [inner(40, tos=0x28, number=1), inner(41, tos=0xB9, number=2), inner(80, tos=0x2A, number=3), inner(62, 6, tos=0xBA, number=4)]
        for outer in (0, 3, 0xBB):
            steps = [(1, aggfrag(0, *tosses), outer), (2, aggfrag(0, tosses[1], tosses[2][:50]), outer),
                     (3, aggfrag(30, tosses[2][50:], tosses[0]), outer), (4, aggfrag(0, tosses[2][:50]), outer),
                     (5, aggfrag(30, tosses[2][50:], tosses[3]), outer), (6, aggfrag(0, bytes(40)), outer)]
            yield case(f"in-tos{outer:02x}-{flags or 'plain'}", steps, marked)
    # The reorder window.
    def numbered(order, base=sa, tag=None, **more):
        steps = [item if isinstance(item, int) and item >= 1000 else (item, aggfrag(0, inner(40 + item % 100, number=item % 100)))
                 for item in order]
        steps = [step - 1000 if isinstance(step, int) else step for step in steps]
        name = "-".join(str(item) if item < 1000 else f"wait{item - 1000}" for item in order)
        return case(f"order{tag or ''}-{name}", steps, base)

    for order in ((1, 2, 3), (1, 3, 2), (1, 3, 4, 2), (1, 4, 3, 2), (1, 5, 4, 3, 2), (1, 5, 2, 3, 4), (1, 6, 2, 3, 4, 5),
                  (1, 7, 8), (1, 9, 8, 7, 6, 5, 4, 3, 2), (1, 3, 5, 7, 9, 2), (5, 4, 3, 2, 1), (1, 1, 2), (1, 3, 3, 2, 2),
                  (1, 4, 6, 5, 2, 3), (1, 4, 8, 9), (1, 30, 20, 31, 29, 28, 32), (1, 3, 6, 2, 5, 4)):
        yield numbered(order)
    slow = sa_of(enc=NULL, drop_time=300_000)
    for order in ((1, 3, 1500), (1, 3, 1500, 2, 4), (1, 3, 1150, 4, 1300), (1, 4, 1500, 5), (1, 3, 1100, 2, 5, 1250, 4, 1200),
                  (1, 3, 1150, 5, 1220, 4, 6, 1300)):
        yield numbered(order, slow, "-drop300")
    wide = sa_of(enc=NULL, drop_time=300_000, reorder_window=10)
    for order in ((1, 11, 1400), (1, 3, 1150, 5, 1220, 4, 6, 1300, 7), (1, 12, 2, 13, 3)):
        yield numbered(order, wide, "-window10")
    one_slot = sa_of(enc=NULL, reorder_window=1)
    for order in ((1, 3, 2), (1, 4, 3, 2), (1, 3, 4, 2, 5)):
        yield numbered(order, one_slot, "-window1")
    # Timer and reassembly.
    yield case("in-assembly-timeout", [(1, aggfrag(0, long[:100])), 450, (2, aggfrag(300, long[100:], whole[0])), (3, one)], slow)
    yield case("in-runt-timeout", [(1, aggfrag(0, long[:2])), 450, (2, aggfrag(398, long[2:], whole[0])), (3, one)], slow)
    yield case("in-gap-timeout", [(1, aggfrag(0, long[:100])), (3, aggfrag(200, long[200:], whole[0])), 450, (4, one)], slow)
    yield case("in-done-with-window", [(1, aggfrag(0, long[:100])), (3, aggfrag(0, whole[1])), (5, aggfrag(0, whole[2])),
                                       (2, aggfrag(300, long[100:], whole[0])), 500, (6, aggfrag(0, whole[3])), 500,
                                       (7, aggfrag(0, whole[4])), 500], slow)
    late = dict(slow, **{"drop-time": 1_000_000})
    yield case("in-stale-timer", [(1, one), (3, aggfrag(0, whole[1])), (2, aggfrag(0, whole[2])), 150, (4, aggfrag(0, long[:100])), 500,
                                  (5, aggfrag(300, long[100:], whole[3])), 300], late)
    yield numbered((1, 3, 1300, 5, 1600, 4, 6, 1900, 7), dict(late, **{"reorder-window": 10}), "-gaps")
    # ESN.
    for window in (0, 3):
        esn = sa_of(flags="esn", enc=NULL, replay_seq=hex(0xFFFFFFFD), reorder_window=window)
        yield case(f"in-esn-wrap-window{window}", [(0xFFFFFFFE, one), (0xFFFFFFFF, aggfrag(0, whole[1], long[:100])),
                                                   (0x100000000, aggfrag(300, long[100:], whole[2])), (0x100000001, aggfrag(0, whole[3])),
                                                   (0x100000002, aggfrag(0, whole[4]))], esn)


def main():
    bed = IptfsBed()
    wanted = sys.argv[1:] or [""]
    if sys.argv[1:2] == ["--take"]:
        with open(sys.argv[2]) as file:
            blocks = [block for block in file.read().split("\n\n") if "case " in block]
        refused = bed.take_blocks(blocks)
        print(f"taken {len(blocks) - len(refused)} of {len(blocks)}", *refused, sep="\n")
        return
    print(f"# Recorded by compat-tests/packets/iptfs.py on Linux {os.uname().release}.\n")
    for cases, run in ((out_cases, bed.run_out), (in_cases, bed.run_in)):
        for case in cases():
            if any(part in case["name"] for part in wanted):
                try:
                    print(run(case), flush=True)
                except OSError as error:
                    raise RuntimeError(case["name"]) from error


if __name__ == "__main__":
    main()
