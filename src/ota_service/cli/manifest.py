# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota manifest`: several firmwares that belong together, in one file."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from pathlib import Path
from urllib.parse import quote

import click
from rich.text import Text

from ota_service.cli.output import files, json_option, out, print_json, table
from ota_service.errors import OtaError
from ota_service.firmware.files import FIRMWARE_BYTES, read_file, write_file
from ota_service.firmware.manifest import FILE_NAME, Manifest
from ota_service.formats.image import AppImage, parse_app_image


@click.group()
def manifest() -> None:
    """Write a manifest: several firmwares that belong together."""


@manifest.command(short_help="Write a manifest of App Images.")
@click.argument("images", metavar="[NAME=]FILE...", nargs=-1, required=True)
@click.option("--version", help="What a configuration names for all of it; default: the version in "
              "the apps' descriptors, where they have one in common.")  # fmt: skip
@click.option("--order", multiple=True, metavar="NAME,..", help="A step: images that go at the "
              "same time. Give it once a step; images in none go last.")  # fmt: skip
@click.option("--together", multiple=True, metavar="NAME,..", help="A group: images whose boards "
              "go forward or back as a whole. Give it once a group.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
              help="Where to write it; default: manifest.json beside the first FILE.")  # fmt: skip
@json_option
def new(
    images: tuple[str, ...], version: str | None, order: tuple[str, ...],
    together: tuple[str, ...], output: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Check App Images, and write a manifest that names them. NAME: by default the file's, without
    .bin.

    \b
    esp32-ota manifest new motor.bin display.bin --order motor --order display
    esp32-ota serve .            (or any web server)

    Its urls are relative to where it is written. An image goes to the boards that run its project
    on its chip; where two fit, name the boards in its "boards" (docs/manifests.md).
    """
    places = _named(images)
    output = output or next(iter(places.values())).parent / FILE_NAME
    with files():
        found = {name: _read(place) for name, place in places.items()}
        made = _made(places, found, version, order, together, output)
        write_file(output, made.dump(), mode=0o644)
    if as_json:
        print_json({"file": str(output), "sha256": _sha256(made.dump()),
                    "manifest": made.model_dump(exclude_none=True)})  # fmt: skip
        return
    console, shown = out(), table("image", "file", "project", "version", "chip")
    for name, (_, image) in found.items():
        about = image.descriptor
        row = (name, str(places[name]), about.project, about.version, image.chip)
        shown.add_row(*map(Text, row))
    console.print(shown)
    steps = ", then ".join(" + ".join(step) for step in made.steps)
    console.print(Text(f'{output}: version "{made.version}"; {steps}'), soft_wrap=True)
    for text in _twins(made):
        console.print(Text(text, "yellow"), soft_wrap=True)


def _named(images: tuple[str, ...]) -> dict[str, Path]:
    places: dict[str, Path] = {}
    for word in images:
        name, equals, path = word.partition("=")
        place = Path(path if equals else word)
        name = name if equals else place.stem
        if name in places:
            text = f'two images would be called "{name}"; give NAME=FILE'
            raise click.BadParameter(text, param_hint="FILE")
        places[name] = place
    return places


def _read(place: Path) -> tuple[bytes, AppImage]:
    """Raises OtaError, naming the file."""
    data = read_file(place, FIRMWARE_BYTES)
    try:
        return data, parse_app_image(data)
    except OtaError as error:
        raise OtaError(error.code, f"{place}: {error.message}", remedy=error.remedy) from None


def _made(
    places: dict[str, Path], found: dict[str, tuple[bytes, AppImage]], version: str | None,
    order: tuple[str, ...], together: tuple[str, ...], output: Path,
) -> Manifest:  # fmt: skip
    versions = {image.descriptor.version for _, image in found.values()}
    if version is None and len(versions) > 1:
        text = f"the apps' versions differ ({', '.join(sorted(versions))}); say which one is theirs"
        raise click.BadParameter(text, param_hint="--version")
    entries = {
        name: {
            "url": quote(os.path.relpath(places[name].absolute(), output.absolute().parent)),
            "sha256": _sha256(data),
            "project": image.descriptor.project,
            "chip": image.chip.lower().replace("-", ""),
        }
        for name, (data, image) in found.items()
    }
    lists = {"order": list(map(_names, order)), "together": list(map(_names, together))}
    version = version if version is not None else versions.pop()
    return Manifest.checked({"format": 1, "version": version, "images": entries, **lists})


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _twins(made: Manifest) -> list[str]:
    """Images that would fit the same boards."""
    kinds = Counter((image.project, image.chip) for image in made.images.values())
    twins = [kind for kind, count in kinds.items() if count > 1]
    return [
        f'{project} for {chip} stands in it more than once: say in its "boards" which board gets '
        "which image."
        for project, chip in twins
    ]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
