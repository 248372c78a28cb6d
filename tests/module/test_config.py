# SPDX-License-Identifier: GPL-3.0-or-later
"""The service's attributes: what is taken, what is refused, and in which words."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from viam.proto.app.robot import ComponentConfig

from ota_service.errors import OtaError
from ota_service.fleet.settings import RobotCall
from ota_service.link.resets import ResetPins
from ota_service.module.config import parse_config
from ota_service.module.models import OtaService
from ota_service.module.plain import to_struct
from ota_service.module.service_attributes import ServiceConfig

GOOD: dict[str, Any] = {"url": "http://10.0.0.5:3001/app.bin", "version": "1.2.3"}
MAC = "24:0a:c4:12:34:56"
CALL: dict[str, Any] = {"resource": "arm", "command": {"do": "x"}}


def refusal(attributes: dict[str, Any]) -> list[str]:
    """The faults that parse_config reports, one a text."""
    with pytest.raises(OtaError) as caught:
        parse_config(attributes)
    assert caught.value.code == "config-invalid"
    # A sentence each, which begins with the place of what is wrong.
    return re.split(r"(?<=[.?]) (?=[^\s\"]+: )", caught.value.message)


def fault(**attributes: Any) -> str:
    """The one fault of a configuration that is good but for `attributes`."""
    faults = refusal(GOOD | attributes)
    assert len(faults) == 1, faults
    return faults[0]


def own(**attributes: Any) -> dict[str, Any]:
    """A configuration with one board that has attributes of its own."""
    return {"boards": [{"name": "a", "mac": MAC, **attributes}]}


def test_the_defaults_are_those_of_the_documentation() -> None:
    """What users read in docs/ota_service.md is what an absent attribute means."""
    config = parse_config(GOOD)
    page = (Path(__file__).parents[2] / "docs/ota_service.md").read_text()
    page = page.partition("### Attributes\n")[2].partition("\n### ")[0]
    rows = re.findall(r"^\| `(\w+)` \| [^|]+\| (Required|Optional) \| ([^|]*)\|", page, re.M)
    documented = {name: default.strip().strip('`"') for name, _, default in rows}
    assert {name: kind for name, kind, _ in rows if name in ("url", "version")} == {
        "url": "Required",
        "version": "Required",
    }
    own = {
        name: str(value).lower()
        if isinstance(value, bool)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
        for name, value in config.model_dump().items()
        if value is not None and name not in GOOD
    }
    assert {name: documented[name] for name in own} == own
    assert set(ServiceConfig.model_fields) <= set(documented)


def test_the_guides_empty_configuration_says_what_to_fill_in() -> None:
    """The OTA guide's snippet has empty strings: a person must learn what belongs there."""
    faults = refusal({"url": "", "version": ""})
    assert len(faults) == 2
    assert faults[0].startswith("url: is empty; fill in the http or https address of the App Image")
    assert faults[1].startswith("version: is empty; fill in the tag")


def test_the_whole_message_reads_as_sentences() -> None:
    """The remedy follows in the log and in the app: it must not run into the last fault."""
    with pytest.raises(OtaError) as caught:
        parse_config({"url": "", "version": "", "bord": []})
    assert str(caught.value) == (
        "url: is empty; fill in the http or https address of the App Image, such as "
        '"http://10.0.0.5:3001/app.bin". '
        'version: is empty; fill in the tag of the firmware at url, such as "1.0.0". '
        "bord: is no attribute here; did you mean boards? "
        "Correct the named attributes in the machine's configuration. [config-invalid]"
    )


def test_absent_attributes_are_named_like_empty_ones() -> None:
    """No attributes at all is the other way to begin."""
    faults = refusal({})
    assert [text.split(":")[0] for text in faults] == ["url", "version"]
    assert all("is missing; fill in" in text for text in faults)


