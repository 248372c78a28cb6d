# SPDX-License-Identifier: GPL-3.0-or-later
"""An NVS partition from a CSV file, so that a board starts with its credentials.

Made by Espressif's own generator (esp-idf-nvs-partition-gen), read back by our reader.
"""

from __future__ import annotations

import contextlib
import csv
import io
import tempfile
from argparse import Namespace
from pathlib import Path

from esp_idf_nvs_partition_gen import nvs_partition_gen

from ota_service.errors import OtaError
from ota_service.firmware.files import TEXT_BYTES, read_file
from ota_service.formats.nvs import parse_nvs

_REMEDY = (
    "Correct the CSV file; its form is key,type,encoding,value, beginning with a line such as "
    "VIAM_NS,namespace,,"
)
_FORMAT_VERSION = 2


def nvs_from_csv(path: Path, size_bytes: int) -> bytes:
    """The NVS partition of `size_bytes` that the CSV file describes.

    Files that it names are looked for beside it, then in the working directory. What it holds
    is repeated nowhere, not even in errors.
    Raises OtaError "nvs-invalid", "nvs-full", "file-access".
    """
    rows = _rows(read_file(path, TEXT_BYTES).decode("utf-8-sig"))
    with tempfile.TemporaryDirectory(prefix="esp32-ota-nvs-") as folder:
        source, result = Path(folder, "nvs.csv"), Path(folder, "nvs.bin")
        _bring_files(rows, path.parent, Path(folder))
        source.touch(mode=0o600)
        with source.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(rows)
        arguments = Namespace(
            input=str(source),
            output=str(result),
            size=str(size_bytes),
            version=_FORMAT_VERSION,
            outdir=folder,
        )
        said = io.StringIO()
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                nvs_partition_gen.generate(arguments)
        except (SystemExit, Exception) as error:
            raise _wrong(_why(error, rows)) from None
        data = result.read_bytes()
    if len(data) != size_bytes or parse_nvs(data).free_pages < 1:
        raise OtaError("nvs-full", f"The keys do not fit into {size_bytes:#x} bytes of NVS.")
    return data


def _wrong(message: str) -> OtaError:
    return OtaError("nvs-invalid", message, remedy=_REMEDY)


def _bring_files(rows: list[list[str]], beside: Path, folder: Path) -> None:
    """Name copies of the files that rows name: the generator reads whatever it is pointed at."""
    for number, row in enumerate(rows[1:]):
        if row[1] == "file":
            near = beside / row[3]
            try:
                data = read_file(near if near.exists() else row[3], TEXT_BYTES)
            except OtaError as error:
                text = f"A file that the CSV file of the NVS names, {error.message}"
                raise _wrong(text) from None
            copy = folder / f"{number}.bin"
            copy.write_bytes(data)
            row[3] = str(copy)


def _rows(text: str) -> list[list[str]]:
    """The rows with comments left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    rows = [[field.strip() for field in row] for row in csv.reader(lines)]
    if not rows or rows[0][:4] != ["key", "type", "encoding", "value"]:
        begin = "key,type,encoding,value"
        raise _wrong(f"The CSV file of the NVS does not begin with the line {begin}.")
    for number, row in enumerate(rows[1:], 2):
        row += [""] * (4 - len(row))
        if row[1] not in ("namespace", "data", "file"):
            raise _wrong(
                f"Row {number} of the NVS's CSV file has the type {row[1]!r}, which is none of "
                "namespace, data, file."
            )
    if len(rows) > 1 and rows[1][1] != "namespace":
        raise _wrong("The first key of the NVS belongs to no namespace.")
    return rows


def _why(error: BaseException, rows: list[list[str]]) -> str:
    """The generator's own words only where they repeat no value."""
    text = str(error).strip()
    values = [row[3] for row in rows[1:] if row[3] and row[1] != "file"]
    if isinstance(error, SystemExit) or not text or any(value in text for value in values):
        return "The CSV file of the NVS has a row that cannot be used, or too many of them."
    return f"The CSV file of the NVS cannot be used: {text}."
