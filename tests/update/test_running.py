# SPDX-License-Identifier: GPL-3.0-or-later
"""What is said to run, where the bootloader or the app says little: never too much.

The judge is the simulator's bootloader, which shares no code with `formats/`. The silent
bootloaders are the Arduino core's, the apps without a descriptor those of ESP-IDF before 3.3.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp32_sim.bootmodel import ABORTED, NEW, PENDING_VERIFY, UNDEFINED, Select, boot
from esp32_sim.chips import CHIP_NAMES, chip_of
from esp32_sim.factory import build_nvs, default_nvs, make_flash
from esp32_sim.flash import NorFlash
from esp32_sim.imagecheck import BadImageError, verify_app
from esp32_sim.images import assemble, build_app
from esp32_sim.layouts import LAYOUTS, Layout, Partition, encode_table
from esp32_sim.nvsmodel import NvsValue
from ota_service.errors import OtaError
from ota_service.formats.chips import CHIP_BY_ID
from ota_service.formats.flashops import apply_ops
from ota_service.formats.otadata import boots_after
from ota_service.formats.partitions import Partition as OurPartition
from ota_service.formats.partitions import parse_partition_table
from ota_service.link.chip import ChipInfo
from ota_service.update.bootable import candidate
from ota_service.update.carry_out import plan_go_back, plan_rollback
from ota_service.update.facts import BoardFacts, SlotFact
from ota_service.update.first_look import FirstLook, first_look
from ota_service.update.inspect import inspect
from ota_service.update.plan import RecordVersion, WatchBoot, WriteSlot
from tests.support.memory_board import Firmware, MemoryBoard
from tests.support.memory_flash import MemoryFlash

SIZE = 20_000
OLD = build_app(version="1.0.0", size_bytes=SIZE)
FIRMWARE = Firmware.of(build_app(version="1.1.0", size_bytes=SIZE, seed=1))
OTHER = build_app(version="0.9.0", size_bytes=SIZE, seed=5)
_WITH_TEST_APP = Layout(
    "test app",
    4 << 20,
    (
        *(part for part in LAYOUTS["micro-rdk"].partitions if part.type == 1),
        Partition("ota_0", 0, 0x10, 0x100000, 0x40000),
        Partition("ota_1", 0, 0x11, 0x140000, 0x40000),
        Partition("test", 0, 0x20, 0x180000, 0x40000),
    ),
)


def resealed(image: bytes | bytearray) -> bytearray:
    """An image whose bytes were changed, with its checksum and digest made right again."""
    import hashlib

    data = bytearray(image)
    at, checksum = 24, 0xEF
    for _ in range(data[1]):
        (size,) = struct.unpack_from("<I", data, at + 4)
        for byte in data[at + 8 : at + 8 + size]:
            checksum ^= byte
        at += 8 + size
    end = at + 16 - at % 16
    data[end - 1] = checksum
    if data[23]:
        data[end : end + 32] = hashlib.sha256(data[:end]).digest()
    return data


def bare(image: bytes | bytearray) -> bytes:
    """The same app without its descriptor, as ESP-IDF built them before 3.3."""
    data = bytearray(image)
    data[32:288] = bytes(256)
    return bytes(resealed(data))


def entries(layout: str, *selects: Select | None) -> dict[int, bytes]:
    """Flash address -> otadata's entries."""
    at = LAYOUTS[layout].find("otadata").offset
    return {at + i * 0x1000: e.encode() for i, e in enumerate(selects) if e is not None}


def patched(target: MemoryBoard, places: dict[int, bytes]) -> MemoryBoard:
    """Overwrite bytes."""
    for at, data in places.items():
        target.data[at : at + len(data)] = data
    return target


@pytest.mark.parametrize("layout", ["guide", "micro-rdk", "micro-rdk-8mb"])
@pytest.mark.parametrize("slot", ["ota_0", "ota_1"])
def test_a_silent_bootloader_under_an_app_without_descriptor_keeps_what_runs(
    layout: str, slot: str
) -> None:
    """Such a board was called dead, and force wrote the very slot that ran."""
    flash = make_flash(layout, app=bare(OLD), slot=slot)
    target = MemoryBoard(flash, silent=True)
    assert target.boot().slot == slot
    for force in (False, True):
        found, made = target.plan(FIRMWARE, "1.1.0", force=force)
        assert found.running.partition is not None
        assert (found.running.partition.label, found.running.evidence) == (slot, "verified")
        written = [step.slot.label for step in made.steps if isinstance(step, WriteSlot)]
        assert written
        assert slot not in written
    target.carry_out(made, FIRMWARE)
    assert target.boot().slot == written[0]
    offset = LAYOUTS[layout].find(slot).offset
    assert target.data[offset : offset + SIZE] == flash[offset : offset + SIZE]


_CONTENTS = ("bare", "whole", "damaged", "blank", "no magic", "other chip")


@lru_cache
def _content(kind: str, seed: int) -> bytes:
    image = bytearray(build_app(version=f"{seed}", size_bytes=SIZE, seed=seed))
    match kind:
        case "bare":
            return bare(bytes(image))
        case "damaged":
            image[seed * 977 % SIZE] ^= 1 << seed % 8
        case "no magic":
            image[0] = 0
        case "other chip":
            image[12] = 9
            return bytes(resealed(image))
        case "blank":
            return b"\xff" * SIZE
    return bytes(image)


