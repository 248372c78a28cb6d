# SPDX-License-Identifier: GPL-3.0-or-later
"""The bench: what is dropped on the page, and what the page may do with it and the boards here."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from esp32_sim.config import FLASH_FILE
from esp32_sim.images import Behaviour, build_app
from esp32_sim.process import RunningBoard, SimBoard, SimProcess
from ota_service.api.engine import Engine
from ota_service.cli.main import main
from ota_service.client.failure import Failure
from ota_service.dashboard import bench as bench_module
from ota_service.dashboard.attached import AttachedBoards
from ota_service.dashboard.bench import Bench
from ota_service.dashboard.guard import Guard
from ota_service.dashboard.server import serving
from ota_service.errors import OtaError
from ota_service.fleet.orders import Purpose
from ota_service.fleet.run import Run
from tests.flash.merged_files import merged
from tests.support import signing
from tests.support.command import ended_by_hand
from tests.support.host_policy import add_key, make_host

PROJECT = "micro-rdk-server"
SECRET = "hunter2-of-the-wifi"
KEY = signing.key("ECDSA-P-256")  # RSA's takes seconds to be made


def app(version: str = "1.1.0", project: str = PROJECT, **behaviour: Any) -> bytes:
    """An App Image."""
    how = Behaviour(**behaviour) if behaviour else None
    return build_app(project, version, size_bytes=40_000, behaviour=how)


def manifest(*images: bytes, url: str = "build/{}.bin", version: str = "r7", **more: Any) -> bytes:
    """A manifest of App Images, called image0, image1, .."""
    entries = {
        f"image{at}": {"url": url.format(at), "sha256": hashlib.sha256(image).hexdigest()}
        for at, image in enumerate(images)
    }
    return json.dumps({"format": 1, "version": version, "images": entries, **more}).encode()


@pytest.fixture
def bench() -> Iterator[Bench]:
    """An empty one that nobody uses."""
    made = Bench(lambda: False)
    yield made
    made.close()


async def in_pieces(data: bytes, pieces: int = 3) -> AsyncIterator[bytes]:
    """A file as it comes."""
    size = -(-len(data) // pieces) or 1
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def drop(bench: Bench, name: str, data: bytes, announced: int | None = None) -> None:
    """A file is dropped, and arrives whole."""
    await bench.take(name, in_pieces(data), len(data) if announced is None else announced)


def folder(bench: Bench) -> Path:
    """Where it keeps its files."""
    return Path(bench._folder.name)


def kept(bench: Bench) -> list[str]:
    """What is in its folder."""
    return sorted(os.listdir(folder(bench)))


async def until(holds: Callable[[], bool]) -> None:
    """Wait for something that nobody tells of."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


def kinds(bench: Bench) -> list[tuple[str, str, str | None]]:
    """Name, kind and error's code of each file."""
    return [
        (one["name"], one["kind"], one.get("error", {}).get("code"))
        for one in bench.to_dict()["files"]
    ]


def digest(data: bytes) -> str:
    """By which a file is known."""
    return hashlib.sha256(data).hexdigest()


def meant(bench: Bench) -> tuple[str, str]:
    """Name and version of what boards are to run."""
    firmware = bench.to_dict()["firmware"]
    return firmware["name"], firmware["version"]


