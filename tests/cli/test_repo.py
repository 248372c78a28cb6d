# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota repo` and `trust`: made with ours and read by python-tuf alone, and installed."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any, cast

import pytest
from aiohttp import web
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root
from tuf.ngclient import FetcherInterface, Updater

from esp32_sim.images import build_app, build_bootloader
from esp32_sim.process import SimBoard, SimProcess
from ota_service import load_firmware
from ota_service.building import repository
from ota_service.building.tables import load_table
from ota_service.cli.main import cli
from ota_service.cli.serve import Server, in_repository
from ota_service.errors import OtaError
from ota_service.firmware import trust
from ota_service.formats.merge import merge
from tests.flash.merged_files import merged
from tests.support.command import Done, environment, here, run_command
from tests.support.firmware_server import FirmwareServer
from tests.support.host_policy import add_key, make_host
from tests.support.rig import PROJECT
from tests.support.signing import digest, key, public, sign
from tests.support.tuf_repository import TufRepository

APP = build_app("demo", "1.0.0")
NEXT = build_app("demo", "2.0.0")
OWN = key("ECDSA-P-256", 0)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a host's policy, in which nothing is yet."""
    return make_host(tmp_path, monkeypatch)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository with one firmware, made by the two commands."""
    made = tmp_path / "repo"
    (tmp_path / "app.bin").write_bytes(APP)
    done(here("repo", "init", str(made)))
    done(here("repo", "add", str(made), str(tmp_path / "app.bin")))
    return made


def done(result: Done) -> Any:
    """What a command printed; it must not have failed."""
    assert result.code == 0, result
    return json.loads(result.out) if result.out.startswith(("{", "[")) else result.out


class Files(FetcherInterface):
    """Reads files, for python-tuf's client."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = Path(url)
        if not path.exists():
            from tuf.api.exceptions import DownloadHTTPError

            raise DownloadHTTPError("none", 404)
        yield path.read_bytes()

    def fetch(self, url: str) -> Iterator[bytes]:
        """Not by a generator: its errors are to come at once."""
        return iter(list(self._fetch(url)))


def by_python_tuf(folder: Path, cache: Path, base: str | None = None) -> Updater:
    """Its client, as it comes."""
    cache.mkdir()
    base = base or f"{folder}/"
    updater = Updater(
        str(cache), f"{base}metadata/", str(cache), f"{base}targets/",
        fetcher=Files() if base.startswith("/") else None,
        bootstrap=(folder / "metadata" / "1.root.json").read_bytes(),
    )  # fmt: skip
    updater.refresh()
    return updater


def test_two_commands_make_a_repository(folder: Path, tmp_path: Path) -> None:
    """Which python-tuf's client takes; with the times, names, modes and keys that are promised."""
    updater = by_python_tuf(folder, tmp_path / "cache")
    found = updater.get_targetinfo("app.bin")
    assert found is not None
    assert Path(updater.download_target(found)).read_bytes() == APP
    assert found.custom == {"ota": {"version": "1.0.0", "project": "demo", "chip": "ESP32"}}
    assert (folder / "targets" / "app.bin").read_bytes() == APP
    now, days = datetime.now(UTC), {"root": 365, "targets": 365, "snapshot": 90, "timestamp": 90}
    for role, name in zip(days, ("1.root", "2.targets", "2.snapshot", "timestamp"), strict=True):
        expires = Metadata[Any].from_file(str(folder / "metadata" / f"{name}.json")).signed.expires
        assert abs(expires - now - timedelta(days=days[role])) < timedelta(hours=1)
    keys = tmp_path / "repo-keys"
    assert (keys.stat().st_mode & 0o777, sorted(p.name for p in keys.iterdir())) == (
        0o700, ["1.root.json", "root.pem", "seen.json", "snapshot.pem", "targets.pem",
                "timestamp.pem"],
    )  # fmt: skip
    assert {path.stat().st_mode & 0o777 for path in keys.iterdir()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in folder.rglob("*") if path.is_file()} == {0o644}
    assert not list(folder.rglob("*.pem"))
    shown = done(here("repo", "list", str(folder), "--json"))
    assert shown["targets"][0] == {
        "name": "app.bin", "size_bytes": len(APP), "sha256": hashlib.sha256(APP).hexdigest(),
        "version": "1.0.0", "project": "demo", "chip": "ESP32",
    }  # fmt: skip
    assert "app.bin" in done(here("repo", "list", str(folder)))


