# SPDX-License-Identifier: GPL-3.0-or-later
"""Signature blocks of Secure Boot v2, made by espsecure and spoilt here."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ota_service.errors import OtaError
from ota_service.formats.image import parse_app_image
from ota_service.formats.signature import MAX_BLOCKS, signature_blocks
from tests.formats import images
from tests.support.signing import BLOCK, SCHEMES, SECTOR, digest, key, sign

APP = images.app()
ENDS = {"RSA-3072": 1196, "ECDSA-P-192": 165, "ECDSA-P-256": 165, "ECDSA-P-384": 245}
"""Behind which byte of a block only padding follows."""

AT, MASK = st.integers(0, 1195), st.integers(1, 255)


def spoilt(block: bytes, at: int, mask: int = 1) -> bytes:
    """A bit of a block turned over, and its CRC made right again."""
    data = bytearray(block)
    data[at] ^= mask
    data[1196:1200] = zlib.crc32(data[:1196]).to_bytes(4, "little")
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_espsecure_signs_is_valid(scheme: str) -> None:
    """And its key has the digest that espsecure burns into eFuses."""
    data = sign(APP, key(scheme))
    (block,) = signature_blocks(data, len(APP))
    assert block is not None
    assert (block.scheme, block.key_digest, block.problem) == (scheme, digest(key(scheme)), "")
    image = parse_app_image(data)
    assert image.signed
    assert image.total_bytes == len(data)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_bit_of_each_field_is_noticed(scheme: str) -> None:
    """With the CRC made right again. A changed key is another key, or makes nothing valid."""
    data = sign(APP, key(scheme))
    block = data[-SECTOR : -SECTOR + BLOCK]
    padding = {3, *range(ENDS[scheme], 1196)}
    padding |= {2} if scheme == "RSA-3072" else set()
    if scheme == "ECDSA-P-192":  # its point and signature fill 48 of 64 bytes each
        padding |= set(range(149, 165))
    places = sorted({*range(0, 60, 7), *range(60, 1196, 31)} - padding)
    for at in places:
        found = signature_blocks(data[:-SECTOR] + spoilt(block, at), len(APP))
        trusted = [
            one
            for one in found
            if one is not None and not one.problem and one.key_digest == digest(key(scheme))
        ]
        assert not trusted, at


def test_a_bit_of_the_image_is_noticed() -> None:
    """Also in its padding, which is signed as well."""
    data = sign(APP, key())
    other = bytearray(data)
    other[-SECTOR - 1] ^= 1
    with pytest.raises(OtaError, match="block 1 belongs to other contents") as caught:
        parse_app_image(bytes(other))
    assert caught.value.code == "signature-invalid"


def test_a_block_without_a_right_crc() -> None:
    """What a download that broke leaves."""
    data = bytearray(sign(APP, key()))
    data[-SECTOR + 700] ^= 1
    with pytest.raises(OtaError, match="its CRC is wrong"):
        parse_app_image(bytes(data))


def test_a_block_that_is_cut_off() -> None:
    """It is named, not taken for an image without a signature."""
    data = sign(APP, key())[: -SECTOR + BLOCK - 1]
    with pytest.raises(OtaError, match="block 1 ends after 1215 of its 1216 bytes"):
        parse_app_image(data)


@pytest.mark.slow
def test_three_blocks_of_which_one_is_good() -> None:
    """Each counts for itself, at its own place."""
    keys = [key(), key(which=1), key("ECDSA-P-256")]
    data = sign(APP, *keys)
    sector = bytearray(data[-SECTOR:])
    sector[:BLOCK] = b"\xff" * BLOCK
    sector[2 * BLOCK + 60] ^= 1
    found = signature_blocks(data[:-SECTOR] + sector, len(APP))
    assert found[0] is None
    assert [block.problem for block in found[1:] if block] == ["", "is damaged: its CRC is wrong"]
    assert found[1] is not None
    assert found[1].key_digest == digest(keys[1])
    assert parse_app_image(data[:-SECTOR] + sector).signed


@pytest.mark.slow
@settings(max_examples=15)
@given(st.binary(max_size=200), st.sampled_from(SCHEMES), AT, MASK)
def test_any_bytes_end_in_values(tail: bytes, scheme: str, at: int, mask: int) -> None:
    """Whatever a server or a slot has where a signature would be."""
    data = sign(APP, key(scheme))
    block = data[-SECTOR : -SECTOR + BLOCK]
    for sector in (tail, b"\xe7" + tail, spoilt(block, at, mask) + tail):
        found = signature_blocks(data[:-SECTOR] + sector, len(APP))
        assert len(found) <= MAX_BLOCKS
        parse_app_image(data[:-SECTOR] + sector, trailing=True)
