# SPDX-License-Identifier: GPL-3.0-or-later
"""Firmware from TUF repositories, made by python-tuf alone: what a thief of the server, of the
configuration or of a key gets past a host, which is nothing."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner

from esp32_sim.images import build_app
from ota_service.errors import OtaError
from ota_service.firmware import repository
from ota_service.firmware.check import check_firmware
from ota_service.firmware.failures import GaveUp, NotThere
from ota_service.firmware.trust import Grant, Policy, Repository
from tests.support.tuf_repository import TufRepository, in_days

BASE = "https://fw.example/esp/"
OLD, NEW = build_app("demo", "1.0.0"), build_app("demo", "2.0.0")
LOG = logging.getLogger("ota_service.firmware")


class Host:
    """A host that trusts a repository, and the server that it asks, which anybody may own."""

    def __init__(self, made: TufRepository, folder: Path) -> None:
        self.files: dict[str, bytes] = dict(made.files)
        self.policy = Policy(folder / "policy", None, (Repository(BASE, made.root),))
        self.folder = folder
        self.asked: list[str] = []
        self.down = False

    async def fetch(self, url: str, max_bytes: int) -> bytes:
        """As the downloader does it."""
        self.asked.append(url)
        if self.down:
            raise GaveUp("download-failed")
        data = self.files.get(url.partition("?")[0].partition("/esp/")[2])
        if data is None:
            raise NotThere("http-status", "404")
        if len(data) > max_bytes:
            raise OtaError("download-too-large")
        return data

    async def grant(self, name: str = "app.bin", version: str = "1.0.0") -> Grant:
        """What is allowed of a file. Raises OtaError."""
        return await repository.grant(
            self.policy, f"{BASE}targets/{name}", version,
            fetch=self.fetch, state_dir=self.folder, log=LOG,
        )  # fmt: skip

    async def takes(self, data: bytes, version: str = "1.0.0", name: str = "app.bin") -> str:
        """The code that bytes at the address are refused with; "" where they are taken."""
        try:
            grant = await self.grant(name, version)
            check_firmware(data, policies=[self.policy], grants=[grant])
        except OtaError as error:
            return error.code
        return ""


@pytest.fixture
def made() -> TufRepository:
    """A repository with one firmware."""
    made = TufRepository()
    made.add("app.bin", OLD, "1.0.0", project="demo", chip="esp32")
    made.publish()
    return made


@pytest.fixture
def host(made: TufRepository, tmp_path: Path) -> Host:
    """A host that has its root."""
    return Host(made, tmp_path)


async def test_what_the_owner_signed_is_taken(host: Host, made: TufRepository) -> None:
    """And told with the versions of the metadata that allowed it."""
    grant = await host.grant()
    digest = hashlib.sha256(OLD).hexdigest()
    assert grant.url == f"{BASE}targets/{digest}.app.bin"
    (by,) = check_firmware(OLD, policies=[host.policy], grants=[grant]).allowed_by
    versions = {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1}
    assert (by["repository"], by["target"], by["metadata"]) == (BASE, "app.bin", versions)
    assert by["expires"].startswith(f"{in_days(30):%Y-%m-%d}")
    (folder,) = (path.parent for path in host.folder.rglob("metadata"))
    assert [path.stat().st_mode & 0o777 for path in (folder, folder / "metadata")] == [0o700] * 2


async def test_a_memory_that_others_may_write_to(host: Host, tmp_path: Path) -> None:
    """Who could fill it would have his own firmware remembered as allowed."""
    host.folder = tmp_path / "of all" / "memory"
    host.folder.mkdir(parents=True)
    for folder in (host.folder, host.folder.parent):
        folder.chmod(0o777)
        assert await host.takes(OLD) == "trust-invalid"
        folder.chmod(0o755)
    assert await host.takes(OLD) == ""


Attack = Callable[[TufRepository, Host], Any]


def other_image(made: TufRepository, host: Host) -> bytes:
    """The owner's signatures, and another file."""
    return NEW


def signed_by_himself(made: TufRepository, host: Host) -> bytes:
    """A repository of his own, at the same address."""
    his = TufRepository()
    his.add("app.bin", NEW, "1.0.0")
    host.files = his.publish()
    return NEW


