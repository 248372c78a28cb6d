# SPDX-License-Identifier: GPL-3.0-or-later
"""The archive of `make module`, used where there is nothing: an empty home, no Python, no network.

    make module && make test-archive

It takes a minute to make, so these run only where one is named (ARCHIVE=path).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import tarfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import ClientSession

from tests.repo.test_archive import FILTER, OWN
from tests.support.module_client import IDLE_ATTRIBUTES, ModuleProcess

ARCHIVE = os.environ.get("ARCHIVE", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ARCHIVE, reason="needs an archive: make module && make test-archive"),
]
MODELS = {"ota_service", "ota_discovery", "ota_sensor"}


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive in a folder of its own, with a space in its name."""
    folder = tmp_path_factory.mktemp("a machine")
    with tarfile.open(ARCHIVE) as tar:
        tar.extractall(folder, **FILTER)
    return folder


@pytest.fixture
def nothing(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine on which nothing is installed."""
    (tmp_path / "home").mkdir()
    (tmp_path / "bin").mkdir()
    return {"HOME": str(tmp_path / "home"), "PATH": str(tmp_path / "bin")}


def call(unpacked: Path, env: dict[str, str], *arguments: str | Path) -> str:
    """What the command prints; it has to end well."""
    done = subprocess.run(
        [unpacked / "esp32-ota", *arguments],
        env=env, cwd=env["HOME"], capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@asynccontextmanager
async def started(
    unpacked: Path, env: dict[str, str], *arguments: str | Path
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A command that goes on, and its first line."""
    process = await asyncio.create_subprocess_exec(
        unpacked / "esp32-ota", *arguments, env=env, cwd=env["HOME"], stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        yield process, line.decode().strip()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


def running(unpacked: Path) -> Iterator[int]:
    """The processes whose program is in the folder."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "exe").readlink().is_relative_to(unpacked):
                yield int(folder.name)


def test_it_has_what_its_meta_names_its_licences_and_its_source(unpacked: Path) -> None:
    """A program that is started as it is, with no step before it, and a page of each model."""
    meta = json.loads((unpacked / "meta.json").read_text())
    assert os.access(unpacked / meta["entrypoint"], os.X_OK)
    assert "first_run" not in meta
    for model in meta["models"]:
        assert (unpacked / model["markdown_link"]).is_file()
    table = (unpacked / "LICENSES" / "README.md").read_text()
    inside = set(re.findall(r"^\| (\S+) \| \S+ \| .+ \| .+ \|$", table, re.M))
    assert {
        "Python",
        "esptool",
        "viam-sdk",
        "pyinstaller",
        "cryptography",
        "tuf",
        "gpiod",
    } <= inside
    assert not {"pytest", "mypy", "setuptools"} & inside
    assert [file.name for file in (unpacked / "LICENSES" / "esptool").iterdir()]
    assert (unpacked / "LICENSE").read_text().lstrip().startswith("GNU GENERAL PUBLIC LICENSE")
    with tarfile.open(unpacked / "source.tar.gz") as source:
        names = set(source.getnames())
    assert {"src/main.py", "tools/frozen.py", "Makefile", "requirements.txt", "setup.sh"} <= names


def test_viam_server_unpacks_every_link(unpacked: Path) -> None:
    """It refuses an archive with a link that leads up, seen from the archive's own folder."""
    links = [path.readlink() for path in unpacked.rglob("*") if path.is_symlink()]
    assert Path("ota-service") in links
    assert not [link for link in links if link.is_absolute() or ".." in link.parts]


async def test_the_module_updates_a_board(
    unpacked: Path, nothing: dict[str, str], tmp_path: Path
) -> None:
    """One that the same program simulates, with firmware that it made; Ready comes fast."""
    call(unpacked, nothing, "sim", "--files", tmp_path / "files")
    sim = ("sim", "--dir", tmp_path / "boards", "--times", "off")
    async with (
        started(unpacked, nothing, *sim) as (_, port),
        ModuleProcess.start(
            tmp_path / "m", executable=[unpacked / "ota-service"], env=nothing, cwd=unpacked
        ) as module,
    ):
        print(f"Ready after {module.start_cpu_s:.2f} s of the processor")
        assert module.start_cpu_s < 3
        served = {model.rpartition(":")[2] for model in module.models}
        assert served == MODELS
        assert set(module.models) >= OWN
        boards = [{"name": "lab", "port": port}]
        attributes = {"url": str(tmp_path / "files" / "app.bin"), "version": "1.1.0"}
        await module.add("OTA", {**attributes, "boards": boards})
        status = await module.wait_status(
            "OTA", lambda status: status.get("run", {}).get("outcome", "running") != "running"
        )
        assert status["boards"]["lab"]["state"] == "up_to_date", status
        assert status["boards"]["lab"]["version"] == "1.1.0"


async def test_nothing_of_it_is_left_where_it_is_killed(
    unpacked: Path, nothing: dict[str, str], tmp_path: Path
) -> None:
    """What viam-server started is the module itself: no child of it goes on with the ports."""
    async with ModuleProcess.start(
        tmp_path / "m", executable=[unpacked / "ota-service"], env=nothing, cwd=unpacked
    ) as module:
        await module.add("OTA", IDLE_ATTRIBUTES)
        assert list(running(unpacked)) == [module.process.pid]
        await module.kill()
        assert list(running(unpacked)) == []


async def test_the_command_does_its_work(
    unpacked: Path, nothing: dict[str, str], tmp_path: Path
) -> None:
    """Help, files, a board looked at, updated and backed up, a repository, the page."""
    files, board = tmp_path / "files", tmp_path / "boards"
    assert "Updates the firmware" in call(unpacked, nothing, "--help")
    call(unpacked, nothing, "ports", "--json")
    assert "_ESP32_OTA_COMPLETE" in call(unpacked, nothing, "completion", "bash")
    call(unpacked, nothing, "sim", "--files", files, "--chip", "esp32c3")
    call(unpacked, nothing, "image", "inspect", files / "app.bin")
    call(unpacked, nothing, "trust", "show")
    async with started(
        unpacked, nothing, "sim", "--dir", board, "--chip", "esp32c3", "--times", "off"
    ) as (_, port):
        assert "micro-rdk-server 1.0.0" in call(unpacked, nothing, "inspect", port)
        updated = call(unpacked, nothing, "update", port, "--file", files / "app.bin", "--json")
        assert json.loads(updated)["outcome"] == "succeeded"
        call(unpacked, nothing, "backup", port, tmp_path / "kept")
        pins = ("--reset", "no-such-chip:en=1,boot=2")
        with pytest.raises(AssertionError, match="No such file"):  # so there is a gpiod
            call(unpacked, nothing, "inspect", port, *pins)
    page = ("dashboard", "--address", "127.0.0.1:9", "--port", "0", "--no-token")
    async with (
        started(unpacked, nothing, *page) as (_, line),
        ClientSession() as client,
        client.get(re.findall(r"http://\S+", line)[0]) as response,
    ):
        assert response.status == 200
        assert "<html" in await response.text()
