# SPDX-License-Identifier: GPL-3.0-or-later
"""What `pip install .` gives: the whole package, typed, and the command."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import ota_service

ROOT = Path(__file__).parents[2]

TYPED = """\
from ota_service.errors import OtaError
from ota_service.formats import parse_app_image
from esp32_sim import BoardControl, build_app
from esp32_sim.pytest_plugin import StartBoard

reveal_type(parse_app_image(build_app()).descriptor.version)
reveal_type(OtaError("tls").code)
reveal_type(BoardControl.running)
from esp32_sim import no_such_name
"""


def output(*command: str | Path) -> str:
    """What a command prints; it must end well."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, since a build leaves files beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    kept = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "copy" / "src", ignore=kept)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, folder / "copy" / name)
    output(
        sys.executable, "-m", "pip", "wheel", "--disable-pip-version-check", "-q", "--no-deps",
        "--no-index", "--no-build-isolation", "-w", folder, folder / "copy",
    )  # fmt: skip
    # build/ holds firmware: what a build of the package leaves there has its own folder.
    assert [path.name for path in (folder / "copy" / "build").iterdir()] == ["python"]
    (made,) = folder.glob("*.whl")
    return made


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package(wheel: Path) -> None:
    """The mark that it is typed, the page's files and the tables as well as the code."""
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = ROOT / "src"
    expected = {
        path.relative_to(sources).as_posix()
        for package in ("ota_service", "esp32_sim")
        for path in (sources / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"ota_service/py.typed", "esp32_sim/py.typed"} <= expected
    assert expected - names == set()
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert wheel.name.startswith(f"ota_service-{ota_service.__version__}-")


@pytest.mark.slow
def test_another_programs_type_checker_sees_the_types(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, which knows the package only as it was installed."""
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    (site,) = home.glob("lib/python*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    (tmp_path / "program.py").write_text(TYPED)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--python-executable", python,
         "--cache-dir", tmp_path / "cache", "program.py"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    said = done.stdout.splitlines()
    assert 'Revealed type is "str"' in said[0], done.stdout + done.stderr
    assert 'Revealed type is "str"' in said[1]
    assert "timeout_s: float" in said[2]
    assert "dict[str, Any]" in said[2]
    assert 'has no attribute "no_such_name"' in said[3]
    assert len(said) == 5  # and the sum