def with_the_timestamp_key(made: TufRepository, host: Host) -> bytes:
    """The key that is on the server: it signs no firmware."""
    his = TufRepository()
    his.keys["timestamp"] = made.keys["timestamp"]
    his.add("app.bin", NEW, "1.0.0")
    host.files = his.publish() | {"metadata/1.root.json": made.root}
    return NEW


def root_of_his_own(made: TufRepository, host: Host) -> bytes:
    """A next root that its own keys have signed only."""
    his = TufRepository()
    his.signed["root"].version = 2
    his.add("app.bin", NEW, "1.0.0")
    host.files = his.publish() | {"metadata/1.root.json": made.root}
    return NEW


def targets_by_another_key(made: TufRepository, host: Host) -> bytes:
    """Targets signed by the snapshot's key."""
    made.add("app.bin", NEW, "1.0.0")
    made.put("targets", by="snapshot")
    host.files = dict(made.files)
    return NEW


def endless(made: TufRepository, host: Host) -> bytes:
    """Metadata without an end."""
    host.files["metadata/timestamp.json"] += b" " * 100_000
    return OLD


def no_metadata(made: TufRepository, host: Host) -> bytes:
    """A folder of firmware, and nothing that is signed."""
    host.files = {name: data for name, data in host.files.items() if name.startswith("targets/")}
    return NEW


def garbage(made: TufRepository, host: Host) -> bytes:
    """Something else than JSON."""
    host.files["metadata/timestamp.json"] = b"<html>"
    return NEW


def flipped(made: TufRepository, host: Host) -> bytes:
    """One digit of the targets."""
    name = "metadata/1.targets.json"
    digest = hashlib.sha256(OLD).hexdigest().encode()
    other = hashlib.sha256(NEW).hexdigest().encode()
    assert digest in host.files[name]
    host.files[name] = host.files[name].replace(digest, other)
    return NEW


def frozen(made: TufRepository, host: Host) -> bytes:
    """Old metadata for ever: its time is over."""
    made.signed["timestamp"].expires = in_days(-1)
    host.files = made.publish()
    return OLD


def expired_root(made: TufRepository, host: Host) -> bytes:
    """Nobody has renewed the root."""
    made.signed["root"].version = 2
    made.signed["root"].expires = in_days(-1)
    host.files = made.publish()
    return OLD


def unbound(made: TufRepository, host: Host) -> bytes:
    """A file that is signed for, but not as any version."""
    made.add("app.bin", OLD, None)
    host.files = made.publish()
    return OLD


def other_project(made: TufRepository, host: Host) -> bytes:
    """Signed for another project than the file's."""
    made.add("app.bin", OLD, "1.0.0", project="thermostat")
    host.files = made.publish()
    return OLD


def other_chip(made: TufRepository, host: Host) -> bytes:
    """Signed for another chip than the file's."""
    made.add("app.bin", OLD, "1.0.0", project="demo", chip="ESP32-S3")
    host.files = made.publish()
    return OLD


def unknown_hash(made: TufRepository, host: Host) -> bytes:
    """Hashes that nobody here can compute, or that others can be found for, prove nothing."""
    weak = {name: hashlib.new(name, OLD).hexdigest() for name in ("md5", "sha1")}
    made.add("app.bin", OLD, "1.0.0", hashes={"rot13": "00" * 32, "shake_256": "00", **weak})
    host.files = made.publish()
    return OLD


REFUSED: list[tuple[Attack, str]] = [
    (other_image, "digest-mismatch"),
    (signed_by_himself, "metadata-invalid"),
    (with_the_timestamp_key, "metadata-invalid"),
    (root_of_his_own, "metadata-invalid"),
    (targets_by_another_key, "metadata-invalid"),
    (endless, "metadata-invalid"),
    (no_metadata, "http-status"),
    (garbage, "metadata-invalid"),
    (flipped, "metadata-invalid"),
    (frozen, "metadata-expired"),
    (expired_root, "metadata-expired"),
    (unbound, "metadata-invalid"),
    (other_project, "metadata-invalid"),
    (other_chip, "metadata-invalid"),
    (unknown_hash, "metadata-invalid"),
]


@pytest.mark.parametrize(("attack", "code"), REFUSED, ids=[row[0].__name__ for row in REFUSED])
async def test_a_stolen_server(host: Host, made: TufRepository, attack: Attack, code: str) -> None:
    """What it shows to a host that has never asked before."""
    assert await host.takes(attack(made, host)) == code


