# SPDX-License-Identifier: GPL-3.0-or-later
"""Changing one key of NVS without losing any other, at whatever operation power fails.

The ways, in their order of preference: append to the active page; a new page where two are free;
move the items of a page into a free one, the page with the least in it first; else refuse with
nothing changed. Before any of them what the firmware would repair at its next start is repaired as
far as the change could disturb that. A way is taken only if it is proven at every cut (`prove.py`);
where none is, all are tried again after what stands behind another item of its key was erased.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Literal

from ota_service.errors import OtaError
from ota_service.formats.flashops import FlashOp
from ota_service.formats.nvs.flash import NvsFlash, headers
from ota_service.formats.nvs.page import (
    CHUNK_ANY,
    ENTRY_BYTES,
    ENTRY_COUNT,
    NAMESPACES,
    TYPE_BLOB_DATA,
    TYPE_STRING,
    TYPE_U8,
    VERSION_2,
    Hash,
    Item,
    Loader,
    Page,
    PageState,
    crc32,
)
from ota_service.formats.nvs.prove import NvsProof
from ota_service.formats.nvs.read import Nvs, parse_nvs

_REMEMBERED = 64
"""Changes that are kept with their proof, by what they depend on."""

MAX_KEY_BYTES = 15
MAX_STRING_BYTES = 4000 - 1
"""A string with its NUL has at most 4000 bytes (nvs_set_str)."""

Key = tuple[int, bytes]
"""A namespace's index, and a key in it."""

Strategy = Literal["unchanged", "append", "new-page", "collect", "erase"]


@dataclass(frozen=True, slots=True)
class NvsEdit:
    """A change of NVS: carry `ops` out in their order, read each back.

    ops: flash addresses; every program's data are what stands there afterwards.
    strategy: how room was found; "erase" where nothing but erased marks is written.
    result: the whole partition afterwards.
    """

    ops: tuple[FlashOp, ...]
    strategy: Strategy
    result: bytes


def _check_names(namespace: str, key: str) -> None:
    for name in (namespace, key):
        if not 1 <= len(name.encode()) <= MAX_KEY_BYTES or not name.isprintable():
            raise ValueError(f"no name for NVS: {name!r}")


def _start(data: bytes, load: Loader) -> Nvs:
    nvs = parse_nvs(data, load)
    if nvs.order and nvs.free_pages == 0:
        raise OtaError(
            "nvs-invalid", "The board's NVS has no free page, so its firmware cannot open it."
        )
    return nvs


def _repair(flash: NvsFlash) -> Nvs:
    """Finish what a cut left half done, as the firmware does at its start.

    The page that is written to is repaired entry by entry. The older twin of the last item goes,
    because behind another item it would not go any more.
    """
    nvs = flash.read()
    last = nvs.last
    if last is not None and nvs.freeing is None and last.state is PageState.ACTIVE:
        flash.repair_page(last.index)
        nvs = flash.read()
    if nvs.twin is not None:
        page, twin = nvs.twin
        for header in headers(flash.page(page.index)):
            if header.index == twin.index:
                flash.erase_item(page.index, header, "nothing can read it")
    return flash.read()


