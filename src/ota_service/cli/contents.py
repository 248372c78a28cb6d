# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in a firmware file, or on a board, as data: the JSON of `image inspect` and `inspect`.

No value of NVS is in it, only keys and types: a Merged Binary may hold credentials.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from ota_service.client.remedies import own_words
from ota_service.errors import OtaError
from ota_service.firmware import trust
from ota_service.formats.bootloader import FLASH_BYTES_ELSE, Bootloader, parse_bootloader
from ota_service.formats.image import AppImage, parse_app_image, parse_header, revision_text
from ota_service.formats.merged import (
    MergedBinary,
    find_partition_table,
    parse_merged,
    whole_flash,
)
from ota_service.formats.nvs import Nvs, parse_nvs
from ota_service.formats.otadata import OtaData, OtaEntry
from ota_service.formats.partitions import (
    MAGIC,
    Partition,
    PartitionTable,
    parse_partition_table,
)
from ota_service.formats.recognise import name_of
from ota_service.formats.text import field_text
from ota_service.link.chip import ChipInfo

if TYPE_CHECKING:
    from ota_service.update.inspect import App, Inspection

Report = dict[str, Any]

NVS_TYPES = {
    0x01: "u8", 0x02: "u16", 0x04: "u32", 0x08: "u64",
    0x11: "i8", 0x12: "i16", 0x14: "i32", 0x18: "i64",
    0x21: "string", 0x41: "blob", 0x42: "blob", 0x48: "blob",
}  # fmt: skip
"""Item types of NVS (`nvs_types.hpp`); a blob's parts and its index count as one key."""


def report(data: bytes) -> Report:
    """Everything in a file.

    {"kind": "app-image|merged-binary|bootloader|partition-table|nvs|unknown", "ok": whole and
    usable as that, "problems": where not, "size_bytes", "sha256", ...what the kind has}.
    """
    kind, read = next((kind, read) for kind, is_one, read in _KINDS if is_one(data))
    try:
        values = read(data)
    except OtaError as error:
        values = {"problems": [error.message], "error": error.to_dict()}
        if kind == "app-image":
            kind = "unknown" if error.code == "not-an-image" else kind
            values |= _half(data) if kind == "app-image" else {}
            values |= {"looks_like": name} if (name := name_of(data)) is not None else {}
    problems = values.pop("problems", [])
    return {
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "kind": kind,
        "ok": not problems,
        "problems": problems,
        **values,
        **(_trusted(kind, data) if not problems else {}),
    }


def _trusted(kind: str, data: bytes) -> Report:
    """Whether this host takes the file by its keys; nothing where no policy asks for anything.

    {"trust": {"requires": as in the status, "ok", "by" or "error"}}; where repositories are asked
    for, a file alone does not show where it comes from.
    """
    shown = trust.shown()
    if shown is None or kind not in ("app-image", "merged-binary"):
        return {}
    from ota_service.firmware.check import check_firmware
    from ota_service.update.flash_plan import check_merged

    check: Callable[..., Any] = check_firmware if kind == "app-image" else check_merged
    try:
        asked = [
            replace(one, repositories=None) for one in trust.policies() if one.keys is not None
        ]
        if asked:
            shown |= {"ok": True, "by": list(check(data, policies=asked).allowed_by)}
    except OtaError as error:
        shown |= {"ok": False, "error": error.to_dict()}
    return {"trust": shown}


def _half(data: bytes) -> Report:
    """What a damaged image still says of itself."""
    shown = parse_header(data)
    return {"app": {"project": shown.project, "version": shown.version}} if shown else {}


def _image_file(data: bytes) -> Report:
    image = parse_app_image(data)
    return {"app": app(image), "segments": list(map(asdict, image.segments))}


def _is_bootloader(data: bytes) -> bool:
    try:
        parse_app_image(data)
    except OtaError as error:
        return error.code == "bootloader-image"
    return False


def _bootloader_file(data: bytes) -> Report:
    loader = parse_bootloader(data)
    return {"bootloader": bootloader(loader), "segments": list(map(asdict, loader.segments))}


def _table_file(data: bytes) -> Report:
    table = parse_partition_table(data, table_offset=None)
    return {"partitions": partitions(table), "has_md5": table.has_md5}


def _is_nvs(data: bytes) -> bool:
    if len(data) % 0x1000 or not data or data[8:9] not in (b"\xfe", b"\xff"):
        return False
    word = int.from_bytes(data[:4], "little")
    return word in (0xFFFFFFFE, 0xFFFFFFFC, 0xFFFFFFF8)


