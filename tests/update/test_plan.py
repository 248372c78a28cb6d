# SPDX-License-Identifier: GPL-3.0-or-later
"""What is planned for which board, and what carrying it out leads to, judged by the simulator."""

from __future__ import annotations

from dataclasses import replace

import pytest

from esp32_sim.bootmodel import ABORTED, PENDING_VERIFY, UNDEFINED, Select
from esp32_sim.factory import make_flash
from esp32_sim.images import build_app
from esp32_sim.layouts import LAYOUTS
from ota_service.formats.flashops import apply_ops
from ota_service.link.chip import ChipInfo
from ota_service.update.facts import BoardFacts, SlotFact
from ota_service.update.plan import (
    OTHER,
    RecordVersion,
    SealSlot,
    SwitchOtadata,
    WatchBoot,
    WriteSlot,
    tag_of_running,
)
from tests.support.memory_board import Firmware, MemoryBoard

SIZE = 20_000
OTA_LAYOUTS = ("guide", "micro-rdk", "micro-rdk-8mb")
OLD = Firmware.of(build_app(version="1.0.0", size_bytes=SIZE))
NEW = Firmware.of(build_app(version="1.1.0", size_bytes=SIZE, seed=1))


def board(layout: str = "guide", *, rollback: bool = False, **options: object) -> MemoryBoard:
    """A board that runs 1.0.0."""
    flash = make_flash(layout, app=OLD.data, **options)  # type: ignore[arg-type]
    return MemoryBoard(flash, rollback=rollback)


def otadata(layout: str, *entries: Select | None) -> dict[int, bytes]:
    """Flash address -> bytes of otadata entries."""
    at = LAYOUTS[layout].find("otadata").offset
    return {at + i * 0x1000: e.encode() for i, e in enumerate(entries) if e is not None}


def patch(target: MemoryBoard, places: dict[int, bytes]) -> MemoryBoard:
    """Overwrite bytes."""
    for at, data in places.items():
        target.data[at : at + len(data)] = data
    return target


@pytest.mark.parametrize("layout", OTA_LAYOUTS)
def test_a_differing_version_is_written_switched_and_recorded(layout: str) -> None:
    """The steps in their order, and the board boots the new firmware with the new tag."""
    target = board(layout)
    before = target.nvs().items
    _, made = target.plan(NEW, "1.1.0")
    assert made.to_dict() == {
        "action": "write",
        "reason": 'version differs: stored "1.0.0", configured "1.1.0"',
    }
    writes = [WriteSlot, SealSlot, SwitchOtadata, RecordVersion]
    assert [type(step) for step in made.steps[:4]] == writes
    running = target.boot().slot
    target.carry_out(made, NEW)
    result = target.boot()
    assert made.slot is not None
    assert result.slot == made.slot.label != running
    after = target.nvs()
    assert after.error is None
    changed = {key for key in before | after.items if before.get(key) != after.items.get(key)}
    assert {key for _, key in changed} == {"OTA_VERSION"}


@pytest.mark.parametrize("layout", OTA_LAYOUTS)
def test_going_back_is_a_switch_and_a_renamed_tag_a_record(layout: str) -> None:
    """What is on the board already is not sent again."""
    target = board(layout)
    _, made = target.plan(NEW, "1.1.0")
    target.carry_out(made, NEW)
    target.boot()
    _, made = target.plan(NEW, "renamed")
    assert (made.action, made.reason) == (
        "record",
        "running image is already this one: record the version only",
    )
    newer = Firmware.of(build_app(version="1.2.0", size_bytes=SIZE, seed=2))
    target.carry_out(target.plan(newer, "1.2.0")[1], newer)
    target.boot()
    _, made = target.plan(NEW, "1.1.0")
    assert made.action == "switch"
    assert "spare slot already holds this image: switch only" in made.reason
    trace = target.carry_out(made, NEW).trace
    assert len(trace) < 30
    assert target.boot().slot == made.slot.label if made.slot else False


