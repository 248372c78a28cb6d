# SPDX-License-Identifier: GPL-3.0-or-later
"""Steps on NVS pages as flash operations, each made so that it is safe at every cut and torn form.

A program that is cut has cleared any subset of its bits, an erase has set any subset. The steps
use this:

- A page comes alive with the one bit of its state, after everything else in it; it dies with any
  bit of its CRC. Its state alone would not do (a later torn erase could take CORRUPT back to
  FREEING), nor its whole header in zeros (the CRC of zeros is FFFFFFFF: a torn erase could make a
  page of format version 0, at which the firmware refuses to start).
- An item of an active page is written in the firmware's own order: its header, its header's bit,
  its payload, the payload's bits. A header whose span is not wholly WRITTEN is a torn item: the
  firmware erases the span when it loads the page, whatever stands there. The header's first word
  goes first and alone, because the firmware tells a free entry by that word only.
- An item is erased payload first, header last, so that its header covers it to the end; of a torn
  item first one entry or what is WRITTEN, so that a torn step can never make it whole.
- The bytes of a cut write, a header without its bit, are set to zero before the bits change: at its
  start the firmware looks for an older form of the last item of an active page even where the CRC
  of that item's header is wrong, and would erase the good one. Zeros name no key. While the entry
  is EMPTY its bytes count for nothing but being used, so this is safe in any torn form.
- The bitmap never takes an entry from EMPTY to ERASED in one step unless a header covers it: torn,
  that could be ILLEGAL, over which old firmware stumbles at every start.

Whether a whole change holds is not left to this: `prove.py` tries it.
Every program's data are the bytes as they stand on flash afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ota_service.errors import OtaError
from ota_service.formats.flashops import Erase, Recorder, program
from ota_service.formats.nvs.page import (
    BITMAP_AT,
    ENTRIES_AT,
    ENTRY_BYTES,
    ENTRY_COUNT,
    PAGE_BYTES,
    STATE_WORDS,
    EntryState,
    Item,
    Loader,
    Page,
    PageState,
    has_crc,
    header_bytes,
    written_bitmap,
)
from ota_service.formats.nvs.read import Nvs, parse_nvs


class NvsFlash(Recorder):
    """The partition's bytes, and the operations so far that made them."""

    def __init__(self, data: bytes | bytearray, base: int, load: Loader) -> None:
        super().__init__(data, base)
        self._load = load

    def copy(self) -> NvsFlash:
        """The same so far, to go on in another way."""
        other = NvsFlash(self.flash, self.base, self._load)
        other.ops = list(self.ops)
        return other

    def read(self) -> Nvs:
        """The contents as they are after the operations so far."""
        return parse_nvs(bytes(self.flash), self._load)

    # --- single operations

    def program(self, page: int, offset: int, data: bytes, reason: str) -> None:
        """Clear the bits of `data` at `offset` of a page; nothing where they are clear."""
        start = page * PAGE_BYTES + offset
        now = self.flash[start : start + len(data)]
        both = int.from_bytes(now, "little") & int.from_bytes(data, "little")
        after = both.to_bytes(len(data), "little")
        if after != now:
            self.add(program(self.base + start, after, reason))

    def _mark(self, page: int, entries: Iterable[int], clear: int, reason: str) -> None:
        """Clear the bits `clear` (1: WRITTEN, 2: ERASED, 3: both) of entries, last byte first."""
        masks: dict[int, int] = {}
        for entry in entries:
            masks[entry // 4] = masks.get(entry // 4, 0xFF) & ~(clear << entry % 4 * 2)
        for place in sorted(masks, reverse=True):
            self.program(page, BITMAP_AT + place, bytes([masks[place]]), reason)

    # --- items

    def append(self, page: int, index: int, entries: bytes, reason: str) -> None:
        """An item at entry `index` of an active page, where all is blank."""
        place = ENTRIES_AT + index * ENTRY_BYTES
        count = len(entries) // ENTRY_BYTES
        self.program(page, place, entries[:4], f"{reason}: first word")
        self.program(page, place + 4, entries[4:ENTRY_BYTES], f"{reason}: header")
        self._mark(page, [index], 1, f"{reason}: header written")
        if count > 1:
            self.program(page, place + ENTRY_BYTES, entries[ENTRY_BYTES:], f"{reason}: payload")
            self._mark(page, range(index + 1, index + count), 1, f"{reason}: payload written")

    def erase_item(self, page: int, item: Item, reason: str) -> None:
        """Mark an item's entries erased, its header last.

        Of a torn item some entries may be EMPTY. Marked in one step they may be WRITTEN when
        that is torn: one ERASED entry must be among them by then, or the item would seem whole.
        Where its only other entry is EMPTY, its header goes alone, after the bytes of that entry
        have been set to zero: by their first word the firmware sees that they are used.
        """
        states = self.page(page).on_flash
        payload = range(item.index + 1, item.end)
        self._mark(page, [i for i in payload if states[i] == EntryState.WRITTEN], 2, reason)
        covered = any(states[i] in (EntryState.WRITTEN, EntryState.ERASED) for i in payload)
        if len(payload) == 1 and not covered:
            self._zero(page, payload, reason)
        else:
            if not covered:
                self._mark(page, payload[:1], 1, reason)
                self._mark(page, payload[:1], 2, reason)
            self._mark(page, payload, 3, reason)
        self._mark(page, [item.index], 2, reason)

    def _zero(self, page: int, entries: Iterable[int], reason: str) -> None:
        """Clear the bytes of entries that are not blank."""
        for entry in entries:
            if self.page(page).entry(entry) != b"\xff" * ENTRY_BYTES:
                place = ENTRIES_AT + entry * ENTRY_BYTES
                self.program(page, place, bytes(ENTRY_BYTES), f"{reason}: its bytes")

    def _discard(self, page: int, entries: Sequence[int], reason: str) -> None:
        """Mark entries erased that are EMPTY: with the bytes of a cut write, or blank ones.

        One by one from the last to the first, so that until all are marked the firmware writes
        to the blank ones before the first dirty one, as it would have.
        """
        self._zero(page, entries, reason)
        for entry in reversed(entries):
            self._mark(page, [entry], 1, reason)
        self._mark(page, entries, 2, reason)

    def repair_page(self, index: int) -> None:
        """Do to an active page what the firmware does when it loads it."""
        reason = "as the firmware does at its start"
        page = self.page(index)
        while gone := [h for h in headers(page) if page.states[h.index] == EntryState.ERASED]:
            for header in gone:
                self.erase_item(index, header, reason)
            page = self.page(index)
        loose = [
            i
            for i in range(page.next_free)
            if page.states[i] == EntryState.ERASED != page.on_flash[i]
        ]
        empty = [i for i in loose if page.on_flash[i] == EntryState.EMPTY]
        self._discard(index, empty, reason)
        self._mark(index, loose, 3, reason)

    def page(self, index: int) -> Page:
        """A page as loading it would leave it now."""
        start = index * PAGE_BYTES
        return self._load(bytes(self.flash[start : start + PAGE_BYTES]), index)

    def pages(self) -> list[Page]:
        """All of them, in their physical order."""
        return [self.page(index) for index in range(len(self.flash) // PAGE_BYTES)]

    def skip_to(self, page: Page, index: int) -> None:
        """Mark the free entries before `index` erased: some of them are not blank."""
        self._discard(page.index, range(page.next_free, index), "skipped: not all of it is blank")

    # --- pages

    def mark_full(self, page: Page) -> None:
        """Let the firmware write no more to this page; one bit."""
        self._set_state(page.index, PageState.FULL, "no room in it")

    def mark_freeing(self, page: Page) -> None:
        """Say that this page's items are being moved; one bit at a time."""
        self._set_state(page.index, PageState.FULL, "before it is freed")
        self._set_state(page.index, PageState.FREEING, "its items are being moved")

    def _set_state(self, page: int, state: PageState, reason: str) -> None:
        word = STATE_WORDS[state].to_bytes(4, "little")
        self.program(page, 0, word[:1], reason)

    def kill(self, page: Page, reason: str) -> None:
        """Make a page with items free. The CRC does it; the state says it to simple readers."""
        if page.raw[28:32] == bytes(4):
            raise OtaError("nvs-invalid")
        self.program(page.index, 28, bytes(4), f"{reason}: its CRC")
        self._set_state(page.index, PageState.CORRUPT, f"{reason}: its state")

    def blank_page(self) -> int:
        """A free page without a single byte, erased now if there is none."""
        free = [page for page in self.pages() if not page.live]
        for page in free:
            if page.state is PageState.BLANK:
                return page.index
        if not free:
            raise OtaError("nvs-invalid", "The board's NVS has no free page.")
        index = free[0].index
        if free[0].raw[:4] != b"\xff" * 4:
            # A torn erase must not bring a dead page back.
            self.program(index, 28, bytes(4), "a dead page's CRC")
        start = self.base + index * PAGE_BYTES
        self.add([Erase(start, PAGE_BYTES, "a free page that is not blank")])
        return index

    def fill_page(
        self, entries: bytes, nvs: Nvs, version: int, reason: str, *, guard: bool = False
    ) -> int:
        """A free page with everything of an active one but its state's bit; its index.

        guard: with an erased entry behind all others, so that the firmware looks for no older
        form of the last item.
        """
        seq = max((page.seq for page in nvs.order), default=-1) + 1
        if seq >= 0xFFFFFFFF:
            raise OtaError("nvs-invalid", "The page numbers of NVS are used up.")
        index = self.blank_page()
        count = len(entries) // ENTRY_BYTES
        self.program(index, ENTRIES_AT, entries, f"{reason}: items")
        bitmap = written_bitmap(count)
        if guard:
            self.program(index, ENTRIES_AT + len(entries), bytes(ENTRY_BYTES), f"{reason}: guard")
            bitmap[count // 4] &= ~(3 << count % 4 * 2)
            count += 1
        self.program(index, BITMAP_AT, bytes(bitmap[: -(-count // 4)]), f"{reason}: bitmap")
        header = header_bytes(PageState.ACTIVE, seq, version)
        self.program(index, 4, header[4:], f"{reason}: header")
        return index

    def enliven(self, index: int, reason: str) -> None:
        """Bring a page that `fill_page` has filled to life, as the active one."""
        self._set_state(index, PageState.ACTIVE, f"{reason}: alive")


def headers(page: Page) -> list[Item]:
    """Items whose header is WRITTEN with its right CRC on flash, torn ones included, by a walk
    like the firmware's."""
    found: list[Item] = []
    index = 0
    while page.live and index < min(page.next_free, ENTRY_COUNT):
        raw = page.entry(index)
        whole = page.on_flash[index] == EntryState.WRITTEN and has_crc(raw)
        if whole and 0 < raw[2] <= ENTRY_COUNT - index:
            data = page.entry(index, raw[2])
            found.append(Item(index, raw[0], raw[1], raw[2], raw[3], raw[8:24], data))
            index += raw[2]
        else:
            index += 1
    return found