def _merged_file(data: bytes) -> Report:
    flash = whole_flash(data)
    merged = parse_merged(flash)
    values: Report = {
        "problems": merged.problems + _beyond(merged),
        "chip": merged.chip,
        "begins_at": len(flash) - len(data),
        "bootloader_offset": merged.bootloader_offset,
        "table_offset": merged.table_offset,
        "has_md5": merged.table.has_md5,
        "partitions": [
            row | _held(merged, part, len(flash))
            for row, part in zip(partitions(merged.table), merged.table.partitions, strict=True)
        ],
        "nvs": [
            {"partition": part.label, **nvs(found)}
            for part, found in merged.nvs
            if isinstance(found, Nvs)
        ],
    }
    if isinstance(merged.bootloader, Bootloader):
        values["bootloader"] = shown = bootloader(merged.bootloader)
        values |= {"flash_bytes": shown["flash_bytes"]} if "flash_bytes" in shown else {}
    if merged.otadata is not None:
        values["otadata"] = otadata(merged.otadata, merged.table)
    if merged.booted is not None:
        values["boots"] = merged.booted.label
    return values


_KINDS: tuple[tuple[str, Callable[[bytes], bool], Callable[[bytes], Report]], ...] = (
    ("partition-table", lambda data: data.startswith(MAGIC), _table_file),
    (
        "merged-binary",
        lambda data: find_partition_table(whole_flash(data)) is not None,
        _merged_file,
    ),
    ("nvs", _is_nvs, lambda data: {"nvs": [nvs(parse_nvs(data))]}),
    ("bootloader", _is_bootloader, _bootloader_file),
    ("app-image", lambda _: True, _image_file),
)
"""Name, how it is told, and what is in it; the first that fits."""


def _beyond(merged: MergedBinary) -> list[str]:
    loader = merged.bootloader
    size = (loader.flash_bytes or FLASH_BYTES_ELSE) if isinstance(loader, Bootloader) else None
    if size is None or merged.table.end <= size:
        return []
    return [
        f"the partition table ends at {merged.table.end:#x}, and the bootloader is built for a "
        f"flash of {size:#x} bytes: partitions beyond are not found at boot"
    ]


def _held(merged: MergedBinary, part: Partition, file_bytes: int) -> Report:
    """What the file has in a partition: "app", "error", or how much of it the file covers."""
    if part.offset >= file_bytes:
        return {"in_file": False}
    for held, image in merged.apps:
        if held == part:
            if isinstance(image, AppImage):
                return {"in_file": True, "app": app(image)}
            return {"in_file": True, "error": image.to_dict()}
    return {"in_file": True}


def app(image: AppImage) -> Report:
    """An App Image's facts."""
    about = image.descriptor
    shown: Report = {
        "project": about.project,
        "version": about.version,
        "chip": image.chip,
        "size_bytes": image.total_bytes,
        "sha256": image.sha256.hex(),
        "idf_version": about.idf_version,
        "built": f"{about.date} {about.time}".strip(),
        "elf_sha256": about.elf_sha256.hex(),
        "secure_version": about.secure_version,
        "min_revision": image.min_revision,
        "entry": image.entry,
        "hash_appended": image.hash_appended,
        "signed": image.signed,
    }
    if image.max_revision not in (0, 0xFFFF):
        shown["max_revision"] = image.max_revision
    if image.signatures:
        shown["signatures"] = [
            {"block": n, "scheme": block.scheme, "key": block.key_digest.hex(),
             "valid": not block.problem, "problem": block.problem}
            for n, block in enumerate(image.signatures, 1) if block is not None
        ]  # fmt: skip
    return shown


def bootloader(loader: Bootloader) -> Report:
    """A bootloader's facts."""
    shown: Report = {
        "chip": loader.chip,
        "size_bytes": loader.size_bytes,
        "flash_mode": loader.flash_mode,
        "hash_appended": loader.hash_appended,
    }
    if loader.flash_bytes is not None:
        shown["flash_bytes"] = loader.flash_bytes
    if loader.idf_version:
        shown |= {"idf_version": loader.idf_version, "built": loader.built}
    return shown


def partitions(table: PartitionTable) -> list[Report]:
    """A table's rows; flags where they are set."""
    rows = map(_row, table.partitions)
    return [{key: value for key, value in row.items() if value is not False} for row in rows]


