# SPDX-License-Identifier: GPL-3.0-or-later
"""A signed repository of firmware: a folder for any web server, in the form of TUF.

    DIR/metadata/      1.root.json, 1.targets.json, 1.snapshot.json, .., timestamp.json
    DIR/targets/       each file under its name and as HASH.NAME
    DIR-keys/          the keys that sign, the first root, and the newest versions that were seen:
                       never for the server

For one owner with a key for each role; ceremonies, thresholds and delegations are tuf-on-ci's,
whose repositories hosts take as well. Nothing is signed anew that does not follow from the first
root beside the keys, or is older than what was seen: whoever holds the server may have changed the
folder.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from ota_service.errors import OtaError
from ota_service.firmware import manifest, repository
from ota_service.firmware.check import check_file, check_firmware
from ota_service.firmware.files import FIRMWARE_BYTES, TEXT_BYTES, read_file, write_file
from ota_service.firmware.trust import Grant, Policy, Repository
from ota_service.formats.image import AppImage
from ota_service.formats.merged import find_partition_table, whole_flash
from ota_service.update.flash_plan import check_merged

DAYS = {"root": 365, "targets": 365, "snapshot": 90, "timestamp": 90}
"""How long each role's metadata is valid."""
RENEWED_DAYS = 90
"""Root and targets are signed anew where they have less left, and their keys are at hand."""
ROOT, SEEN = "1.root.json", "seen.json"
"""Beside the keys: the root that all else is held against, and role -> version."""
METADATA_BYTES = 5_000_000
"""No file of metadata is larger that a host takes (`tuf.ngclient.UpdaterConfig`)."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,200}")
_REMEDY = "`esp32-ota repo verify` says more; go on from a copy of the folder that is right."

AskPassword = Callable[[], str]


@dataclass(frozen=True, slots=True)
class Entry:
    """A firmware in a repository; version, project and chip as its owner bound it."""

    name: str
    size_bytes: int
    sha256: str
    version: str
    project: str
    chip: str


def keys_folder(folder: Path) -> Path:
    """Where a repository's keys are, unless somebody says where: beside it."""
    folder = folder.absolute()
    return folder.with_name(f"{folder.name}-keys")


def create(folder: Path, keys: Path, password: str | None) -> dict[str, Any]:
    """Make an empty repository, and a key for each role; the facts of its root.

    password: to encrypt the keys with. Raises OtaError `file-access` where there is one already.
    """
    for path in (folder / "metadata", keys):
        if path.exists() and any(path.iterdir()):
            text = f"{path} is there already."
            raise OtaError("file-access", text, remedy="Name another folder.")
    keys.mkdir(mode=0o700, parents=True, exist_ok=True)
    root = Root(consistent_snapshot=True)
    signers = {}
    for role in DAYS:
        private = Ed25519PrivateKey.generate()
        _write(keys / f"{role}.pem", _pem(private, password), mode=0o600)
        signers[role] = CryptoSigner(private)
        root.add_key(signers[role].public_key, role)
    state = _State(folder, keys, {"root": root, "targets": Targets(), "snapshot": Snapshot(),
                                  "timestamp": Timestamp()})  # fmt: skip
    (folder / "targets").mkdir(parents=True, exist_ok=True)
    state.sign(["root", "targets"], signers, first=True)
    return root_facts(_first_root(keys))


def _pem(key: Ed25519PrivateKey, password: str | None) -> bytes:
    code = serialization
    how: Any = code.BestAvailableEncryption(password.encode()) if password else code.NoEncryption()
    return key.private_bytes(code.Encoding.PEM, code.PrivateFormat.PKCS8, how)


