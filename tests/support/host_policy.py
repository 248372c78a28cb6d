# SPDX-License-Identifier: GPL-3.0-or-later
"""A host's policy of trust, in a folder of a test's own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from ota_service.firmware import trust

ROOT = Path(__file__).resolve().parents[2]


def make_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of this host's policy, which is not there yet; its state is in `tmp_path`."""
    folder = tmp_path / "etc" / "trust"
    monkeypatch.setattr(trust, "HOST", folder)
    monkeypatch.setattr(trust, "HOST_OWNERS", frozenset({os.geteuid()}))
    monkeypatch.setattr(trust, "MEMORY", tmp_path / "memory")
    monkeypatch.delenv(trust.ADDED, raising=False)
    monkeypatch.setenv("VIAM_HOME", str(tmp_path / "viam"))
    return folder


def module_with(memory: Path) -> list[str | Path]:
    """The module's executable, which remembers there what repositories have shown."""
    code = (
        "import runpy, sys; from pathlib import Path;"
        "sys.path.insert(0, str(Path(sys.argv[2]).parent));"
        "from ota_service.firmware import trust; trust.MEMORY = Path(sys.argv[1]);"
        "main = sys.argv[2]; del sys.argv[1:3]; runpy.run_path(main, run_name='__main__')"
    )
    return [sys.executable, "-c", code, memory, ROOT / "src" / "main.py"]


def add_key(folder: Path, pem: bytes, name: str = "release.pem") -> Path:
    """Have a folder ask for a key."""
    (folder / "keys").mkdir(mode=0o755, parents=True, exist_ok=True)
    path = folder / "keys" / name
    path.write_bytes(pem)
    path.chmod(0o644)
    return path


def add_repository(folder: Path, url: str, root: bytes) -> None:
    """Have a folder ask for a repository."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    (folder / "root.json").write_bytes(root)
    (folder / "repositories.json").write_text(json.dumps([{"url": url, "root": "root.json"}]))