def test_all_faults_are_reported_at_once() -> None:
    """Correcting a machine's configuration takes minutes a round, so one round must do."""
    faults = refusal(
        {
            "url": "ftp://h/x",
            "version": "x" * 131,
            "baud": 8.5,
            "max_paralel": 2,
            "auto_update": "yes",
            "boards": [
                {"name": "a"},
                {"name": "a", "port": "ttyUSB0", "macc": MAC},
                {"name": "b", "mac": MAC, "port": "/dev/ttyUSB0"},
            ],
            "allow_restart": {"sensor": "door"},
        }
    )
    named = sorted(text.split(":")[0] for text in faults)
    assert named == sorted(
        [
            "url",
            "version",
            "baud",
            "max_paralel",
            "auto_update",
            "boards[0]",
            "boards[1].name",
            "boards[1].port",
            "boards[1].macc",
            "boards[2]",
            "allow_restart.key",
        ]
    )


def test_the_length_of_a_version_counts_bytes() -> None:
    """NVS stores bytes: 64 characters of two bytes fit, 65 do not."""
    assert parse_config(GOOD | {"version": "x" * 128}).version == "x" * 128
    assert parse_config(GOOD | {"version": "é" * 64}).version == "é" * 64
    assert fault(version="x" * 131) == "version: 131 bytes; the limit is 128."
    assert fault(version="é" * 65) == "version: 130 bytes; the limit is 128."


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"version": 1.2}, 'version: must be text: quote it as it was written, "1.2"'),
        ({"version": "a\0b"}, "NUL"),
        ({"sha256": "abc"}, "sha256: must be 64 hex digits"),
        ({"sha256": "g" * 64}, "sha256: must be 64 hex digits"),
        ({"baud": True}, "baud: must be a whole number"),
        ({"baud": "115200"}, "baud: must be a whole number"),
        ({"baud": 8.5}, "baud: 8.5 is not a whole number"),
        ({"baud": 300}, "baud: 300 is out of range; it may be 9,600 to 4,000,000"),
        ({"max_parallel": 0}, "max_parallel: 0 is out of range"),
        ({"max_attempts": float("inf")}, "max_attempts: inf is not a whole number"),
        ({"boot_timeout_s": float("nan")}, "boot_timeout_s: nan is out of range"),
        ({"boot_stable_s": -1}, "boot_stable_s: -1 is out of range"),
        ({"boot_timeout_s": False}, "boot_timeout_s: must be a number"),
        ({"canary": 1}, "canary: must be true or false"),
        ({"adopt": "true"}, "adopt: must be true or false"),
        ({"boot_expect": "["}, "boot_expect: is not a regular expression that RE2 takes: missing"),
        ({"boot_expect": r"(a)\1"}, "boot_expect: is not a regular expression that RE2 takes: inv"),
        ({"boot_expect": 5.0}, "boot_expect: must be text"),
        (own(baud=300), "boards[0].baud: 300 is out of range; it may be 9,600 to 4,000,000"),
        (own(boot_timeout_s=0), "boards[0].boot_timeout_s: 0 is out of range; it may be 1 to 600"),
        (own(boot_stable_s="5"), "boards[0].boot_stable_s: must be a number, from 0 to 600"),
        (own(boot_expect="["), "boards[0].boot_expect: is not a regular expression that RE2"),
        ({"ca_file": "ca.pem"}, "ca_file: must be a whole path"),
        ({"state_dir": 5}, "state_dir: must be text"),
        ({"URL": "x"}, "URL: is no attribute here; did you mean url?"),
        ({"sha-256": "x"}, "sha-256: is no attribute here; did you mean sha256?"),
        ({"boot_timeout": 3}, "boot_timeout: is no attribute here; did you mean boot_timeout_s?"),
        ({"boards": {}}, "boards: must be a list of objects"),
        ({"boards": ["x"]}, "boards[0]: must be an object"),
        ({"boards": [{"mac": MAC}]}, "boards[0].name: is missing"),
        ({"boards": [{"name": " ", "mac": MAC}]}, "boards[0].name: is empty"),
        ({"boards": [{"name": "a", "mac": "24:0a"}]}, "boards[0].mac: must be six pairs"),
        ({"boards": [{"name": "a", "port": "http://h"}]}, "boards[0].port: is not the url of a"),
        ({"boards": [{"name": "a", "mac": MAC, "url": "x"}]}, "boards[0].url: must begin with"),
        ({"boards": [{"name": "a", "mac": MAC, "version": "x" * 129}]}, "boards[0].version: 129"),
        ({"allow_restart": "door"}, "allow_restart: must be an object"),
        ({"allow_restart": {"sensor": "d", "key": ""}}, "allow_restart.key: is empty"),
        (
            {"before_restart": "arm"},
            'before_restart: must be an object, such as {"resource": "arm"',
        ),
        ({"before_restart": {"resource": "arm"}}, "before_restart.command: must be an object"),
        ({"health_check": CALL | {"timeout_s": 0}}, "health_check.timeout_s: 0 is out of range"),
        (
            {"health_check": CALL | {"expect": {"a": [{"b": None}]}}},
            "health_check.expect: holds null",
        ),
        (
            {"health_check": CALL | {"on_no_answer": "off"}},
            'on_no_answer: must be "stay" or "back"',
        ),
        (
            {"after_restart": CALL | {"on_no_answer": "back"}},
            "after_restart.on_no_answer: is no att",
        ),
        (own(after_restart=CALL | {"resource": ""}), "boards[0].after_restart.resource: is empty"),
        (own(health_check=CALL | {"want": 1}), "boards[0].health_check.want: is no attribute here"),
    ],
)
def test_a_fault_is_named_in_words(attributes: dict[str, Any], words: str) -> None:
    """Each fault names its attribute, what is wrong, and what would be right."""
    assert words in fault(**attributes)


