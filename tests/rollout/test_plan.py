# SPDX-License-Identifier: GPL-3.0-or-later
"""A plan is read, or refused with every fault; its examples are plans; a thousand machines."""

from __future__ import annotations

import asyncio
import io
import json
import re
import resource
import time
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.text import Text
from viam.proto.app import Robot

from ota_service.cli.rollout import frame
from ota_service.client.failure import Failure
from ota_service.rollout.cloud import Cloud, Credentials, Part, at_once
from ota_service.rollout.plan import Plan, PlanError, Share, parse_plan
from ota_service.rollout.state import StateFile
from ota_service.rollout.survey import survey

ROOT = Path(__file__).parents[2]
WHOLE: dict[str, Any] = {
    "select": {"organization": "o"},
    "target": {"url": "http://10.0.0.5/app.bin", "version": "1.2.4"},
    "mode": "attributes",
    "waves": [1, "25%", ["a", "b"], {"percent": 50, "soak": "1h"}, {"count": 2}],
}


def parsed(**changed: Any) -> Plan:
    """A plan with some keys otherwise; None: without them."""
    given = {**WHOLE, **changed}
    return parse_plan(json.dumps({key: value for key, value in given.items() if value is not None}))


def test_what_is_not_given_has_a_default() -> None:
    """Ten minutes of soak, an hour for a machine, nobody may fail."""
    plan = parsed()
    assert (plan.service, plan.soak_s, plan.timeout_s) == ("OTA", 600, 3600)
    assert plan.max_failed == Share(count=0)
    assert [plan.soak_of(number) for number in range(6)] == [600, 600, 600, 3600, 600, 600]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"waves": None}, "waves: is missing"),
        ({"waves": []}, "waves: List should have at least 1 item"),
        ({"waves": [0]}, "waves[0]: must have at least one machine"),
        ({"waves": [True]}, "waves[0]: must be a whole number from 1 on, or a percentage"),
        ({"waves": ["0%"]}, "waves[0]: must have at least one machine"),
        ({"waves": ["101%"]}, "waves[0]: must be a whole number"),
        ({"waves": [[]]}, "waves[0]: names no machine"),
        ({"waves": [{"soak": "1s"}]}, 'waves[0]: must have just one of "machines"'),
        ({"waves": [{"count": 1, "percent": 1}]}, 'waves[0]: must have just one of "machines"'),
        ({"waves": [{"count": 1, "soaks": "1s"}]}, 'waves[0]: must have just one of "machines"'),
        ({"waves": [{"count": 1, "soak": 5}]}, "waves[0]: must be text"),
        ({"soak": "10"}, "soak: must be a number with its unit s, m or h"),
        ({"max_failed": -1}, "max_failed: must be a whole number from 0 on"),
        ({"mode": "both"}, "mode: Input should be 'variables' or 'attributes'"),
        ({"select": {}}, "select: names no organization, locations, fragment or machines"),
        ({"select": {"fragmnt": "f"}}, "select.fragmnt: is no key here; did you mean fragment?"),
        ({"wave": [1]}, "wave: is no key here; did you mean waves?"),
        ({"target": {"url": "app.bin", "version": "1"}}, "target.url: must begin with http://"),
        ({"target": {"url": "http://a/b", "version": 1.1}}, "target.version: must be text"),
        ({"fragment_variables": {"url": "u"}}, "fragment_variables.version: is missing"),
    ],
)  # fmt: skip
def test_each_fault_is_told_with_its_place(changed: dict[str, Any], words: str) -> None:
    """And all of a plan's at once."""
    with pytest.raises(PlanError, match=re.escape(words)):
        parsed(**changed)
    with pytest.raises(PlanError) as both:
        parsed(**{"timeout": "soon", **changed})
    assert words in str(both.value)
    assert "timeout: must be a number with its unit" in str(both.value)


@pytest.mark.parametrize("text", ["", "[]", "a: [", "\t", "{" * 200])
def test_what_is_no_object_is_said(text: str) -> None:
    """Whatever the file holds."""
    for json_form in (False, True):
        with pytest.raises(PlanError):
            parse_plan(text, json_form=json_form)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("waves: [1]", "waves: [1]\nwaves: [5]", 'The key "waves" stands twice (line 1).'),
        ("waves: [1]", "waves: [010]", "010 is another number for YAML (line 6)"),
        ("waves: [1]", "waves: [{count: 1:30}]", "1:30 is another number for YAML (line 6)"),
        ("waves: [1]", "waves: [[no]]", "waves[0]: must be text"),
        ("waves: [1]", "waves: &a [*a]", "waves[0]: must be text"),
        ('"1.10"', "1.10", "target.version: must be text: quote it as it was written"),
        ('"1.10"', "2026-01-02", "target.version: must be text"),
        ("http://u:hunter2@a/b.bin", "http://u:hunter2@a/b.bin: x", "line 4: mapping values"),
    ],
)
def test_what_yaml_makes_of_it(old: str, new: str, words: str) -> None:
    """What means something else for YAML than for whoever wrote it is refused, and no line is
    quoted that may hold a password."""
    text = (
        "mode: attributes\nselect: {organization: o}\ntarget:\n  url: http://u:hunter2@a/b.bin\n"
        '  version: "1.10"\nwaves: [1]\n'
    )
    assert parse_plan(text).target.version == "1.10"
    with pytest.raises(PlanError) as told:
        parse_plan(text.replace(old, new))
    assert words in str(told.value)
    assert "hunter2" not in str(told.value)


