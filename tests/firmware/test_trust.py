# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's policy: what it takes by each way in, and when the policy itself is not trusted."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import pwd
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from esp32_sim.images import build_app, build_bootloader
from ota_service import load_firmware
from ota_service.api.load import stock
from ota_service.building.tables import load_table
from ota_service.errors import OtaError
from ota_service.firmware import trust
from ota_service.firmware.check import check_firmware
from ota_service.firmware.download import Patience
from ota_service.firmware.failures import NotThere
from ota_service.firmware.supply import Supply
from ota_service.firmware.target import Target
from ota_service.firmware.trust import ADDED
from ota_service.fleet.firmwares import Firmwares
from ota_service.fleet.service import FleetService, shutdown
from ota_service.fleet.settings import Settings
from ota_service.formats.build_table import table_from_csv
from ota_service.formats.merge import merge
from ota_service.formats.partitions import parse_partition_table
from ota_service.formats.signature import public_key_digest
from ota_service.update.flash_plan import check_merged
from tests.formats.test_signature import spoilt
from tests.support.firmware_server import FirmwareServer
from tests.support.host_policy import add_key, add_repository, make_host
from tests.support.signing import BLOCK, SCHEMES, SECTOR, digest, key, public, sign
from tests.support.tuf_repository import TufRepository, in_days

ROOT = Path(__file__).parents[2]
ROOT_TEXT = '{"signed": {"_type": "root"}}'
APP = build_app(size_bytes=5_000)
OWN, FOREIGN = key("ECDSA-P-256"), key("ECDSA-P-256", 1)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a host's policy, in which nothing is yet."""
    return make_host(tmp_path, monkeypatch)


def code(data: bytes) -> str:
    """The code that an image is refused with; "" where it is taken."""
    try:
        check_firmware(data)
    except OtaError as error:
        return error.code
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_key_has_the_digest_that_fuses_hold(scheme: str) -> None:
    """By espsecure, for each scheme of Secure Boot v2."""
    assert public_key_digest(public(key(scheme))) == digest(key(scheme))


def bad_block(data: bytes, number: int) -> bytes:
    """A signature spoilt, its CRC right."""
    at = len(data) - SECTOR + BLOCK * number
    return data[:at] + spoilt(data[at : at + BLOCK], 120) + data[at + BLOCK :]


ROWS: list[tuple[str, bytes, str]] = [
    ("its owner's", sign(APP, OWN), ""),
    ("not signed", APP, "signature-missing"),
    ("a foreign key", sign(APP, FOREIGN), "signature-untrusted"),
    ("the second of two blocks", sign(APP, FOREIGN, OWN), ""),
    ("three blocks with one good",
     bad_block(bad_block(sign(APP, FOREIGN, OWN, FOREIGN), 0), 2), ""),
    ("a wrong signature", bad_block(sign(APP, OWN), 0), "signature-invalid"),
    ("the owner's wrong, a foreign right", bad_block(sign(APP, OWN, FOREIGN), 0),
     "signature-untrusted"),
    ("a truncated block", sign(APP, OWN)[: -SECTOR + BLOCK - 8], "signature-invalid"),
    ("another image's block", build_app("other", size_bytes=5_000).ljust(8192, b"\xff")
     + sign(APP, OWN)[-SECTOR:], "signature-invalid"),
    ("Secure Boot v1", APP + b"\0\0\0\0" + b"\x55" * 64, "signature-missing"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "refused"), [r[1:] for r in ROWS], ids=[r[0] for r in ROWS])
def test_what_a_host_with_a_key_takes(host: Path, data: bytes, refused: str) -> None:
    """On boards with or without Secure Boot: it is the host that asks."""
    add_key(host, public(OWN))
    assert code(data) == refused
    if not refused:
        (by,) = check_firmware(data).allowed_by
        assert by == {"policy": str(host), "keys": {digest(OWN).hex(): "release.pem"}}