def test_a_board_s_own_calls_and_the_service_s(tmp_path: Path) -> None:
    """Each has its default for how long it may take; all resources are named once, by their short
    names."""
    calls = {"before_restart": CALL, "health_check": CALL | {"expect": {"ok": True}}}
    leg = {"resource": "rdk:component:motor/leg", "command": {"do": 1.0}}
    board = {"name": "a", "mac": MAC, "health_check": leg | {"on_no_answer": "back"}}
    sensor = {"sensor": "rdk:component:sensor/arm", "key": "k"}
    config = parse_config(GOOD | calls | {"boards": [board], "allow_restart": sensor})
    assert config.resources == ["arm", "leg"]
    made = config.settings("OTA", state_dir=tmp_path, cache_dir=tmp_path)
    assert made.before_restart == RobotCall("arm", {"do": "x"}, None, 30.0)
    assert made.after_restart is None
    assert made.health_check == RobotCall("arm", {"do": "x"}, {"ok": True}, 120.0)
    assert made.boards is not None
    one = made.of(made.boards[0])
    assert one.before_restart == made.before_restart
    check = RobotCall("rdk:component:motor/leg", {"do": 1.0}, None, 120.0, "back")
    assert one.health_check == check


@pytest.mark.parametrize(
    "asks",
    [
        {"health_check": CALL | {"resource": "OTA"}},
        {"before_restart": CALL | {"resource": "rdk:service:generic/OTA"}},
        {"allow_restart": {"sensor": "OTA", "key": "k"}},
        {"boards": [{"name": "a", "mac": MAC, "after_restart": CALL | {"resource": "OTA"}}]},
    ],
)
def test_a_service_does_not_ask_itself(asks: dict[str, Any]) -> None:
    """It would wait for itself, or take a firmware back since its own status is not the answer."""
    config = ComponentConfig(name="OTA", attributes=to_struct(GOOD | asks))
    with pytest.raises(OtaError, match='"OTA" is this service itself'):
        OtaService.validate_config(config)
    config.name = "other"
    assert OtaService.validate_config(config) == ([], ["OTA"])


def test_numbers_arrive_as_floats() -> None:
    """Viam carries every number as a float: 8.0 is a whole number."""
    config = parse_config(GOOD | {"max_parallel": 8.0, "baud": 115200.0, "boot_stable_s": 3})
    assert (config.max_parallel, config.baud, config.boot_stable_s) == (8, 115_200, 3.0)
    assert type(config.max_parallel) is int


