# SPDX-License-Identifier: GPL-3.0-or-later
"""Three values of a configuration are changed, and not a byte of anything else."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ota_service.rollout import change
from ota_service.rollout.change import Source, UnfitError
from ota_service.rollout.document import DocumentError, Path, edited, parse, same, text_at
from ota_service.rollout.plan import parse_plan

FRAGMENT = "11d1059b"
SOURCE = Source(FRAGMENT, {"url": "fw_url", "version": "fw_version"})


def plan_of(mode: str, **target: str) -> Any:
    """A plan of this mode to version 2."""
    whole = {
        "select": {"organization": "o"},
        "target": {"url": "http://new/b.bin", "version": "2", **target},
        "mode": mode,
        "waves": [1],
    }
    return parse_plan(json.dumps(whole))


# --- the text

keys = st.text(st.characters(codec="utf-8"), max_size=4)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), keys
)
objects = st.recursive(
    st.dictionaries(keys, leaves, max_size=4),
    lambda inner: st.dictionaries(keys, inner | st.lists(inner | leaves, max_size=3), max_size=4),
    max_leaves=12,
)


def paths(value: Any, way: Path = ()) -> list[Path]:
    """Of every value in it."""
    found = [way] if way else []
    pairs = value.items() if isinstance(value, dict) else (
        enumerate(value) if isinstance(value, list) else ()
    )  # fmt: skip
    for step, inner in pairs:
        found += paths(inner, (*way, step))
    return found


@pytest.mark.slow
@settings(max_examples=60)
@given(objects, st.data())
def test_an_edit_changes_its_value_alone(value: dict[str, Any], data: st.DataObject) -> None:
    """Against the same edit of a parsed copy, in order; and back again, byte for byte."""
    indent = data.draw(st.sampled_from([None, 1, 4]))
    escaped = data.draw(st.booleans())
    text = json.dumps(value, indent=indent, ensure_ascii=escaped) + data.draw(
        st.sampled_from(["", "\n", " \t\r\n"])
    )
    there = paths(value)
    fresh = (data.draw(keys.filter(lambda key: key not in value)), "deep", "deeper")
    path = data.draw(st.sampled_from([*there, fresh]))
    made = edited(text, {path: '"new"'})
    wanted: Any = copy.deepcopy(value)
    place = wanted
    for step in path[:-1]:
        place = place.setdefault(step, {}) if isinstance(place, dict) else place[step]
    place[path[-1]] = "new"
    assert json.dumps(json.loads(made)) == json.dumps(wanted)
    old = text_at(text, path)
    if old is not None:
        begin = text.rindex(old, 0, len(text)) if text.count(old) == 1 else None
        assert edited(made, {path: old}) == text
        if begin is not None:
            assert made == text[:begin] + '"new"' + text[begin + len(old) :]


@pytest.mark.slow
@settings(max_examples=40)
@given(objects, st.data())
def test_what_goes_leaves_the_rest(value: dict[str, Any], data: st.DataObject) -> None:
    """With its comma, and nothing else."""
    there = [path for path in paths(value) if isinstance(path[-1], str)]
    if not there:
        return
    path = data.draw(st.sampled_from(there))
    made = edited(json.dumps(value, indent=2), {path: None})
    wanted: Any = copy.deepcopy(value)
    place = wanted
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    assert json.dumps(json.loads(made)) == json.dumps(wanted)
    assert edited(made, {path: None}) == made


@pytest.mark.parametrize(
    ("text", "edits", "made"),
    [
        ('{"a": 1.0, "b" :2}', {("a",): "3"}, '{"a": 3, "b" :2}'),
        ('{"a": 1}', {("b",): "2"}, '{"a": 1, "b": 2}'),
        ('{\n  "a": 1\n}', {("b",): "2"}, '{\n  "a": 1,\n  "b": 2\n}'),
        ("{ }", {("b", "c"): "2"}, '{"b": {"c": 2}}'),
        ('{"a": 1, "b": 2, "c": 3}', {("b",): None}, '{"a": 1, "c": 3}'),
        ('{"a": 1, "b": 2}', {("a",): None}, '{"b": 2}'),
        ('{"a": 1}', {("a",): None}, "{}"),
        ('{"a": 1}', {("x", "y"): None}, '{"a": 1}'),
        ('{"l": [{"v": 1e3}, {"v": 2}]}', {("l", 1, "v"): "9"}, '{"l": [{"v": 1e3}, {"v": 9}]}'),
        ('{"\\u00fc": 1}', {("ü",): "2"}, '{"\\u00fc": 2}'),
    ],
)
def test_how_it_stands_there(text: str, edits: dict[Path, str | None], made: str) -> None:
    """As its neighbours do."""
    assert edited(text, edits) == made


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"a": 1, "a": 2}', '{"x": {"a": 1, "a": 1}}', '{"a": ', "{'a': 1}", '"a"', "1"],
)
def test_what_cannot_be_edited_without_loss_is_refused(text: str) -> None:
    """Such as a key that stands twice: which one counts is up to whoever reads it."""
    with pytest.raises(DocumentError):
        parse(text)
    with pytest.raises(DocumentError):
        edited(text, {("a",): "2"})


def test_numbers_are_the_same_as_they_are_written() -> None:
    """1.0 is not 1 for whoever wants an integer; blanks and the order of keys are nobody's."""
    assert same('{"a":1, "b":[1.50]}', '{"b": [1.50],"a": 1}')
    assert not same('{"a": 1}', '{"a": 1.0}')
    assert not same('{"a": 1}', '{"a": "1"}')


