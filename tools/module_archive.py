# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the archive that is uploaded to Viam's registry, or unpacked on a machine by hand.

    python -m tools.module_archive [--namespace acme] [--wheels FOLDER] [--out dist/archive.tar.gz]

It holds a program that needs nothing of the machine but its C library (frozen.py), with its
licences and its source. With `--wheels` it holds the source and those packages instead, and
run.sh, which makes the environment at the first start: for systems that the program is not for.

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
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tools.frozen import PROGRAM, freeze, licence_files

ROOT = Path(__file__).parents[1]
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "docs")
SOURCE = (
    *PAGES,
    ".ci",
    ".github",
    "Makefile",
    "pyproject.toml",
    "requirements-build.txt",
    "requirements-dev.txt",
    "requirements.txt",
    "run.sh",
    "setup.sh",
    "src",
    "tools",
)
META = "meta.json"
WHEELS = "wheels"
OWN_NAMESPACE = "rdk"
COMMAND = "esp32-ota"
_LEFT_OUT = ("__pycache__", ".egg-info")
# An organisation's public namespace, as the Viam app takes it.
_NAMESPACE = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of an archive: its bytes, or where they are, or another name that it links to."""

    name: str
    data: bytes | Path = b""
    program: bool = False
    link: str = ""


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


def meta_of(namespace: str, entrypoint: str) -> bytes:
    """meta.json of the archive, whose program is `entrypoint`."""
    meta = json.loads((ROOT / META).read_text("utf-8")) | {"entrypoint": entrypoint}
    if namespace != OWN_NAMESPACE:
        meta = renamed(meta, namespace)
    return (json.dumps(meta, indent=2, ensure_ascii=False) + "\n").encode()


def of_checkout(names: Sequence[str]) -> Iterator[Entry]:
    """Files and folders of the checkout."""
    for name in names:
        top = ROOT / name
        for path in sorted(top.rglob("*")) if top.is_dir() else (top,):
            parts = path.relative_to(ROOT).parts
            if path.is_file() and not any(part.endswith(_LEFT_OUT) for part in parts):
                yield Entry("/".join(parts), path, os.access(path, os.X_OK))


def source(meta: bytes) -> list[Entry]:
    """What run.sh and `make module` need."""
    return [Entry(META, meta), *of_checkout(SOURCE)]


def with_wheels(meta: bytes, wheels: Path) -> list[Entry]:
    """The archive of the source and the packages."""
    packages = [path for path in sorted(wheels.iterdir()) if path.is_file()]
    return source(meta) + [Entry(f"{WHEELS}/{path.name}", path) for path in packages]


def self_contained(meta: bytes) -> tuple[list[Entry], str]:
    """The archive of the program; and the least glibc that it starts with."""
    made = freeze(ROOT / "build" / "frozen")
    entries = [Entry(META, meta), *of_checkout(PAGES), Entry(COMMAND, link=PROGRAM)]
    for path in sorted(made.folder.rglob("*")):
        name = path.relative_to(made.folder).as_posix()
        # viam-server refuses a link that leads up from its folder; such a file is there twice.
        if path.is_symlink() and ".." not in (target := os.readlink(path)):
            entries.append(Entry(name, link=target))
        elif path.is_file():
            entries.append(Entry(name, path.resolve(), os.access(path, os.X_OK)))
    entries += [Entry(name, text) for name, text in licence_files(made.licences)]
    packed = io.BytesIO()
    # Whoever builds it from there is a publisher of their own.
    write(source((ROOT / META).read_bytes()), packed)
    return [*entries, Entry("source.tar.gz", packed.getvalue())], made.glibc


def write(entries: Sequence[Entry], out: IO[bytes]) -> None:
    """A .tar.gz that depends on the files alone."""
    with (
        gzip.GzipFile(filename="", fileobj=out, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for entry in sorted(entries, key=lambda entry: entry.name):
            about = tarfile.TarInfo(entry.name)
            about.mode = 0o755 if entry.program else 0o644
            if entry.link:
                about.type, about.linkname = tarfile.SYMTYPE, entry.link
                tar.addfile(about)
                continue
            data = entry.data if isinstance(entry.data, bytes) else entry.data.read_bytes()
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))


def _machine() -> str:
    """This processor, as Viam calls it."""
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(description="Make the module's archive for Viam.")
    parser.add_argument("--namespace", default=OWN_NAMESPACE, help="of the publisher")
    parser.add_argument(
        "--wheels", type=Path, help="of the source with these wheels, instead of the program"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "dist" / "archive.tar.gz")
    given = parser.parse_args(arguments)
    if not _NAMESPACE.fullmatch(given.namespace):
        parser.error("a namespace has small letters, digits and dashes")
    if given.wheels is not None and not any(given.wheels.glob("*.whl")):
        parser.error(f"there are no wheels in {given.wheels}; `make wheels` makes them")
    beside = given.out.parent / META
    if beside.resolve() == ROOT / META:
        parser.error(f"--out: {META} is written beside the archive, and would replace this one's")
    meta = meta_of(given.namespace, PROGRAM if given.wheels is None else "run.sh")
    if given.wheels is not None:
        entries = with_wheels(meta, given.wheels)
        about = f"{sum(entry.name.startswith(f'{WHEELS}/') for entry in entries)} wheels"
    else:
        print("Packing Python and the packages; this takes some minutes.", file=sys.stderr)
        try:
            entries, glibc = self_contained(meta)
        except (subprocess.CalledProcessError, ValueError) as error:
            print(f"module: {error}", file=sys.stderr)
            return 1
        about = f"for linux/{_machine()} with glibc {glibc} or newer"
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with given.out.open("wb") as out:
        write(entries, out)
    beside.write_bytes(meta)
    print(f"{given.out}: {len(entries)} files, {given.out.stat().st_size:,} bytes, {about}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
