# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole NVS partition as the firmware reads it after its start.

Source: ESP-IDF, `PageManager::load` (nvs_pagemanager.cpp) and `Storage::init`
(nvs_storage.cpp), v4.3 to v6.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from ota_service.errors import OtaError
from ota_service.formats.nvs.page import (
    CHUNK_ANY,
    ENTRY_COUNT,
    NAMESPACES,
    PAGE_BYTES,
    TYPE_BLOB,
    TYPE_BLOB_INDEX,
    TYPE_STRING,
    TYPE_U8,
    VERSION_2,
    Contents,
    EntryState,
    Hash,
    Item,
    Loader,
    Page,
    PageState,
    blob_of,
    page_bytes,
)
from ota_service.formats.text import field_text

MIN_PAGES = 3
"""NVS_RW_MIN_PARTITION_SIZE of ESP-IDF's partition tool is 0x3000."""


@dataclass(slots=True)
class Nvs:
    """The contents of an NVS partition, as the firmware's start leaves them.

    pages: in their physical order. order: the pages with items, in the order in which the
    firmware looks into them. freeing: a page whose items the start has moved into a new one.
    dropped: a page that it has erased before, because it held an unfinished copy of those. twin:
    the older form of the last item, which the start has erased, and its page. blobs_fit: whether
    every blob's parts are those that its index counts.
    """

    pages: list[Page]
    order: list[Page]
    freeing: Page | None = None
    dropped: Page | None = None
    twin: tuple[Page, Item] | None = None
    blobs_fit: bool = True
    namespaces: dict[str, int] = field(default_factory=dict)

    @property
    def free_pages(self) -> int:
        """Pages without items; at least one must stay, or the firmware's start fails."""
        return sum(not page.live for page in self.pages)

    @property
    def last(self) -> Page | None:
        """The page that the firmware writes to."""
        return self.order[-1] if self.order else None

    def put(self, page: Page) -> None:
        """Replace a page by another form of it."""
        self.pages[page.index] = page
        self.order = [page if other.index == page.index else other for other in self.order]

    def items(self) -> Iterator[tuple[Page, Item]]:
        """Every item with its page, in the firmware's order."""
        for page in self.order:
            for item in page.items:
                yield page, item

    def get_string(self, namespace: str, key: str) -> str | None:
        """The string of a key, without its NUL; None where the firmware would find none.

        In each page the firmware looks at the key's first item only: where that has another
        type, it goes on to the next page. A string whose payload is damaged is not found.
        """
        name = (self.namespaces.get(namespace), key.encode(), CHUNK_ANY)
        for page in self.order:
            same = (i for i in page.items if (i.namespace, i.key, i.chunk) == name)
            item = next(same, None)
            if item is not None and item.type == TYPE_STRING:
                text = item.value.split(b"\0", 1)[0].decode("utf-8", "replace")
                return text if item.value_ok else None
        return None

    def strings(self) -> list[tuple[str, str, bytes]]:
        """(namespace, key, value without NUL) of every string; for redaction."""
        return [
            (*self._name(item), item.value.removesuffix(b"\0"))
            for _, item in self.items()
            if item.type == TYPE_STRING and item.namespace != NAMESPACES
        ]

    def keys(self) -> set[tuple[str, str]]:
        """(namespace, key) of everything stored."""
        return {self._name(item) for _, item in self.items() if item.namespace != NAMESPACES}

    def _name(self, item: Item) -> tuple[str, str]:
        names = (name for name, index in self.namespaces.items() if index == item.namespace)
        return next(names, f"#{item.namespace}"), field_text(item.key)

    def contents(self) -> Contents:
        """What the firmware can read: (namespace index, key, type) -> value.

        Types: as stored; a blob's index stands for the blob, whose value is its joined parts.
        In each page the first item of a key hides those behind it; over the pages the first
        one of its type counts.
        """
        contents: Contents = {}
        parts: dict[Hash, bytes] = {}
        for page in reversed(self.order):
            contents.update(page.plain)
            parts.update(page.payloads)
        for page in reversed(self.order):
            for index, size, names in page.blobs:
                found = [parts[name] for name in names if name in parts]
                place = (index.namespace, index.key, index.type)
                contents.pop(place, None)
                if len(found) == len(names) and sum(map(len, found)) == size:
                    contents[place] = size.to_bytes(4, "little") + b"".join(found)
        return contents


