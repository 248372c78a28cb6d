# SPDX-License-Identifier: GPL-3.0-or-later
"""The pages of the command say what it can do, and their examples are commands that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ota_service.cli.main import SUBCOMMANDS, cli
from ota_service.cli.remote import remote
from ota_service.dashboard.server import VERBS
from ota_service.module.verbs import VERBS as SERVICE_VERBS

ROOT = Path(__file__).parents[2]
PAGES = ("docs/command.md", "docs/dashboard.md")


def examples() -> Iterator[str]:
    """Each line of the pages' shell blocks that calls the command."""
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.S):
            for line in block.splitlines():
                yield from re.findall(r"esp32-ota [^#>)]+", line)


def find(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words call, and the words behind its name."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, words
        command, words = found, words[1:]
    return command, words


@pytest.mark.parametrize("example", [e for e in examples() if "COMMAND" not in e])
def test_the_examples_can_be_called(example: str) -> None:
    """Subcommands, verbs and options of each exist."""
    command, words = find(shlex.split(example)[1:])
    known = {option for param in command.params for option in param.opts}
    assert {word for word in words if word.startswith("--")} <= known


def test_every_subcommand_and_verb_is_described() -> None:
    """A reader of the page misses nothing."""
    page = (ROOT / "docs/command.md").read_text()
    for name in SUBCOMMANDS:
        assert re.search(rf"`{name}[ `]", page), name
    for name in remote.commands:
        assert re.search(rf"\| `{name}[ `]", page), name
    assert set(remote.commands) == set(SERVICE_VERBS) - {"help", "flash"} | {"watch"}


def test_the_page_of_the_dashboard_names_what_it_may_ask_for() -> None:
    """And nothing that it may not."""
    text = " ".join((ROOT / "docs/dashboard.md").read_text().split())
    said = text.split("The page can ask for ")[1].split(", and nothing else")[0]
    assert set(re.findall(r"`(\w+)`", said)) == set(VERBS)


def test_the_picture_is_small_enough_to_be_looked_at() -> None:
    """A page that loads slowly is not read."""
    for page in PAGES:
        for name in re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / page).read_text()):
            picture = ROOT / "docs" / name
            assert picture.read_bytes()[:4] == b"\x89PNG"
            assert picture.stat().st_size < 300_000