async def test_it_is_served_to_python_tuf(folder: Path, tmp_path: Path) -> None:
    """By `serve`, to the client as it comes; nothing beside metadata and targets is served."""
    (folder / "notes.txt").write_text("not for others")
    os.mkfifo(folder / "targets" / "fifo")
    with (folder / "targets" / "large").open("wb") as file:
        file.truncate(1 << 40)
    runner = web.AppRunner(Server(partial(in_repository, folder), lambda _: None).application())
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        base = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        updater = await asyncio.to_thread(by_python_tuf, folder, tmp_path / "cache", base)
        found = await asyncio.to_thread(updater.get_targetinfo, "app.bin")
        assert found is not None
        await asyncio.to_thread(updater.download_target, found)
        import aiohttp

        async with aiohttp.ClientSession() as session:
            for path in ("", "notes.txt", "metadata/%2e%2e/notes.txt", "targets/%00", "targets",
                         "targets/fifo", "targets/large",
                         "targets/..%2f..%2frepo-keys/root.pem"):  # fmt: skip
                async with session.get(base + path) as answer:
                    assert answer.status == 404, path
    finally:
        await runner.cleanup()


def test_refresh_and_a_next_version(folder: Path, tmp_path: Path) -> None:
    """A host that has seen the first state takes each later one."""
    (tmp_path / "app.bin").write_bytes(NEXT)
    made = done(here("repo", "add", str(folder), str(tmp_path / "app.bin"), "--json"))
    assert made["version"] == "2.0.0"
    assert done(here("repo", "refresh", str(folder), "--json"))["signed"] == [
        "snapshot", "timestamp",
    ]  # fmt: skip
    found = by_python_tuf(folder, tmp_path / "cache").get_targetinfo("app.bin")
    assert found is not None
    assert found.hashes["sha256"] == hashlib.sha256(NEXT).hexdigest()
    assert done(here("repo", "verify", str(folder), "--json")) == {
        "ok": True, "good": ["app.bin"], "problems": [],
    }  # fmt: skip


