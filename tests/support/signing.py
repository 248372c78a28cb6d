# SPDX-License-Identifier: GPL-3.0-or-later
"""Images signed for Secure Boot v2, by espsecure."""

from __future__ import annotations

import contextlib
import io
from functools import cache
from typing import Any

import espsecure
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

SCHEMES = ("RSA-3072", "ECDSA-P-192", "ECDSA-P-256", "ECDSA-P-384")
_CURVES = {"192": ec.SECP192R1, "256": ec.SECP256R1, "384": ec.SECP384R1}
SECTOR, BLOCK = 4096, 1216


@cache
def key(scheme: str = "RSA-3072", which: int = 0) -> bytes:
    """A private key in PEM, the same for the same arguments."""
    made: Any
    if scheme == "RSA-3072":
        made = rsa.generate_private_key(65537, 3072)
    else:
        curve: Any = _CURVES[scheme[-3:]]
        made = ec.generate_private_key(curve())
    return bytes(
        made.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )


def public(pem: bytes) -> bytes:
    """The public key of a private one, in PEM."""
    loaded: Any = serialization.load_pem_private_key(pem, None)
    return bytes(
        loaded.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def digest(pem: bytes) -> bytes:
    """What eFuses hold of a key, by espsecure."""
    made = espsecure._digest_sbv2_public_key(io.BytesIO(pem))
    assert isinstance(made, bytes)
    return made


def sign(image: bytes, *keys: bytes) -> bytes:
    """The image padded to whole sectors, and the sector of its signatures."""
    padded = image.ljust(-(-len(image) // SECTOR) * SECTOR, b"\xff")
    with contextlib.redirect_stdout(io.StringIO()):
        blocks = espsecure.generate_signature_block_using_private_key(
            [io.BytesIO(pem) for pem in keys], padded
        )
    return bytes(padded + blocks.ljust(SECTOR, b"\xff"))


def hexes(*keys: bytes) -> tuple[str, ...]:
    """The keys' digests as a simulated board's settings have them."""
    return tuple(digest(pem).hex() for pem in keys)
