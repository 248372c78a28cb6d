# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the archive that is uploaded to Viam's registry, or unpacked on a machine by hand.

    python tools/module_archive.py [--namespace acme] [--wheels FOLDER] [--out dist/archive.tar.gz]

Beside the archive its meta.json is written, which `viam module upload --module` needs to read.
The registry takes models only in the namespace of the organisation that publishes them: with
`--namespace` meta.json names them so, and the module, which reads meta.json when it starts,
serves them beside its own two names. The same files give the same archive, byte for byte.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FILES = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "pyproject.toml",
    "requirements-build.txt",
    "requirements.txt",
    "run.sh",
    "setup.sh",
)
FOLDERS = ("docs", "src")
META = "meta.json"
WHEELS = "wheels"
OWN_NAMESPACE = "rdk"
_LEFT_OUT = ("__pycache__", ".egg-info")
# An organisation's public namespace, as the Viam app takes it.
_NAMESPACE = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


def renamed(meta: dict[str, Any], namespace: str) -> dict[str, Any]:
    """meta.json for a publisher: its models carry the publisher's namespace, each once."""
    models: dict[str, dict[str, Any]] = {}
    for model in meta["models"]:
        _, family, name = model["model"].split(":")
        # The two names of the service become one: "builtin" means viam-server's own namespace.
        triplet = f"{namespace}:{'generic' if family == 'builtin' else family}:{name}"
        models.setdefault(triplet, {**model, "model": triplet})
    _, _, own_name = meta["module_id"].partition(":")
    return {**meta, "module_id": f"{namespace}:{own_name}", "models": list(models.values())}


def contents(root: Path, namespace: str, wheels: Path | None) -> Iterator[tuple[str, bytes, bool]]:
    """Name, bytes and whether it is a program, of each file of the archive."""
    meta = json.loads((root / META).read_text("utf-8"))
    if namespace != OWN_NAMESPACE:
        meta = renamed(meta, namespace)
    yield META, (json.dumps(meta, indent=2, ensure_ascii=False) + "\n").encode(), False
    paths = [root / name for name in FILES]
    for folder in FOLDERS:
        paths += [path for path in (root / folder).rglob("*") if path.is_file()]
    for path in paths:
        name = path.relative_to(root).as_posix()
        if not any(part.endswith(_LEFT_OUT) for part in path.relative_to(root).parts):
            yield name, path.read_bytes(), path.suffix == ".sh"
    for path in sorted(wheels.iterdir()) if wheels is not None else ():
        if path.is_file():
            yield f"{WHEELS}/{path.name}", path.read_bytes(), False


def archive(files: Sequence[tuple[str, bytes, bool]]) -> bytes:
    """A .tar.gz that depends on the files alone."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data, program in sorted(files):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            entry.mode = 0o755 if program else 0o644
            tar.addfile(entry, io.BytesIO(data))
    return gzip.compress(raw.getvalue(), mtime=0)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make the module's archive for Viam.")
    parser.add_argument("--namespace", default=OWN_NAMESPACE, help="of the publisher")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to carry along")
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "archive.tar.gz")
    given = parser.parse_args(arguments)
    if not _NAMESPACE.fullmatch(given.namespace):
        parser.error("a namespace has small letters, digits and dashes")
    if given.wheels is not None and not any(given.wheels.glob("*.whl")):
        parser.error(f"there are no wheels in {given.wheels}; `make wheels` makes them")
    beside = given.out.parent / META
    if beside.resolve() == ROOT / META:
        parser.error(f"--out: {META} is written beside the archive, and would replace this one's")
    files = list(contents(ROOT, given.namespace, given.wheels))
    data = archive(files)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_bytes(data)
    beside.write_bytes(next(text for name, text, _ in files if name == META))
    carried = sum(name.startswith(f"{WHEELS}/") for name, _, _ in files)
    print(f"{given.out}: {len(files)} files, {len(data):,} bytes, {carried} wheels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
