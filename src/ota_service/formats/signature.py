# SPDX-License-Identifier: GPL-3.0-or-later
"""Secure Boot v2: the signature blocks behind an image, verified as a chip's ROM verifies them.

Format: ESP-IDF, `esp_secure_boot.h` and "Secure Boot v2" (security guide): a sector behind the
image, which is padded to 4 KiB; in it up to three blocks of 1216 bytes: magic E7, version, the
image's digest, the public key, the signature, a CRC of all that, padding. The CRC proves nothing.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import Any

SECTOR_BYTES = 0x1000
BLOCK_BYTES = 1216
MAX_BLOCKS = 3
_MAGIC = 0xE7
_CRC_AT = 1196
_RSA, _ECDSA = 2, 3
_SHA384 = 1
_RSA_BYTES = 384
_CURVES = {
    1: ("SECP192R1", "P-192", 24),
    2: ("SECP256R1", "P-256", 32),
    3: ("SECP384R1", "P-384", 48),
}
"""Curve id -> its class in `cryptography`, its name, bytes of a number."""


@dataclass(frozen=True, slots=True)
class SignatureBlock:
    """One signature of an image.

    scheme: "RSA-3072", "ECDSA-P-256", ..; "" where the block does not say one that is known.
    key_digest: SHA-256 of the public key as it stands in the block, which is what eFuses hold
    of the keys that a chip trusts; empty where there is none. problem: why it is not valid, as
    the end of "signature block 1 ..."; "" for a valid one.
    """

    scheme: str
    key_digest: bytes
    problem: str = ""

    def is_by(self, keys: tuple[bytes, ...]) -> bool:
        """Whether its key is among these, of which the first bytes of a digest may be told."""
        return any(self.key_digest.startswith(digest) for digest in keys)


def public_key_digest(pem: bytes) -> bytes:
    """What eFuses and blocks hold of a public key in PEM: SHA-256 of it as a block has it.

    Raises ValueError, in words that follow the name of a file, for what is no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    if b"PRIVATE KEY" in pem:
        raise ValueError("holds a private key; only the public one belongs on a host")
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("holds no public key in PEM form") from None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size == 8 * _RSA_BYTES:
        n, e = key.public_numbers().n, key.public_numbers().e % (1 << 32)
        # Beside the key, what the chip's hardware multiplies with: R^2 mod n, and -1/n mod 2^32.
        inverse = -pow(n, -1, 1 << 32) % (1 << 32)
        numbers = [n, _RSA_BYTES, e, 4, pow(2, 16 * _RSA_BYTES, n), _RSA_BYTES, inverse, 4]
    elif isinstance(key, ec.EllipticCurvePublicKey):
        found = [(i, c[2]) for i, c in _CURVES.items() if c[0].lower() == key.curve.name]
        if not found:
            raise ValueError("holds a key on a curve that Secure Boot v2 does not have")
        ((curve, size),) = found
        point = key.public_numbers()
        numbers = [curve, 1, point.x, size, point.y, size]
        numbers += [0, max(0, 2 * (32 - size))]
    else:
        raise ValueError("holds no key of Secure Boot v2: that is RSA-3072, or on a curve")
    pairs = zip(numbers[::2], numbers[1::2], strict=True)
    data = b"".join(number.to_bytes(size, "little") for number, size in pairs)
    return hashlib.sha256(data).digest()


def signature_blocks(data: bytes, size_bytes: int) -> tuple[SignatureBlock | None, ...]:
    """What follows an image of `size_bytes` bytes, by its place; None where no block begins.

    As many as begin, at most three: () where nothing follows the image that looks like one.
    """
    start = -(-size_bytes // SECTOR_BYTES) * SECTOR_BYTES
    found: list[SignatureBlock | None] = []
    for at in range(start, start + MAX_BLOCKS * BLOCK_BYTES, BLOCK_BYTES):
        block = data[at : at + BLOCK_BYTES]
        begins = block[:1] == bytes((_MAGIC,))
        found.append(_checked(block, memoryview(data)[:start]) if begins else None)
    while found and found[-1] is None:
        found.pop()
    return tuple(found)


def _checked(block: bytes, signed: memoryview) -> SignatureBlock:
    if len(block) < BLOCK_BYTES:
        return SignatureBlock("", b"", f"ends after {len(block)} of its {BLOCK_BYTES} bytes")
    if zlib.crc32(block[:_CRC_AT]) != int.from_bytes(block[_CRC_AT : _CRC_AT + 4], "little"):
        return SignatureBlock("", b"", "is damaged: its CRC is wrong")
    hash_name = "sha384" if block[1] == _ECDSA and block[2] == _SHA384 else "sha256"
    length = hashlib.new(hash_name).digest_size
    key = block[4 + length :]
    if block[1] == _RSA:
        scheme, key = "RSA-3072", key[: 2 * _RSA_BYTES + 8]
    elif block[1] == _ECDSA and key[0] in _CURVES and (key[0] == 3) is (hash_name == "sha384"):
        scheme, key = f"ECDSA-{_CURVES[key[0]][1]}", key[: 1 + 2 * max(_CURVES[key[0]][2], 32)]
    else:
        return SignatureBlock("", b"", "has a scheme that is not known")
    key_digest = hashlib.sha256(key).digest()
    digest = hashlib.new(hash_name, signed).digest()
    if digest != block[4 : 4 + length]:
        return SignatureBlock(scheme, key_digest, "belongs to other contents")
    verify = _verify_rsa if block[1] == _RSA else _verify_ecdsa
    right = verify(key, block[4 + length + len(key) : _CRC_AT], digest)
    problem = "" if right else "holds a signature that its key did not make"
    return SignatureBlock(scheme, key_digest, problem)


def _little(number: bytes) -> int:
    return int.from_bytes(number, "little")


def _verify_rsa(key: bytes, signature: bytes, digest: bytes) -> bool:
    """key: modulus, exponent, and two numbers that the chip's hardware multiplies with."""
    # Only signed images pay for the import.
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import padding, rsa, utils
    from cryptography.hazmat.primitives.hashes import SHA256

    modulus = _little(key[:_RSA_BYTES])
    pss = padding.PSS(mgf=padding.MGF1(SHA256()), salt_length=32)
    try:
        public = rsa.RSAPublicNumbers(_little(key[_RSA_BYTES : _RSA_BYTES + 4]), modulus)
        public.public_key().verify(
            signature[:_RSA_BYTES][::-1], digest, pss, utils.Prehashed(SHA256())
        )
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return modulus.bit_length() == 8 * _RSA_BYTES


def _verify_ecdsa(key: bytes, signature: bytes, digest: bytes) -> bool:
    """key: curve and point. Numbers have the curve's length, one behind the other."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, utils
    from cryptography.hazmat.primitives.hashes import SHA256, SHA384

    name, _, size = _CURVES[key[0]]
    curve: Any = getattr(ec, name)()
    x, y = _little(key[1 : 1 + size]), _little(key[1 + size : 1 + 2 * size])
    r, s = _little(signature[:size]), _little(signature[size : 2 * size])
    hashed = utils.Prehashed(SHA384() if size == 48 else SHA256())
    try:
        public = ec.EllipticCurvePublicNumbers(x, y, curve).public_key()
        public.verify(utils.encode_dss_signature(r, s), digest, ec.ECDSA(hashed))
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True
