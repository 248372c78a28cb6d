# SPDX-License-Identifier: GPL-3.0-or-later
"""Changing one key of NVS without losing any other, at whatever operation power fails.

The strategies, in their order of preference (esp32.md, "Changing one key without losing any"):
append to the active page; a new page where two are free; collect the page with the least in it
into the last free page; else refuse with nothing changed. Before any of them what the firmware
would repair at its next start is repaired as far as the change could disturb that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ota_service.errors import OtaError
from ota_service.formats._nvs_flash import NvsFlash, headers, next_seq
from ota_service.formats._nvs_page import (
    CHUNK_ANY,
    ENTRY_BYTES,
    ENTRY_COUNT,
    NAMESPACES,
    PAGE_BYTES,
    TYPE_STRING,
    TYPE_U8,
    VERSION_2,
    EntryState,
    Item,
    Page,
    PageState,
    crc32,
)
from ota_service.formats._nvs_read import Nvs, parse_nvs
from ota_service.formats.flashops import FlashOp

MAX_KEY_BYTES = 15
MAX_STRING_BYTES = 4000 - 1
"""A string with its NUL has at most 4000 bytes (nvs_set_str)."""

Strategy = Literal["unchanged", "append", "new-page", "collect", "erase"]


@dataclass(frozen=True, slots=True)
class NvsEdit:
    """A change of NVS: carry `ops` out in their order, read each back.

    ops: flash addresses; every program's data are what stands there afterwards.
    strategy: how room was found; "erase" for a key that is taken away.
    result: the whole partition afterwards.
    """

    ops: tuple[FlashOp, ...]
    strategy: Strategy
    result: bytes


def _check_names(namespace: str, key: str) -> None:
    for name in (namespace, key):
        if not 1 <= len(name.encode()) <= MAX_KEY_BYTES or not name.isprintable():
            raise ValueError(f"no name for NVS: {name!r}")


def _start(data: bytes) -> Nvs:
    nvs = parse_nvs(data)
    if nvs.order and nvs.free_pages == 0:
        raise OtaError(
            "nvs-invalid", "The board's NVS has no free page, so its firmware cannot open it."
        )
    return nvs


def _repair(flash: NvsFlash) -> Nvs:
    """Finish what a cut left half done, as the firmware does at its start.

    A page that is being freed is moved. The page that is written to is repaired entry by entry.
    The older twin of the last item goes, because behind another item it would not go any more.
    """
    nvs = flash.read()
    freeing = next((page for page in nvs.order if page.state is PageState.FREEING), None)
    if freeing is not None:
        if nvs.dropped is not None:
            flash.kill(nvs.dropped, "an unfinished copy")
            nvs = flash.read()
            freeing = nvs.pages[freeing.index]
        flash.move_items(nvs, freeing)
        nvs = flash.read()
    last = nvs.last
    if last is None:
        return nvs
    if last.state is PageState.ACTIVE:
        if any(state is not EntryState.EMPTY for state in last.on_flash[last.next_free :]):
            raise OtaError(
                "nvs-invalid", f"Page {last.index} of NVS has entries behind its first free one."
            )
        flash.repair_page(last.index)
    _erase_twins(flash, last)
    return flash.read()


def _erase_twins(flash: NvsFlash, last: Page) -> None:
    """Erase on flash what only counts as erased: the older twin of the last item.

    A twin of which a part is marked erased already goes as well: firmware before v5 reads such
    an item in a full page as if it were whole.
    """
    nvs = flash.read()
    item = last.items[-1] if last.items else None
    for page in nvs.order[:-1]:
        kept = {other.index for other in page.items}
        for header in headers(page):
            if item and header.index not in kept and header.hash == item.hash:
                flash.erase_item(page.index, header, "the older form of the last item")


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
    _check_names(namespace, key)
    payload = value.encode() + b"\0"
    if b"\0" in payload[:-1] or len(payload) > MAX_STRING_BYTES + 1:
        raise ValueError("no string for NVS: it holds a NUL or is too long")
    before = _start(data)
    if before.get_string(namespace, key) == value:
        return NvsEdit((), "unchanged", bytes(data))
    flash = NvsFlash(data, base)
    nvs = _repair(flash)
    index = nvs.namespaces.get(namespace)
    blocks: list[bytes] = []
    if index is None:
        index = _new_index(nvs)
        blocks.append(_head(NAMESPACES, TYPE_U8, 1, namespace, bytes([index]) + b"\xff" * 7))
    blocks.append(_string_entries(index, key, payload))
    if sum(map(len, blocks)) > ENTRY_COUNT * ENTRY_BYTES:
        _write(flash, nvs, blocks[:1], [])  # They do not fit into one page.
        del blocks[0]
        nvs = flash.read()
    strategy = _write(flash, nvs, blocks, nvs.find(index, key.encode()))
    _erase_old(flash, index, key.encode(), blocks[-1])
    _prove(before, flash, namespace, key, value)
    return NvsEdit(tuple(flash.ops), strategy, bytes(flash.flash))


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


def _write(
    flash: NvsFlash, nvs: Nvs, blocks: list[bytes], old: list[tuple[Page, Item]]
) -> Strategy:
    """Write the items `blocks` where there is room, or make room; `old`: the key's items."""
    needed = sum(map(len, blocks)) // ENTRY_BYTES
    last = nvs.last
    if last is None:
        page = flash.blank_page(nvs)
        flash.write_page(page, b"".join(blocks), 0, VERSION_2, "first page")
        return "new-page"
    if last.state is PageState.ACTIVE and _append(flash, last, blocks):
        return "append"
    if nvs.free_pages >= 2:
        flash.mark_full(last)
        page = flash.blank_page(nvs)
        flash.write_page(page, b"".join(blocks), next_seq(nvs), last.version, "new page")
        return "new-page"
    # The page with the least in it, as the firmware chooses; then behind its items.
    victim = min(nvs.order, key=lambda page: page.used)
    if not victim.used:
        # Nothing to move: it is free as soon as it is dead, and then two pages are.
        flash.mark_full(last)
        flash.kill(victim, "nothing is in it")
        page = flash.blank_page(flash.read())
        flash.write_page(page, b"".join(blocks), next_seq(nvs), last.version, "new page")
        return "collect"
    if victim.used + needed <= ENTRY_COUNT:
        _free(flash, last, victim)
        flash.move_items(nvs, victim)
        target = flash.read().last
        if target is None or not _append(flash, target, blocks):
            raise OtaError("nvs-invalid")
        return "collect"
    # No room beside what is in a page, but in the place of the key's own old item there is.
    for place in {page.index: page for page, _ in old}.values():
        mine = [item for page, item in old if page.index == place.index]
        if place.used - sum(item.span for item in mine) + needed <= ENTRY_COUNT:
            _free(flash, last, place)
            flash.move_items(nvs, place, without=mine, more=b"".join(blocks))
            return "collect"
    raise OtaError("nvs-full")


