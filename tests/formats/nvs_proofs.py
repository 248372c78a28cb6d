# SPDX-License-Identifier: GPL-3.0-or-later
"""What must hold of every change of NVS, at every cut: judged by the tests' own firmware.

Every version's whole start is asked, at a first and at a second start in a row.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterable, Iterator

from ota_service.errors import OtaError
from ota_service.formats.flashops import Erase, Program, apply_ops
from ota_service.formats.nvs import NvsEdit, PageState, erase_key, parse_nvs, set_string
from tests.formats.cuts import cut_states
from tests.formats.nvs_firmware import (
    ALL_RULES,
    SZ,
    TO_5_3,
    Firmware,
    Keys,
    NoSpace,
    Rules,
    Start,
    start,
)
from tests.formats.nvs_page import ANY, IDX, PAGE, WRITTEN, N, key_of, whole

BASE = 0x9000
NS, KEY = b"VIAM_NS", b"OTA_VERSION"
VERSION = (NS, KEY, SZ)
Contents = dict[tuple[bytes, bytes], tuple[int, bytes]]


def booted(data: bytes, *, rules: Rules = TO_5_3) -> tuple[Contents, bytes]:
    """What an app reads after a start, and the flash as that start leaves it."""
    flash = bytearray(data)
    found = Firmware(flash, rules=rules).read()
    return found, bytes(flash)


def starts(data: bytes, rules: Rules) -> tuple[Start, Start]:
    """Two starts in a row."""
    first = start(data, rules)
    return first, first if first.error or first.flash == data else start(first.flash, rules)


def written_on(data: bytes, rules: Rules) -> Keys | None:
    """What is read after the app has started, written WIFI_SSID, and started again.

    None where it had no room.
    """
    app = Firmware(bytearray(data), rules=rules)
    try:
        app.set_item(NS, b"WIFI_SSID", SZ, b"elsewhere\0")
    except NoSpace:
        return None
    return start(bytes(app.flash), rules).keys


def others(keys: Keys) -> Keys:
    """All but the version, of whatever type that is."""
    return {place: value for place, value in keys.items() if place[:2] != (NS, KEY)}


def standing(data: bytes, name: bytes, key: bytes) -> int:
    """How many whole items of that name stand WRITTEN, whichever of them the firmware reads."""
    ns = Firmware(bytearray(data)).namespaces().get(name)
    count = 0
    for at in range(0, len(data), PAGE):
        if data[at] not in (0xFE, 0xFC, 0xF8):
            continue
        for i in range(N):
            raw = data[at + 64 + i * 32 : at + 96 + i * 32]
            state = data[at + 32 + i // 4] >> i % 4 * 2 & 3
            if state == WRITTEN and raw[:1] == bytes([ns or 0]) and key_of(raw) == key:
                count += raw[3] == ANY and whole(raw)
    return count


def check_operations(data: bytes, edit: NvsEdit) -> None:
    """The operations make the result, by NOR rules, and each reads back as its own data."""
    flash = bytearray(data)
    for op in edit.ops:
        apply_ops(flash, [op], BASE)
        place = op.offset - BASE
        if isinstance(op, Program):
            assert flash[place : place + len(op.data)] == op.data, op
        else:
            assert isinstance(op, Erase)
    assert flash == edit.result


class Verdict:
    """What must be read of a board that had `data`: the version old or new, all else as it was.

    Where the firmware's own second start reads something else than its first one, without us,
    either is right; and what these rules had lost by themselves then may be there all the same,
    as another version reads it.
    """

    def __init__(self, data: bytes, value: bytes | None, rules: Rules) -> None:
        self.rules = rules
        self.before = starts(data, rules)
        self.sound = not any(one.error for one in self.before)
        self.others = tuple(others(one.keys) for one in self.before)
        self.elsewhere = [
            others(one.keys) for version in ALL_RULES for one in starts(data, version)
        ]
        self.versions = {one.keys.get(VERSION) for one in self.before}
        self.new = None if value is None else value + b"\0"
        # A free entry that only seems blank swallows what an app writes, with us or without us.
        after = written_on(data, rules) if self.sound else None
        self.writes = after is None or (NS, b"WIFI_SSID", SZ) in after

    def check(self, state: bytes, name: str, *, new: bool = False) -> None:
        """Both starts; new: only the new value is right."""
        for number, one in enumerate(starts(state, self.rules), 1):
            words = f"{self.rules.name}, {name}, start {number}"
            assert not one.error, (words, one.error)
            version = one.keys.get(VERSION)
            assert version == self.new or (not new and version in self.versions), (
                words, version, self.versions, self.new,
            )  # fmt: skip
            self.same(one.keys, words)

    def same(self, keys: Keys, words: str, without: tuple[bytes, ...] = ()) -> None:
        """All other keys, but for those `without`."""
        have, (first, second) = others(keys), self.others
        if have == first:
            return
        for place in have.keys() | first.keys() | second.keys():
            if place[1] not in without:
                right = [first.get(place), second.get(place)]
                if right == [None, None]:
                    right += [keys.get(place) for keys in self.elsewhere]
                assert have.get(place) in right, (words, place, have.get(place), right)

    def check_life(self, state: bytes, name: str) -> None:
        """The app goes on writing after its start at a cut; nothing else may suffer."""
        if not self.writes:
            return
        started = start(state, self.rules)
        again = written_on(started.flash, self.rules)
        if again is not None:
            words = f"{self.rules.name}, {name}, written on"
            assert again[NS, b"WIFI_SSID", SZ] == b"elsewhere\0", words
            assert again.get(VERSION) == started.keys.get(VERSION), words
            self.same(again, words, (b"WIFI_SSID",))


def check_cuts(
    data: bytes,
    edit: NvsEdit,
    value: bytes | None,
    *,
    torn: int,
    second: int,
    rules: Iterable[Rules],
    rng: random.Random,
) -> int:
    """Every cut of `edit` gives the old or the new value, and every other key; their number.

    After the start of the firmware at a cut the app can go on writing: now and then it does.
    second: at so many of the cuts the change is begun again, and cut again everywhere.
    """
    verdicts = [verdict for one in rules if (verdict := Verdict(data, value, one)).sound]
    states = dict(cut_states(data, edit.ops, BASE, seed=rng.randrange(1 << 30), torn_each=torn))
    for name in rng.sample(sorted(states), min(second, len(states))):
        states.update(cut_again(states[name], name, value))
    for state, name in {state: name for name, state in states.items()}.items():
        for verdict in verdicts:
            verdict.check(state, name)
            if rng.random() < 0.02:
                verdict.check_life(state, name)
    for verdict in verdicts:
        verdict.check(edit.result, "done", new=True)
    return len(states)


def cut_again(state: bytes, name: str, value: bytes | None) -> Iterator[tuple[str, bytes]]:
    """What can become of a cut board whose change is resumed without a start, and cut again."""
    try:
        again = change(state, None if value is None else value.decode())
    except OtaError as error:
        raise AssertionError(f"{name}: refused at our own cut: {error}") from error
    for words, cut in cut_states(state, again.ops, BASE, seed=len(name), torn_each=1):
        yield f"{name}, then {words}", cut
    yield f"{name}, then done", again.result


def change(data: bytes, value: str | None) -> NvsEdit:
    """`set_string` or `erase_key` of the version."""
    if value is None:
        return erase_key(data, base=BASE, namespace=NS.decode(), key=KEY.decode())
    return set_string(data, base=BASE, namespace=NS.decode(), key=KEY.decode(), value=value)


def prove(
    data: bytes,
    value: str | None,
    *,
    torn: int = 2,
    second: int = 1,
    seed: int = 0,
    rules: Iterable[Rules] = ALL_RULES,
) -> NvsEdit:
    """Change the version and check everything about it."""
    rng = random.Random(seed)
    edit = change(data, value)
    check_operations(data, edit)
    encoded = None if value is None else value.encode()
    check_cuts(data, edit, encoded, torn=torn, second=second, rules=rules, rng=rng)
    nvs = parse_nvs(edit.result)
    assert nvs.get_string(NS.decode(), KEY.decode()) == value
    assert nvs.free_pages >= 1
    assert standing(edit.result, NS, KEY) == (value is not None)
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
        place = app.locate(ns, key, ANY)
        kind = place[0].raw(place[1])[1] if place else None
        what = rng.random()
        if what < 0.4:
            app.set_item(name, key + b"s", SZ, self.value() + b"\0")
        elif what < 0.5:
            app.set_item(name, key + b"n", 0x04, rng.randbytes(4))
        elif what < 0.6 and kind in (None, IDX):
            size = rng.choice([200, 3000, 6000])
            app.set_blob(name, key, rng.choice([rng.randbytes(rng.randrange(size)), b"\xff" * 200]))
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
            with contextlib.suppress(NoSpace):  # what a refused write leaves is part of life
                self.step(app)
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
