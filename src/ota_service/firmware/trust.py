# SPDX-License-Identifier: GPL-3.0-or-later
"""The host's policy: whose firmware is taken at all, whatever a configuration says.

    /etc/ota-service/trust/keys/*.pem           public keys of Secure Boot v2: one must have signed
    /etc/ota-service/trust/repositories.json    [{"url": "<base>/", "root": "root.json"}]: TUF

Who can change the policy could just as well change this program, so folder and files must belong
to root alone. A module's environment comes from the machine's configuration: a folder that it
names can only ask for more. Both are looked at for each firmware, so no restart is needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pwd
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ota_service.errors import OtaError
from ota_service.firmware.failures import NotThere
from ota_service.firmware.files import read_file
from ota_service.firmware.urls import redact_url
from ota_service.formats.bootloader import parse_bootloader
from ota_service.formats.chips import plain_chip
from ota_service.formats.image import AppImage, parse_boot_image
from ota_service.formats.merged import MergedBinary
from ota_service.formats.partitions import TYPE_BOOTLOADER
from ota_service.formats.signature import SignatureBlock, public_key_digest, signature_blocks

HOST = Path("/etc/ota-service/trust")
HOST_OWNERS = frozenset({0})
SYSTEM = Path("/var/lib/ota-service")
MEMORY: Path | None = None
"""In whose place tests put others: nothing that a configuration reaches changes them."""
ADDED = "OTA_SERVICE_TRUST"
KEYS, REPOSITORIES = "keys", "repositories.json"
MAX_FILE_BYTES = 1 << 20
_MAX_FILES = 100
"""Of a folder: each is looked at for each firmware, and for the status."""
_LISTINGS = 5
"""As often is a folder listed in which files are just being replaced."""
WARNED_DAYS = 14
_HASHES = frozenset({"sha256", "sha384", "sha512", "sha3_256", "sha3_384", "sha3_512", "blake2b"})

Part = tuple[str, Sequence[SignatureBlock | None] | None]
"""An image, as the beginning of a sentence, and its signature blocks; None for data, which has
none."""
REQUIREMENTS = (("secure-boot-v2", KEYS), ("repository", REPOSITORIES))
"""As the status names what is required, and what in a policy's folder asks for it."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A TUF repository that firmware may come from.

    url: its base, with a slash at the end: an http(s) address without user info and query, or a
    path. root: the root metadata that its trust begins with.
    """

    url: str
    root: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Policy:
    """One folder's. keys: digest -> the file it comes from; repositories: None where that folder
    does not ask for them."""

    folder: Path
    keys: Mapping[bytes, str] | None
    repositories: tuple[Repository, ...] | None


@dataclass(frozen=True, slots=True)
class Grant:
    """What signed metadata says of one file.

    folder: of the policy that asked for it. repository: its base. path: the target's. url: where
    to get it, user info and query included. hashes: name of the algorithm -> hex. project,
    chip: what the owner signed it as. metadata: role -> version; empty where it was
    allowed before and the metadata of now could not be had. expires: when the first of it does,
    in ISO 8601.
    """

    folder: Path
    repository: str
    path: str
    url: str = field(repr=False)
    size_bytes: int
    hashes: Mapping[str, str]
    project: str | None = None
    chip: str | None = None
    metadata: Mapping[str, int] = field(default_factory=dict)
    expires: str | None = None

    @property
    def sha256(self) -> str | None:
        """The file's SHA-256, where the metadata says it."""
        return self.hashes.get("sha256")

    def require(self, data: bytes, image: AppImage | None) -> dict[str, Any]:
        """How it was allowed, for the history. Raises OtaError where these are not the bytes."""
        known = {name: value for name, value in self.hashes.items() if name in _HASHES}
        if not known:
            raise OtaError("metadata-invalid", f"The metadata has no known hash of {self.path}.")
        for name, value in known.items():
            if len(data) != self.size_bytes or hashlib.new(name, data).hexdigest() != value:
                raise OtaError(
                    "digest-mismatch",
                    f"The file is not the {self.path} that its repository's metadata was signed "
                    "for.",
                    remedy="Publish that file again, and look at who may write to the server.",
                )
        if image is not None:
            about = image.descriptor.project, plain_chip(image.chip)
            for said, has in zip((self.project, self.chip and plain_chip(self.chip)), about,
                                 strict=True):  # fmt: skip
                if said is not None and said != has:
                    raise OtaError(
                        "metadata-invalid",
                        f"The metadata of {self.path} was signed for {said}, and its file is for "
                        f"{has}.",
                    )
        by = {"repository": redact_url(self.repository), "target": self.path}
        if self.expires is None:  # its metadata of now could not be had
            return {**by, "as_before": True}
        return {**by, "metadata": dict(self.metadata), "expires": self.expires}