async def test_each_file_is_checked_and_described(bench: Bench) -> None:
    """By the service's own check; a Merged Binary is none for an update, and lies beside it."""
    image, whole = app(), merged()
    await drop(bench, "app.bin", image)
    await drop(bench, "whole.bin", whole)
    await drop(bench, "notes.txt", b"hello")
    await drop(bench, "cut.bin", image[:-1000])
    await drop(bench, "list.json", b'{"a": 1}')
    await drop(bench, "empty.bin", b"")
    assert kinds(bench) == [
        ("app.bin", "app", None),
        ("whole.bin", "merged", None),
        ("notes.txt", "refused", "not-an-image"),
        ("cut.bin", "refused", "image-corrupt"),
        ("list.json", "refused", "not-an-image"),
        ("empty.bin", "refused", "not-an-image"),
    ]
    shown = bench.to_dict()
    assert shown["files"][0] == {
        **{"name": "app.bin", "kind": "app", "size_bytes": len(image), "sha256": digest(image)},
        **{"project": PROJECT, "app_version": "1.1.0", "chip": "ESP32"},
    }
    assert shown["firmware"] == {
        **{"kind": "app", "name": "app.bin", "sha256": digest(image), "version": "1.1.0"},
    }
    assert shown["merged"] == {
        **{"name": "whole.bin", "size_bytes": len(whole), "chip": "ESP32"},
        **{"sha256": hashlib.sha256(whole).hexdigest()},
    }
    path, version = bench.firmware()
    assert (path.read_bytes(), version) == (image, "1.1.0")
    assert bench.merged().read_bytes() == whole
    assert len(kept(bench)) == 2  # nothing of what is of no use
    assert stat.S_IMODE(folder(bench).stat().st_mode) == 0o700
    assert all(stat.S_IMODE((folder(bench) / name).stat().st_mode) == 0o600 for name in kept(bench))
    bench.close()
    assert not folder(bench).exists()


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\fw\\app.bin", "app.bin"),
        ("..", ".."),
        ("", "file"),
        ("a\x1b[31m\u202eb.bin", "a\\x1b[31m\\u202eb.bin"),
        ("x" * 5000, "x" * 200),
        ("<b>.bin", "<b>.bin"),
    ],
)
async def test_a_name_is_text_and_no_path(bench: Bench, name: str, shown: str) -> None:
    """Whatever the browser says: it is shown, and leads nowhere."""
    await drop(bench, name, app())
    assert [one["name"] for one in bench.to_dict()["files"]] == [shown]
    (stored,) = kept(bench)
    assert stored == f"{hashlib.sha256(app()).hexdigest()}.bin"


async def test_what_is_too_large_leaves_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what is announced, by what comes, for one file and for all, and by their number."""
    monkeypatch.setattr(bench_module, "FILE_BYTES", 50_000)
    monkeypatch.setattr(bench_module, "IMAGE_BYTES", 45_000)
    monkeypatch.setattr(bench_module, "BENCH_BYTES", 85_000)
    monkeypatch.setattr(bench_module, "BENCH_FILES", 3)
    await drop(bench, "app.bin", app())
    before = kept(bench)
    pulled = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal pulled
        while True:
            pulled += 1
            yield bytes(10_000)

    for announced in (50_001, None, 10):
        with pytest.raises(OtaError) as caught:
            await bench.take("big.bin", endless(), announced)
        assert caught.value.code == "download-too-large"
        assert pulled == (0 if announced == 50_001 else 5 if announced is None else 10)
        assert kept(bench) == before
    with pytest.raises(OtaError, match="bench would hold more"):
        await drop(bench, "other.bin", bytes(45_033))
    assert kept(bench) == before
    await drop(bench, "fits.bin", app("1.2.0"))
    await drop(bench, "third", b"text")
    with pytest.raises(OtaError, match="holds 3 files already"):
        await drop(bench, "fourth", b"text")
    bench.clear()
    assert kept(bench) == []
    await drop(bench, "app.bin", build_app(PROJECT, "2", size_bytes=48_000))
    assert kinds(bench) == [("app.bin", "refused", "download-too-large")]


async def test_an_image_without_a_version_needs_a_tag(bench: Bench) -> None:
    """What is to be done is said of the page, not of a configuration."""
    await drop(bench, "app.bin", app(""))
    assert bench.to_dict()["firmware"]["version"] == ""
    with pytest.raises(OtaError, match="version: is empty") as caught:
        bench.firmware()
    assert caught.value.code == "config-invalid"
    bench.tag("1.0.0")
    assert bench.firmware()[1] == "1.0.0"
    await drop(bench, "app.bin", manifest(app("")))
    with pytest.raises(OtaError, match="Write them there"):
        bench.tag("2.0.0")


async def test_a_file_that_does_not_come_to_its_end_leaves_nothing(bench: Bench) -> None:
    """Its browser went away, or the disk is full."""

    async def broken() -> AsyncIterator[bytes]:
        yield app()[:1000]
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await bench.take("app.bin", broken(), None)

    async def stalled() -> AsyncIterator[bytes]:
        yield app()[:1000]
        await asyncio.Event().wait()

    task = asyncio.ensure_future(bench.take("app.bin", stalled(), None))
    await until(lambda: bool(kept(bench)))
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert kept(bench) == []
    assert bench.to_dict() == {"files": []}


async def test_another_build_takes_the_place_of_the_one_before(bench: Bench) -> None:
    """The same file of the same project; what boards run is what was dropped last."""
    await drop(bench, "app.bin", app("1.1.0"))
    await drop(bench, "app.bin", app("1.0", "lamp"))
    bench.tag("mine")
    await drop(bench, "app.bin", app("1.2.0"))
    await drop(bench, "again.bin", app("1.2.0"))
    versions = [one["app_version"] for one in bench.to_dict()["files"]]
    assert versions == ["1.0", "1.2.0"]
    assert bench.to_dict()["firmware"]["version"] == "1.2.0"  # the tag was of another file
    bench.tag("v1.2-rc")
    path, version = bench.firmware()
    assert (path.read_bytes(), version) == (app("1.2.0"), "v1.2-rc")
    for bad in ("", "x" * 129):
        with pytest.raises(OtaError, match="version"):
            bench.tag(bad)
    assert len(kept(bench)) == 2


async def test_what_an_update_may_read_stays_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one goes on; it is off the bench all the same, and then makes room for what comes."""
    used = True
    bench = Bench(lambda: used)
    with contextlib.closing(bench):
        await drop(bench, "app.bin", app())
        bench.clear()
        assert bench.to_dict() == {"files": []}
        assert len(kept(bench)) == 1
        used = False
        monkeypatch.setattr(bench_module, "BENCH_BYTES", len(app()))
        await drop(bench, "next.bin", app("1.2.0"))
        assert len(kept(bench)) == 1
        bench.clear()
        assert kept(bench) == []


