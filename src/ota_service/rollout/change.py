# SPDX-License-Identifier: GPL-3.0-or-later
"""What a rollout changes in a machine's configuration, and nothing else. Pure.

A configuration is the JSON text of a machine's part. Of it three values are ours: the url, the
version and the digest, as attributes of the service or as variables of its fragment. Where these
stand is looked up anew each time, since people move things.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ota_service.firmware.urls import redact
from ota_service.rollout.document import DocumentError, Edits, Path, edited, parse, same, text_at
from ota_service.rollout.plan import KEYS, Plan

Values = dict[str, str | None]
"""Of url, version and sha256: the JSON text as it stands there; None: it does not."""


@dataclass(frozen=True, slots=True)
class Source:
    """Which fragment's variables the service of a part gets its values from; names: of url,
    version and perhaps sha256. Without a fragment: the part's own service has them."""

    fragment: str = ""
    names: Mapping[str, str] = field(default_factory=dict)


class UnfitError(ValueError):
    """This machine's configuration cannot be changed as the plan says; in words."""


@dataclass(frozen=True, slots=True)
class Spots:
    """Where the values stand in one configuration. bare: the entry of a fragment that is only its
    id; it becomes an object. In variables, what has no value is empty text."""

    paths: dict[str, Path]
    bare: Path | None = None
    empties: bool = False


def spots(plan: Plan, text: str, source: Source) -> Spots:
    """Where a configuration has the three values. Raises UnfitError."""
    try:
        config = parse(text)
    except DocumentError as error:
        raise UnfitError(f"its configuration cannot be edited: {error}") from None
    if plan.mode == "attributes":
        index = _only(_services(config, plan.service), f'service "{plan.service}"', _hint(config))
        _holder(config["services"][index], "attributes")
        return Spots({key: ("services", index, "attributes", key) for key in KEYS})
    entries = list(enumerate(_entries(config)))
    found = [number for number, entry in entries if entry.get("id") == source.fragment]
    index = _only(found, f"fragment {source.fragment}")
    for fragment, path, _ in _mods(config, "$set", "$unset", "$rename"):
        if fragment == source.fragment and any(
            _covers(path, f"services.{plan.service}.attributes.{key}") for key in source.names
        ):
            raise UnfitError(
                f"its fragment_mods change {path}, so that variables have no effect on it"
            )
    if plan.target.sha256 and "sha256" not in source.names:
        raise UnfitError("its fragment has no variable for the service's sha256")
    bare = not isinstance(config["fragments"][index], dict)
    _holder(entries[index][1], "variables")
    way: Path = ("fragments", index, "variables")
    return Spots(
        {key: (*way, name) for key, name in source.names.items()},
        bare=("fragments", index) if bare else None,
        empties=True,
    )


def fragments(text: str) -> list[tuple[str, str]]:
    """The fragments of a configuration, each with its version ("": the newest).

    Raises UnfitError.
    """
    try:
        return included(parse(text))
    except DocumentError as error:
        raise UnfitError(f"its configuration cannot be read: {error}") from None


