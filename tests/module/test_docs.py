# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples of the documentation are accepted by the code that they document."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ota_service.module.config import parse_config
from ota_service.module.models import MODELS
from ota_service.module.verbs import VERBS, parse_command

ROOT = Path(__file__).parents[2]
PAGES = ("README.md", "docs/firmware.md", "docs/ota_service.md")


def examples(page: str) -> list[dict[str, Any]]:
    """The JSON blocks of a page; one that is no JSON fails here. What viam-server puts in is in."""
    text = re.sub(r"\$\{packages[^}]*\}", "/packages/one", (ROOT / page).read_text())
    return [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.S)]


@pytest.mark.parametrize("page", [*sorted(ROOT.glob("docs/*.md")), ROOT / "README.md"])
def test_commands_in_a_sentence_are_commands(page: Path) -> None:
    """And every block is JSON; those of whole sections are carried out elsewhere."""
    text = " ".join(page.read_text().split())
    for command in re.findall(r'`(\{"command": [^`]*\})`', text):
        if not re.search(r"VERB|NAME|\.\.", command):
            parse_command(json.loads(command))
    for block in examples(str(page.relative_to(ROOT))):
        if "command" in block and page.name == "README.md":
            parse_command(block)


@pytest.mark.parametrize("page", PAGES)
def test_the_configurations_are_valid(page: str) -> None:
    """They are copied into machines as they stand."""
    attributes = [block for block in examples(page) if "url" in block]
    for block in examples(page):
        for service in block.get("services", []):
            assert service["model"] in {str(model) for model in MODELS}
            attributes.append(service["attributes"])
    assert attributes
    for given in attributes:
        parse_config(given)


def test_the_commands_exist_and_every_verb_has_its_section() -> None:
    """Each verb is described with a command that works, and with all its arguments."""
    page = (ROOT / "docs/ota_service.md").read_text()
    shown = {
        parse_command(block)[0] for block in examples("docs/ota_service.md") if "command" in block
    }
    assert shown == VERBS.keys()
    for verb in VERBS.values():
        section = page.split(f"### {verb.name}\n")[1].split("\n### ")[0]
        for argument in verb.arguments.model_fields:
            assert argument in section, f"{verb.name} {argument}"
