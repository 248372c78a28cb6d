# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/python.md is the list of what programs may rely on: complete, true, and its examples run."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
LISTED = {
    module: re.findall(r"^\| `(\w+)` \| \S", table, re.M)
    for module, table in re.findall(r"<!-- names: ([\w.]+) -->\n((?:\|.*\n)+)", PAGE)
}
EXAMPLES = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", PAGE, re.S)
SCRIPTS = [(code, printed) for code, printed in EXAMPLES if printed]
TESTS = [code for code, printed in EXAMPLES if not printed]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in an empty folder, with the package as this environment has it."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    env.pop("PYTHONPATH", None)
    # Plugins that happen to be installed here are none of the example's business.
    env["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_module_that_lists_names_is_on_the_page() -> None:
    """A package whose `__init__` promises names, and the plugin; nothing else is promised."""
    promised = {"ota_service.errors", "esp32_sim.pytest_plugin"}
    for init in ROOT.glob("src/*/**/__init__.py"):
        if re.search(r"^__all__", init.read_text(), re.M):
            promised.add(".".join(init.parent.relative_to(ROOT / "src").parts))
    assert set(LISTED) == promised


@pytest.mark.parametrize("module", LISTED)
def test_the_page_lists_exactly_the_public_names(module: str) -> None:
    """Each can be had from where the page says, and a name that is not on it is not promised."""
    imported = importlib.import_module(module)
    assert sorted(imported.__all__) == sorted(LISTED[module])
    assert len(set(imported.__all__)) == len(imported.__all__)
    for name in imported.__all__:
        assert hasattr(imported, name), name
    assert set(imported.__all__) <= set(dir(imported))
    with pytest.raises(AttributeError):
        _ = imported.no_such_name


@pytest.mark.parametrize("module", LISTED)
def test_every_public_name_says_what_it_is(module: str) -> None:
    """In its docstring, and so do the methods of a public class."""
    imported = importlib.import_module(module)
    for name in imported.__all__:
        value = getattr(imported, name)
        if inspect.isclass(value) or inspect.isroutine(value) or name == "esp32_boards":
            # What a dataclass makes up for want of a docstring repeats its fields.
            assert value.__doc__, name
            assert not value.__doc__.startswith(f"{name}("), name
        else:
            assert stated(imported, name), name
        if inspect.isclass(value):
            for method, member in vars(value).items():
                if not method.startswith("_") and inspect.isroutine(member):
                    assert member.__doc__, f"{name}.{method}"


def stated(module: ModuleType, name: str) -> bool:
    """Whether a constant's assignment is followed by a text."""
    body = ast.parse(inspect.getsource(module)).body
    for statement, after in pairwise(body):
        if isinstance(statement, ast.AnnAssign) and ast.unparse(statement.target) == name:
            return isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    return False


def test_importing_the_package_loads_nothing_else(tmp_path: Path) -> None:
    """Nor does asking for the simulator's package, which pyserial does on every machine."""
    code = (
        "import sys, ota_service, esp32_sim\n"
        "print([name for name in sys.modules if name.startswith(('ota_service.', 'esp32_sim.'))])"
    )
    done = run(tmp_path, "-c", code)
    assert done.stdout == "[]\n", done.stderr


def test_pytest_is_no_dependency_of_the_package(tmp_path: Path) -> None:
    """Only who asks for the fixture needs it."""
    code = (
        "import sys; sys.modules['pytest'] = None\n"
        "from esp32_sim import *; from ota_service.formats import *\n"
        "from ota_service.errors import *; print(SimProcess.__name__, OtaError.__name__)"
    )
    done = run(tmp_path, "-c", code)
    assert done.stdout == "SimProcess OtaError\n", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("code", "printed"), SCRIPTS, ids=["board", "engine", "formats", "sim"])
def test_the_examples_run_and_print_what_the_page_says(
    code: str, printed: str, tmp_path: Path
) -> None:
    """As they stand, in a folder with nothing in it."""
    (tmp_path / "example.py").write_text(code)
    done = run(tmp_path, "example.py")
    assert (done.stdout, done.stderr, done.returncode) == (printed, "", 0)


@pytest.mark.slow
def test_the_example_test_file_passes(tmp_path: Path) -> None:
    """pytest finds the fixture by what the file itself says, without any other setting, and warns
    of nothing."""
    (example,) = TESTS
    name = re.search(r"(test_\w+\.py)", example)
    assert name is not None
    (tmp_path / name[1]).write_text(example)
    # A folder of its own: in pytest's usual one it would clean up after the tests that ran before.
    own = f"--basetemp={tmp_path / 'temp'}"
    done = run(tmp_path, "-m", "pytest", "-q", "-p", "no:cacheprovider", own, name[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{example.count('def test_')} passed" in done.stdout
    assert "warning" not in (done.stdout + done.stderr).lower()


@pytest.mark.slow
def test_the_examples_are_typed_as_strictly_as_our_own_code(tmp_path: Path) -> None:
    """By the settings, and with what is kept, of `make lint`."""
    for number, (code, _) in enumerate(EXAMPLES):
        (tmp_path / f"example_{number}.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *sorted(tmp_path.glob("*.py"))],
        cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_examples_are_there() -> None:
    """The tests above have something to run."""
    assert len(SCRIPTS) == 4
    assert len(TESTS) == 1
