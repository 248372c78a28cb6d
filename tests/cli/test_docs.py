# SPDX-License-Identifier: GPL-3.0-or-later
"""The pages of the command say what it can do, and every command on any page is one that exists."""

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
PAGES = ("README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")))
OTHERS = ("mkdir", "sudo", "export", "eval", "viam", "espsecure")
"""Programs that are not ours, with which a line may begin."""
MAKEFILE = (ROOT / "Makefile").read_text()


def lines() -> Iterator[str]:
    """Each line of the pages' shell blocks, without its comment."""
    for page in sorted(PAGES):
        for block in re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(), re.S):
            for line in block.splitlines():
                if text := re.sub(r"(^|\s)#.*", "", line).strip():
                    yield text


def examples() -> Iterator[str]:
    """Each call of the command."""
    for line in lines():
        yield from re.findall(r"(?<![-\w])esp32-ota(?: [^>)]+|$)", line)


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


def test_every_line_begins_with_a_program_that_is_known() -> None:
    """The others are the command's, and those of make."""
    words = {line.split()[0] for line in lines()}
    assert {word for word in words if Path(word).name != "esp32-ota"} <= {"make", *OTHERS}


def test_the_targets_of_make_exist_and_take_what_is_given() -> None:
    """Each variable stands in the recipe, or goes to the program that the target starts."""
    calls = [call for line in lines() for call in re.findall(r"(?:^|&& )make ([a-z][^&]*)", line)]
    assert len(calls) > 10
    for call in calls:
        target, *given = call.split()
        recipe = re.search(rf"^{target}: ##.*\n((?:\t.*\n)+)", MAKEFILE, re.M)
        assert recipe is not None, call
        for variable in given:
            assert f"$({variable.partition('=')[0]})" in recipe[1], call


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


def test_the_pictures_are_small_enough_to_be_looked_at() -> None:
    """A page that loads slowly is not read; none loads anything from elsewhere."""
    shown = [
        (ROOT / page).parent / name
        for page in PAGES
        for name in re.findall(r"!\[.*?\]\((.*?)\)", (ROOT / page).read_text())
    ]
    assert {picture.suffix for picture in shown} == {".png", ".svg"}
    for picture in shown:
        data = picture.read_bytes()
        assert data.startswith((b"\x89PNG", b"<svg ")), picture
        assert len(data) < 300_000
        assert not re.search(rb"url\(|href=|src=", data.replace(b"url(#", b"")), picture
