# SPDX-License-Identifier: GPL-3.0-or-later
"""What must hold of every change of NVS, at every cut: judged by the tests' own firmware."""

from __future__ import annotations

import contextlib
import random

from ota_service.formats.flashops import Erase, Program, apply_ops
from ota_service.formats.nvs import NvsEdit, PageState, erase_key, parse_nvs, set_string
from tests.formats.cuts import cut_states
from tests.formats.nvs_firmware import IDX, SZ, Firmware, NoSpace, StopsAtStart

BASE = 0x9000
NS, KEY = b"VIAM_NS", b"OTA_VERSION"
Contents = dict[tuple[bytes, bytes], tuple[int, bytes]]


def booted(data: bytes, *, legacy: bool = False) -> tuple[Contents, bytes]:
    """What an app reads after a start, and the flash as that start leaves it."""
    flash = bytearray(data)
    found = Firmware(flash, legacy=legacy).read()
    return found, bytes(flash)


def written_on(data: bytes, *, legacy: bool) -> Contents | None:
    """What is read after the app has started, written WIFI_SSID, and started again.

    None where it had no room.
    """
    app = Firmware(bytearray(data), legacy=legacy)
    try:
        app.set_item(NS, b"WIFI_SSID", SZ, b"elsewhere\0")
    except NoSpace:
        return None
    return Firmware(app.flash, legacy=legacy).read()


def check_operations(data: bytes, edit: NvsEdit) -> None:
    """The operations make the result, by NOR rules, and each reads back as its own data."""
    flash = bytearray(data)
    for op in edit.ops:
        apply_ops(flash, [op], BASE)
        start = op.offset - BASE
        if isinstance(op, Program):
            assert flash[start : start + len(op.data)] == op.data, op
        else:
            assert isinstance(op, Erase)
    assert flash == edit.result


def check_cuts(
    data: bytes, edit: NvsEdit, value: bytes | None, *, torn: int, legacy: bool, rng: random.Random
) -> int:
    """Every cut of `edit` gives the old or the new value, and every other key; their number.

    After the start of the firmware at a cut the app can go on writing: now and then it does,
    and nothing else may suffer.
    """
    before, _ = booted(data, legacy=legacy)
    old = before.get((NS, KEY))
    others = {place: entry for place, entry in before.items() if place != (NS, KEY)}
    new = None if value is None else (SZ, value + b"\0")
    # A free entry that only seems blank swallows what an app writes, with us or without us.
    after = written_on(data, legacy=legacy)
    sound = after is None or (NS, b"WIFI_SSID") in after
    seen = 0
    for name, state in cut_states(
        data, edit.ops, BASE, seed=rng.randrange(1 << 30), torn_each=torn
    ):
        found, flash = booted(state, legacy=legacy)
        got = found.pop((NS, KEY), None)
        assert got in (old, new), (name, old, new, got)
        assert found == others, name
        seen += 1
        if sound and rng.random() < 0.05:
            again = written_on(flash, legacy=legacy)
            if again is None:
                continue
            assert again.pop((NS, b"WIFI_SSID")) == (SZ, b"elsewhere\0")
            assert again.pop((NS, KEY), None) == got, name
            rest = {place: entry for place, entry in others.items() if place[1] != b"WIFI_SSID"}
            assert again == rest, name
    found, _ = booted(edit.result, legacy=legacy)
    assert found.pop((NS, KEY), None) == new
    assert found == others
    return seen


def change(data: bytes, value: str | None) -> NvsEdit:
    """`set_string` or `erase_key` of the version."""
    if value is None:
        return erase_key(data, base=BASE, namespace=NS.decode(), key=KEY.decode())
    return set_string(data, base=BASE, namespace=NS.decode(), key=KEY.decode(), value=value)


def prove(
    data: bytes, value: str | None, *, torn: int = 2, seed: int = 0, legacy: bool | None = None
) -> NvsEdit:
    """Change the version and check everything about it."""
    rng = random.Random(seed)
    edit = change(data, value)
    check_operations(data, edit)
    encoded = None if value is None else value.encode()
    for old_firmware in (False, True) if legacy is None else (legacy,):
        try:
            booted(data, legacy=old_firmware)
        except StopsAtStart:
            continue  # as it was; nothing can be said of changes to it
        check_cuts(data, edit, encoded, torn=torn, legacy=old_firmware, rng=rng)
    nvs = parse_nvs(edit.result)
    assert nvs.get_string(NS.decode(), KEY.decode()) == value
    assert nvs.free_pages >= 1
    active = [page for page in nvs.order if page.state is PageState.ACTIVE]
    assert active in ([], [nvs.last])
    assert not change(edit.result, value).ops
    return edit


class App:
    """An app's life on a flash, by a random number generator; it may be cut in a write."""

    def __init__(self, pages: int, seed: int, start: bytes | None = None) -> None:
        self.rng = random.Random(seed)
        self.flash = bytearray(start if start is not None else b"\xff" * (pages * 4096))

    def value(self) -> bytes:
        size = self.rng.choice([0, 1, 20, 31, 32, 33, 60, 200, 700])
        return bytes(self.rng.randrange(32, 127) for _ in range(size))

    def step(self, app: Firmware) -> None:
        """One thing that an app does."""
        rng = self.rng
        name = rng.choice([NS, NS, b"nvs.net80211", b"phy"])
        key = b"key%d" % rng.randrange(9)
        ns = app.namespace(name)
        place = app.locate(ns, key, None)
        kind = place[0].raw(place[1])[1] if place else None
        what = rng.random()
        if what < 0.4:
            app.set_item(name, key + b"s", SZ, self.value() + b"\0")
        elif what < 0.5:
            app.set_item(name, key + b"n", 0x04, rng.randbytes(4))
        elif what < 0.6 and kind in (None, IDX):
            app.set_blob(name, key, rng.choice([rng.randbytes(rng.randrange(3000)), b"\xff" * 200]))
        elif what < 0.75:
            app.set_item(NS, KEY, SZ, b"%d.%d" % (rng.randrange(9), rng.randrange(99)) + b"\0")
        elif what < 0.85:
            app.set_item(NS, b"WIFI_SSID", SZ, self.value() + b"\0")
        else:
            app.delete(name, rng.choice([key, key + b"s", key + b"n"]))

    def live(self, steps: int, *, cut: bool) -> bytes:
        """Some steps; with `cut` the last one is cut in one of its writes, perhaps torn."""
        app = Firmware(self.flash)
        for _ in range(steps):
            try:
                self.step(app)
            except NoSpace:
                break
        if not cut:
            return bytes(self.flash)
        writes: list[tuple[bytes, int, bytes | None]] = []

        def note(place: int, data: bytes | None) -> None:
            writes.append((bytes(self.flash), place, data))

        app.on_write = note
        with contextlib.suppress(NoSpace):
            self.step(app)
        if not writes:
            return bytes(self.flash)
        before, place, data = self.rng.choice(writes)
        state = bytearray(before)
        size = 4096 if data is None else len(data)
        share = self.rng.choice([0.0, 0.1, 0.5, 0.9])
        whole = self.rng.random() < 0.5
        length = self.rng.randrange(size + 1)
        for i in range(size):
            target = 0xFF if data is None else before[place + i] & data[i]
            change = before[place + i] ^ target
            if whole:
                mask = 0xFF if i < length else 0
            else:
                mask = sum(1 << bit for bit in range(8) if self.rng.random() < share)
            state[place + i] ^= change & mask
        self.flash = state
        return bytes(state)
