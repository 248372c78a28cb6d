# SPDX-License-Identifier: GPL-3.0-or-later
"""The self-contained program of the archive: Python, the packages and our code in one folder.

PyInstaller makes it, in its form of a folder: its single file would unpack itself at each start,
and leave a child that holds the ports when viam-server kills what it started. What went into the
folder decides whose licences go beside it: each file is traced to the package that it is from.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import Distribution, distributions, packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = "ota-service"
LICENCES = "LICENSES"
# Packages of which everything is taken along: they find their parts by name, or have data.
WHOLE = (
    "ota_service",
    "esp32_sim",
    "viam",
    "esptool",
    "espsecure",
    "esp_idf_nvs_partition_gen",
    "esp_pylib",
    "gpiod",
)
MODULES = ("serial", "tuf", "securesystemslib")
# In no program: they make or test it. The fixture for pytest is for checkouts and `pip install`.
NOT_PACKED = ("requirements-dev.txt", "requirements-build.txt")
# 1980, the first moment that a zip file can name: the same files give the same program.
EPOCH_S = 315532800
_LICENCE_FILE = re.compile(r"(licen[cs]e|copying|notice)", re.I)
_GLIBC = re.compile(rb"GLIBC_2\.(\d+)\x00")


@dataclass(slots=True)
class Licence:
    """Of a package in the program: its kind, its texts by file name, where the source is."""

    name: str
    version: str
    kind: str
    source: str
    texts: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Frozen:
    """The folder, the licences of what is in it, and the least glibc that it starts with."""

    folder: Path
    licences: list[Licence]
    glibc: str


def freeze(work: Path) -> Frozen:
    """Make the program in the folder `work`. Raises CalledProcessError, and PyInstaller has said
    why; ValueError for a file of which nobody knows the licence."""
    options = ["--onedir", "--noconfirm", "--clean", "--log-level", "ERROR", "--name", PROGRAM]
    options += [f"--distpath={work}", f"--workpath={work / 'work'}", f"--specpath={work}"]
    for flag, names in (
        ("--collect-all", WHOLE),
        ("--collect-submodules", MODULES),
        ("--exclude-module", left_out()),
    ):
        options += [word for name in names for word in (flag, name)]
    subprocess.run(
        [sys.executable, "-m", "PyInstaller", *options, ROOT / "src" / "main.py"],
        check=True,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "src"),
            "PYTHONHASHSEED": "0",
            "PYTHONWARNINGS": "ignore",
            "SOURCE_DATE_EPOCH": str(EPOCH_S),
        },
    )
    folder = work / PROGRAM
    licences = sorted(_licences(work / "work"), key=lambda one: one.name.lower())
    return Frozen(folder, licences, least_glibc(folder))


def left_out() -> list[str]:
    """The modules of the packages that are not for the program."""
    names: set[str] = set()
    for file in NOT_PACKED:
        text = (ROOT / file).read_text("utf-8")
        names |= {_canonical(name) for name in re.findall(r"^([\w.-]+)==", text, re.M)}
    return sorted(
        module
        for module, owners in packages_distributions().items()
        if {_canonical(owner) for owner in owners} <= names
        and module.isidentifier()
        and module not in WHOLE
    )


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def least_glibc(folder: Path) -> str:
    """The newest version of glibc that a file of the folder asks for, as "2.35"."""
    found = [0]
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            if data.startswith(b"\x7fELF"):
                found += [int(minor) for minor in _GLIBC.findall(data)]
    return f"2.{max(found)}"


# --- licences


def _licences(work: Path) -> Iterator[Licence]:
    """Of each package that a file of the program is from. Raises ValueError."""
    owners = {
        os.path.realpath(str(made.locate_file(file))): made
        for made in distributions()
        for file in made.files or ()
    }
    python = {os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib")}
    seen: dict[str, Distribution] = {}
    of_system: dict[str, str] = {}
    has_python = False
    for path in {os.path.realpath(path) for path in _sources(work)}:
        if path in owners:
            seen[owners[path].name] = owners[path]
        elif path.startswith((f"{ROOT}/src/", f"{work}/")):
            continue  # ours, and what PyInstaller has made of all the others
        elif any(path.startswith(f"{folder}/") for folder in python) or "libpython" in path:
            has_python = True
        else:
            package = _system_package(path)
            of_system[package] = path
    yield from map(_of_distribution, seen.values())
    if has_python:
        yield _of_python()
    yield from map(_of_system, of_system)


def _sources(work: Path) -> Iterator[str]:
    """The files that PyInstaller took, as its tables of contents name them."""
    for table in (work / PROGRAM).glob("*.toc"):
        yield from _paths(ast.literal_eval(table.read_text("utf-8")))


def _paths(value: object) -> Iterator[str]:
    match value:
        case (str(), str(path), str()):
            if path.startswith("/") and os.path.isfile(path):
                yield path
        case list() | tuple():
            for item in value:
                yield from _paths(item)


def _of_distribution(made: Distribution) -> Licence:
    about = made.metadata
    kind = "".join(about.get_all("License-Expression") or ())
    if not kind:
        kind = ", ".join(
            text.rpartition(" :: ")[2]
            for text in about.get_all("Classifier") or ()
            if text.startswith("License :: ")
        )
    kind = kind or "".join(about.get_all("License") or ()).strip().partition("\n")[0]
    texts = {
        file.name: file.read_binary()
        for file in made.files or ()
        if file.suffix not in (".py", ".pyc") and _LICENCE_FILE.match(file.name)
    }
    if not kind and not texts:
        raise ValueError(f"nothing says under which licence {made.name} is")
    if not texts:  # then this is all that its authors say of it
        texts = {"METADATA": (made.read_text("METADATA") or "").encode()}
    source = f"https://pypi.org/project/{made.name}/{made.version}/#files"
    return Licence(made.name, made.version, kind or "see its text", source, texts)


def _of_python() -> Licence:
    version = "{}.{}.{}".format(*sys.version_info)
    text = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
    if not text.is_file():  # a distribution's own Python
        text = Path(f"/usr/share/doc/python3.{sys.version_info.minor}/copyright")
    source = f"https://www.python.org/downloads/release/python-{version.replace('.', '')}/"
    return Licence("Python", version, "Python-2.0", source, {"LICENSE.txt": text.read_bytes()})


def _system_package(path: str) -> str:
    """The package of the distribution that a library of the system is from. Raises ValueError."""
    for name in (path, path.removeprefix("/usr")):
        done = subprocess.run(["dpkg", "-S", name], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.partition(":")[0]
    raise ValueError(f"nobody knows whose file {path} is, so its licence is not known")


def _of_system(package: str) -> Licence:
    told = subprocess.run(
        ["dpkg-query", "-W", "-f", "${source:Package} ${source:Version} ${Version}\n", package],
        capture_output=True, text=True, check=True,
    ).stdout.splitlines()[0]  # fmt: skip
    source, source_version, version = told.split()
    text = Path(f"/usr/share/doc/{package}/copyright").read_bytes()
    where = f"source package {source} {source_version} of the system that this was built on"
    return Licence(package, version, "see its text", where, {"copyright": text})


def licence_files(licences: list[Licence]) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each file of the folder LICENSES."""
    lines = [
        "# What is in this folder, and where its source is",
        "",
        "The program is GPL-3.0-or-later: `../LICENSE`. `../source.tar.gz` is its source, with the",
        "hashes of all packages of Python that went into it (`requirements.txt`) and the command",
        "that makes this archive of it: `make module`.",
        "",
        "| Package | Version | Licence | Source |",
        "|---|---|---|---|",
    ]
    for one in licences:
        lines.append(f"| {one.name} | {one.version} | {one.kind} | {one.source} |")
        for name, text in one.texts.items():
            yield f"{LICENCES}/{one.name}/{name}", text
    yield f"{LICENCES}/README.md", ("\n".join(lines) + "\n").encode()
