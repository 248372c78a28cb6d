# SPDX-License-Identifier: GPL-3.0-or-later
"""Secure Boot v2 as the ROM does it: which signature blocks count, judged by espsecure.

Source: ESP-IDF, security guide, "Secure Boot v2": the signature block's format.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import struct
import zlib

SIGNATURE_SECTOR = 4096
BLOCK = 1216
CRC_AT = 1196
RSA = 2
SHA384 = 1
CURVES = {1: ("SECP192R1", 24), 2: ("SECP256R1", 32), 3: ("SECP384R1", 48)}


def is_signed(contents: bytes, sector: bytes, trusted: tuple[bytes, ...], count: int) -> bool:
    """Whether one of the first `count` blocks is a trusted key's signature of `contents`.

    contents: the image, padded to whole sectors. trusted: digests of keys.
    """
    for at in range(0, count * BLOCK, BLOCK):
        block = sector[at : at + BLOCK]
        if len(block) < BLOCK or block[0] != 0xE7:
            continue
        if struct.unpack_from("<I", block, CRC_AT)[0] != zlib.crc32(block[:CRC_AT]):
            continue
        key = key_of(block)
        if hashlib.sha256(key).digest() in trusted and _made_by(block, key, contents):
            return True
    return False


def key_of(block: bytes) -> bytes:
    """The public key's bytes in a block, which the digest in the eFuses is made of."""
    if block[1] == RSA:
        return block[36:812]
    return block[52:149] if block[2] == SHA384 else block[36:101]


def _made_by(block: bytes, key: bytes, contents: bytes) -> bool:
    import espsecure  # it is slow to import, and few boards need it
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from esptool.util import FatalError

    def number(data: bytes) -> int:
        return int.from_bytes(data, "little")

    try:
        if block[1] == RSA:
            numbers = rsa.RSAPublicNumbers(number(key[384:388]), number(key[:384]))
            public: rsa.RSAPublicKey | ec.EllipticCurvePublicKey = numbers.public_key()
        else:
            name, size = CURVES[key[0]]
            x, y = number(key[1 : 1 + size]), number(key[1 + size : 1 + 2 * size])
            public = ec.EllipticCurvePublicNumbers(x, y, getattr(ec, name)()).public_key()
        pem = public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        signed = io.BytesIO(contents + block.ljust(SIGNATURE_SECTOR, b"\xff"))
        with contextlib.redirect_stdout(io.StringIO()):
            espsecure.verify_signature_v2(False, None, io.BytesIO(pem), signed)
    except (FatalError, KeyError, ValueError):
        return False
    return True
