# SPDX-License-Identifier: GPL-3.0-or-later
"""`esp32-ota image`: look into firmware files, make App Images and Merged Binaries."""

from __future__ import annotations

import os
from pathlib import Path

import click

from ota_service.cli.content_tables import found_in, merged_regions, slots_of
from ota_service.cli.contents import app, report
from ota_service.cli.output import files, json_option, out, print_json, size
from ota_service.client.remedies import own_words
from ota_service.errors import OtaError
from ota_service.firmware.files import FIRMWARE_BYTES, read_file, write_file
from ota_service.formats.bootloader import parse_bootloader
from ota_service.formats.chips import CHIP_BY_ID
from ota_service.formats.image import parse_app_image
from ota_service.formats.merge import describe_app, merge
from ota_service.formats.merged import parse_merged
from ota_service.formats.partitions import TABLE_OFFSET, PartitionTable, parse_partition_table

BUILD_FOLDER = Path("build")
ELF_MAGIC = b"\x7fELF"
ELF_BYTES = 512 << 20
"""With its debugging information it may be many times the app."""
_SIZES = {f"{1 << n}MB": 1 << (20 + n) for n in range(8)}

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def number(text: str) -> int:
    """A whole number in decimal or, with 0x, hexadecimal form."""
    try:
        return int(text, 0)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no number such as 32768 or 0x8000") from None


def revision(text: str) -> int:
    """A chip revision, "3.1" or "v3.1", as 301."""
    major, _, minor = text.lower().removeprefix("v").partition(".")
    if not major.isdecimal() or (minor and not minor.isdecimal()) or int(minor or 0) > 99:
        raise click.BadParameter(f"{text!r} is no chip revision such as 3.1")
    return int(major) * 100 + int(minor or 0)


@click.group()
def image() -> None:
    """Look into firmware files; make App Images and Merged Binaries."""


@image.command(short_help="Show everything in a firmware file.")
@click.argument("file", type=FILE)
@json_option
def inspect(file: Path, as_json: bool) -> None:
    """Show everything in FILE: an App Image, a Merged Binary, a bootloader, a table or NVS.

    Exit code 1 where it is damaged or nothing of these; where, is said.
    """
    with files():
        found = own_words(report(read_file(file, FIRMWARE_BYTES)))
    if as_json:
        print_json({"file": str(file), **found})
    else:
        out().print(found_in(file.name, found))
    if not found["ok"]:
        raise SystemExit(1)


@image.command(short_help="Make an App Image of an ELF file, and check it.")
@click.argument("file", type=FILE)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
              help="Where to write it; default: build/NAME.bin.")  # fmt: skip
@click.option("--partitions", help="Show how full the slots of this table are: a CSV or binary "
              "file, or ota-guide, micro-rdk, micro-rdk-8mb.")  # fmt: skip
@click.option(
    "--chip",
    help="esp32, esp32s3, ...; default: told from the ELF's addresses. An App Image "
    "for another chip is refused.",
)
@click.option("--flash-mode", default="dio", show_default=True,
              type=click.Choice(["qio", "qout", "dio", "dout"]), help="In the header.")  # fmt: skip
@click.option("--flash-freq", help="In the header, such as 40m; default: the chip's usual one.")
@click.option("--flash-size", default="4MB", show_default=True, help="In the header.")
@click.option("--min-rev", type=revision, default="0", help="Least chip revision, such as 3.0.")
@click.option("--max-rev", type=revision, default="655.35", help="Highest chip revision.")
@json_option
def ota(
    file: Path,
    output: Path | None,
    partitions: str | None,
    chip: str | None,
    flash_mode: str,
    flash_freq: str | None,
    flash_size: str,
    min_rev: int,
    max_rev: int,
    as_json: bool,
) -> None:
    """Make the App Image of FILE, an ELF file or an App Image, and check it.

    This is what an update writes, and what `serve` serves.
    """
    with files():
        data = read_file(file, ELF_BYTES)
        wanted = chip.lower().replace("-", "") if chip else None
        if data.startswith(ELF_MAGIC):
            from ota_service.building.elf import app_image

            data = app_image(
                data,
                chip=wanted,
                flash_mode=flash_mode,
                flash_freq=flash_freq,
                flash_size=flash_size,
                min_revision=min_rev,
                max_revision=max_rev,
            )
        made = parse_app_image(data)
        if wanted is not None and wanted != _esptool_name(made.chip_id):
            raise OtaError(
                "wrong-chip",
                f"{file} is for {made.chip}, not for {chip}.",
                remedy="Give the build for that chip, or leave out --chip.",
            )
        data = data[: made.total_bytes]
        table = _tables(partitions, TABLE_OFFSET, made.chip_id)[0] if partitions else None
        if table is not None:
            _require_room(made.total_bytes, table)
        output = output or BUILD_FOLDER / f"{file.stem}.bin"
        _write(output, data, secret=False)
    if as_json:
        print_json({"file": str(output), "app": app(made)})
        return
    console = out()
    console.print(f"{output}: an App Image for {made.chip}, {size(len(data))} bytes")
    console.print(f"  {describe_app(made)}")
    if table is not None:
        console.print(slots_of(table, made.total_bytes))


@image.command("merge", short_help="Make a Merged Binary for a whole flash.")
@click.option("--bootloader", required=True, type=FILE, help="The bootloader's image.")
@click.option("--partitions", required=True, help="The partition table: a CSV or binary file, "
              "or ota-guide, micro-rdk, micro-rdk-8mb.")  # fmt: skip
