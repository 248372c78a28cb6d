# SPDX-License-Identifier: GPL-3.0-or-later
"""NVS from CSV, and all keys of an NVS into one of another size: judged by other readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from esp32_sim.factory import build_nvs, default_nvs
from esp32_sim.nvsformat import NvsError
from esp32_sim.nvsmodel import NvsStore, nvs_init
from ota_service.building.provision import nvs_from_csv
from ota_service.errors import OtaError
from ota_service.formats.nvs import parse_nvs
from ota_service.formats.nvs.move import move_nvs

CSV = """key,type,encoding,value
# the robot's credentials
VIAM_NS,namespace,,
WIFI_SSID,data,string,workshop
WIFI_PASSWORD,data,string,correct horse
ROBOT_CONFIG,file,binary,config.bin
phy,namespace,,
cal_version,data,u32,1143
"""


def contents(raw: bytes) -> dict[tuple[str, str], Any]:
    """What the simulator's reader, which shares no code with ours, finds."""
    state = nvs_init(bytearray(raw))
    assert state.error is None
    return dict(state.items)


def test_a_csv_becomes_a_partition(tmp_path: Path) -> None:
    """Strings, numbers and files beside the CSV; the same each time."""
    (tmp_path / "config.bin").write_bytes(bytes(range(256)) * 20)
    csv = tmp_path / "nvs.csv"
    csv.write_text(CSV)
    data = nvs_from_csv(csv, 0x6000)
    assert len(data) == 0x6000
    found = contents(data)
    assert found["VIAM_NS", "WIFI_PASSWORD"][1] == b"correct horse"
    assert found["VIAM_NS", "ROBOT_CONFIG"][1] == bytes(range(256)) * 20
    assert found["phy", "cal_version"][1] == (1143).to_bytes(4, "little")
    assert nvs_from_csv(csv, 0x6000) == data
    assert parse_nvs(data).free_pages >= 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "does not begin with"),
        ("key,type\n", "does not begin with"),
        (CSV.replace("config.bin", "missing.bin"), "missing.bin"),
        (CSV.replace("namespace,,\nWIFI", "data,u8,1\nWIFI"), "no namespace"),
        (CSV.replace("data,string,workshop", "text,string,workshop"), "has the type 'text'"),
        (CSV.replace("u32,1143", "u32,hunter2hunter2"), "cannot be used"),
        (CSV.replace("WIFI_SSID", "A_KEY_OF_17_CHARS"), ""),
        (CSV.replace("workshop", "hunter2" * 800), "row that cannot be used"),
    ],
)
def test_what_is_wrong_is_said_without_the_values(tmp_path: Path, text: str, words: str) -> None:
    """The file holds passwords; an error goes into logs of builds."""
    (tmp_path / "config.bin").write_bytes(b"x")
    csv = tmp_path / "nvs.csv"
    csv.write_text(text)
    with pytest.raises(OtaError) as caught:
        nvs_from_csv(csv, 0x4000)
    assert caught.value.code in ("nvs-invalid", "nvs-full")
    assert words in caught.value.message
    for secret in ("hunter2", "correct horse", "workshop"):
        assert secret not in str(caught.value)


def test_more_than_fits_is_refused(tmp_path: Path) -> None:
    """And one page is left free, as the firmware needs it."""
    (tmp_path / "config.bin").write_bytes(bytes(9000))
    csv = tmp_path / "nvs.csv"
    csv.write_text(CSV)
    with pytest.raises(OtaError):
        nvs_from_csv(csv, 0x3000)
    assert parse_nvs(nvs_from_csv(csv, 0x5000)).free_pages >= 1


@pytest.mark.parametrize("size", [0x3000, 0x4000, 0x6000, 0x14000])
def test_all_keys_move_into_another_size(size: int) -> None:
    """A robot's keys: strings, blobs, another namespace; read by the simulator's reader."""
    before = build_nvs(0x6000, default_nvs())
    after = move_nvs(before, size)
    assert len(after) == size
    assert contents(after) == contents(before)
    assert parse_nvs(after).free_pages >= 1


def test_the_same_size_is_taken_over_as_it_is() -> None:
    """Not one byte changes."""
    before = build_nvs(0x6000, default_nvs())
    assert move_nvs(before, 0x6000) == before
    assert move_nvs(before, 0x8000) == before + b"\xff" * 0x2000


def test_keys_that_do_not_fit_are_refused() -> None:
    """Nothing is left out in silence."""
    full = build_nvs(0x8000, {f"KEY{n}": bytes([n]) * 1500 for n in range(10)})
    with pytest.raises(OtaError) as caught:
        move_nvs(full, 0x4000)
    assert caught.value.code == "nvs-full"
    with pytest.raises(OtaError):
        move_nvs(full, 0x2000)


def test_a_board_that_rewrote_its_keys_often_moves_them_too() -> None:
    """Pages in another order, erased entries, a blob in a second version."""
    region = bytearray(build_nvs(0x6000, default_nvs()))
    store = NvsStore(region)
    store.init()
    for round_ in range(60):
        store.set("VIAM_NS", "OTA_VERSION", f"1.{round_}")
        store.set("VIAM_NS", "ROBOT_CONFIG", bytes([round_]) * (700 + round_))
        store.set("app", "counter", round_)
    before = bytes(region)
    for size in (0x4000, 0x5000):
        assert contents(move_nvs(before, size)) == contents(before)


@settings(max_examples=15)
@given(
    st.dictionaries(
        st.text("ABCDEFGH_", min_size=1, max_size=15),
        st.one_of(
            st.integers(0, 2**32 - 1),
            st.text(max_size=200).filter(lambda text: "\0" not in text),
            st.binary(min_size=1, max_size=3000),
        ),
        max_size=8,
    )
)
def test_any_keys_arrive_whole_or_not_at_all(keys: dict[str, Any]) -> None:
    """Whatever a board keeps."""
    try:
        before = build_nvs(0xA000, keys)
    except NvsError:
        assume(False)  # more than fits
    try:
        after = move_nvs(before, 0x5000)
    except OtaError as error:
        assert error.code == "nvs-full"
    else:
        assert contents(after) == contents(before)
