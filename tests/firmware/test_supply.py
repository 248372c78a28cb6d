# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloads from a real server over real connections, with its faults, into a real cache."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from aiohttp import web
from yarl import URL

from esp32_sim.images import build_app
from ota_service.errors import OtaError
from ota_service.firmware import cache
from ota_service.firmware import supply as supplies
from ota_service.firmware.cache import Cache
from ota_service.firmware.download import Download, Patience
from ota_service.firmware.supply import Supply
from ota_service.firmware.target import Target
from tests.support.certificates import certificate
from tests.support.firmware_server import FirmwareServer

APP = build_app("demo", "1.0", size_bytes=300_000)
OTHER = build_app("demo", "2.0", size_bytes=280_000)
DIGEST = hashlib.sha256(APP).hexdigest()
PATH = "/fw/app.bin"
ROOT = Path(__file__).parents[2]
DELAYS_S = (0.01, 0.01)
PATIENCE = Patience(delays_s=DELAYS_S)


@pytest.fixture
async def server() -> AsyncIterator[FirmwareServer]:
    """A server that has APP at PATH."""
    async with FirmwareServer.start() as running:
        running.put(PATH, APP)
        yield running


@pytest.fixture
def supply(tmp_path: Path) -> Supply:
    """A supply with an empty cache, which does not wait long between its attempts."""
    return Supply(tmp_path, patience=PATIENCE)


def statuses(server: FirmwareServer) -> list[int]:
    """What the server answered, in order."""
    return [request.status for request in server.requests]


async def refusal(supply: Supply, target: Target, *, max_image_bytes: int = 16 << 20) -> OtaError:
    """The error that a download ends in."""
    with pytest.raises(OtaError) as caught:
        await supply.get(target, max_image_bytes=max_image_bytes)
    return caught.value


async def test_a_firmware_is_what_the_server_has(supply: Supply, server: FirmwareServer) -> None:
    """Bytes, digests and descriptor of the file, and progress up to its end."""
    seen: list[tuple[int, int | None]] = []
    firmware = await supply.get(
        Target(server.url(PATH), "1.0"), progress=lambda done, total: seen.append((done, total))
    )
    assert firmware.data == APP
    assert firmware.sha256 == DIGEST
    assert firmware.md5 == hashlib.md5(APP).hexdigest()
    assert (firmware.image.descriptor.project, firmware.size_bytes) == ("demo", len(APP))
    assert seen[0] == (0, len(APP))
    assert seen[-1] == (len(APP), len(APP))
    assert seen == sorted(seen)


async def test_padding_behind_the_image_is_not_written(
    supply: Supply, server: FirmwareServer
) -> None:
    """Build tools pad files; the digest is the file's, the data the image's."""
    padded = APP + b"\xff" * 1000
    firmware = await supply.get(Target(server.put("/padded", padded), "1"))
    assert firmware.data == APP
    assert firmware.sha256 == hashlib.sha256(padded).hexdigest()


async def test_an_unchanged_file_is_not_sent_again(
    supply: Supply, server: FirmwareServer, tmp_path: Path
) -> None:
    """Also by the next process: the cache is on disk."""
    target = Target(server.url(PATH), "1.0")
    first = await supply.get(target)
    again = await Supply(tmp_path).get(target)
    assert again == first
    assert statuses(server) == [200, 304]


async def test_a_changed_file_is_fetched(supply: Supply, server: FirmwareServer) -> None:
    """The same url may give another file tomorrow."""
    await supply.get(Target(server.url(PATH), "1.0"))
    server.put(PATH, OTHER)
    assert (await supply.get(Target(server.url(PATH), "2.0"))).data == OTHER
    assert statuses(server) == [200, 200]


async def test_a_known_digest_needs_no_network(supply: Supply, server: FirmwareServer) -> None:
    """What is in the cache under its digest is the file."""
    await supply.get(Target(server.url(PATH), "1.0"))
    elsewhere = Target("http://127.0.0.1:9/gone.bin", "1.0", DIGEST)
    assert (await supply.get(elsewhere)).data == APP
    assert len(server.requests) == 1


