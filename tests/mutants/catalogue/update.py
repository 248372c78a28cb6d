# SPDX-License-Identifier: GPL-3.0-or-later
"""One board's update: what runs, what is planned, how it is carried out, and the way back."""

from __future__ import annotations

from tests.mutants.mutant import Mutant

SECURE = "tests/update/test_secure_boot.py"
PLAN = "tests/update/test_plan.py"
RUNNING = "tests/update/test_running.py"
SESSION = "tests/update/test_session_slips.py"
CUTS = "tests/update/test_cuts.py"
_PLAN, _INSPECT = "update/plan.py", "update/inspect.py"
_CARRY_OUT, _SESSION = "update/carry_out.py", "update/session.py"

_PLANNED = (
    Mutant(
        "any slot that was turned down speaks against the target",
        _PLAN,
        "return not self.found.holding or self.found.holds(named)",
        "return named is not None",
        "tests/update/test_plan.py::"
        "test_what_was_turned_down_is_the_firmware_in_that_slot_and_no_other",
    ),
    Mutant(
        "of slots that differ the largest one's size counts for all",
        _PLAN,
        "if image.total_bytes <= slot.size_bytes:",
        "if image.total_bytes <= max(each.size_bytes for each in slots):",
        f"{RUNNING}::test_of_several_spare_slots_one_that_fits_is_taken",
    ),
    Mutant(
        "the running slot is a spare one too",
        _PLAN,
        "return slots[at + 1 :] + slots[:at]",
        "return slots[at + 1 :] + slots[: at + 1]",
        f"{RUNNING}::test_an_image_that_fits_the_spare_slot_is_written_there",
    ),
    Mutant(
        "a board that waits for its app is updated",
        _INSPECT,
        '        if self.pending:\n            raise OtaError("awaiting-confirmation")\n',
        "",
        f"{PLAN}::test_a_board_in_pending_verify_is_left_alone",
    ),
    Mutant(
        "a board of which nothing is proven is rescued",
        _PLAN,
        "if image is None or not self.rescue or not found.running.dead:",
        "if image is None or not self.rescue:",
        f"{RUNNING}::test_an_image_for_another_chip_leaves_a_doubt_where_the_bootloader_is_silent",
    ),
    Mutant(
        "a board that boots is rescued",
        _PLAN,
        "        if self.rescue:\n",
        "        if self.rescue and self.image is None:\n",
        f"{PLAN}::test_a_board_that_boots_is_not_rescued",
    ),
    Mutant(
        "force writes the spare slot of a board that runs the image",
        _PLAN,
        "        if not found.holds(running):\n            return self",
        "        if not found.holds(running) or self.force:\n            return self",
        f"{RUNNING}::test_force_on_a_board_that_runs_the_image_leaves_its_way_back_alone",
    ),
    Mutant(
        "a board that boots signed images only gets another one",
        _PLAN,
        "    if refused is not None:\n        raise refused\n",
        "",
        f"{PLAN}::test_what_the_board_would_not_run_is_refused",
    ),
    Mutant(
        "a revoked key counts",
        "update/bootable.py",
        "if any(block.is_by(keys.trusted) for block in valid):",
        "if any(block.is_by(keys.trusted + keys.revoked) for block in valid):",
        f"{SECURE}::test_what_a_board_starts",
    ),
    Mutant(
        "blocks that the chip does not look at count",
        "update/bootable.py",
        "for block in image.signatures[:n_blocks]",
        "for block in image.signatures",
        f"{SECURE}::test_what_a_board_starts",
    ),
    Mutant(
        "a signature of a trusted key counts although it is wrong",
        "update/bootable.py",
        "valid = [block for block in blocks if not block.problem]",
        "valid = [block for block in blocks if block.key_digest]",
        f"{SECURE}::test_what_a_board_starts",
    ),
    Mutant(
        "a signature is not verified",
        "formats/signature.py",
        'problem = "" if right else "holds a signature that its key did not make"',
        'problem = ""',
        "tests/formats/test_signature.py::test_a_bit_of_each_field_is_noticed",
    ),
    Mutant(
        "an image below the fuses is written",
        _PLAN,
        "if secure_version < max(lowest, fused):",
        "if secure_version < lowest:",
        f"{RUNNING}::test_an_update_that_the_fuses_forbid_is_refused",
    ),
    Mutant(
        "NEW is written without a bootloader that turns it",
        _PLAN,
        "state = OtaState.NEW if confirms else OtaState.UNDEFINED",
        "state = OtaState.NEW",
        f"{PLAN}::test_new_is_written_only_where_the_bootloader_uses_rollback",
    ),
    Mutant(
        "the host's version counts whatever runs",
        "update/inspect.py",
        "    if fact is not None and runs.md5 == fact.md5:\n",
        "    if fact is not None:\n",
        f"{RUNNING}::test_the_host_s_version_counts_where_what_runs_is_what_it_knows",
    ),
    Mutant(
        "what the host keeps for another slot is this one's",
        "update/inspect.py",
        "        moved = facts.last_slot not in (None, slot)\n",
        "        moved = False\n",
        f"{RUNNING}::test_the_host_s_version_counts_where_what_runs_is_what_it_knows",
    ),
    Mutant(
        "the version is stored before the switch",
        _PLAN,
        "SwitchOtadata(edit),\n            *_recorded(found, version),\n",
        "*_recorded(found, version),\n            SwitchOtadata(edit),\n",
        f"{PLAN}::test_a_differing_version_is_written_switched_and_recorded",
    ),
    Mutant(
        "a tag that somebody else brought was rolled back",
        _PLAN,
        "_moved(running, facts) and (facts.reached or _own_fact(found, facts) is not None)",
        "_moved(running, facts)",
        f"{PLAN}::test_a_tag_that_somebody_else_brought_with_another_build_is_let_be",
    ),
    Mutant(
        "the tag of the slot before is restored with another one",
        _PLAN,
        "running is not None and _moved(running, facts) and fact is not None",
        "running is None and fact is not None",
        f"{PLAN}::test_the_tag_to_go_back_with_is_the_one_of_what_runs",
    ),
    Mutant(
        "a board that went back by itself is up to date",
        _PLAN,
        "        if not rejected and not moved:\n",
        "        if not rejected or not moved:\n",
        f"{PLAN}::test_another_slot_than_at_the_last_success_is_a_rollback_too",
    ),
)