@lru_cache
def _guide() -> bytes:
    """A board of the guide's layout, which takes longer to make than to try."""
    return bytes(make_flash("guide"))


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(
    contents=st.tuples(*[st.sampled_from(_CONTENTS)] * 3),
    rollback=st.booleans(),
    silent=st.booleans(),
    state=st.sampled_from([None, (2, UNDEFINED), (2, ABORTED), (2, NEW)]),
    force=st.booleans(),
    rescue=st.booleans(),
)
def test_no_update_ever_writes_what_boots(
    contents: tuple[str, str, str],
    rollback: bool,
    silent: bool,
    state: tuple[int, int] | None,
    force: bool,
    rescue: bool,
) -> None:
    """Every mixture of slots, under a bootloader that prints and one that does not, asked in
    every way: what boots is not what a plan writes."""
    layout = LAYOUTS["guide"]
    target = MemoryBoard(bytearray(_guide()), rollback=rollback, silent=silent)
    for seed, (label, kind) in enumerate(
        zip(("factory", "ota_0", "ota_1"), contents, strict=True), 11
    ):
        patched(target, {layout.find(label).offset: _content(kind, seed)})
    if state is not None:
        patched(target, entries("guide", Select.make(1), Select.make(*state)))
    found, made = target.plan(FIRMWARE, "1.1.0", force=force, rescue=rescue)
    runs = MemoryBoard(bytearray(target.data), rollback=rollback).boot()
    written = [step.slot.offset for step in made.steps if isinstance(step, WriteSlot)]
    assert runs.offset not in written
    if found.running.partition is not None and not found.pending:
        assert found.running.partition.offset == runs.offset
    if found.running.dead:
        assert runs.offset is None
    if rescue:
        assert bool(written) == (runs.offset is None and found.running.dead)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    position=st.integers(0, 2_000 - 1),
    value=st.integers(0, 255),
    sealed=st.booleans(),
    count=st.none() | st.integers(0, 255),
)
def test_an_image_is_whole_as_the_bootloader_finds_it(
    position: int, value: int, sealed: bool, count: int | None
) -> None:
    """One byte changed anywhere, with the sums made right or not: both beliefs agree. It is unclear
    only where a segment may go elsewhere, or where there is none."""
    data = bytearray(bare(build_app(size_bytes=2_000)))
    position %= len(data)
    (behind,) = struct.unpack_from("<I", data, 28)
    headers = (*range(24, 32), *range(32 + behind, 40 + behind))
    data[position] = value
    if count is not None:
        data[1] = count
    data[12:18] = bytes(6)  # chip and revisions are other questions
    if sealed:
        try:
            data = resealed(data)
        except (struct.error, IndexError):
            return
    slot = bytes(data).ljust(1 << 20, b"\xff")
    place = OurPartition("ota_0", 0, 0x10, 0, len(slot), 0)
    chip = ChipInfo("ESP32", 0, "24:0a:c4:00:00:01", 301, len(slot))
    ours = candidate(MemoryFlash(slot), place, chip, 0).boots
    try:
        verify_app(NorFlash(bytearray(slot)), 0, len(slot))
        theirs = True
    except (BadImageError, ValueError):  # or a segment that ends beyond the flash
        theirs = False
    assert ours == ("yes" if theirs else "no") or (
        ours == "unclear" and (position in headers or position == 1 or count is not None)
    )


def silent_board(app: bytes, chip: str) -> tuple[MemoryFlash, ChipInfo]:
    """Two slots, otadata names ota_1, which holds `app`; ota_0 holds one that boots."""
    facts = chip_of(chip)
    other = build_app(version="1.0.0", size_bytes=2_000, chip=chip)
    flash = make_flash("micro-rdk", app=other, other_app=app, chip=chip)
    for at, data in entries("micro-rdk", Select.make(2)).items():
        flash[at : at + len(data)] = data
    blocks = 0 if facts.checks_blocks else None
    mac, revision = "24:0a:c4:00:00:01", 100 * facts.revision[0] + facts.revision[1]
    info = ChipInfo(facts.title, facts.id, mac, revision, len(flash), block_revision=blocks)
    return MemoryFlash(flash), info


@pytest.mark.parametrize("chip", CHIP_NAMES)
def test_ordinary_apps_leave_no_doubt(chip: str) -> None:
    """Of every chip and size, behind a bootloader that prints nothing."""
    for size_bytes in (2_000, 80_000):
        app = build_app(version="1.1.0", size_bytes=size_bytes, chip=chip)
        found = inspect(*silent_board(app, chip), facts=BoardFacts(silent=True))
        assert found.running.partition is not None, found.running.why
        assert (found.running.partition.label, found.running.evidence) == ("ota_1", "verified")


# An app's chip; its segments behind a first one with the app's descriptor, None: alone in the
# image is a short one; whether its descriptor is one; words. Source: ESP-IDF, esp_image_format.c,
# verify_load_addresses (v4.4.8, v5.1.4, master), verify_segment_header (master),
# process_segment_data (v5.1.5: block revisions are read whatever stands there).
_REFUSED_BY_SOME: list[tuple[str, tuple[tuple[int, int], ...] | None, bool, str]] = [
    ("esp32", ((0x3FFDC000, 0x800), (0x40080000, 64)), True, "segment 1 goes to 0x3ffdc000"),
    ("esp32", ((0x3FFB0000, 64), (0x3FFF0000, 64)), True, "segment 2 goes to 0x3fff0000"),
    ("esp32", ((0x40078000, 64),), True, "segment 1 goes to 0x40078000"),
    ("esp32", ((0x3FFAFF00, 0x30000),), True, "segment 1 goes to 0x3ffaff00"),
    ("esp32c3", ((0x403CF000, 64),), True, "segment 1 goes to 0x403cf000"),
    ("esp32s3", ((0x20000000, 64),), True, "segment 1 goes to 0x20000000"),
    ("esp32", None, True, "no room for an app descriptor"),
    ("esp32", (), False, ""),
    ("esp32c3", (), False, "without an app descriptor"),
    ("esp32c6", (), False, "without an app descriptor"),
    ("esp32", ((0x0, 64), (0x20000000, 0), (0x400C0000, 64), (0x50000000, 64)), True, ""),
]


@pytest.mark.parametrize(("chip", "more", "described", "words"), _REFUSED_BY_SOME)
def test_a_segment_that_some_bootloader_does_not_load_leaves_a_doubt(
    chip: str, more: tuple[tuple[int, int], ...] | None, described: bool, words: str
) -> None:
    """The slot that otadata names was taken for the one that runs, and the other one, which ran,
    was written."""
    facts = chip_of(chip)
    head = build_app(size_bytes=2_000, chip=chip)[32:288] if described else bytes(256)
    first = bytes(64) if more is None else head + bytes(64)
    segments = [(facts.memory.drom + 32, first), *((at, bytes(n)) for at, n in more or ())]
    flash, info = silent_board(assemble(segments, 0, chip_id=facts.id), chip)
    runs = inspect(flash, info, facts=BoardFacts(silent=True)).running
    if not words:
        assert runs.partition is not None
        assert runs.partition.label == "ota_1"
        return
    assert runs.partition is None
    assert runs.why is not None
    assert "ota_1 holds an image" in str(runs.why)
    assert words in str(runs.why)
    if more is None or not described:
        return
    assert boot(flash.data, chip=facts).slot == "ota_0", "the slot that would have been written"