async def test_a_server_that_is_gone(supply: Supply, tmp_path: Path) -> None:
    """The same url and version can still be had from the cache; another version cannot."""
    async with FirmwareServer.start() as server:
        url = server.put(PATH, APP)
        await supply.get(Target(url, "1.0"))
    assert (await supply.get(Target(url, "1.0"))).data == APP
    error = await refusal(supply, Target(url, "2.0"))
    assert error.code == "download-failed"
    assert error.message.endswith(": connection refused.")


async def test_a_damaged_cache_is_noticed(
    supply: Supply, server: FirmwareServer, tmp_path: Path
) -> None:
    """A disk that lost bytes must not end on a board."""
    target = Target(server.url(PATH), "1.0", DIGEST)
    await supply.get(target)
    (cached,) = (tmp_path / "firmware/images").iterdir()
    cached.write_bytes(APP[:-1] + b"x")
    assert (await supply.get(target)).data == APP
    without_digest = Target(server.url(PATH), "1.0")
    cached.write_bytes(APP[:-1] + b"x")
    assert (await supply.get(without_digest)).data == APP
    assert cached.read_bytes() == APP


async def test_another_digest_is_refused(
    supply: Supply, server: FirmwareServer, tmp_path: Path
) -> None:
    """And the file is not kept."""
    error = await refusal(supply, Target(server.url(PATH), "1.0", "0" * 64))
    assert error.code == "digest-mismatch"
    assert DIGEST in error.message
    assert list((tmp_path / "firmware/images").iterdir()) == []


async def test_what_is_no_app_image_is_refused(supply: Supply, server: FirmwareServer) -> None:
    """A login page with status 200 is the usual case."""
    page = server.put("/page", b"<html>please log in</html>", headers={"Content-Type": "image/x"})
    assert (await refusal(supply, Target(page, "1"))).code == "not-an-image"


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_too_large_is_refused(
    supply: Supply, server: FirmwareServer, tmp_path: Path, chunked: bool
) -> None:
    """Before the body where the server says its size, else on the way."""
    server.put(PATH, APP, chunked=chunked)
    error = await refusal(supply, Target(server.url(PATH), "1"), max_image_bytes=100_000)
    assert error.code == "download-too-large"
    assert "100,000" in error.message
    assert statuses(server) == [200]
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
async def test_a_file_of_just_the_largest_size_is_taken(
    supply: Supply, server: FirmwareServer, chunked: bool
) -> None:
    """The limit is a size that may be reached."""
    server.put(PATH, APP, chunked=chunked)
    target = Target(server.url(PATH), "1")
    assert (await supply.get(target, max_image_bytes=len(APP))).data == APP
    error = await refusal(supply, Target(server.url(PATH), "2"), max_image_bytes=len(APP) - 1)
    assert error.code == "download-too-large"


async def test_a_weak_validator_joins_nothing(supply: Supply, server: FirmwareServer) -> None:
    """It says that two files mean the same, not that they are the same bytes (RFC 9110)."""
    server.put(PATH, APP, headers={"ETag": 'W/"same"'})
    server.cut_next(PATH, after_bytes=150_000)
    getting = asyncio.create_task(supply.get(Target(server.url(PATH), "1")))
    await server.wait_requests(1)
    server.put(PATH, OTHER, headers={"ETag": 'W/"same"'})
    assert (await getting).data == OTHER
    assert "Range" not in server.requests[1].headers


