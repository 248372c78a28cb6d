# SPDX-License-Identifier: GPL-3.0-or-later
"""One value in a JSON text set, added or taken out, and every other byte left as it is.

A machine's configuration belongs to people: they write numbers, blanks and an order of keys that
a parser would give back otherwise. So the text itself is edited. What an edit did is then checked
on the parsed values, against the same edit made on a parsed copy.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping
from json.decoder import scanstring  # type: ignore[attr-defined]  # known to all, told to no stub
from typing import Any

Step = str | int
Path = tuple[Step, ...]
Edits = Mapping[Path, str | None]
"""Path of a value -> its new JSON text; None: it is to go. The object that holds it may be
missing, and is made."""

_BLANK = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


class DocumentError(ValueError):
    """The text is no JSON object that could be edited without loss; in words."""


def parse(text: str) -> dict[str, Any]:
    """The object that `text` is. Raises DocumentError, also where a key stands twice: which of
    them counts is up to whoever reads it."""
    value = _loads(text, object_pairs_hook=_once)
    if not isinstance(value, dict):
        raise DocumentError("it is no JSON object")
    return value


def text_at(text: str, path: Path) -> str | None:
    """The JSON text of the value at `path`; None where there is none."""
    found = _span(text, path)
    return None if found is None else text[found[0] : found[1]]


def edited(text: str, edits: Edits) -> str:
    """`text` with `edits` and no other change. Raises DocumentError, before anything is lost."""
    wanted = copy.deepcopy(_exact(text))
    new = text
    for path, value in edits.items():
        _apply(wanted, path, value)
        new = _without(new, path) if value is None else _with(new, path, value)
    if json.dumps(_exact(new)) != json.dumps(wanted):
        raise DocumentError("it could not be changed without touching something else")
    return new


def same(one: str, other: str) -> bool:
    """Whether two texts are the same values: numbers as written, keys in any order."""
    if one == other:
        return True
    return bool(_exact(one) == _exact(other))


def dumps(value: Any) -> str:
    """A value as JSON text, with whole floats as the integers that they were before a Struct."""
    return json.dumps(_whole(value), ensure_ascii=False)


# --- inside


def _loads(text: str, **options: Any) -> Any:
    try:
        return json.loads(text, **options)
    except DocumentError:
        raise
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"it is no JSON that can be read ({error})") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
        raise DocumentError(f'the key "{twice}" stands in it twice')
    return made


def _exact(text: str) -> Any:
    """Parsed, with each number as it is written, and told from a text."""
    return _loads(text, parse_int=_number, parse_float=_number, object_pairs_hook=_once)


def _number(written: str) -> list[str]:
    return ["number", written]


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list | tuple) else value


def _apply(value: Any, path: Path, new: str | None) -> None:
    """The same edit on parsed values."""
    *way, last = path
    for step in way:
        if isinstance(value, dict) and step not in value:
            if new is None:
                return
            value[step] = {}
        holder: Any = value if isinstance(value, dict | list) else {step: None}
        value = holder[step]
    if new is None:
        if isinstance(value, dict):
            value.pop(last, None)
    elif isinstance(value, dict if isinstance(last, str) else list):
        value[last] = _exact(new)  # type: ignore[index]
    else:
        raise DocumentError(f"there is no object where {json.dumps(last)} could stand")


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    assert found is not None  # it may be empty
    return found.end()


def _members(text: str, at: int) -> Iterable[tuple[Step, int, int, int]]:
    """Of the object or list that begins at `at`: step, where its member begins, and the span of
    its value."""
    is_object, index = text[at] == "{", 0
    at = _skip(text, at + 1)
    while text[at] not in "}]":
        begin = at
        step: Step = index
        if is_object:
            step, at = scanstring(text, at + 1)
            at = _skip(text, _skip(text, at) + 1)
        _, end = _DECODER.raw_decode(text, at)
        yield step, begin, at, end
        index, at = index + 1, _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)


def _span(text: str, path: Path) -> tuple[int, int] | None:
    at = _skip(text, 0)
    span = (at, _DECODER.raw_decode(text, at)[1])
    for step in path:
        if text[span[0]] not in "{[":
            return None
        for name, _, begin, end in _members(text, span[0]):
            if name == step and type(name) is type(step):
                span = (begin, end)
                break
        else:
            return None
    return span


def _with(text: str, path: Path, value: str) -> str:
    found = _span(text, path)
    if found is not None:
        return text[: found[0]] + value + text[found[1] :]
    *way, last = path
    holder = _span(text, tuple(way))
    if holder is None:
        return _with(text, tuple(way), f"{{{json.dumps(last)}: {value}}}")
    if text[holder[0]] != "{":
        raise DocumentError(f"there is no object where {json.dumps(last)} could stand")
    member = f"{json.dumps(last, ensure_ascii=False)}: {value}"
    members = list(_members(text, holder[0]))
    if not members:
        return text[: holder[0]] + "{" + member + text[_skip(text, holder[0] + 1) :]
    # As its neighbours stand: on a line of its own, or behind them.
    _, begin, _, end = members[-1]
    before = text[:begin].rpartition("\n")
    margin = f"\n{before[2]}" if before[1] and not before[2].strip() else " "
    return text[:end] + "," + margin + member + text[end:]


def _without(text: str, path: Path) -> str:
    *way, last = path
    holder = _span(text, tuple(way))
    if holder is None or text[holder[0]] != "{":
        return text
    members = list(_members(text, holder[0]))
    index = next((i for i, member in enumerate(members) if member[0] == last), None)
    if index is None:
        return text
    _, begin, _, end = members[index]
    if index:  # with the comma before it
        begin = members[index - 1][3]
    elif len(members) > 1:
        end = members[1][1]
    return text[:begin] + text[end:]
