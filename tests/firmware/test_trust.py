# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's policy by keys: what it takes, and when the policy itself is not to be trusted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from esp32_sim.images import build_app
from ota_service.errors import OtaError
from ota_service.firmware import trust
from ota_service.firmware.check import check_firmware
from ota_service.firmware.trust import ADDED
from ota_service.formats.signature import public_key_digest
from tests.formats.test_signature import spoilt
from tests.support.signing import BLOCK, SCHEMES, SECTOR, digest, key, public, sign

APP = build_app(size_bytes=5_000)
OWN, FOREIGN = key("ECDSA-P-256"), key("ECDSA-P-256", 1)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a host's policy, in which nothing is yet."""
    folder = tmp_path / "etc" / "trust"
    folder.mkdir(mode=0o755, parents=True)
    monkeypatch.setattr(trust, "HOST", folder)
    monkeypatch.setattr(trust, "HOST_OWNERS", frozenset({os.geteuid()}))
    monkeypatch.delenv(ADDED, raising=False)
    return folder


def add_key(folder: Path, pem: bytes, name: str = "release.pem") -> Path:
    """Have a folder ask for a key."""
    (folder / "keys").mkdir(mode=0o755, exist_ok=True)
    path = folder / "keys" / name
    path.write_bytes(pem)
    path.chmod(0o644)
    return path


def code(data: bytes) -> str:
    """The code that an image is refused with; "" where it is taken."""
    try:
        check_firmware(data)
    except OtaError as error:
        return error.code
    return ""


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
    """Without a restart; and the status shows what is asked for."""
    assert (code(APP), trust.shown()) == ("", None)
    path = add_key(host, public(OWN))
    assert code(APP) == "signature-missing"
    assert trust.shown() == {"requires": ["secure-boot-v2"]}
    path.write_bytes(public(FOREIGN))
    assert code(sign(APP, OWN)) == "signature-untrusted"
    path.unlink()
    assert code(sign(APP, OWN)) == "trust-invalid"
    path.parent.rmdir()
    assert (code(APP), trust.shown()) == ("", None)


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
    ],
)  # fmt: skip
def test_repositories_that_cannot_be_read(host: Path, text: str) -> None:
    """They are named as the policy's fault, and nothing is taken."""
    (host / "root.json").write_text("{}")
    (host / "repositories.json").write_text(text)
    assert code(APP) == "trust-invalid"


def test_a_file_from_nowhere_is_from_no_repository(host: Path) -> None:
    """Where firmware comes from repositories only, bytes without an address come from none."""
    (host / "root.json").write_text("{}")
    rows: list[dict[str, Any]] = [{"url": "http://h/fw", "root": "root.json"}]
    (host / "repositories.json").write_text(json.dumps(rows))
    assert code(sign(APP, OWN)) == "signature-untrusted"
    assert trust.shown() == {"requires": ["repository"]}
    (policy,) = trust.policies()
    assert policy.repositories is not None
    assert policy.repositories[0].url == "http://h/fw/"