def test_an_image_that_is_known_to_be_there_need_not_boot_for_that() -> None:
    """Its digest tells which one it is, and nothing of where its segments go."""
    head = OLD[32:288]
    app = assemble([(0x3F400020, head + bytes(64)), (0x3FFDC000, bytes(64))], 0x3FFDC000)
    flash, chip = silent_board(app, "esp32")
    runs = inspect(
        flash, chip, facts=BoardFacts(silent=True), firmware=Firmware.of(app).known
    ).running
    assert runs.partition is None
    assert "ota_1 holds an image whose segment 1 goes to" in str(runs.why)


def test_a_silent_bootloader_gets_no_image_that_it_may_pass_over() -> None:
    """It would start the old app, whose words would be taken for the new one's. One that prints
    may get it: there the way back is seen."""
    app = assemble([(0x3F400020, OLD[32:288] + bytes(64)), (0x3FFDC000, bytes(64))], 0x3FFDC000)
    for silent in (True, False):
        target = MemoryBoard(make_flash("micro-rdk", app=OLD), silent=silent)
        _, made = target.plan(Firmware.of(app), "1.1.0", facts=BoardFacts(silent=silent))
        assert made.code == ("image-corrupt" if silent else None)
        assert made.action == ("refuse" if silent else "write")


def test_an_image_without_segments_leaves_a_doubt() -> None:
    """process_segments of ESP-IDF finds no fault in it: it starts, and ota_0 does not run."""
    flash, chip = silent_board(assemble([], 0), "esp32")
    assert boot(bytearray(flash.data)).slot == "ota_1"
    runs = inspect(flash, chip, facts=BoardFacts(silent=True)).running
    assert runs.partition is None
    assert "ota_1 holds an image without segments" in str(runs.why)


@pytest.mark.parametrize("whole", [True, False])
def test_a_test_app_is_the_last_that_boots(whole: bool) -> None:
    """bootloader_utility_load_boot_image: the test app where nothing else boots. Such a board is
    not dead."""
    flash = make_flash(_WITH_TEST_APP, app=OLD)
    at, test = (_WITH_TEST_APP.find(label).offset for label in ("ota_0", "test"))
    flash[at] = 0xFF
    flash[test : test + SIZE] = (OLD if whole else bytes(SIZE))[:SIZE].ljust(SIZE, b"\xff")
    target = MemoryBoard(flash, silent=True)
    assert (target.boot().slot == "test") == whole
    found, made = target.plan(FIRMWARE, "1.1.0", rescue=True)
    assert found.running.dead != whole
    assert made.code == ("otadata-invalid" if whole else None)


@pytest.mark.parametrize("layout", ["guide", "micro-rdk"])
def test_a_restart_that_starts_another_app_takes_something_away(layout: str) -> None:
    """The entry for ota_1 is PENDING_VERIFY, ota_1 is not whole, and ota_0 runs. Without the entry
    the bootloader starts the factory app first (bootloader_utility_get_selected_boot_partition),
    and only without one ota_0."""
    flash = make_flash(layout, app=OLD, slot="factory" if layout == "guide" else "ota_0")
    at = LAYOUTS[layout].find("ota_0").offset
    flash[at : at + len(OTHER)] = OTHER
    target = MemoryBoard(flash, rollback=True, silent=True)
    patched(target, entries(layout, None, Select.make(2, PENDING_VERIFY)))
    found = inspect(MemoryFlash(target.data), target.chip, facts=BoardFacts(silent=True))
    assert found.running.partition is not None
    assert found.running.partition.label == "ota_0"
    assert target.boot().slot == ("factory" if layout == "guide" else "ota_0")
    assert found.pending == (layout == "guide")


def test_a_silent_rollback_bootloader_that_went_back_while_it_was_looked_at() -> None:
    """The look itself passes the bootloader: what runs is read from otadata after it."""
    layout = "micro-rdk"
    target = MemoryBoard(make_flash(layout, app=OLD, other_app=OTHER), rollback=True, silent=True)
    patched(target, entries(layout, Select.make(1), Select.make(2, NEW)))

    def look() -> FirstLook:
        target.boot()  # NEW -> PENDING_VERIFY, and the app panics
        target.boot()  # -> ABORTED: the other one runs
        flash.data[:] = target.data
        return FirstLook(app_prints=True)

    flash = MemoryFlash(target.data)
    found = inspect(flash, target.chip, facts=BoardFacts(), firmware=FIRMWARE.known, look=look)
    assert found.running.partition is not None
    assert found.running.partition.label == "ota_0"
    assert found.otadata is not None
    assert found.otadata.newest_rejected


def test_a_board_that_never_left_download_mode_is_not_called_dead() -> None:
    """Nothing was seen of its start, so its log may yet say otherwise."""
    target = dead_guide()
    look = FirstLook(restarted=False)
    found = inspect(MemoryFlash(target.data), target.chip, facts=BoardFacts(), look=lambda: look)
    assert found.running.partition is None
    assert not found.running.dead


def dead_guide() -> MemoryBoard:
    """A board whose one app is damaged."""
    target = MemoryBoard(make_flash("guide"), silent=True)
    target.data[LAYOUTS["guide"].find("factory").offset + 0x1000] ^= 1
    return target


def test_something_that_prints_is_not_called_dead() -> None:
    """No whole image is found, and yet an app prints: nothing is written, rescued or not."""
    target = dead_guide()
    flash = MemoryFlash(target.data)
    found = inspect(flash, target.chip, facts=BoardFacts(), look=lambda: FirstLook(app_prints=True))
    assert found.running.partition is None
    assert not found.running.dead
    assert found.running.why is not None
    assert "something on the board prints" in found.running.why.message


