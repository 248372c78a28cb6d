# SPDX-License-Identifier: GPL-3.0-or-later
"""What is in a firmware file, or on a board, for people: one look for both."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ota_service.cli.contents import Report, board_report
from ota_service.cli.output import bar, facts, share, size, table
from ota_service.client.remedies import line_of
from ota_service.formats.image import revision_text
from ota_service.formats.merge import Merged
from ota_service.formats.partitions import TABLE_OFFSET, PartitionTable

if TYPE_CHECKING:
    from ota_service.update.inspect import Inspection

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
    blocks: list[RenderableType] = [_head(name, found)]
    blocks += [Text(f"  ! {problem}", style="red") for problem in found["problems"]]
    if not found["ok"] and "error" in found:
        blocks.append(Text(f"    {found['error']['remedy']}", style="dim"))
    blocks.append(facts({"SHA-256": found["sha256"], **_about(found), **_trust(found)}))
    if "segments" in found:
        blocks += [Text(""), _segments(found["segments"])]
    rows = found.get("partitions", [])
    if rows:
        blocks += [Text(""), _partitions(rows, boots=found.get("boots"))]
    for row in rows:
        if "app" in row:
            blocks += [Text(""), Text(row["label"], style="bold"), facts(_app(row["app"]))]
    if "otadata" in found:
        active = [row["sector"] for row in found["otadata"] if row.get("active")]
        blocks += [Text(""), *_otadata(found["otadata"], *active or [None])]
    for contents in found.get("nvs", []):
        blocks += [Text(""), Text(contents.get("partition", ""), style="bold")]
        blocks += _nvs(contents)
    return Group(*blocks)


def _head(name: str, found: Report) -> Text:
    what = found.get("looks_like", _KINDS[found["kind"]])
    for about in (found, found.get("app", {}), found.get("bootloader", {})):
        if "chip" in about:
            what = f"{what} for {about['chip']}"
            break
    head = Text.assemble((name, "bold"), f": {what}, {found['size_bytes']:,} bytes")
    if found["kind"] != "unknown":
        whole = ("whole", "green") if found["ok"] else ("NOT whole", "bold red")
        head.append(", ").append(*whole)
    return head


def _trust(found: Report) -> dict[str, str]:
    """Whether this host takes it, where it asks for anything."""
    shown = found.get("trust")
    if shown is None:
        return {}
    words = ""
    if "error" in shown:
        words = f"does not take it: {shown['error']['message']}"
    elif shown.get("ok"):
        words = ", ".join(name for by in shown["by"] for name in by["keys"].values())
        words = f"takes it: signed by {words}"
    if "repository" in shown["requires"]:
        words += "; " * bool(words) + "takes firmware only from the repositories that it knows"
    return {"this host": words}


def _about(found: Report) -> dict[str, str | None]:
    """What there is to say of a file in a line each."""
    loader = found.get("bootloader")
    if "table_offset" in found:
        return {
            "begins at": f"flash address {found['begins_at']:#x}" if found["begins_at"] else None,
            "boots": found.get("boots"),
            "bootloader": f"{found['bootloader_offset']:#x}  {_bootloader_line(loader)}",
            "partition table": f"{found['table_offset']:#x}"
            + ("" if found["has_md5"] else "  without MD5"),
        }
    if loader is not None:
        return {"bootloader": _bootloader_line(loader), "built": loader.get("built")}
    return _app(found["app"]) if "app" in found else {}


def _bootloader_line(shown: Report | None) -> str:
    if shown is None:
        return "damaged"
    parts = [f"for {shown['chip']}", f"{shown['size_bytes']:,} bytes"]
    if "flash_bytes" in shown:
        parts.append(f"flash {size(shown['flash_bytes'])} {shown['flash_mode']}")
    if shown.get("idf_version"):
        parts.append(f"ESP-IDF {shown['idf_version']}")
    return ", ".join(parts)


def _app(shown: Report) -> dict[str, str | None]:
    """An app's facts; a damaged one has few."""
    revisions = None
    if shown.get("min_revision") or shown.get("max_revision"):
        revisions = f"{revision_text(shown['min_revision'])} or later"
        if "max_revision" in shown:
            revisions = f"{revisions}, up to {revision_text(shown['max_revision'])}"
    return {
        "project": shown["project"],
        "version": shown["version"],
        "size": f"{shown['size_bytes']:,} bytes" if "size_bytes" in shown else None,
        "ESP-IDF": shown.get("idf_version"),
        "built": shown.get("built"),
        "ELF SHA-256": shown.get("elf_sha256"),
        "chip revision": revisions,
        "secure version": str(shown.get("secure_version") or ""),
        "signature": "signed" if shown.get("signed") and "signatures" not in shown else None,
        **{
            f"signature {block['block']}": f"{block['scheme']}, key {block['key']}"
            if block["valid"]
            else f"not valid: {block['problem']}"
            for block in shown.get("signatures", [])
        },
    }


def _segments(rows: list[Report]) -> Table:
    made = table("segment", "load address", "file offset", "size", right=("size",))
    for index, row in enumerate(rows):
        made.add_row(
            str(index),
            f"{row['load_address']:#010x}",
            f"{row['file_offset']:#x}",
            f"{row['size_bytes']:,}",
        )
    return made