def test_a_second_policy_only_adds(
    host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module's environment comes from the configuration: its folder cannot let anything pass."""
    added = tmp_path / "added"
    added.mkdir(mode=0o755)
    add_key(added, public(FOREIGN))
    monkeypatch.setenv(ADDED, str(added))
    assert code(sign(APP, FOREIGN)) == ""
    add_key(host, public(OWN))
    assert code(sign(APP, FOREIGN)) == "signature-untrusted"
    assert code(sign(APP, OWN)) == "signature-untrusted"
    assert code(sign(APP, OWN, FOREIGN)) == ""
    monkeypatch.setenv(ADDED, str(tmp_path / "none"))
    assert code(sign(APP, OWN)) == "trust-invalid"
    monkeypatch.setenv(ADDED, "added")
    assert code(sign(APP, OWN)) == "trust-invalid"
    monkeypatch.setenv(ADDED, "")
    assert code(sign(APP, OWN)) == ""


def test_a_changed_policy_counts_at_once(host: Path) -> None:
    """Without a restart, also one that is known already; and the status shows what is asked for."""
    assert (code(APP), trust.shown()) == ("", None)
    path = add_key(host, public(OWN))
    assert code(APP) == "signature-missing"
    assert trust.shown() == {"requires": ["secure-boot-v2"]}
    path.write_bytes(public(FOREIGN))
    assert code(sign(APP, OWN)) == "signature-untrusted"
    path.unlink()
    assert code(sign(APP, OWN)) == "trust-invalid"
    path.parent.rmdir()
    assert code(APP) == "trust-invalid"  # a typing error in its name, as likely as not
    shown = trust.shown()
    assert shown is not None
    assert (shown["requires"], shown["error"]["code"]) == ([], "trust-invalid")
    host.rmdir()
    assert (code(APP), trust.shown()) == ("", None)


def test_a_file_that_is_replaced_while_it_is_looked_at(
    host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `trust install` does it, and an editor: a name that is gone is no reason to refuse."""
    path, lstat, gone = add_key(host, public(OWN)), os.lstat, [3]

    def once(at: Any) -> os.stat_result:
        if gone[0] and Path(at) == path:
            gone[0] -= 1
            raise FileNotFoundError(2, "No such file or directory", str(at))
        return lstat(at)

    monkeypatch.setattr(os, "lstat", once)
    assert (code(sign(APP, OWN)), gone) == ("", [0])
    gone[0] = -1  # for ever
    assert code(sign(APP, OWN)) == "trust-invalid"
    gone[0] = 0
    (host / "keys").rename(host / "other")
    assert code(sign(APP, OWN)) == "trust-invalid"


async def test_a_status_reads_no_file_in_the_event_loop(
    host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A policy may have a hundred; what the status shows of it is of the last second."""
    add_key(host, public(OWN))
    monkeypatch.setattr("ota_service.fleet.engine.POLL_S", 0.01)
    asked, files = set(), trust._files

    def noted(*arguments: Any) -> Any:
        asked.add(threading.current_thread() is threading.main_thread())
        return files(*arguments)

    monkeypatch.setattr(trust, "_files", noted)
    target = Target("http://127.0.0.1:9/x.bin", "1")
    settings = Settings("OTA", target, boards=(), auto_update=False, state_dir=tmp_path / "state",
                        cache_dir=tmp_path / "cache")  # fmt: skip
    service = await FleetService.open(settings)
    try:
        assert service.status()["trust"] == {"requires": ["secure-boot-v2"]}
        (host / "keys" / "release.pem").chmod(0o666)
        async with asyncio.timeout(30):
            while "error" not in service.status()["trust"]:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)
        assert asked == {False}
    finally:
        await shutdown()


ED25519 = (
    b"-----BEGIN PUBLIC KEY-----\n"
    b"MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n-----END PUBLIC KEY-----\n"
)


def link(path: Path) -> None:
    """Put a link in a file's place."""
    path.rename(path.parent.parent.parent / "elsewhere.pem")
    path.symlink_to(path.parent.parent.parent / "elsewhere.pem")


def fifo(path: Path) -> None:
    """Put a FIFO there, which would be waited for."""
    path.unlink()
    os.mkfifo(path)


BROKEN: list[tuple[str, Callable[[Path], object]]] = [
    ("a key that others may write", lambda path: path.chmod(0o666)),
    ("a key that the group may write", lambda path: path.chmod(0o664)),
    ("a folder of keys that others may write", lambda path: path.parent.chmod(0o777)),
    ("a folder that others may write", lambda path: path.parent.parent.chmod(0o775)),
    ("a folder above that others may write", lambda path: path.parents[2].chmod(0o777)),
    ("a link", link),
    ("a private key", lambda path: path.write_bytes(OWN)),
    ("no key", lambda path: path.write_bytes(b"-----BEGIN")),
    ("a key of another kind", lambda path: path.write_bytes(ED25519)),
    ("no key in the folder", lambda path: path.rename(path.with_suffix(".txt"))),
    ("a FIFO", fifo),
    ("a file that never ends", lambda path: os.truncate(path, 10 << 20)),
    ("another owner", lambda path: os.chown(path, 4711, -1)),
]


@pytest.mark.parametrize("break_it", [r[1] for r in BROKEN], ids=[r[0] for r in BROKEN])
def test_a_policy_that_is_not_root_s_own(host: Path, break_it: Callable[[Path], object]) -> None:
    """Somebody else may have written it: nothing is taken, rather than anything."""
    path = add_key(host, public(OWN))
    assert code(sign(APP, OWN)) == ""
    try:
        break_it(path)
    except PermissionError:
        pytest.skip("only root gives files away")
    assert code(sign(APP, OWN)) == "trust-invalid"
    shown = trust.shown()
    assert shown is not None


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "[{}]", '[{"url": "http://h/"}]', '[{"url": "h", "root": "root.json"}]',
        '[{"url": "http://u:p@h/", "root": "root.json"}]',
        '[{"url": "http://h/", "root": "../root.json"}]',
        '[{"url": "http://h/", "root": "none.json"}]', "[" * 100_000,
        '[{"url": "http://a\\u2100b/", "root": "root.json"}]',
        '[{"url": "http://h/fw", "root": "root.json"},'
        '{"url": "HTTP://h:80/fw/", "root": "root.json"}]',
    ],
)  # fmt: skip
def test_repositories_that_cannot_be_read(host: Path, text: str) -> None:
    """They are named as the policy's fault, and nothing is taken."""
    host.mkdir(parents=True)
    (host / "root.json").write_text(ROOT_TEXT)
    (host / "repositories.json").write_text(text)
    assert code(APP) == "trust-invalid"
    shown = trust.shown()
    assert shown is not None
    assert (shown["requires"], shown["error"]["code"]) == (["repository"], "trust-invalid")