def _row(part: Partition) -> Report:
    return {
        "label": part.label,
        "kind": part.kind,
        "offset": part.offset,
        "size_bytes": part.size_bytes,
        "encrypted": part.encrypted,
        "read_only": part.read_only,
    }


def otadata(found: OtaData, table: PartitionTable) -> list[Report]:
    """Both entries of otadata."""
    shown = []
    for index, entry in enumerate(found.entries):
        row: Report = {"sector": index, "blank": entry.blank}
        if not entry.blank:
            row |= {"seq": entry.seq, "state": entry.state_name, "valid": entry.written}
            row |= {"slot": _slot(entry, table)} if entry.written and table.ota_slots else {}
            row |= {"taken_away": True} if entry.taken_away else {}
            row["active"] = found.active == index
        shown.append(row)
    return shown


def _slot(entry: OtaEntry, table: PartitionTable) -> str:
    return table.ota_slots[entry.slot_index(len(table.ota_slots))].name


def nvs(found: Nvs) -> Report:
    """The keys of an NVS partition with their types, without any value."""
    names = {index: name for name, index in reversed(found.namespaces.items())}
    keys: dict[str, dict[str, str]] = {}
    for namespace, key, kind in found.contents():
        if namespace == 0:
            continue
        space = keys.setdefault(names.get(namespace, f"#{namespace}"), {})
        space[field_text(key)] = NVS_TYPES.get(kind, f"{kind:#04x}")
    return {"pages": len(found.pages), "free_pages": found.free_pages, "keys": keys}


# --- a board


def _boot_keys(chip: ChipInfo) -> Report:
    """The digests of the keys that Secure Boot trusts; where the fuses say it."""
    if chip.boot_keys is None:
        return {}
    told = {"trusted_keys": chip.boot_keys.trusted, "revoked_keys": chip.boot_keys.revoked}
    return {name: [digest.hex() for digest in digests] for name, digests in told.items()}


def board_report(found: Inspection) -> Report:
    """What is on a board; what is not known is left out."""
    chip, table, problem = found.chip, found.table, found.problem or found.running.why
    told: Report = {
        "mac": chip.mac,
        "chip": {
            "name": chip.name,
            "revision": revision_text(chip.revision),
            "flash_bytes": chip.flash_bytes,
            "flash_encrypted": chip.flash_encrypted,
            "secure_boot": chip.secure_boot,
            "secure_download": chip.secure_download,
            **_boot_keys(chip),
        },
        "version": found.version if found.nvs is not None else None,
        "running": _running(found),
        "table_offset": table.offset if table is not None else None,
        "partitions": list(map(_row, table.partitions)) if table is not None else [],
        "otadata": _board_otadata(found),
        "apps": [_board_app(found, app) for app in found.apps],
        "problem": own_words(problem.to_dict()) if problem is not None else None,
    }
    return _known(told)


def _known(values: Report) -> Report:
    return {key: value for key, value in values.items() if value is not None}


def _running(found: Inspection) -> Report | None:
    running = found.running
    if running.partition is None:
        return None
    told: Report = {"slot": running.partition.name, "evidence": running.evidence}
    app = found.running_app
    if app is not None and app.descriptor is not None:
        told |= {"project": app.descriptor.project, "app_version": app.descriptor.version}
    return told


def _board_otadata(found: Inspection) -> Report | None:
    data, table = found.otadata, found.table
    if data is None or table is None:
        return None
    slots, entries = table.ota_slots, []
    for index, entry in enumerate(data.entries):
        told: Report = {"sector": index, "written": entry.written, "blank": entry.blank}
        if entry.written:
            slot = _slot(entry, table) if slots else None
            told |= {"seq": entry.seq, "state": entry.state_name, "slot": slot}
        told |= {"taken_away": True} if entry.taken_away else {}
        entries.append(_known(told))
    named = data.slot_index(len(slots)) if slots else None
    return _known(
        {
            "entries": entries,
            "active": data.active,
            "names": slots[named].name if named is not None else None,
            "pending": found.pending,
        }
    )


def _board_app(found: Inspection, app: App) -> Report:
    about, place = app.descriptor, app.partition
    told: Report = {
        "slot": place.name,
        "offset": place.offset,
        "size_bytes": place.size_bytes,
        "running": found.running.partition == place,
        "empty": about is None and not app.head.strip(b"\xff"),
    }
    if about is not None:
        told |= {
            "project": about.project,
            "app_version": about.version,
            "idf_version": about.idf_version,
            "built": f"{about.date} {about.time}".strip(),
            "secure_version": about.secure_version,
        }
    return told