def test_an_image_for_another_chip_leaves_a_doubt_where_the_bootloader_is_silent() -> None:
    """Old bootloaders do not look at the chip id: it cannot be told what runs, so nothing is
    written, and the words say why."""
    image = bytearray(OLD)
    image[12] = 9
    target = MemoryBoard(
        make_flash("micro-rdk", app=bytes(resealed(image)), other_app=OTHER), silent=True
    )
    patched(target, entries("micro-rdk", Select.make(1)))
    for force, rescue in ((False, False), (True, False), (False, True)):
        found, made = target.plan(FIRMWARE, "1.1.0", force=force, rescue=rescue)
        assert (made.action, made.code) == ("refuse", "otadata-invalid")
        assert made.error is not None
        assert "ota_0 holds an image for another chip" in made.error.message
        assert not found.running.dead


# --- the log of a board that does not start

ROM = [
    "ets Jul 29 2019 12:21:46",
    "",
    "rst:0x1 (POWERON_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)",
    "configsip: 0, SPIWP:0xee",
    "clk_drv:0x00,q_drv:0x00,d_drv:0x00,cs0_drv:0x00,hd_drv:0x00,wp_drv:0x00",
    "mode:DIO, clock div:2",
    "load:0x3fff0030,len:7092",
    "ho 0 tail 12 room 4",
    "entry 0x4008069c",
]
CRAMPED = [
    "I (31) boot: ESP-IDF v5.1.4 2nd stage bootloader",
    "I (31) boot.esp32: SPI Flash Size : 2MB",
    "E (45) flash_parts: partition 3 invalid - offset 0x20000 size 0x377000 exceeds flash chip "
    "size 0x200000",
    "E (55) boot: Failed to verify partition table",
    "E (60) boot: load partition table error!",
]


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (CRAMPED, "flash-size"),
        (["I (31) boot: x", *CRAMPED[3:]], "partition-table-invalid"),
        (["E (45) flash_parts: partition table MD5 doesn't match"], "partition-table-invalid"),
        (["invalid header: 0xffffffff"] * 3, "otadata-invalid"),
        (["flash read err, 1000", "ets_main.c 371"], "otadata-invalid"),
        (["I (31) boot: ESP-IDF v5.1.4 2nd stage bootloader", *ROM], "otadata-invalid"),
    ],
)
def test_the_logs_of_boards_that_do_not_start(lines: list[str], code: str) -> None:
    """By the bootloader's and the ROM's own words, before any write."""
    seen = first_look([*filter(None, ROM), *filter(None, lines)], None)
    assert seen.stuck is not None
    assert seen.stuck.code == code
    assert not seen.app_prints


@pytest.mark.parametrize(
    "line",
    [
        "I (900) diag: last start: E (45) flash_parts: partition 3 invalid - exceeds flash chip",
        "the server said: invalid header: 0xffffffff",
        "slave> E (60) boot: load partition table error!",
        "Hello from an Arduino sketch",
    ],
)
def test_an_app_that_quotes_such_lines_is_an_app(line: str) -> None:
    """Only what the ROM or a bootloader prints in its own form counts."""
    seen = first_look([*filter(None, ROM), line], None)
    assert seen.stuck is None
    assert seen.app_prints


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("asked", [{}, {"force": True}, {"rescue": True}])
def test_a_bootloader_for_a_smaller_flash_starts_nothing(
    silent: bool, asked: dict[str, bool]
) -> None:
    """Its header says 2 MB, and the table needs 8: flash-size, with what to do, and no write."""
    target = MemoryBoard(make_flash("micro-rdk-8mb", app=OLD), silent=silent)
    target.data[0x1003] = 0x1F  # 2 MB
    flash = MemoryFlash(target.data)
    loops = FirstLook() if silent else first_look([*filter(None, ROM), *CRAMPED], None)
    found = inspect(flash, target.chip, facts=BoardFacts(), look=lambda: loops)
    assert found.running.partition is None
    assert found.problem is not None
    assert found.problem.code == "flash-size"
    assert "--flash-size" in found.problem.remedy
    assert found.version == "1.0.0"
    assert flash.trace == []
    del asked


def test_a_board_that_was_seen_to_load_its_app_is_not_refused_for_its_header() -> None:
    """What the board shows counts more than what a header says."""
    target = MemoryBoard(make_flash("micro-rdk-8mb", app=OLD))
    target.data[0x1003] = 0x1F
    at = LAYOUTS["micro-rdk-8mb"].find("ota_0").offset
    found = inspect(
        MemoryFlash(target.data), target.chip, facts=BoardFacts(), look=lambda: FirstLook(at)
    )
    assert found.problem is None
    assert found.running.evidence == "log"


def test_a_bootloader_that_starts_something_else_leaves_a_doubt() -> None:
    """A test app, or an app of another table: none of the slots may be the one that runs."""
    target = MemoryBoard(make_flash("guide", app=OLD))
    found = inspect(
        MemoryFlash(target.data), target.chip, facts=BoardFacts(), look=lambda: FirstLook(0x310000)
    )
    assert found.running.partition is None
    assert found.running.why is not None
    assert "0x310000" in found.running.why.message


# --- force


def test_force_on_a_board_that_runs_the_image_leaves_its_way_back_alone() -> None:
    """It is restarted and watched; nothing is written, the spare slot least of all."""
    flash = make_flash("micro-rdk", app=FIRMWARE.data, other_app=OTHER, version="1.1.0")
    target = MemoryBoard(flash)
    _, made = target.plan(FIRMWARE, "1.1.0", force=True)
    assert made.action == "none"
    assert any(isinstance(step, WatchBoot) for step in made.steps)
    assert not any(isinstance(step, WriteSlot | RecordVersion) for step in made.steps)


def test_force_switches_where_the_other_slot_holds_the_image() -> None:
    """It means "although the version is equal", not "write it once more"."""
    target = MemoryBoard(make_flash("micro-rdk", app=OLD, other_app=FIRMWARE.data, version="1.1.0"))
    facts = BoardFacts(last_slot="ota_0")
    assert target.plan(FIRMWARE, "1.1.0", facts=facts)[1].action == "none"
    assert target.plan(FIRMWARE, "1.1.0", facts=facts, force=True)[1].action == "switch"


# --- slots by place