@pytest.mark.parametrize("root", [b"", b"garbage", b"[]", b'{"signed": {"_type": "targets"}}'])
def test_a_root_that_is_none(host: Path, root: bytes) -> None:
    """It is the policy that is wrong, not the server."""
    add_repository(host, "http://h/", root)
    assert code(APP) == "trust-invalid"


def test_a_file_from_nowhere_is_from_no_repository(host: Path) -> None:
    """Where firmware comes from repositories only, bytes without an address come from none."""
    host.mkdir(parents=True)
    (host / "root.json").write_text(ROOT_TEXT)
    rows: list[dict[str, Any]] = [{"url": "HTTP://H:80/fw", "root": "root.json"}]
    (host / "repositories.json").write_text(json.dumps(rows))
    assert code(sign(APP, OWN)) == "signature-untrusted"
    assert trust.shown() == {"requires": ["repository"]}
    (policy,) = trust.policies()
    assert policy.repositories is not None
    assert policy.repositories[0].url == "http://h/fw/"


# --- the ways in


@pytest.fixture
async def server() -> AsyncIterator[FirmwareServer]:
    """A server, that of the repository."""
    async with FirmwareServer.start() as running:
        yield running


@pytest.fixture
def made() -> TufRepository:
    """A repository with one signed firmware."""
    made = TufRepository()
    made.add("app.bin", SIGNED, "1.0.0")
    made.publish()
    return made


SIGNED = sign(build_app("demo", "1.0.0", size_bytes=100_000), OWN)


def serve(server: FirmwareServer, made: TufRepository, **options: Any) -> str:
    """Have a server serve a repository; returns the firmware's url."""
    for name, data in made.files.items():
        server.put(f"/fw/{name}", data, **options)
    return server.url("/fw/targets/app.bin")


@pytest.fixture
def supply(tmp_path: Path) -> Supply:
    """A supply that does not wait long between its attempts."""
    return Supply(tmp_path / "cache", patience=Patience(delays_s=(0.01, 0.01)))


