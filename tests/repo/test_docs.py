# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation says what the code says, and its links lead somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
from pydantic import BaseModel

from ota_service.errors import ERRORS
from ota_service.module.service_attributes import BoardConfig, ServiceConfig
from ota_service.module.verbs import VERBS

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")], key=lambda page: page.relative_to(ROOT)
)


def generator() -> ModuleType:
    """docs/generate.py, which is no package's."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_parts_are_what_the_code_says_today() -> None:
    """`python docs/generate.py` has nothing to write."""
    made = generator()
    for page in made.PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        assert made.generated(text) == text, f"{page}: run python docs/generate.py"
    for page, make in made.WHOLE.items():
        assert (ROOT / page).read_text(encoding="utf-8") == make(), f"{page}: the same"


def test_every_generated_part_has_its_place() -> None:
    """And each attribute and argument has a sentence, with its bounds where it has some."""
    made = generator()
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in made.PAGES)
    placed = re.findall(r"<!-- generated: ([a-z-]+) -->", text)
    assert sorted(placed) == sorted(made.BLOCKS)
    models: list[type[BaseModel]] = [ServiceConfig, BoardConfig]
    for model in models + [verb.arguments for verb in VERBS.values()]:
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"
            assert "{range}" not in made.description(field)
    for name, field in ServiceConfig.model_fields.items():
        bounded = bool(list(made.bounds(field)))
        assert bounded == ("{range}" in (field.description or "")), name


def test_every_error_is_in_the_troubleshooting() -> None:
    """A person who meets a code finds it: its row, under whose fault it is; README leads there, and
    has no lexicon of its own."""
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    met_most, _, everything = text.partition("\n## All of them\n")
    rows = re.findall(r"^\| `([a-z-]+)` \|", everything, re.M)
    assert sorted(rows) == sorted(ERRORS)
    frequent = re.findall(r"^\| `([a-z-]+)` \|", met_most, re.M)
    assert len(frequent) >= 10
    assert set(frequent) <= set(ERRORS)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "](docs/errors.md)" in readme
    assert not re.search(r"^\| `[a-z-]+` \|", readme, re.M)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    """Files that are named exist, and so do the headings in them."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        assert path.exists(), target
        if anchor and path.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, target
