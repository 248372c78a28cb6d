# SPDX-License-Identifier: GPL-3.0-or-later
"""The archive of `make module WHEELS=..`, and what both kinds of it share: whole, repeatable, in
the publisher's name, and offline. The other kind is tested in test_self_contained.py."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.module_client import IDLE_ATTRIBUTES, ROOT, ModuleProcess

OWN = {"rdk:generic:ota_service", "rdk:builtin:ota_service"}
# Python 3.11 before 3.11.4 (Debian 12 has 3.11.2) has no filters.
FILTER: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def wheel(folder: Path, name: str, version: str) -> str:
    """A package that holds nothing, as a wheel; its pin."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    file = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as made:
        made.writestr(f"{name}.py", "")
        made.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        made.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        made.writestr(f"{info}/RECORD", "")
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"


def build(folder: Path, *arguments: str) -> Path:
    """Make the archive, with the wheels beside the folder, and unpack it; where it is then."""
    out = folder / "archive.tar.gz"
    wheels = folder.parent / "wheels"
    if not wheels.exists():
        wheel(wheels, "ota_nothing", "1.0")
    subprocess.run(
        [
            sys.executable,
            "-m",
            "tools.module_archive",
            "--out",
            out,
            "--wheels",
            wheels,
            *arguments,
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    unpacked = folder / "unpacked"
    with tarfile.open(out) as tar:
        tar.extractall(unpacked, **FILTER)
    return unpacked


@pytest.mark.slow
def test_the_archive_has_all_that_its_meta_names(tmp_path: Path) -> None:
    """The entrypoint as a program, each model's page, no leftovers; made twice it is the same."""
    unpacked = build(tmp_path / "a")
    meta = json.loads((unpacked / "meta.json").read_text())
    assert meta == json.loads((ROOT / "meta.json").read_text()) | {"entrypoint": "run.sh"}
    assert os.access(unpacked / meta["entrypoint"], os.X_OK)
    for model in meta["models"]:
        assert (unpacked / model["markdown_link"].partition("#")[0]).is_file()
    for page in unpacked.rglob("*.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
    names = [path.name for path in unpacked.rglob("*")]
    assert "app.js" in names
    assert not [name for name in names if name.endswith((".pyc", "__pycache__", ".egg-info"))]
    build(tmp_path / "b")
    digests = {
        hashlib.sha256((tmp_path / name / "archive.tar.gz").read_bytes()).hexdigest()
        for name in ("a", "b")
    }
    assert len(digests) == 1


def test_the_build_section_leads_to_the_archive() -> None:
    """`viam module build local` runs it and uploads what is at `path`."""
    section = json.loads((ROOT / "meta.json").read_text())["build"]
    assert set(section) == {"setup", "build", "path", "arch"}
    assert section["path"] == "dist/archive.tar.gz"
    assert os.access(ROOT / section["setup"], os.X_OK)
    make, target = section["build"].split()
    assert make == "make"
    assert f"\n{target}: ## dist/archive.tar.gz" in (ROOT / "Makefile").read_text()


@pytest.mark.slow
async def test_a_publishers_archive_serves_its_names_and_ours(tmp_path: Path) -> None:
    """meta.json names the publisher's models alone; both rdk triplets are served all the same."""
    unpacked = build(tmp_path, "--namespace", "acme")
    meta = json.loads((unpacked / "meta.json").read_text())
    assert meta["module_id"] == "acme:ota-service"
    listed = [model["model"] for model in meta["models"]]
    assert listed == [
        "acme:generic:ota_service",
        "acme:generic:ota_discovery",
        "acme:generic:ota_sensor",
    ]
    # The upload tool reads the file beside the archive, not the one in it.
    assert (tmp_path / "meta.json").read_bytes() == (unpacked / "meta.json").read_bytes()
    main = unpacked / "src" / "main.py"
    async with ModuleProcess.start(tmp_path / "m", executable=[sys.executable, main]) as module:
        assert set(module.models) >= OWN | set(listed)
        await module.add("OTA", IDLE_ATTRIBUTES, model="acme:generic:ota_service")
        assert (await module.status("OTA"))["target"]["version"] == IDLE_ATTRIBUTES["version"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["", "Acme", "a b", "-a", "a/b", "rdk:x"])
def test_a_namespace_that_viam_would_refuse_is_refused_here(tmp_path: Path, name: str) -> None:
    """Before an upload fails."""
    with pytest.raises(subprocess.CalledProcessError) as caught:
        build(tmp_path, f"--namespace={name}")
    assert caught.value.returncode == 2


def test_the_checkouts_own_meta_is_not_written_over(tmp_path: Path) -> None:
    """An archive beside it would leave the publisher's names in the checkout."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.module_archive", "--namespace", "acme", "--out", "a.tgz"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "meta.json is written beside the archive" in done.stderr
    assert not (ROOT / "a.tgz").exists()


@pytest.mark.slow
def test_an_archive_with_wheels_needs_no_index(tmp_path: Path) -> None:
    """The set-up takes what came along, if it is what was pinned; else it says so."""
    pin = wheel(tmp_path / "wheels", "ota_nothing", "1.0")
    unpacked = build(tmp_path / "a")
    (unpacked / "requirements-build.txt").write_text("")
    (unpacked / "requirements.txt").write_text(pin)
    env = {**os.environ, "PYTHON": sys.executable, "PIP_INDEX_URL": "http://127.0.0.1:9/",
           "PIP_RETRIES": "0"}  # fmt: skip

    def set_up() -> subprocess.CompletedProcess[str]:
        command = [str(unpacked / "setup.sh"), "--", "-c", "import ota_nothing; print('there')"]
        return subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=120, check=False
        )

    done = set_up()
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("there\n")
    wheel(tmp_path / "changed", "ota_nothing", "2.0")
    shutil.copy(tmp_path / "changed/ota_nothing-2.0-py3-none-any.whl", unpacked / "wheels")
    (unpacked / "requirements.txt").write_text(pin.replace("1.0", "2.0"))
    failed = set_up()
    assert failed.returncode != 0
    assert "are not all that this Python needs" in failed.stdout
    assert "needs a Python package index" in failed.stderr