def add(
    folder: Path,
    keys: Path,
    data: bytes,
    *,
    name: str,
    version: str | None,
    ask_password: AskPassword,
) -> Entry:
    """Publish an App Image, a Merged Binary or a manifest, in the place of the file that has this
    name.

    version: that a configuration must then name; None: the one in the app's descriptor, or of the
    manifest. Raises OtaError: what is wrong with the file, the name, the repository or the keys.
    """
    if not _NAME.fullmatch(name):
        text = f"{name!r} is no name for a file in a url."
        raise OtaError("config-invalid", text, remedy="Give another --name.")
    several = manifest.parse_manifest(data) if manifest.is_json(data) else None
    image = _app_of(data) if several is None else None
    if image is not None and find_partition_table(whole_flash(data)) is None:
        data = data[: image.total_bytes]
    if several is not None:
        if version not in (None, several.version):
            text = f'The manifest says that it is of version "{several.version}".'
            raise OtaError("config-invalid", text, remedy="Leave --version out.")
        version = several.version
    version = version or (image.descriptor.version if image is not None else "")
    if not version:
        text = "The app has no version in its descriptor."
        raise OtaError("config-invalid", text, remedy="Give --version.")
    state = _State.read(folder, keys)
    signers = _signers(state.root, keys, ("targets", "snapshot", "timestamp"), ask_password)
    target = TargetFile.from_data(name, data, ["sha256"])
    about = {"version": version}
    if image is not None:
        about |= {"project": image.descriptor.project, "chip": image.chip}
    target.unrecognized_fields["custom"] = {"ota": about}
    if several is not None:
        _require_images(several, name, state.signed["targets"].targets)
    state.signed["targets"].targets[name] = target
    for path in (f"{target.hashes['sha256']}.{name}", name):
        _write(folder / "targets" / path, data)
    state.sign(["targets"], signers)
    return _entry(name, target)


def _require_images(
    several: manifest.Manifest, name: str, targets: Mapping[str, TargetFile]
) -> None:
    """A host takes each image by its own metadata, so it has to be there under its version."""
    faults, prefix = [], "/targets/"
    for image, entry in several.images.items():
        place = manifest.image_url(prefix + name, entry.url)
        known = targets.get(place.removeprefix(prefix))
        if known is None or not place.startswith(prefix):
            faults.append(f"images.{image}.url: the repository has no such file")
        elif known.hashes.get("sha256") != entry.sha256:
            faults.append(f"images.{image}.sha256: the repository has another file there")
        elif (signed := _entry(image, known).version) != (entry.version or several.version):
            faults.append(f'images.{image}.version: it was signed as version "{signed}"')
    if faults:
        remedy = "Publish its images first, each with `esp32-ota repo add` and its --version."
        raise OtaError("manifest-invalid", "; ".join(faults) + ".", remedy=remedy)


def refresh(folder: Path, keys: Path, ask_password: AskPassword) -> list[str]:
    """Sign anew, so that nothing expires; the roles that were. Raises OtaError."""
    state = _State.read(folder, keys)
    soon = datetime.now(UTC) + timedelta(days=RENEWED_DAYS)
    due = [role for role in ("root", "targets")
           if state.signed[role].expires < soon and (keys / f"{role}.pem").exists()]  # fmt: skip
    signers = _signers(state.root, keys, [*due, "snapshot", "timestamp"], ask_password)
    state.sign(due, signers)
    return [*due, "snapshot", "timestamp"]


def listed(folder: Path, keys: Path) -> tuple[list[Entry], dict[str, datetime]]:
    """What a repository has, and when each role's metadata expires. Raises OtaError."""
    state = _State.read(folder, keys)
    targets = state.signed["targets"].targets
    expires = {role: state.signed[role].expires for role in DAYS}
    return [_entry(name, targets[name]) for name in sorted(targets)], expires


def verify(folder: Path, keys: Path) -> tuple[list[str], list[str]]:
    """Take each firmware as a host would that has the first root: (names, problems).

    keys: where that root lies. Raises OtaError where it does not.
    """
    base = f"{folder.absolute()}/"
    policy = Policy(folder, None, (Repository(base, _first_root(keys)),))
    good, problems = [], []
    with tempfile.TemporaryDirectory(prefix="esp32-ota-") as state_dir:
        try:
            entries, expires = listed(folder, keys)
        except OtaError as error:
            return [], [error.message]
        for entry in entries:
            try:
                grant = asyncio.run(
                    repository.grant(
                        policy, f"{base}targets/{entry.name}", "", fetch=_no_download,
                        state_dir=Path(state_dir), log=repository.LOGGER,
                    )
                )  # fmt: skip
                for place in {Path(grant.url), folder / "targets" / entry.name}:
                    _app_of(read_file(place, FIRMWARE_BYTES), [policy], [grant])
                good.append(entry.name)
            except OtaError as error:
                problems.append(f"{entry.name}: {error.message}")
    now = datetime.now(UTC)
    problems += [f"The metadata of {role} has expired." for role in DAYS if expires[role] < now]
    return good, problems