def parse_nvs(data: bytes, load: Loader | None = None) -> Nvs:
    """The NVS partition in `data`, its whole contents.

    Where versions of the firmware differ, this keeps what any of them keeps.
    Raises `OtaError`: "nvs-invalid" for a size that is no multiple of 4096 or below three pages,
    for a later format, and for contents that the firmware would not make sense of;
    "flash-encrypted" where the entries are not readable.
    """
    if len(data) % PAGE_BYTES or len(data) < MIN_PAGES * PAGE_BYTES:
        raise OtaError(
            "nvs-invalid",
            f"NVS has {len(data):#x} bytes; it must have a multiple of 0x1000, at least 0x3000.",
        )
    raws = [bytes(data[place : place + PAGE_BYTES]) for place in range(0, len(data), PAGE_BYTES)]
    load = load or Loader()
    if _looks_encrypted(raws, load):
        raise OtaError("flash-encrypted", "The board's NVS is encrypted.")
    nvs = start([load(raw, index) for index, raw in enumerate(raws)], drops=False)
    for _, item in nvs.items():
        if item.namespace == NAMESPACES and item.type == TYPE_U8:
            # The first of that name is the one that is opened.
            nvs.namespaces.setdefault(field_text(item.key[:15]), item.raw[24])
    return nvs


def start(pages: Sequence[Page], *, drops: bool) -> Nvs:
    """What the firmware does at its start, once its pages are loaded.

    drops: as the newer of ESP-IDF's versions do, erase a blob's index that does not fit its parts.
    Raises `OtaError` "nvs-invalid" where several pages are being freed.
    """
    # Python's sort keeps equal ones in their order, as the firmware's insertion does.
    order = sorted((page for page in pages if page.live), key=lambda page: page.seq)
    nvs = Nvs(list(pages), order)
    if order:
        _drop_twins_of_the_last_item(nvs)
        _finish_freeing(nvs)
        _match_blobs(nvs, drops=drops)
    return nvs


def _drop_twins_of_the_last_item(nvs: Nvs) -> None:
    """A cut between writing an item and erasing its older form in another page."""
    last = nvs.order[-1]
    if not last.items:
        return
    item = last.items[-1]
    if not _erase_first(nvs, item, item.type) and item.type == TYPE_BLOB_INDEX:
        _erase_first(nvs, item, TYPE_BLOB)


def _erase_first(nvs: Nvs, item: Item, kind: int) -> bool:
    for page in nvs.order[:-1]:
        # The first item of that key in a page hides those behind it, whatever its type.
        twin = page.firsts.get(item.hash) if page.state is not PageState.FREEING else None
        if twin is not None and twin.type == kind:
            nvs.put(page.without([twin]))
            nvs.twin = page, twin
            return True
    return False


def _finish_freeing(nvs: Nvs) -> None:
    """A cut while the items of a page were being moved: the copy is erased and made again."""
    freeing = [page for page in nvs.order if page.state is PageState.FREEING]
    if not freeing:
        return
    if len(freeing) > 1:
        raise OtaError("nvs-invalid", f"NVS has {len(freeing)} pages that are being freed.")
    nvs.freeing = freeing[0]
    seq = (nvs.order[-1].seq + 1) & 0xFFFFFFFF
    free = [page.index for page in nvs.pages if not page.live]
    if nvs.order[-1].state is PageState.ACTIVE:
        nvs.dropped = nvs.order.pop()
        free.append(nvs.dropped.index)
        nvs.pages[nvs.dropped.index] = _blank(nvs.dropped.index)
    nvs.order.remove(nvs.freeing)
    if not free:  # The firmware does not start from here; what it would move can still be read.
        nvs.order.append(nvs.freeing)
        return
    nvs.pages[nvs.freeing.index] = _blank(nvs.freeing.index)
    if nvs.freeing.items:
        nvs.pages[free[0]] = _copy(nvs.freeing.items, free[0], seq)
        nvs.order.append(nvs.pages[free[0]])