def table_with(*apps: tuple[str, int, int], nvs: tuple[tuple[str, int, int], ...] = ()) -> Layout:
    """A layout of 4 MB: nvs, otadata, the OTA slots (label, offset, size), further NVS."""
    parts = [
        Partition("nvs", 1, 2, 0x9000, 0x4000),
        Partition("otadata", 1, 0, 0xD000, 0x2000),
        *(Partition(label, 0, 0x10 + i, at, size) for i, (label, at, size) in enumerate(apps)),
        *(Partition(label, 1, 2, at, size) for label, at, size in nvs),
    ]
    return Layout("made", 0x400000, tuple(parts))


UNEQUAL = table_with(("ota_0", 0x10000, 0x100000), ("ota_1", 0x110000, 0x40000))
TWINS = table_with(("app", 0x10000, 0x100000), ("app", 0x110000, 0x100000))


def made_flash(layout: Layout, apps: dict[int, bytes], **options: object) -> bytearray:
    """A flash with apps at their offsets."""
    flash = make_flash(layout, **options)  # type: ignore[arg-type]
    for part in layout.partitions:
        if part.type == 0:
            flash[part.offset : part.offset + part.size] = b"\xff" * part.size
    for at, data in apps.items():
        flash[at : at + len(data)] = data
    return flash


def test_an_image_that_fits_the_spare_slot_is_written_there() -> None:
    """The smaller slot runs, the larger one is spare; and the other way round it is refused,
    with the slot that is too small and its size."""
    large = Firmware.of(build_app(version="1.1.0", size_bytes=0x80000, seed=1))
    at = UNEQUAL.find("otadata").offset
    small_runs = MemoryBoard(made_flash(UNEQUAL, {0x110000: OLD}))
    patched(small_runs, {at: Select.make(2).encode()})
    _, made = small_runs.plan(large, "1.1.0")
    assert made.action == "write"
    small_runs.carry_out(made, large)
    assert small_runs.boot().slot == "ota_0"
    large_runs = MemoryBoard(made_flash(UNEQUAL, {0x10000: OLD}))
    _, made = large_runs.plan(large, "1.1.0")
    assert (made.action, made.code) == ("refuse", "image-too-large")
    assert f"ota_1 has {0x40000}" in made.reason


def test_of_several_spare_slots_one_that_fits_is_taken() -> None:
    """Three slots; the next one in the circle is too small."""
    layout = table_with(
        ("ota_0", 0x10000, 0x100000), ("ota_1", 0x110000, 0x40000), ("ota_2", 0x150000, 0x100000)
    )
    large = Firmware.of(build_app(version="1.1.0", size_bytes=0x80000, seed=1))
    target = MemoryBoard(made_flash(layout, {0x10000: OLD}))
    _, made = target.plan(large, "1.1.0")
    assert made.slot is not None
    assert made.slot.label == "ota_2"
    target.carry_out(made, large)
    assert target.boot().slot == "ota_2"


@pytest.mark.slow
@pytest.mark.parametrize("runs", [0x10000, 0x110000])
def test_two_slots_of_one_label_are_told_apart(runs: int) -> None:
    """Everything goes by place: the running one is never written, also when the journal knows
    an image under the label alone."""
    target = MemoryBoard(made_flash(TWINS, {runs: OLD}))
    if runs != 0x10000:
        patched(target, {TWINS.find("otadata").offset: Select.make(2).encode()})
    old = Firmware.of(OLD)
    for facts in (
        BoardFacts(),
        BoardFacts({"app": SlotFact(SIZE, old.known.md5, "1.0.0")}, last_slot="app"),
        BoardFacts(
            {f"app@{runs:#x}": SlotFact(SIZE, old.known.md5, "1")}, last_slot=f"app@{runs:#x}"
        ),
    ):
        found, made = target.plan(FIRMWARE, "1.1.0", facts=facts)
        assert found.running.partition is not None
        assert found.running.partition.offset == runs
        assert made.slot is not None
        assert made.slot.offset == 0x10000 + 0x110000 - runs
        assert made.slot.name == f"app@{made.slot.offset:#x}"
        assert target.plan(FIRMWARE, "1.0.0", facts=facts)[1].action == "none"
        held = target.plan(old, "renamed", facts=facts)
        assert held[0].holding == {runs}
        assert held[1].action == "record"
    target.carry_out(made, FIRMWARE)
    assert target.boot().offset == 0x10000 + 0x110000 - runs


def test_what_the_journal_knows_of_a_slot_counts_with_its_digest_only() -> None:
    """Somebody else wrote the slot since: the board is looked at like any other."""
    target = MemoryBoard(make_flash("micro-rdk", app=OLD))
    for md5, evidence in (("0" * 32, "log"), (Firmware.of(OLD).known.md5, "journal")):
        facts = BoardFacts({"ota_0": SlotFact(len(OLD), md5, "1.0.0")}, last_slot="ota_0")
        found = target.look(FIRMWARE, facts)
        assert found.running.evidence == evidence


def test_a_label_alone_is_a_name_where_it_is_the_only_one() -> None:
    """So journals that hold labels keep working."""
    table = parse_partition_table(encode_table(LAYOUTS["guide"].partitions))
    assert [p.name for p in table.partitions] == [p.label for p in table.partitions]


# --- several NVS partitions

SECOND = (("nvs_other", 0x200000, 0x4000), ("nvs_third", 0x204000, 0x3000))


def with_stores(*contents: Mapping[str, NvsValue] | None) -> MemoryBoard:
    """A board with three NVS partitions; None: blank, else the keys of VIAM_NS."""
    layout = table_with(("ota_0", 0x10000, 0x100000), ("ota_1", 0x110000, 0x80000), nvs=SECOND)
    flash = made_flash(layout, {0x10000: OLD}, nvs={})
    for part, keys in zip(("nvs", "nvs_other", "nvs_third"), contents, strict=True):
        place = layout.find(part)
        if keys is not None:
            data = build_nvs(place.size, keys)
            flash[place.offset : place.offset + len(data)] = data
    return MemoryBoard(flash)


KEYS: Mapping[str, NvsValue] = {"WIFI_PASSWORD": "hidden-word"}


