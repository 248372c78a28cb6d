# SPDX-License-Identifier: GPL-3.0-or-later
"""A manifest on its way: `esp32-ota manifest new`, `repo add`, `serve`, and a host's policy."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web

from esp32_sim.images import build_app
from ota_service.cli.serve import Look, Server, in_manifest, in_repository
from ota_service.errors import OtaError
from ota_service.firmware.check import Firmware, IsManifest, ManifestFile
from ota_service.firmware.manifest import parse_manifest
from ota_service.firmware.supply import Supply
from ota_service.firmware.target import Target
from tests.support.command import Done, here
from tests.support.host_policy import add_key, add_repository, make_host
from tests.support.signing import key, public, sign

OWN = key("ECDSA-P-256", 0)


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A folder with two firmwares, one of which is signed."""
    folder = tmp_path / "build"
    folder.mkdir()
    motor = build_app("motor", "2.0", size_bytes=20_000)
    (folder / "motor.bin").write_bytes(sign(motor, OWN))
    (folder / "my arm.bin").write_bytes(build_app("arm", "2.0", size_bytes=20_000, chip="esp32s3"))
    return folder


def new(build: Path, *more: str) -> Done:
    """A manifest of the two."""
    return here("manifest", "new", str(build / "motor.bin"), f"arm={build / 'my arm.bin'}", *more)


def test_a_manifest_is_written_with_what_the_images_say(build: Path) -> None:
    """Names, urls relative to it, digests, projects, chips; steps and groups as they were given."""
    done = new(build, "--order", "arm", "--together", "arm,motor", "--json")
    assert done.code == 0, done.err
    file = build / "manifest.json"
    said = json.loads(done.out)
    assert said["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    made = parse_manifest(file.read_bytes())
    assert json.loads(file.read_text())["images"]["arm"] == {
        "url": "my%20arm.bin", "project": "arm", "chip": "esp32s3",
        "sha256": hashlib.sha256((build / "my arm.bin").read_bytes()).hexdigest(),
    }  # fmt: skip
    assert (made.version, made.steps) == ("2.0", (("arm",), ("motor",)))
    assert made.together == [["arm", "motor"]]
    shown = new(build, "-o", str(build.parent / "m.json"))
    assert 'm.json: version "2.0"; motor + arm' in shown.out
    (twin,) = [image.url for name, image in
               parse_manifest((build.parent / "m.json").read_bytes()).images.items()
               if name == "motor"]  # fmt: skip
    assert twin == "build/motor.bin"


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("other.bin",), 2, "the apps' versions differ (2.0, 3.0)"),
        (("x/motor.bin",), 2, 'two images would be called "motor"'),
        (("twin=twin.bin",), 0, "motor for esp32 stands in it more than once"),
        (("merged=note.txt",), 1, "note.txt: The file is"),
        (("--order", "leg"), 1, 'order[0][0]: there is no image "leg"'),
        (("--version", ""), 1, "version: is empty"),
    ],
)
def test_what_makes_no_manifest_is_said(
    build: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], code: int, words: str
) -> None:
    """And where boards could get either of two images."""
    monkeypatch.chdir(build)
    (build / "other.bin").write_bytes(build_app("leg", "3.0", size_bytes=20_000))
    (build / "twin.bin").write_bytes(build_app("motor", "2.0", size_bytes=20_000))
    (build / "note.txt").write_text("note")
    done = here("manifest", "new", "motor.bin", "arm=my arm.bin", *more)
    assert done.code == code, done
    assert words in done.out + done.err