@pytest.mark.slow
async def test_downloads_from_a_repository_are_downloads(
    host: Path, server: FirmwareServer, made: TufRepository, supply: Supply
) -> None:
    """With user and token, gone on with where they broke off; and once had, from the cache."""
    add_repository(host, server.url("/fw"), made.root)
    add_key(host, public(OWN))
    serve(server, made, login="u:p")
    name = f"/fw/targets/{hashlib.sha256(SIGNED).hexdigest()}.app.bin"
    server.cut_next(name, after_bytes=50_000)
    server.cut_next("/fw/metadata/timestamp.json", after_bytes=10)
    url = server.url("/fw/targets/app.bin", user_info="u:p", query="token=abc")
    firmware = await supply.get(Target(url, "1.0.0"))
    assert firmware.sha256 == hashlib.sha256(SIGNED).hexdigest()
    (by,) = firmware.allowed_by
    assert (by["keys"], by["target"]) == ({digest(OWN).hex(): "release.pem"}, "app.bin")
    asked = [(request.path, request.status) for request in server.requests]
    assert [status for path, status in asked if path.startswith(name)] == [200, 206]
    assert {path.partition("?")[2] for path, _ in asked} == {"token=abc"}
    assert await supply.get(Target(url, "1.0.0")) == firmware
    assert sum(path.startswith(name) for path, _ in asked) == 2


async def test_an_endless_file(
    host: Path, server: FirmwareServer, made: TufRepository, supply: Supply
) -> None:
    """What goes on behind the bytes that were signed is not even stored."""
    add_repository(host, server.url("/fw"), made.root)
    serve(server, made)
    name = f"/fw/targets/{hashlib.sha256(SIGNED).hexdigest()}.app.bin"
    server.put(name, SIGNED + b"\xff" * 1_000_000, chunked=True)
    with pytest.raises(OtaError, match=f"more than the {len(SIGNED):,} bytes") as caught:
        await supply.get(Target(server.url("/fw/targets/app.bin"), "1.0.0"))
    assert caught.value.code == "download-too-large"


@pytest.mark.slow
@pytest.mark.parametrize("sha256", [None, "own", "other"])
async def test_a_digest_from_a_stolen_configuration(
    host: Path, server: FirmwareServer, made: TufRepository, supply: Supply, sha256: str | None
) -> None:
    """It is asked for beside what was signed, and lets nothing pass, also from the cache."""
    other = build_app("evil", "1.0.0")
    serve(server, made)
    elsewhere = server.put("/evil.bin", other)
    await supply.get(Target(elsewhere, "1.0.0"))  # before the host had a policy
    add_repository(host, server.url("/fw"), made.root)
    digests = {"own": hashlib.sha256(SIGNED), "other": hashlib.sha256(other)}
    wanted = digests[sha256].hexdigest() if sha256 else None
    for url, code in (
        (server.url("/fw/targets/app.bin"), "digest-mismatch" if sha256 == "other" else ""),
        (elsewhere, "signature-untrusted"),
    ):
        try:
            firmware = await supply.get(Target(url, "1.0.0", wanted))
            assert (code, firmware.data) == ("", SIGNED)
        except OtaError as error:
            assert error.code == code, error


@pytest.mark.parametrize("user", [0, 4711])
def test_nothing_that_is_configured_chooses_the_memory(
    user: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of the configuration may hold any file, and so a memory that allows anything."""
    monkeypatch.setattr(os, "geteuid", lambda: user)
    for name in ("HOME", "VIAM_HOME", "VIAM_MODULE_DATA", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, "/root/.viam/packages/evil")
    home = pwd.struct_passwd(("u", "x", user, user, "", "/home/u", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", {user: home}.get)
    there = "/home/u/.ota-service-trust" if user else "/var/lib/ota-service/trust"
    assert str(trust.memory()) == there


def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remembers where root has made a folder for him, and is told to have one made."""
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(pwd, "getpwuid", dict[int, Any]().__getitem__)
    monkeypatch.setattr(trust, "SYSTEM", tmp_path)
    folder = tmp_path / "trust-4711"
    with pytest.raises(NotThere, match="no home") as caught:
        trust.memory()
    assert (caught.value.code, str(folder) in caught.value.remedy) == ("trust-invalid", True)
    folder.mkdir()
    with pytest.raises(NotThere):
        trust.memory()  # another one's
    os.chown(folder, 4711, -1)
    assert trust.memory() == folder
    folder.rmdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "home").symlink_to("real")  # as /home is on some machines
    home = pwd.struct_passwd(("u", "x", 4711, 4711, "", f"{tmp_path}/home/u", "/bin/sh"))
    monkeypatch.setattr(pwd, "getpwuid", {4711: home}.get)
    assert trust.memory() == tmp_path / "real" / "u" / ".ota-service-trust"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["plain", "repository"])
