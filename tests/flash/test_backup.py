# SPDX-License-Identifier: GPL-3.0-or-later
"""Backups: what they hold, how they are kept on disk, and what of them comes back to a board."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esp32_sim.bootmodel import boot
from esp32_sim.factory import build_nvs, default_nvs, make_flash
from esp32_sim.images import build_app
from esp32_sim.layouts import LAYOUTS
from ota_service.errors import OtaError
from ota_service.formats.flashops import FlashOp
from ota_service.link.ownership import rewrite_mark
from ota_service.update import rewrite
from ota_service.update.backup import Backup, take_backup
from ota_service.update.backup_files import MANIFEST, Backups, read_backup, write_backup
from ota_service.update.boot import BootMonitor, Expected
from ota_service.update.inspect import secrets_of
from tests.flash.in_memory import (
    MAC,
    MIB,
    OTHER_MAC,
    MemoryLink,
    boots,
    cut,
    cuts,
    flash,
    keys,
    nvs_of,
    restore,
)
from tests.flash.merged_files import merged
from tests.support.elsewhere import layout_at
from tests.support.memory_flash import PowerCut

SMALL = build_app(size_bytes=20_000)
OTHER = build_app(version="2.0.0", size_bytes=20_000)


@pytest.fixture(autouse=True, scope="module")
def _the_disk_is_not_waited_for() -> Iterator[None]:
    """It is the board's power that fails here, not this computer's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        yield


def board(layout: str = "guide", mac: str = MAC, **options: Any) -> MemoryLink:
    """A small board that runs."""
    options.setdefault("app", SMALL)
    return MemoryLink(make_flash(layout, 4 * MIB, **options), mac=mac)


def backup_of(link: MemoryLink) -> Backup:
    """What is kept of it."""
    return take_backup(link, link.chip)


def with_nvs(link: MemoryLink, layout: str, values: dict[str, Any]) -> MemoryLink:
    """The board with other keys."""
    part = LAYOUTS[layout].find("nvs")
    link.data[part.offset : part.end] = build_nvs(part.size, values)
    return link


# --- what a backup is


@pytest.mark.parametrize(("layout", "has_otadata"), [("guide", True), ("no-ota", False)])
def test_it_has_the_table_otadata_and_nvs_as_they_stand(layout: str, has_otadata: bool) -> None:
    """Byte for byte, with their places."""
    link = board(layout, slot="ota_1" if has_otadata else None)
    made = backup_of(link)
    assert (made.mac, made.chip, made.flash_bytes) == (MAC, "ESP32", 4 * MIB)
    assert made.table.data == link.data[0x8000:0x9000]
    assert (made.otadata is not None) == has_otadata
    for piece in made.pieces:
        assert piece.data == link.data[piece.offset : piece.offset + len(piece.data)]
    assert [(piece.label, piece.data) for piece in made.stores] == [
        ("nvs", nvs_of(link.data, layout))
    ]
    assert "workshop" not in repr(made)


def test_a_board_that_cannot_be_read_has_none() -> None:
    """No table, or encryption."""
    link = board()
    link.data[0x8000:0x9000] = b"\xff" * 0x1000
    with pytest.raises(OtaError) as caught:
        backup_of(link)
    assert caught.value.code == "partition-table-invalid"
    link.chip = replace(link.chip, flash_encrypted=True)
    with pytest.raises(OtaError) as caught:
        backup_of(link)
    assert caught.value.code == "flash-encrypted"


def test_one_covers_another_where_no_key_would_be_lost() -> None:
    """Keys with their values count, but for the version; what cannot be read is covered by itself
    alone."""
    whole = backup_of(board())
    newer = backup_of(board(nvs={**default_nvs(version="2"), "MORE": "x"}))
    other = backup_of(board(nvs={**default_nvs(version="1.0.0"), "WIFI_SSID": "elsewhere"}))
    fewer = backup_of(board(nvs={"OTHER": "x"}))
    assert not other.covers(whole)
    assert other.covers(whole, by_name=True)
    assert not fewer.covers(whole, by_name=True)
    assert not whole.covers(other)
    empty = backup_of(board(nvs={}))
    assert newer.covers(whole)
    assert not whole.covers(newer)
    assert not fewer.covers(whole)
    assert not empty.covers(whole)
    assert fewer.covers(empty)
    noise = board()
    noise.data[0x9000:0xD000] = bytes(range(1, 129)) * 128
    damaged = backup_of(noise)
    assert damaged.covers(damaged)
    assert not whole.covers(damaged)
    assert not damaged.covers(whole)