def _free(flash: NvsFlash, last: Page, victim: Page) -> None:
    """Mark `victim` FREEING. The last page must be FULL by then, or the firmware would take it
    for the unfinished copy and erase it."""
    flash.mark_full(last)
    flash.mark_freeing(victim)


def _append(flash: NvsFlash, page: Page, blocks: list[bytes]) -> bool:
    """Append items to the active page, behind its first free entry where all is blank."""
    needed = sum(map(len, blocks)) // ENTRY_BYTES
    index = page.next_free
    while index + needed <= ENTRY_COUNT:
        dirty = [i for i in range(index, index + needed) if page.entry(i) != b"\xff" * ENTRY_BYTES]
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


def _erase_old(flash: NvsFlash, namespace: int, key: bytes, new: bytes) -> None:
    """Erase every older item of the key; a blob's index before its parts."""
    found = flash.read().find(namespace, key)
    keep = max((i for i, (_, item) in enumerate(found) if item.raw == new), default=len(found))
    old = [pair for i, pair in enumerate(found) if i != keep]
    for page, item in sorted(old, key=lambda pair: pair[1].chunk != CHUNK_ANY):
        flash.erase_item(page.index, item, "the old item")


def erase_key(data: bytes, *, base: int, namespace: str, key: str) -> NvsEdit:
    """Take a key away, so that at every cut it is there or not, and every other key is.

    Its items are marked erased; no room is needed. Arguments and errors as for `set_string`.
    """
    _check_names(namespace, key)
    before = _start(data)
    index = before.namespaces.get(namespace)
    if index is None or not before.find(index, key.encode()):
        return NvsEdit((), "unchanged", bytes(data))
    flash = NvsFlash(data, base)
    _repair(flash)
    _erase_old(flash, index, key.encode(), b"")
    _prove(before, flash, namespace, key, None)
    return NvsEdit(tuple(flash.ops), "erase", bytes(flash.flash))


def _prove(before: Nvs, flash: NvsFlash, namespace: str, key: str, value: str | None) -> None:
    """Raise "nvs-invalid" unless the result holds the value and every other key as before."""
    after = flash.read()
    index = after.namespaces.get(namespace)

    def others(nvs: Nvs) -> dict[tuple[int, bytes, int], bytes]:
        return {
            place: content
            for place, content in nvs.contents().items()
            if place[:2] not in ((index, key.encode()), (NAMESPACES, namespace.encode()))
        }

    if (
        others(before) != others(after)
        or any(after.namespaces.get(name) != number for name, number in before.namespaces.items())
        or after.get_string(namespace, key) != value
        or not after.free_pages
        or any(page.state is PageState.FREEING for page in after.order)
        or len(flash.flash) != PAGE_BYTES * len(before.pages)
    ):
        raise OtaError("nvs-invalid")