@pytest.mark.parametrize(
    ("contents", "version", "store"),
    [
        ((default_nvs(version="1"), None, None), "1", "nvs"),
        ((default_nvs(version="1"), {"OTA_VERSION": "2"}, None), "1", "nvs"),
        ((KEYS, {"OTA_VERSION": "2"}, {"OTA_VERSION": "3"}), "2", "nvs_other"),
        ((None, None, {"OTA_VERSION": "3"}), "3", "nvs_third"),
        ((None, KEYS, None), "", "nvs_other"),
        ((KEYS, KEYS, None), "", "nvs"),
        ((None, None, None), "", "nvs"),
    ],
)
def test_the_version_is_looked_for_in_every_nvs_partition(
    contents: tuple[Mapping[str, NvsValue] | None, ...], version: str, store: str
) -> None:
    """`nvs` first, then the table's order; another one is written only if it has VIAM_NS."""
    target = with_stores(*contents)
    found, made = target.plan(FIRMWARE, "1.1.0")
    assert found.store is not None
    assert (found.version, found.store.label) == (version, store)
    before = bytes(target.data)
    target.carry_out(made, FIRMWARE)
    for part in target.look().table.nvs_stores:  # type: ignore[union-attr]
        changed = before[part.offset : part.end] != target.data[part.offset : part.end]
        assert changed == (part.label == store)
    assert target.look().version == "1.1.0"


def test_secrets_of_every_nvs_partition_are_kept_out_of_logs() -> None:
    """Boards print them at start, wherever they keep them."""
    found = with_stores(default_nvs(version="1"), KEYS, None).look()
    assert b"hidden-word" in found.secrets


def test_a_second_nvs_partition_that_cannot_be_read_stops_no_board() -> None:
    """Random bytes, as behind HMAC encryption: only where nothing else could hold the version."""
    noise = bytes(range(256)) * 16
    target = with_stores(default_nvs(version="1"), None, None)
    patched(target, {0x200000: noise})
    found, made = target.plan(FIRMWARE, "1.1.0")
    assert (found.version, found.problem, made.action) == ("1", None, "write")
    assert found.hidden_nvs  # so that nobody can tell its secrets in a log
    assert not with_stores(default_nvs(version="1"), KEYS, None).look().hidden_nvs


# --- secure versions


def secure(version: str, secure_version: int) -> bytes:
    """An app with a secure version."""
    return build_app(version=version, size_bytes=SIZE, secure_version=secure_version, seed=3)


def test_an_image_below_the_fuses_leaves_a_doubt_behind_a_silent_bootloader() -> None:
    """An anti-rollback bootloader passes over it, another one starts it."""
    flash = make_flash("micro-rdk", app=secure("1.0.0", 1), other_app=secure("2.0.0", 2))
    target = MemoryBoard(flash, silent=True)
    target.chip = replace(target.chip, secure_version=2)
    _, made = target.plan(Firmware.of(secure("3.0.0", 2)), "3.0.0")
    assert (made.action, made.code) == ("refuse", "otadata-invalid")
    assert "secure version 1, and the board's fuses ask for 2" in made.reason


def test_a_way_back_is_held_against_the_fuses_as_they_are_then() -> None:
    """The bad firmware is tried first by default, so going back takes its magic byte away: only
    where the other one boots, which it does not once the fuses have grown."""
    layout = "micro-rdk"
    bad, old = secure("2.0.0", 2), secure("1.0.0", 1)
    target = MemoryBoard(make_flash(layout, app=bad, other_app=old))
    patched(target, entries(layout, None, Select.make(2)))
    target.chip = replace(target.chip, secure_version=1)
    found = target.look()
    assert found.running.partition is not None
    assert found.running.partition.label == "ota_1"
    assert found.table is not None
    slot = found.table.ota_slots[0]
    patched(target, entries(layout, Select.make(3), Select.make(2)))  # the update switched to it
    flash = MemoryFlash(target.data)
    with pytest.raises(OtaError, match="ota_1 has secure version 1") as caught:
        plan_rollback(flash, found, bad=slot, fused=2, version_of=lambda _: "1")
    assert caught.value.code == "boot-failed"
    assert flash.trace == []
    with pytest.raises(OtaError, match="ota_1 has secure version 1"):
        plan_go_back(flash, found, running=slot, fused=2, version_of=lambda _: "1")
    back = plan_rollback(flash, found, bad=slot, fused=1, version_of=lambda _: "1")
    assert back.slot.label == "ota_1"
    apply_ops(target.data, back.ops)
    assert target.boot().slot == "ota_1"


@pytest.mark.parametrize("selects", [(None, None), (Select.make(1), None)])
def test_a_bad_firmware_that_is_tried_first_without_any_entry_is_not_started(
    selects: tuple[Select | None, Select | None],
) -> None:
    """Nothing names the other slot, so that taking entries away leads back to the bad one."""
    target = MemoryBoard(make_flash("micro-rdk", app=OLD, other_app=OTHER))
    at = LAYOUTS["micro-rdk"].find("otadata").offset
    target.data[at : at + 0x2000] = b"\xff" * 0x2000
    patched(target, entries("micro-rdk", *selects))
    found = target.look()
    assert found.table is not None
    bad = found.table.ota_slots[0]
    assert found.running.partition == bad
    flash = MemoryFlash(target.data)
    back = plan_rollback(flash, found, bad=bad, fused=0, version_of=lambda _: "0.9.0")
    apply_ops(target.data, back.ops)
    assert back.slot.label == target.boot().slot == "ota_1"