def test_root_and_targets_are_renewed_in_time(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where their keys are at hand; a root that is kept elsewhere is left as it is."""
    monkeypatch.setattr("ota_service.building.repository.RENEWED_DAYS", 400)
    (tmp_path / "repo-keys" / "root.pem").rename(tmp_path / "root.pem")
    signed = done(here("repo", "refresh", str(folder), "--json"))["signed"]
    assert signed == ["targets", "snapshot", "timestamp"]
    (tmp_path / "root.pem").rename(tmp_path / "repo-keys" / "root.pem")
    signed = done(here("repo", "refresh", str(folder), "--json"))["signed"]
    assert signed == ["root", "targets", "snapshot", "timestamp"]
    updater = by_python_tuf(folder, tmp_path / "cache")
    assert updater.get_targetinfo("app.bin") is not None
    assert (folder / "metadata" / "2.root.json").exists()


def test_keys_with_a_password(tmp_path: Path) -> None:
    """It is asked for, once, and a wrong one signs nothing."""
    (tmp_path / "app.bin").write_bytes(APP)
    repo, run = str(tmp_path / "repo"), CliRunner()
    made = run.invoke(cli, ["repo", "init", repo, "--encrypt"], input="secret\nsecret\n")
    assert made.exit_code == 0, made.output
    assert b"ENCRYPTED" in (tmp_path / "repo-keys" / "root.pem").read_bytes()
    add = ["repo", "add", repo, str(tmp_path / "app.bin")]
    wrong = run.invoke(cli, add, input="other\n")
    assert isinstance(wrong.exception, OtaError)
    right = run.invoke(cli, add, input="secret\n")
    assert right.exit_code == 0, right.output
    for role in ("snapshot", "timestamp"):  # for a nightly job
        path = tmp_path / "repo-keys" / f"{role}.pem"
        pem = load_pem_private_key(path.read_bytes(), b"secret")
        path.write_bytes(repository._pem(cast("Any", pem), None))
    nightly = run.invoke(cli, ["repo", "refresh", repo])
    assert nightly.exit_code == 0, nightly.output


@pytest.mark.slow
def test_of_two_who_publish_at_once_both_have_published(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever comes second begins with the first one's state; a password that is not typed yet
    holds nobody up, and what was seen never goes back."""
    keys, signers, threads = tmp_path / "repo-keys", repository._signers, list[Thread]()

    def add(name: str, ask: Callable[[], str] = str) -> None:
        repository.add(folder, keys, NEXT, name=name, version="2", ask_password=ask)

    def second(*arguments: Any) -> Any:
        if not threads:
            threads.append(Thread(target=add, args=("second.bin",)))
            threads[0].start()
            threads[0].join(0.3)  # without a lock it would be through by then
        return signers(*arguments)

    monkeypatch.setattr(repository, "_signers", second)
    add("first.bin")
    threads[0].join()
    monkeypatch.setattr(repository, "_signers", signers)
    pem = load_pem_private_key((keys / "snapshot.pem").read_bytes(), None)
    (keys / "snapshot.pem").write_bytes(repository._pem(cast("Any", pem), "secret"))

    def slowly() -> str:
        (keys / "snapshot.pem").write_bytes(repository._pem(cast("Any", pem), None))
        add("meanwhile.bin")
        (keys / "snapshot.pem").write_bytes(repository._pem(cast("Any", pem), "secret"))
        return "secret"

    add("third.bin", slowly)
    seen = json.loads((keys / "seen.json").read_text())
    entries, _ = repository.listed(folder, keys)
    names = ["app.bin", "first.bin", "meanwhile.bin", "second.bin", "third.bin"]
    assert ([one.name for one in entries], seen["targets"]) == (names, 6)
    state = repository._State.read(folder, keys)
    (keys / "seen.json").write_text(json.dumps(seen | {"targets": 9}))
    state._remember()
    assert json.loads((keys / "seen.json").read_text())["targets"] == 9


def his_root(folder: Path, number: int) -> None:
    """The owner's root with a thief's key in each role, signed by the thief, as this version."""
    thief = CryptoSigner.generate_ed25519()
    made = Metadata[Root].from_file(str(folder / "metadata" / "1.root.json"))
    for role in made.signed.roles:
        made.signed.add_key(thief.public_key, role)
    made.signed.version = number
    made.signatures.clear()
    made.sign(thief)
    for name in (f"{number}.root", "root"):
        (folder / "metadata" / f"{name}.json").write_bytes(made.to_bytes())


def other_hash(folder: Path) -> None:
    """Of the file, in metadata that is otherwise the owner's."""
    path, digest = folder / "metadata" / "3.targets.json", hashlib.sha256(APP).hexdigest().encode()
    path.write_bytes(path.read_bytes().replace(digest, hashlib.sha256(NEXT).hexdigest().encode()))


def all_his_own(folder: Path) -> None:
    """A repository of the thief's, in the place of the owner's."""
    his = TufRepository()
    his.add("app.bin", NEXT, "1.0.0")
    for name, data in his.publish().items():
        (folder / name).write_bytes(data)


def older(folder: Path, role: str) -> None:
    """What is older under the name of what is newest."""
    (folder / "metadata" / f"3.{role}.json").write_bytes(
        (folder / "metadata" / f"2.{role}.json").read_bytes()
    )


def all_older(folder: Path) -> None:
    """As the folder was before."""
    shutil.rmtree(folder)
    shutil.copytree(folder.with_name("older"), folder)


def zeros(folder: Path) -> None:
    """Without end."""
    (folder / "metadata" / "timestamp.json").unlink()
    (folder / "metadata" / "timestamp.json").symlink_to("/dev/zero")


THEFTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "another hash": (other_hash, "metadata-invalid"),
    "the first root": (lambda folder: his_root(folder, 1), "metadata-invalid"),
    "a next root": (lambda folder: his_root(folder, 2), "metadata-invalid"),
    "everything": (all_his_own, "metadata-invalid"),
    "an older snapshot": (lambda folder: older(folder, "snapshot"), "metadata-invalid"),
    "older targets": (lambda folder: older(folder, "targets"), "metadata-invalid"),
    "all older": (all_older, "replayed"),
    "no end": (zeros, "file-access"),
}


