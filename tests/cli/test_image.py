# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota image` from outside: what it makes, what it shows, and how it fails."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from esp32_sim.factory import build_nvs, default_nvs, make_flash
from esp32_sim.images import build_app, build_bootloader
from ota_service.building.tables import load_table
from ota_service.cli.main import main
from ota_service.cli.output import PLAIN_WIDTH
from ota_service.formats.image import parse_app_image
from ota_service.formats.merged import parse_merged
from tests.support.elf import app_elf

APP = build_app("demo", "1.2.3", size_bytes=100_000)
NVS_CSV = "key,type,encoding,value\nVIAM_NS,namespace,,\nWIFI_PASSWORD,data,string,hunter2hunter2\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the parts of a project's build."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", str(PLAIN_WIDTH))
    (tmp_path / "app.bin").write_bytes(APP)
    (tmp_path / "app.elf").write_bytes(app_elf())
    (tmp_path / "loader.bin").write_bytes(build_bootloader())
    (tmp_path / "nvs.csv").write_text(NVS_CSV)
    return tmp_path


def run(*arguments: str, code: int = 0) -> Result:
    """Run the command as its entry point does."""

    class Entry:
        name = "esp32-ota"

        def main(self, args: Any = None, **_: Any) -> None:
            main(args)

    done = CliRunner().invoke(Entry(), list(arguments))  # type: ignore[arg-type]
    assert done.exit_code == code, done.output
    return done


def inspected(path: str, code: int = 0) -> dict[str, Any]:
    """The JSON of `image inspect`."""
    found: dict[str, Any] = json.loads(run("image", "inspect", path, "--json", code=code).stdout)
    return found


def test_an_elf_becomes_an_app_image_under_build(files: Path) -> None:
    """Checked, named, and with its size against the slots of a table."""
    done = run("image", "ota", "app.elf", "--partitions", "ota-guide")
    made = parse_app_image((files / "build/app.bin").read_bytes())
    assert (made.chip, made.descriptor.version) == ("ESP32", "1.2.3")
    assert "build/app.bin: an App Image for ESP32" in done.stdout
    assert "ota_1" in done.stdout
    again = run("image", "ota", "app.elf", "-o", "other.bin", "--json")
    assert json.loads(again.stdout)["app"]["project"] == "demo"
    assert (files / "other.bin").read_bytes() == (files / "build/app.bin").read_bytes()


def test_an_app_image_is_checked_and_taken_over(files: Path) -> None:
    """Without the padding behind it; the wrong file leaves nothing."""
    (files / "padded.bin").write_bytes(APP + b"\xff" * 500)
    run("image", "ota", "padded.bin")
    assert (files / "build/padded.bin").read_bytes() == APP
    (files / "full.bin").write_bytes(bytes(make_flash("guide")))
    for name, words in (("full.bin", "Merged Binary"), ("loader.bin", "bootloader")):
        done = run("image", "ota", name, code=1)
        assert words in done.stderr
        assert "esp32-ota image ota FILE" in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (files / "build" / name).exists()


def test_an_app_that_no_slot_holds_is_refused(files: Path) -> None:
    """Before anything is written."""
    (files / "large.bin").write_bytes(build_app(size_bytes=1_200_000))
    done = run("image", "ota", "large.bin", "--partitions", "ota-guide", code=1)
    assert "1,048,576" in done.stderr
    assert not (files / "build").exists()


def test_a_merged_binary_is_made_and_summarised(files: Path) -> None:
    """From an ELF as well; with keys it is for its owner's eyes only; the same each time."""
    arguments = [
        *("image", "merge", "--bootloader", "loader.bin", "--partitions", "ota-guide"),
        *("--app", "app.elf", "--nvs", "nvs.csv"),
    ]
    done = run(*arguments)
    path = files / "build/app-merged.bin"
    first = path.read_bytes()
    read = parse_merged(first)
    assert read.problems == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for words in ("bootloader", "partition table", "otadata", "factory", "1 keys", "ota_1"):
        assert words in done.stdout
    assert "hunter2" not in done.output
    assert "100 %" not in done.stdout  # nvs and otadata always take all of their partitions
    assert not any(line != line.rstrip() for line in done.stdout.splitlines())
    run(*arguments)
    assert path.read_bytes() == first
    shown = json.loads(run(*arguments, "--json").stdout)
    assert shown["nvs"][0]["keys"] == {"VIAM_NS": {"WIFI_PASSWORD": "string"}}