def test_a_torn_table_does_not_stand_in_for_a_whole_one() -> None:
    """A cut may leave the first entries without the digest behind them."""
    link = board()
    whole = backup_of(link)
    link.data[0x8000 + 5 * 32 : 0x9000] = b"\xff" * (0x1000 - 5 * 32)
    assert whole.covers(backup_of(link))
    assert not backup_of(link).covers(whole)


# --- on disk


def test_files_are_private_whole_and_replaced_in_one_step(tmp_path: Path) -> None:
    """Folders 700, files 600; the old files go when the new ones are there; others stay."""
    folder = tmp_path / "new/backup"
    first = backup_of(board(slot="ota_0"))
    write_backup(folder, first)
    assert read_backup(folder) == first
    (folder / "mine.txt").write_text("")
    second = backup_of(board(slot="ota_1", nvs={"A": "b"}))
    write_backup(folder, second)
    write_backup(folder, second)
    assert read_backup(folder) == second
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 5, names
    for path in folder.glob("*[!t]"):
        if path.name != "mine.txt":
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
    told = (folder / MANIFEST).read_text()
    assert json.loads(told)["table"]["offset"] == 0x8000
    for secret in ("workshop", "wifi-"):
        assert secret not in told + "".join(names)


def test_an_interruption_while_it_is_written_leaves_the_old_one(tmp_path: Path) -> None:
    """The manifest is what counts, and it comes last."""
    write_backup(tmp_path, backup_of(board()))
    old = read_backup(tmp_path)
    manifest = (tmp_path / MANIFEST).read_bytes()
    before = {path.name for path in tmp_path.iterdir()}
    write_backup(tmp_path, backup_of(board(nvs={"A": "b"})))
    new = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.suffix == ".bin"}
    write_backup(tmp_path, old)
    for name, data in new.items():
        if name not in before:
            (tmp_path / name).write_bytes(data)
    assert read_backup(tmp_path) == old
    assert json.loads((tmp_path / MANIFEST).read_bytes())["mac"] == json.loads(manifest)["mac"]


@pytest.mark.parametrize("damage", ["nothing", "no-manifest", "a-bit", "shorter", "missing"])
def test_what_is_not_whole_is_not_restored(tmp_path: Path, damage: str) -> None:
    """It says so, and names the folder."""
    folder = tmp_path / "b"
    if damage != "nothing":
        write_backup(folder, backup_of(board()))
    (nvs,) = folder.glob("nvs-*.bin") if damage != "nothing" else [folder]
    data = nvs.read_bytes() if damage != "nothing" else b""
    if damage == "no-manifest":
        (folder / MANIFEST).unlink()
    elif damage == "a-bit":
        nvs.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    elif damage == "shorter":
        nvs.write_bytes(data[:-1])
    elif damage == "missing":
        nvs.unlink()
    with pytest.raises(OtaError) as caught:
        read_backup(folder)
    assert caught.value.code == "backup-invalid"
    assert str(folder) in caught.value.message


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@lru_cache
def _good() -> Backup:
    return backup_of(board())