_LOOKED_AT = (
    Mutant(
        "a board that never left download mode is proven to be dead",
        _INSPECT,
        "if look is None or not seen.restarted:",
        "if look is None:",
        f"{RUNNING}::test_a_board_that_never_left_download_mode_is_not_called_dead",
    ),
    Mutant(
        "something that prints is proven to be dead",
        _INSPECT,
        "    if seen.app_prints:\n",
        "    if seen.app_prints and self.found.pending:\n",
        f"{RUNNING}::test_something_that_prints_is_not_called_dead",
    ),
    Mutant(
        "a bootloader for a smaller flash starts something",
        _INSPECT,
        "if size_bytes is not None and table.end > size_bytes:",
        "if size_bytes is not None and table.end > found.chip.flash_bytes:",
        f"{RUNNING}::test_a_bootloader_for_a_smaller_flash_starts_nothing",
    ),
    Mutant(
        "the journal's digest counts without the slot's",
        _INSPECT,
        "        if md5 == fact.md5:\n",
        "        if md5:\n",
        f"{RUNNING}::test_what_the_journal_knows_of_a_slot_counts_with_its_digest_only",
    ),
    Mutant(
        "fuses that have grown since are not minded",
        _INSPECT,
        "        if fused > self.chip.secure_version:\n            return fused\n",
        "",
        f"{RUNNING}::test_a_way_back_is_held_against_the_fuses_as_they_are_then",
    ),
    Mutant(
        "a bootloader's words in the middle of a line count",
        "update/first_look.py",
        'r"^E \\(\\d+\\) (flash_parts: |boot: Failed',
        'r"E \\(\\d+\\) (flash_parts: |boot: Failed',
        f"{RUNNING}::test_an_app_that_quotes_such_lines_is_an_app",
    ),
    Mutant(
        "what neither ROM nor bootloader prints is nobody's",
        "update/first_look.py",
        "app_prints=not all(map(theirs, lines)),",
        "app_prints=False,",
        f"{RUNNING}::test_an_app_that_quotes_such_lines_is_an_app",
    ),
    Mutant(
        "a segment may end in the bootloader's own memory",
        "formats/image.py",
        "if not is_free(chip_id, seg.load_address, seg.size_bytes):",
        "if not is_free(chip_id, seg.load_address, 4):",
        f"{RUNNING}::test_a_segment_that_some_bootloader_does_not_load_leaves_a_doubt",
    ),
    Mutant(
        "every chip starts images without an app descriptor",
        "update/bootable.py",
        "if chip.chip_id != ESP32_CHIP_ID and parse_boot_header(head).descriptor is None:",
        "if parse_boot_header(head).chip_id != chip.chip_id:",
        f"{RUNNING}::test_a_segment_that_some_bootloader_does_not_load_leaves_a_doubt",
    ),
    Mutant(
        "a board goes on with what runs, whatever its otadata leaves it to",
        _INSPECT,
        "runs is not None and runs == after and",
        "runs is not None and after is not None and",
        f"{RUNNING}::test_a_restart_that_starts_another_app_takes_something_away",
    ),
    Mutant(
        "a link that is lost in the middle of an image is a damaged image",
        "update/bootable.py",
        '        if error.code == "link-lost":\n            raise\n',
        "",
        f"{SESSION}::test_a_link_that_is_lost_in_the_middle_of_an_image_says_nothing_of_it",
    ),
)

