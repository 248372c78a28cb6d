# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of single values that come from a person, and the words for what is wrong with them.

Each check takes any value and returns it in the form that the program uses, or raises a
PydanticCustomError whose text continues "ATTRIBUTE: ...". They are made for pydantic's
BeforeValidator, in fields of models that are `Strict`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BeforeValidator

from ota_service.firmware import target
from ota_service.firmware.expectation import Expectation, PatternError
from ota_service.firmware.manifest import Strict as Strict
from ota_service.firmware.manifest import a_fault as a_fault
from ota_service.firmware.target import Headers
from ota_service.firmware.urls import check_url
from ota_service.link.ports import is_url, problem
from ota_service.link.resets import ResetPins

UNSET = ("", None)

_WORDS = {
    "bool_type": "must be true or false, without quotation marks",
    "string_type": "must be text",
    "string_too_short": "is empty",
}
"""Pydantic's kinds of faults in our words."""

RESET_EXAMPLE = '{"gpiochip": "/dev/gpiochip0", "pins": {"en": 17, "boot": 18}}'
_HEADERS_EXAMPLE = '{"Authorization": {"file": "/etc/ota/token"}}'
# RFC 9110, section 5.6.2.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")
_OWN_HEADERS = frozenset(
    {"accept-encoding", "connection", "content-length", "host", "range", "te", "trailer"}
    | {"transfer-encoding", "upgrade", "if-match", "if-modified-since", "if-none-match", "if-range"}
)

# A longer word is like none of ours, and comparing takes the square of its length.
_COMPARED_CHARS = 100


def check_text(value: object, words: str = "") -> str:
    """Text; `words` say what it should be."""
    if not isinstance(value, str):
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise a_fault(f"must be text: quote it as it was written, {_as_written(value)}")
        raise a_fault("must be text" + (f", {words}" if words else ""))
    return value


def _as_written(value: float) -> str:
    """A number in quotation marks as it may have been written: 1.0 and 1 are one for JSON."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f'"{value:.1f}" or "{value:.0f}"'
    return f'"{value!r}"'


def _passed(value: object, problem: Callable[[str], str | None], words: str = "") -> str:
    """Text of which `problem` says nothing; `words` say what it should be."""
    text = check_text(value, words)
    if wrong := problem(text):
        raise a_fault(wrong)
    return text


def check_firmware_url(value: object) -> str:
    """The address of a firmware."""
    return _passed(value, check_url)


def check_version(value: object) -> str:
    """A version tag that fits a board's NVS."""
    return _passed(value, target.check_version)


def check_sha256(value: object) -> str:
    """A digest in lower case."""
    return _passed(value, target.check_sha256, "64 hex digits").lower()


def check_headers(value: object) -> Headers | None:
    """Request headers: names, and for each a text or {"file": PATH}."""
    if not isinstance(value, Mapping):
        raise a_fault(f"must be an object, such as {_HEADERS_EXAMPLE}")
    found: list[tuple[str, str | Path]] = []
    for name, given in value.items():
        if not isinstance(name, str) or not _TOKEN.fullmatch(name):
            raise a_fault("has a name that no header can have")
        if name.lower() in _OWN_HEADERS:
            raise a_fault(f"may not set {name}, which the download itself needs")
        if isinstance(given, Mapping):
            if list(given) != ["file"]:
                raise a_fault(f'{name} must be a text, or {{"file": PATH}}')
            found.append((name, Path(check_path(given["file"]))))
            continue
        text = check_text(given, "the header's value")
        if not text or not text.isascii() or not text.isprintable() or len(text) > 8000:
            raise a_fault(f"{name} must be one line of at most 8,000 ASCII characters")
        found.append((name, text.strip()))
    return tuple(found) or None


def check_name(value: object) -> str:
    """A name that can be shown in a line."""
    name = check_text(value)
    if not name.strip():
        raise a_fault('is empty; give the board a name, such as "kitchen"')
    return _passed(name, target.check_name)


def name_type(words: str) -> BeforeValidator:
    """The pydantic validator of a name; words: to be filled in where it is empty."""

    def check(value: object) -> str:
        if not value:
            raise a_fault(f"is empty; fill in {words}")
        return check_name(value)

    return BeforeValidator(check)


def check_mac(value: object) -> str:
    """A MAC as aa:bb:cc:dd:ee:ff, however it was written."""
    digits = check_text(value, 'such as "24:0a:c4:12:34:56"').replace("-", ":").lower()
    if re.fullmatch(r"[0-9a-f]{12}", digits):
        digits = ":".join(digits[at : at + 2] for at in range(0, 12, 2))
    if not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", digits):
        raise a_fault('must be six pairs of hex digits, such as "24:0a:c4:12:34:56"')
    return digits


def check_port(value: object) -> str:
    """A port's path or url."""
    port = check_text(value, "the path or url of a port")
    if not (is_url(port) or port.startswith("/") or re.fullmatch(r"COM\d+", port)):
        raise a_fault(
            'must be a device\'s whole path, such as "/dev/serial/by-path/..." or "/dev/ttyUSB0", '
            "or the url of a port"
        )
    return _passed(port, problem)