def included(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The same of one that is parsed: of a part, or of a fragment, which may include others."""
    entries = _entries(config)
    return [(str(entry.get("id", "")), str(entry.get("version") or "")) for entry in entries]


def values(text: str, where: Spots) -> Values:
    """What a configuration has there now."""
    return {key: text_at(text, path) for key, path in where.paths.items()}


def wanted(plan: Plan) -> Values:
    """What the plan wants there."""
    target = plan.target
    return {
        "url": json.dumps(target.url),
        "version": json.dumps(target.version),
        "sha256": json.dumps(target.sha256) if target.sha256 else None,
    }


def holds(found: Values, other: Values) -> bool:
    """Whether these are the same values; an empty digest is none."""
    return all(_alike(found.get(key), other.get(key)) for key in KEYS)


def written(text: str, where: Spots, new: Values) -> str:
    """The configuration with these values, and every other byte as it was. Raises UnfitError."""
    edits: dict[Path, str | None] = {}
    if where.bare is not None and any(new.values()):
        variables = {where.paths[key][-1]: json.loads(value) for key, value in new.items() if value}
        identity = json.loads(text_at(text, where.bare) or '""')
        edits[where.bare] = json.dumps({"id": identity, "variables": variables}, ensure_ascii=False)
        return _edited(text, edits)
    for key, path in where.paths.items():
        old, value = text_at(text, path), new.get(key)
        if value is None and old not in (None, '""') and where.empties:
            # Without a value the variable would be unresolved; as empty text it is no digest.
            value = '""'
        if value is None or old is None or not same(old, value):
            edits[path] = value
    return _edited(text, edits)


def restored(text: str, where: Spots, before: Values) -> str:
    """The configuration with the values of before: what was not there goes. Raises UnfitError."""
    return _edited(text, {path: before.get(key) for key, path in where.paths.items()})


def diff(before: Values, after: Values) -> list[str]:
    """What changes, as lines that begin with - or +, without secrets."""
    lines: list[str] = []
    for key in KEYS:
        if not _alike(before.get(key), after.get(key)):
            for mark, side in (("-", before), ("+", after)):
                if (value := side.get(key)) not in (None, '""'):
                    lines.append(f"{mark} {key}: {shown(value)}")
    return lines


def shown(value: str | None) -> str:
    """A value for people, without secrets."""
    return redact(str(json.loads(value))) if value else "none"


def variables_of(fragment: Mapping[str, Any], service: str) -> dict[str, str]:
    """Which variables a fragment's configuration has at the attributes of the service.

    Raises UnfitError where url or version is none.
    """
    attributes = attributes_of(fragment, service) or {}
    names = {key: _variable(attributes.get(key)) for key in KEYS}
    found = {key: name for key, name in names.items() if name is not None}
    missing = [key for key in ("url", "version") if key not in found]
    if missing:
        raise UnfitError(
            f'the fragment has no variable for {" and ".join(missing)} of a service "{service}"'
        )
    return found


def attributes_of(config: Mapping[str, Any], service: str) -> dict[str, Any] | None:
    """Of the service, where a part or a fragment has it."""
    for index in _services(config, service)[:1]:
        attributes = config["services"][index].get("attributes")
        return attributes if isinstance(attributes, dict) else {}
    return None


def waits_for_command(text: str, service: str, source: Source, given: Any) -> bool:
    """Whether the service of a part has `auto_update` false, as far as can be seen. given: what its
    fragment has there."""
    config, attribute = parse(text), f"services.{service}.attributes.auto_update"
    if not source.fragment:
        return (attributes_of(config, service) or {}).get("auto_update") is False
    if (name := _variable(given)) is not None:
        entries = (one for one in _entries(config) if one.get("id") == source.fragment)
        given = (next(entries, {}).get("variables") or {}).get(name)
    for operator in ("$unset", "$set"):
        for fragment, path, value in _mods(config, operator):
            if fragment == source.fragment and _covers(path, attribute):
                given = value if operator == "$set" else None
                for step in attribute[len(path) :].split(".")[1:]:
                    given = given.get(step) if isinstance(given, dict) else None
    return given is False


def pinned(text: str, service: str) -> set[str]:
    """The boards that a part's configuration pins to a url or version of their own."""
    config = parse(text)
    lists: list[Any] = [
        (config["services"][index].get("attributes") or {}).get("boards")
        for index in _services(config, service)
    ]
    lists += [
        value
        for _, path, value in _mods(config, "$set")
        if path == f"services.{service}.attributes.boards"
    ]
    return {
        str(board.get("name", ""))
        for boards in lists
        if isinstance(boards, list)
        for board in boards
        if isinstance(board, dict) and any(map(board.get, KEYS))
    }


def sensor_of(text: str, service: str) -> str | None:
    """The name of the maintenance sensor of the service in a configuration; None: there is none."""
    for component in _list(parse(text), "components"):
        if isinstance(component, dict) and "ota_sensor" in str(component.get("model", "")):
            attributes = component.get("attributes")
            named = attributes.get("service") if isinstance(attributes, dict) else None
            if str(named).rpartition("/")[2] == service:
                return str(component.get("name", ""))
    return None


# --- inside


def _edited(text: str, edits: Edits) -> str:
    try:
        return edited(text, edits)
    except DocumentError as error:
        raise UnfitError(f"its configuration cannot be edited: {error}") from None


def _alike(one: str | None, other: str | None) -> bool:
    if one in (None, '""') or other in (None, '""'):
        return one in (None, '""') and other in (None, '""')
    return same(str(one), str(other))


def _list(config: Mapping[str, Any], name: str) -> list[Any]:
    found = config.get(name)
    return found if isinstance(found, list) else []


def _entries(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The fragments of a configuration; one that is only an id as an object with it."""
    found = _list(config, "fragments")
    return [entry if isinstance(entry, dict) else {"id": entry} for entry in found]


def _services(config: Mapping[str, Any], service: str) -> list[int]:
    return [
        number
        for number, entry in enumerate(_list(config, "services"))
        if isinstance(entry, dict) and entry.get("name") == service
    ]


def _only(found: list[int], what: str, hint: str = "") -> int:
    if len(found) != 1:
        raise UnfitError(
            f"its configuration has {'no' if not found else 'more than one'} {what}{hint}"
        )
    return found[0]


def _holder(entry: Mapping[str, Any], name: str) -> None:
    if not isinstance(entry.get(name, {}), dict):
        raise UnfitError(f'its configuration has "{name}" that are no object')


def _hint(config: Mapping[str, Any]) -> str:
    return (
        " of its own (one of a fragment is for mode variables)" if config.get("fragments") else ""
    )


def _variable(value: Any) -> str | None:
    """The name of the variable that stands there; None: it is none."""
    inner = value.get("$variable") if isinstance(value, dict) else None
    return str(inner.get("name", "")) if isinstance(inner, dict) else None


def _mods(config: Mapping[str, Any], *operators: str) -> Iterator[tuple[str, str, Any]]:
    """What fragment_mods change by these operators: the fragment's id, the path, the value."""
    for entry in _list(config, "fragment_mods"):
        for mod in _list(entry, "mods") if isinstance(entry, dict) else ():
            for operator in operators if isinstance(mod, dict) else ():
                changed = mod.get(operator)
                for path, value in changed.items() if isinstance(changed, dict) else ():
                    yield str(entry.get("fragment_id", "")), path, value


def _covers(path: str, other: str) -> bool:
    return other == path or other.startswith(f"{path}.")