async def test_one_of_two_root_keys(tmp_path: Path) -> None:
    """A next root takes as many keys of the one before as that asks for."""
    made = TufRepository(root_keys=2, threshold=2)
    made.add("app.bin", OLD, "1.0.0")
    made.publish()
    host = Host(made, tmp_path)
    assert await host.takes(OLD) == ""
    kept, mine = made.keys["root"][:1], CryptoSigner.generate_ed25519()
    root = made.signed["root"]
    root.version = 2
    root.revoke_key(made.keys["root"][1].public_key.keyid, "root")
    root.add_key(mine.public_key, "root")
    made.keys["root"] = [*kept, mine]
    made.add("new.bin", NEW, "2.0.0")
    host.files = made.publish()
    assert await host.takes(NEW, "2.0.0", "new.bin") == "metadata-invalid"


async def test_another_root_has_allowed_nothing_yet(host: Host, made: TufRepository) -> None:
    """Who replaces a stolen root has not to know that its thief's firmware is remembered."""
    assert await host.takes(OLD) == ""
    host.policy = Policy(host.policy.folder, None, (Repository(BASE, TufRepository().publish()[
        "metadata/1.root.json"]),))  # fmt: skip
    host.down = True
    assert await host.takes(OLD) == "download-failed"
    host.down, host.files = False, {}
    assert await host.takes(OLD) == "http-status"


@pytest.mark.parametrize("name", ["2.root.json", "timestamp.json"])
async def test_a_hotel_s_network_does_not_end_what_was_begun(host: Host, name: str) -> None:
    """Its page is no metadata, and nobody has taken anything back."""
    assert await host.takes(OLD) == ""
    host.files[f"metadata/{name}"] = b"<html>Welcome</html>"
    assert await host.takes(OLD) == ""
    assert await host.takes(NEW) == "digest-mismatch"