@pytest.mark.slow
@pytest.mark.parametrize("theft", THEFTS)
def test_nothing_is_signed_anew_that_was_not_right(
    folder: Path, tmp_path: Path, theft: str
) -> None:
    """The server's thief changes the folder, and waits for its owner."""
    keys = tmp_path / "repo-keys"
    shutil.copytree(folder, tmp_path / "older")
    about: dict[str, Any] = {"name": "other.bin", "version": "3", "ask_password": str}
    repository.add(folder, keys, APP, **about)
    shutil.copytree(folder, tmp_path / "right")
    change, code = THEFTS[theft]
    change(folder)
    before = {path: path.lstat().st_mtime_ns for path in folder.rglob("*")}
    for call in (
        lambda: repository.refresh(folder, keys, str),
        lambda: repository.add(folder, keys, NEXT, **about),
        lambda: repository.listed(folder, keys),
    ):
        with pytest.raises(OtaError) as caught:
            call()
        assert caught.value.code == code
    good, problems = repository.verify(folder, keys)
    assert (good, len(problems)) == ([], 1)
    assert {path: path.lstat().st_mtime_ns for path in folder.rglob("*")} == before
    shutil.rmtree(folder)
    (tmp_path / "right").rename(folder)  # the right copy is gone on from
    assert repository.refresh(folder, keys, str) == ["snapshot", "timestamp"]


@pytest.mark.parametrize("kind", ["FIFO", "large"])
def test_a_target_that_is_no_file_is_a_problem(folder: Path, kind: str) -> None:
    """Which is not waited for."""
    path = folder / "targets" / "app.bin"
    path.unlink()
    if kind == "FIFO":
        os.mkfifo(path)
    else:
        with path.open("wb") as file:
            file.truncate(1 << 40)
    good, (problem,) = repository.verify(folder, folder.with_name("repo-keys"))
    assert (good, f"app.bin: {path} cannot be read: it " in problem) == ([], True)