@pytest.mark.parametrize("layout", ["three", "guide"])
def test_a_way_back_is_not_left_to_an_image_of_which_it_is_not_clear(layout: str) -> None:
    """otadata would name one that this bootloader refuses and another one starts: the slot that
    certainly boots is named instead, or none where that is the factory app."""
    odd = bytearray(OLD)
    odd[12] = 9
    unclear = bytes(resealed(odd))
    if layout == "three":
        plan = table_with(*((f"ota_{i}", 0x10000 + i * 0x100000, 0x100000) for i in range(3)))
        target = MemoryBoard(made_flash(plan, {0x10000: OLD, 0x110000: unclear, 0x210000: OTHER}))
        selects, runs = (Select.make(2), Select.make(3)), "ota_0"
    else:
        plan = LAYOUTS["guide"]
        apps = {plan.find("factory").offset: OLD, plan.find("ota_0").offset: unclear}
        target = MemoryBoard(made_flash(plan, {**apps, plan.find("ota_1").offset: OTHER}))
        selects, runs = (Select.make(1), Select.make(2)), "factory"
    at = plan.find("otadata").offset
    patched(target, {at: selects[0].encode()})
    found = target.look()
    assert found.running.partition is not None
    assert found.running.partition.label == runs
    assert found.table is not None
    bad = found.table.ota_slots[-1]
    patched(target, {at + 0x1000: selects[1].encode()})  # the update switched to it
    flash = MemoryFlash(target.data)
    for ways in (
        plan_rollback(flash, found, bad=bad, fused=0, version_of=lambda _: "1"),
        plan_go_back(flash, found, running=bad, fused=0, version_of=lambda _: "1"),
    ):
        assert ways.slot.label == runs
        after = bytearray(target.data)
        apply_ops(after, ways.ops)
        named = boots_after(bytes(after[at : at + 0x2000]), found.table)
        assert named is not None
        assert named.label == runs


def test_an_update_that_the_fuses_forbid_is_refused() -> None:
    """Also on a board on which nothing boots, where no app that runs says so."""
    flash = make_flash("micro-rdk", app=secure("1.0.0", 2))
    flash[LAYOUTS["micro-rdk"].find("ota_0").offset + 0x1000] ^= 1
    target = MemoryBoard(flash)
    target.chip = replace(target.chip, secure_version=2)
    _, made = target.plan(Firmware.of(secure("3.0.0", 1)), "3.0.0", rescue=True)
    assert made.code == "secure-version"
    assert "the board's fuses hold 2" in made.reason
    assert target.plan(Firmware.of(secure("3.0.0", 2)), "3.0.0", rescue=True)[1].action == "write"


def test_fuses_that_no_app_minds_are_somebody_elses_data() -> None:
    """On the ESP32 those bits are free for own data where anti-rollback is not used."""
    target = MemoryBoard(make_flash("micro-rdk", app=OLD), silent=True)
    target.chip = replace(target.chip, secure_version=13)
    assert target.plan(FIRMWARE, "1.1.0")[1].action == "write"


def described(image: bytes, *, blocks: int) -> bytes:
    """The same app, for fuse blocks of at least this revision."""
    data = bytearray(image)
    data[32 + 176 : 32 + 178] = blocks.to_bytes(2, "little")
    return bytes(resealed(data))


@pytest.mark.parametrize("what", ["secure boot", "block revision"])
@pytest.mark.parametrize("silent", [False, True])
def test_an_image_that_only_the_board_can_judge_is_not_taken_for_the_one_that_runs(
    what: str, silent: bool
) -> None:
    """Named by otadata and whole, and yet its bootloader may refuse it: the log says what runs,
    and where there is none nothing is written."""
    new = Firmware.of(described(FIRMWARE.data, blocks=0 if what == "secure boot" else 3))
    target = MemoryBoard(make_flash("micro-rdk", app=OLD), silent=silent, chatty=silent)
    _, made = target.plan(new, "1.1.0")
    target.carry_out(made, new)
    chip = replace(target.chip, chip_id=9, secure_boot=what == "secure boot")
    flash = MemoryFlash(target.data)
    refusing = FirstLook(app_prints=True) if silent else FirstLook(offset=0x20000)
    looks: list[int] = []

    def look() -> FirstLook:
        looks.append(1)
        return refusing

    found = inspect(flash, chip, facts=BoardFacts(), firmware=new.known, look=look)
    if not silent:
        assert looks, "the digest alone is not enough"
        assert found.running.partition is not None
        assert found.running.partition.label == "ota_0"
    else:
        assert found.running.partition is None
        assert not found.running.dead
    seen = BoardFacts(slots={"ota_1": SlotFact(len(new.data), new.known.md5)})
    found = inspect(flash, chip, facts=seen, firmware=new.known, look=None)
    assert found.running.evidence == "journal", "it was seen to run"


def test_a_bootloader_that_speaks_behind_an_app_is_another_chips() -> None:
    """Its own bootloader says nothing, so what its app passes on tells nothing of its slots."""
    rom = ["rst:0x1 (POWERON_RESET),boot:0x13 (SPI_FAST_FLASH_BOOT)", "entry 0x400805f0"]
    boot = ["I (55) boot: ESP-IDF v5.1 2nd stage bootloader"]
    loaded = "I (90) boot: Loaded app from partition at offset 0x20000"
    assert first_look([*rom, *boot, loaded], 0x20000) == FirstLook(0x20000)
    assert first_look([*boot, loaded], 0x20000) == FirstLook(0x20000), "native USB loses lines"
    assert first_look(["Gateway up", *rom, *boot, loaded], 0x20000) == FirstLook(0x20000)
    passed_on = first_look([*rom, "Gateway up", *boot, loaded], 0x20000)
    assert passed_on == FirstLook(app_prints=True)


@pytest.mark.parametrize(
    "line",
    [
        *("Octal Flash Mode Enabled", "For OPI Flash, Use Default Flash Boot Mode"),
        *("SHA-256 comparison failed:", "Calculated: 7a", "Expected: 00"),
        *("Attempting to boot anyway...", "waiting for download", "wait uart0 download"),
    ],
)
def test_what_a_rom_says_is_no_app(line: str) -> None:
    """Or a board on which nothing boots could never be rescued."""
    lines = ["rst:0x1 (POWERON),boot:0x8 (SPI_FAST_FLASH_BOOT)", line]
    assert not first_look(lines, None).app_prints


def test_an_nvs_partition_with_a_part_of_a_sector_is_gone_back_with() -> None:
    """It is updated by its whole sectors, so the way back must be possible by them as well."""
    layout = LAYOUTS["micro-rdk"]
    odd = replace(
        layout,
        partitions=tuple(
            replace(part, size=0x5800) if part.label == "nvs" else part
            for part in layout.partitions
        ),
    )
    flash = make_flash("micro-rdk", app=OLD)
    flash[0x8000:0x8C00] = encode_table(odd.partitions)
    target = MemoryBoard(flash)
    found, made = target.plan(FIRMWARE, "1.1.0")
    target.carry_out(made, FIRMWARE)
    assert made.slot is not None
    back = plan_rollback(
        MemoryFlash(target.data), found, bad=made.slot, fused=0, version_of=lambda _: "1.0.0"
    )
    apply_ops(target.data, back.ops)
    assert target.boot().slot == "ota_0"
    assert target.look().version == "1.0.0"


