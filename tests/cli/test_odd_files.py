# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that are none: each row is a way to a file, and each is tried with folders, FIFOs, devices,
sockets and files without end. None of them is waited for, and the error says what is there.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from grpclib import GRPCError

from esp32_sim.images import build_app
from ota_service.api.load import load_firmware
from ota_service.building.provision import nvs_from_csv
from ota_service.building.tables import load_table
from ota_service.errors import OtaError
from ota_service.firmware.cache import Cache, Known
from ota_service.firmware.download import make_ssl_context
from ota_service.firmware.files import read_file
from ota_service.firmware.supply import read_headers
from ota_service.fleet.firmwares import _read
from ota_service.link.ownership import holders
from ota_service.update.backup_files import read_backup
from tests.cli.test_image import run
from tests.support.module_client import ModuleProcess

pytestmark = pytest.mark.timeout(60)
APP = build_app("demo", "1.0", size_bytes=20_000)
MAC = "24:0a:c4:00:00:01"
PORT = "esp32sim:///nowhere/a"
TABLE = ("--partitions", "ota-guide")


@contextmanager
def odd(folder: Path, kind: str) -> Iterator[Path]:
    """What is there instead of a file."""
    path = folder / kind
    listener = None
    if kind == "folder":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.path.relpath(path))  # its path has 107 bytes at most
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)  # a hole: no disk holds it
    try:
        yield path
    finally:
        if listener is not None:
            listener.close()


KINDS = {
    "folder": "it is a folder, not a regular file",
    "FIFO": "it is a FIFO, not a regular file",
    "device": "it is a device, not a regular file",
    "socket": "it is a socket, not a regular file",
    "large": "it has more than",
}


def csv_with(path: Path) -> object:
    """An NVS whose CSV file names it."""
    csv = path.parent / "nvs.csv"
    csv.write_text(f"key,type,encoding,value\nVIAM_NS,namespace,,\nX,file,binary,{path}\n")
    return nvs_from_csv(csv, 0x4000)


def backup_at(path: Path) -> object:
    """A backup whose manifest it is."""
    folder = path.parent / "backup"
    folder.mkdir()
    path.rename(folder / "backup.json")
    return read_backup(folder)


WAYS: dict[str, Callable[[Path], object]] = {
    "flash, path": _read,
    "load_firmware": lambda path: asyncio.run(load_firmware(path)),
    "ca_file": lambda path: make_ssl_context(str(path)),
    "a header's file": lambda path: read_headers((("X", path),)),
    "a partition table": lambda path: load_table(str(path)),
    "keys of an NVS": lambda path: nvs_from_csv(path, 0x4000),
    "a file in an NVS": csv_with,
    "a backup": backup_at,
}
CODES = {"ca_file": "tls", "a file in an NVS": "nvs-invalid"}
OF_FIRMWARE = {
    "folder": ("not-an-image", "holds no file *.bin"),
    "large": ("download-too-large", KINDS["large"]),
}
"""A firmware may be the only one in a folder, and has a limit of its own."""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
def test_what_is_no_file_is_named(way: str, kind: str, tmp_path: Path) -> None:
    """At once, whoever reads it."""
    with odd(tmp_path, kind) as path, pytest.raises(OtaError) as caught:
        WAYS[way](path)
    code, words = CODES.get(way, "file-access"), KINDS[kind]
    if way == "load_firmware":
        code, words = OF_FIRMWARE.get(kind, (code, words))
    assert caught.value.code == code
    assert words in caught.value.message
    assert str(tmp_path) in caught.value.message


MERGE = ("image", "merge", *TABLE, "--app", "app.bin", "--bootloader", "loader.bin")
COMMANDS = (
    ("image", "inspect", "FILE"),
    ("image", "ota", "FILE"),
    ("image", "ota", "app.bin", "--partitions", "FILE"),
    ("image", "merge", *TABLE, "--app", "app.bin", "--bootloader", "FILE"),
    ("image", "merge", *TABLE, "--app", "FILE", "--bootloader", "loader.bin"),
    (*MERGE, "--nvs", "FILE"),
    (*MERGE, "--part", "x=FILE"),
    ("flash", PORT, "FILE"),
    ("serve", "FILE", "--port", "0"),
    ("repo", "add", "repo", "FILE"),
    ("trust", "install", "FILE", "--yes"),
    ("update", PORT, "--file", "FILE", "--version", "1"),
    ("sim", "--flash", "FILE", "--dir", "boards"),
)  # fmt: skip


