# SPDX-License-Identifier: GPL-3.0-or-later
"""docs/ota_service.md, carried out: each request is sent, and each reply shown is what comes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from esp32_sim.process import SimBoard
from ota_service.module.verbs import VERBS
from tests.flash.merged_files import merged
from tests.support.module_client import ModuleProcess
from tests.support.rig import NAME, Rig

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ota_service.md").read_text(encoding="utf-8")

# What differs from one run and one machine to the next.
VOLATILE = {
    *("id", "port", "url", "sha256", "digest", "backup"),
    *("started_at", "finished_at", "version_read_at", "since"),
    *("connecting", "inspecting", "writing", "verifying", "switching", "recording", "booting"),
}
NAMES = ["kitchen", "cellar", "lab"]
BOARDS = [
    SimBoard("micro-rdk", version="1.2.2", config={"mac": "24:0a:c4:12:34:56"}),
    SimBoard("no-ota", version="1.0.0", config={"mac": "24:0a:c4:ab:cd:ef"}),
    SimBoard("guide", version="1.2.2", config={"mac": "24:0a:c4:65:43:21"}),
]


def examples() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Request and reply of the page, in its order."""
    section = PAGE.partition("\n## DoCommand\n")[2]
    blocks = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", section, re.S)]
    assert len(blocks) % 2 == 0
    pairs = list(zip(blocks[::2], blocks[1::2], strict=True))
    assert all("command" in request and reply["ok"] for request, reply in pairs)
    return pairs


def check(shown: Any, real: Any, place: str) -> None:
    """Everything that is shown is there, of the same kind, and the same where it can be."""
    match shown:
        case dict():
            assert isinstance(real, dict), place
            for key, value in shown.items():
                assert key in real, f"{place}.{key} is not in the reply: {real}"
                if key in VOLATILE:
                    assert isinstance(real[key], type(value)), f"{place}.{key}"
                    assert bool(real[key]) == bool(value), f"{place}.{key}"
                else:
                    check(value, real[key], f"{place}.{key}")
        case list():
            assert isinstance(real, list), place
            for index, value in enumerate(shown):
                check(value, real[index], f"{place}[{index}]")
        case _:
            assert shown == real, place


def test_every_verb_has_a_request_and_its_reply() -> None:
    """A reader need not guess what comes back."""
    assert {request["command"] for request, _ in examples()} == VERBS.keys()
    for verb in VERBS:
        section = PAGE.partition(f"\n### {verb}\n")[2].partition("\n### ")[0]
        assert f'"command": "{verb}"' in section
        assert '"ok": true' in section


@pytest.mark.slow
async def test_the_configurations_are_taken(tmp_path: Path) -> None:
    """By the module itself, as viam-server asks it; what names a sensor depends on it."""
    blocks = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", PAGE, re.S)]
    attributes = [
        *(service["attributes"] for block in blocks for service in block.get("services", [])),
        *(block for block in blocks if "version" in block and "url" in block),
    ]
    assert len(attributes) == 2
    async with ModuleProcess.start(tmp_path) as module:
        for given in attributes:
            sensor = [given["allow_restart"]["sensor"]] if "allow_restart" in given else []
            required, optional = await module.validate(given)
            assert required + optional == sensor


@pytest.mark.slow
async def test_each_request_is_answered_as_the_page_says(tmp_path: Path) -> None:
    """With the boards of the page, in an order in which each has something to do."""
    left = examples()
    file = tmp_path / "merged.bin"
    file.write_bytes(merged())

    async with Rig.start(tmp_path, BOARDS) as rig:
        rig.names[:] = NAMES

        async def run(verb: str, **wanted: Any) -> None:
            """Send the page's request of this verb, and compare; it is then done with."""
            (found,) = (
                (request, reply)
                for request, reply in left
                if request["command"] == verb and request.items() >= wanted.items()
            )
            left.remove(found)
            request, shown = found
            if "path" in request:
                request = {**request, "path": str(file)}
            check(shown, await rig.module.command(NAME, request), verb)

        login = {"user_info": "me:s3cret"}
        rig.serve("1.2.3", path="/app.bin")
        rig.serve("1.3.0-rc1", path="/rc.bin")
        pin = {"url": rig.server.url("/rc.bin", **login), "version": "1.3.0-rc1"}
        await rig.configure(
            url=rig.server.url("/app.bin", **login), version="1.2.3", auto_update=False,
            pins={"lab": pin},
        )  # fmt: skip

        await run("update", dry_run=True)
        await run("update", boards=["kitchen"])
        await run("history")
        await run("version")
        await rig.command("update", wait_s=60)  # all boards, of which one cannot be updated
        await run("status")
        await run("verify")
        await run("rollback")
        await run("release")
        await rig.command("update", force=True)
        await run("cancel")
        await rig.settled()
        await run("flash")
        await rig.command("update", boards=["kitchen"], wait_s=60)
        rig.serve("1.3.0", path="/app.bin")
        await rig.configure(
            url=rig.server.url("/app.bin", **login), version="1.3.0", auto_update=False,
            pins={"lab": pin},
        )  # fmt: skip
        await run("stage")
        await run("activate")
        await run("help")
    assert left == []
