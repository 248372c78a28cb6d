# SPDX-License-Identifier: GPL-3.0-or-later
"""The files at the top of the repository agree with each other and with the code."""

from __future__ import annotations

import ast
import json
import os
import re
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ota_service
from tests.support.pins import FILES, pins
from tools.frozen import PROGRAM

ROOT = Path(__file__).parents[2]


def versions(file: str) -> dict[str, str]:
    """Canonical name -> exact version, of a requirements file."""
    return {
        canonicalize_name(name): lines.split("==")[1].split()[0]
        for name, lines in pins(file).items()
    }


def test_meta_names_all_models_and_files_that_exist() -> None:
    """A missing triplet leaves one of the usual configurations without its resource."""
    meta = json.loads((ROOT / "meta.json").read_text())
    assert {(model["api"], model["model"]) for model in meta["models"]} == {
        ("rdk:service:generic", "rdk:generic:ota_service"),
        ("rdk:service:generic", "rdk:builtin:ota_service"),
        ("rdk:service:discovery", "rdk:generic:ota_discovery"),
        ("rdk:component:sensor", "rdk:generic:ota_sensor"),
    }
    for model in meta["models"]:
        assert (ROOT / model["markdown_link"]).is_file()
    assert meta["entrypoint"] == PROGRAM
    assert "first_run" not in meta  # one that fails stops every resource of the machine


def test_the_workflow_tests_and_builds_for_what_is_promised() -> None:
    """Each Python that the package names, both processors of meta.json, by commands that exist."""
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pythons = re.findall(r"Python :: (3\.\d+)$", "\n".join(project["classifiers"]), re.M)
    assert f"python: {json.dumps(pythons)}" in workflow
    meta = json.loads((ROOT / "meta.json").read_text())
    uploads = workflow.partition("  upload:")[2]
    assert re.findall(r"platform: (linux/\w+)$", uploads, re.M) == meta["build"]["arch"]
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"run: make ([a-z-]+)", workflow)
    assert targets == ["module", "test-archive"]
    assert all(f"\n{target}: ##" in makefile for target in targets)
    assert "- run: .ci/run\n" in workflow
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_first_release_is_in_the_changelog() -> None:
    """And above it a place for what comes."""
    heads = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert heads[:2] == ["Unreleased", ota_service.__version__]


def test_the_pins_are_closed() -> None:
    """An unpinned dependency of a dependency could change under a board's feet."""
    runtime = versions("requirements.txt")
    dev = versions("requirements-dev.txt") | versions("requirements-build.txt")
    assert not runtime.keys() & dev.keys()
    for known in (runtime, runtime | dev):
        for name in known:
            for text in requires(name) or []:
                need = Requirement(text)
                if need.marker is None or need.marker.evaluate({"extra": ""}):
                    assert canonicalize_name(need.name) in known, f"{name} needs {need.name}"


@pytest.mark.parametrize("file", FILES)
def test_each_pin_has_the_hashes_of_its_files(file: str) -> None:
    """pip takes no other file for it, whatever an index or a mirror serves."""
    text = (ROOT / file).read_text("utf-8")
    assert len(pins(file)) == text.count("==")
    for lines in pins(file).values():
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", lines), lines


def test_the_pins_fit_what_the_package_asks_for() -> None:
    """`pip install .` and setup.sh must not disagree about a version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    runtime = versions("requirements.txt")
    for text in project["dependencies"]:
        need = Requirement(text)
        assert need.specifier.contains(runtime[canonicalize_name(need.name)]), text


def test_each_python_file_names_its_licence() -> None:
    """A file that leaves the repository must carry its licence along."""
    files = [*ROOT.glob("src/**/*.py"), *ROOT.glob("tests/**/*.py")]
    assert files
    missing = [
        str(file.relative_to(ROOT))
        for file in files
        if not re.match(r"# SPDX-License-Identifier: GPL-3.0-or-later\n", file.read_text())
    ]
    assert not missing


ROOMS = (
    "errors",
    "formats",
    "firmware",
    "link",
    "update",
    "building",
    "fleet",
    "module",
    "api",
    "client",
    "rollout",
    "dashboard",
    "cli",
)
"""The rooms of the package, from the lowest: each imports only from those before it."""


def test_imports_go_one_way() -> None:
    """No room imports from one above it, and neither package from the other."""
    for package, others in (("ota_service", "esp32_sim"), ("esp32_sim", "ota_service")):
        for path in (ROOT / "src" / package).rglob("*.py"):
            room = path.relative_to(ROOT / "src" / package).parts[0].removesuffix(".py")
            for name in imported(path):
                first, _, rest = name.partition(".")
                assert first != others, (path, name)
                if package == first == "ota_service" and rest and room in ROOMS:
                    target = rest.split(".")[0]
                    assert ROOMS.index(target) <= ROOMS.index(room), (path, name)


def imported(path: Path) -> list[str]:
    """The modules that a file names in its imports."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names