async def _no_download(url: str, max_bytes: int) -> bytes:
    raise OtaError("internal", f"{url} is no path")


def root_facts(data: bytes) -> dict[str, Any]:
    """What people compare before they trust a root, and what it says.

    {"fingerprint": its SHA-256, "version", "expires", "roles": {role: {"threshold", "keys": [id,
    ..]}}}. Raises OtaError `metadata-invalid` where it is no root that its own keys signed.
    """
    root = _load(Root, data)
    _verified(root.signed, "root", root)
    roles = {
        name: {"threshold": role.threshold, "keys": list(role.keyids)}
        for name, role in root.signed.roles.items()
    }
    return {
        "fingerprint": hashlib.sha256(data).hexdigest(),
        "version": root.signed.version,
        "expires": f"{root.signed.expires:%Y-%m-%dT%H:%M:%SZ}",
        "roles": roles,
    }


# --- inside


def _app_of(
    data: bytes, policies: Sequence[Policy] = (), grants: Sequence[Grant] = ()
) -> AppImage | None:
    """The app in an App Image or a Merged Binary, checked as a host with these policies does; None
    for a manifest."""
    if manifest.is_json(data):
        check_file(data, policies=policies, grants=grants)
        return None
    if find_partition_table(whole_flash(data)) is not None:
        return check_merged(data, policies=policies, grants=grants).app
    return check_firmware(data, policies=policies, grants=grants).image


def _first_root(keys: Path) -> bytes:
    """The root that all else is held against: what lies in the folder may be a thief's."""
    try:
        return read_file(keys / ROOT, METADATA_BYTES)
    except OtaError as error:
        raise OtaError(
            "file-access",
            error.message,
            remedy="Say with --keys where the keys are. For a repository of another tool, put the "
            "root there that hosts have, under this name.",
        ) from None


def _load(kind: Any, data: bytes) -> Metadata[Any]:
    try:
        made: Metadata[Any] = Metadata.from_bytes(data)
        if made.signed.type != kind.type:
            raise ValueError
    except (RepositoryError, ValueError):
        raise OtaError("metadata-invalid", f"It is no metadata of {kind.type}.") from None
    return made


def _verified(root: Root, role: str, found: Metadata[Any]) -> Any:
    try:
        root.verify_delegate(role, found.signed_bytes, found.signatures)
    except (RepositoryError, ValueError):
        text = f"The metadata of {role} is not signed by as many of its keys as it takes."
        raise OtaError("metadata-invalid", text, remedy=_REMEDY) from None
    return found.signed