def test_a_key_that_stands_twice_in_json() -> None:
    """It is refused, too."""
    with pytest.raises(PlanError, match='the key "waves" stands in it twice'):
        parse_plan('{"waves": [1], "waves": [5]}', json_form=True)


@pytest.mark.parametrize("value", ["1" + 400 * "0", '"\\ud800"'])
def test_what_no_message_can_hold_stops_its_machine_alone(value: str) -> None:
    """It is said of that machine, before anything is sent."""
    part = Part("p", "main", True, "", "{}", Timestamp())
    with pytest.raises(Failure, match="its configuration cannot be sent") as told:
        asyncio.run(Cloud(Credentials("", "")).write(part, f'{{"a": {value}}}'))
    assert not told.value.unreachable


def test_the_brakes_may_be_set_otherwise_on_the_way() -> None:
    """Soak, timeout and max_failed leave it the same rollout; nothing else does."""
    digest = parsed().digest
    waves = [*WHOLE["waves"][:3], {"percent": 50, "soak": "5s"}, {"count": 2, "soak": "1s"}]
    same = parsed(soak="1s", timeout="5s", max_failed="3%", waves=waves)
    assert same.digest == digest
    others: list[dict[str, Any]] = [
        {"target": {**WHOLE["target"], "version": "1.2.5"}},
        {"target": {**WHOLE["target"], "sha256": "ab" * 32}},
        {"waves": [2, *WHOLE["waves"][1:]]},
        {"select": {"organization": "p"}},
        {"service": "OTA2"},
        {"mode": "variables"},
    ]
    assert digest not in {parsed(**other).digest for other in others}


@pytest.mark.parametrize(
    ("share", "total", "up", "down"),
    [("25%", 10, 3, 2), ("7%", 300, 21, 21), ("0.5%", 10, 1, 0), ("100%", 7, 7, 7), (3, 1, 3, 3)],
)
def test_percentages_of_machines(share: str | int, total: int, up: int, down: int) -> None:
    """A wave has at least one; as few may fail as it says."""
    of = parsed(max_failed=share).max_failed
    assert (of.up(total), of.down(total)) == (up, down)


def test_the_examples_of_the_page_are_what_they_say() -> None:
    """The plan is one, and the workflow is YAML whose `on` and `jobs` are there."""
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/fleets.md").read_text("utf-8"), re.S)
    plan, workflow = (block for block in blocks if "select:" in block or "jobs:" in block)
    assert parse_plan(plan).max_failed == Share(count=1)
    steps = yaml.safe_load(workflow)["jobs"]["rollout"]["steps"]
    assert sum("rollout start release.yaml --once" in step.get("run", "") for step in steps) == 1


# --- a thousand machines


class Thousand(Cloud):
    """An app that answers at once: what is measured is our own time."""

    count = 1000

    async def _call(self, method: str, request: Any, *, once: bool = False) -> Any:
        raise AssertionError(method)

    async def robots(self, select: Any) -> list[Robot]:
        return [
            Robot(id=f"r{index}", name=f"m{index}", location="loc") for index in range(self.count)
        ]

    async def missing_permissions(self, robots: Any) -> dict[str, list[str]] | None:
        return {}

    async def parts(self, robot: Robot) -> list[Part]:
        config = {
            "components": [
                {"name": f"c{index}", "attributes": {"n": index}} for index in range(60)
            ],
            "services": [
                {
                    "name": "OTA",
                    "attributes": {"url": "http://a/1.bin", "version": "1", "boards": []},
                }
            ],
            "who": robot.name,
        }
        return [Part(f"p{robot.id}", "main", True, "", json.dumps(config), Timestamp())]


@pytest.mark.slow
async def test_a_thousand_machines_are_planned_at_once(tmp_path: Path) -> None:
    """In less than 10 s of our own time and 300 MB; each is in a wave, on disk, and has its place
    on a terminal."""
    plan = parsed(waves=[1, "5%", "100%"])
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began_s = time.process_time()
    rollout, _ = await survey(plan, Thousand(Credentials("", "key" * 5)), 0.0)
    StateFile(tmp_path / "plan.json").save(rollout)
    took_s = time.process_time() - began_s
    grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb
    assert [len(rollout.of_wave(number)) for number in range(3)] == [1, 50, 949]
    assert StateFile(tmp_path / "plan.json").load() == rollout
    assert took_s < 10
    assert grown_kb < 150_000
    for record in rollout.machines[:60]:
        record.state, record.why, rollout.waves[record.wave].began_at = "waiting", "x" * 200, 1.0
    rollout.machines[30].state = "failed"
    console = Console(width=80, height=24, file=io.StringIO(), force_terminal=True)
    with console.capture() as shown:
        console.print(frame(rollout, columns=80, lines=23))
    lines = Text.from_ansi(shown.get()).plain.splitlines()
    assert len(lines) <= 23
    assert max(map(len, lines)) <= 80
    assert "failed" in lines[3]  # what has failed comes first, behind the waves
    assert lines[-1].startswith("The rollout is running (wave 3 of 3; ")


async def test_no_more_is_at_work_than_the_limit() -> None:
    """And one that fails leaves none behind that still works."""
    at_work, most, ended = 0, 0, 0

    async def work(number: int) -> int:
        nonlocal at_work, most, ended
        at_work += 1
        most = max(most, at_work)
        await asyncio.sleep(0)
        at_work -= 1
        ended += 1
        if number == 3:
            raise ValueError(number)
        return number

    with pytest.raises(ValueError, match="3"):
        await at_once(work, range(40), 7)
    assert (most, ended) == (7, 40)
    assert await at_once(work, range(4, 9), 2) == [4, 5, 6, 7, 8]
