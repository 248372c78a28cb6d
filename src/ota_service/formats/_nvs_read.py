# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole NVS partition as the firmware reads it after its start.

Source: ESP-IDF, `PageManager::load` (nvs_pagemanager.cpp) and `Storage::init`
(nvs_storage.cpp).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from ota_service.errors import OtaError
from ota_service.formats._nvs_page import (
    NAMESPACES,
    PAGE_BYTES,
    TYPE_BLOB,
    TYPE_BLOB_DATA,
    TYPE_BLOB_INDEX,
    TYPE_STRING,
    TYPE_U8,
    EntryState,
    Item,
    Page,
    PageState,
    load_page,
)
from ota_service.formats._text import field_text

MIN_PAGES = 3
"""NVS_RW_MIN_PARTITION_SIZE of ESP-IDF's partition tool is 0x3000."""


@dataclass(slots=True)
class Nvs:
    """The contents of an NVS partition.

    pages: in their physical order. order: the pages with items, in the order in which the
    firmware looks into them; what it would repair at its next start counts as repaired.
    dropped: a page that the firmware erases at its next start, because it holds an unfinished
    copy of the page that is being freed.
    """

    pages: list[Page]
    order: list[Page]
    dropped: Page | None = None
    namespaces: dict[str, int] = field(default_factory=dict)

    @property
    def free_pages(self) -> int:
        """Pages without items; at least one must stay, or the firmware's start fails."""
        return sum(not page.live for page in self.pages) + (self.dropped is not None)

    @property
    def last(self) -> Page | None:
        """The page that the firmware writes to."""
        return self.order[-1] if self.order else None

    def items(self) -> Iterator[tuple[Page, Item]]:
        """Every item with its page, in the firmware's order."""
        for page in self.order:
            for item in page.items:
                yield page, item

    def find(self, namespace: int, key: bytes) -> list[tuple[Page, Item]]:
        """Every item of a key, of whatever type, the parts of blobs included."""
        return [
            (page, item)
            for page, item in self.items()
            if item.namespace == namespace and item.key == key
        ]

    def get_string(self, namespace: str, key: str) -> str | None:
        """The string of a key, without its NUL; None where the firmware would find none.

        In each page the firmware looks at the key's first item only: where that has another
        type, it goes on to the next page. A string whose payload is damaged is not found.
        """
        index = self.namespaces.get(namespace)
        if index is None:
            return None
        item = self._string_item(index, key.encode())
        if item is None or not item.value_ok:
            return None
        return item.value.split(b"\0", 1)[0].decode("utf-8", "replace")

    def _string_item(self, namespace: int, key: bytes) -> Item | None:
        for page in self.order:
            for item in page.items:
                if item.namespace == namespace and item.key == key and item.chunk == 0xFF:
                    if item.type == TYPE_STRING:
                        return item
                    break
        return None

    def strings(self) -> list[tuple[str, str, bytes]]:
        """(namespace, key, value without NUL) of every string; for redaction."""
        names = {index: name for name, index in reversed(self.namespaces.items())}
        return [
            (
                names.get(item.namespace, f"#{item.namespace}"),
                field_text(item.key),
                item.value.removesuffix(b"\0"),
            )
            for _, item in self.items()
            if item.type == TYPE_STRING and item.namespace != NAMESPACES
        ]

    def keys(self) -> set[tuple[str, str]]:
        """(namespace, key) of everything stored."""
        names = {index: name for name, index in reversed(self.namespaces.items())}
        return {
            (names.get(item.namespace, f"#{item.namespace}"), field_text(item.key))
            for _, item in self.items()
            if item.namespace != NAMESPACES
        }

    def contents(self) -> dict[tuple[int, bytes, int], bytes]:
        """What the firmware can read: (namespace index, key, type) -> value.

        Types: as stored; a blob's index stands for the blob, whose value is its joined parts.
        Of several items with the same key and type the first one counts; a key whose first item
        in a page has another type hides the rest of that page, which only stale items can do.
        """
        parts: dict[tuple[int, bytes, int], bytes] = {}
        found: dict[tuple[int, bytes, int], Item] = {}
        for _, item in self.items():
            if item.type == TYPE_BLOB_DATA:
                value = item.value if item.value_ok else b""
                parts.setdefault((item.namespace, item.key, item.chunk), value)
            else:
                found.setdefault((item.namespace, item.key, item.type), item)
        contents: dict[tuple[int, bytes, int], bytes] = {}
        for place, item in found.items():
            if item.type == TYPE_BLOB_INDEX:
                size = int.from_bytes(item.raw[24:28], "little")
                count, start = item.raw[28], item.raw[29]
                found_parts = [
                    parts.get((*place[:2], chunk)) for chunk in range(start, start + count)
                ]
                whole = b"".join(part for part in found_parts if part is not None)
                if None in found_parts or len(whole) != size:
                    continue  # a part is missing or damaged: the firmware finds no blob
                contents[place] = size.to_bytes(4, "little") + whole
            elif item.type in (TYPE_STRING, TYPE_BLOB) and not item.value_ok:
                continue
            else:
                contents[place] = item.value
        return contents