# --- the configuration


ATTRIBUTES = {
    "services": [
        {"name": "other", "attributes": {"version": "1"}},
        {"name": "OTA", "attributes": {"version": "1", "url": "http://old/a.bin", "sha256": "aa"}},
    ]
}
VARIABLES: dict[str, Any] = {
    "fragments": [
        "another",
        {"id": FRAGMENT, "variables": {"fw_version": "1", "fw_url": "http://old/a.bin", "n": 7}},
    ]
}


@pytest.mark.parametrize(
    ("mode", "config", "source", "path"),
    [
        ("attributes", ATTRIBUTES, Source(), ("services", 1, "attributes")),
        ("variables", VARIABLES, SOURCE, ("fragments", 1, "variables")),
    ],
)
def test_the_target_comes_and_goes(mode: str, config: Any, source: Source, path: Path) -> None:
    """A digest of another file goes with it, and comes back; byte for byte."""
    plan, text = plan_of(mode), json.dumps(config, indent=3)
    where = change.spots(plan, text, source)
    before = change.values(text, where)
    assert not change.holds(before, change.wanted(plan))
    made = change.written(text, where, change.wanted(plan))
    assert change.holds(change.values(made, where), change.wanted(plan))
    holder: Any = json.loads(made)
    for step in path:
        holder = holder[step]
    prefix = "fw_" if mode == "variables" else ""
    assert (holder[f"{prefix}url"], holder[f"{prefix}version"]) == ("http://new/b.bin", "2")
    assert "sha256" not in holder
    back = change.restored(made, where, before)
    assert json.loads(back) == config
    assert change.diff(before, change.wanted(plan))[:2] == [
        "- url: http://old/a.bin",
        "+ url: http://new/b.bin",
    ]


def test_a_variable_for_the_digest_is_never_left_without_a_value() -> None:
    """One that is taken away becomes empty text, which is no digest for the service."""
    source = Source(FRAGMENT, {**SOURCE.names, "sha256": "fw_sha"})
    config = copy.deepcopy(VARIABLES)
    config["fragments"][1]["variables"]["fw_sha"] = "aa"
    plan, text = plan_of("variables"), json.dumps(config)
    where = change.spots(plan, text, source)
    made = change.written(text, where, change.wanted(plan))
    assert json.loads(made)["fragments"][1]["variables"]["fw_sha"] == ""
    assert change.holds(change.values(made, where), change.wanted(plan))
    with_digest = plan_of("variables", sha256="ab" * 32)
    made = change.written(text, where, change.wanted(with_digest))
    assert json.loads(made)["fragments"][1]["variables"]["fw_sha"] == "ab" * 32


def test_a_fragment_that_is_only_its_id_gets_its_variables() -> None:
    """It becomes an object; with the whole text kept, undo makes it an id again."""
    plan, text = plan_of("variables"), json.dumps({"fragments": [FRAGMENT], "x": 1.0})
    where = change.spots(plan, text, SOURCE)
    made = change.written(text, where, change.wanted(plan))
    assert json.loads(made) == {
        "fragments": [
            {"id": FRAGMENT, "variables": {"fw_url": "http://new/b.bin", "fw_version": "2"}}
        ],
        "x": 1.0,
    }


