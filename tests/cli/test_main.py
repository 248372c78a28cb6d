# SPDX-License-Identifier: GPL-3.0-or-later
"""The command `esp32-ota` from outside: help, exit codes, and its first subcommands."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ota_service.board.ports import PortInfo
from ota_service.cli.main import SUBCOMMANDS, cli
from ota_service.cli.ports import describe, looks_like

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "ota_service.cli.main", *arguments],
        cwd=ROOT / "src",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_names_every_subcommand() -> None:
    """With one line each, and exit code 0."""
    done = run("--help")
    assert done.returncode == 0
    for name, (_, _, line) in SUBCOMMANDS.items():
        assert f"  {name} " in done.stdout
        assert line.split()[0] in done.stdout
    assert "  sim " in done.stdout


@pytest.mark.parametrize("name", [*SUBCOMMANDS, "sim"])
def test_every_subcommand_has_help(name: str) -> None:
    """It says what it does and what it takes."""
    done = run(name, "--help")
    assert done.returncode == 0
    assert "--" in done.stdout


def test_wrong_usage_is_exit_code_2() -> None:
    """Scripts tell it from a failure."""
    assert run("nonsense").returncode == 2
    assert run("ports", "--nonsense").returncode == 2


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_the_line_in_the_list_is_the_subcommands_own(name: str) -> None:
    """The list does not import the subcommands, so it has a copy of their first line."""
    command = cli.get_command(cli.make_context("esp32-ota", [name]), name)
    assert command is not None
    assert (command.help or "").startswith(SUBCOMMANDS[name][2])


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