def test_null_and_empty_text_count_as_not_given() -> None:
    """A form that was left empty must not become a fault or a value."""
    config = parse_config(
        GOOD | {"sha256": "", "boot_expect": "", "ca_file": "", "state_dir": None, "boards": None}
    )
    assert config == parse_config(GOOD)


def test_macs_are_compared_in_one_form() -> None:
    """Labels print MACs in several forms; they are the same board."""
    boards = [
        {"name": "a", "mac": "240AC4123456"},
        {"name": "b", "mac": "24-0a-c4-12-34-56"},
    ]
    assert fault(boards=boards) == "boards[1].mac: boards[0] already has it."
    config = parse_config(GOOD | {"boards": boards[:1]})
    assert config.boards is not None
    assert config.boards[0].mac == MAC


@pytest.mark.parametrize(
    "second",
    [
        {"name": "a", "port": "/dev/ttyUSB1"},
        {"name": "b", "port": "/dev/ttyUSB0"},
        {"name": "/dev/ttyUSB0", "port": "/dev/ttyUSB1"},
    ],
)
def test_a_name_stands_for_one_board(second: dict[str, str]) -> None:
    """Verbs take names, MACs and ports alike, so each may mean only one board."""
    first = {"name": "a", "port": "/dev/ttyUSB0"}
    assert "boards[0] already has it" in fault(boards=[first, second])


def test_a_pinned_board_keeps_what_it_leaves_out() -> None:
    """Its own url, version and digest are each optional."""
    boards = [{"name": "a", "mac": MAC, "version": "0.9"}, {"name": "b", "port": "/dev/x"}]
    settings = parse_config(GOOD | {"boards": boards}).settings(
        "OTA", state_dir=Path("/s"), cache_dir=Path("/c")
    )
    assert settings.boards is not None
    assert [(b.name, b.version, b.url) for b in settings.boards] == [
        ("a", "0.9", None),
        ("b", None, None),
    ]
    assert settings.state_dir == Path("/s")


def test_headers_are_a_servers_own() -> None:
    """A board at another server has only its own; a token that changes makes no other target."""
    given = {**GOOD, "url": "https://a/x.bin", "headers": {"X-Token": {"file": "/etc/token"}}}
    service = parse_config(given).settings("s", state_dir=Path("/s"), cache_dir=Path("/c"))
    mine = service.target
    assert mine.headers == (("X-Token", Path("/etc/token")),)
    assert mine.pinned(url="https://a/y.bin").headers == mine.headers
    assert mine.pinned(url="https://b/x.bin").headers == ()
    assert mine.pinned(url="http://a/x.bin", headers=(("A", "b"),)).headers == (("A", "b"),)
    assert mine == replace(mine, headers=())
    assert mine.key == replace(mine, headers=()).key
    assert "secret-value" not in repr(parse_config({**given, "headers": {"A": "secret-value"}}))


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ([], "must be an object"),
        ({"Range": "x"}, "may not set Range"),
        ({"a b": "c"}, "a name that no header can have"),
        ({"A": "x\r\nHost: y"}, "one line"),
        ({"A": "ü"}, "ASCII"),
        ({"A": ""}, "one line"),
        ({"A": 1}, "must be text"),
        ({"A": {"fil": "x"}}, '{"file": PATH}'),
        ({"A": {"file": "token"}}, "whole path"),
    ],
)
def test_a_header_that_cannot_be_sent_is_named(headers: Any, words: str) -> None:
    """Before anything is opened."""
    with pytest.raises(OtaError) as caught:
        parse_config({**GOOD, "headers": headers})
    assert "headers: " in caught.value.message
    assert words in caught.value.message


def test_the_urls_secrets_are_not_in_the_fault() -> None:
    """Faults end in the server's log."""
    url = "http://user:hunter2/x@host/app.bin?token=s3cret value"
    assert not re.search("hunter2|s3cret", str(refusal(GOOD | {"url": url, "baud": 1})))


