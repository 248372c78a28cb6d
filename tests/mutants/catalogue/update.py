# SPDX-License-Identifier: GPL-3.0-or-later
"""One board's update: what runs, what is planned, how it is carried out, and the way back."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

PLAN = "tests/board/test_plan.py"
RUNNING = "tests/board/test_running.py"
SESSION = "tests/board/test_session.py"
CUTS = "tests/board/test_cuts.py"
_PLAN, _INSPECT = "board/plan.py", "board/inspect.py"
_CARRY_OUT, _SESSION = "board/carry_out.py", "board/session.py"

_PLANNED = (
    Mutant(
        "of slots that differ the largest one's size counts for all",
        _PLAN,
        "if image.total_bytes <= slot.size_bytes:",
        "if image.total_bytes <= max(each.size_bytes for each in slots):",
        RUNNING,
    ),
    Mutant(
        "an image that just fits is too large",
        _PLAN,
        "if image.total_bytes <= slot.size_bytes:",
        "if image.total_bytes < slot.size_bytes:",
        PLAN,
    ),
    Mutant(
        "the running slot is a spare one too",
        _PLAN,
        "return slots[at + 1 :] + slots[:at]",
        "return slots[at + 1 :] + slots[: at + 1]",
        RUNNING,
    ),
    Mutant(
        "a board that waits for its app is updated",
        _PLAN,
        '    if found.pending:\n        raise OtaError("awaiting-confirmation")\n',
        "",
        PLAN,
    ),
    Mutant(
        "a board of which nothing is proven is rescued",
        _PLAN,
        "if image is None or not rescue or not found.running.dead:",
        "if image is None or not rescue:",
        RUNNING,
    ),
    Mutant(
        "a board that boots is rescued",
        _PLAN,
        "    if rescue:\n        raise",
        "    if rescue and image is None:\n        raise",
        PLAN,
    ),
    Mutant(
        "force writes the spare slot of a board that runs the image",
        _PLAN,
        "    if found.holds(running):\n        if",
        "    if found.holds(running) and not force:\n        if",
        RUNNING,
    ),
    Mutant(
        "a board of another project is ours",
        _PLAN,
        "if image is not None and project != image.descriptor.project:",
        "if image is not None and project and not image.descriptor.project:",
        PLAN,
    ),
    Mutant(
        "a board without our namespace is ours",
        _PLAN,
        "    _require_namespace(found)\n    app =",
        "    app =",
        PLAN,
    ),
    Mutant(
        "a board that boots signed images only gets another one",
        _PLAN,
        "if chip.secure_boot and not image.signed:",
        "if chip.secure_boot and image.signed:",
        PLAN,
    ),
    Mutant(
        "an image below the fuses is written",
        _PLAN,
        "if image.descriptor.secure_version < max(lowest, fused):",
        "if image.descriptor.secure_version < lowest:",
        RUNNING,
    ),
    Mutant(
        "NEW is written without a bootloader that turns it",
        _PLAN,
        "state=OtaState.NEW if confirms else OtaState.UNDEFINED,",
        "state=OtaState.NEW,",
        PLAN,
    ),
    Mutant(
        "the version is stored before the switch",
        _PLAN,
        '        SwitchOtadata(slot, edit, f"start {slot.name} instead of {instead}"),\n'
        '        RecordVersion(version, record, "so that the firmware does not update itself '
        'again"),\n',
        '        RecordVersion(version, record, "so that the firmware does not update itself '
        'again"),\n'
        '        SwitchOtadata(slot, edit, f"start {slot.name} instead of {instead}"),\n',
        PLAN,
    ),
    Mutant(
        "a board that went back by itself is up to date",
        _PLAN,
        "    if not rejected and not moved:\n        return None\n",
        "    if not rejected or not moved:\n        return None\n",
        PLAN,
    ),
    Mutant(
        "NVS that is marked read-only is written",
        _PLAN,
        "    if at.read_only:\n",
        "    if at.read_only and at.encrypted:\n",
        f"{SESSION}",
    ),
)

_LOOKED_AT = (
    Mutant(
        "a board that never left download mode is proven to be dead",
        _INSPECT,
        "if look is None or not seen.restarted:",
        "if look is None:",
        RUNNING,
    ),
    Mutant(
        "something that prints is proven to be dead",
        _INSPECT,
        "    if seen.app_prints:\n",
        "    if seen.app_prints and found.pending:\n",
        RUNNING,
    ),
    Mutant(
        "an image that a bootloader may refuse is passed over",
        _INSPECT,
        'if image.boots == "no" or (image.boots == "unclear" and seen.nothing_boots):',
        'if image.boots != "yes":',
        RUNNING,
    ),
    Mutant(
        "a bootloader for a smaller flash starts something",
        _INSPECT,
        "if size_bytes is not None and table.end > size_bytes:",
        "if size_bytes is not None and table.end > found.chip.flash_bytes:",
        RUNNING,
    ),
    Mutant(
        "the journal's digest counts without the slot's",
        _INSPECT,
        "        if md5 == fact.md5:\n",
        "        if md5:\n",
        RUNNING,
    ),
    Mutant(
        "an app outside the table is taken for the first slot",
        _INSPECT,
        "next((one for one in order if one.offset == offset), None)",
        "next((one for one in order if one.offset == offset), order[0])",
        RUNNING,
    ),
    Mutant(
        "fuses that have grown since are not minded",
        _INSPECT,
        "        if fused > self.chip.secure_version:\n            return fused\n",
        "",
        RUNNING,
    ),
    Mutant(
        "secrets of a second NVS partition are shown",
        _INSPECT,
        "stores = self.other_nvs if self.nvs is None else (self.nvs, *self.other_nvs)",
        "stores = () if self.nvs is None else (self.nvs,)",
        RUNNING,
    ),
    Mutant(
        "a bootloader's words in the middle of a line count",
        "board/first_look.py",
        'r"^E \\(\\d+\\) (flash_parts: |boot: Failed',
        'r"E \\(\\d+\\) (flash_parts: |boot: Failed',
        RUNNING,
    ),
    Mutant(
        "what neither ROM nor bootloader prints is nobody's",
        "board/first_look.py",
        "app_prints=not all(_ROM.search(line) or _BOOTLOADER.search(line) for line in lines),",
        "app_prints=False,",
        RUNNING,
    ),
    Mutant(
        "a link that is lost in the middle of an image is a damaged image",
        "board/bootable.py",
        '        if error.code == "link-lost":\n            raise\n',
        "",
        SESSION,
    ),
    Mutant(
        "the secure version of an image is not held against the fuses",
        "board/bootable.py",
        "if secure_version < secure_floor:",
        "if secure_version < 0:",
        RUNNING,
    ),
)

_CARRIED_OUT = (
    Mutant(
        "the whole image's digest is not looked at",
        _CARRY_OUT,
        "if flash.md5(slot.offset, stream.size_bytes) != stream.image_md5:",
        "if not flash.md5(slot.offset, stream.size_bytes):",
        SESSION,
    ),
    Mutant(
        "a slot gets its header before its body's digest is looked at",
        _CARRY_OUT,
        "if flash.md5(body, stream.size_bytes - PAGE_BYTES) != stream.body_md5:",
        "if not flash.md5(body, stream.size_bytes - PAGE_BYTES):",
        SESSION,
    ),
    Mutant(
        "what is written over looks like an image meanwhile",
        _CARRY_OUT,
        '    program_verified(flash, Program(slot.offset, b"\\x00", "no image any more"))\n',
        "",
        SESSION,
    ),
    Mutant(
        "a bad image that the bootloader tries first keeps its magic byte",
        _CARRY_OUT,
        '        ops.append(Program(bad.offset, b"\\x00", "no image any more"))\n',
        "        pass\n",
        RUNNING,
    ),
    Mutant(
        "a way back leads to an image that the fuses forbid",
        _CARRY_OUT,
        "    floor = found.secure_floor(fused)\n",
        "    floor = 0\n",
        RUNNING,
    ),
    Mutant(
        "the firmware that a person goes back to has yet to confirm itself",
        _CARRY_OUT,
        "state=OtaState.UNDEFINED,",
        "state=OtaState.NEW,",
        SESSION,
    ),
    Mutant(
        "an app that waits for confirmation loses its time by a look",
        _SESSION,
        "if found.pending and found.table is not None and self.job.rearm:",
        "if found.pending and found.table is not None and not self.job.rearm:",
        CUTS,
    ),
    Mutant(
        "a switch is left standing where the version cannot be stored",
        _SESSION,
        "                self._take_back(link, found, made.slot)\n",
        "                pass\n",
        SESSION,
    ),
    Mutant(
        "a run is cancelled behind the switch",
        _SESSION,
        "if not switching and self.hooks.cancelled():",
        "if self.hooks.cancelled():",
        SESSION,
    ),
    Mutant(
        "a cancelled run goes on until the switch",
        _SESSION,
        "            if self.hooks.cancelled():\n                raise OtaError(\"cancelled\")\n"
        "            self.hooks.progress(done, total)",
        "            self.hooks.progress(done, total)",
        SESSION,
    ),
    Mutant(
        "any board is rescued with the confirmation of one",
        _SESSION,
        "if self.job.rescue not in (None, mac):",
        "if self.job.rescue and not mac:",
        SESSION,
    ),
    Mutant(
        "a board's secrets are not known before its log is read",
        _SESSION,
        "        self.redact = Redactor(found.secrets)\n",
        "",
        SESSION,
    ),
    Mutant(
        "power that failed speaks against an app that had no time to confirm itself",
        _SESSION,
        "        elif awaited.power_failed:\n",
        "        elif awaited.power_failed and not awaited.slot:\n",
        SESSION,
    ),
)

MUTANTS = (*_PLANNED, *_LOOKED_AT, *_CARRIED_OUT)
