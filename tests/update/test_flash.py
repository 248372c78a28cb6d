# SPDX-License-Identifier: GPL-3.0-or-later
"""Every operation is read back: a flash that ignores or changes one is noticed at once."""

from __future__ import annotations

import pytest

from ota_service.errors import OtaError
from ota_service.formats.flashops import Erase, FlashOp, Program, apply_ops
from ota_service.link.flash import Protection, apply_verified
from tests.support.memory_flash import MemoryFlash

OPS: list[FlashOp] = [Erase(0x1000, 0x1000), Program(0x1000, b"abcd"), Program(0x1010, b"efgh")]


class OddFlash(MemoryFlash):
    """Does not do the n-th operation as it was told to. how: "not", or "otherwise"."""

    def __init__(self, data: bytes, odd: int, how: str) -> None:
        super().__init__(data)
        self.odd, self.how = odd, how

    def _do(self, op: FlashOp) -> None:
        if len(self.trace) == self.odd:
            self.trace.append(op)
            if self.how == "not":
                return
            start, size = op.offset, op.size_bytes if isinstance(op, Erase) else len(op.data)
            apply_ops(self.data, [op])
            self.data[start + size - 1] &= 0x5A
            return
        super()._do(op)


@pytest.mark.parametrize("how", ["not", "otherwise"])
@pytest.mark.parametrize("odd", range(len(OPS)))
def test_an_operation_that_was_not_done_is_noticed_before_the_next(odd: int, how: str) -> None:
    """Protected chips ignore commands in silence; a line may change bytes."""
    flash = OddFlash(bytes(0x3000), odd, how)
    with pytest.raises(OtaError) as raised:
        apply_verified(flash, OPS)
    ignored = how == "not" or isinstance(OPS[odd], Erase)
    assert raised.value.code == ("flash-protected" if ignored else "verify-failed")
    assert len(flash.trace) == odd + 1


@pytest.mark.parametrize(
    ("status", "offset", "size_bytes", "covered"),
    [
        (0, 0, 8 << 20, False),
        (0x04, 0, (8 << 20) - 0x20000, False),  # BP0: the upper 1/64
        (0x04, 0, (8 << 20) - 0x20000 + 1, True),
        (0x08, (8 << 20) - 0x40000, 1, True),  # BP1: the upper 1/32
        (0x24, 0x1FFFF, 1, True),  # TB: the lower 1/64
        (0x24, 0x20000, 1, False),
        (0x44, 0, 1, True),  # not understood
        (0x1C, 0, 1, True),  # all of it
    ],
)
def test_what_protection_bits_cover(
    status: int, offset: int, size_bytes: int, covered: bool
) -> None:
    """By W25Q64's table; a place that is protected in part is protected."""
    assert Protection(status, 8 << 20).covers(offset, size_bytes) is covered


def test_what_is_there_already_is_not_programmed_again() -> None:
    """A page is saved from wear, and a resumed edit goes on."""
    flash = MemoryFlash(bytes(0x3000))
    apply_verified(flash, OPS)
    apply_verified(flash, OPS[1:])
    assert flash.trace == OPS