def test_equal_tags_are_up_to_date_also_where_the_image_differs() -> None:
    """On first contact the tag decides, as on the firmware's own side."""
    _, made = board().plan(NEW, "1.0.0")
    assert (made.action, made.reason) == ("none", OTHER)
    _, made = board().plan(NEW, "1.0.0", force=True)
    assert made.action == "write"


def test_a_board_that_rolled_back_gets_its_tag_corrected() -> None:
    """Equal tags, but the newer otadata entry is ABORTED: the old firmware runs."""
    layout = "micro-rdk"
    target = patch(
        board(layout, rollback=True),
        otadata(layout, Select.make(1, UNDEFINED), Select.make(2, ABORTED)),
    )
    found, made = target.plan(NEW, "1.0.0")
    assert made.action == "none"  # the tag is right for what runs: nothing to correct
    stale = patch(
        MemoryBoard(make_flash(layout, app=OLD.data, version="1.1.0"), rollback=True),
        otadata(layout, Select.make(1, UNDEFINED), Select.make(2, ABORTED)),
    )
    found, made = stale.plan(NEW, "1.1.0")
    assert found.version == "1.1.0"
    assert made.action == "record"
    assert made.reason.startswith("rolled back by its bootloader: tag corrected")
    assert made.to_version == "1.0.0"
    stale.carry_out(made, NEW)
    assert stale.look().version == "1.0.0"


def test_what_was_turned_down_is_the_firmware_in_that_slot_and_no_other() -> None:
    """A way back that was cut before the tag was changed, beside a slot that was turned down long
    ago: the target's own slot is whole, so nothing was turned down of it, and it is switched to."""
    at = LAYOUTS["guide"].find("ota_0").offset
    target = patch(
        MemoryBoard(make_flash("guide", app=OLD.data, version="1.1.0")),
        {at: NEW.data, **otadata("guide", None, Select.make(2, ABORTED))},
    )
    assert target.boot().slot == "factory"
    facts = BoardFacts(last_slot="ota_0", interrupted=True)
    _, made = target.plan(NEW, "1.1.0", facts=facts)
    assert made.action == "switch"
    target.carry_out(made, NEW)
    assert target.boot().slot == "ota_0"


def test_another_slot_than_at_the_last_success_is_a_rollback_too() -> None:
    """The journal knows which slot ran; its version for the running one is stored again."""
    target = MemoryBoard(make_flash("micro-rdk", app=OLD.data, version="2.0"))
    fact = SlotFact(len(OLD.data), OLD.known.md5, version="named-by-us")
    facts = BoardFacts(slots={"ota_0": fact}, last_slot="ota_1")
    _, made = target.plan(NEW, "2.0", facts=facts)
    assert (made.action, made.to_version, made.rolled_back) == ("record", "named-by-us", True)
    assert not made.of_image  # it may be anything that made it go back


@pytest.mark.parametrize(
    ("fact", "reached", "action"),
    [
        (None, False, "none"),
        (SlotFact(SIZE, "0" * 32, version="1.0.0"), False, "none"),
        (SlotFact(len(OLD.data), OLD.known.md5, version="1.0.0"), False, "record"),
        (None, True, "record"),
    ],
)
def test_a_tag_that_somebody_else_brought_with_another_build_is_let_be(
    fact: SlotFact | None, reached: bool, action: str
) -> None:
    """A board is said to have gone back only to what it was seen to run, or from this target."""
    target = MemoryBoard(make_flash("micro-rdk", app=OLD.data, version="2.0"))
    slots = {"ota_0": fact} if fact is not None else {}
    facts = BoardFacts(slots=slots, last_slot="ota_1", reached=reached)
    _, made = target.plan(NEW, "2.0", facts=facts)
    assert (made.action, made.rolled_back) == (action, action == "record")
    assert action == "record" or [type(step) for step in made.steps] == [WatchBoot]
    assert not made.of_image


