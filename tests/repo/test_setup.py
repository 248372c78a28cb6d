# SPDX-License-Identifier: GPL-3.0-or-later
"""The set-up of the one environment: once, by any number of copies, and repaired where needed."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.module_client import IDLE_ATTRIBUTES, ROOT, ModuleProcess
from tests.support.pins import pinned

# One package without dependencies stands for all where the packages themselves do not matter.
SMALL = pinned("idna")
OTHER = pinned("idna", "six")


def checkout(folder: Path, requirements: str = SMALL) -> Path:
    """A copy of what the set-up needs, in a folder with a space in its name."""
    copy = folder / "a checkout"
    copy.mkdir(parents=True)
    for name in ("setup.sh", "run.sh"):
        shutil.copy2(ROOT / name, copy / name)
    (copy / "src").mkdir()
    (copy / "src/main.py").write_text("import sys; print('main', sys.argv[1:], sys.prefix)\n")
    (copy / "requirements.txt").write_text(requirements)
    (copy / "requirements-build.txt").write_text("")
    (copy / "requirements-dev.txt").write_text(pinned("six"))
    return copy


def run(
    script: Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    before: tuple[str, ...] = (),
) -> subprocess.CompletedProcess[str]:
    """Run a script from another folder, without a terminal."""
    return subprocess.run(
        [*before, str(script), *arguments],
        cwd="/",
        env={**os.environ, "PYTHON": sys.executable, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def installed(copy: Path) -> set[str]:
    """The names of the packages in the environment of `copy`."""
    found = copy.glob(".venv/lib/python*/site-packages/*.dist-info")
    return {path.name.partition("-")[0] for path in found}


@pytest.mark.slow
def test_set_up_happens_once_and_again_when_it_must(tmp_path: Path) -> None:
    """The whole life of an environment: made, left alone, changed, interrupted, moved."""
    copy = checkout(tmp_path)
    first = run(copy / "run.sh", "a b", "--tcp-mode")
    assert first.returncode == 0, first.stderr
    assert "setting up" in first.stdout
    assert first.stdout.endswith(f"main ['a b', '--tcp-mode'] {copy}/.venv\n")

    begun = time.monotonic()
    again = run(copy / "run.sh")
    assert again.stdout == f"main [] {copy}/.venv\n"
    assert again.stderr == ""
    assert time.monotonic() - begun < 1.0

    # The tests' packages are added; run.sh goes on without a further set-up.
    assert run(copy / "setup.sh", "--dev").returncode == 0
    assert {"idna", "six"} <= installed(copy)
    assert run(copy / "run.sh").stdout == f"main [] {copy}/.venv\n"

    # Other pins.
    (copy / "requirements.txt").write_text(OTHER)
    assert "installing the pinned packages" in run(copy / "run.sh").stdout

    # Killed in the middle: whatever was half done is made anew.
    (copy / ".venv/.unfinished").touch()
    (copy / ".venv/.installed").unlink()
    shutil.rmtree(next(copy.glob(".venv/lib/python*/site-packages/idna")))
    assert "setting up" in run(copy / "run.sh").stdout
    assert list(copy.glob(".venv/lib/python*/site-packages/idna"))

    # Moved: an environment holds the paths of the place where it was made.
    moved = copy.rename(tmp_path / "elsewhere")
    assert run(moved / "run.sh").stdout.endswith(f"main [] {moved}/.venv\n")
    assert str(moved) in (moved / ".venv/bin/esp32-ota").read_text()


@pytest.mark.slow
def test_the_first_python_that_works_is_used(tmp_path: Path) -> None:
    """`python3` may be too old, and a name may be a launcher for what is not installed."""
    copy = checkout(tmp_path)
    names = tmp_path / "bin"
    names.mkdir()
    for name, text in (("python3", "exit 127"), ("python3.13", f'exec {sys.executable} "$@"')):
        (names / name).write_text(f"#!/bin/sh\n{text}\n")
        (names / name).chmod(0o755)
    env = {"PATH": f"{names}:/usr/bin:/bin", "PYTHON": ""}
    done = run(copy / "run.sh", env=env)
    assert done.returncode == 0, done.stderr
    assert "main []" in done.stdout


def test_without_a_python_it_says_what_is_missing(tmp_path: Path) -> None:
    """And how to name one."""
    names = tmp_path / "bin"
    names.mkdir()
    for name in ("bash", "env", "dirname", "readlink", "cat", "head", "mkdir", "cksum", "cut"):
        found = shutil.which(name)
        assert found is not None
        (names / name).symlink_to(found)
    done = run(checkout(tmp_path) / "run.sh", env={"PATH": str(names), "PYTHON": ""})
    assert done.returncode != 0
    assert "no Python 3.11 or newer was found" in done.stderr
    assert "PYTHON=" in done.stderr


@pytest.mark.slow
def test_without_a_package_index_it_says_what_is_missing(tmp_path: Path) -> None:
    """pip's own words, and what they mean; the next start tries again."""
    copy = checkout(tmp_path)
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/", "PIP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1"}
    failed = run(copy / "run.sh", env=nowhere)
    assert failed.returncode != 0
    assert "needs a Python package index" in failed.stderr
    assert "main" not in failed.stdout
    assert run(copy / "run.sh").stdout.endswith(f"main [] {copy}/.venv\n")


