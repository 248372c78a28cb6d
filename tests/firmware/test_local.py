# SPDX-License-Identifier: GPL-3.0-or-later
"""Firmware that lies on this machine: which file is meant, and what is read of it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from esp32_sim.images import build_app
from ota_service.errors import OtaError
from ota_service.firmware.check import Firmware, IsManifest
from ota_service.firmware.failures import NotThere
from ota_service.firmware.local import find_file, read_firmware
from ota_service.firmware.manifest import MAX_BYTES
from ota_service.firmware.supply import Supply
from ota_service.firmware.target import Target
from ota_service.fleet.firmwares import Fetched, Firmwares, _keep, _read_kept
from ota_service.fleet.settings import Settings
from tests.support.firmware_server import FirmwareServer

ROOT = Path(__file__).parents[2]
APP = build_app("demo", "1.0", size_bytes=20_000)
OTHER = build_app("demo", "2.0", size_bytes=20_000)


def make(folder: Path, *names: str) -> Path:
    """A folder with files of these names."""
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(APP)
    return folder


@pytest.mark.parametrize(
    ("names", "code", "words"),
    [
        (("robot.bin",), None, "robot.bin"),
        (("robot.bin", "robot.elf", "._robot.bin", ".old.bin"), None, "robot.bin"),
        (("robot.bin", "manifest.json"), None, "manifest.json"),
        (("a.bin", "b.bin", "manifest.json"), None, "manifest.json"),
        ((), "not-an-image", "holds no file *.bin"),
        (("robot.elf",), "not-an-image", "holds no file *.bin"),
        (("a.bin", "robot.bin"), "not-an-image", "holds 2 files *.bin (a.bin, robot.bin);"),
        (tuple(f"{n}.bin" for n in range(5)), "not-an-image", "(0.bin, 1.bin, 2.bin, 3.bin, ...)"),
    ],
)
def test_a_folder_has_a_manifest_or_just_one_app_image(
    tmp_path: Path, names: tuple[str, ...], code: str | None, words: str
) -> None:
    """A package's folder holds other files, too; what is not clear is refused in words."""
    folder = make(tmp_path / "package", *names)
    link = tmp_path / "link"
    link.symlink_to(folder)
    if code is None:
        assert find_file(link) == link / words
        return
    with pytest.raises(OtaError) as caught:
        find_file(link)
    assert caught.value.code == code
    assert words in caught.value.message


def pipe(path: Path) -> None:
    """A file that a plain open would wait at."""
    os.mkfifo(path)


def looped(path: Path) -> None:
    """A link that leads nowhere."""
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("put", "code", "words"),
    [
        (lambda path: None, "file-access", "cannot be read: No such file"),
        (pipe, "file-access", "not a regular file"),
        (lambda path: path.symlink_to("/dev/null"), "file-access", "not a regular file"),
        (looped, "file-access", "cannot be read: "),
        (
            lambda path: path.write_bytes(bytes(101)),
            "download-too-large",
            "more than 100 bytes",
        ),
    ],
)
def test_nothing_but_a_regular_file_is_opened(
    tmp_path: Path, put: Callable[[Path], None], code: str, words: str
) -> None:
    """A pipe is not waited at, a device is left closed, and a large file is not read."""
    path = tmp_path / "app.bin"
    put(path)
    with pytest.raises(OtaError) as caught:
        read_firmware(path, 100)
    assert caught.value.code == code
    assert words in caught.value.message
    assert isinstance(caught.value, NotThere) == (code == "file-access")


def test_a_file_that_is_written_meanwhile_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the old file and half of the new one is no firmware."""
    path = tmp_path / "app.bin"
    path.write_bytes(APP)
    stat, turns = os.fstat, 0

    def written_after(fd: int) -> os.stat_result:
        nonlocal turns
        turns += 1
        if turns == 2:
            path.write_bytes(OTHER)
        return stat(fd)

    monkeypatch.setattr("ota_service.firmware.files.os.fstat", written_after)
    assert read_firmware(path, 1 << 20)[0] == OTHER


async def test_a_folder_with_a_manifest_has_its_images_beside_it(tmp_path: Path) -> None:
    """As a package of Viam has; also where the manifest itself is named, and has another name."""
    folder = make(tmp_path / "package", "app.bin", "other.bin")
    entry = {"url": "app.bin", "sha256": hashlib.sha256(APP).hexdigest()}
    made = json.dumps({"format": 1, "version": "1.0", "images": {"demo": entry}})
    supply = Supply(tmp_path / "cache")
    for name, place in (("manifest.json", folder), ("robot", folder / "robot")):
        (folder / name).write_text(made)
        target = Target(str(place), "1.0")
        with pytest.raises(IsManifest) as caught:
            await supply.get(target)
        found = caught.value.found
        assert found.place == str(folder / name)
        image = found.manifest.targets(replace(target, url=found.place))["demo"]
        assert image.url == str(folder / "app.bin")
        assert (await supply.get(image)).data == APP


def published(folder: Path, images: dict[str, bytes], **more: object) -> Target:
    """A folder with a manifest and its images; the target that it is."""
    folder.mkdir(exist_ok=True)
    entries = {}
    for name, data in images.items():
        (folder / f"{name}.bin").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        entries[name] = {"url": f"{name}.bin", "sha256": digest}
    made = {"format": 1, "version": "1.0", "images": entries, **more}
    (folder / "manifest.json").write_text(json.dumps(made))
    return Target(str(folder), "1.0")


def firmwares_of(folder: Path, target: Target) -> Firmwares:
    """A service's."""

    async def never(_: str) -> bool:
        return False

    settings = Settings("OTA", target, state_dir=folder / "state", cache_dir=folder / "cache")
    return Firmwares(settings, logging.LoggerAdapter(logging.getLogger("ota_service"), {}), never)


