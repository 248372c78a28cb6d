# SPDX-License-Identifier: GPL-3.0-or-later
"""Texts from boards, servers and files on their way to a person: each row a text, and each is to
be seen as what it is. It commands no terminal, makes no line of its own, and is no markup."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Group
from rich.progress import Progress, TextColumn
from rich.text import Text
from viam.utils import struct_to_dict

from ota_service.cli.live import Live, frame
from ota_service.cli.main import fail
from ota_service.cli.output import clean, errors_of, facts, out, print_json, say, table
from ota_service.cli.ports import table_of
from ota_service.cli.report import history_table, plan_table, print_run, print_status
from ota_service.client.failure import Failure
from ota_service.client.machine import Access, Machine
from ota_service.errors import OtaError
from ota_service.firmware import secrets
from ota_service.formats.text import UNSEEN as UNSEEN_CHARS
from ota_service.formats.text import visible
from ota_service.link.ports import PortInfo
from ota_service.module.discovery import OtaDiscovery
from ota_service.module.findings import Finding
from ota_service.module.logs import set_up_logging
from ota_service.module.plain import plain
from ota_service.module.sensor import OtaSensor
from tests.support.command import here

UNSEEN: dict[str, str] = {
    "\x1b[31mred\x1b[0m": r"\x1b[31mred\x1b[0m",
    "\x1b]8;;http://evil/\x07click\x1b]8;;\x07": r"\x1b]8;;http://evil/\x07click\x1b]8;;\x07",
    "\x9b2Jgone": r"\x9b2Jgone",
    "\x90q\x9c": r"\x90q\x9c",
    "a\nb: updated": r"a\nb: updated",
    "a\r\nb": r"a\r\nb",
    "a\rb": r"a\rb",
    "a\tb": r"a\tb",
    "a\x0bb\x0cc": r"a\x0bb\x0cc",
    "a\x85b": r"a\x85b",
    "a\u2028b\u2029c": r"a\u2028b\u2029c",
    "a\x00b\x07c\x08d": r"a\x00b\x07c\x08d",
    "a\x7fb": r"a\x7fb",
    "\u202etxet\u202c": r"\u202etxet\u202c",
    "\u2066x\u2069": r"\u2066x\u2069",
    "a\u200bb\u200ec\ufeffd": r"a\u200bb\u200ec\ufeffd",
    "a\udc80b": r"a\udc80b",
    "a\U000e0041b": r"a\U000e0041b",
}
"""What is written for what cannot be seen."""

MARKUP = ("[red]x[/red]", "[link=http://evil/]x[/link]", "[/]", "[bold", ":warning:", "\\[x]",
          "ünïcödé ✓ 漢字 é")  # fmt: skip
"""What is seen as it is."""

ROWS = [*UNSEEN.items(), *((text, text) for text in MARKUP)]
MOVING = ("live", "a bar's name")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def status(text: str) -> dict[str, Any]:
    """A status that has it wherever a service could put it."""
    error = {"code": text, "message": text, "remedy": text}
    board = {"state": text, "version": text, "port": text, "mac": text, "target": {"version": text},
             "running": {"slot": text, "project": text, "app_version": text},
             "error": error}  # fmt: skip
    return {"state": text, "boards": {text: board, "b": {"state": "updating", "phase": text}},
            "target": {"url": text, "version": text, "project": text, "chip": text,
                       "app_version": text, "size_bytes": 1, "notice": text},
            "run": {"id": text, "outcome": text, "started_at": text, "trigger": text,
                    "target": {"version": text, "purpose": text}, "error": error,
                    "boards": {text: {"outcome": text, "from": text, "to": text, "error": error}}},
            "error": error}  # fmt: skip


def live(text: str) -> None:
    """The bars of an update, or their lines."""
    with Live(out(), None) as shown:
        shown.show(status(text))


def failed(text: str) -> None:
    """The last words of the command."""
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(sys.stdout):
        fail(text)


def bar_name(text: str) -> None:
    """What a bar is called."""
    column = TextColumn("{task.description}", markup=False)
    with Progress(column, console=out(), auto_refresh=False) as bars:
        bars.add_task(text)


PLACES: dict[str, Callable[[str], object]] = {
    "a line": lambda text: out().print(text),
    "a styled line": lambda text: out().print(f"x {text}", style="bold", soft_wrap=True),
    "parts of a text": lambda text: out().print(Text.assemble(("a ", "bold"), (text, "red"))),
    "a line without a style": lambda text: say(text),
    "an error": failed,
    "a table": lambda text: out().print(_table(text)),
    "a group": lambda text: out().print(Group(Text(text), _table(text), facts({text: text}))),
    "a status": lambda text: print_status(out(), status(text)),
    "a run": lambda text: print_run(out(), status(text)["run"]),
    "a history": lambda text: out().print(history_table([status(text)["run"]])),
    "a plan": lambda text: out().print(plan_table({text: {"action": text, "reason": text}})),
    "errors": lambda text: out().print(errors_of(status(text)["boards"])[0]),
    "a live frame": lambda text: out().print(frame(status(text), None, columns=120, lines=20)),
    "live": live,
    "a bar's name": bar_name,
    "ports": lambda text: out().print(table_of([PortInfo(text, by_path=text)])),
}


def _table(text: str) -> Any:
    made = table(text, "b")
    made.add_row(text, Text(text))
    return made


class Terminal(io.StringIO):
    """Where something is printed to."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        """As it was said."""
        return self._is_terminal


def printed(show: Callable[[str], object], text: str, *, is_terminal: bool) -> str:
    """What a person gets, without rich's own colours."""
    stream = Terminal(is_terminal=is_terminal)
    with contextlib.redirect_stdout(stream):
        show(text)
    return stream.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_every_text_is_seen_as_it_is(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a pipe and on a terminal."""
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    usual = {on: printed(PLACES[place], "x", is_terminal=on) for on in (False, True)}
    for text, seen in ROWS:
        # rich leaves some controls out by itself, and an error is one line of words.
        told = [seen, visible(re.sub("[\a\b\v\f\r]", "", text)), clean(" ".join(text.split()))]
        for on, other in usual.items():
            got = printed(PLACES[place], text, is_terminal=on)
            left = COLOURS.sub("", got)
            if place in MOVING:
                left = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]|\r", "", left)  # rich's own movements
            else:
                assert got.count("\n") == other.count("\n"), (text, got)
            if "live" not in place:  # which cuts it off
                assert any(one in left for one in told), (text, got)
            assert not UNSEEN_CHARS.search(left.replace("\n", "")), (text, got)


def test_json_is_valid_and_the_same_for_a_program() -> None:
    """And commands no terminal either."""
    for text, _ in ROWS:
        value = {text: [text, {"a": text}], "n": 1.5, "none": None, "yes": True}
        got = printed(print_json, value, is_terminal=True)  # type: ignore[arg-type]
        assert json.loads(got) == value
        assert not UNSEEN_CHARS.search(got.replace("\n", "")), got


def test_no_secret_is_printed_in_any_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever raised, and however it wrote what it was given."""
    monkeypatch.setattr(secrets, "_forms", {})
    monkeypatch.setattr(secrets, "_pattern", None)
    secrets.learn("https://me:correct%20horse@h/app.bin?token=abcdefghijklmnop")
    shows = {**PLACES, "json": lambda text: print_json({"a": [text]})}
    for place, show in shows.items():
        for secret in ("correct horse", "correct%20horse", "abcdefghijklmnop"):
            got = printed(show, f"x {secret} y", is_terminal=False)
            assert secret not in got, place


def test_the_key_of_a_machine_is_in_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the SDK says; neither at the terminal nor on the page."""
    monkeypatch.setattr(secrets, "_forms", {})
    monkeypatch.setattr(secrets, "_pattern", None)
    Machine(Access("h:1", api_key="k3y-of-the-machine", api_key_id="id"))
    failure = Failure("h:1 said: k3y-of-the-machine\x1b[1m is wrong.", code="refused")
    for told in (str(failure), failure.to_dict()["message"], repr(failure)):
        assert "k3y-of-the-machine" not in told
        assert "\x1b" not in told


def test_wrong_usage_quotes_no_name_as_it_stands() -> None:
    """A file's name may come from an archive, by a pattern of the shell."""
    for text, _ in ROWS[:4]:
        for arguments in (("image", "inspect", f"/none/{text}"), ("inspect", "/dev/x", text)):
            done = here(*arguments)
            assert done.code == 2
            assert not UNSEEN_CHARS.search(done.err.replace("\n", "")), done.err


def test_replies_and_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    """Of the module: what the page and viam-server's log get. Names of entries are texts, too."""
    made = logging.getLogRecordFactory()
    try:
        set_up_logging()
        factory = logging.getLogRecordFactory()
        for text, seen in ROWS:
            assert plain({text: [text]}) == {seen: [seen]}
            record = factory("x", logging.INFO, "x", 1, "says %s", (text,), None)
            assert record.getMessage() == f"says {seen}"
    finally:
        logging.setLogRecordFactory(made)


async def test_the_companions_replies(monkeypatch: pytest.MonkeyPatch) -> None:
    """What discovery and the sensor pass on of a board."""
    finder, sensor = OtaDiscovery("find", []), OtaSensor("sensor", "OTA")
    for text, seen in ROWS:
        info = PortInfo("/dev/ttyUSB0", serial_number=text, product=text, vid=0x10C4)
        problem = OtaError("internal", text, remedy=text)
        finding = Finding(
            "/dev/ttyUSB0", info, version=text, project=text, app_version=text, problem=problem
        )

        async def find(*, probe: bool, found: Finding = finding) -> list[Finding]:
            return [found, replace(found, problem=None, mac="24:0a:c4:00:00:01")]

        async def statuses(text: str = text) -> dict[str, Any]:
            return {"OTA": status(text)}

        monkeypatch.setattr(finder, "find", find)
        monkeypatch.setattr("ota_service.module.sensor.statuses", statuses)
        replies: list[Any] = [
            await finder.do_command({"command": "discover"}),
            [struct_to_dict(one.attributes) for one in await finder.discover_resources()],
            await sensor.get_readings(),
        ]
        for reply in replies:
            told = list(texts(reply))
            assert any(seen in one for one in told), told
            for one in told:
                assert not UNSEEN_CHARS.search(one), told


def texts(value: Any) -> Iterator[str]:
    """Every text in a reply."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from value.keys()
        for item in value.values():
            yield from texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from texts(item)