@pytest.mark.slow
def test_a_read_only_checkout_gets_its_environment_under_viam_home(tmp_path: Path) -> None:
    """Never in VIAM_MODULE_DATA, which viam-server may delete."""
    copy = checkout(tmp_path)
    before: tuple[str, ...] = ()
    if os.geteuid() == 0:  # root writes everywhere, unless it gives up that one right
        before = ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-dac_override")
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv, to be root without root's rights")
    copy.chmod(0o555)
    env = {"VIAM_HOME": str(tmp_path / "viam"), "VIAM_MODULE_DATA": str(tmp_path / "data")}
    try:
        for _ in range(2):
            done = run(copy / "run.sh", env=env, before=before)
            assert done.returncode == 0, done.stderr
            assert f"{tmp_path}/viam/ota-service-env/" in done.stdout.splitlines()[-1]
        assert "setting up" not in done.stdout
    finally:
        copy.chmod(0o755)
    assert not (copy / ".venv").exists()
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
async def test_two_copies_start_at_once_on_a_fresh_clone(tmp_path: Path) -> None:
    """Through a symlink, with the real packages: one sets up, both serve."""
    clone = tmp_path / "fresh clone"
    kept = shutil.ignore_patterns(".venv*", ".git", ".*_cache", "__pycache__", ".hypothesis")
    await asyncio.to_thread(shutil.copytree, ROOT, clone, ignore=kept)
    link = tmp_path / "run"
    link.symlink_to("fresh clone/run.sh")
    env = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    env["PYTHON"] = getattr(sys, "_base_executable", sys.executable)
    async with AsyncExitStack() as stack:
        starting = [
            ModuleProcess.start(
                tmp_path / name, executable=[link], env=env, start_timeout_s=300, cwd=Path("/")
            )
            for name in ("one", "two")
        ]
        modules = await asyncio.gather(*(stack.enter_async_context(one) for one in starting))
        assert sum("setting up" in module.log for module in modules) == 1
        for module in modules:
            assert await module.validate(IDLE_ATTRIBUTES) == ([], [])
            await module.terminate(timeout_s=10)  # it reaches Python itself
            assert "SIGTERM: stopping" in module.log


def test_another_system_is_told_in_one_sentence(tmp_path: Path) -> None:
    """Before anything is made there."""
    done = run(checkout(tmp_path) / "run.sh", env={"OSTYPE": "darwin23"})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("ota_service runs on Linux alone, and this system is darwin23: ")
    assert not (tmp_path / "a checkout" / ".venv").exists()