@pytest.mark.parametrize("first", ["manifest", "images"])
async def test_a_manifest_comes_with_its_images_in_any_order(bench: Bench, first: str) -> None:
    """They are known by their digests: two of one name are two, and another file of an image's
    name is not it."""
    one, two = app("1.1.0"), app("1.2.0")
    made = manifest(one, two, url="{}/app.bin", together=[["image0", "image1"]])
    if first == "manifest":
        await drop(bench, "manifest.json", made)
        assert bench.to_dict()["firmware"] == {
            **{"kind": "manifest", "name": "manifest.json", "version": "r7"},
            **{"sha256": digest(made), "missing": ["app.bin", "app.bin"]},
        }
        with pytest.raises(OtaError, match=r"app\.bin, app\.bin") as caught:
            bench.firmware()
        assert caught.value.code == "manifest-incomplete"
        await drop(bench, "app.bin", app("0.9"))
        assert kinds(bench)[1] == ("app.bin", "app", "digest-mismatch")
        assert bench.to_dict()["firmware"]["kind"] == "manifest"
    await drop(bench, "app.bin", one)
    if first == "images":
        await drop(bench, "manifest.json", made)
    await drop(bench, "app.bin", two)
    assert bench.to_dict()["firmware"] == {
        **{"kind": "manifest", "name": "manifest.json", "version": "r7"},
        "sha256": digest(made),
    }
    path, version = bench.firmware()
    assert version == "r7"
    written = json.loads(path.read_bytes())
    assert written["together"] == [["image0", "image1"]]
    for at, image in enumerate((one, two)):
        entry = written["images"][f"image{at}"]
        assert (path.parent / entry["url"]).read_bytes() == image
    with pytest.raises(OtaError, match="manifest names"):
        bench.tag("mine")
    await drop(bench, "lamp.bin", app("3.0", "lamp"))  # and now something else is meant
    assert meant(bench) == ("lamp.bin", "3.0")


async def test_a_manifest_is_described_and_paths_have_the_names_of_their_files(
    bench: Bench,
) -> None:
    """At the drop; and what the history says of a bench before is no path either."""
    one, two = app(), app(project="other")
    both: dict[str, Any] = {"order": [["image1"]], "boards": {"a": "image0"}}
    await drop(bench, "release.json", manifest(one, two, **both))
    (about,) = bench.to_dict()["files"]
    assert about["images"] == [
        {"name": f"image{at}", "file": f"{at}.bin", "sha256": digest(image), "version": "r7"}
        for at, image in enumerate((one, two))
    ]
    assert (about["steps"], about["boards"]) == ([["image1"], ["image0"]], {"a": "image0"})
    await drop(bench, "0.bin", one)
    await drop(bench, "1.bin", two)
    path, _ = bench.firmware()
    image = next(at for at in folder(bench).iterdir() if at.read_bytes() == one)
    before = f"/var/tmp/esp32-ota-bench-x/{'ab' * 32}.bin"
    told = {"url": str(path), "runs": [{"file": f"{image} is read, and {before}"}], "n": 1}
    assert bench.named(told) == {
        **{"url": "release.json", "n": 1},
        "runs": [{"file": "0.bin is read, and abababababab....bin"}],
    }