@pytest.mark.parametrize("case", ["begins elsewhere", "ends early"])
async def test_a_part_that_does_not_fit_is_not_joined(
    supply: Supply, server: FirmwareServer, case: str
) -> None:
    """A server that answers a range with another one, or with less than it says."""
    server.cut_next(PATH, after_bytes=150_000)

    async def answer(request: web.Request) -> web.StreamResponse:
        begin = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        if case == "begins elsewhere":
            begin -= 4096
        body = APP[begin : begin + 50_000] if case == "ends early" else APP[begin:]
        places = f"bytes {begin}-{begin + len(body) - 1}/{len(APP)}"
        return web.Response(status=206, body=body, headers={"Content-Range": places})

    getting = asyncio.create_task(supply.get(Target(server.url(PATH), "1")))
    await server.wait_requests(1)
    server.answer_next(PATH, answer)
    assert (await getting).data == APP
    assert statuses(server)[:2] == [200, 206]
    assert len(statuses(server)) == 3


async def test_a_file_without_a_size_is_taken(supply: Supply, server: FirmwareServer) -> None:
    """Chunked, and its total unknown to the progress."""
    server.put(PATH, APP, chunked=True)
    seen: list[int | None] = []
    target = Target(server.url(PATH), "1")
    firmware = await supply.get(target, progress=lambda _, total: seen.append(total))
    assert firmware.data == APP
    assert set(seen) == {None}


async def test_a_cut_download_goes_on_where_it_ended(
    supply: Supply, server: FirmwareServer
) -> None:
    """On a slow link, starting over could take for ever."""
    server.cut_next(PATH, after_bytes=150_000)
    server.cut_next(PATH, after_bytes=50_000)
    assert (await supply.get(Target(server.url(PATH), "1"))).data == APP
    assert statuses(server) == [200, 206, 206]
    assert server.requests[1].headers["Range"].startswith("bytes=")


@pytest.mark.parametrize("case", ["no ranges", "no validators", "changed"])
async def test_a_cut_download_starts_over_where_it_must(
    supply: Supply, server: FirmwareServer, case: str
) -> None:
    """Two files must never be joined."""
    server.put(PATH, APP, ranges=case != "no ranges", validators=case != "no validators")
    server.cut_next(PATH, after_bytes=150_000)
    getting = asyncio.create_task(supply.get(Target(server.url(PATH), "1")))
    if case == "changed":
        await server.wait_requests(1)
        server.put(PATH, OTHER)
    assert (await getting).data == (OTHER if case == "changed" else APP)
    assert statuses(server) == [200, 200]


async def test_a_download_that_gets_no_further_ends(supply: Supply, server: FirmwareServer) -> None:
    """After a bounded number of attempts; and the next call goes on with what there is."""
    server.cut_next(PATH, after_bytes=100_000)
    for _ in DELAYS_S:
        server.cut_next(PATH, after_bytes=0)
    target = Target(server.url(PATH), "1")
    error = await refusal(supply, target)
    assert error.code == "download-truncated"
    assert statuses(server) == [200, 206, 206]
    assert (await supply.get(target)).data == APP
    assert statuses(server)[3:] == [206]
    begin = int(server.requests[3].headers["Range"].removeprefix("bytes=").removesuffix("-"))
    assert 0 < begin <= 100_000


