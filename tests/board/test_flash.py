# SPDX-License-Identifier: GPL-3.0-or-later
"""Every operation is read back: a flash that ignores or changes one is noticed at once."""

from __future__ import annotations

import pytest

from ota_service.board.flash import MemoryFlash, apply_verified
from ota_service.errors import OtaError
from ota_service.formats.flashops import Erase, FlashOp, Program, apply_ops

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


def test_what_is_there_already_is_not_programmed_again() -> None:
    """A page is saved from wear, and a resumed edit goes on."""
    flash = MemoryFlash(bytes(0x3000))
    apply_verified(flash, OPS)
    apply_verified(flash, OPS[1:])
    assert flash.trace == OPS