async def test_one_of_several_files_is_chosen(bench: Bench) -> None:
    """Whatever was dropped last, and with its own tag, until another one is dropped; one of a
    manifest's images as well; and a file is taken off the bench alone."""
    one, two, lamp = app("1.1.0"), app("1.2.0", "motor"), app("3.0", "lamp")
    first, last = (manifest(one, two, version=version) for version in ("r7", "r8"))
    made = {"0.bin": one, "1.bin": two, "r7.json": first, "r8.json": last, "lamp.bin": lamp}
    for name, data in made.items():
        await drop(bench, name, data)
    for version in ("5", "6"):
        await drop(bench, f"{version}.bin", merged(version=version))
    assert meant(bench) == ("lamp.bin", "3.0")
    bench.tag("mine")
    for name, version in (
        *(("1.bin", "1.2.0"), ("r7.json", "r7"), ("lamp.bin", "mine"), ("r8.json", "r8")),
        *(("0.bin", "1.1.0"), ("r7.json", "r7")),
    ):
        bench.choose(digest(made[name]))
        assert meant(bench) == (name, version)
        path, aimed = bench.firmware()
        assert (aimed, path.suffix) == (version, ".json" if "json" in name else ".bin")
    assert [one["name"] for one in bench.to_dict()["files"]][:5] == list(made)
    for version in ("5", "6"):
        whole = merged(version=version)
        bench.choose(digest(whole))
        assert bench.merged().read_bytes() == whole
    await drop(bench, "again.bin", two)  # an image of what was chosen
    assert meant(bench) == ("r7.json", "r7")
    await drop(bench, "new.bin", app("4.0", "lamp"))
    assert meant(bench) == ("new.bin", "4.0")
    bench.choose(digest(first))
    bench.clear(digest(first))
    assert meant(bench) == ("new.bin", "4.0")
    bench.clear(digest(last))
    await drop(bench, "text", b"text")
    for sha256, code in ((digest(first), "not-found"), (digest(b"text"), "not-an-image")):
        with pytest.raises(OtaError) as caught:
            bench.choose(sha256)
        assert caught.value.code == code
    assert len(kept(bench)) == len(bench._kept)
    bench.clear()
    assert kept(bench) == []


async def test_a_choice_goes_with_its_file(bench: Bench) -> None:
    """An image that was chosen by itself, taken off and dropped again is its manifest's."""
    one = app()
    await drop(bench, "r7.json", manifest(one))
    await drop(bench, "one.bin", one)
    bench.choose(digest(one))
    assert meant(bench)[0] == "one.bin"
    bench.clear(digest(one))
    await drop(bench, "one.bin", one)
    assert meant(bench)[0] == "r7.json"


@pytest.mark.parametrize(
    ("url", "missing"),
    [
        ("../../../etc/passwd", ["passwd"]),
        ("/etc/passwd", ["passwd"]),
        ("http://127.0.0.1:9/app.bin", None),
    ],
)
async def test_a_manifests_paths_lead_nowhere(
    bench: Bench, url: str, missing: list[str] | None
) -> None:
    """No file of this machine is read for it; an address is where it says."""
    await drop(bench, "manifest.json", manifest(app(), url=url))
    assert bench.to_dict()["firmware"].get("missing") == missing
    if missing is None:
        assert json.loads(bench.firmware()[0].read_bytes())["images"]["image0"]["url"] == url
    else:
        with pytest.raises(OtaError):
            bench.firmware()


