# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `esp32-ota` from outside: help, exit codes, and its first subcommands."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ota_service import __version__
from ota_service.cli.main import FIRST_STEPS, SUBCOMMANDS, cli, main
from ota_service.cli.ports import describe, looks_like
from ota_service.link.ports import PortInfo
from tests.support.command import here

ROOT = Path(__file__).parents[2]


def run(env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "ota_service.cli.main"],
        cwd=ROOT / "src",
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_subcommand() -> None:
    """With one line each, and exit code 0."""
    done = here("--help")
    assert done.code == 0
    for name, (_, line) in SUBCOMMANDS.items():
        assert f"  {name} " in done.out
        assert line.split()[0] in done.out


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_every_subcommand_has_help(name: str) -> None:
    """It says what it does and what it takes."""
    done = here(name, "--help")
    assert done.code == 0
    assert "--" in done.out


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["inspct"], "No such command 'inspct'. Did you mean inspect?"),
        (["status"], "No such command 'status'. Did you mean remote status?"),
        (["xyzzy"], "No such command 'xyzzy'.\n"),
        (["remote", "hstory"], "Did you mean 'history'?"),
        (["inspect", "--bauds", "1", "/dev/ttyUSB0"], "Did you mean '--baud'?"),
        (["update", "/dev/ttyUSB0", "--sha256", "abc"], "'--sha256': give 64 hex digits"),
    ],
)
def test_a_slip_is_wrong_usage_that_names_what_is_near(given: list[str], words: str) -> None:
    """And no failure of the board's or the file's: scripts tell it by its exit code."""
    done = here(*given)
    assert done.code == 2
    assert words in done.err


@pytest.mark.parametrize(
    ("port", "words"),
    [
        ("/dev/null", "is not a serial port. "),
        (__file__, "is not a serial port. "),
        ("/dev/ttyUSB77", "does not exist. "),
    ],
)
def test_what_is_no_port_is_told_in_one_line(port: str, words: str) -> None:
    """With the remedy, and before anything is said to be restarted. /dev/null is open in half of
    all processes, none of which is to be closed."""
    done = here("inspect", port)
    assert (done.code, done.out) == (1, "")
    (error,) = done.err.splitlines()
    assert f"{port} {words}" in error
    assert error.endswith("[port-missing]")


@pytest.mark.parametrize("system", ["darwin", "win32"])
@pytest.mark.parametrize("call", ["import main; main.main()", "import ota_service.__main__"])
def test_another_system_gets_one_sentence(system: str, call: str) -> None:
    """Instead of a trace about a module that it has not."""
    missing = ("fcntl", "grp", "pwd", "resource", "termios", "tty")
    code = f"import sys, asyncio; sys.modules |= dict.fromkeys({missing}); "
    code += f"sys.platform = {system!r}; {call}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT / "src", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"ota_service runs on Linux alone, and this system is {system}: ")


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_the_line_in_the_list_is_the_subcommands_own(name: str) -> None:
    """The list does not import the subcommands, so it has a copy of their first line."""
    command = cli.get_command(cli.make_context("esp32-ota", [name]), name)
    assert command is not None
    assert (command.help or "").startswith(SUBCOMMANDS[name][1])


def test_ports_prints_json() -> None:
    """Whatever this machine has: a list of objects with a port each."""
    done = CliRunner().invoke(cli, ["ports", "--json"])
    assert done.exit_code == 0
    for port in json.loads(done.output):
        assert port["port"]
        assert isinstance(port["likely_esp32"], bool)


def test_a_port_in_words() -> None:
    """Only Espressif's own USB is an ESP32 for certain."""
    native = PortInfo("/dev/ttyACM0", vid=0x303A, pid=0x1001, serial_number="24:0A:C4:12:34:56")
    assert looks_like(native) == "ESP32 (its own USB)"
    assert describe(native)["mac"] == "24:0a:c4:12:34:56"
    bridge = PortInfo("/dev/ttyUSB0", vid=0x1A86, pid=0x7523)
    assert looks_like(bridge) == "perhaps an ESP32 (CH34x bridge)"
    assert "mac" not in describe(bridge)
    assert looks_like(PortInfo("/dev/ttyS0")) == "unknown"


def test_a_first_use_shows_how_to_begin() -> None:
    """Without arguments: examples and the subcommands, within 80 columns, exit code 0."""
    done = run()
    assert done.returncode == 0
    for _, example in FIRST_STEPS:
        assert example in done.stdout
    for name in SUBCOMMANDS:
        assert f"  {name} " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("step", FIRST_STEPS)
def test_the_examples_of_a_first_use_are_valid(step: tuple[str, str]) -> None:
    """Each is a subcommand with options that it has."""
    _, name, *arguments = step[1].split()
    command = cli.get_command(cli.make_context("esp32-ota", [name]), name)
    assert command is not None
    for word in arguments:
        if word.startswith("--") and name != "remote":
            assert any(word in param.opts for param in command.params), word


def test_the_version_is_told() -> None:
    """For reports."""
    done = here("--version")
    assert (done.code, done.out) == (0, f"esp32-ota {__version__}\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_printed_for_each_shell(shell: str) -> None:
    """What the shell evaluates calls this command for its words."""
    done = here("completion", shell)
    assert done.code == 0
    assert "_ESP32_OTA_COMPLETE" in done.out
    assert "esp32-ota" in done.out


@pytest.mark.slow
def test_words_are_completed() -> None:
    """Subcommands and options, in the way that click's script asks for them."""
    env = {**os.environ, "_ESP32_OTA_COMPLETE": "bash_complete"}

    def words(line: str) -> list[str]:
        asked = {**env, "COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
        done = run(env=asked)
        return [row.partition(",")[2] for row in done.stdout.splitlines()]

    assert words("esp32-ota in") == ["inspect"]
    assert "status" in words("esp32-ota remote st")
    assert words("esp32-ota update --versi") == ["--version"]


@pytest.mark.slow
def test_a_dashboard_on_a_port_in_use_is_told_in_one_line() -> None:
    """With what to do, and a code of the table."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = here("dashboard", "--address", "127.0.0.1:9", "--port", str(port))
    assert done.code == 1
    (line,) = done.err.splitlines()
    assert line.startswith(f"Error: Port {port} of 127.0.0.1 cannot be listened at (")
    assert line.endswith("[address-in-use]")


def test_an_unforeseen_failure_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And says how to see more, instead of a trace."""

    def broken() -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr("ota_service.cli.ports.list_ports", broken)
    monkeypatch.delenv("ESP32_OTA_DEBUG", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["ports"])
    assert ended.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: RuntimeError: no such luck")
    assert "ESP32_OTA_DEBUG=1" in line


@pytest.mark.parametrize("stop", [KeyboardInterrupt, click.Abort])
def test_ctrl_c_ends_in_our_words(
    stop: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with a code, at a question as well."""

    def interrupted() -> None:
        raise stop

    monkeypatch.setattr("ota_service.cli.ports.list_ports", interrupted)
    done = here("ports")
    assert (done.code, done.err) == (1, "Error: Stopped. [cancelled]\n")