# --- what the host asks for


def policies(environment: Mapping[str, str] = os.environ) -> tuple[Policy, ...]:
    """All that must pass, as they are now; () where there is none. Raises `trust-invalid`, also for
    a folder of the host that asks for nothing: what was meant stands elsewhere.

    Blocks for as long as it takes to look at a few files.
    """
    found = [_policy(folder, _files(folder, owners)) for folder, owners in folders(environment)]
    asking = tuple(p for p in found if p.keys is not None or p.repositories is not None)
    if any(one.folder == HOST and one not in asking for one in found):
        raise _invalid(f"{HOST} holds neither {KEYS} nor {REPOSITORIES}, so it asks for nothing.")
    return asking


def shown(environment: Mapping[str, str] = os.environ) -> dict[str, Any] | None:
    """As in the status; None where nothing is required. Blocks as `policies` does."""
    requires: list[str] = []
    try:
        found = {folder: _files(folder, owners) for folder, owners in folders(environment)}
        requires = [kind for kind, name in REQUIREMENTS
                    if any(folder / name in files for folder, files in found.items())]  # fmt: skip
        policies(environment)
    except OtaError as error:
        return {"requires": requires, "error": error.to_dict()}
    return {"requires": requires} if requires else None


def expiry_notice(allowed_by: Iterable[Mapping[str, Any]]) -> str | None:
    """A sentence on metadata that expires within WARNED_DAYS; None where none does."""
    soon = datetime.now(UTC) + timedelta(days=WARNED_DAYS)
    found = {(by["expires"], by["repository"]) for by in allowed_by if by.get("expires")}
    for expires, repository in sorted(found):
        if datetime.fromisoformat(expires) < soon:
            return (
                f"Metadata of {repository}, as it was last seen, expires at {expires}; nothing new "
                "is taken from there afterwards. Its owner renews it with `esp32-ota repo refresh`."
            )
    return None


def folders(environment: Mapping[str, str] = os.environ) -> list[tuple[Path, frozenset[int]]]:
    """Where policies are, and who may own each beside root."""
    added = environment.get(ADDED) or None
    found = [(HOST, HOST_OWNERS)] if os.path.lexists(HOST) or not _searchable(HOST) else []
    if added is not None:
        found.append((Path(added), frozenset({0, os.geteuid()})))
    return found


def memory() -> Path:
    """Where it lasts what repositories have shown to this user's programs.

    Neither a configuration nor an environment chooses it: who could name another folder would
    name one that he has filled himself.
    """
    if MEMORY is not None:
        return MEMORY
    user, made_for = os.geteuid(), SYSTEM / f"trust-{os.geteuid()}"
    if user == 0:
        return SYSTEM / "trust"
    with contextlib.suppress(OSError):
        if os.lstat(made_for).st_uid == user:
            return made_for
    try:
        home = pwd.getpwuid(user).pw_dir
    except KeyError:
        raise no_memory(f"The user {user} has no home folder on this machine.") from None
    # Links on the way are whose passwd names the home: root's.
    return Path(os.path.realpath(home)) / ".ota-service-trust"


def no_memory(why: str) -> OtaError:
    """The error of a memory that is not there, and cannot be made."""
    user = os.geteuid()
    folder = SYSTEM / (f"trust-{user}" if user else "trust")
    return NotThere(
        "trust-invalid",
        f"What repositories have shown cannot be remembered: {why}",
        remedy=f"As root, make {folder} where it lasts and can be written to: install -d -m 700 "
        f"-o {user} {folder}.",
    )


def require_apart(folder: Path, what: str) -> None:
    """Raise `config-invalid` for a folder of a configuration in or above the host's policy or the
    memory: what is written there, or who may, would make these invalid."""
    kept, own = [HOST], Path(os.path.realpath(folder))
    with contextlib.suppress(OtaError):
        kept.append(memory())
    for one in kept:
        real = Path(os.path.realpath(one))
        if own == real or own in real.parents or real in own.parents:
            raise OtaError(
                "config-invalid",
                f"{what} is {folder}, and this host's trust lies in {one}: neither may be in the "
                "other.",
                remedy="Name a folder beside it, or leave it out.",
            )


def make_own(folder: Path) -> None:
    """Make a folder of the memory; nobody else may have one above it. Raises `trust-invalid`,
    OSError."""
    owners = frozenset({0, os.geteuid()})
    for one in (*reversed(folder.parents), folder):
        if not os.path.lexists(one):
            one.mkdir(mode=0o700, exist_ok=True)
        _require_owned(one, os.lstat(one), owners, sticky=one != folder)