@asynccontextmanager
async def serving(look: Look) -> AsyncIterator[str]:
    """What `serve` serves, until the block ends: its base."""
    runner = web.AppRunner(Server(look, lambda _: None).application())
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def test_serve_gives_the_manifest_and_its_images_alone(build: Path, tmp_path: Path) -> None:
    """Not what lies beside them; a folder with an image that is another one is refused."""
    assert new(build).code == 0
    (build / "secret.txt").write_text("not for others")
    file, link = build / "manifest.json", build / "link.json"
    link.symlink_to(file)
    async with serving(partial(in_manifest, link)) as base:
        found = await supplied(Supply(tmp_path / "cache"), Target(f"{base}link.json", "2.0"))
        assert isinstance(found, ManifestFile)
        for target in found.manifest.targets(Target(f"{base}link.json", "2.0")).values():
            assert isinstance(await supplied(Supply(tmp_path / "cache"), target), Firmware)
        async with ClientSession() as session:
            (build / "ring").symlink_to("ring")
            for path in ("", "secret.txt", "..%2fm.json", "%2fetc/passwd", "ring"):
                async with session.get(base + path) as answer:
                    assert answer.status == 404, path
    (build / "motor.bin").write_bytes(build_app("motor", "2.1", size_bytes=20_000))
    for place in (build, file):
        done = here("serve", str(place), "--port", "0")
        assert done.code == 1
        assert "images.motor.sha256" in done.err


async def supplied(supply: Supply, target: Target) -> Firmware | ManifestFile | OtaError:
    """What a host makes of a target."""
    try:
        return await supply.get(target)
    except IsManifest as error:
        return error.found
    except OtaError as error:
        return error


@pytest.mark.slow
async def test_a_host_s_policy_holds_for_a_manifest_and_each_image(
    build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys: a manifest has no signature, each image has to have one. A repository: the manifest is
    one of its targets, and so is each image, under its version."""
    folder, repo = make_host(tmp_path, monkeypatch), tmp_path / "repo"
    assert new(build, "--version", "7").code == 0
    assert here("repo", "init", str(repo)).code == 0

    def add(name: str, *more: str) -> Done:
        return here("repo", "add", str(repo), str(build / name), *more)

    assert "images.motor.url: the repository has no such file" in add("manifest.json").err
    added = [add("motor.bin"), add("my arm.bin", "--name", "arm.bin", "--version", "7")]
    assert [done.code for done in added] == [0, 0]
    entries = json.loads((build / "manifest.json").read_text())
    entries["images"]["arm"]["url"] = "arm.bin"
    (build / "manifest.json").write_text(json.dumps(entries))
    assert 'images.motor.version: it was signed as version "2.0"' in add("manifest.json").err
    assert add("motor.bin", "--version", "7").code == 0
    assert "Leave --version out" in add("manifest.json", "--version", "8").err
    done = add("manifest.json")
    assert 'targets/manifest.json: a manifest as version "7", ' in done.out, done.err
    assert (await asyncio.to_thread(here, "repo", "verify", str(repo))).code == 0

    async def at(base: str, version: str = "7", cache: str = "cache") -> list[Any]:
        """The manifest, and its images by their names."""
        target, supply = Target(f"{base}targets/manifest.json", version), Supply(tmp_path / cache)
        found = await supplied(supply, target)
        if not isinstance(found, ManifestFile):
            return [found]
        targets = found.manifest.targets(target)
        return [found, *[await supplied(supply, targets[name]) for name in ("motor", "arm")]]

    async with serving(partial(in_repository, repo)) as base:
        add_key(folder, public(OWN))
        listed, motor, arm = await at(base)
        assert isinstance(listed, ManifestFile)
        assert isinstance(motor, Firmware)
        assert arm.code == "signature-missing"

        (folder / "keys" / "release.pem").unlink()
        (folder / "keys").rmdir()
        add_repository(folder, base, (repo / "metadata" / "1.root.json").read_bytes())
        listed, motor, arm = await at(base)
        assert listed.allowed_by[0]["target"] == "manifest.json"
        assert isinstance(motor, Firmware)
        assert isinstance(arm, Firmware)
        (other,) = await at(base, "8")
        assert other.code == "version-mismatch"
        # A server that gives another manifest than its owner signed.
        for path in (repo / "targets").glob("*manifest.json"):
            path.write_bytes(path.read_bytes().replace(b'"7"', b'"7" '))
        (other,) = await at(base, cache="empty")
        assert other.code in ("digest-mismatch", "download-too-large")