@pytest.mark.parametrize(
    "port", ["rfc2217://10.0.0.9:2217", "esp32sim:///tmp/b/0", "/dev/x", "COM3"]
)
def test_ports_by_path_and_by_url(port: str) -> None:
    """All forms of a port that the documentation names."""
    config = parse_config(GOOD | {"boards": [{"name": "a", "port": port}]})
    assert config.boards is not None
    assert config.boards[0].port == port


_VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
_NAMES = st.sampled_from(sorted(ServiceConfig.model_fields)) | st.text(max_size=8)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.dictionaries(_NAMES, _VALUES, max_size=8))
def test_any_attributes_give_a_configuration_or_its_faults(attributes: dict[str, Any]) -> None:
    """Nothing that a configuration may hold ends in another exception."""
    try:
        parse_config(GOOD | attributes)
    except OtaError as error:
        assert error.code == "config-invalid"
        assert error.message


_BOARDS = st.lists(
    st.dictionaries(st.sampled_from(["name", "mac", "port", "url", "version", "x"]), _VALUES)
)


@pytest.mark.slow
@settings(max_examples=40)
@given(_BOARDS)
def test_any_boards_give_a_configuration_or_its_faults(boards: list[dict[str, Any]]) -> None:
    """The same, deeper down."""
    try:
        parse_config(GOOD | {"boards": boards})
    except OtaError as error:
        assert error.code == "config-invalid"


def test_a_board_has_some_attributes_for_itself() -> None:
    """What its entry leaves out, or has empty, is the service's."""
    given = GOOD | own(baud=115200.0, boot_timeout_s=60, boot_stable_s=None, boot_expect="")
    config = parse_config(given | {"boot_expect": "up", "boot_stable_s": 3})
    service = config.settings("OTA", state_dir=Path("/s"), cache_dir=Path("/c"))
    assert service.boards is not None
    board = service.of(service.boards[0])
    assert (board.baud, board.boot_timeout_s, board.boot_stable_s) == (115_200, 60.0, 3.0)
    assert board.boot_expect == "up"
    assert service.of(None) == service
    other = replace(service.boards[0], boot_expect="ready", boot_stable_s=0.0)
    assert (service.of(other).boot_expect, service.of(other).boot_stable_s) == ("ready", 0.0)


PINS = {"en": 17, "boot": 18}


@pytest.mark.parametrize(
    ("reset", "words"),
    [
        ("by-hand", "must be an object"),
        ({"gpiochip": "/dev/gpiochip0"}, "must be an object"),
        ({"gpiochip": "gpiochip0", "pins": PINS}, "must be a whole path"),
        (
            {"gpiochip": "/dev/gpiochip0", "pins": {"en": 17}},
            "pins must name the lines en and boot",
        ),
        ({"gpiochip": "/dev/gpiochip0", "pins": {"en": 17, "boot": 17}}, "two lines"),
        ({"gpiochip": "/dev/gpiochip0", "pins": {"en": -1, "boot": 18}}, "out of range"),
        ({"gpiochip": "/dev/gpiochip0", "pins": {"en": 1.5, "boot": 18}}, "not a whole number"),
    ],
)
def test_reset_names_two_lines_of_a_chip(reset: Any, words: str) -> None:
    """Numbers come from Viam as floats; anything else is refused in words."""
    board = {"name": "a", "port": "/dev/ttyAMA0"}
    good = {"gpiochip": "/dev/gpiochip0", "pins": {"en": 17.0, "boot": 18.0}}
    config = parse_config({**GOOD, "boards": [{**board, "reset": good}]})
    (entry,) = config.settings("OTA", state_dir=Path("/s"), cache_dir=Path("/c")).boards or ()
    assert entry.reset == ResetPins("/dev/gpiochip0", 17, 18)
    with pytest.raises(OtaError) as caught:
        parse_config({**GOOD, "boards": [{**board, "reset": reset}]})
    assert "boards[0].reset: " in caught.value.message
    assert words in caught.value.message