def _blank(index: int) -> Page:
    return Page(index, b"\xff" * PAGE_BYTES, PageState.BLANK)


def _copy(items: Sequence[Item], index: int, seq: int) -> Page:
    """A new active page with these items."""
    copies: list[Item] = []
    end = 0
    for item in items:
        copies.append(replace(item, index=end))
        end += item.span
    raw = page_bytes(copies, PageState.ACTIVE, seq, VERSION_2)
    states = (EntryState.WRITTEN,) * end + (EntryState.EMPTY,) * (ENTRY_COUNT - end)
    return Page(index, raw, PageState.ACTIVE, seq, VERSION_2, states, tuple(copies), end)


def _match_blobs(nvs: Nvs, *, drops: bool) -> None:
    """Erase what a failed write has left: parts of blobs without an index.

    drops: before that, indexes whose parts are not all there.
    """
    indexes = [index for page in nvs.order for index in page.indexes]
    sizes = _observed(nvs, indexes)
    fit = [
        (blob_of(index)[0], index.raw[28]) == seen
        for index, seen in zip(indexes, sizes, strict=True)
    ]
    nvs.blobs_fit = all(fit)
    if drops:
        for index, fits in zip(indexes, fit, strict=True):
            if not fits:
                _drop(nvs, index)
        indexes = [index for index, fits in zip(indexes, fit, strict=True) if fits]
    known = {(*index.hash[:2], chunk) for index in indexes for chunk in blob_of(index)[1]}
    for page in nvs.order:
        orphans = [part for name, part in page.parts if name not in known]
        if orphans:
            nvs.put(page.without(orphans))


def _observed(nvs: Nvs, indexes: list[Item]) -> list[tuple[int, int]]:
    """The bytes and the number of the parts that belong to each index: to the first that fits."""
    seen = [(0, 0)] * len(indexes)
    named: dict[tuple[int, bytes], list[tuple[int, int]]] = {}
    for i, index in enumerate(indexes):
        named.setdefault(index.hash[:2], []).append((i, index.raw[29]))
    for page in nvs.order:
        for name, part in page.parts:
            for i, first in named.get(name[:2], ()):
                if first <= part.chunk < (0xFF if first else 0x80):
                    size, count = seen[i]
                    seen[i] = (size + int.from_bytes(part.raw[24:26], "little"), count + 1)
                    break
    return seen


def _drop(nvs: Nvs, index: Item) -> None:
    """Erase the first index with the key and the first part's number of `index`."""
    for page in nvs.order:
        for other in page.indexes:
            if other.hash == index.hash and other.raw[29] == index.raw[29]:
                nvs.put(page.without([other]))
                return


def _looks_encrypted(raws: list[bytes], load: Loader) -> bool:
    """Whether no item is readable, and what should be items is noise.

    NVS encryption leaves page headers and bitmaps readable, but no item; flash encryption
    leaves nothing. Of 32 random bytes about 0.25 are 00 or FF; the header of an item has nearly
    always many of them, as filling of its key and value.
    """
    noisy = False
    for index, raw in enumerate(raws):
        try:
            page = load(raw, index)
        except OtaError:
            return False
        if page.items:
            return False
        if page.live:
            written = [i for i, s in enumerate(page.on_flash) if s == EntryState.WRITTEN]
            if written and _is_noise(page.entry(written[0])):
                noisy = True
            elif written:
                return False
        elif all(_is_noise(raw[i : i + 32]) for i in range(0, PAGE_BYTES, 512)):
            noisy = True
    return noisy


def _is_noise(chunk: bytes) -> bool:
    return chunk.count(b"\0") + chunk.count(b"\xff") <= 4