# --- an NVS that cannot be read


RAN = {
    "ota_0": SlotFact(SIZE, Firmware.of(OLD).known.md5, "1.0.0"),
    "ota_1": SlotFact(SIZE, FIRMWARE.known.md5, "1.1.0"),
}
"""What the journal has of a board that was updated from OLD to FIRMWARE."""


@pytest.mark.parametrize(
    ("facts", "runs", "version", "plan"),
    [
        # (what the journal has, what runs in ota_1, its version, what 1.1.0 or 1.2.0 comes to)
        pytest.param(BoardFacts(), "new", "", ("record", "write"), id="nothing is known"),
        pytest.param(
            BoardFacts(RAN, "1.1.0", "ota_1"), "new", "1.1.0", ("none", "write"), id="as it was"
        ),
        pytest.param(
            BoardFacts(RAN, "1.1.0", "ota_1"), "other", "", ("write", "write"),
            id="changed in place",
        ),
        pytest.param(
            BoardFacts(RAN, "1.0.0", "ota_0"), "new", "1.0.0", ("record", "write"),
            id="put back by somebody",
        ),
        pytest.param(
            BoardFacts({"ota_0": RAN["ota_0"]}, "1.0.0", "ota_0", unwatched=True), "new", "",
            ("record", "write"), id="cut off behind the switch",
        ),
        pytest.param(
            BoardFacts(RAN, "1.1.0", "ota_1"), "old", "1.1.0", ("record", "write"), id="went back"
        ),
    ],
)  # fmt: skip
def test_the_host_s_version_counts_where_what_runs_is_what_it_knows(
    facts: BoardFacts, runs: str, version: str, plan: tuple[str, str]
) -> None:
    """For one that keeps it itself the same holds by its NVS; nothing is written there."""
    apps = {"new": FIRMWARE.data, "other": OTHER, "old": FIRMWARE.data}
    slot = "ota_0" if runs == "old" else "ota_1"
    target = MemoryBoard(
        make_flash(
            "micro-rdk", app=apps[runs] if slot == "ota_1" else OLD, slot=slot,
            other_app=OLD if slot == "ota_1" else FIRMWARE.data, nvs_key="k",
        )
    )  # fmt: skip
    refused, made = target.plan(FIRMWARE, "1.1.0", facts=facts)
    assert (made.code, refused.has_version) == ("flash-encrypted", False)
    assert made.error is not None
    assert "version_store" in made.error.remedy
    target.host = True
    later = Firmware.of(build_app(version="1.2.0", size_bytes=SIZE, seed=2))
    for firmware, wanted, action in ((FIRMWARE, "1.1.0", plan[0]), (later, "1.2.0", plan[1])):
        found, made = target.plan(firmware, wanted, facts=facts)
        assert (found.version, found.on_host, found.problem) == (version, True, None)
        assert made.action == action, made
        assert not any(isinstance(step, RecordVersion) for step in made.steps)
        assert made.rolled_back is (runs == "old" and wanted == "1.1.0")


def test_a_board_that_turned_the_image_down_before_that_was_noted_is_not_written_again() -> None:
    """Its bootloader took back what an update had switched to when its process died: in NVS the
    tag would stand by then."""
    target = MemoryBoard(
        make_flash("micro-rdk", app=OLD, slot="ota_0", other_app=FIRMWARE.data, nvs_key="k"),
        host=True, rollback=True,
    )  # fmt: skip
    patched(target, entries("micro-rdk", Select.make(1), Select.make(2, ABORTED)))
    facts = BoardFacts({"ota_0": RAN["ota_0"]}, "1.0.0", "ota_0", unwatched=True)
    found, made = target.plan(FIRMWARE, "1.1.0", facts=facts)
    assert found.version == "1.0.0"
    assert (made.action, made.rolled_back, made.to_version) == ("record", True, "1.0.0")


def test_an_nvs_that_can_be_read_keeps_the_version_itself() -> None:
    """Whatever is configured; and one that is damaged is none that is encrypted."""
    target = MemoryBoard(make_flash("micro-rdk", app=OLD), host=True)
    found = target.look(FIRMWARE)
    assert (found.on_host, found.version) == (False, "1.0.0")
    store = LAYOUTS["micro-rdk"].find("nvs")
    patched(target, {store.offset + 64: bytes(0xF00)})
    found = target.look(FIRMWARE)
    assert not found.on_host


@pytest.mark.slow
@pytest.mark.parametrize(("chip_id", "reached"), [(0, False), (5, False), (9, True)])
@pytest.mark.parametrize("store", ["nvs", "ota_1"])
def test_a_board_with_what_counts_above_16_mib(store: str, chip_id: int, reached: bool) -> None:
    """It is left alone where its chip's stub loader does not reach it; data of its own up there
    are nobody's business."""
    guide = LAYOUTS["guide"]
    high = {"nvs": 0x1000000, "ota_1": 0x1010000}[store]
    moved = tuple(replace(p, offset=high) if p.label == store else p for p in guide.partitions)
    for partitions, free in ((moved, reached), (guide.partitions, True)):
        files = Partition("files", 1, 0x82, 0x1400000, 0x100000)
        layout = Layout("high", 32 << 20, (*partitions, files))
        chip = ChipInfo(CHIP_BY_ID[chip_id].name, chip_id, "24:0a:c4:00:00:01", 301, 32 << 20)
        name = chip.name.lower().replace("-", "")
        old = build_app(version="1.0.0", size_bytes=SIZE, chip=name)
        flash = MemoryFlash(make_flash(layout, app=old, chip=name))
        found = inspect(flash, chip, facts=BoardFacts())
        assert (found.problem is None) is free
        assert free or (found.problem is not None and found.problem.code == "flash-size")