@pytest.mark.parametrize(
    ("mode", "config", "target", "words"),
    [
        ("attributes", {}, {}, 'no service "OTA"'),
        ("attributes", VARIABLES, {}, "of its own (one of a fragment is for mode variables)"),
        ("attributes", {"services": [{"name": "OTA"}] * 2}, {}, 'more than one service "OTA"'),
        ("attributes", {"services": [{"name": "OTA", "attributes": None}]}, {}, "no object"),
        ("variables", {"fragments": [{"id": FRAGMENT, "variables": []}]}, {}, "no object"),
        ("variables", ATTRIBUTES, {}, f"no fragment {FRAGMENT}"),
        ("variables", {"fragments": [FRAGMENT, {"id": FRAGMENT}]}, {}, "more than one fragment"),
        ("variables", VARIABLES, {"sha256": "ab" * 32}, "no variable for the service's sha256"),
        (
            "variables",
            {**VARIABLES, "fragment_mods": [{"fragment_id": FRAGMENT, "mods": [
                {"$set": {"services.OTA.attributes.version": "9"}}]}]},
            {},
            "fragment_mods change services.OTA.attributes.version",
        ),
        (
            "variables",
            {**VARIABLES, "fragment_mods": [{"fragment_id": "x", "mods": [{"$set": {"a": 1}}]},
                {"fragment_id": FRAGMENT, "mods": [
                {"$set": 1}, {"$unset": {"services.OTA.attributes": ""}}]}]},
            {},
            "fragment_mods change services.OTA.attributes",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_changed_is_said(
    mode: str, config: Any, target: dict[str, str], words: str
) -> None:
    """Before anything is."""
    with pytest.raises(UnfitError) as told:
        change.spots(plan_of(mode, **target), json.dumps(config), SOURCE)
    assert words in str(told.value)


ATTRIBUTE = "services.OTA.attributes.auto_update"


@pytest.mark.parametrize(
    ("given", "mod", "waits"),
    [
        (None, {}, False),
        (True, {}, False),
        (False, {}, True),
        ({"$variable": {"name": "auto"}}, {}, True),
        ({"$variable": {"name": "another"}}, {}, False),
        (False, {"$set": {ATTRIBUTE: True}}, False),
        (False, {"$unset": {ATTRIBUTE: ""}}, False),
        (None, {"$set": {ATTRIBUTE: False}}, True),
        (None, {"$set": {"services.OTA.attributes": {"auto_update": False}}}, True),
        (None, {"$set": {"services.OTA": {"attributes": {"auto_update": False}}}}, True),
        (False, {"$set": {"services.OTA.attributes.boards": []}}, True),
        (None, {"$set": {ATTRIBUTE + "s": False, "services.OTHER.attributes": {}}}, False),
    ],
)
def test_who_waits_for_a_command(given: Any, mod: dict[str, Any], waits: bool) -> None:
    """By what the fragment has, the part's variables, and its fragment_mods of that fragment."""
    text = json.dumps(
        {
            "fragments": ["x", {"id": FRAGMENT, "variables": {"auto": False}}],
            "fragment_mods": [
                {"fragment_id": "x", "mods": [{"$set": {ATTRIBUTE: not waits}}]},
                {"fragment_id": FRAGMENT, "mods": [mod]},
            ],
        }
    )
    assert change.waits_for_command(text, "OTA", SOURCE, given) is waits
    own = json.dumps({"services": [{"name": "OTA", "attributes": {"auto_update": given}}]})
    assert change.waits_for_command(own, "OTA", Source(), None) is (given is False)


def test_what_a_configuration_says_of_boards_sensor_and_variables() -> None:
    """Pinned boards, also those of fragment_mods; the sensor of this service; the variables."""
    boards = [{"name": "a", "version": "1"}, {"name": "b"}, {"name": "c", "sha256": "ab"}]
    mods = [{"fragment_id": "f", "mods": [{"$set": {"services.OTA.attributes.boards": boards}}]}]
    config = {
        "services": [{"name": "OTA", "attributes": {"boards": [{"name": "d", "version": "2"}]}}],
        "fragment_mods": mods,
        "components": [
            {"name": "s1", "model": "acme:generic:ota_sensor", "attributes": {"service": "OTHER"}},
            {
                "name": "s2",
                "model": "rdk:generic:ota_sensor",
                "attributes": {"service": "rdk:service:generic/OTA"},
            },
        ],
    }
    assert change.pinned(json.dumps(config), "OTA") == {"a", "c", "d"}
    assert change.sensor_of(json.dumps(config), "OTA") == "s2"
    assert change.sensor_of("{}", "OTA") is None
    variable = {"url": {"$variable": {"name": "u"}}, "version": {"$variable": {"name": "v"}}}
    fragment = {"services": [{"name": "OTA", "attributes": variable}]}
    assert change.variables_of(fragment, "OTA") == {"url": "u", "version": "v"}
    with pytest.raises(UnfitError, match="no variable for url and version"):
        change.variables_of({"services": []}, "OTA")