async def test_a_refused_file_may_be_published_aright_later(
    host: Path, server: FirmwareServer, made: TufRepository, supply: Supply, what: str
) -> None:
    """A file and what vouches for it do not appear at once: it is looked for again."""
    add_key(host, public(OWN))
    if what == "repository":
        add_repository(host, server.url("/fw/"), made.root)
    url = serve(server, made)
    hashed = url.replace("app.bin", f"{hashlib.sha256(SIGNED).hexdigest()}.app.bin")
    place = (hashed if what == "repository" else url).removeprefix(server.url("/")[:-1])
    wrong = {
        "plain": [
            (APP, "missing"),
            (bad_block(SIGNED, 0), "invalid"),
            (sign(APP, FOREIGN), "untr"),
        ],
        "repository": [(sign(APP, OWN), "digest-mismatch"), (SIGNED + b"\xff", "too-large")],
    }
    for data, code in wrong[what]:
        server.put(place, data)
        with pytest.raises(NotThere, match=code):
            await supply.get(Target(url, "1.0.0"))
    server.put(place, SIGNED)
    assert (await supply.get(Target(url, "1.0.0"))).data == SIGNED


@pytest.mark.parametrize("place", ["etc/trust", "etc/trust/keys", "etc", "memory", "memory/x", ""])
async def test_a_folder_of_the_configuration_has_nothing_of_trust_in_it(
    host: Path, tmp_path: Path, place: str
) -> None:
    """Nor is it within: what is written there would end every update, or allow some."""
    add_key(host, public(OWN))
    (tmp_path / "link").symlink_to(tmp_path / place)
    good, target = tmp_path / "good", Target("http://127.0.0.1:9/x.bin", "1")
    for bad in (tmp_path / place, tmp_path / "link"):
        for state, cache in ((bad, good), (good, bad)):
            settings = Settings("OTA", target, state_dir=state, cache_dir=cache)
            with pytest.raises(OtaError, match="neither may be in the other") as caught:
                await FleetService.open(settings)
            assert caught.value.code == "config-invalid"
    assert code(sign(APP, OWN)) == ""


async def test_a_forged_memory_in_the_configuration_s_folder(
    host: Path, made: TufRepository, tmp_path: Path
) -> None:
    """The image that it says was allowed before is not taken."""
    url, evil = "http://127.0.0.1:9/fw/", build_app("evil", "6.6.6")
    add_repository(host, url, made.root)
    state, sha256 = tmp_path / "package", hashlib.sha256(evil).hexdigest()
    about = {"size_bytes": len(evil), "hashes": {"sha256": sha256}, "ota": {"version": "9"}}
    name = hashlib.sha256(json.dumps([str(host), url]).encode()).hexdigest()[:32]
    for folder in (state / "trust" / name, state / name):
        folder.mkdir(parents=True)
        forged = {"allowed": {"app.bin": about}, "seen_s": 4e9}
        (folder / "allowed.json").write_text(json.dumps(forged))
    images = state / "firmware" / "images"
    images.mkdir(parents=True)
    (images / f"{sha256}.bin").write_bytes(evil)
    target = Target(f"{url}targets/app.bin", "9")
    settings = Settings("OTA", target, state_dir=state, cache_dir=state)
    log = logging.LoggerAdapter(logging.getLogger("ota_service"), {})
    firmwares = Firmwares(settings, log, _never)
    firmwares._supply._patience = Patience(delays_s=())
    with pytest.raises(OtaError, match="download-failed"):
        async with firmwares.had(target):
            pass
    await firmwares.close()


async def _never(_: str) -> bool:
    return False


async def test_a_repository_on_a_stick(
    host: Path, tmp_path: Path, made: TufRepository, supply: Supply
) -> None:
    """By its path, as a program, a configuration or `--file` names it; a file beside it is from no
    repository."""
    stick = tmp_path / "stick"
    for name, data in made.files.items():
        (stick / name).parent.mkdir(parents=True, exist_ok=True)
        (stick / name).write_bytes(data)
    add_repository(host, str(stick), made.root)
    firmware = await load_firmware(stick / "targets" / "app.bin", cache_dir=tmp_path / "cache")
    assert firmware.allowed_by[0]["repository"] == f"{stick}/"
    path = str(stick / "targets" / "app.bin")
    assert (await supply.get(Target(path, "1.0.0"))).allowed_by == firmware.allowed_by
    with pytest.raises(OtaError, match="version-mismatch"):
        await supply.get(Target(path, "1.0.1"))
    timestamp = stick / "metadata" / "timestamp.json"
    timestamp.rename(tmp_path / "kept")
    os.mkfifo(timestamp)
    with pytest.raises(OtaError, match="regular file"):
        await load_firmware(stick / "targets" / "none.bin", cache_dir=tmp_path / "cache")
    timestamp.unlink()
    (tmp_path / "kept").rename(timestamp)
    (stick / "app.bin").write_bytes(SIGNED)
    (stick / "targets" / "app.bin").write_bytes(APP)
    for name, code in (("app.bin", "signature-untrusted"), ("targets/app.bin", "digest-mismatch")):
        with pytest.raises(OtaError) as caught:
            await load_firmware(stick / name, cache_dir=tmp_path / "cache")
        assert caught.value.code == code