def test_a_merged_binary_without_keys_is_readable_as_any_file(files: Path) -> None:
    """A build's output is copied around by others."""
    run(
        *("image", "merge", "--bootloader", "loader.bin", "--partitions", "micro-rdk"),
        *("--app", "app.bin", "--flash-size", "8MB", "-o", "m.bin"),
    )
    assert stat.S_IMODE((files / "m.bin").stat().st_mode) & 0o400
    assert inspected("m.bin")["boots"] == "ota_0"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--flash-size", "2MB"], 1, "flash-size"),
        (["--flash-size", "3MB"], 2, "8MB"),
        (["--part", "phy_init"], 2, "LABEL=FILE"),
        (["--part", "nowhere=app.bin"], 1, "nowhere"),
        (["--part", "phy_init=missing.bin"], 1, "missing.bin cannot be read: No such file"),
        (["--table-offset", "here"], 2, "0x8000"),
        (["--table-offset", "0x8800"], 1, "a multiple of 0x1000 from 0x8000 to 0x20000"),
        (["--table-offset", "0x21000"], 1, "a multiple of 0x1000 from 0x8000 to 0x20000"),
        (["--nvs", "app.bin"], 1, "nvs partition"),
        (["--partitions", "nowhere.csv"], 1, "nowhere.csv: No such file"),
        (["--partitions", "nowhere"], 1, "one of micro-rdk, micro-rdk-8mb, ota-guide"),
    ],
)
def test_merge_names_what_is_wrong(
    files: Path, arguments: list[str], code: int, words: str
) -> None:
    """One line, and the exit code for wrong usage where it is one."""
    base = ["image", "merge", "--bootloader", "loader.bin", "--partitions", "ota-guide"]
    done = run(*base, "--app", "app.bin", *arguments, code=code)
    assert words in done.stderr
    assert not (files / "build").exists()


def test_a_build_with_its_table_elsewhere(files: Path) -> None:
    """Merged, read back and shown from its first byte and from its bootloader's; its table too."""
    (files / "own.csv").write_text(
        "boot,bootloader,primary,N/A,N/A,\ntable,partition_table,primary,N/A,N/A,\n"
        "nvs,data,nvs,,24K\notadata,data,ota,,8k\nota_0,app,ota_0,,1m\nota_1,app,ota_1,,1M\n",
        encoding="utf-16",
    )
    run(
        *("image", "merge", "--bootloader", "loader.bin", "--partitions", "own.csv"),
        *("--app", "app.bin", "--table-offset", "0x10000", "-o", "m.bin"),
    )
    data = (files / "m.bin").read_bytes()
    (files / "cut.bin").write_bytes(data[0x1000:])
    (files / "table.bin").write_bytes(data[0x10000:0x10C00])
    for name in ("m.bin", "cut.bin"):
        found = inspected(name)
        assert (found["kind"], found["table_offset"], found["boots"]) == (
            *("merged-binary", 0x10000, "ota_0"),
        )
        shown = run("image", "inspect", name).stdout
        assert re.search(r"partition table +0x10000$", shown, re.MULTILINE)
    places = {row["label"]: row["offset"] for row in inspected("table.bin")["partitions"]}
    assert places == {
        **{"boot": 0x1000, "table": 0x10000, "nvs": 0x11000, "otadata": 0x17000},
        **{"ota_0": 0x20000, "ota_1": 0x120000},
    }


def test_the_chip_of_an_app_image_is_not_overruled(files: Path) -> None:
    """It would be an image for another chip under the name of this one."""
    assert (
        "is for ESP32, not for esp32c3"
        in run("image", "ota", "app.bin", "--chip", "esp32c3", code=1).stderr
    )
    run("image", "ota", "app.bin", "--chip", "ESP32")


