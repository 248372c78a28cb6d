# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in a firmware file, as tables for people."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ota_service.cli.image_report import Report
from ota_service.cli.show import bar, facts, share, size, table
from ota_service.formats.merge import Merged
from ota_service.formats.partitions import PartitionTable

_KINDS = {
    "app-image": "an App Image",
    "merged-binary": "a Merged Binary",
    "bootloader": "a bootloader",
    "partition-table": "a partition table",
    "nvs": "an NVS partition",
    "unknown": "not a firmware file that is known here",
}


def found_in(name: str, found: Report) -> Group:
    """Everything in a file, one block below the other."""
    what = _KINDS[found["kind"]]
    if "looks_like" in found:
        what = found["looks_like"]
    chip = found.get("chip") or found.get("app", {}).get("chip")
    chip = chip or found.get("bootloader", {}).get("chip")
    head = Text.assemble((name, "bold"), f": {what}")
    if chip:
        head.append(f" for {chip}")
    head.append(f", {found['size_bytes']:,} bytes, ")
    head.append("whole" if found["ok"] else "NOT whole", "green" if found["ok"] else "bold red")
    if found["kind"] == "unknown":
        head = Text.assemble((name, "bold"), f": {what}, {found['size_bytes']:,} bytes")
    blocks: list[RenderableType] = [head]
    for problem in found["problems"]:
        blocks.append(Text(f"  ! {problem}", style="red"))
    if not found["ok"] and "error" in found:
        blocks.append(Text(f"    {found['error']['remedy']}", style="dim"))
    if found["kind"] == "merged-binary":
        blocks += _merged(found)
    else:
        blocks += _single(found)
    blocks.append(facts({"SHA-256": found["sha256"]}))
    return Group(*blocks)


def _single(found: Report) -> list[RenderableType]:
    blocks: list[RenderableType] = []
    if "app" in found:
        blocks.append(_app(found["app"]))
    if "bootloader" in found:
        blocks.append(_bootloader(found["bootloader"]))
    if "segments" in found:
        blocks += [Text(""), _segments(found["segments"])]
    if "partitions" in found:
        blocks += [Text(""), _partitions(found["partitions"])]
    for contents in found.get("nvs", []):
        blocks += [Text(""), *_nvs(contents)]
    return blocks


def _merged(found: Report) -> list[RenderableType]:
    blocks: list[RenderableType] = []
    if "partitions" not in found:
        return blocks
    if found["begins_at"]:
        blocks.append(Text(f"  begins at flash address {found['begins_at']:#x}"))
    blocks.append(
        facts(
            {
                "boots": found.get("boots"),
                "bootloader": f"{found['bootloader_offset']:#x}  "
                + _bootloader_line(found.get("bootloader")),
                "partition table": f"{found['table_offset']:#x}"
                + ("" if found["has_md5"] else "  without MD5"),
            }
        )
    )
    blocks += [Text(""), _partitions(found["partitions"], boots=found.get("boots"))]
    for row in found["partitions"]:
        if "app" in row:
            blocks += [Text(f"\n{row['label']}", style="bold"), _app(row["app"])]
    if "otadata" in found:
        blocks += [Text("\notadata", style="bold"), *_otadata(found["otadata"])]
    for contents in found["nvs"]:
        blocks += [Text(f"\n{contents['partition']}", style="bold"), *_nvs(contents)]
    return blocks


def _bootloader_line(shown: Report | None) -> str:
    if shown is None:
        return "damaged"
    parts = [f"for {shown['chip']}", f"{shown['size_bytes']:,} bytes"]
    if "flash_bytes" in shown:
        parts.append(f"flash {size(shown['flash_bytes'])} {shown['flash_mode']}")
    if shown.get("idf_version"):
        parts.append(f"ESP-IDF {shown['idf_version']}")
    return ", ".join(parts)


def _bootloader(shown: Report) -> Table:
    return facts({"bootloader": _bootloader_line(shown), "built": shown.get("built")})


