#!/usr/bin/env python3
"""Records packets.txt: ESP packets sealed by a kernel's own crypto (AF_ALG).

Run inside a reference kernel (6.12 has every algorithm but ShangMi's):
    record.py > packets.txt
Line: kind, algorithms and keys, ICV bytes, sequence number's high half or "-" without ESN,
packet. SPI is 0x11223344, the low half of the sequence number 0x55667788, the body's
byte i is 7 * i + 3.
"""
import socket
import struct

SPI, LOW, HIGH = 0x11223344, 0x55667788, 0x99AABBCC


def count(n, step, start):
    return bytes((step * i + start) & 255 for i in range(n))


def key(n):
    return count(n, 11, 1)


def sealed(name, raw_key, icv_bytes, iv, long, body_bytes, ivs_block):
    """SPI | low | IV | body | ICV."""
    s = socket.socket(socket.AF_ALG, socket.SOCK_SEQPACKET, 0)
    s.bind(("aead", name))
    s.setsockopt(socket.SOL_ALG, socket.ALG_SET_KEY, raw_key)
    s.setsockopt(socket.SOL_ALG, socket.ALG_SET_AEAD_AUTHSIZE, None, icv_bytes)
    numbers = struct.pack(">II", HIGH, LOW) if long else struct.pack(">I", LOW)
    aad = struct.pack(">I", SPI) + numbers + iv
    op, _ = s.accept()
    body = count(body_bytes, 7, 3)
    op.sendmsg_afalg([aad, body], op=socket.ALG_OP_ENCRYPT, iv=ivs_block, assoclen=len(aad))
    out = op.recv(len(aad) + body_bytes + icv_bytes)
    assert len(out) == len(aad) + body_bytes + icv_bytes
    return struct.pack(">II", SPI, LOW) + iv + out[len(aad):]


def line(kind, algorithms, icv_bytes, long, packet):
    high = f"{HIGH:08x}" if long else "-"
    fields = [kind] + [f"{name} {raw.hex() or '-'}" for name, raw in algorithms]
    print(*fields, icv_bytes, high, packet.hex())


def aead(name, key_bytes, icv_bytes, body_bytes):
    iv = count(8, 29, 5)
    for long in (False, True):
        packet = sealed(name, key(key_bytes), icv_bytes, iv, long, body_bytes, iv)
        line("aead", [(name, key(key_bytes))], icv_bytes, long, packet)


def authenc(cipher, key_bytes, iv_bytes, auth, auth_key_bytes, icv_bytes, body_bytes, esn):
    enc_key, auth_key = key(key_bytes), count(auth_key_bytes, 5, 2)
    param = struct.pack("=HH", 8, 1) + struct.pack(">I", key_bytes)
    iv = count(iv_bytes, 29, 5)
    for long in esn:
        name = f"authenc{'esn' if long else ''}({auth},{cipher})"
        packet = sealed(name, param + auth_key + enc_key, icv_bytes, iv, long, body_bytes, iv)
        line("authenc", [(cipher, enc_key), (auth, auth_key)], icv_bytes, long, packet)


for aes in (16, 24, 32):
    for icv in (8, 12, 16):
        aead("rfc4106(gcm(aes))", aes + 4, icv, 40 + icv)
        aead("rfc4309(ccm(aes))", aes + 3, icv, 40 + icv)
    aead("rfc4543(gcm(aes))", aes + 4, 16, 44)
aead("rfc7539esp(chacha20,poly1305)", 36, 16, 76)

BOTH = (False, True)
SHA1 = ("hmac(sha1)", 20, 12)
for cipher, iv_bytes, keys in [
    ("ecb(cipher_null)", 0, (0,)),
    ("cbc(aes)", 16, (16, 24, 32)),
    ("cbc(des)", 8, (8,)),
    ("cbc(des3_ede)", 8, (24,)),
    ("cbc(cast5)", 8, (5, 10, 11, 16)),
    ("cbc(blowfish)", 8, (4, 16, 56)),
    ("cbc(serpent)", 16, (0, 7, 16, 31, 32)),
    ("cbc(camellia)", 16, (16, 24, 32)),
    ("cbc(twofish)", 16, (16, 24, 32)),
    ("rfc3686(ctr(aes))", 8, (20, 28, 36)),
]:
    for n in keys:
        authenc(cipher, n, iv_bytes, *SHA1, 48, (False,))
for auth, key_bytes, icvs in [
    ("digest_null", 0, (0,)),
    ("hmac(md5)", 16, (12, 16)),
    ("hmac(sha1)", 20, (12, 20)),
    ("hmac(sha1)", 100, (12,)),
    ("hmac(sha256)", 32, (12, 16, 32)),
    ("hmac(sha384)", 48, (24, 48)),
    ("hmac(sha512)", 64, (32, 64)),
    ("hmac(sha512)", 200, (32,)),
    ("hmac(rmd160)", 20, (12, 20)),
    ("xcbc(aes)", 16, (12, 16)),
    ("xcbc(aes)", 32, (12,)),
    ("cmac(aes)", 16, (12, 16)),
    ("cmac(aes)", 24, (12,)),
    ("cmac(aes)", 32, (12,)),
]:
    for icv in icvs:
        authenc("cbc(aes)", 16, 16, auth, key_bytes, icv, 48, BOTH)
