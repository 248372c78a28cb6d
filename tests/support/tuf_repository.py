# SPDX-License-Identifier: GPL-3.0-or-later
"""A TUF repository made by python-tuf alone, and the ways in which one may be stolen or spoilt.

made = TufRepository()
made.add("app.bin", data, "1.0.0")
made.publish()
made.files["metadata/timestamp.json"]
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

ROLES = ("root", "timestamp", "snapshot", "targets")


def in_days(days: float) -> datetime:
    """So many days from now."""
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


class TufRepository:
    """signed: its metadata, to be changed at will; keys: who signs each; files: what its server
    has, as `publish` left it."""

    def __init__(self, *, consistent: bool = True, root_keys: int = 1, threshold: int = 1) -> None:
        self.keys = {role: [CryptoSigner.generate_ed25519()] for role in ROLES}
        self.keys["root"] += [CryptoSigner.generate_ed25519() for _ in range(root_keys - 1)]
        expires = in_days(30)
        root = Root(expires=expires, consistent_snapshot=consistent)
        self.signed: dict[str, Any] = {
            "root": root,
            "timestamp": Timestamp(expires=expires),
            "snapshot": Snapshot(expires=expires),
            "targets": Targets(expires=expires),
        }
        for role, signers in self.keys.items():
            for signer in signers:
                root.add_key(signer.public_key, role)
        root.roles["root"].threshold = threshold
        self.files: dict[str, bytes] = {}

    @property
    def root(self) -> bytes:
        """The first root, which hosts get."""
        return self.files["metadata/1.root.json"]

    def add(
        self,
        path: str,
        data: bytes,
        version: str | None,
        *,
        hashes: Mapping[str, str] | None = None,
        role: str = "targets",
        **ota: Any,
    ) -> None:
        """Sign for a file, and have it under all of its names. version: None: not bound."""
        digest = hashlib.sha256(data).hexdigest()
        entry = TargetFile(len(data), dict(hashes or {"sha256": digest}), path)
        if version is not None:
            entry.unrecognized_fields["custom"] = {"ota": {"version": version, **ota}}
        self.signed[role].targets[path] = entry
        folder, slash, name = path.rpartition("/")
        self.files[f"targets/{path}"] = data
        for value in entry.hashes.values():
            self.files[f"targets/{folder}{slash}{value}.{name}"] = data

    def delegate(self, role: str, pattern: str) -> None:
        """Have another role sign for the files of a pattern."""
        self.keys[role], targets = [CryptoSigner.generate_ed25519()], self.signed["targets"]
        self.signed[role] = Targets(expires=in_days(30))
        targets.delegations = targets.delegations or Delegations({}, {})
        targets.delegations.roles[role] = DelegatedRole(role, [], 1, False, paths=[pattern])
        targets.add_key(self.keys[role][0].public_key, role)

    def publish(self) -> dict[str, bytes]:
        """Sign everything, as a next version; returns what the server then has."""
        again = bool(self.files.get("metadata/timestamp.json"))
        for role in set(self.signed) - {"root"}:
            self.signed[role].version += again
        for role in set(self.signed) - {"root", "snapshot", "timestamp"}:
            self.signed["snapshot"].meta[f"{role}.json"] = MetaFile(self.signed[role].version)
        self.signed["timestamp"].snapshot_meta = MetaFile(self.signed["snapshot"].version)
        for role in self.signed:
            self.put(role)
        return dict(self.files)

    def put(self, role: str, by: str | None = None) -> None:
        """Sign a role's metadata, by another role's keys if so, and have it under its names."""
        signed = self.signed[role]
        made: Metadata[Any] = Metadata(copy.deepcopy(signed))
        for signer in self.keys[by or role]:
            made.sign(signer, append=True)
        data = made.to_bytes()
        self.files[f"metadata/{signed.version}.{role}.json"] = data
        self.files[f"metadata/{role}.json"] = data