def _app(shown: Report) -> Table:
    """An app's facts; a damaged one has few."""
    revisions = None
    if shown.get("min_revision") or shown.get("max_revision"):
        revisions = f"v{shown['min_revision'] // 100}.{shown['min_revision'] % 100} or later"
        if "max_revision" in shown:
            top = shown["max_revision"]
            revisions = f"{revisions}, up to v{top // 100}.{top % 100}"
    return facts(
        {
            "project": shown["project"],
            "version": shown["version"],
            "size": f"{shown['size_bytes']:,} bytes" if "size_bytes" in shown else None,
            "ESP-IDF": shown.get("idf_version"),
            "built": shown.get("built"),
            "ELF SHA-256": shown.get("elf_sha256"),
            "chip revision": revisions,
            "secure version": str(shown.get("secure_version") or ""),
            "signature": "signed" if shown.get("signed") else None,
        }
    )


def _segments(rows: list[Report]) -> Table:
    made = table("Segment", "Load address", "File offset", "Size", right=("Size",))
    for index, row in enumerate(rows):
        made.add_row(
            str(index),
            f"{row['load_address']:#010x}",
            f"{row['file_offset']:#x}",
            f"{row['size_bytes']:,}",
        )
    return made


def _partitions(rows: list[Report], boots: str | None = None) -> Table:
    made = table("Partition", "Type", "Offset", "Size", "Contents", right=("Offset", "Size"))
    for row in rows:
        flags = [name for name in ("encrypted", "read_only") if row.get(name)]
        what = _contents(row)
        if row["label"] == boots:
            what = f"{what}  <- boots"
        made.add_row(
            Text(row["label"]),
            row["kind"],
            f"{row['offset']:#x}",
            size(row["size_bytes"]),
            Text(" ".join([what, *flags]).strip()),
        )
    return made


def _contents(row: Report) -> str:
    if "app" in row:
        app = row["app"]
        full = share(app["size_bytes"], row["size_bytes"])
        return f"{app['project']} {app['version']}, {full} full"
    if "error" in row:
        return "damaged"
    if row.get("in_file") is False:
        return "not in the file"
    return ""


def _otadata(rows: list[Report]) -> list[RenderableType]:
    if all(row["blank"] for row in rows):
        return [Text("  blank: the factory app starts, else ota_0")]
    made = table("Sector", "Seq", "State", "Slot", "", right=("Seq",))
    for row in rows:
        if row["blank"]:
            made.add_row(str(row["sector"]), "", "blank", "", "")
            continue
        note = "active" if row["active"] else "" if row["valid"] else "wrong CRC"
        made.add_row(str(row["sector"]), str(row["seq"]), row["state"], row.get("slot", ""), note)
    return [made]


def _nvs(shown: Report) -> list[RenderableType]:
    count = sum(len(keys) for keys in shown["keys"].values())
    blocks: list[RenderableType] = [
        Text(f"  {count} keys, {shown['free_pages']} of {shown['pages']} pages free")
    ]
    if count:
        made = table("Namespace", "Key", "Type")
        for space, keys in sorted(shown["keys"].items()):
            for key, kind in sorted(keys.items()):
                made.add_row(Text(space), Text(key), kind)
        blocks.append(made)
    return blocks


def slots_of(found: PartitionTable, image_bytes: int) -> Table:
    """How full an app makes each app partition."""
    made = table("Slot", "Size", "App", "", "", right=("Size", "App", ""))
    for part in found.partitions:
        if part.is_app:
            made.add_row(
                Text(part.label),
                size(part.size_bytes),
                f"{image_bytes:,}",
                share(image_bytes, part.size_bytes),
                bar(image_bytes, part.size_bytes),
            )
    return made


def merged_regions(made: Merged) -> Table:
    """What was put where, and how full that place is."""
    rows = table(
        "Region", "Offset", "Size", "Room", "Full", "Contents",
        right=("Offset", "Size", "Room", "Full"),
    )  # fmt: skip
    for region in made.regions:
        part = made.table.by_label(region.name)
        # These always take all of their partition, however few keys there are in it.
        whole = part is not None and part.kind in ("data/nvs", "data/ota")
        rows.add_row(
            Text(region.name),
            f"{region.offset:#x}",
            f"{region.size_bytes:,}",
            size(region.room_bytes),
            "" if whole else share(region.size_bytes, region.room_bytes),
            Text(region.what),
        )
    return rows