def check_reset(value: object) -> ResetPins:
    """Lines of a GPIO chip."""
    if not isinstance(value, Mapping) or set(value) != {"gpiochip", "pins"}:
        raise a_fault(f"must be an object, such as {RESET_EXAMPLE}")
    pins = value["pins"]
    if not isinstance(pins, Mapping) or set(pins) != {"en", "boot"}:
        raise a_fault(f"pins must name the lines en and boot, such as {RESET_EXAMPLE}")
    en, boot = (check_whole(pins[name], 0, 1023, f" ({name})") for name in ("en", "boot"))
    if en == boot:
        raise a_fault("pins must be two lines: en and boot are the same one")
    return ResetPins(check_path(value["gpiochip"]), en, boot)


def check_number(value: object, low: float, high: float, unit: str, kind: str = "number") -> float:
    """A finite number within bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise a_fault(f"must be a {kind}, from {low:,.15g} to {high:,.15g}{unit}")
    # NaN compares false with everything, so it must not slip through "too low or too high".
    if not low <= value <= high:
        raise a_fault(f"{value:,.15g} is out of range; it may be {low:,.15g} to {high:,.15g}{unit}")
    return float(value)


def check_whole(value: object, low: int, high: int, unit: str) -> int:
    """A whole number within bounds."""
    if isinstance(value, float) and not value.is_integer():  # Viam carries each as a float
        raise a_fault(f"{value:g} is not a whole number")
    return int(check_number(value, low, high, unit, "whole number"))


def check_path(value: object) -> str:
    """A whole path, with ~ resolved."""
    path = check_text(value, "the path of a file or folder")
    if "\0" in path or not os.path.expanduser(path).startswith("/"):
        raise a_fault("must be a whole path, from / on")
    return os.path.expanduser(path)


def check_values(value: object) -> dict[str, Any]:
    """An object of a command: what it may hold is the resource's own business."""
    if not isinstance(value, Mapping):
        raise a_fault('must be an object, such as {"command": "park"}')
    return dict(value)


def check_expected(value: object) -> dict[str, Any]:
    """What a reply must have. Viam's way makes null 0, so nobody can tell them apart there."""
    expected = check_values(value)
    if _has_null(expected):
        raise a_fault("holds null, which no reply can have: leave the key out")
    return expected


def _has_null(value: object) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    return any(map(_has_null, value)) if isinstance(value, list | tuple) else value is None


def one_of(one: str, other: str) -> Callable[[object], str]:
    """A check for one of two words."""

    def check(value: object) -> str:
        if value not in (one, other):
            raise a_fault(f'must be "{one}" or "{other}"')
        return str(value)

    return check


def check_pattern(value: object) -> str:
    """A regular expression that a line can be searched for."""
    pattern = check_text(value, "a regular expression")
    try:
        Expectation(pattern)
    except PatternError as error:
        raise a_fault(str(error)) from None
    return pattern


def whole_type(low: int, high: int, unit: str = "") -> BeforeValidator:
    """The pydantic validator of whole numbers from `low` to `high`."""
    return BeforeValidator(partial(check_whole, low=low, high=high, unit=unit))


def number_type(low: float, high: float, unit: str = "") -> BeforeValidator:
    """The pydantic validator of numbers from `low` to `high`."""
    return BeforeValidator(partial(check_number, low=low, high=high, unit=unit))


def optional_type(check: Callable[[object], object]) -> BeforeValidator:
    """The pydantic validator of a value that may be left out, or else passes `check`."""
    return BeforeValidator(lambda value: None if value in UNSET else check(value))


def words_of(fault: Mapping[str, Any]) -> str:
    """What is wrong with a single value, of what pydantic found: it continues "NAME: ..."."""
    return _WORDS.get(fault["type"], str(fault["msg"]))


def where(loc: Sequence[str | int]) -> str:
    """A place in nested values as a person writes it: boards[1].mac."""
    shown = ""
    for part in loc:
        shown += f"[{part}]" if isinstance(part, int) else f".{part}" if shown else str(part)
    return shown


def nearest(name: str, known: Sequence[str]) -> str | None:
    """The one of `known` that is near, by its letters or by having all the words of the other."""
    words = set(_folded(name).split("_"))
    alike = [word for word in known if words <= {*word.split("_")} or words >= {*word.split("_")}]
    return near(name, dict.fromkeys(alike or known, 0 if alike else 0.6))


def near(name: str, known: Mapping[str, float]) -> str | None:
    """The one of `known` that is most like `name`, of those that are as like it as their number
    asks for: from 0 (whatever it is) to 1 (the same)."""
    likeness = {word: SequenceMatcher(None, _folded(name), word).ratio() for word in known}
    close = [word for word in known if likeness[word] >= known[word]]
    return max(close, key=likeness.__getitem__, default=None)


def sentences(faults: Iterable[str]) -> str:
    """Faults in one text: a sentence each, since there are semicolons in them."""
    return " ".join(text if text.endswith((".", "?")) else f"{text}." for text in faults)


def _folded(name: str) -> str:
    return name[:_COMPARED_CHARS].casefold().replace("-", "_").replace(" ", "_")