def _string_entries(namespace: int, key: str, value: bytes) -> bytes:
    """The entries of a string; value with its NUL."""
    span = 1 + -(-len(value) // ENTRY_BYTES)
    data = len(value).to_bytes(2, "little") + b"\xff\xff" + crc32(value).to_bytes(4, "little")
    head = _head(namespace, TYPE_STRING, span, key, data)
    return head + value.ljust((span - 1) * ENTRY_BYTES, b"\xff")


def _head(namespace: int, kind: int, span: int, key: str, data: bytes) -> bytes:
    first = bytes([namespace, kind, span, CHUNK_ANY])
    rest = key.encode().ljust(16, b"\0") + data
    return first + crc32(first + rest).to_bytes(4, "little") + rest


def set_string(data: bytes, *, base: int, namespace: str, key: str, value: str) -> NvsEdit:
    """Store a string, so that at every cut the old or the new one is there, and every other key.

    data: the whole NVS partition. base: its flash address. namespace, key: 1 to 15 bytes; the
    namespace is made where it is missing. value: without NUL, below 4000 bytes of UTF-8.
    A value of another type under this key is replaced.
    Raises `OtaError`: "nvs-full" where there is no room, "nvs-invalid" where the contents cannot
    be changed without risk, "flash-encrypted"; then nothing is to be done.
    """
    return _string_set(bytes(data), base, namespace, key, value)


@lru_cache(maxsize=_REMEMBERED)
def _string_set(data: bytes, base: int, namespace: str, key: str, value: str) -> NvsEdit:
    """What was proven is not proven again: most of an activation's work, when it was staged."""
    _check_names(namespace, key)
    payload = value.encode() + b"\0"
    if b"\0" in payload[:-1] or len(payload) > MAX_STRING_BYTES + 1:
        raise ValueError("no string for NVS: it holds a NUL or is too long")
    load = Loader()
    before = _start(data, load)
    flash = NvsFlash(data, base, load)
    index = before.namespaces.get(namespace)
    stored = before.get_string(namespace, key) == value
    if index is not None and stored and len(_standing(flash, (index, key.encode()))) == 1:
        return NvsEdit((), "unchanged", bytes(data))
    blocks: list[bytes] = []
    if index is None:
        index = _new_index(before)
        blocks.append(_head(NAMESPACES, TYPE_U8, 1, namespace, bytes([index]) + b"\xff" * 7))
    blocks.append(_string_entries(index, key, payload))
    place = (index, key.encode())
    proof = NvsProof(data, base, place, namespace, load)
    nvs = _repair(flash)
    ways = chain(
        _store(flash, nvs, blocks, place, stored),
        _store_bare(flash.copy(), nvs, blocks, place, stored),
    )
    return _proven(ways, proof, place, payload)


Ways = Iterator[tuple[Strategy, NvsFlash]]
"""Ways to change a key, each on a flash of its own, without the old item's end."""


def _store(flash: NvsFlash, nvs: Nvs, blocks: list[bytes], key: Key, stored: bool) -> Ways:
    """stored: the value is there already, and other items of its key."""
    if stored and nvs.freeing is None:
        yield "erase", flash.copy()
    if sum(map(len, blocks)) <= ENTRY_COUNT * ENTRY_BYTES:
        yield from _ways(flash, nvs, blocks, key)
        return
    for _, first in _ways(flash, nvs, blocks[:1], key):  # They do not fit into one page.
        yield from _ways(first, first.read(), blocks[1:], key)


def _store_bare(flash: NvsFlash, nvs: Nvs, blocks: list[bytes], key: Key, stored: bool) -> Ways:
    """The same without items that stand behind others of their key and type: nothing finds them,
    but moved behind the one that is found they may change which one that is."""
    if nvs.freeing is not None:
        return
    found: set[tuple[Hash, int]] = set()
    hidden: list[tuple[Page, int]] = []
    for page in nvs.order:
        for item in page.items:
            name = (item.hash, item.type)
            if name in found:
                hidden.append((page, item.index))
            found.add(name)
    for page, index in reversed(hidden):
        header = next(one for one in headers(flash.page(page.index)) if one.index == index)
        flash.erase_item(page.index, header, "nothing can read it")
    if hidden:
        yield from _store(flash, flash.read(), blocks, key, stored)


def _proven(ways: Ways, proof: NvsProof, key: Key, value: bytes | None) -> NvsEdit:
    """The first way that keeps every other key at every cut."""
    refusal = "nvs-full"
    for strategy, changed in ways:
        _erase_old(changed, key, value)
        if proof.holds(changed.ops, value):
            return NvsEdit(tuple(changed.ops), strategy, bytes(changed.flash))
        refusal = "nvs-invalid"
    raise OtaError(refusal)


def _new_index(nvs: Nvs) -> int:
    """The lowest namespace index that nothing uses, as the firmware picks it."""
    taken = set(nvs.namespaces.values())
    for _, item in nvs.items():
        taken.add(item.namespace)
        if item.namespace == NAMESPACES:
            taken.add(item.raw[24])
    free = [index for index in range(1, 255) if index not in taken]
    if not free:
        raise OtaError("nvs-full", "The board's NVS has no namespace left.")
    return free[0]


def _ways(flash: NvsFlash, nvs: Nvs, blocks: list[bytes], key: Key) -> Ways:
    """Each way to write the items `blocks`."""
    new = b"".join(blocks)
    if nvs.freeing is not None:
        yield from _finish(flash, nvs, nvs.freeing, blocks, key)
        return
    last = nvs.last
    if last is not None and last.state is PageState.ACTIVE:
        appended = flash.copy()
        if _append(appended, last, blocks):
            yield "append", appended
    if nvs.free_pages >= 2:
        begun = flash.copy()
        page = begun.fill_page(new, nvs, last.version if last else VERSION_2, "new page")
        if last is not None:
            begun.mark_full(last)
        begun.enliven(page, "new page")
        yield "new-page", begun
    elif hollow := [page for page in nvs.order if not page.items]:
        freed = flash.copy()
        freed.kill(hollow[0], "nothing in it")
        yield from _ways(freed, freed.read(), blocks, key)
    for victim in sorted(nvs.order, key=lambda page: page.used):
        yield from _collect(flash, nvs, victim, victim, blocks, key)


def _collect(
    flash: NvsFlash, nvs: Nvs, victim: Page, page: Page, blocks: list[bytes], key: Key
) -> Ways:
    """Ways to move the items of `page`, which stand on `victim`, and to write new ones behind them.

    In the place of the key's old item, where it stands on that page alone: in another one the
    firmware would erase it before it drops the unfinished copy with the new one.
    """
    needed = sum(map(len, blocks)) // ENTRY_BYTES
    mine = [item for item in page.items if (item.namespace, item.key) == key]
    rest = [item for item in page.items if item not in mine]
    if (
        all(
            (item.namespace, item.key) != key
            for other in nvs.order
            if other is not page
            for item in other.items
        )
        and _used(rest) + needed <= ENTRY_COUNT
    ):
        moved = flash.copy()
        _move(moved, nvs, victim, rest, b"".join(blocks))
        yield "collect", moved
    if _used(page.items) + 1 + needed <= ENTRY_COUNT:
        moved = flash.copy()
        _move(moved, nvs, victim, page.items)
        last = moved.read().last
        if last is not None and _append(moved, last, blocks):
            yield "collect", moved


def _used(items: Sequence[Item]) -> int:
    return sum(item.span for item in items)


def _move(flash: NvsFlash, nvs: Nvs, victim: Page, items: Sequence[Item], new: bytes = b"") -> None:
    """Move items of a page into a free one, with entries that are new behind them, and free it.

    The page that is written to must be FULL before another one is FREEING, or the firmware would
    take it for the unfinished copy and erase it.
    """
    entries = b"".join(item.raw for item in items) + new
    page = None
    if entries:
        guard = not new and _ends_in_later_part(items) and _used(items) < ENTRY_COUNT
        page = flash.fill_page(entries, nvs, victim.version, "moved", guard=guard)
    if victim.state is not PageState.FREEING:
        last = nvs.last
        if last is not None:
            flash.mark_full(last)
        flash.mark_freeing(victim)
    if page is not None:
        flash.enliven(page, "moved")
    flash.kill(victim, "its items have been moved")


def _ends_in_later_part(items: Sequence[Item]) -> bool:
    """Whether the last item is a part of a blob of which an earlier one is there as well: on an
    active page the firmware would take that one for its older form, and erase it."""
    *earlier, last = items
    return last.type == TYPE_BLOB_DATA and any(
        item.type == TYPE_BLOB_DATA and item.hash[:2] == last.hash[:2] for item in earlier
    )


def _finish(flash: NvsFlash, nvs: Nvs, victim: Page, blocks: list[bytes], key: Key) -> Ways:
    """Ways to end a move that a cut has left half done: with the new item, or before it."""
    if nvs.dropped is not None:
        flash.kill(flash.page(nvs.dropped.index), "an unfinished copy")
    moved = nvs.order[-1] if victim.items else victim
    if blocks:
        yield from _collect(flash, nvs, victim, moved, blocks, key)
    _move(flash, nvs, victim, moved.items)
    if blocks:
        yield from _ways(flash, flash.read(), blocks, key)
    else:
        yield "erase", flash


def _append(flash: NvsFlash, page: Page, blocks: list[bytes]) -> bool:
    """Append items to the active page, behind its first free entry where all is blank."""
    needed = sum(map(len, blocks)) // ENTRY_BYTES
    index = page.next_free
    while index + needed <= ENTRY_COUNT:
        dirty = [i for i in range(index, index + needed) if not page.is_blank(i)]
        if not dirty:
            break
        index = dirty[-1] + 1
    else:
        return False
    flash.skip_to(page, index)
    for block in blocks:
        flash.append(page.index, index, block, "the new item")
        index += len(block) // ENTRY_BYTES
    return True


def _standing(flash: NvsFlash, key: Key) -> list[tuple[Page, Item]]:
    """Every item of a key that is not marked erased on flash, whether anything can read it or
    not, in the order in which the firmware looks into the pages."""
    pages = sorted(flash.pages(), key=lambda page: page.seq)
    return [
        (page, item)
        for page in pages
        for item in headers(page)
        if (item.namespace, item.key) == key
    ]


def _erase_old(flash: NvsFlash, key: Key, value: bytes | None) -> None:
    """Erase every older item of the key on flash; what would be read goes last of them, but a
    blob's index before its parts."""
    old = _standing(flash, key)
    if value is not None:
        new = [pair for pair in old if pair[1].value == value]
        old.remove(max(new, key=lambda pair: (pair[0].seq, pair[1].index)))
    old.reverse()
    for page, item in sorted(old, key=lambda pair: pair[1].chunk != CHUNK_ANY):
        flash.erase_item(page.index, item, "the old item")


def erase_key(data: bytes, *, base: int, namespace: str, key: str) -> NvsEdit:
    """Take a key away, so that at every cut it is there or not, and every other key is.

    Its items are marked erased; no room is needed. Arguments and errors as for `set_string`.
    """
    _check_names(namespace, key)
    load = Loader()
    before = _start(data, load)
    place = (before.namespaces.get(namespace, -1), key.encode())
    flash = NvsFlash(data, base, load)
    if not _standing(flash, place):
        return NvsEdit((), "unchanged", bytes(data))
    proof = NvsProof(data, base, place, namespace, load)
    nvs = _repair(flash)
    ways: Ways = iter([("erase", flash)])
    if nvs.freeing is not None:
        ways = _finish(flash, nvs, nvs.freeing, [], place)
    return _proven(ways, proof, place, None)