def test_an_ending_speaks_of_the_image_where_that_is_what_was_judged() -> None:
    """Written, held already, or turned down in otadata; and not where the tag alone is equal."""
    assert board().plan(NEW, "1.1.0")[1].of_image
    assert board().plan(OLD, "1.0.0")[1].of_image
    assert not board().plan(NEW, "1.0.0")[1].of_image
    turned_down = patch(
        MemoryBoard(make_flash("micro-rdk", app=OLD.data, other_app=NEW.data, version="1.1.0")),
        otadata("micro-rdk", Select.make(1, UNDEFINED), Select.make(2, ABORTED)),
    )
    _, made = turned_down.plan(NEW, "1.1.0")
    assert (made.rolled_back, made.of_image) == (True, True)


@pytest.mark.parametrize("confirmed", [None, False, True])
def test_a_start_that_nobody_has_watched_is_watched(confirmed: bool | None) -> None:
    """The board is restarted in any case, and others may wait for it to be good."""
    _, made = board().plan(OLD, "1.0.0", facts=BoardFacts(confirmed=confirmed))
    watched = any(isinstance(step, WatchBoot) for step in made.steps)
    assert (made.action, watched) == ("none", confirmed is None)


@pytest.mark.parametrize(
    ("last_slot", "md5", "tag"),
    [
        ("ota_0", OLD.known.md5, "2.0"),
        (None, OLD.known.md5, "2.0"),
        ("ota_1", OLD.known.md5, "its own"),
        ("ota_1", "0" * 32, "2.0"),
    ],
)
def test_the_tag_to_go_back_with_is_the_one_of_what_runs(
    last_slot: str | None, md5: str, tag: str
) -> None:
    """The stored one is another slot's where that ran at the last success."""
    target = MemoryBoard(make_flash("micro-rdk", app=OLD.data, version="2.0"))
    fact = SlotFact(len(OLD.data), md5, version="its own")
    facts = BoardFacts(slots={"ota_0": fact}, last_slot=last_slot)
    assert tag_of_running(target.look(NEW, facts), facts) == tag


def test_the_really_running_slot_is_never_written() -> None:
    """otadata names a slot that is not bootable; the firmware runs elsewhere by fallback."""
    layout = "micro-rdk"
    target = patch(board(layout), otadata(layout, None, Select.make(2, UNDEFINED)))
    assert target.boot().slot == "ota_0"
    found, made = target.plan(NEW, "1.1.0")
    assert found.running.partition is not None
    assert found.running.partition.label == "ota_0"
    assert made.slot is not None
    assert made.slot.label == "ota_1"
    target.carry_out(made, NEW)
    assert target.boot().slot == "ota_1"


def test_a_board_in_pending_verify_is_left_alone() -> None:
    """A reset would abort an update that may be good: refused, with nothing written."""
    layout = "micro-rdk"
    target = patch(
        board(layout, rollback=True, other_app=NEW.data),
        otadata(layout, Select.make(1, UNDEFINED), Select.make(2, PENDING_VERIFY)),
    )
    before = bytes(target.data)
    _, made = target.plan(NEW, "1.1.0")
    assert (made.action, made.code) == ("refuse", "awaiting-confirmation")
    assert bytes(target.data) == before


def test_new_is_written_only_where_the_bootloader_uses_rollback() -> None:
    """A wrong NEW makes a board go back at its next reset, perhaps days later."""
    layout = "micro-rdk"
    plain = board(layout).plan(NEW, "1.1.0")[1]
    shown = patch(
        board(layout, rollback=True),
        otadata(layout, Select.make(1, UNDEFINED), Select.make(2, ABORTED)),
    ).plan(NEW, "1.1.0")[1]
    states = [
        next(step.edit.state for step in made.steps if isinstance(step, SwitchOtadata))
        for made in (plain, shown)
    ]
    assert states == [UNDEFINED, 0]


