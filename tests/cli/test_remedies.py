# SPDX-License-Identifier: GPL-3.0-or-later
"""What a person at a terminal is told to do: nothing that takes a service or the Makefile."""

from __future__ import annotations

import re

import pytest

from ota_service.client.remedies import (
    BENCH,
    ON_A_BENCH,
    REMEDIES,
    line_of,
    own_text,
    own_words,
    remedy_of,
)
from ota_service.errors import ERRORS, OtaError
from ota_service.fleet.journal_rows import AttemptRecord
from ota_service.fleet.policy import spared
from ota_service.update.flash_merged import again


def test_each_is_of_the_table_and_names_subcommands() -> None:
    """A code that is renamed or a target that is named by mistake is found here."""
    assert REMEDIES.keys() <= ERRORS.keys()
    for code, remedy in REMEDIES.items():
        assert remedy[-1] == "."
        assert "`make " not in remedy_of(code, ERRORS[code].remedy)


@pytest.mark.parametrize("code", sorted(ERRORS))
def test_no_make_target_is_left(code: str) -> None:
    """Where the archive is, there is no Makefile; here and in the service's own words."""
    assert "`make " not in line_of(OtaError(code)) + ERRORS[code].remedy


@pytest.mark.parametrize("code", sorted(ON_A_BENCH))
def test_a_bench_speaks_of_what_is_dropped(code: str) -> None:
    """It has no configuration, no url and no verbs; errors at any depth of its status."""
    reply = {"run": {"error": OtaError(code).to_dict()}}
    remedy = own_words(reply, BENCH)["run"]["error"]["remedy"]
    assert not re.search("[Cc]onfigur|url|stopped: true|call ", remedy)
    held = AttemptRecord("m", "t", failed=1, state="rolled_back", message="lost.")
    told = spared(held, by_person=True, as_last_read=False, board="a")
    assert told is not None
    assert told.error is not None
    assert "press Release to try again." in own_text(told.error.remedy, BENCH)


def test_a_more_precise_remedy_stays() -> None:
    """And is not the table's."""
    remedy = "Name one: `esp32-ota image merge` makes it."
    error = OtaError("not-an-image", remedy=remedy, board="b")
    assert line_of(error) == (
        "b: The file is not an ESP32 App Image. Name one: `esp32-ota image merge` makes it. "
        "[not-an-image]"
    )


def test_errors_in_replies_are_found() -> None:
    """At any depth; everything else stays as it is."""
    error = OtaError("no-ota-slots").to_dict()
    reply = {"ok": True, "boards": {"a": {"error": error, "n": [1]}}}
    own = own_words(reply)
    assert own["boards"]["a"]["error"]["remedy"].endswith("`esp32-ota flash PORT FILE`.")
    assert own["boards"]["a"]["n"] == [1]
    assert reply["boards"]["a"]["error"]["remedy"] == ERRORS["no-ota-slots"].remedy  # type: ignore[index]


def test_an_option_is_named_as_it_is_called_here() -> None:
    """The service's argument in the service, the command's and make's option at a terminal."""
    assert "with keep_nvs:" in again(keep_nvs=True)
    for text in (again(keep_nvs=True), again(keep_nvs=False)):
        here = own_text(text)
        assert "`--keep-nvs` (with make: KEEP_NVS=1)" in here
        assert "keep_nvs" not in here
