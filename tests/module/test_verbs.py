# SPDX-License-Identifier: GPL-3.0-or-later
"""DoCommand's two forms, what each verb takes, and how a mistake is answered."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ota_service.module.verbs import VERBS, Verb, VerbError, help_reply, parse_command


@pytest.mark.parametrize("nothing", [True, "", {}, 0, 0.0, None])
def test_a_verb_without_arguments_can_be_written_in_many_ways(nothing: object) -> None:
    """JSON has no form for it, and null arrives as 0."""
    assert parse_command({"status": nothing}) == ("status", {})


def test_both_forms_mean_the_same() -> None:
    """Data capture and jobs use the one, people at the app's test card the other."""
    arguments = {"boards": ["kitchen"], "force": True, "wait_s": 5.0}
    assert parse_command({"command": "update", **arguments}) == parse_command({"update": arguments})


def test_arguments_get_their_defaults() -> None:
    """The fleet gets every switch, and a time to wait only where a verb waits."""
    switches = {"force": False, "rescue": False, "probe": False, "dry_run": False}
    assert parse_command({"update": {}}) == ("update", switches)
    assert parse_command({"update": {"dry_run": True}}) == (
        "update",
        switches | {"dry_run": True, "wait_s": 30.0},
    )
    assert parse_command({"version": {}}) == ("version", {"wait_s": 30.0})
    assert parse_command({"version": {"boards": "a", "wait_s": 8}}) == (
        "version",
        {"boards": ["a"], "wait_s": 8.0},
    )


def test_what_is_overridden_and_rescued_is_named() -> None:
    """Each override by itself; a rescue with the board and its MAC in any spelling."""
    asked = parse_command({"update": {"override": ["stopped", "other-project", "stopped"]}})[1]
    assert asked["override"] == ["stopped", "other-project"]
    rescue = {"rescue": True, "boards": ["a"], "confirm": "24-0A-C4-00-00-01"}
    assert parse_command({"update": rescue})[1]["confirm"] == "24:0a:c4:00:00:01"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ({}, "the command is empty. The verbs are"),
        ({"command": "updat"}, 'no verb "updat"; did you mean update? The verbs are activate, '),
        ({"Status": {}}, "did you mean status?"),
        ({"stats": "x"}, "did you mean status?"),
        (
            {"comand": "update"},
            'no verb "comand"; did you mean "command"? The verbs are activate, ',
        ),
        ({"Command": "status"}, 'did you mean "command"?'),
        ({"comand": "update", "boards": ["a"]}, 'has 2 keys; did you mean "command"? The verbs'),
        ({"command": "comand"}, 'there is no verb "comand". The verbs are activate, '),
        ({"command": "firmware"}, 'there is no verb "firmware". The verbs are activate, '),
        ({"command": 5}, "must be the name of a verb"),
        ({"update": {}, "boards": ["a"]}, "arguments go inside the verb's object"),
        ({"a": 1, "b": 2}, "one verb; this one has 2 keys"),
        ({"update": False}, "the arguments of update must be an object"),
        ({"update": "kitchen"}, "the arguments of update must be an object"),
        ({"update": ["kitchen"]}, "the arguments of update must be an object"),
        ({"command": "update", "bords": []}, "no argument bords; did you mean boards?"),
        ({"status": {"boards": ["a"]}}, "status takes no arguments, but boards was given"),
        ({"update": {"boards": []}}, "names no board; leave boards out"),
        ({"update": {"boards": [1.0]}}, "must be a list of names"),
        ({"update": {"force": 1.0}}, "force: must be true or false"),
        ({"update": {"override": ["wrong-board"]}}, '"wrong-board" cannot be overridden; what can'),
        ({"update": {"override": ["x"]}}, "is not-allowed-now, stopped, other-project"),
        ({"update": {"override": True}}, "override: must be a list of what is overridden"),
        ({"update": {"rescue": True}}, "with rescue needs boards"),
        ({"update": {"rescue": True, "boards": ["a", "b"]}}, "just the one board that is meant"),
        ({"update": {"rescue": True, "boards": ["a"]}}, "needs confirm, the board's MAC"),
        ({"update": {"rescue": True, "boards": "a", "confirm": "x"}}, "confirm: must be six pairs"),
        ({"update": {"confirm": "24:0a:c4:00:00:01"}}, "takes confirm with rescue only"),
        ({"update": {"wait_s": "5"}}, "wait_s: must be a number"),
        ({"version": {"wait_s": -1.0}}, "wait_s: -1 is out of range"),
        ({"version": {"wait_s": float("nan")}}, "out of range"),
        ({"history": {"board": 5.0}}, "history: board: must be text."),
        ({"history": {"id": True}}, "history: id: must be text."),
        (
            {"command": "flash", "board": "", "path": "/x", "confirm": "24:0a:c4:00:00:01"},
            "flash: board: is empty.",
        ),
    ],
)
def test_what_is_not_understood_is_answered_with_what_exists(
    command: dict[str, Any], words: str
) -> None:
    """The answer is read in an app far away from the documentation."""
    with pytest.raises(VerbError) as caught:
        parse_command(command)
    assert words in str(caught.value)


@pytest.mark.parametrize("verb", [verb for verb in VERBS.values() if verb.restarts != "none"])
def test_a_verb_that_restarts_is_hinted_at_only_where_it_is_very_near(verb: Verb) -> None:
    """A letter too few is a slip; who meant something else must not be led to a restart."""
    for name, hinted in ((verb.name[:-1], True), (verb.name[:3], False), ("comand", False)):
        with pytest.raises(VerbError) as caught:
            parse_command({"command": name})
        assert (f"did you mean {verb.name}?" in str(caught.value)) is hinted, name


def test_all_mistakes_in_arguments_are_named_at_once() -> None:
    """One round must do; a sentence each."""
    with pytest.raises(VerbError) as caught:
        parse_command({"update": {"force": "yes", "wait_s": -1.0, "bords": 1.0}})
    assert str(caught.value) == (
        "update: force: must be true or false, without quotation marks. "
        "update: wait_s: -1 is out of range; it may be 0 to 86,400 s. "
        "update has no argument bords; did you mean boards? It takes boards, force, "
        "override, rescue, confirm, probe, dry_run, wait_s."
    )


def test_help_describes_every_verb_and_argument() -> None:
    """Who has only the app can learn everything from help."""
    verbs = help_reply()["verbs"]
    assert verbs.keys() == VERBS.keys()
    for name, verb in VERBS.items():
        assert verbs[name]["arguments"].keys() == verb.arguments.model_fields.keys()
        for argument in verbs[name]["arguments"].values():
            assert argument["does"]
            assert argument["type"]


_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=8) | st.just(0),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["boards", "force", "wait_s", "dry_run"]) | st.text(max_size=4), inner
        )
    ),
    max_leaves=6,
)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from([*VERBS, "command"]) | st.text(max_size=6), _VALUES))
def test_any_command_is_understood_or_refused(command: dict[str, Any]) -> None:
    """Nothing that a client may send ends in another exception."""
    try:
        assert parse_command(command)[0] in VERBS
    except VerbError as error:
        assert str(error)