def _searchable(folder: Path) -> bool:
    """Whether it can be told if it exists: what cannot be seen may be there."""
    try:
        os.lstat(folder)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return True


def _files(folder: Path, owners: frozenset[int], listings: int = _LISTINGS) -> list[Path]:
    """What is in a policy's folder, and in its folder of keys; whose each is was looked at."""
    if not folder.is_absolute():
        raise _invalid(f"{ADDED} is {folder}, which is no whole path.")
    listed = False
    try:
        if folder == HOST:
            for parent in folder.parents:
                _require_owned(parent, os.lstat(parent), owners, sticky=True)
        found = _listed(folder)
        if folder / KEYS in found:
            found += _listed(folder / KEYS)
        listed = True
        for path in (folder, *found):
            _require_owned(path, os.lstat(path), owners)
    except OSError as error:
        if listed and listings > 1 and isinstance(error, FileNotFoundError):
            return _files(folder, owners, listings - 1)  # it was just replaced
        raise _invalid(f"{error.filename or folder} cannot be read: {error.strerror}.") from None
    return found


def _listed(folder: Path) -> list[Path]:
    found = sorted(folder / name for name in os.listdir(folder))
    if len(found) > _MAX_FILES:
        raise _invalid(f"{folder} holds {len(found)} files.")
    return found


def _require_owned(
    path: Path, found: os.stat_result, owners: frozenset[int], *, sticky: bool = False
) -> None:
    """sticky: a folder like /tmp will do, in which nobody takes another one's file away."""
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        raise _invalid(f"{path} is neither a file nor a folder of its own.")
    if found.st_uid not in owners | {0}:
        raise _invalid(f"{path} belongs to the user {found.st_uid}.")
    if found.st_mode & 0o022 and not (sticky and found.st_mode & stat.S_ISVTX):
        raise _invalid(f"Others than its owner may write to {path} (chmod go-w {path}).")


def _policy(folder: Path, files: list[Path]) -> Policy:
    keys = _keys(folder / KEYS, files) if folder / KEYS in files else None
    return Policy(folder, keys, _repositories(folder) if folder / REPOSITORIES in files else None)


def _keys(folder: Path, files: list[Path]) -> dict[bytes, str]:
    keys = {}
    for path in files:
        if path.parent == folder and path.suffix == ".pem":
            try:
                keys[public_key_digest(read(path))] = path.name
            except ValueError as error:
                raise _invalid(f"{path} {error}.") from None
    if not keys:
        raise _invalid(f"{folder} holds no key, so that no image could be signed by one.")
    return keys


def _repositories(folder: Path) -> tuple[Repository, ...]:
    path = folder / REPOSITORIES
    try:
        rows = json.loads(read(path))
        found = [(str(row["url"]), str(row["root"])) for row in rows if row["url"] and row["root"]]
        if not isinstance(rows, list) or len(found) != len(rows):
            raise ValueError
        if any("/" in root or not is_base(url) for url, root in found):
            raise ValueError
        found = [(base_of(url), root) for url, root in found]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise _invalid(
            f'{path} has not the form [{{"url": "https://host/base/", "root": "root.json"}}], '
            "each root a file beside it, each url without user and query, or a whole path."
        ) from None
    if len(dict(found)) != len(found):
        raise _invalid(f"{path} names one place twice, and so perhaps two roots for it.")
    return tuple(Repository(url, _root(folder / root)) for url, root in found)


def base_of(url: str) -> str:
    """A repository's base as it is compared. Raises ValueError where it is no address."""
    place = place_of(url if url.endswith("/") else f"{url}/")
    if not place:
        raise ValueError
    return place


def _root(path: Path) -> bytes:
    data = read(path)
    with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
        if json.loads(data)["signed"]["_type"] == "root":
            return data
    raise _invalid(f"{path} is no root metadata of a repository.")


def place_of(url: str) -> str:
    """A url without user info, query and fragment, or the path that it is or a file url stands for;
    its host as it is compared; "" for what is no url."""
    if url.startswith("/"):
        return url
    try:
        parts = urlsplit(url)
    except ValueError:  # its text holds the url, and so perhaps a password
        return ""
    if parts.scheme == "file":
        return unquote(parts.path)
    scheme, host = parts.scheme.lower(), parts.netloc.rpartition("@")[2].lower()
    usual = {"http": ":80", "https": ":443"}.get(scheme, "")
    return f"{scheme}://{host.removesuffix(usual)}{parts.path}"


def is_base(url: str) -> bool:
    """Whether a policy may name it: an address without secrets, or a path."""
    plain = url.lower().startswith(("http://", "https://")) and not set("?#@") & set(url)
    return plain or url.startswith("/")


