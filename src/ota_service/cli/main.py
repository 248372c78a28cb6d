# SPDX-License-Identifier: GPL-3.0-or-later
"""The `esp32-ota` command: what a person at a terminal calls.

Exit codes: 0 done, 1 failed, 2 wrong usage. Each subcommand imports what it needs when it is
called, so that `--help` answers at once; `SUBCOMMANDS` says where each one is.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from ota_service import __version__
from ota_service.cli.output import clean, say
from ota_service.client.failure import Failure
from ota_service.client.remedies import line_of
from ota_service.errors import OtaError

PROGRAM = "esp32-ota"
EXIT_FAILED = 1
PURPOSE = "Updates the firmware of the ESP32 boards that are attached to this computer."
COMPLETE = "_ESP32_OTA_COMPLETE"
"""Environment variable by which a shell's script asks for its words."""
SHELLS = ("bash", "zsh", "fish")
DEBUG = "ESP32_OTA_DEBUG"
"""Environment variable that shows the trace of an unforeseen failure, and logs."""

FIRST_STEPS = (
    ("See what is attached", "esp32-ota ports"),
    ("See what is on a board", "esp32-ota inspect /dev/ttyUSB0"),
    ("Update it", "esp32-ota update /dev/ttyUSB0 --file app.bin"),
    ("Update all that are here", "esp32-ota update --all --file app.bin"),
    ("Watch a machine", "esp32-ota remote watch --address localhost:8080"),
    ("The same as a page", "esp32-ota dashboard --address localhost:8080"),
    ("Try it without a board", "esp32-ota sim --boards 2 --dir /tmp/boards"),
)

# Name -> module of its click command, which has its name, and its line in `--help`.
SUBCOMMANDS: dict[str, tuple[str, str]] = {
    "backup": (
        ".whole_board",
        "Keep the NVS, otadata and partition table of the board at PORT in DIR. Restarts it.",
    ),
    "restore": (
        ".whole_board",
        "Put the backup in DIR back to the board at PORT, as far as the board starts with it.",
    ),
    "flash": (
        ".whole_board",
        "Write the Merged Binary FILE to the board at PORT: everything on it is replaced.",
    ),
    "image": (".image", "Look into firmware files; make App Images and Merged Binaries."),
    "ports": (".ports", "List serial ports, and which look like ESP32 boards. Opens none."),
    "manifest": (".manifest", "Write a manifest: several firmwares that belong together."),
    "repo": (".repo", "Make and keep a signed repository of firmware (TUF)."),
    "trust": (".trust", "Whose firmware this host takes: show it, and add to it."),
    "serve": (
        ".serve",
        "Serve the App Image or manifest FILE over http, and print its url and what to configure.",
    ),
    "inspect": (".inspect", "Show what is on attached boards. Restarts them."),
    "update": (".local", "Update attached boards, without Viam. Restarts them."),
    "stage": (
        ".local",
        "Write a firmware into boards' spare slots, for `activate`. Restarts them.",
    ),
    "activate": (
        ".local",
        "Switch boards to what is staged on them, in about a second. Restarts them.",
    ),
    "version": (".local", "Read the version in boards' NVS. Restarts them."),
    "verify": (".local", "Check whether boards run a firmware, by its digest. Restarts them."),
    "rollback": (".local", "Go back to the firmware in boards' other slots. Restarts them."),
    "remote": (
        ".remote",
        "Command and watch the OTA service of a machine, through the Viam SDK.",
    ),
    "dashboard": (".dashboard", "Show boards on a page, live: a machine's, or those here."),
    "rollout": (
        ".rollout",
        "Bring a firmware to many machines, in waves, through Viam's app.",
    ),
    "sim": ("esp32_sim.command", "Run simulated boards until stopped; prints one port url a line."),
    "completion": (".main", "Print what lets a shell complete this command."),
}


class LazyGroup(click.Group):
    """The subcommands of `SUBCOMMANDS`, which are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Every subcommand's name."""
        return sorted(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The subcommand, imported now."""
        if cmd_name not in SUBCOMMANDS:
            return None
        module = importlib.import_module(SUBCOMMANDS[cmd_name][0], "ota_service.cli")
        command: click.Command = getattr(module, cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it; a slip is answered with the names that are near, or where the
        name belongs."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            name = args[0]
            near = difflib.get_close_matches(name, SUBCOMMANDS)
            for group in ("remote", "image"):
                command = self.get_command(ctx, group)
                if isinstance(command, click.Group) and name in command.commands:
                    near.append(f"{group} {name}")
            hint = f" Did you mean {' or '.join(sorted(near))}?" if near else ""
            ctx.fail(f"No such command '{name}'.{hint}")

    def invoke(self, ctx: click.Context) -> Any:
        """As click does it; what is said of wrong usage may quote the name of a file, and Ctrl-C
        ends in our words."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort):
            raise Failure("Stopped.", code="cancelled") from None
        except click.ClickException as error:
            vars(error)["message"] = clean(error.message)
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of subcommands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, SUBCOMMANDS[name][1]) for name in sorted(SUBCOMMANDS)])


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Updates the firmware of the ESP32 boards that are attached to this computer.

    Every subcommand has --help. Exit codes: 0 done, 1 failed, 2 wrong usage.
    """
    if ctx.invoked_subcommand is None:
        click.echo(first_use(ctx))


def first_use(ctx: click.Context) -> str:
    """What a person sees who calls the command alone: what it is for, and how to begin."""
    formatter = ctx.make_formatter()
    formatter.write(f"{PURPOSE}\n")
    with formatter.section("To begin"):
        formatter.write_dl([(f"{words}:", command) for words, command in FIRST_STEPS])
    assert isinstance(ctx.command, LazyGroup)
    ctx.command.format_commands(ctx, formatter)
    formatter.write_paragraph()
    formatter.write("esp32-ota COMMAND --help says more.\n")
    return formatter.getvalue().rstrip("\n")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS), required=False)
def completion(shell: str | None) -> None:
    """Print what lets a shell complete this command.

    \b
    bash:  eval "$(esp32-ota completion bash)"   in ~/.bashrc
    zsh:   eval "$(esp32-ota completion zsh)"    in ~/.zshrc, below compinit
    fish:  esp32-ota completion fish > ~/.config/fish/completions/esp32-ota.fish

    Without SHELL: for the shell that runs this.
    """
    from click.shell_completion import get_completion_class

    chosen = shell or os.path.basename(os.environ.get("SHELL", ""))
    kind = get_completion_class(chosen) if chosen in SHELLS else None
    if kind is None:
        raise click.UsageError(f"Name one of the shells {', '.join(SHELLS)}.")
    click.echo(kind(cli, {}, PROGRAM, COMPLETE).source(), nl=False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with `arguments` (default: the process's own) and exit."""
    try:
        cli.main(
            args=arguments,
            prog_name=PROGRAM,
            complete_var=COMPLETE,
        )
    except OtaError as error:
        fail(line_of(error))
    except Failure as error:
        fail(str(error))
    except Exception as error:
        if os.environ.get(DEBUG):
            traceback.print_exc()
        told = OtaError.unforeseen(error)
        if told.code != "internal":
            fail(line_of(told))
        fail(
            f"{type(error).__name__}: {error} This was not foreseen: please report it, with what "
            f"{DEBUG}=1 shows in addition. [internal]"
        )


def fail(message: str) -> NoReturn:
    """Say what went wrong in one line, and exit with code 1."""
    say(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