async def test_a_full_disk_does_not_end_what_was_begun(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where nothing has changed, nothing is written."""
    assert await host.takes(OLD) == ""
    (kept,) = host.folder.rglob("allowed.json")
    before = kept.stat()
    assert await host.takes(OLD) == ""
    assert kept.stat() == before

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.NamedTemporaryFile", full)
    monkeypatch.setattr("ota_service.firmware.files.tempfile.mkstemp", full)
    monkeypatch.setattr("ota_service.firmware.repository.SEEN_STEP_S", -1.0)
    assert await host.takes(OLD) == ""
    with pytest.raises(GaveUp, match="No space") as caught:  # it is tried again by itself
        await host.grant(version="1.0.1")
    assert caught.value.code == "file-access"


async def test_a_disk_that_is_read_only(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was allowed before is known; what was not, and what has no memory, says what to do."""
    assert await host.takes(OLD) == ""
    opens, mkdir = os.open, os.mkdir

    def opened(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(path).startswith(str(home)):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opens(path, flags, mode, **options)

    def made(path: Any, mode: int = 0o777, **options: Any) -> None:
        if not os.path.isdir(path):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        mkdir(path, mode, **options)

    home = host.folder
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "mkdir", made)
    assert await host.takes(OLD) == ""
    for folder, version in ((home, "1.0.1"), (home / "none", "1.0.0")):
        host.folder = folder
        with pytest.raises(NotThere, match="Read-only") as caught:
            await host.grant(version=version)
        assert caught.value.code == "trust-invalid"
        assert "install -d -m 700" in caught.value.remedy


async def test_a_dead_server_is_waited_for_once(host: Host, made: TufRepository) -> None:
    """By all who ask at the same time, and not for long where the answer is known."""
    for number in range(4):
        made.add(f"{number}.bin", OLD, "1.0.0")
    host.files = made.publish()
    for number in range(4):
        await host.grant(f"{number}.bin")
    host.asked, host.down = [], True
    asked, dead = asyncio.Event(), asyncio.Event()
    fetch = host.fetch

    async def slow(url: str, max_bytes: int) -> bytes:
        asked.set()
        await dead.wait()
        return await fetch(url, max_bytes)

    host.fetch = slow  # type: ignore[method-assign]
    calls = [asyncio.create_task(host.grant(f"{number}.bin")) for number in range(4)]
    await asked.wait()
    while repository._THREADS._work_queue.qsize():  # noqa: ASYNC110 - all have asked
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    dead.set()
    await asyncio.gather(*calls)
    assert len(host.asked) == 1


async def test_a_silent_server_is_not_waited_for_long(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where what was allowed before has the answer."""
    monkeypatch.setattr(repository, "LOOK_S", 0.05)
    assert await host.takes(OLD) == ""

    async def silent(url: str, max_bytes: int) -> bytes:
        await asyncio.Event().wait()
        return b""

    host.fetch = silent  # type: ignore[method-assign]
    assert await host.takes(OLD) == ""


async def test_an_address_that_is_none_shows_no_password(host: Host) -> None:
    """It comes from no repository."""
    url = "http://user:s3cret\u2100pass@fw.example/esp/targets/app.bin"
    with pytest.raises(OtaError, match="comes from none") as caught:
        await repository.grant(
            host.policy, url, "", fetch=host.fetch, state_dir=host.folder, log=LOG
        )
    assert "s3cret" not in str(caught.value)


async def test_keys_are_rotated(host: Host, made: TufRepository) -> None:
    """With both roots' keys, step by step, also several steps at once."""
    assert await host.takes(OLD) == ""
    for version in (2, 3, 4):
        root, before = made.signed["root"], made.keys["root"][-1]
        new = CryptoSigner.generate_ed25519()
        root.version = version
        root.revoke_key(before.public_key.keyid, "root")
        root.add_key(new.public_key, "root")
        made.keys["root"] = [before, new]
        made.put("root")
    made.keys["timestamp"], old = [new], made.keys["timestamp"]
    made.add("app.bin", NEW, "2.0.0")
    host.files = made.publish()
    assert await host.takes(NEW, "2.0.0") == "metadata-invalid"  # root does not know that key
    made.keys["timestamp"] = old
    host.files = made.publish()
    grant = await host.grant(version="2.0.0")
    assert grant.metadata == {"root": 4, "timestamp": 3, "snapshot": 3, "targets": 3}


async def test_older_metadata_is_replayed(host: Host, made: TufRepository) -> None:
    """Everything was signed once; after something newer it is not taken any more."""
    before = dict(made.files)
    made.add("app.bin", NEW, "2.0.0")
    host.files = made.publish()
    assert await host.takes(NEW, "2.0.0") == ""
    after, host.files = host.files, before
    assert await host.takes(OLD, "1.0.0") == "replayed"
    assert await host.takes(NEW, "2.0.0") == ""  # whoever shows it ends nothing that was begun
    host.files = {**after, "metadata/timestamp.json": before["metadata/timestamp.json"]}
    assert await host.takes(OLD, "1.0.0") == "replayed"


async def test_what_was_seen_outlasts_a_power_cut(host: Host, made: TufRepository) -> None:
    """The client's own files may be older after it, or gone; what was seen is not forgotten."""
    before = dict(made.files)
    assert await host.takes(OLD) == ""
    made.add("app.bin", NEW, "2.0.0")
    made.add("old.bin", OLD, "1.0.0")
    after = host.files = made.publish()
    assert await host.takes(NEW, "2.0.0") == ""
    (kept,) = (path.parent / "metadata" for path in host.folder.rglob("allowed.json"))
    for path in kept.rglob("*.json"):
        path.unlink()
    host.files = before
    assert await host.takes(OLD) == "replayed"
    host.files = after
    assert await host.takes(OLD, name="old.bin") == ""
    made.signed["root"].version = 2
    new = made.keys["timestamp"] = [CryptoSigner.generate_ed25519()]
    old = made.signed["root"].roles["timestamp"].keyids[0]
    made.signed["root"].revoke_key(old, "timestamp")
    made.signed["root"].add_key(new[0].public_key, "timestamp")
    made.signed["timestamp"].version = made.signed["snapshot"].version = 0
    host.files = made.publish()  # its owner begins anew, as TUF allows with another key
    for path in kept.rglob("*.json"):
        path.unlink()
    assert (await host.grant("old.bin")).metadata["timestamp"] == 1
    host.files = {n: data for n, data in host.files.items() if n != "metadata/2.root.json"}
    host.files["metadata/timestamp.json"] = after["metadata/timestamp.json"]
    for path in kept.rglob("*.json"):
        path.unlink()
    assert await host.takes(OLD, "1.0.0", "none.bin") == "replayed"  # with the stolen old key


async def test_a_stolen_timestamp_key_leads_not_back(host: Host, made: TufRepository) -> None:
    """It signs a newer timestamp that names the older snapshot."""
    before = dict(made.files)
    made.add("app.bin", NEW, "2.0.0")
    host.files = made.publish()
    assert await host.takes(NEW, "2.0.0") == ""
    made.signed["timestamp"].version = 9
    made.signed["timestamp"].snapshot_meta.version = 1
    made.put("timestamp")
    host.files = before | {"metadata/timestamp.json": made.files["metadata/timestamp.json"]}
    assert await host.takes(OLD, "1.0.0") == "replayed"


async def test_files_that_do_not_belong_together(host: Host, made: TufRepository) -> None:
    """The newest timestamp and snapshot, and the targets from before."""
    before = made.files["metadata/1.targets.json"]
    made.add("app.bin", NEW, "2.0.0")
    host.files = made.publish() | {"metadata/2.targets.json": before}
    assert await host.takes(OLD, "1.0.0") == "metadata-invalid"


@pytest.mark.parametrize(
    ("url", "version", "code"),
    [
        (f"{BASE}targets/app.bin", "0.9.0", "version-mismatch"),
        (f"{BASE}targets/none.bin", "1.0.0", "signature-untrusted"),
        (f"{BASE}app.bin", "1.0.0", "signature-untrusted"),
        ("https://fw.example/other/targets/app.bin", "1.0.0", "signature-untrusted"),
        ("http://fw.example/esp/targets/app.bin", "1.0.0", "signature-untrusted"),
        ("https://evil.example/https://fw.example/esp/targets/app.bin", "1", "signature-untrusted"),
        ("https://fw.example@evil.example/esp/targets/app.bin", "1.0.0", "signature-untrusted"),
        (f"{BASE}targets/../../other/app.bin", "1.0.0", "signature-untrusted"),
        ("/srv/app.bin", "1.0.0", "signature-untrusted"),
        ("sha256:00", "1.0.0", "signature-untrusted"),
        ("https://fw.example:8443/esp/targets/app.bin", "1.0.0", "signature-untrusted"),
        ("HTTPS://user:secret@FW.example:443/esp/targets/app.bin?token=t", "1.0.0", ""),
    ],
)
async def test_a_stolen_configuration(host: Host, url: str, version: str, code: str) -> None:
    """It may name any url and version; what is not signed for under that address is refused."""
    try:
        grant = await repository.grant(
            host.policy, url, version, fetch=host.fetch, state_dir=host.folder, log=LOG
        )
    except OtaError as error:
        assert error.code == code
        assert "secret" not in str(error)
        return
    assert code == ""
    assert grant.url.startswith("https://user:secret@fw.example/esp/targets/")
    assert {url.partition("?")[2] for url in [*host.asked, grant.url]} == {"token=t"}
    assert all(url.startswith("https://user:secret@") for url in host.asked)


async def test_what_was_allowed_needs_no_fresh_metadata(host: Host, made: TufRepository) -> None:
    """An update that was begun goes on with expired metadata, and without any; another firmware
    of the same repository does not."""
    made.add("new.bin", NEW, "2.0.0")
    host.files = made.publish()
    assert await host.takes(OLD) == ""
    host.down = True
    assert await host.takes(OLD) == ""
    assert await host.takes(NEW, "2.0.0", "new.bin") == "download-failed"
    host.down = False
    made.signed["timestamp"].expires = in_days(-1)
    host.files = made.publish()
    assert await host.takes(NEW, "2.0.0", "new.bin") == "metadata-expired"
    grant = await host.grant()
    (by,) = check_firmware(OLD, policies=[host.policy], grants=[grant]).allowed_by
    assert by["as_before"] is True
    assert await host.takes(OLD, "1.0.1") == "metadata-expired"


async def test_fresh_metadata_takes_back_what_was_allowed(host: Host, made: TufRepository) -> None:
    """Where the owner has put another file in its place, or nothing any more."""
    made.add("old.bin", OLD, "1.0.0")
    host.files = made.publish()
    assert await host.takes(OLD) == await host.takes(OLD, name="old.bin") == ""
    made.add("app.bin", NEW, "2.0.0")
    del made.signed["targets"].targets["old.bin"]
    host.files = made.publish()
    assert await host.takes(NEW, "2.0.0") == ""
    host.down = True
    assert await host.takes(OLD, "1.0.0") == "download-failed"
    assert await host.takes(OLD, "1.0.0", "old.bin") == "download-failed"
    assert await host.takes(OLD, "2.0.0") == "digest-mismatch"


async def test_a_clock_behind_the_newest_metadata(
    host: Host, made: TufRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For such a clock nothing ever expires."""
    made.add("new.bin", NEW, "2.0.0")
    host.files = made.publish()
    assert await host.takes(OLD) == ""
    monkeypatch.setattr("ota_service.firmware.repository.time.time", in_days(-2).timestamp)
    assert await host.takes(NEW, "2.0.0", "new.bin") == "clock-behind"
    assert await host.takes(OLD) == ""  # it was allowed before


@pytest.mark.parametrize("hashes", [("sha512",), ("sha256", "sha512"), ("sha512", "sha256")])
@pytest.mark.parametrize("consistent", [True, False])
async def test_names_and_hashes_of_other_repositories(
    tmp_path: Path, consistent: bool, hashes: tuple[str, ...]
) -> None:
    """Files in folders, with and without consistent snapshots, by each hash."""
    made = TufRepository(consistent=consistent)
    said = {name: hashlib.new(name, OLD).hexdigest() for name in hashes}
    made.add("a b/app.bin", OLD, "1.0.0", hashes=said)
    made.publish()
    host = Host(made, tmp_path)
    assert await host.takes(OLD, name="a%20b/app.bin") == ""
    assert await host.takes(NEW, name="a%20b/app.bin") == "digest-mismatch"
    grant = await host.grant("a%20b/app.bin")
    name = f"{said[min(hashes)]}.app.bin" if consistent else "app.bin"
    assert grant.url == f"{BASE}targets/a%20b/{name}"


async def test_the_longest_prefix_counts(host: Host, made: TufRepository) -> None:
    """One repository within another."""
    inner = TufRepository()
    inner.add("app.bin", NEW, "2.0.0")
    inner.publish()
    host.files |= {f"inner/{name}": data for name, data in inner.files.items()}
    both = (Repository(BASE, made.root), Repository(f"{BASE}inner/", inner.root))
    for repositories in (both, both[::-1]):
        host.policy = Policy(host.folder, None, repositories)
        url = f"{BASE}inner/targets/app.bin"
        grant = await repository.grant(
            host.policy, url, "2.0.0", fetch=host.fetch, state_dir=host.folder, log=LOG
        )
        assert grant.repository == f"{BASE}inner/"


async def test_one_expired_role_holds_up_its_own_files_only(
    tmp_path: Path, made: TufRepository
) -> None:
    """New firmware of the others is taken, and what their owners took back is not."""
    made.delegate("motors", "motors/*")
    made.delegate("lamps", "lamps/*")
    made.add("motors/old.bin", OLD, "1.0.0", role="motors")
    made.add("lamps/old.bin", OLD, "1.0.0", role="lamps")
    made.signed["lamps"].expires = in_days(10)
    made.publish()
    host = Host(made, tmp_path)
    for name in ("lamps/old.bin", "motors/old.bin", "app.bin"):
        assert await host.takes(OLD, name=name) == ""
    grant = await host.grant("lamps/old.bin")
    assert (grant.expires or "").startswith(f"{in_days(10):%Y-%m-%d}")
    assert grant.metadata["lamps"] == 2
    assert "motors" not in grant.metadata
    assert ((await host.grant()).expires or "").startswith(f"{in_days(30):%Y-%m-%d}")
    made.signed["lamps"].expires = in_days(-1)
    del made.signed["targets"].targets["app.bin"]
    made.add("motors/new.bin", NEW, "2.0.0", role="motors")
    host.files, host.asked = made.publish(), []
    assert await host.takes(NEW, "2.0.0", "motors/new.bin") == ""
    assert sum("lamps" in url for url in host.asked) == 1
    assert await host.takes(OLD, "2.0.0", "lamps/old.bin") == "metadata-expired"
    assert await host.takes(OLD, name="lamps/old.bin") == ""  # as before
    assert await host.takes(OLD) == "signature-untrusted"  # it was taken back


def test_a_memory_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    """On a full disk each look would leave another file."""
    path = tmp_path / "allowed.json"
    path.mkdir()
    with pytest.raises(OSError, match="directory"):
        repository._Remembered("00").write(path)
    assert list(tmp_path.iterdir()) == [path]