@pytest.mark.parametrize("kind", ["FIFO", "device", "large"])
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words[:2] + words[-2:]))
def test_no_argument_of_a_command_is_waited_for(
    words: tuple[str, ...], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line, and exit code 1."""
    from esp32_sim.images import build_bootloader

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    Path("app.bin").write_bytes(APP)
    Path("loader.bin").write_bytes(build_bootloader())
    with odd(tmp_path, kind) as path:
        done = run(*(word.replace("FILE", str(path)) for word in words), code=1)
    said = " ".join(done.stderr.split())
    assert any(part in said for part in (KINDS[kind], "is no file of 32 MiB or less")), said


def test_a_mac_is_checked_before_a_file_is_read(tmp_path: Path) -> None:
    """Wrong usage, whatever the file is."""
    with odd(tmp_path, "FIFO") as path:
        assert "--confirm must be" in run("flash", PORT, str(path), "--confirm", "x", code=2).stderr
        folder = tmp_path / "b"
        folder.mkdir()
        path.rename(folder / "backup.json")
        said = run("restore", PORT, str(folder), "--confirm", "x", code=2).stderr
        assert "--confirm must be" in said


def test_a_file_that_grows_or_does_not_say_its_size_is_read_up_to_the_limit(tmp_path: Path) -> None:
    """A limit is a limit; what waits for more data is no file either."""
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_file(path, 5) == b"12345"
    with pytest.raises(OtaError, match="more than 4 bytes"):
        read_file(path, 4)
    assert read_file("/proc/self/status", 1 << 16).startswith(b"Name:")
    with pytest.raises(OtaError, match="more than 10 bytes"):
        read_file("/proc/self/status", 10)
    (tmp_path / "link").symlink_to(path)
    assert read_file(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OtaError, match="it is a link"):
        read_file(tmp_path / "link", 5, links=False)
    for odd_path in ("none", "a\0b", "x/y"):
        with pytest.raises(OtaError, match="cannot be read"):
            read_file(tmp_path / odd_path, 5)


@pytest.mark.parametrize("kind", ["FIFO", "device", "link"])
def test_what_stands_in_the_cache_in_place_of_a_file_is_taken_away(
    kind: str, tmp_path: Path
) -> None:
    """It is as good as nothing: neither read nor followed nor waited for."""
    cache = Cache(tmp_path)
    sha256 = cache.keep(APP)
    cache.remember("http://h/a", Known(sha256, "1"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(APP)

    def replace(path: Path) -> None:
        path.unlink(missing_ok=True)
        if kind == "FIFO":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero" if kind == "device" else elsewhere)

    replace(cache.image_path(sha256))
    replace(cache.urls / next(cache.urls.iterdir()).name)
    assert cache.known("http://h/a") is None
    assert cache.image(sha256) is None
    assert not cache.image_path(sha256).is_symlink()
    assert not cache.image_path(sha256).exists()
    cache.remember("http://h/a", Known(sha256, "1"))
    assert cache.first("http://h/a", "1") == sha256
    replace(cache.image_path(sha256))
    assert cache.keep(APP) == sha256
    assert cache.image(sha256) == APP
    assert elsewhere.read_bytes() == APP


def test_a_lock_file_of_another_program_may_be_anything(tmp_path: Path) -> None:
    """Everybody may write there."""
    os.mkfifo(tmp_path / "LCK..ttyNONE")
    assert holders("/dev/ttyNONE", uucp=[tmp_path]) == []


@pytest.mark.slow
async def test_flash_reads_no_device_and_ends_when_it_is_told(tmp_path: Path) -> None:
    """Through the module: /dev/zero, a FIFO, a folder; memory stays, and SIGTERM ends it."""
    async with ModuleProcess.start(tmp_path) as module:
        board = {"name": "a", "port": "rfc2217://127.0.0.1:1"}
        target = {"url": "http://127.0.0.1:9/a", "version": "1", "boards": [board]}
        await module.add("OTA", {**target, "auto_update": False})
        flash = {"command": "flash", "board": "a", "confirm": MAC, "wait_s": 20}
        with odd(tmp_path, "FIFO") as fifo:
            for path, words in (
                (fifo, "a FIFO"),
                ("/dev/zero", "a device"),
                (tmp_path, "a folder"),
            ):
                with pytest.raises(GRPCError, match=f"it is {words}, not a regular file"):
                    await module.command("OTA", {**flash, "path": str(path)})
        status = Path(f"/proc/{module.process.pid}/status").read_text()
        peak_kb = int(status.split("VmHWM:")[1].split()[0])
        assert peak_kb < 400_000
        begun_s = time.monotonic()
        assert await module.terminate() == 0
        assert time.monotonic() - begun_s < 10.0