@pytest.mark.parametrize(
    ("image", "changes", "code"),
    [
        ({"chip_id": 9}, {}, "wrong-chip"),
        ({"min_revision": 400}, {}, "chip-revision"),
        ({"max_revision": 100}, {}, "chip-revision"),
        ({"block_revisions": (5, 99)}, {"block_revision": 1}, "chip-revision"),
        ({"size_bytes": 0x100000 + 16}, {}, "image-too-large"),
        ({}, {"secure_boot": True}, "secure-boot"),
        ({}, {"secure_download": True}, "secure-download"),
        ({}, {"flash_encrypted": True}, "flash-encrypted"),
        ({}, {"flash_bytes": 0x200000}, "flash-size"),
        ({}, {"flash_bytes": None, "flash_id": 0xFFFFFF}, "flash-size"),
    ],
)
def test_what_the_board_would_not_run_is_refused(
    image: dict[str, object], changes: dict[str, object], code: str
) -> None:
    """Everything that can be known before the first write is checked before it."""
    firmware = Firmware.of(build_app("robot", "9", **({"size_bytes": SIZE} | image)))  # type: ignore[arg-type]
    target = board("guide")
    target.chip = replace(target.chip, **changes)  # type: ignore[arg-type]
    _, made = target.plan(firmware, "9")
    assert (made.action, made.code) == ("refuse", code)
    assert made.steps == ()


def test_an_image_that_fits_exactly_is_written() -> None:
    """The slot's size is the limit, not one byte less."""
    firmware = Firmware.of(build_app(version="9", size_bytes=0x100000))
    assert len(firmware.data) == 0x100000
    assert board("guide").plan(firmware, "9")[1].action == "write"


def test_a_lower_secure_version_is_refused() -> None:
    """The bootloader would refuse it, so it is not even written."""
    running = build_app(version="1.0.0", size_bytes=SIZE, secure_version=3)
    target = MemoryBoard(make_flash("guide", app=running))
    assert target.plan(NEW, "1.1.0")[1].code == "secure-version"


def test_boards_without_ota_slots_or_table_are_refused_in_words() -> None:
    """Each refusal says what the board lacks; the version is still read where it can be."""
    found, made = board("no-ota").plan(NEW, "1.1.0")
    assert (made.code, found.version) == ("no-ota-slots", "1.0.0")
    blank = board("guide")
    blank.data[0x8000:0x9000] = b"\xff" * 0x1000
    assert blank.plan(NEW, "1.1.0")[1].code == "partition-table-invalid"


def test_a_board_of_another_project_is_left_alone_unless_adopted() -> None:
    """Of boards found by themselves only those with VIAM_NS and the same project are updated."""
    from ota_service.update.plan import plan

    target = board("guide")
    other = Firmware.of(build_app("other", "1", size_bytes=SIZE))
    found = target.look(other)
    facts = BoardFacts()
    made = plan(found, version="1", image=other.parsed, facts=facts, adopted=False)
    assert made.code == "other-project"
    made = plan(found, version="1", image=other.parsed, facts=facts, adopted=True)
    assert made.action == "write"
    bare = MemoryBoard(make_flash("guide", app=OLD.data, nvs={}))
    made = plan(bare.look(NEW), version="1", image=NEW.parsed, facts=facts, adopted=False)
    assert made.code == "other-project"


def test_a_board_with_blank_nvs_is_updated_too() -> None:
    """A missing key reads as ""; the namespace is made."""
    target = MemoryBoard(make_flash("guide", app=OLD.data, nvs={}))
    found, made = target.plan(NEW, "1.1.0")
    assert found.version == ""
    target.carry_out(made, NEW)
    assert target.look().version == "1.1.0"
    assert target.boot().slot == "ota_0"


def test_chip_information_is_a_plain_value() -> None:
    """Frozen, so that an inspection cannot change under a plan."""
    chip = ChipInfo("ESP32", 0, "aa", 300, 1)
    with pytest.raises(AttributeError):
        chip.mac = "b"  # type: ignore[misc]