@pytest.mark.slow
@settings(max_examples=40)
@given(data=st.data())
def test_any_manifest_is_a_backup_or_an_error_with_words(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One field of a good one is anything; a file outside the folder is never read."""
    folder, good = tmp_path_factory.mktemp("b"), _good()
    write_backup(folder, good)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    inner = data.draw(st.sampled_from([manifest, manifest["table"], *manifest["nvs"]]))
    name = data.draw(st.sampled_from(sorted(inner)))
    inner[name] = data.draw(JSON | st.sampled_from(["../x.bin", "/etc/passwd", "x.bin", -1, 1e400]))
    (folder / MANIFEST).write_text(json.dumps(manifest))
    try:
        found = read_backup(folder)
    except OtaError as error:
        assert error.code == "backup-invalid"
    else:
        there = {(piece.offset, piece.data) for piece in good.pieces}
        assert {(piece.offset, piece.data) for piece in found.pieces} <= there


# --- in the state folder


def test_the_state_folder_has_one_of_each_board_unless_keys_would_be_lost(tmp_path: Path) -> None:
    """A newer one replaces it where it has every key; the same again is not kept twice."""
    store = Backups(tmp_path, MAC)
    first = store.keep(backup_of(board()))
    assert store.keep(backup_of(board())).folder == first.folder
    other = Backups(tmp_path, OTHER_MAC).keep(backup_of(board(mac=OTHER_MAC)))
    poorer = store.keep(backup_of(board(nvs={"A": "b"})))
    store.tidy()
    assert [kept.number for kept in store.all()] == [first.number, poorer.number]
    richer = store.keep(backup_of(board(nvs={**default_nvs(version="3"), "A": "b"})))
    store.tidy(spared=first.folder)
    assert [kept.number for kept in store.all()] == [first.number, richer.number]
    store.tidy()
    assert [kept.number for kept in store.all()] == [richer.number]
    assert other.folder.is_dir()
    assert {oct(p.stat().st_mode)[-3:] for p in tmp_path.rglob("*") if p.is_dir()} == {"700"}
    assert {oct(p.stat().st_mode)[-3:] for p in tmp_path.rglob("*") if p.is_file()} == {"600"}


def test_what_was_begun_is_remembered_until_it_is_finished(tmp_path: Path) -> None:
    """The first of several that did not finish counts, and its backup is the one that is named."""
    store = Backups(tmp_path, MAC)
    assert store.begin("flash", None) is None
    assert store.unfinished() == []
    first = store.keep(backup_of(board()))
    assert store.begin("flash", first) == first.folder
    poorer = store.keep(backup_of(board(nvs={"A": "b"})))
    assert store.begin("flash", poorer) == first.folder
    assert [kept.number for kept in store.unfinished("flash")] == [poorer.number, first.number]
    assert store.begin("flash", None) == first.folder
    richer = store.keep(backup_of(board(nvs={**default_nvs(), "A": "c"})))
    assert store.begin("flash", richer) == richer.folder
    store.finish()
    assert store.unfinished() == []


def test_a_disk_that_takes_nothing_is_told_before_anything_is_written(tmp_path: Path) -> None:
    """And what was there stays."""
    (tmp_path / "file").write_text("")
    link = board("no-ota")
    with pytest.raises(OtaError, match="cannot be kept") as caught:
        flash(link, merged(size_bytes=20_000), tmp_path / "file", keep=False)
    assert caught.value.code == "file-access"
    assert link.trace == []


# --- flash: kept with and without keep_nvs, and cut anywhere


@pytest.mark.parametrize("keep", [True, False])
def test_a_flash_keeps_what_the_board_has(tmp_path: Path, keep: bool) -> None:
    """On disk before the first operation, and where the outcome says; it stays afterwards. And
    whoever has a journal of the board can tell that it was rewritten."""
    link = board("no-ota")
    had = backup_of(link)
    assert rewrite_mark(MAC) is None
    outcome = flash(link, merged(size_bytes=20_000), tmp_path, keep=keep)
    assert rewrite_mark(MAC) is not None
    assert outcome.backup is not None
    assert read_backup(outcome.backup).pieces == had.pieces
    assert outcome.to_dict()["backup"] == str(outcome.backup)


def test_a_flash_writes_its_table_last(tmp_path: Path) -> None:
    """At no moment before that a bootloader finds one."""
    link = board("no-ota")
    flash(link, merged(size_bytes=20_000), tmp_path, keep=True)
    table = range(0x8000, 0x9000)
    at = [number for number, op in enumerate(link.trace) if op.offset in table]
    first, *later = at
    assert first == 0
    assert later == list(range(later[0], len(link.trace)))


@pytest.mark.parametrize("where", ["factory", "nvs"])
def test_what_is_rewritten_is_read_back(tmp_path: Path, where: str) -> None:
    """One bit elsewhere than it should be, in what is written or in keys that stay in their place:
    no table is put in its place, and nothing starts."""
    place = LAYOUTS["guide"].find(where).offset

    class Changed(MemoryLink):
        changed = False

        def write_stream(self, offset: int, stream: Any, progress: Any) -> None:
            super().write_stream(offset, stream, progress)
            if not self.changed and offset + stream.size_bytes > place + 64:
                self.data[place + 64] ^= 1
                self.changed = True

    link = Changed(board().data)
    with pytest.raises(OtaError) as caught:
        flash(link, merged(size_bytes=20_000), tmp_path, keep=True)
    assert caught.value.code == "verify-failed"
    assert link.data[0x8000:0x9000] == b"\xff" * 0x1000


@pytest.mark.parametrize("keep", [True, False])
def test_a_flash_that_was_cut_is_finished_with_the_keys(tmp_path: Path, keep: bool) -> None:
    """Whether or not the first one was to keep them; cut where the table is gone, and NVS."""
    start = bytes(board("no-ota").data)
    data = merged(size_bytes=20_000)
    whole = MemoryLink(start)
    flash(whole, data, tmp_path / "whole", keep=keep)
    at = len(whole.trace) - 40
    left = cut(
        partial(flash, data=data, state=tmp_path / "cut", keep=keep), start, at, "", whole.trace[at]
    )
    again = MemoryLink(left)
    flash(again, data, tmp_path / "cut", keep=True)
    assert keys(nvs_of(again.data, "guide")) == keys(nvs_of(start, "no-ota"))


@pytest.mark.slow
def test_a_flash_that_was_cut_anywhere_is_finished_with_the_keys(tmp_path: Path) -> None:
    """Whether or not the first one was to keep them: on disk at every moment they are.

    Cut at every operation, whole and torn, one of them with keep_nvs and the other without, of a
    flash whose NVS moves into a smaller place; no firmware runs on half a flash meanwhile.
    """
    start = bytes(board("no-ota").data)
    before = keys(nvs_of(start, "no-ota"))
    data = merged(size_bytes=20_000)
    places: list[tuple[bool, list[FlashOp], int, str]] = []
    for keep in (True, False):
        whole = MemoryLink(start)
        flash(whole, data, tmp_path / str(keep), keep=keep)
        places += [
            (keep, whole.trace, at, how)
            for at, how in cuts(whole.trace)
            if keep == (bool(how) == (at % 2 == 0))
        ]
    assert len(places) > 200
    for number, (keep, trace, at, how) in enumerate(places):
        state = tmp_path / str(number)
        left = cut(partial(flash, data=data, state=state, keep=keep), start, at, how, trace[at])
        if at:
            assert boots(left) is None or at == len(trace) - 1, (at, how)
        again = MemoryLink(left)
        outcome = flash(again, data, state, keep=True)
        assert keys(nvs_of(again.data, "guide")) == before, (at, how)
        assert boots(again.data) == "factory", (at, how)
        assert outcome.backup is not None
        kept = read_backup(outcome.backup)
        assert keys(kept.stores[0].data) == before, (at, how)
        assert kept.table.data == start[0x8000:0x9000], (at, how)


@pytest.mark.slow
def test_a_second_cut_loses_nothing_either(tmp_path: Path) -> None:
    """The flash that was to mend the first one is cut as well."""
    start = bytes(board("no-ota").data)
    before = keys(nvs_of(start, "no-ota"))
    data = merged(size_bytes=20_000)
    whole = MemoryLink(start)
    flash(whole, data, tmp_path / "whole", keep=False)
    for first in range(0, len(whole.trace), 17):
        state = tmp_path / str(first)
        begun = partial(flash, data=data, state=state, keep=False)
        left = cut(begun, start, first, "", whole.trace[first])
        second = MemoryLink(left, cut_at=len(whole.trace) - first)
        with suppress(PowerCut):  # the second one has a few operations less
            flash(second, data, state, keep=True)
        again = MemoryLink(second.data)
        flash(again, data, state, keep=True)
        assert keys(nvs_of(again.data, "guide")) == before, first


def test_a_finished_flash_without_the_keys_does_not_bring_them_back_unasked(tmp_path: Path) -> None:
    """The board was provisioned anew: those keys count, though the backup has others."""
    link = board("no-ota")
    data = merged(size_bytes=20_000)
    flash(link, data, tmp_path, keep=False)
    Backups(tmp_path, MAC).finish()
    with_nvs(link, "guide", {"WIFI_SSID": "new place"})
    outcome = flash(link, data, tmp_path, keep=True)
    assert ("VIAM_NS", "ROBOT_SECRET") not in keys(nvs_of(link.data, "guide"))
    assert keys(nvs_of(link.data, "guide"))["VIAM_NS", "WIFI_SSID"][1] == b"new place"
    assert len(Backups(tmp_path, MAC).all()) == 2
    assert outcome.plan.kept[0].before is not None


def test_keys_that_changed_since_an_unfinished_flash_are_not_undone(tmp_path: Path) -> None:
    """By the next one, nor by the one after that, where the next is cut behind its first erase."""
    link = board("no-ota")
    data = merged(size_bytes=20_000)
    flash(link, data, tmp_path, keep=True)
    now = {**default_nvs(), "WIFI_PASSWORD": "changed", "TLS_CERT": "x" * 600}
    del now["WIFI_SSID"]
    start = bytes(with_nvs(link, "guide", now).data)
    wanted = keys(nvs_of(start, "guide"))
    flash(link, data, tmp_path / "whole", keep=True)
    left = cut(partial(flash, data=data, state=tmp_path, keep=True), start, 3, "", link.trace[3])
    assert boots(left) is None
    again = MemoryLink(left)
    flash(again, data, tmp_path, keep=True)
    assert keys(nvs_of(again.data, "guide")) == wanted
    assert wanted["VIAM_NS", "WIFI_PASSWORD"][1] == b"changed"


# --- restore


def test_nvs_comes_back_after_a_flash_that_was_not_to_lose_it(tmp_path: Path) -> None:
    """To the new place and size, under the new table, whose otadata and apps stay."""
    link = board("no-ota")
    before = keys(nvs_of(link.data, "no-ota"))
    outcome = flash(link, merged(size_bytes=20_000), tmp_path, keep=False)
    assert outcome.backup is not None
    Backups(tmp_path, MAC).finish()
    flashed = bytes(link.data)
    with_nvs(link, "guide", {"WIFI_SSID": "meanwhile"})
    done = restore(link, outcome.backup, tmp_path)
    assert keys(nvs_of(link.data, "guide")) == before
    part = LAYOUTS["guide"].find("nvs")
    assert link.data[: part.offset] == flashed[: part.offset]
    assert link.data[part.end :] == flashed[part.end :]
    assert boots(link.data) == "factory"
    assert (done.plan.table_back, done.plan.otadata_back) == (False, False)
    assert "its table and otadata stay" in done.plan.notes[0]
    assert done.backup is not None
    assert ("VIAM_NS", "WIFI_SSID") in keys(read_backup(done.backup).stores[0].data)
    assert not restore(link, outcome.backup, tmp_path).plan.needed


def test_where_an_nvs_cannot_be_read_no_line_of_the_app_s_own_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody can tell which of its words are secrets: those of before, too, where they stay."""
    start = (
        b"I (31) boot: ESP-IDF v5.1\r\n"
        b"I (60) boot: Loaded app from partition at offset 0x10000\r\n"
        b"I (90) wifi: joining with hidden-word\r\n"
    )

    def watched(port: Any, monitor: BootMonitor, *_: Any, **__: Any) -> None:
        monitor.feed(start, 0.1)
        monitor.tick(60.0)

    monkeypatch.setattr(rewrite, "watch", watched)
    link = board()
    saved = Backups(tmp_path, MAC).keep(backup_of(link)).folder
    part = LAYOUTS["guide"].find("nvs")
    for noise in (b"", bytes(range(256)) * (part.size // 256)):
        link.data[part.offset : part.offset + len(noise)] = noise
        assert backup_of(link).hidden is bool(noise)
        outcome = restore(link, saved, tmp_path)
        assert outcome.hides is bool(noise)
        chip: Any = SimpleNamespace(restart=lambda: None, in_download=lambda: False)
        job = rewrite.WriteJob("board", state_dir=tmp_path)
        rewrite.started(chip, chip, job, outcome, Expected(), nvs=[], remedy="")
        assert outcome.boot_log
        assert any("hidden-word" in line for line in outcome.boot_log) is not bool(noise)


def test_otadata_comes_back_where_its_slot_still_holds_an_app(tmp_path: Path) -> None:
    """An update by another tool is undone with the keys that belonged to the old firmware."""
    link = board(slot="ota_0", other_app=OTHER, other_slot="ota_1")
    write_backup(tmp_path / "b", backup_of(link))
    kept = bytes(link.data)
    later = make_flash("guide", 4 * MIB, app=OTHER, slot="ota_1", other_app=SMALL,
                       other_slot="ota_0", version="2.0.0")  # fmt: skip
    link.data[0x9000:0x10000] = later[0x9000:0x10000]
    assert boots(link.data) == "ota_1"
    done = restore(link, tmp_path / "b", tmp_path)
    assert done.plan.otadata_back
    assert bytes(link.data) == kept
    assert boots(link.data) == "ota_0"


@pytest.mark.parametrize("why", ["no-app", "trial", "secure-version"])
def test_otadata_stays_where_the_backups_would_not_start_its_slot(tmp_path: Path, why: str) -> None:
    """NVS comes back alone, and the reason is told."""
    options: dict[str, Any] = {"otadata": "new"} if why == "trial" else {}
    link = board(slot="ota_0", other_app=OTHER, other_slot="ota_1", **options)
    write_backup(tmp_path / "b", backup_of(link))
    before = keys(nvs_of(link.data, "guide"))
    secure = build_app(version="2.0.0", size_bytes=20_000, secure_version=3)
    later = make_flash("guide", 4 * MIB, slot="ota_1", nvs={"A": "b"},
                       app=secure if why == "secure-version" else OTHER)  # fmt: skip
    link.data[0x9000:0x10000] = later[0x9000:0x10000]
    link.data[0x210000:0x310000] = later[0x210000:0x310000]
    if why == "no-app":
        link.data[0x110400] ^= 1
    done = restore(link, tmp_path / "b", tmp_path)
    assert keys(nvs_of(link.data, "guide")) == before
    assert boots(link.data) == "ota_1"
    assert not done.plan.otadata_back
    assert len(done.plan.notes) == 1
    assert "otadata stays" in done.plan.notes[0]


def test_the_table_comes_back_to_a_board_that_has_none(tmp_path: Path) -> None:
    """Somebody erased it; with it the board starts again."""
    link = board(slot="ota_1")
    whole = bytes(link.data)
    write_backup(tmp_path / "b", backup_of(link))
    link.data[0x8000:0xF000] = b"\xff" * 0x7000
    assert boots(link.data) is None
    assert restore(link, tmp_path / "b", tmp_path).plan.table_back
    assert bytes(link.data) == whole


def test_the_table_comes_back_where_nothing_starts_with_the_one_there(tmp_path: Path) -> None:
    """A table of another layout alone was written over it."""
    link = board(slot="ota_1")
    whole = bytes(link.data)
    write_backup(tmp_path / "b", backup_of(link))
    link.data[0x8000:0x9000] = board("no-ota").data[0x8000:0x9000]
    link.data[0x10000:0x10004] = b"\0\0\0\0"
    wanted = bytearray(whole)
    wanted[0x10000:0x10004] = b"\0\0\0\0"
    assert boots(link.data) is None
    done = restore(link, tmp_path / "b", tmp_path)
    assert done.plan.table_back
    assert link.data == wanted
    assert boots(link.data) == "ota_1"


def test_an_app_that_only_the_bootloader_may_know_keeps_its_table(tmp_path: Path) -> None:
    """The image there is none that we call whole, and still nothing is risked."""
    link = board(slot="ota_1")
    write_backup(tmp_path / "b", backup_of(link))
    link.data[0x8000:0x9000] = board("no-ota").data[0x8000:0x9000]
    link.data[0x10000 : 0x10000 + len(OTHER)] = OTHER
    link.data[0x10000 + len(OTHER) - 1] ^= 1
    table = bytes(link.data[0x8000:0x9000])
    done = restore(link, tmp_path / "b", tmp_path)
    assert link.data[0x8000:0x9000] == table
    assert not done.plan.table_back


@pytest.mark.parametrize("broken", ["bootloader", "app"])
def test_a_board_that_would_start_nothing_is_not_written(tmp_path: Path, broken: str) -> None:
    """Without a table of its own, and without a bootloader or an app for the backup's."""
    link = board(slot="ota_1")
    write_backup(tmp_path / "b", backup_of(link))
    link.data[0x8000:0x9000] = b"\xff" * 0x1000
    link.data[0x1800 if broken == "bootloader" else 0x210800] ^= 4
    before = bytes(link.data)
    with pytest.raises(OtaError, match="an app would start") as caught:
        restore(link, tmp_path / "b", tmp_path)
    assert caught.value.code == "partition-table-invalid"
    assert bytes(link.data) == before


def test_a_board_that_starts_nothing_either_way_gets_its_own_table_back(tmp_path: Path) -> None:
    """After a cut, too: what it showed before is known from then."""
    write_backup(tmp_path / "b", backup_of(board("no-ota")))
    wanted = keys(nvs_of(board("no-ota").data, "no-ota"))
    link = board("guide", nvs={})
    link.data[0x10000:0x10004] = b"\0\0\0\0"
    start = bytes(link.data)
    whole = MemoryLink(start)
    done = restore(whole, tmp_path / "b", tmp_path / "whole")
    assert "neither with its table nor the backup's" in done.plan.notes[0]
    assert keys(nvs_of(whole.data, "guide")) == wanted
    assert whole.data[0x8000:0x9000] == start[0x8000:0x9000]
    begun = partial(restore, folder=tmp_path / "b", state=tmp_path)
    again = MemoryLink(cut(begun, start, 7, "", whole.trace[7]))
    assert again.data[0x8000:0x9000] == b"\xff" * 0x1000
    restore(again, tmp_path / "b", tmp_path)
    assert again.data == whole.data


@pytest.mark.parametrize("at", [0x9000, 0x20000])
def test_a_table_elsewhere_is_kept_and_comes_back(tmp_path: Path, at: int) -> None:
    """Also where a restore that took it away was cut."""
    start = make_flash(layout_at(at), app=SMALL, table_offset=at)
    link = MemoryLink(start)
    made = backup_of(link)
    assert made.table.offset == at
    write_backup(tmp_path / "b", made)
    (nvs,) = made.stores
    link.data[nvs.offset : nvs.offset + 0x1000] = b"\xff" * 0x1000
    changed = bytes(link.data)
    restore(link, tmp_path / "b", tmp_path / "whole")
    assert link.data == start
    begun = partial(restore, folder=tmp_path / "b", state=tmp_path)
    again = MemoryLink(cut(begun, changed, 4, "", link.trace[4]))
    assert boot(bytearray(again.data), table_offset=at).slot is None
    restore(again, tmp_path / "b", tmp_path)
    assert again.data == start


def test_a_replaced_board_gets_the_nvs_alone(tmp_path: Path) -> None:
    """Its otadata and table belong to what is in its own flash."""
    write_backup(tmp_path / "b", backup_of(board(slot="ota_1", other_app=OTHER)))
    link = board("no-ota", mac=OTHER_MAC, nvs={})
    done = restore(link, tmp_path / "b", tmp_path)
    assert keys(nvs_of(link.data, "no-ota"))["VIAM_NS", "WIFI_SSID"][1] == b"workshop"
    assert boots(link.data) == "factory"
    assert "NVS is written" in done.plan.notes[0]
    link.data[0x8000:0x9000] = b"\xff" * 0x1000
    with pytest.raises(OtaError):
        restore(link, tmp_path / "b", tmp_path / "elsewhere")


def test_what_a_board_had_is_kept_out_of_the_log_of_its_start(tmp_path: Path) -> None:
    """Not the backup's strings alone: another partition stays, and its app may print it."""
    link = board()
    write_backup(tmp_path / "b", backup_of(link))
    with_nvs(link, "guide", {"WIFI_PASSWORD": "its own password"})
    for outcome in (
        restore(link, tmp_path / "b", tmp_path),
        flash(with_nvs(link, "guide", {"X": "its own password"}), merged(size_bytes=20_000),
              tmp_path, keep=False),
    ):  # fmt: skip
        assert b"its own password" in secrets_of(outcome.nvs)


def test_what_has_no_place_on_the_board_is_refused(tmp_path: Path) -> None:
    """Another chip, a table without the partition, one that is too small: nothing is written."""
    big = {f"key{n}": "x" * 1000 for n in range(14)}
    write_backup(tmp_path / "big", backup_of(board("no-ota", nvs=big)))
    link = board()
    with pytest.raises(OtaError) as caught:
        restore(link, tmp_path / "big", tmp_path)
    assert caught.value.code == "nvs-full"
    made = backup_of(board())
    write_backup(tmp_path / "s3", replace(made, chip="ESP32-S3"))
    with pytest.raises(OtaError) as caught:
        restore(link, tmp_path / "s3", tmp_path)
    assert caught.value.code == "wrong-chip"
    assert link.trace == []


def test_a_board_in_its_confirmation_is_left_alone(tmp_path: Path) -> None:
    """A restart would undo its update."""
    write_backup(tmp_path / "b", backup_of(board(slot="ota_0")))
    link = board(slot="ota_1", other_app=SMALL, other_slot="ota_0", otadata="pending", nvs={})
    with pytest.raises(OtaError) as caught:
        restore(link, tmp_path / "b", tmp_path)
    assert caught.value.code == "awaiting-confirmation"
    assert link.trace == []


@pytest.mark.slow
@pytest.mark.parametrize("case", ["moved", "in-place", "table"])
def test_a_restore_that_was_cut_anywhere_is_finished_by_the_same_again(
    tmp_path: Path, case: str
) -> None:
    """And meanwhile nothing starts; a flash with keep_nvs then has keys to keep, too.

    moved: NVS into another table's place. in-place: NVS and otadata. table: as well.
    """
    link = board("no-ota" if case == "moved" else "guide")
    write_backup(tmp_path / "b", backup_of(link))
    wanted = keys(nvs_of(link.data, "no-ota" if case == "moved" else "guide"))
    if case == "moved":
        flash(link, merged(size_bytes=20_000), tmp_path / "x", keep=False)
    else:
        later = make_flash("guide", 4 * MIB, app=OTHER, slot="ota_1")
        link.data[0x9000:0x10000] = later[0x9000:0x10000]
        link.data[0x210000:0x310000] = later[0x210000:0x310000]
    with_nvs(link, "guide", {"WIFI_SSID": "meanwhile", "LATER": "x" * 600})
    if case == "table":
        link.data[0x8000:0x9000] = b"\xff" * 0x1000
    start = bytes(link.data)
    whole = MemoryLink(start)
    restore(whole, tmp_path / "b", tmp_path / "whole")
    end = bytes(whole.data)
    assert keys(nvs_of(end, "guide")) == wanted
    last = len(whole.trace) - 1
    for number, (at, how) in enumerate(cuts(whole.trace)):
        state = tmp_path / str(number)
        begun = partial(restore, folder=tmp_path / "b", state=state)
        left = cut(begun, start, at, how, whole.trace[at])
        if at:
            assert boots(left) is None or at == last, (at, how)
        again = MemoryLink(left)
        restore(again, tmp_path / "b", state)
        assert keys(nvs_of(again.data, "guide")) == wanted, (at, how)
        assert bytes(again.data) == end, (at, how)
        assert boots(again.data) == "factory", (at, how)
        if case != "table" and number % 7 == 0:
            other = MemoryLink(left)
            flash(other, merged(size_bytes=20_000), state, keep=True)
            assert keys(nvs_of(other.data, "guide"))["VIAM_NS", "WIFI_SSID"], (at, how)