@dataclass
class _State:
    """A repository's metadata as it stands, each verified with the root's keys."""

    folder: Path
    keys: Path
    signed: dict[str, Any]

    @property
    def root(self) -> Root:
        """The newest."""
        root: Root = self.signed["root"]
        return root

    @classmethod
    def read(cls, folder: Path, keys: Path) -> _State:
        """From the first root to the newest, as a host goes, and from there to the rest.

        Raises OtaError `metadata-invalid`, `replayed`, `file-access`.
        """
        metadata = folder / "metadata"
        if not (metadata / "timestamp.json").exists():
            text = f"{folder} holds no repository."
            raise OtaError("file-access", text, remedy="`esp32-ota repo init` makes one.")
        first = _first_root(keys)
        state = cls(folder, keys, {"root": _load(Root, first).signed})

        def take(role: str, kind: Any, name: str, version: int | None = None) -> Any:
            found = _load(kind, read_file(metadata / name, METADATA_BYTES))
            signed = _verified(state.root, role, found)
            if version not in (None, signed.version):
                text = f"{metadata / name} holds version {signed.version}."
                raise OtaError("metadata-invalid", text, remedy=_REMEDY)
            if role == "root":
                _verified(signed, role, found)
            state.signed[role] = signed
            return signed

        name = f"{state.root.version}.root.json"
        if read_file(metadata / name, METADATA_BYTES) != first:
            text = f"{metadata / name} is not the root that lies with the keys in {keys}."
            raise OtaError("metadata-invalid", text, remedy=_REMEDY)
        while (metadata / f"{(at := state.root.version + 1)}.root.json").exists():
            take("root", Root, f"{at}.root.json", at)
        at = take("timestamp", Timestamp, "timestamp.json").snapshot_meta.version
        hashed = state.root.consistent_snapshot
        snapshot = take(
            "snapshot", Snapshot, f"{at}.snapshot.json" if hashed else "snapshot.json", at
        )
        at = snapshot.meta["targets.json"].version
        take("targets", Targets, f"{at}.targets.json" if hashed else "targets.json", at)
        state._require_newest()
        return state

    def _require_newest(self) -> None:
        """An older state would be signed anew, with what was taken back since."""
        path = self.keys / SEEN
        try:
            seen = json.loads(read_file(path, TEXT_BYTES)) if path.exists() else {}
            older = [role for role in DAYS if self.signed[role].version < int(seen.get(role, 0))]
        except (ValueError, TypeError, AttributeError):
            raise OtaError("file-access", f"{path} has not the form of ours.") from None
        for role in older:
            raise OtaError(
                "replayed",
                f"{self.folder} has version {self.signed[role].version} of {role}, and version "
                f"{seen[role]} was there before.",
                remedy="Go on from the newest copy of the folder, and look at who may write to it. "
                f"Where the newest is lost, remove {path}.",
            )

    def _remember(self) -> None:
        versions = {role: self.signed[role].version for role in DAYS}
        _write(self.keys / SEEN, json.dumps(versions).encode(), mode=0o600)

    def sign(
        self, roles: Sequence[str], signers: dict[str, CryptoSigner], *, first: bool = False
    ) -> None:
        """Make the next versions of these roles, and of what vouches for them; the timestamp, by
        which hosts find them, last."""
        self._remember()  # before anything is signed: it may be that it cannot be written
        for role in (*roles, "snapshot", "timestamp"):
            signed: Signed = self.signed[role]
            signed.version += not first
            days = timedelta(days=DAYS[role])
            signed.expires = datetime.now(UTC).replace(microsecond=0) + days
            if role == "snapshot":
                targets = self.signed["targets"].version
                self.signed[role].meta["targets.json"] = MetaFile(targets)
            if role == "timestamp":
                self.signed[role].snapshot_meta = MetaFile(self.signed["snapshot"].version)
            made: Metadata[Any] = Metadata(signed)
            made.sign(signers[role])
            _verified(self.root, role, made)
            data = made.to_bytes()
            names = [f"{signed.version}.{role}.json"] if role != "timestamp" else []
            if role in ("root", "timestamp") or not self.root.consistent_snapshot:
                names.append(f"{role}.json")
            for name in names:
                _write(self.folder / "metadata" / name, data)
            if first and role == "root":
                _write(self.keys / ROOT, data, mode=0o600)
        self._remember()


def _signers(
    root: Root, keys: Path, roles: Sequence[str], ask_password: AskPassword
) -> dict[str, CryptoSigner]:
    signers, password = {}, None
    for role in roles:
        path = keys / f"{role}.pem"
        try:
            data = read_file(path, TEXT_BYTES)
        except OtaError as error:
            remedy = "Say with --keys where they are."
            raise OtaError("file-access", error.message, remedy=remedy) from None
        if b"ENCRYPTED" in data and password is None:
            password = ask_password().encode()
        try:
            private: Any = serialization.load_pem_private_key(
                data, password if b"ENCRYPTED" in data else None
            )
        except (ValueError, TypeError):
            text = f"{path} cannot be opened with this password, or holds no key."
            raise OtaError("file-access", text, remedy="Give the password of the keys.") from None
        own = SSlibKey.from_crypto(private.public_key()).keyval
        known = [root.keys[keyid] for keyid in root.roles[role].keyids]
        found = next((one for one in known if one.keyval == own), None)
        if not isinstance(found, SSlibKey):
            text = f"{path} is not the key that the repository's root names for {role}."
            raise OtaError("metadata-invalid", text, remedy=_REMEDY)
        signers[role] = CryptoSigner(private, found)
    return signers


def _entry(name: str, target: TargetFile) -> Entry:
    custom: Any = target.custom
    said = custom.get("ota") if isinstance(custom, dict) else None
    about = said if isinstance(said, dict) else {}
    texts = [str(about.get(key, "")) for key in ("version", "project", "chip")]
    return Entry(name, target.length, target.hashes.get("sha256", ""), *texts)


def _write(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """A file appears whole, or not at all; a web server's user may read it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, data, mode=mode)