def dead(layout: str, *, rollback: bool = False) -> MemoryBoard:
    """A board none of whose app partitions holds a whole image."""
    target = board(layout, rollback=rollback)
    for part in LAYOUTS[layout].partitions:
        if part.type == 0:
            target.data[part.offset + 0x1000] ^= 0x01
    assert target.boot().slot is None
    return target


@pytest.mark.parametrize("rollback", [False, True])
@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("layout", OTA_LAYOUTS)
def test_a_board_on_which_nothing_boots_is_rescued_when_a_person_says_so(
    layout: str, silent: bool, rollback: bool
) -> None:
    """Left alone by itself and by force; a rescue writes the firmware, and every key stays."""
    target = dead(layout, rollback=rollback)
    target.silent = silent
    before, flash = target.nvs().items, bytes(target.data)
    for force in (False, True):
        _, refused = target.plan(NEW, "1.1.0", force=force)
        assert (refused.action, refused.code) == ("refuse", "otadata-invalid")
        assert refused.error is not None
        assert "Nothing on the board boots" in refused.error.message
        assert "rescue" in refused.error.remedy
    assert bytes(target.data) == flash

    _, made = target.plan(NEW, "1.1.0", rescue=True)
    assert (made.action, made.reason) == ("write", "rescued: nothing on the board boots")
    target.carry_out(made, NEW)
    for _ in range(3):  # with rollback, too: there is nothing to go back to
        assert target.boot().slot == "ota_0"
    after = target.nvs()
    assert after.error is None
    changed = {key for key in before | after.items if before.get(key) != after.items.get(key)}
    assert {key for _, key in changed} == {"OTA_VERSION"}


def test_a_rescue_needs_no_other_version() -> None:
    """Nothing boots, whatever the tag says."""
    assert dead("guide").plan(NEW, "1.0.0", rescue=True)[1].action == "write"


@pytest.mark.parametrize(
    "layout",
    ["guide", *(pytest.param(layout, marks=pytest.mark.slow) for layout in OTA_LAYOUTS[1:])],
)
def test_a_rescue_may_be_cut_off_anywhere(layout: str) -> None:
    """The keys stay, the board boots nothing or the new firmware, and a rescue finishes it."""
    start = dead(layout)
    keys = start.nvs().items
    keys.pop(("VIAM_NS", "OTA_VERSION"))
    made = start.plan(NEW, "1.1.0", rescue=True)[1]
    trace = MemoryBoard(bytearray(start.data)).carry_out(made, NEW).trace
    slot_ends = len(trace) - 12  # of the slot's many programs a few are enough
    cut = MemoryBoard(bytearray(start.data))
    for number, op in enumerate(trace):
        if number % 20 == 0 or number > slot_ends:
            again = MemoryBoard(bytearray(cut.data))
            is_dead = again.boot().slot is None
            plan = again.plan(NEW, "1.1.0", rescue=is_dead)[1]
            assert plan.action == "write" if is_dead else plan.action != "refuse", number
            again.carry_out(plan, NEW)
            assert again.boot().slot == "ota_0", number
            after = again.nvs()
            assert after.error is None
            assert after.items.pop(("VIAM_NS", "OTA_VERSION"))[1] == b"1.1.0"
            assert after.items == keys, number
        apply_ops(cut.data, [op])


def test_what_the_chip_cannot_run_is_not_written_to_a_dead_board_either() -> None:
    """The rules of every update hold."""
    target = dead("guide")
    large = Firmware.of(build_app(version="1.1.0", size_bytes=0x100000 + 0x1000, seed=1))
    assert target.plan(large, "1.1.0", rescue=True)[1].code == "image-too-large"


def test_a_board_that_boots_is_not_rescued() -> None:
    """Also where the other slot is damaged: what runs stays."""
    target = board("micro-rdk")
    made = target.plan(NEW, "1.1.0", rescue=True)[1]
    assert (made.action, made.code) == ("refuse", "board-boots")
    assert made.error is not None
    assert "boots ota_0" in made.error.message