_CARRIED_OUT = (
    Mutant(
        "the whole image's digest is not looked at",
        _CARRY_OUT,
        "if flash.md5(slot.offset, step.size_bytes) != step.md5:",
        "if not flash.md5(slot.offset, step.size_bytes):",
        f"{SESSION}::test_a_slot_is_read_back_whole_before_it_is_switched_to",
    ),
    Mutant(
        "a slot gets its header before its body's digest is looked at",
        _CARRY_OUT,
        "if flash.md5(body, stream.size_bytes - PAGE_BYTES) != stream.body_md5:",
        "if not flash.md5(body, stream.size_bytes - PAGE_BYTES):",
        f"{SESSION}::test_a_body_that_was_changed_on_its_way_gets_no_header",
    ),
    Mutant(
        "what is written over looks like an image meanwhile",
        _CARRY_OUT,
        '    program_verified(flash, Program(slot.offset, b"\\x00", "no image any more"))\n',
        "",
        f"{SESSION}::test_a_flash_that_takes_no_program_is_found_before_the_first_erase",
    ),
    Mutant(
        "a bad image that the bootloader tries first without any entry is left to it",
        _CARRY_OUT,
        "            certain = False\n            continue\n",
        "            continue\n",
        f"{RUNNING}::test_a_bad_firmware_that_is_tried_first_without_any_entry_is_not_started",
    ),
    Mutant(
        "a way back is left to an image of which it is not clear whether it boots",
        _CARRY_OUT,
        'certain = certain and image.boots == "no"',
        "certain = bool(certain)",
        f"{RUNNING}::test_a_way_back_is_not_left_to_an_image_of_which_it_is_not_clear",
    ),
    Mutant(
        "a firmware that spoils NVS is not gone back from",
        _CARRY_OUT,
        "        return RollbackPlan(slot, version, tuple(ops), problem=error)\n",
        "        raise\n",
        f"{CUTS}::test_a_firmware_that_spoils_nvs_is_gone_back_from_all_the_same",
    ),
    Mutant(
        "a way back leads to an image that the fuses forbid",
        _CARRY_OUT,
        "    floor = found.secure_floor(fused)\n",
        "    floor = 0\n",
        f"{RUNNING}::test_a_way_back_is_held_against_the_fuses_as_they_are_then",
    ),
    Mutant(
        "the firmware that a person goes back to has yet to confirm itself",
        _CARRY_OUT,
        "running or slot, OtaState.UNDEFINED)",
        "running or slot, OtaState.NEW)",
        f"{SESSION}::test_what_a_person_went_back_to_stays_at_the_next_restart",
    ),
    Mutant(
        "an app that waits for confirmation loses its time by a look",
        "update/leave.py",
        "    if waits:\n",
        "    if not waits:\n",
        f"{CUTS}::test_an_app_that_confirms_late_is_left_alone_until_then",
    ),
    Mutant(
        "a switch is left standing where the version cannot be stored",
        _SESSION,
        "                    apply_verified(self.link, self._plan_back(found, made.slot).ops)\n",
        "                    pass\n",
        f"{SESSION}::test_a_switch_is_taken_back_where_the_version_cannot_be_stored",
    ),
    Mutant(
        "a run is cancelled behind the switch",
        _SESSION,
        "if not switching and self.hooks.cancelled():",
        "if self.hooks.cancelled():",
        f"{SESSION}::test_nobody_cancels_behind_the_switch",
    ),
    Mutant(
        "any board is rescued with the confirmation of one",
        _SESSION,
        "if self.job.rescue not in (None, mac):",
        "if self.job.rescue and not mac:",
        "tests/e2e/test_running.py::test_a_rescue_looks_at_the_board_that_answers",
    ),
    Mutant(
        "a board's secrets are not known before its log is read",
        _SESSION,
        "self.starts.redact, self.starts.hides = Redactor(found.secrets), found.hidden_nvs\n",
        "self.starts.hides = found.hidden_nvs\n",
        f"{SESSION}::test_a_boards_secrets_are_known_before_its_log_is_read",
    ),
    Mutant(
        "whoever looks on reads the secrets of a board whose NVS nobody could read",
        _SESSION,
        "self.starts.hides = self.starts.hides or unread\n",
        "self.starts.hides = self.starts.hides and unread\n",
        "tests/update/test_session.py::test_a_start_is_watched_without_a_write_or_a_secret",
    ),
    Mutant(
        "power that failed speaks against an app that had no time to confirm itself",
        _SESSION,
        "    if power_failed:\n",
        "    if power_failed and pending:\n",
        f"{SESSION}::test_power_that_failed_before_an_app_had_confirmed_itself_is_no_failure_of_it",
    ),
)

