# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota repo`: a signed repository of firmware, in a folder for any web server."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from ota_service.building import repository
from ota_service.cli.output import facts, files, json_option, out, print_json, table
from ota_service.firmware.files import FIRMWARE_BYTES, read_file

_FOLDER = click.Path(file_okay=False, path_type=Path)
folder_argument = click.argument("folder", metavar="DIR", type=_FOLDER)
keys_option = click.option("--keys", type=_FOLDER, metavar="FOLDER",
                           help="Where keys and first root are; default: DIR-keys.")  # fmt: skip


@click.group()
def repo() -> None:
    """Make and keep a signed repository of firmware (TUF).

    \b
    esp32-ota repo init firmware
    esp32-ota repo add firmware build/app.bin
    esp32-ota serve firmware            (or any web server)

    Then, on each host: esp32-ota trust install http://SERVER/. Keep the folder of keys away from
    the server, and a copy of it somewhere safe: who has lost it can publish nothing any more.
    """


def _password() -> str:
    return str(click.prompt("Password of the keys", hide_input=True, err=True))


@repo.command(short_help="Make an empty repository and its keys.")
@folder_argument
@keys_option
@click.option("--encrypt", is_flag=True, help="Ask for a password, and encrypt the keys with it.")
@json_option
def init(folder: Path, keys: Path | None, encrypt: bool, as_json: bool) -> None:
    """Make an empty repository in DIR, and a key for each of its roles beside it.

    Its root and targets are valid for 365 days, its snapshot and timestamp for 90; `repo refresh`
    renews them.
    """
    keys = keys or repository.keys_folder(folder)
    password = None
    if encrypt:
        password = click.prompt("Password for the keys", hide_input=True, err=True,
                                confirmation_prompt=True)  # fmt: skip
    with files():
        made = repository.create(folder, keys, password)
    if as_json:
        print_json({"folder": str(folder), "keys": str(keys), "root": made})
        return
    console = out()
    console.print(f"{folder}: an empty repository. Its keys are in {keys}: keep them to yourself.",
                  soft_wrap=True)  # fmt: skip
    show_root(console, made)


def show_root(console: Console, shown: dict[str, Any], *, indent: int = 2) -> None:
    """What people compare."""
    keys = {f"key of {name}": ", ".join(key[:16] + ".." for key in role["keys"])
            + (f", {role['threshold']} of them" if role["threshold"] > 1 else "")
            for name, role in shown["roles"].items()}  # fmt: skip
    # In one piece, however narrow the terminal is.
    console.print(Text(f"{' ' * indent}root's SHA-256: {shown['fingerprint']}"), soft_wrap=True)
    about = {"version": str(shown["version"]), "expires": shown["expires"], **keys}
    console.print(facts(about, indent=indent))


@repo.command(short_help="Publish a firmware.")
@folder_argument
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--version", help="What a configuration must name for it; default: the version in "
              "the app's descriptor.")  # fmt: skip
@click.option("--name", help="What it is called in the url; default: the file's name.")
@keys_option
@json_option
def add(
    folder: Path, file: Path, version: str | None, name: str | None, keys: Path | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Check FILE, an App Image, a Merged Binary or a manifest, sign for it, and put it into DIR.

    Its url is then BASE/targets/NAME. A file of that name is replaced. A manifest comes after its
    images.
    """
    with files():
        made = repository.add(
            folder, keys or repository.keys_folder(folder), read_file(file, FIRMWARE_BYTES),
            name=name or file.name, version=version, ask_password=_password,
        )  # fmt: skip
    if as_json:
        print_json(asdict(made))
        return
    what, chip = made.project or "a manifest", f"for {made.chip}, " if made.chip else ""
    out().print(
        Text(f'targets/{made.name}: {what} as version "{made.version}", {chip}'
             f"{made.size_bytes:,} bytes, SHA-256 {made.sha256}"),
        soft_wrap=True,
    )  # fmt: skip


@repo.command(short_help="Sign anew, so that nothing expires.")
@folder_argument
@keys_option
@json_option
def refresh(folder: Path, keys: Path | None, as_json: bool) -> None:
    """Sign snapshot and timestamp anew; root and targets, too, where less than 90 days are left."""
    with files():
        keys = keys or repository.keys_folder(folder)
        done = repository.refresh(folder, keys, _password)
        _, expires = repository.listed(folder, keys)
    if as_json:
        print_json({"signed": done, "expires": _times(expires)})
    else:
        out().print(f"Signed anew: {', '.join(done)}.")
        out().print(facts({f"{role} expires": at for role, at in _times(expires).items()}))


def _times(expires: dict[str, Any]) -> dict[str, str]:
    return {role: f"{at:%Y-%m-%dT%H:%M:%SZ}" for role, at in expires.items()}


@repo.command("list", short_help="Show what is in it.")
@folder_argument
@keys_option
@json_option
def list_command(folder: Path, keys: Path | None, as_json: bool) -> None:
    """Show the firmwares in DIR, and when its metadata expires."""
    with files():
        entries, expires = repository.listed(folder, keys or repository.keys_folder(folder))
    if as_json:
        print_json({"targets": [asdict(one) for one in entries], "expires": _times(expires)})
        return
    console, shown = out(), table("file", "version", "project", "chip", "size", right=("size",))
    for one in entries:
        row = (one.name, one.version, one.project, one.chip, f"{one.size_bytes:,}")
        shown.add_row(*map(Text, row))
    console.print(shown)
    console.print(facts({f"{role} expires": at for role, at in _times(expires).items()}))


@repo.command(short_help="Check everything as a host would.")
@folder_argument
@keys_option
@json_option
def verify(folder: Path, keys: Path | None, as_json: bool) -> None:
    """Take each firmware in DIR as a host would that has its first root. Exit code 1: not all.

    That root (1.root.json) lies with the keys; none of these is needed here.
    """
    with files():
        good, problems = repository.verify(folder, keys or repository.keys_folder(folder))
    if as_json:
        print_json({"ok": not problems, "good": good, "problems": problems})
    else:
        console = out()
        for name in good:
            console.print(Text(f"{name}: good", "green"), soft_wrap=True)
        for problem in problems:
            console.print(Text(problem, "red"), soft_wrap=True)
    if problems:
        raise SystemExit(1)