def read(path: Path) -> bytes:
    """A regular file of the policy. Raises `trust-invalid`."""
    try:
        return read_file(path, MAX_FILE_BYTES, links=False)
    except OtaError as error:
        raise _invalid(error.message) from None


def _invalid(why: str) -> OtaError:
    """It may be mended at any time, and is looked at again."""
    return NotThere("trust-invalid", why)


# --- what passes


def require(
    policies: Iterable[Policy],
    data: bytes,
    parts: Sequence[Part],
    grants: Sequence[Grant] = (),
    image: AppImage | None = None,
) -> tuple[dict[str, Any], ...]:
    """Hold a file against every policy; how each allowed it, for the history.

    data: the whole file. parts: what is in it. Raises OtaError `signature-missing`, `-invalid`,
    `-untrusted`, and what `Grant.require` does.
    """
    allowed = []
    for policy in policies:
        by: dict[str, Any] = {"policy": str(policy.folder)}
        if policy.keys is not None:
            signed = {_signed_by(what, blocks, policy.keys)
                      for what, blocks in parts if blocks is not None}  # fmt: skip
            data_of = next((what for what, blocks in parts if blocks is None), None)
            if data_of is not None and policy.repositories is None:
                raise OtaError(
                    "signature-missing",
                    f"{data_of} holds data, which no key signs, and this host goes by keys only.",
                    remedy="Leave that partition blank in the file, or publish the file in a "
                    "repository that this host takes: that vouches for it as a whole.",
                )
            by["keys"] = {digest.hex(): policy.keys[digest] for digest in sorted(signed)}
        if policy.repositories is not None:
            grant = next((one for one in grants if one.folder == policy.folder), None)
            if grant is None:
                raise not_from_there(policy)
            by |= grant.require(data, image)
        allowed.append(by)
    return tuple(allowed)


def not_from_there(policy: Policy) -> OtaError:
    """The error of what comes from none of a policy's repositories."""
    known = ", ".join(redact_url(one.url) for one in policy.repositories or ()) or "none"
    return NotThere(
        "signature-untrusted",
        f"This host takes firmware only from the repositories of {policy.folder} ({known}), and "
        "this one comes from none of them.",
        remedy="Let the url be BASE/targets/FILE of such a repository; `esp32-ota repo add` "
        "publishes a firmware there.",
    )


def _signed_by(
    what: str, blocks: Sequence[SignatureBlock | None], keys: Mapping[bytes, str]
) -> bytes:
    there = [block for block in blocks if block is not None]
    valid = [block.key_digest for block in there if not block.problem]
    trusted = next((digest for digest in valid if digest in keys), None)
    if trusted is not None:
        return trusted
    if not there:
        raise OtaError(
            "signature-missing",
            f"{what} carries no Secure Boot v2 signature, and this host takes signed ones only.",
        )
    if not valid:
        raise OtaError("signature-invalid", f"{what} has a signature that {there[0].problem}.")
    names = ", ".join(f"{digest.hex()[:16]}.." for digest in valid)
    raise OtaError(
        "signature-untrusted",
        f"{what} is signed by the key {names}, which this host does not take.",
    )


_NO_DATA = ("data/ota", "data/phy", "partition_table/primary")


def merged_parts(flash: bytes, merged: MergedBinary) -> list[Part]:
    """Everything in a Merged Binary that a chip may start, and the data that its apps find, as
    `require` wants it.

    An app is judged by what a bootloader asks of it, which is less than a descriptor; what is
    there and is no whole image has no signature. Not asked for is what only says which app starts,
    and the radio's calibration.
    """
    at, loader = merged.bootloader_offset, merged.bootloader
    size = 0 if isinstance(loader, OtaError) else loader.size_bytes
    blocks = signature_blocks(flash[at : merged.table_offset], size)
    parts: list[Part] = [("The Merged Binary's bootloader", blocks)]
    for part in merged.table.partitions:
        held = flash[part.offset : part.end]
        if part.kind in _NO_DATA or not held.strip(b"\xff"):
            continue
        if not part.is_app and part.type != TYPE_BOOTLOADER:
            parts.append((f"The Merged Binary's partition {part.name}", None))
            continue
        blocks = ()
        with contextlib.suppress(OtaError):
            if part.is_app:
                blocks = parse_boot_image(held).signatures
            else:
                blocks = signature_blocks(held, parse_bootloader(held, trailing=True).size_bytes)
        what = "app" if part.is_app else "bootloader"
        parts.append((f"The Merged Binary's {what} in {part.name}", blocks))
    return parts


def require_root() -> None:
    """Raise OtaError where somebody else than root asks to pass the policy by."""
    if os.geteuid() != 0:
        raise OtaError("config-invalid", "Only root may do without this host's policy of trust.")