@click.option("--app", "app_file", required=True, type=FILE, help="The App Image, or its ELF file.")
@click.option("--nvs", type=FILE, help="The keys that the board starts with: a CSV file, or a "
              "binary one of the partition's size.")  # fmt: skip
@click.option("--part", "parts", multiple=True, metavar="LABEL=FILE",
              help="Contents of a further partition.")  # fmt: skip
@click.option("--flash-size", type=click.Choice(list(_SIZES)),
              help="The board's flash; default: what the bootloader was built for.")  # fmt: skip
@click.option("--table-offset", type=number, default="0x8000", show_default=True,
              help="Where the bootloader looks for the table.")  # fmt: skip
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
              help="Where to write it; default: build/NAME-merged.bin.")  # fmt: skip
@json_option
def merge_command(
    bootloader: Path,
    partitions: str,
    app_file: Path,
    nvs: Path | None,
    parts: tuple[str, ...],
    flash_size: str | None,
    table_offset: int,
    output: Path | None,
    as_json: bool,
) -> None:
    """Make a Merged Binary: bootloader, partition table, blank otadata, and the app.

    The app goes to the factory partition, else to ota_0. Each input is checked first, the
    result is read back. It is written to a board with `flash`.
    """
    with files():
        loader = read_file(bootloader, FIRMWARE_BYTES)
        app_data = read_file(app_file, ELF_BYTES)
        chip_id = parse_bootloader(loader).chip_id
        if app_data.startswith(ELF_MAGIC):
            from ota_service.building.elf import app_image

            app_data = app_image(app_data, chip=_esptool_name(chip_id))
        table, raw_table = _tables(partitions, table_offset, chip_id)
        contents = dict(_part(text) for text in parts)
        if nvs is not None:
            contents |= _nvs(nvs, table)
        made = merge(
            bootloader=loader,
            table=raw_table,
            app=app_data,
            contents=contents,
            table_offset=table_offset,
            flash_bytes=_SIZES[flash_size] if flash_size else None,
        )
        read = parse_merged(made.data)
        if read.problems or read.booted != made.booted:
            raise OtaError("internal", f"The Merged Binary is damaged: {read.problems}.")
        output = output or BUILD_FOLDER / f"{app_file.stem}-merged.bin"
        _write(output, made.data, secret=nvs is not None)
    found = report(made.data)
    if as_json:
        print_json({"file": str(output), **found})
        return
    console = out()
    starts = found.get("boots", "nothing")
    about = f"a Merged Binary for {found['chip']}, {len(made.data):,} bytes, starts {starts}"
    console.print(f"{output}: {about}")
    console.print(f"  SHA-256 {found['sha256']}", style="dim")
    console.print(merged_regions(made))
    image_bytes = parse_app_image(app_data).total_bytes
    console.print()
    console.print(f"The app in the slots of {partitions}:")
    console.print(slots_of(made.table, image_bytes))


def _esptool_name(chip_id: int) -> str | None:
    chip = CHIP_BY_ID.get(chip_id)
    return chip.name.lower().replace("-", "") if chip is not None else None


def _tables(source: str, table_offset: int, chip_id: int) -> tuple[PartitionTable, bytes]:
    from ota_service.building.tables import load_table

    chip = CHIP_BY_ID.get(chip_id)
    raw = load_table(
        source,
        table_offset=table_offset,
        bootloader_offset=chip.bootloader_offset if chip is not None else 0,
    )
    return parse_partition_table(raw, table_offset=table_offset), raw


def _require_room(image_bytes: int, table: PartitionTable) -> None:
    slots = table.ota_slots or ((table.factory,) if table.factory else ())
    small = [part for part in slots if part.size_bytes < image_bytes]
    if small:
        raise OtaError(
            "image-too-large",
            f"The App Image has {image_bytes:,} bytes, the slot {small[0].name} only "
            f"{small[0].size_bytes:,}.",
            remedy="Make the app smaller, or use a partition table with larger slots.",
        )


def _part(text: str) -> tuple[str, bytes]:
    label, equals, file = text.partition("=")
    if not equals or not label or not file:
        raise click.BadParameter(f"{text!r} is not LABEL=FILE", param_hint="--part")
    return label, read_file(file, FIRMWARE_BYTES)


def _nvs(file: Path, table: PartitionTable) -> dict[str, bytes]:
    """The partition's name -> its contents."""
    part = table.nvs
    if part is None:
        raise OtaError(
            "nvs-missing",
            "The partition table has no partition nvs for the keys.",
            remedy="Add one to the table.",
        )
    data = read_file(file, FIRMWARE_BYTES)
    if len(data) == part.whole_bytes and b"\xff\xff\xff\xff" in data:
        return {part.name: data}
    from ota_service.building.provision import nvs_from_csv

    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise OtaError(
            "nvs-invalid",
            f"{file} has {len(data):#x} bytes, the nvs partition {part.whole_bytes:#x}.",
            remedy="Give a CSV file, or an NVS of the partition's size.",
        ) from None
    return {part.name: nvs_from_csv(file, part.whole_bytes)}


def _write(output: Path, data: bytes, *, secret: bool) -> None:
    """The file appears whole, or not at all; readable by its owner only where it has keys."""
    output.parent.mkdir(parents=True, exist_ok=True)
    mask = os.umask(0)
    os.umask(mask)
    write_file(output, data, mode=0o600 if secret else 0o666 & ~mask)
