# SPDX-License-Identifier: GPL-3.0-or-later
"""A manifest at `url`, over the module's socket: several firmwares, for which boards, in order."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from esp32_sim.images import build_app
from esp32_sim.process import SimBoard
from tests.support.rig import Rig

MOTOR, SENSOR = "motor-board", "sensor-board"


def publish(rig: Rig, version: str, *, path: str = "/robot/manifest.json", **more: Any) -> str:
    """Serve the images of two projects, and a manifest that names them; returns its url.

    images: name -> options of the image, `project` and own `version` among them.
    """
    images = more.pop("images", {"motor": {"project": MOTOR}, "sensor": {"project": SENSOR}})
    entries = {}
    for name, options in images.items():
        options = dict(options)
        tag = options.pop("tag", None)
        entry = options.pop("entry", {})
        data = rig.image(options.pop("version", version), size_bytes=60_000, **options)
        file = f"{name}-{hashlib.sha256(data).hexdigest()[:8]}.bin"
        rig.server.put(f"/robot/{file}", data)
        entries[name] = {"url": file, "sha256": hashlib.sha256(data).hexdigest(), **entry}
        entries[name] |= {"version": tag} if tag else {}
    made = {"format": 1, "version": version, "images": entries, **more}
    return rig.server.put(path, json.dumps(made).encode())


def board(project: str, layout: str = "guide", **options: Any) -> SimBoard:
    """A board that runs a project's old firmware."""
    chip = options.get("chip", "esp32")
    return SimBoard(
        layout, app=build_app(project, "1.0.0", size_bytes=60_000, chip=chip), **options
    )


def robot() -> list[SimBoard]:
    """One motor board and two sensor boards."""
    return [board(MOTOR), board(SENSOR), board(SENSOR, "micro-rdk")]


@pytest.mark.slow
async def test_each_board_gets_its_image(tmp_path: Path) -> None:
    """By the project that runs on it; the tag is the image's own, else the manifest's."""
    async with Rig.start(tmp_path, robot()) as rig:
        images = {"motor": {"project": MOTOR}, "sensor": {"project": SENSOR, "tag": "s-7"}}
        url = publish(rig, "2.0", images=images)
        await rig.configure(url=url, version="2.0")
        status = await rig.settled()
        print(json.dumps(status, indent=1))
        print(json.dumps(await rig.command("history"), indent=1))