async def test_what_is_given_up_does_not_fill_the_memory(
    supply: Supply, server: FirmwareServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one is kept whatever its size, those before it up to a limit: urls may never be
    asked for again."""
    monkeypatch.setattr(supplies, "UNFINISHED_BYTES", 150_000)
    targets = [Target(server.put(path, APP), "1") for path in ("/a", "/b", "/c")]
    for target, after_bytes in zip(targets, (100_000, 100_000, 200_000), strict=True):
        for cut_bytes in (after_bytes, *(0 for _ in DELAYS_S)):
            server.cut_next(URL(target.url).path, after_bytes=cut_bytes)
        await refusal(supply, target)
    before = len(server.requests)
    for target in targets:
        assert (await supply.get(target)).data == APP
    assert statuses(server)[before:] == [200, 206, 206]


async def test_a_file_that_changed_meanwhile_is_not_joined(
    supply: Supply, server: FirmwareServer, tmp_path: Path
) -> None:
    """What an earlier call left is dropped where the server has another file now."""
    for after_bytes in (100_000, 0, 0):
        server.cut_next(PATH, after_bytes=after_bytes)
    target = Target(server.url(PATH), "1")
    await refusal(supply, target)
    server.put(PATH, OTHER)
    assert (await supply.get(target)).data == OTHER
    assert not list(tmp_path.rglob(".*"))


@pytest.mark.slow
@pytest.mark.parametrize(("status", "tries"), [(500, 3), (503, 3), (429, 3), (404, 1), (403, 1)])
async def test_a_servers_refusal_is_named_and_retried_where_it_may_pass(
    supply: Supply, server: FirmwareServer, status: int, tries: int
) -> None:
    """A missing file does not appear by asking again; an overloaded server recovers."""
    for _ in range(5):
        server.fail_next(PATH, status)
    error = await refusal(supply, Target(server.url(PATH), "1"))
    assert error.code == "http-status"
    assert str(status) in error.message
    assert len(server.requests) == tries


async def test_a_server_that_recovers(supply: Supply, server: FirmwareServer) -> None:
    """One bad answer is not the end of a run."""
    server.fail_next(PATH, 503, headers={"Retry-After": "0"})
    assert (await supply.get(Target(server.url(PATH), "1"))).data == APP


@pytest.mark.slow
async def test_retry_after_is_waited_for(server: FirmwareServer, tmp_path: Path) -> None:
    """In seconds or as a date; where it asks for more than a run has, it is said."""
    supply = Supply(tmp_path, patience=Patience(delays_s=(0.01, 0.01), retry_after_s=5))
    server.fail_next(PATH, 429, headers={"Retry-After": "1"})
    begun = time.monotonic()
    await supply.get(Target(server.url(PATH), "1"))
    assert time.monotonic() - begun >= 1.0
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=900), usegmt=True)
    server.put("/b", APP)
    server.fail_next("/b", 503, headers={"Retry-After": later})
    error = await refusal(supply, Target(server.url("/b"), "1"))
    assert error.code == "http-status"
    assert "left alone for" in error.remedy


@pytest.mark.slow
async def test_another_file_under_the_same_version_is_noticed(
    supply: Supply, server: FirmwareServer, tmp_path: Path
) -> None:
    """Also by the next process, and not where the version changed with it."""
    target = Target(server.url(PATH), "1.0")
    assert (await supply.get(target)).changed_from is None
    server.put(PATH, OTHER)
    assert (await supply.get(target)).changed_from == DIGEST
    assert (await Supply(tmp_path).get(target)).changed_from == DIGEST
    assert (await supply.get(Target(server.url(PATH), "2.0"))).changed_from is None
    server.put(PATH, APP)
    assert (await supply.get(target)).changed_from is None


async def test_the_index_of_digests_outlives_the_files(
    supply: Supply, server: FirmwareServer, tmp_path: Path
) -> None:
    """A cache that had to make room still notices."""
    target = Target(server.url(PATH), "1.0")
    await supply.get(target)
    for path in (tmp_path / "firmware/images").iterdir():
        path.unlink()
    server.put(PATH, OTHER)
    assert (await supply.get(target)).changed_from == DIGEST


async def test_the_least_recently_used_files_make_room(
    supply: Supply,
    server: FirmwareServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The size is limited; what was used last stays, the new file always does."""
    monkeypatch.setattr(cache, "MAX_CACHE_BYTES", 700_000)
    apps = [build_app("demo", str(number), size_bytes=300_000) for number in range(3)]
    paths = []
    for number, app in enumerate(apps):
        digest = hashlib.sha256(app).hexdigest()
        paths.append(tmp_path / f"firmware/images/{digest}.bin")
        if number == 2:
            os.utime(paths[1], (1, 1))  # used longest ago, although fetched later than 0
        await supply.get(Target(server.put(f"/{number}", app), "1"))
    assert [path.is_file() for path in paths] == [True, False, True]


@pytest.mark.slow
async def test_several_processes_share_a_cache(server: FirmwareServer, tmp_path: Path) -> None:
    """They fetch at the same time, and each ends with the file; nothing half is left."""
    code = (
        "import asyncio, pathlib, sys\n"
        "from ota_service.firmware.supply import Supply\n"
        "from ota_service.firmware.target import Target\n"
        "got = asyncio.run(Supply(pathlib.Path(sys.argv[1])).get(Target(sys.argv[2], '1')))\n"
        "print(got.sha256)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path), server.url(PATH)]
    gate = server.hold(PATH)
    running = [
        await asyncio.create_subprocess_exec(
            *command,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )
        for _ in range(2)
    ]
    await server.wait_requests(2, timeout_s=30)
    gate.set()
    for process in running:
        out, _ = await process.communicate()
        assert out.decode().strip() == DIGEST
    assert [path.name for path in (tmp_path / "firmware/images").iterdir()] == [f"{DIGEST}.bin"]


async def test_what_a_killed_process_left_is_removed(
    supply: Supply, server: FirmwareServer, tmp_path: Path
) -> None:
    """But not what another process is still writing."""
    await supply.get(Target(server.url(PATH), "1"))
    (tmp_path / "firmware/incoming").mkdir()  # of version 0.2.0
    names = ("images/.dead", "incoming/dead.part", "images/.alive")
    *dead, alive = (tmp_path / "firmware" / name for name in names)
    for path in (*dead, alive):
        path.write_bytes(b"x")
    for path in dead:
        os.utime(path, (1, 1))
    await supply.get(Target(server.put("/b", OTHER), "1"))
    assert not any(path.exists() for path in dead)
    alive.unlink()  # it was still there


async def test_any_file_can_be_fetched_and_is_not_kept(
    supply: Supply, server: FirmwareServer, tmp_path: Path
) -> None:
    """A Merged Binary can hold a board's keys."""
    server.put("/merged", b"whatever" * 1000)
    server.cut_next("/merged", after_bytes=3000)
    assert await supply.fetch(server.url("/merged")) == b"whatever" * 1000
    assert list(tmp_path.rglob("*")) == []


async def test_compressed_content_is_refused_in_clear_words(
    supply: Supply, server: FirmwareServer
) -> None:
    """It was not asked for, and its digest would not be the file's."""
    server.put(PATH, APP, headers={"Content-Encoding": "gzip"})
    error = await refusal(supply, Target(server.url(PATH), "1"))
    assert error.code == "download-failed"
    assert "gzip" in error.message
    assert server.requests[0].headers["Accept-Encoding"] == "identity"


async def test_user_and_password_are_sent_and_never_shown(
    supply: Supply, server: FirmwareServer, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Not in errors, not in a debug log, not in the cache."""
    caplog.set_level(logging.DEBUG)
    server.put(PATH, APP, login="user:hunter2")
    url = server.url(PATH, user_info="user:hunter2", query="token=s3cret")
    assert (await supply.get(Target(url, "1"))).data == APP
    wrong = server.url(PATH, user_info="user:hunter2x", query="token=s3cret")
    error = await refusal(supply, Target(wrong, "2"))
    assert error.code == "http-status"
    assert "401" in error.message
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*.json"))
    names = " ".join(str(path) for path in tmp_path.rglob("*"))
    shown = Download(url, Cache(tmp_path), 1, print)
    everything = f"{error!r} {error} {caplog.text} {names} {kept!r} {supply!r} {shown!r}"
    assert "hunter2" not in everything
    assert "s3cret" not in everything


async def test_redirects_are_followed_without_the_password(
    supply: Supply, server: FirmwareServer
) -> None:
    """It is carried to the same server only."""
    server.redirect("/same", PATH)
    server.put(PATH, APP, login="user:hunter2")
    await supply.get(Target(server.url("/same", user_info="user:hunter2"), "1"))
    async with FirmwareServer.start() as other:
        away = other.put(PATH, APP)
        server.redirect("/away", away)
        await supply.get(Target(server.url("/away", user_info="user:hunter2"), "1"))
        assert "Authorization" not in other.requests[0].headers


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("ftp://h/a", "no http address"),
        ("file:///etc/passwd", "no http address"),
        ("/loop", "more than 10 times"),
    ],
)
async def test_redirects_that_are_not_followed(
    supply: Supply, server: FirmwareServer, location: str, words: str
) -> None:
    """Only http and https, and not for ever."""
    error = await refusal(supply, Target(server.redirect("/loop", location), "1"))
    assert error.code == "http-status"
    assert words in error.message


async def test_a_download_ends_with_who_waits_for_it(
    supply: Supply, server: FirmwareServer, tmp_path: Path
) -> None:
    """Who goes away leaves nothing."""
    server.hold(PATH)
    only = asyncio.create_task(supply.get(Target(server.url(PATH), "1")))
    await server.wait_requests(1)
    only.cancel()
    await asyncio.wait([only])
    assert not list(tmp_path.rglob(".*"))


async def test_the_cache_is_private(supply: Supply, server: FirmwareServer, tmp_path: Path) -> None:
    """Firmware can hold credentials: 700 for folders, 600 for files."""
    await supply.get(Target(server.url(PATH), "1"))
    found = [tmp_path / "firmware", *(tmp_path / "firmware").rglob("*")]
    assert len(found) > 4
    for path in found:
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path


async def test_a_disk_without_room_is_named(server: FirmwareServer, tmp_path: Path) -> None:
    """Before the download, where its size is known."""
    free_bytes = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = free_bytes * 2
        await response.prepare(request)
        return response

    server.answer_next(PATH, endless)
    error = await refusal(
        Supply(tmp_path, patience=Patience(delays_s=())),
        Target(server.url(PATH), "1"),
        max_image_bytes=free_bytes * 4,
    )
    assert error.code == "disk-full"
    assert str(tmp_path) in error.message


async def test_a_cache_folder_that_cannot_be_used_is_named(
    server: FirmwareServer, tmp_path: Path
) -> None:
    """A file where the folder should be: no stack trace, but its name."""
    (tmp_path / "firmware").write_text("")
    error = await refusal(Supply(tmp_path), Target(server.url(PATH), "1"))
    assert str(tmp_path) in error.message


async def test_plain_http_at_an_https_url(supply: Supply, server: FirmwareServer) -> None:
    """The most usual slip of all."""
    url = server.url(PATH).replace("http://", "https://")
    error = await refusal(supply, Target(url, "1"))
    assert error.code == "tls"
    assert len(server.requests) == 0


async def test_a_ca_file_that_cannot_be_read_is_named(
    supply: Supply, server: FirmwareServer, tmp_path: Path
) -> None:
    """Before anything is opened."""
    (tmp_path / "empty.pem").write_text("")
    for name in ("missing.pem", "empty.pem"):
        with pytest.raises(OtaError, match=name) as caught:
            await supply.get(Target(server.url(PATH), "1"), ca_file=str(tmp_path / name))
        assert caught.value.code == "tls"


async def test_a_private_authority_is_trusted_through_ca_file(
    supply: Supply, tmp_path: Path
) -> None:
    """And not without it."""
    tls, ca_file = certificate(tmp_path)
    async with FirmwareServer.start(tls=tls) as server:
        target = Target(server.put(PATH, APP), "1")
        error = await refusal(supply, target)
        assert error.code == "tls"
        assert server.requests == []
        assert (await supply.get(target, ca_file=ca_file)).data == APP
        plain = FirmwareServer.start()
        async with plain as http:
            down = server.redirect("/down", http.put(PATH, APP))
            with pytest.raises(OtaError, match="from https to http"):
                await supply.get(Target(down, "1"), ca_file=ca_file)