@pytest.mark.parametrize("boards", [None, {"a": "eyes"}])
async def test_a_manifest_in_a_manifest_is_not_followed(
    tmp_path: Path, boards: dict[str, str] | None
) -> None:
    """It would take the place of the one that is configured."""
    package = tmp_path / "package"
    published(package, {"demo": APP}, boards={"a": "demo"})
    inner = (package / "manifest.json").read_bytes()
    more = {} if boards is None else {"boards": boards}
    target = published(package, {"demo": APP, "eyes": inner}, **more)
    firmwares = firmwares_of(tmp_path, target)
    asked = target
    if boards is not None:  # then it is had for the boards that get it
        found = await firmwares.manifest(target)
        assert found is not None
        asked = found.manifest.targets(replace(target, url=found.place))["eyes"]
        firmwares.named = {asked.key: (found.manifest, "eyes")}
    with pytest.raises(OtaError, match=r"images\.eyes: its file is a manifest") as caught:
        await firmwares.manifest(asked)
    assert caught.value.code == "manifest-invalid"
    assert len(list((tmp_path / "state").rglob("*.json"))) == (boards is not None)
    await firmwares.close()


async def test_one_target_is_downloaded_once(tmp_path: Path) -> None:
    """However many boards and looks want it at the same time."""
    async with FirmwareServer.start() as server:
        server.put("/app.bin", APP)
        gate = server.hold("/app.bin")
        target = Target(server.url("/app.bin"), "1.0")
        firmwares = firmwares_of(tmp_path, target)

        async def had() -> Fetched:
            async with firmwares.had(target) as fetched:
                return fetched

        asking = [asyncio.create_task(had()) for _ in range(5)]
        await server.wait_requests(1)
        gate.set()
        assert len({id(one) for one in await asyncio.gather(*asking)}) == 1
        assert len(server.requests) == 1
        await firmwares.close()


async def test_the_images_of_a_manifest_are_looked_at_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For what it does not say of them: hundreds fit no memory at once. What follows one that
    cannot be had is not asked for."""
    images = {name: build_app(name, "1.0", size_bytes=20_000) for name in "abcde"}
    target = published(tmp_path / "package", images)
    firmwares = firmwares_of(tmp_path, target)
    get, had, most = firmwares._supply.get, [], 0

    async def counted(asked: Target, **options: Any) -> Firmware:
        nonlocal most
        if asked == target:
            return await get(asked, **options)
        firmware = await get(asked, **options)
        had.append(weakref.ref(firmware))
        most = max(most, sum(one() is not None for one in had))
        return firmware

    monkeypatch.setattr(firmwares._supply, "get", counted)
    found = await firmwares.manifest(target)
    assert found is not None
    assert [one.project for one in found.manifest.images.values()] == list("abcde")
    assert len(had) == 5
    assert most <= 2  # the loop may still hold the one before
    had.clear()
    (tmp_path / "package" / "a.bin").unlink()
    with pytest.raises(OtaError, match="file-access"):
        await firmwares.manifest(target)
    assert had == []
    await firmwares.close()


def test_the_longest_manifest_is_kept(tmp_path: Path) -> None:
    """In whatever script: JSON in JSON is longer."""
    text = "é" * (MAX_BYTES // 2)
    _keep(tmp_path / "kept.json", {"manifest": text, "about": {}})
    assert _read_kept(tmp_path / "kept.json") == (text.encode(), {})


async def test_a_path_is_read_and_read_again_where_it_changed(tmp_path: Path) -> None:
    """Same version, other contents: told, as of downloads; size, time or inode may be what shows
    it. A digest holds for paths, too."""
    folder = make(tmp_path / "package", "app.bin")
    path, supply = folder / "app.bin", Supply(tmp_path / "cache")
    target = Target(str(folder), "1.0")
    first = await supply.get(target)
    assert (first.data, first.changed_from) == (APP, None)
    assert not supply.changed(target.url)
    before = path.stat()
    new = folder / "new"
    new.write_bytes(OTHER)
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    new.replace(path)
    assert path.stat().st_size == before.st_size
    assert supply.changed(target.url)
    again = await supply.get(target)
    assert (again.data, again.changed_from) == (OTHER, first.sha256)
    assert not supply.changed(target.url)
    os.utime(path)
    assert supply.changed(target.url)
    path.unlink()
    assert not supply.changed(target.url), "there is nothing to read"
    path.write_bytes(APP)
    held = Target(str(path), "1.0", hashlib.sha256(OTHER).hexdigest())
    with pytest.raises(OtaError) as caught:
        await supply.get(held)
    assert caught.value.code == "digest-mismatch"
    with pytest.raises(OtaError, match="max_image_bytes"):
        await supply.get(target, max_image_bytes=1024)


@pytest.mark.slow
def test_a_file_of_this_machine_needs_no_client_of_http(tmp_path: Path) -> None:
    """Which takes longer to load than the file: a command that updates from it goes without."""
    code = (
        "import asyncio, pathlib, sys\n"
        "import ota_service.api.engine, ota_service.cli.live, ota_service.cli.report\n"
        "from ota_service.firmware.supply import Supply\n"
        "from ota_service.firmware.target import Target\n"
        "got = asyncio.run(Supply(pathlib.Path(sys.argv[1])).get(Target(sys.argv[2], '1')))\n"
        "print(len(got.data), 'aiohttp' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(make(tmp_path / "x", "app.bin"))],
        capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.stdout == f"{len(APP)} False\n"