STAGE = "tests/update/test_stage.py"
_IN_PARTS = (
    Mutant(
        "a staged slot is sealed with its stage",
        _SESSION,
        "return staging(made, self._tag_in(",
        "return replace(staging(made), steps=made.steps[:2]) or staging(made, self._tag_in(",
        f"{STAGE}::test_a_staged_board_keeps_its_firmware_until_its_activation",
    ),
    Mutant(
        "any first byte passes for that of a staged image",
        _INSPECT,
        "and first & IMAGE_MAGIC == IMAGE_MAGIC != first",
        "and first != IMAGE_MAGIC",
        f"{STAGE}::test_a_slot_whose_magic_byte_cannot_be_programmed_is_not_staged",
    ),
    Mutant(
        "a magic byte that is half programmed is lost",
        _INSPECT,
        "and first & IMAGE_MAGIC == IMAGE_MAGIC != first",
        "and first == 0xFF",
        f"{STAGE}::test_an_update_finds_what_is_staged",
    ),
    Mutant(
        "what is staged of another target is activated",
        _PLAN,
        "    if staged.stale:\n",
        "    if staged.stale and not staged.slot:\n",
        f"{STAGE}::test_nothing_is_written_where_nothing_fitting_is_staged",
    ),
    Mutant(
        "a board is staged while its app has yet to confirm itself",
        _PLAN,
        'if self.course == "stage" and self._has_yet_to_confirm(running):',
        'if self.course == "stage" and image is None:',
        f"{STAGE}::test_a_board_whose_app_has_yet_to_confirm_itself_is_not_staged",
    ),
    Mutant(
        "a board is staged that could not be taken back",
        _SESSION,
        "            self._require_way_back(found, made)\n",
        "            pass\n",
        f"{STAGE}::test_nothing_is_staged_whose_way_back_is_not_certain",
    ),
    Mutant(
        "a tag that the firmware in a slot did not have is said to be replaced",
        _SESSION,
        "return (fact.version if fact is not None and same else None) or about.version",
        "return (fact.version if fact is not None else None) or about.version",
        f"{STAGE}::test_what_is_replaced_is_named",
    ),
    Mutant(
        "a stage waits for a canary, and is one",
        "fleet/turns.py",
        'if ask.aside and firmware.state != "stopped":',
        'if ask.aside and firmware.state == "proven":',
        "tests/fleet/test_policy.py::test_what_stands_aside_neither_waits_for_a_canary_nor_is_one",
    ),
    Mutant(
        "an update that meets a stage is answered when that ends",
        "fleet/policy.py",
        'if same_target and purposes == ("stage", "update"):',
        'if same_target and purposes == ("stage", ""):',
        "tests/fleet/test_policy.py::test_parts_of_an_update_meet_each_other",
    ),
)

MUTANTS = (*_PLANNED, *_LOOKED_AT, *_CARRIED_OUT, *_IN_PARTS)