@pytest.mark.slow
async def test_nobody_waits_for_a_slow_repository_any_more(
    host: Path, server: FirmwareServer, made: TufRepository, supply: Supply
) -> None:
    """A fetch that nobody wants ends at once, and its thread with it."""
    add_repository(host, server.url("/fw"), made.root)
    made.files["metadata/timestamp.json"] += b" " * 16_000  # several pieces, so that it can hang
    url = serve(server, made)
    began = asyncio.Event()

    async def hang(_: web.Request) -> web.StreamResponse:
        began.set()
        await asyncio.sleep(3600)
        raise AssertionError

    server.answer_next("/fw/metadata/timestamp.json", hang)
    task = asyncio.ensure_future(supply.get(Target(url, "1.0.0")))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    firmware = await asyncio.wait_for(supply.get(Target(url, "1.0.0")), 20)
    assert firmware.data == SIGNED


@pytest.mark.slow
async def test_metadata_that_expires_soon_is_told_and_looked_at_again(
    host: Path, server: FirmwareServer, made: TufRepository, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its owner may renew it while nothing is downloaded here; then nothing is told any more."""
    made.signed["timestamp"].expires = in_days(13)
    made.publish()
    target = Target(serve(server, made), "1.0.0")
    add_repository(host, server.url("/fw"), made.root)
    settings = Settings("OTA", target, state_dir=tmp_path / "state", cache_dir=tmp_path / "cache")
    log = logging.LoggerAdapter(logging.getLogger("ota_service"), {})
    firmwares = Firmwares(settings, log, _never)
    async with firmwares.had(target) as fetched:
        assert fetched.allowed_by[0]["metadata"]["timestamp"] == 2
    by = firmwares.about[target.key]["allowed_by"]
    told = trust.expiry_notice(by)
    assert told is not None
    assert f"expires at {in_days(13):%Y-%m-%d}" in told
    assert firmwares.expiring() == []  # it was looked at just now
    monkeypatch.setattr("ota_service.fleet.firmwares.LOOK_AGAIN_S", -1.0)
    assert firmwares.expiring() == [target]
    made.signed["timestamp"].expires = in_days(15)
    made.publish()
    serve(server, made)
    await firmwares.look_at_metadata(target)
    assert trust.expiry_notice(by) is None
    assert firmwares.expiring() == []
    await firmwares.close()


@pytest.mark.slow
async def test_what_was_taken_back_is_not_written_from_the_shelf(
    host: Path, server: FirmwareServer, made: TufRepository, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Its owner is asked again before a board gets what was fetched a day ago; where he gives no
    answer, it is as before."""
    add_repository(host, server.url("/fw"), made.root)
    target = Target(serve(server, made), "1.0.0")
    log = logging.LoggerAdapter(logging.getLogger("ota_service"), {})
    firmwares = Firmwares(Settings("OTA", target, cache_dir=tmp_path / "cache"), log, _never)
    firmwares._supply._patience = Patience(delays_s=())
    async with firmwares.had(target) as first:
        assert not await firmwares.outdated(target, first)
        monkeypatch.setattr("ota_service.fleet.firmwares.LOOK_AGAIN_S", -1.0)
        server.fail_next("/fw/metadata/timestamp.json", 503)
        assert await firmwares.outdated(target, first)
        async with firmwares.had(target) as offline:
            assert (offline.image, offline.allowed_by[0]["as_before"]) == (first.image, True)
        del made.signed["targets"].targets["app.bin"]
        made.publish()
        serve(server, made)
        for fetched in (first, offline):  # of two boards that have it, none gets it
            assert await firmwares.outdated(target, fetched)
        with pytest.raises(OtaError, match="signature-untrusted"):
            async with firmwares.had(target):
                pass
    await firmwares.close()


async def test_a_policy_that_comes_while_a_firmware_is_fetched(host: Path, tmp_path: Path) -> None:
    """It holds for whoever asks afterwards, also where a download is still shared with others."""
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(_: web.Request) -> web.Response:
        begun.set()
        await go.wait()
        return web.Response(body=APP)

    app = web.Application()
    app.router.add_get("/app.bin", slow)
    async with TestServer(app) as server:
        target = Target(str(server.make_url("/app.bin")), "1.0.0")
        log = logging.LoggerAdapter(logging.getLogger("ota_service"), {})
        firmwares = Firmwares(Settings("OTA", target, cache_dir=tmp_path / "cache"), log, _never)
        go.set()
        async with firmwares.had(target) as before:
            assert before.asked == ()
            assert not await firmwares.outdated(target, before)
            add_key(host, public(OWN))
            assert await firmwares.outdated(target, before)
            with pytest.raises(OtaError, match="carries no"):
                async with firmwares.had(target):
                    pass
        supply = Supply(tmp_path / "other")
        (host / "keys" / "release.pem").unlink()
        (host / "keys").rmdir()
        host.rmdir()
        begun.clear()
        go.clear()
        first = asyncio.create_task(supply.get(target))
        await begun.wait()
        add_key(host, public(OWN))
        second = asyncio.create_task(supply.get(target))
        begun.clear()
        await begun.wait()
        go.set()
        assert (await first).asked == ()
        with pytest.raises(OtaError, match="carries no"):
            await second
        await firmwares.close()


async def test_a_firmware_that_a_program_has_loaded_is_written_by_it(
    host: Path, made: TufRepository, tmp_path: Path
) -> None:
    """By its path and as an object; also where its file is padded, as it was signed for."""
    padded = SIGNED + b"\xff" * 5_000
    made.add("app.bin", padded, "1.0.0")
    made.publish()
    for name, data in made.files.items():
        path = tmp_path / "stick" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    app, cache = tmp_path / "stick" / "targets" / "app.bin", tmp_path / "cache"
    add_repository(host, f"{tmp_path}/stick/", made.root)
    loaded = await load_firmware(app, cache_dir=tmp_path / "one")
    assert (len(loaded.data), loaded.file) == (len(SIGNED), padded)
    for source in (loaded, app):
        target = stock(source, "1.0.0", None, cache)
        (by,) = (await Supply(cache).get(target)).allowed_by
        assert by["target"] == "app.bin"


async def test_a_merged_binary_behind_the_configuration_s_headers(
    server: FirmwareServer, tmp_path: Path
) -> None:
    """They are for its server, whatever lies there; and for no other one."""
    url = server.put("/whole.bin", merged(APP, build_bootloader()))
    for at, sent in ((server.url("/app.bin"), "s3cret"), ("http://127.0.0.1:9/app.bin", None)):
        target = Target(at, "1.0.0", headers=(("X-Token", "s3cret"),))
        log = logging.LoggerAdapter(logging.getLogger("ota_service"), {})
        firmwares = Firmwares(Settings("OTA", target, cache_dir=tmp_path), log, _never)
        await firmwares.merged(url, "24:0a:c4:00:00:01", keep_nvs=False)
        assert server.requests[-1].headers.get("X-Token") == sent
        await firmwares.close()


def merged(app: bytes, loader: bytes) -> bytes:
    """A Merged Binary with this app."""
    return merge(bootloader=loader, table=load_table("ota-guide"), app=app).data


@pytest.mark.parametrize(
    ("app", "loader", "code"),
    [
        (SIGNED, OWN, ""),
        (SIGNED[: -SECTOR], OWN, "signature-missing"),
        (sign(APP, FOREIGN), OWN, "signature-untrusted"),
        (SIGNED, None, "signature-missing"),
        (SIGNED, FOREIGN, "signature-untrusted"),
    ],
)  # fmt: skip
def test_all_that_a_merged_binary_starts(
    host: Path, app: bytes, loader: bytes | None, code: str
) -> None:
    """Its bootloader as well as its apps: any of them could start the rest."""
    plain = build_bootloader()
    data = merged(app, sign(plain, loader) if loader else plain)
    assert check_merged(data).allowed_by == ()
    add_key(host, public(OWN))
    try:
        (by,) = check_merged(data).allowed_by
        assert (by["keys"], code) == ({digest(OWN).hex(): "release.pem"}, "")
    except OtaError as error:
        assert error.code == code, error


DATA_TABLE = table_from_csv(
    "nvs,data,nvs,0x9000,16K\notadata,data,ota,0xd000,8K\nphy_init,data,phy,0xf000,4K\n"
    "factory,app,factory,0x10000,1M\nfiles,data,littlefs,0x110000,64K\n"
    "own,0x40,0x01,0x120000,64K\ncore,data,coredump,0x130000,64K\n"
)


@pytest.mark.parametrize(
    ("name", "code"),
    [("", ""), ("otadata", ""), ("phy_init", ""), ("nvs", "signature-missing"),
     ("files", "signature-missing"), ("own", "signature-missing"), ("core", "signature-missing")],
)  # fmt: skip
def test_what_no_key_signs_in_a_merged_binary(
    host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str
) -> None:
    """Who changes it may have an app that is signed do what he wants; a repository vouches for a
    file as a whole, but only one of the same policy."""
    made = merge(bootloader=sign(build_bootloader(), OWN), table=DATA_TABLE, app=SIGNED).data
    flash = bytearray(made.ljust(0x140000, b"\xff"))
    for part in parse_partition_table(DATA_TABLE).partitions:
        if part.label == name:
            flash[part.offset + 4000] = 0x55
    add_key(host, public(OWN))
    data, grants = bytes(flash).rstrip(b"\xff"), []
    for repository in ("", "of another policy", "of this one"):
        folder = host if repository == "of this one" else tmp_path / "added"
        if repository:
            add_repository(
                folder, "http://h/fw/", TufRepository().publish()["metadata/1.root.json"]
            )
            monkeypatch.setenv(ADDED, str(tmp_path / "added"))
            sha256 = hashlib.sha256(data).hexdigest()
            grants.append(
                trust.Grant(folder, "http://h/fw/", "a", "", len(data), {"sha256": sha256})
            )
        try:
            check_merged(data, grants=grants)
            assert code == "" or folder == host
        except OtaError as error:
            assert (error.code, name in error.message, folder != host) == (code, True, True), error


@pytest.mark.parametrize("second", ["whole", "begun", "in the signature's sector"])
def test_a_merged_binary_with_two_tables(second: str) -> None:
    """A decoy before the table that its signed bootloader was built for hides what is started."""
    loader = sign(build_bootloader(), OWN)
    app = sign(APP, FOREIGN, OWN)
    data = bytearray(merged(app, loader))
    other = bytearray(data[0x8000:0x9000])
    if second == "begun":  # one that we read as damaged, and an older bootloader may not
        other[40] ^= 1
    if second == "in the signature's sector":  # before the block that counts
        at = data.index(app) + len(app) - SECTOR
        data[at : at + BLOCK] = other[:BLOCK]
    else:
        data[0xF000:0x10000] = other
    with pytest.raises(OtaError, match="cannot be told") as caught:
        check_merged(bytes(data), policies=())
    assert caught.value.code == "partition-table-invalid"


@pytest.mark.parametrize(
    ("second", "code"), [(OWN, ""), (FOREIGN, "signature-untrusted"), (None, "signature-missing")]
)
def test_a_second_bootloader_may_be_started_too(host: Path, second: Any, code: str) -> None:
    """By the ROM where the first one does not start, or in its place: it is signed as that is."""
    table = table_from_csv(
        "nvs,data,nvs,0x9000,16K\nloader2,bootloader,ota,0x10000,64K\n"
        "factory,app,factory,0x20000,1M\n"
    )
    plain = build_bootloader()
    data = bytearray(merge(bootloader=sign(plain, OWN), table=table, app=SIGNED).data)
    loader = sign(plain, second) if second else plain
    data[0x10000 : 0x10000 + len(loader)] = loader
    add_key(host, public(OWN))
    try:
        check_merged(bytes(data))
        assert code == ""
    except OtaError as error:
        assert (error.code, "loader2" in error.message) == (code, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("room", "left_out"),
    [("module.server", {"tuf", "securesystemslib"}), ("cli.image", {"tuf", "aiohttp", "esptool"})],
)
def test_a_policy_costs_nothing_where_there_is_none(room: str, left_out: set[str]) -> None:
    """Neither the client of repositories nor what a look into a file does not need is loaded."""
    words = (
        f"import sys, ota_service.{room}, ota_service.firmware.trust as t; t.policies();"
        f"print({left_out} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", words], capture_output=True, text=True, check=True,
        env={**os.environ, ADDED: "", "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert done.stdout == "set()\n"