def _partitions(rows: list[Report], boots: str | None = None) -> Table:
    made = table("partition", "kind", "offset", "size", "app", right=("offset", "size"))
    for row in rows:
        text = _contents(row)
        for flag in ("encrypted", "read_only"):
            if row.get(flag):
                text.append(f" {flag.replace('_', ' ')}")
        if row.get("running"):
            text.append("  running", style="green")
        if row["label"] == boots:
            text.append("  boots", style="green")
        place = f"{row['offset']:#x}"
        made.add_row(Text(row["label"]), row["kind"], place, size(row["size_bytes"]), text)
    return made


def _contents(row: Report) -> Text:
    app = row.get("app")
    if app is not None and "project" in app:
        name = f"{app['project']} {app.get('version', app.get('app_version'))}"
        full = f", {share(app['size_bytes'], row['size_bytes'])} full" if "version" in app else ""
        return Text(name + full)
    if app is not None:
        return Text("empty" if app["empty"] else "no app descriptor", style="dim")
    if "error" in row:
        return Text("damaged", style="red")
    return Text("not in the file" if row.get("in_file") is False else "", style="dim")


def _otadata(entries: list[Report], active: int | None) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for entry in entries:
        words = "blank" if entry["blank"] else "damaged"
        if "taken_away" in entry:
            words = "void, as a way back leaves it"
        if entry.get("written", entry.get("valid")):
            words = f"seq {entry['seq']}, {entry['state']}, names {entry.get('slot', '?')}"
        line = Text.assemble((f"otadata {entry['sector']}  ", "bold"), words)
        if active == entry["sector"]:
            line.append("  decides", style="green")
        lines.append(line)
    return lines


def _nvs(shown: Report) -> list[RenderableType]:
    count = sum(len(keys) for keys in shown["keys"].values())
    blocks: list[RenderableType] = [
        Text(f"  {count} keys, {shown['free_pages']} of {shown['pages']} pages free")
    ]
    if count:
        made = table("namespace", "key", "type")
        for space, keys in sorted(shown["keys"].items()):
            for key, kind in sorted(keys.items()):
                made.add_row(Text(space), Text(key), kind)
        blocks.append(made)
    return blocks


# --- a board

_EVIDENCE = {
    "journal": "by its digest",
    "image": "by its digest",
    "log": "by the bootloader's log",
    "verified": "by otadata and its whole image",
    "none": "",
}
_LOCKS = {
    "flash_encrypted": "flash encryption",
    "secure_boot": "secure boot",
    "secure_download": "secure download mode",
}


def on_board(port: str, found: Inspection) -> Group:
    """Everything on a board, one block below the other."""
    told = board_report(found)
    blocks: list[RenderableType] = [facts({"port": port, **_about_board(told)}, indent=0)]
    if found.table is not None:
        apps = {app["offset"]: app for app in told["apps"]}
        rows = [
            {**row, "app": app, "running": app["running"]} if app is not None else row
            for row in told["partitions"]
            for app in [apps.get(row["offset"])]
        ]
        blocks += [Text(""), _partitions(rows)]
    if "otadata" in told:
        otadata = told["otadata"]
        blocks += [Text(""), *_otadata(otadata["entries"], otadata.get("active"))]
        if otadata["pending"]:
            blocks.append(Text("An app waits for its confirmation; it got its time again."))
    problem = found.problem or found.running.why
    if problem is not None:
        line = Text.assemble(("It cannot be updated: ", "bold red"), line_of(problem))
        blocks += [Text(""), line]
    return Group(*blocks)


def _about_board(told: Report) -> dict[str, str | None]:
    """What there is to say of a board in a line each."""
    chip, running, offset = told["chip"], told.get("running"), told.get("table_offset")
    flash = size(chip["flash_bytes"]) if chip["flash_bytes"] is not None else "unknown size"
    runs = version = elsewhere = None
    if running is not None:
        app = f"{running.get('project', '')} {running.get('app_version', '')}".strip()
        how = _EVIDENCE[running["evidence"]]
        runs = f"{running['slot']}: {app or 'no app descriptor'} ({how})"
    if "version" in told:
        version = f"{told['version'] or 'none'} (VIAM_NS/OTA_VERSION in NVS)"
    if offset not in (None, TABLE_OFFSET):
        elsewhere = f"at {offset:#x}, not at {TABLE_OFFSET:#x}"
    return {
        "chip": f"{chip['name']} {chip['revision']}, {flash} of flash",
        "MAC": told["mac"],
        "security": ", ".join(words for lock, words in _LOCKS.items() if chip[lock]),
        "trusted keys": ", ".join(chip.get("trusted_keys", ())),
        "revoked keys": ", ".join(chip.get("revoked_keys", ())),
        "running": runs,
        "version": version,
        "table": elsewhere,
    }


# --- what was made


def slots_of(found: PartitionTable, image_bytes: int) -> Table:
    """How full an app makes each app partition."""
    made = table("slot", "size", "app", "", "", right=("size", "app", ""))
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
        "region", "offset", "size", "room", "full", "contents",
        right=("offset", "size", "room", "full"),
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