def parse_nvs(data: bytes) -> Nvs:
    """The NVS partition in `data`, its whole contents.

    Raises `OtaError`: "nvs-invalid" for a size that is no multiple of 4096 or below three pages,
    for a later format, and for contents that the firmware would not make sense of;
    "flash-encrypted" where the entries are not readable.
    """
    if len(data) % PAGE_BYTES or len(data) < MIN_PAGES * PAGE_BYTES:
        raise OtaError(
            "nvs-invalid",
            f"NVS has {len(data):#x} bytes; it must have a multiple of 0x1000, at least 0x3000.",
        )
    data = bytes(data)
    if _looks_encrypted(data):
        raise OtaError("flash-encrypted", "The board's NVS is encrypted.")
    pages = [
        load_page(data[start : start + PAGE_BYTES], start // PAGE_BYTES)
        for start in range(0, len(data), PAGE_BYTES)
    ]
    # Python's sort keeps equal ones in their order, as the firmware's insertion does.
    order = sorted((page for page in pages if page.live), key=lambda page: page.seq)
    nvs = Nvs(pages, order)
    if order:
        _drop_twins_of_the_last_item(order)
        _finish_freeing(nvs)
    for page in nvs.order:
        for item in page.items:
            if item.namespace == NAMESPACES and item.type == TYPE_U8:
                # The first of that name is the one that is opened.
                nvs.namespaces.setdefault(field_text(item.key[:15]), item.raw[24])
    return nvs


def _drop_twins_of_the_last_item(order: list[Page]) -> None:
    """A cut between writing an item and erasing its older form in another page."""
    last = order[-1]
    if not last.items:
        return
    item = last.items[-1]
    if not _erase_first(order[:-1], item, item.type) and item.type == TYPE_BLOB_INDEX:
        _erase_first(order[:-1], item, TYPE_BLOB)


def _erase_first(pages: list[Page], item: Item, kind: int) -> bool:
    for page in pages:
        if page.state is PageState.FREEING:
            continue
        # The first item of that key in a page hides those behind it, whatever its type.
        twin = next((old for old in page.items if old.hash == item.hash), None)
        if twin is not None and twin.type == kind:
            page.erase(twin)
            return True
    return False


def _finish_freeing(nvs: Nvs) -> None:
    """A cut while the items of a page were being moved: the copy is erased and made again."""
    freeing = [page for page in nvs.order if page.state is PageState.FREEING]
    if not freeing:
        return
    if len(freeing) > 1:
        raise OtaError("nvs-invalid", f"NVS has {len(freeing)} pages that are being freed.")
    last = nvs.order[-1]
    if last.state is PageState.ACTIVE:
        nvs.dropped = last
        nvs.order.remove(last)
    nvs.order.remove(freeing[0])
    nvs.order.append(freeing[0])


def _looks_encrypted(data: bytes) -> bool:
    """Whether no item is readable, and what should be items is noise.

    NVS encryption leaves page headers and bitmaps readable, but no item; flash encryption
    leaves nothing. Of 32 random bytes about 0.25 are 00 or FF; the header of an item has nearly
    always many of them, as filling of its key and value.
    """
    noisy = False
    for start in range(0, len(data), PAGE_BYTES):
        raw = data[start : start + PAGE_BYTES]
        try:
            page = load_page(raw, start // PAGE_BYTES)
        except OtaError:
            return False
        if page.items:
            return False
        if page.live:
            written = [i for i, s in enumerate(page.on_flash) if s is EntryState.WRITTEN]
            if written and _is_noise(page.entry(written[0])):
                noisy = True
            elif written:
                return False
        elif all(_is_noise(raw[i : i + 32]) for i in range(0, PAGE_BYTES, 512)):
            noisy = True
    return noisy


def _is_noise(chunk: bytes) -> bool:
    return chunk.count(b"\0") + chunk.count(b"\xff") <= 4