def test_a_group_s_folder_for_temporary_files(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `verify` remembers for the moment may lie in one, and behind a link."""
    (tmp_path / "all").mkdir()
    (tmp_path / "all").chmod(0o775)
    (tmp_path / "tmp").symlink_to("all")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    assert done(here("repo", "verify", str(folder), "--json"))["good"] == ["app.bin"]
    assert not any((tmp_path / "all").iterdir())


def test_a_root_that_was_replaced_stays_replaced(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else what the owner has taken back would sign again; and no root, no signature."""
    keys = tmp_path / "repo-keys"
    monkeypatch.setattr(repository, "RENEWED_DAYS", 400)
    for number in (2, 3):
        assert "root" in repository.refresh(folder, keys, str)
        assert (folder / "metadata" / f"{number}.root.json").exists()
    (folder / "metadata" / "3.root.json").unlink()
    with pytest.raises(OtaError, match="version 2 of root, and version 3 was there before"):
        repository.refresh(folder, keys, str)
    (keys / "1.root.json").unlink()
    for command in ("refresh", "list", "verify"):
        failed = here("repo", command, str(folder))
        assert (failed.code, str(keys / "1.root.json") in failed.err) == (1, True)


@pytest.mark.parametrize("consistent", [True, False])
def test_a_repository_of_another_tool_is_gone_on_with(tmp_path: Path, consistent: bool) -> None:
    """Once its keys are there, and its root as hosts have it."""
    made, folder, keys = TufRepository(consistent=consistent), tmp_path / "tuf", tmp_path / "keys"
    made.add("app.bin", APP, "1.0.0")
    for name, data in made.publish().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    keys.mkdir()
    for role, (signer,) in made.keys.items():
        (keys / f"{role}.pem").write_bytes(signer.private_bytes)
    arguments = (str(folder), "--keys", str(keys))
    assert here("repo", "refresh", *arguments).code == 1
    (keys / "1.root.json").write_bytes(made.root)
    for words in (("refresh",), ("list",), ("verify",)):
        done(here("repo", *words, *arguments))
    found = by_python_tuf(folder, tmp_path / "cache").get_targetinfo("app.bin")
    assert found is not None


@pytest.mark.parametrize(
    ("name", "data"),
    [("1.root.json", b"{}"), ("../app.bin", b""), ("a b.bin", APP), ("app.bin", b"no image"),
     ("app.bin", APP[:-40])],
)  # fmt: skip
def test_what_is_not_published(folder: Path, tmp_path: Path, name: str, data: bytes) -> None:
    """Names that no url has, and files that no board starts."""
    file = tmp_path / "file"
    file.write_bytes(data)
    before = sorted(folder.rglob("*"))
    assert here("repo", "add", str(folder), str(file), "--name", name).code == 1
    assert sorted(folder.rglob("*")) == before


async def test_a_merged_binary_is_published_too(folder: Path, tmp_path: Path, host: Path) -> None:
    """So that `flash` writes it on hosts that take their owner's files only."""
    whole = merge(bootloader=build_bootloader(), table=load_table("ota-guide"), app=APP).data
    (tmp_path / "whole.bin").write_bytes(whole)
    arguments = ("repo", "add", str(folder), str(tmp_path / "whole.bin"))
    done(await asyncio.to_thread(here, *arguments))
    assert done(await asyncio.to_thread(here, "repo", "verify", str(folder), "--json"))["ok"]
    install = ("trust", "install", str(folder), "--yes")
    done(await asyncio.to_thread(here, *install))
    port = str(tmp_path / "none")
    for path, words in ((tmp_path, "none of them"), (folder / "targets", "does not exist")):
        failed = await asyncio.to_thread(here, "flash", port, str(path / "whole.bin"))
        assert (failed.code, words in failed.err) == (1, True), failed


def test_paths_and_fingerprints_stay_in_one_piece(
    tmp_path: Path, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However narrow the terminal is: they are compared, and copied."""
    monkeypatch.setenv("COLUMNS", "80")
    folder = tmp_path / ("a long name " * 8)
    (tmp_path / "app.bin").write_bytes(APP)
    made, name = done(here("repo", "init", str(folder))), f"{'app-' * 30}.bin"
    done(here("repo", "add", str(folder), str(tmp_path / "app.bin"), "--name", name))
    assert f"{name}: good" in done(here("repo", "verify", str(folder)))
    asked = CliRunner().invoke(cli, ["trust", "install", str(folder)], input="y\n").output
    add_key(host, public(OWN)).rename(host / "keys" / f"{'key-' * 20}.pem")
    shown = done(here("trust", "show"))
    root = hashlib.sha256((folder / "metadata" / "1.root.json").read_bytes()).hexdigest()
    for text in (made, asked, shown):
        assert str(folder) in text
        assert f"root's SHA-256: {root}" in text
    assert f"{'key-' * 20}.pem  {digest(OWN).hex()}" in shown


async def test_a_repository_is_installed_and_taken(
    folder: Path, tmp_path: Path, host: Path
) -> None:
    """After a look at its fingerprint; python-tuf's as well as ours, and others are refused."""
    run, root = CliRunner(), (folder / "metadata" / "1.root.json").read_bytes()
    arguments = ["trust", "install", str(folder)]
    no = await asyncio.to_thread(run.invoke, cli, arguments, input="n\n")
    assert hashlib.sha256(root).hexdigest() in no.output
    assert not host.exists()
    yes = await asyncio.to_thread(run.invoke, cli, arguments, input="y\n")
    assert yes.exit_code == 0, yes.output
    other = TufRepository()
    other.add("app.bin", NEXT, "2.0.0")
    for name, data in other.publish().items():
        path = tmp_path / "other" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (tmp_path / "root.json").write_bytes(other.root)
    base = ["--url", str(tmp_path / "other")]
    more = ["trust", "install", str(tmp_path / "root.json"), *base, "--yes"]
    yes = await asyncio.to_thread(run.invoke, cli, more)
    assert yes.exit_code == 0, yes.output
    for place, data in ((folder, APP), (tmp_path / "other", NEXT)):
        assert (await load_firmware(place / "targets" / "app.bin")).data == data
    with pytest.raises(OtaError, match="signature-untrusted"):
        await load_firmware(tmp_path / "app.bin")
    shown = json.loads(run.invoke(cli, ["trust", "show", "--json"]).output)
    rows = {row["url"]: row["fingerprint"] for row in shown["policies"][0]["repositories"]}
    assert rows == {
        f"{folder}/": hashlib.sha256(root).hexdigest(),
        f"{tmp_path / 'other'}/": hashlib.sha256(other.root).hexdigest(),
    }
    assert str(folder) in run.invoke(cli, ["trust", "show"]).output


async def test_a_root_is_fetched_from_its_server(host: Path) -> None:
    """With user and token, which are not kept: they come with each configuration."""
    made = TufRepository()
    made.publish()
    async with FirmwareServer.start() as server:
        server.put("/fw/metadata/1.root.json", made.root, login="user:secret")
        url = server.url("/fw", user_info="user:secret", query="token=abc").replace("http", "HTTP")
        shown = done(await asyncio.to_thread(here, "trust", "install", url, "--yes", "--json"))
        assert shown["repository"] == server.url("/fw/")
        assert [request.path for request in server.requests] == [
            "/fw/metadata/1.root.json?token=abc",
        ]  # fmt: skip
        url = server.url("/none", user_info="user:secret")
        failed = await asyncio.to_thread(here, "trust", "install", url, "--yes")
    assert (failed.code, "404" in failed.err, "secret" in failed.err) == (1, True, False)
    assert "secret" not in "".join(path.read_text() for path in host.iterdir())
    assert {path.stat().st_mode & 0o777 for path in host.iterdir()} == {0o644}


def test_a_key_is_installed(tmp_path: Path, host: Path) -> None:
    """And what it has not signed is refused from then on, by its name."""
    for number in (0, 1):  # two keys whose files are called alike
        (tmp_path / str(number)).mkdir()
        file = tmp_path / str(number) / "release.pem"
        file.write_bytes(public(key("ECDSA-P-256", number)))
        done(here("trust", "install", str(file), "--yes", "--json"))
    shown = done(here("trust", "show", "--json"))["policies"][0]["keys"]
    assert sorted(shown.values()) == sorted(digest(key("ECDSA-P-256", n)).hex() for n in (0, 1))
    (tmp_path / "private.pem").write_bytes(OWN)
    assert "private key" in here("trust", "install", str(tmp_path / "private.pem"), "--yes").err
    for data, trusted in ((sign(APP, OWN), True), (APP, False)):
        (tmp_path / "app.bin").write_bytes(data)
        found = done(here("image", "inspect", str(tmp_path / "app.bin"), "--json"))
        assert found["trust"]["requires"] == ["secure-boot-v2"]
        assert found["trust"]["ok"] is trusted
        assert ("this host" in done(here("image", "inspect", str(tmp_path / "app.bin")))) is True


@pytest.mark.parametrize(
    "arguments",
    [
        ("root.json",), ("root.json", "--url", "https://u:p@host/"), ("none.pem",),
        ("root.json", "--url", "relative"), ("garbage.json", "--url", "/srv/fw"),
    ],
)  # fmt: skip
def test_what_is_not_installed(tmp_path: Path, host: Path, arguments: tuple[str, ...]) -> None:
    """A policy that could not be used would keep all firmware from this host."""
    made = TufRepository()
    made.publish()
    (tmp_path / "root.json").write_bytes(made.root)
    (tmp_path / "garbage.json").write_text("{}")
    failed = here("trust", "install", str(tmp_path / arguments[0]), *arguments[1:], "--yes")
    assert failed.code in (1, 2)
    assert not host.exists()


ONE_PLACE = (
    "https://fw.example/esp", "https://fw.example/esp/", "HTTPS://FW.example:443/esp/",
)  # fmt: skip


@pytest.mark.parametrize("first", ONE_PLACE)
@pytest.mark.parametrize("then", ONE_PLACE)
def test_a_place_has_one_root(tmp_path: Path, host: Path, first: str, then: str) -> None:
    """A new one takes the old one's place, however it was written; others stay."""
    roots = []
    for url in (first, "https://fw.example/other/", then):
        made = TufRepository()
        made.publish()
        roots.append(made.root)
        (tmp_path / "root.json").write_bytes(made.root)
        done(here("trust", "install", str(tmp_path / "root.json"), "--url", url, "--yes"))
        if len(roots) == 1:  # as somebody wrote it by hand
            rows = json.loads((host / "repositories.json").read_text())
            (host / "repositories.json").write_text(json.dumps([{**rows[0], "url": first}]))
    (policy,) = trust.policies({})
    found = {one.url: one.root for one in policy.repositories or ()}
    assert found == {
        "https://fw.example/esp/": roots[2], "https://fw.example/other/": roots[1],
    }  # fmt: skip
    rows = [{**rows[0], "url": url} for url in (first, then)]
    (host / "repositories.json").write_text(json.dumps(rows))
    with pytest.raises(OtaError, match="one place twice"):
        trust.policies({})


@pytest.mark.parametrize(
    "url",
    [
        "HTTP://user:s3cretpassword@", "http://user:s3cret\u2100password@127.0.0.1:1/",
        "http://user:s3cretpassword@127.0.0.1:99999/", "http://user:s3cret/password@127.0.0.1:1/",
        "http:/user:s3cretpassword@127.0.0.1/", "ftp://user:s3cretpassword@127.0.0.1/",
        "http://127.0.0.1:1/s3cret@password/", "http://[s3cret/",
    ],
)  # fmt: skip
def test_an_address_that_is_refused_shows_no_password(tmp_path: Path, host: Path, url: str) -> None:
    """Whatever is wrong with it, and nothing is installed."""
    made = TufRepository()
    made.publish()
    (tmp_path / "root.json").write_bytes(made.root)
    for words in ((url,), (str(tmp_path / "root.json"), "--url", url)):
        failed = here("trust", "install", *words, "--yes")
        assert failed.code in (1, 2)
        assert "s3cret" not in failed.out + failed.err
        assert not host.exists()


def test_a_list_that_cannot_be_read_is_not_added_to(tmp_path: Path, host: Path) -> None:
    """Its owner knows what it should say."""
    made = TufRepository()
    made.publish()
    (tmp_path / "root.json").write_bytes(made.root)
    for text in ("{", '{"url": 1}', '["x"]', '[{"root": "x"}]', '[{"url": "https://["}]'):
        host.mkdir(parents=True, exist_ok=True)
        (host / "repositories.json").write_text(text)
        failed = here("trust", "install", str(tmp_path / "root.json"), "--url", "/fw", "--yes")
        assert (failed.code, "correct it first" in failed.err) == (1, True), failed
        assert (host / "repositories.json").read_text() == text


def test_a_policy_that_is_not_valid_is_shown(host: Path) -> None:
    """With what is wrong, and exit code 1."""
    add_key(host, public(OWN)).chmod(0o666)
    shown = here("trust", "show", "--json")
    assert (shown.code, json.loads(shown.out)["error"]["code"]) == (1, "trust-invalid")
    assert here("trust", "show").code == 1


def test_only_root_passes_the_policy_by(
    tmp_path: Path, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody else is told so, as wrong usage."""
    (tmp_path / "app.bin").write_bytes(APP)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for command in (["update", "--file"], ["flash"]):
        words = [command[0], str(tmp_path / "none"), *command[1:], str(tmp_path / "app.bin")]
        failed = here(*words, "--no-trust")
        assert (failed.code, "root" in failed.err) == (2, True), failed


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root passes the policy by")
async def test_root_passes_the_policy_by_and_it_is_noted(tmp_path: Path) -> None:
    """What is not signed is refused by each way in, and written where root insists."""
    policy = tmp_path / "policy"
    policy.mkdir(mode=0o755)
    add_key(policy, public(OWN))
    env = environment(tmp_path, OTA_SERVICE_TRUST=str(policy))
    app, whole = tmp_path / "app.bin", tmp_path / "whole.bin"
    app.write_bytes(build_app(PROJECT, "1.1.0", size_bytes=60_000))
    whole.write_bytes(merged("ota-guide"))
    quick = ("--boot-timeout", "4", "--boot-stable", "0.5", "--json")
    with SimProcess(tmp_path / "boards", [SimBoard("guide")]) as sim:
        port = sim.boards[0].url
        for command in (("update", port, "--file", str(app)), ("flash", port, str(whole))):
            refused = await run_command(*command, *quick, env=env)
            assert refused.code == 1
            assert "signature-missing" in refused.out or "carries no Secure" in refused.err
            done_by_root = await run_command(*command, *quick, "--no-trust", env=env)
            assert done_by_root.code == 0, done_by_root
    (journal,) = tmp_path.rglob("journal.sqlite3")
    with contextlib.closing(sqlite3.connect(journal)) as connection:
        rows = connection.execute("SELECT target, outcome FROM runs ORDER BY rowid").fetchall()
    found = [(json.loads(target), outcome) for target, outcome in rows]
    assert [(about.get("no_trust"), outcome) for about, outcome in found] == [
        (None, "failed"), (True, "succeeded"), (True, "succeeded"),
    ]  # fmt: skip