async def test_the_hosts_policy_holds(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For what is dropped as for what is downloaded: images, and what a Merged Binary starts."""
    add_key(make_host(tmp_path, monkeypatch), signing.public(KEY))
    await drop(bench, "app.bin", app())
    await drop(bench, "whole.bin", merged())
    assert kinds(bench) == [
        ("app.bin", "refused", "signature-missing"),
        ("whole.bin", "refused", "signature-missing"),
    ]
    await drop(bench, "app.bin", signing.sign(app(), KEY))
    assert kinds(bench)[-1] == ("app.bin", "app", None)
    assert kept(bench) == [Path(bench.firmware()[0]).name]


def test_the_command_makes_a_bench_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without an address: of the boards here. It ends as it serves, by what SIGTERM does."""
    stop = ended_by_hand(monkeypatch)

    async def status(here: AttachedBoards) -> dict[str, Any]:
        folders = [path.name for path in tmp_path.glob("esp32-ota-bench-*")]
        assert folders == [folder(here.bench).name]
        logging.getLogger("ota_service.dashboard").error("the page's server failed")
        stop()
        return {}

    for name in ("ESP32_OTA_ADDRESS", "ESP32_OTA_TOKEN", "VIAM_API_KEY", "VIAM_API_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(AttachedBoards, "status", status)
    with contextlib.suppress(SystemExit):
        main(["dashboard", "--port", "0", "--state-dir", str(tmp_path / "state")])
    out, err = capsys.readouterr()
    assert out.startswith("http://127.0.0.1:"), err
    assert "#token=" in out
    assert "the page's server failed" in err
    assert err.endswith("\nStopped.\n")
    assert not list(tmp_path.glob("esp32-ota-bench-*"))


# --- over HTTP


@asynccontextmanager
async def served(
    tmp_path: Path, boards: dict[str, str] | None = None
) -> AsyncIterator[tuple[AttachedBoards, str, aiohttp.ClientSession]]:
    """The page's server of these boards."""
    engine = Engine(
        boards or {},
        boot_timeout_s=4.0,
        boot_stable_s=0.5,
        state_dir=tmp_path / "state",
        cache_dir=tmp_path / "cache",
    )
    async with engine:
        with contextlib.closing(AttachedBoards(engine)) as here:
            guard = Guard("127.0.0.1")
            async with (
                serving(here, guard, "127.0.0.1", 0, label="desk") as url,
                aiohttp.ClientSession() as client,
            ):
                yield here, url.rstrip("/"), client


Reply = tuple[int, dict[str, Any]]


async def command(client: aiohttp.ClientSession, url: str, verb: str, **given: Any) -> Reply:
    """A command's status and reply."""
    async with client.post(f"{url}/api/command", json={"command": verb, **given}) as response:
        return response.status, await response.json()


async def upload(client: aiohttp.ClientSession, url: str, name: str, data: Any) -> Reply:
    """The same of a file that is dropped."""
    async with client.post(
        f"{url}/api/firmware",
        params={"name": name},
        data=data,
        headers={"Content-Type": "application/octet-stream"},
    ) as response:
        return response.status, await response.json()


async def test_what_the_page_of_a_bench_may_ask_for(tmp_path: Path) -> None:
    """Said in its session; what cannot be done is refused in words, and flash takes no path."""
    async with served(tmp_path) as (_, url, client):
        async with client.get(f"{url}/api/session") as response:
            session = await response.json()
        assert (session["machine"], session["bench"]) == ("desk", True)
        assert {"flash", "log", "stage", "activate"} < set(session["verbs"])
        for verb, given, code in (
            ("update", {}, "not-found"),
            ("verify", {}, "not-found"),
            ("tag", {"version": "x"}, "not-found"),
            ("stage", {"probe": "false"}, "not-found"),
            ("version", {"probe": "false"}, "refused"),
            ("flash", {"board": "a", "confirm": "24:0a:c4:00:10:01"}, "not-found"),
            ("flash", {"board": "a", "path": "/etc/passwd"}, "refused"),
            ("log", {"boards": ["nobody"]}, "refused"),
            ("log", {}, "refused"),
            ("rollback", {"boards": ["nobody"]}, "refused"),
            ("update", {"nonsense": 1}, "not-found"),
        ):
            status, reply = await command(client, url, verb, **given)
            assert (status, reply["error"]["code"]) == (409, code), (verb, given)
        for verb in ("restore", "help", "status", "configure"):
            assert (await command(client, url, verb))[0] == 400, verb
        async with client.get(f"{url}/api/log", params={"board": "nobody"}) as response:
            assert response.status == 409
        for id in ("0123456789ab", "../../etc", "%2e%2e"):
            async with client.get(f"{url}/api/history/{id}") as response:
                assert response.status == 404, id
        assert (await command(client, url, "clear")) == (200, {"ok": True, "bench": {"files": []}})


async def test_a_browser_that_goes_away_leaves_no_firmware_behind_that_is_not_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever moment: what is meant next is what boards get."""
    async with Engine({}, state_dir=tmp_path / "state", cache_dir=tmp_path / "cache") as engine:
        with contextlib.closing(AttachedBoards(engine)) as here:
            await drop(here.bench, "one.bin", app("1.1.0"))
            await here.command("update", {"dry_run": True})

            async def cut(path: Path, version: str) -> None:
                monkeypatch.undo()
                await engine.aim(path, version)
                raise asyncio.CancelledError

            await drop(here.bench, "two.bin", app("1.2.0"))
            monkeypatch.setattr(engine, "aim", cut)
            with pytest.raises(asyncio.CancelledError):
                await here.command("update", {"dry_run": True})
            await drop(here.bench, "one.bin", app("1.1.0"))
            await here.command("update", {"dry_run": True})
            assert (await here.status())["target"]["version"] == "1.1.0"


@pytest.mark.parametrize("purpose", ["update", "plan", "verify"])
async def test_what_one_asks_of_a_firmware_is_not_told_of_another(
    tmp_path: Path, purpose: Purpose
) -> None:
    """By another browser, or by the same one a moment later."""
    async with Engine({}, state_dir=tmp_path / "state", cache_dir=tmp_path / "cache") as engine:
        with contextlib.closing(AttachedBoards(engine)) as here:
            await drop(here.bench, "one.bin", app("1.1.0"))
            await here.command("update", {"dry_run": True})
            asked = Run(engine._fleet, "command", purpose=purpose)
            engine._fleet.runs.append(asked)
            await drop(here.bench, "two.bin", app("1.2.0"))
            with pytest.raises(Failure) as caught:
                await here.command("update", {"dry_run": True})
            assert caught.value.code == "not-finished"
            assert (await here.status())["target"]["version"] == "1.1.0"
            assert len(kept(here.bench)) == 2, "what may still be read"
            asked.done.set()
            await here.command("update", {"dry_run": True})
            assert (await here.status())["target"]["version"] == "1.2.0"


async def test_an_upload_is_bounded_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """More than a command may have, less than its limit; the status has it from then on."""
    async with served(tmp_path) as (here, url, client):
        image = build_app(PROJECT, "1.1.0", size_bytes=300_000)
        status, reply = await upload(client, url, "app.bin", image)
        assert (status, reply["bench"]["firmware"]["version"]) == (200, "1.1.0")
        async with client.get(f"{url}/api/events") as response:
            line = await response.content.readline()
        shown = json.loads(line.removeprefix(b"data: "))["status"]
        assert shown["bench"] == reply["bench"]
        for tag, seen in (("rc1", "rc1"), ("a\x1b[2J", "a\\x1b[2J")):
            status, reply = await command(client, url, "tag", version=tag)
            assert reply["bench"]["firmware"]["version"] == seen
        for wrong in ("x" * 129, "", None, 1, {"a": 1}):
            status, reply = await command(client, url, "tag", version=wrong)
            assert (status, reply["error"]["code"]) == (409, "config-invalid"), wrong
            assert "machine" not in reply["error"]["remedy"]
        monkeypatch.setattr(bench_module, "FILE_BYTES", 400_000)
        status, reply = await upload(client, url, "big.bin", bytes(400_001))
        assert (status, reply["error"]["code"]) == (413, "download-too-large")
        status, reply = await command(client, url, "clear")
        assert reply["bench"] == {"files": []}
        # What is no request has its answer, and does not fill the terminal.
        host, _, port = url.removeprefix("http://").rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\n\r\n")
        assert b" 400 " in await reader.readline()
        writer.close()
        assert not caplog.records
        # Half of a file, and its browser goes away.
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /api/firmware?name=a.bin HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            b"Content-Type: application/octet-stream\r\nContent-Length: 100000\r\n\r\n" + bytes(9)
        )
        await writer.drain()
        await until(lambda: bool(kept(here.bench)))
        writer.close()
        await until(lambda: not kept(here.bench))
        assert here.bench.to_dict() == {"files": []}


def flash_of(board: RunningBoard) -> bytes:
    """All that the board holds."""
    return (board.dir / FLASH_FILE).read_bytes()


async def events(client: aiohttp.ClientSession, url: str, board: str) -> list[dict[str, Any]]:
    """A board's start as it is watched, to its end."""
    async with client.get(f"{url}/api/log", params={"board": board}) as response:
        assert response.content_type == "text/event-stream"
        lines = [line async for line in response.content if line.startswith(b"data: ")]
    return [json.loads(line[6:]) for line in lines]


def told(events: list[dict[str, Any]]) -> tuple[str, str]:
    """The lines together, and the verdict."""
    return "\n".join(event["line"] for event in events[:-1]), events[-1]["end"]["verdict"]


@pytest.mark.slow
async def test_a_boards_day_on_the_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watched without a write, flashed, updated, gone back from what panics, rolled back: each
    start's lines as they come, none with a secret; and the history as a file."""
    talks = app("1.0.0", print_secrets=True)
    nvs = {"robot_secret": SECRET, "OTA_VERSION": "1.0.0"}
    made = SimBoard("no-ota", app=talks, nvs=nvs)
    with SimProcess(tmp_path / "boards", [made]) as sim:
        (board,) = sim.boards
        async with served(tmp_path, {"a": board.url}) as (here, url, client):
            before = flash_of(board)
            status, reply = await command(client, url, "log", boards=["a"])
            assert (status, reply["run"]["outcome"]) == (200, "running")
            lines, verdict = told(await events(client, url, "a"))
            assert (SECRET in lines, "***" in lines, verdict) == (False, True, "its firmware runs")
            assert flash_of(board) == before

            await upload(client, url, "whole.bin", merged())
            flash = {"board": "a", "keep_nvs": True, "confirm": board.mac}
            wrong = {**flash, "confirm": "24:0a:c4:ff:ff:ff"}
            status, reply = await command(client, url, "flash", **wrong)
            assert (status, reply["error"]["code"]) == (409, "wrong-board")
            assert flash_of(board) == before
            status, reply = await command(client, url, "flash", **flash)
            assert (status, reply["boards"]["a"]["running"]["app_version"]) == (200, "1.0.5")

            await upload(client, url, "app.bin", app("1.1.0"))
            status, reply = await command(client, url, "update", dry_run=True)
            assert reply["plan"]["a"]["action"] == "write"
            await command(client, url, "tag", version="v1.1")
            status, reply = await command(client, url, "update", boards=["a"])
            assert (status, reply["joined"]) == (200, False)
            lines, verdict = told(await events(client, url, "a"))
            assert lines.count("--- start of") == 1
            assert verdict == "its firmware runs"
            shown = (await here.status())["boards"]["a"]
            assert shown["version"] == "v1.1"
            assert shown["back"] == {"slot": "factory", "version": "1.0.0"}

            bad = app("1.2.0", ending="panic", ending_after_s=0.05, print_secrets=True)
            await upload(client, url, "app.bin", bad)
            status, reply = await command(client, url, "update", boards=["a"])
            lines, verdict = told(await events(client, url, "a"))
            assert lines.count("--- start of") == 2
            assert "Guru Meditation" in lines
            assert SECRET not in lines
            assert verdict.startswith("the app panicked")
            assert verdict.endswith("then: its firmware runs")
            shown = (await here.status())["boards"]["a"]
            assert (shown["state"], shown["version"]) == ("rolled_back", "v1.1")
            run = reply["run"]["id"]
            async with client.get(f"{url}/api/history/{run}") as response:
                assert f'filename="esp32-ota-{run}.json"' in response.headers["Content-Disposition"]
                saved = await response.json()
            assert saved["id"] == run
            assert "esp32-ota-bench-" not in json.dumps([saved, await here.status()])
            assert any("Guru" in line for line in saved["boards"]["a"]["boot_log"])

            status, reply = await command(client, url, "rollback", boards=["a"])
            assert reply["boards"]["a"]["slot"] == "factory"
            await command(client, url, "release", boards=["a"])

            # What was dropped before the host had a policy is held against it all the same.
            add_key(make_host(tmp_path, monkeypatch), signing.public(KEY))
            before = flash_of(board)
            status, reply = await command(client, url, "flash", **flash)
            assert (status, reply["error"]["code"]) == (409, "signature-missing")
            status, reply = await command(client, url, "update", dry_run=True)
            assert reply["plan"]["a"]["code"] == "signature-missing"
            assert flash_of(board) == before