def test_a_folder_that_cannot_be_written_is_named(files: Path) -> None:
    """As one line with what to look at."""
    (files / "build").write_text("a file where the folder should be")
    done = run("image", "ota", "app.bin", code=1)
    assert "build" in done.stderr
    assert "[file-access]" in done.stderr


def test_inspect_shows_a_whole_flash(files: Path) -> None:
    """Table, apps, otadata and NVS keys; no value of a key."""
    flash = bytes(make_flash("micro-rdk", app=APP, slot="ota_1", other_app=build_app("old", "0.9")))
    (files / "flash.bin").write_bytes(flash)
    found = inspected("flash.bin")
    assert (found["kind"], found["ok"], found["chip"]) == ("merged-binary", True, "ESP32")
    apps = {row["label"]: row["app"]["version"] for row in found["partitions"] if "app" in row}
    assert apps == {"ota_0": "0.9", "ota_1": "1.2.3"}
    assert found["boots"] == "ota_1"
    assert [entry["active"] for entry in found["otadata"]].count(True) == 1
    assert found["nvs"][0]["keys"]["VIAM_NS"]["ROBOT_SECRET"] == "string"
    shown = run("image", "inspect", "flash.bin").stdout
    for words in ("ota_1", "demo 1.2.3", "  boots", "ROBOT_SECRET", "  decides"):
        assert words in shown
    secrets = [v for v in default_nvs().values() if isinstance(v, str) and len(v) > 9]
    assert len(secrets) > 3
    for secret in secrets:
        assert secret not in shown
        assert secret not in json.dumps(found)


def test_inspect_shows_the_other_kinds(files: Path) -> None:
    """Each of the files that lie in a build folder."""
    (files / "table.bin").write_bytes(load_table("ota-guide"))
    (files / "nvs.bin").write_bytes(build_nvs(0x4000, default_nvs()))
    kinds = {name: inspected(name)["kind"] for name in (
        "app.bin", "loader.bin", "table.bin", "nvs.bin")}  # fmt: skip
    assert list(kinds.values()) == ["app-image", "bootloader", "partition-table", "nvs"]
    for name in kinds:
        assert run("image", "inspect", name).stdout.startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (APP[:-100], "app-image", "ends at 99900 bytes"),
        (APP[:5000] + b"x" + APP[5001:], "app-image", "checksum"),
        (b"<html>log in</html>", "unknown", "web page"),
        (b"", "unknown", "empty"),
        (app_elf(), "unknown", "esp32-ota image ota FILE"),
        (load_table("ota-guide")[:100], "partition-table", "cut off"),
        (build_bootloader()[:-50], "app-image", "ends at"),
    ],
)
def test_inspect_says_where_a_file_is_damaged(
    files: Path, content: bytes, kind: str, words: str
) -> None:
    """With exit code 1, as text and as JSON."""
    (files / "x.bin").write_bytes(content)
    found = inspected("x.bin", code=1)
    assert (found["kind"], found["ok"]) == (kind, False)
    assert words in found["problems"][0]
    assert words in run("image", "inspect", "x.bin", code=1).stdout


def test_a_damaged_slot_in_a_whole_flash_is_found(files: Path) -> None:
    """With its label and its place."""
    flash = make_flash("guide", app=APP)
    flash[0x10000 + 3000] ^= 4
    (files / "flash.bin").write_bytes(bytes(flash))
    (problem,) = inspected("flash.bin", code=1)["problems"]
    assert problem.startswith("factory at 0x10000: The App Image is damaged")


def test_names_from_a_file_cannot_colour_a_terminal(files: Path) -> None:
    """A project's name is shown as text, whatever it looks like."""
    (files / "odd.bin").write_bytes(build_app("[bold]\x1b[31mred", "[/x]", size_bytes=50_000))
    shown = run("image", "inspect", "odd.bin").stdout
    assert "[bold][31mred" in shown
    assert "[/x]" in shown
    assert "\x1b" not in shown
