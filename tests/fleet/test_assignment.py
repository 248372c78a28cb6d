# SPDX-License-Identifier: GPL-3.0-or-later
"""Which board gets which image of a manifest, and how long that takes: pure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ota_service.firmware.manifest import parse_manifest
from ota_service.firmware.target import Target
from ota_service.fleet.assignment import Assignment, Known, expected_s

BASE = Target("http://host/m.json", "2")


def assignment(images: dict[str, dict[str, Any]], **more: Any) -> Assignment:
    """A manifest with these images, at a url."""
    entries = {n: {"url": f"{n}.bin", "sha256": "0" * 64, **i} for n, i in images.items()}
    made = {"format": 1, "version": "2", "images": entries, **more}
    return Assignment(BASE, BASE.url, parse_manifest(json.dumps(made).encode()))


MOTOR = {"project": "motor", "chip": "esp32"}
ARM = {"project": "arm", "chip": "esp32s3"}


@pytest.mark.parametrize(
    ("board", "image", "code", "words"),
    [
        (Known("a", "motor", "ESP32"), "motor", None, ""),
        (Known("b", "arm", "ESP32-S3"), "arm", None, ""),
        (Known("c", "arm", "ESP32"), None, "other-project", 'of the project "arm" for ESP32'),
        (Known("d", "leg", "ESP32"), None, "other-project", 'of the project "leg"'),
        (Known("e", "twin", "ESP32"), None, "manifest-invalid", "one, two of the manifest all fit"),
        (Known("f", "", "ESP32"), None, "other-project", "does not say its project"),
        (Known("g"), None, None, ""),
        (Known("h", "motor"), None, None, ""),
    ],
)
def test_an_image_goes_to_boards_of_its_project_and_chip(
    board: Known, image: str | None, code: str | None, words: str
) -> None:
    """What fits nowhere and what two images fit is said; what is not known is to be looked at."""
    twin = {"project": "twin", "chip": "esp32"}
    made = assignment({"motor": MOTOR, "arm": ARM, "one": twin, "two": twin}).of([board])
    assert made.images.get(board.name) == image
    problem = made.problems.get(board.name)
    assert (problem.code if problem else None) == code
    assert words in (problem.message if problem else "")
    if code == "manifest-invalid" and problem is not None:
        assert '"boards": {"e": "one"}' in problem.remedy
    assert made.unsure == ([board.name] if image is None and code is None else [])


def test_where_boards_are_named_nothing_else_counts() -> None:
    """Not what they run, nor whether that is known."""
    made = assignment({"motor": MOTOR, "arm": ARM}, boards={"a": "arm", "gone": "motor"})
    found = made.of([Known("a", "motor", "ESP32"), Known("b", "motor", "ESP32")])
    assert found.images == {"a": "arm"}
    assert "do not name this one" in found.problems["b"].message
    assert found.unused == ["motor"]
    assert found.notice == "No board gets motor of the manifest."
    assert found.targets["arm"].url == "http://host/arm.bin"
    assert found.keys == {target.key for target in found.targets.values()}


WROTE = {"action": "write", "outcome": "up_to_date", "bytes": 1000,
         "phases": {"connecting": 2.0, "writing": 10.0, "booting": 3.0}}  # fmt: skip


@pytest.mark.parametrize(
    ("action", "entries", "seconds"),
    [
        ("write", [WROTE], 25.0),
        ("write", [{**WROTE, "outcome": "failed"}, {**WROTE, "bytes": 2000}], 15.0),
        ("none", [WROTE, {"action": "none", "outcome": "up_to_date", "phases": {"a": 1.5}}], 1.5),
        ("switch", [WROTE], None),
        ("write", [], None),
        ("refuse", [{**WROTE, "action": "refuse"}], None),
        ("write", [{"action": "write", "outcome": "up_to_date"}], None),
    ],
)  # fmt: skip
def test_how_long_it_takes_is_what_was_measured(
    action: str, entries: list[dict[str, Any]], seconds: float | None
) -> None:
    """By an update of the same kind that ended well, the writing in proportion to the bytes."""
    assert expected_s(action, 2000, entries) == seconds
