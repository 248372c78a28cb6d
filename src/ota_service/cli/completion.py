# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota completion SHELL`: lets the shell complete subcommands, options and ports."""

from __future__ import annotations

import os

import click

PROGRAM = "esp32-ota"
SHELLS = ("bash", "zsh", "fish")


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
    chosen = shell or os.path.basename(os.environ.get("SHELL", ""))
    if chosen not in SHELLS:
        raise click.UsageError(f"Name one of the shells {', '.join(SHELLS)}.")
    click.echo(script(chosen), nl=False)


def script(shell: str) -> str:
    """What a shell is to evaluate."""
    from click.shell_completion import get_completion_class

    from ota_service.cli.main import cli

    kind = get_completion_class(shell)
    assert kind is not None
    return kind(cli, {}, PROGRAM, "_ESP32_OTA_COMPLETE").source()
