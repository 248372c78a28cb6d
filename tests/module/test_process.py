# SPDX-License-Identifier: GPL-3.0-or-later
"""The module's process, driven over its socket as viam-server drives it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from grpclib import GRPCError

from tests.support.module_client import BUILTIN_MODEL, MODEL, ROOT, ModuleProcess
from tests.support.module_client import IDLE_ATTRIBUTES as IDLE


@pytest.mark.slow
def test_who_starts_it_by_hand_is_told_what_to_do() -> None:
    """viam-server always names where to serve; a person who tries the file does not."""
    command = [sys.executable, str(ROOT / "src" / "main.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    said = "This is started by viam-server; a person calls `esp32-ota`.\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


@pytest.mark.slow
@pytest.mark.parametrize("tcp", [False, True], ids=["unix socket", "tcp"])
async def test_it_starts_within_two_seconds_checks_attributes_and_ends(
    tmp_path: Path, tcp: bool
) -> None:
    """viam-server asks for Ready again and again; a slow start delays the whole machine."""
    async with ModuleProcess.start(tmp_path, tcp=tcp) as module:
        companions = ["rdk:generic:ota_discovery", "rdk:generic:ota_sensor"]
        assert sorted(module.models) == sorted([MODEL, BUILTIN_MODEL, *companions])
        assert 0 < module.start_cpu_s < 2.0
        # The text stands in the machine's log and in the app: all faults, nothing around them.
        for model in (MODEL, BUILTIN_MODEL):
            with pytest.raises(GRPCError) as caught:
                await module.validate({"url": "", "version": "x" * 131}, model=model)
            text = caught.value.message or ""
            assert text.startswith("url: is empty; fill in the http or https address")
            assert "version: 131 bytes; the limit is 128" in text
            assert "config-invalid" in text
            assert await module.validate(IDLE, model=model) == ([], [])
        # Viam hands the sensor over where it is there; where it is not, boards are not restarted.
        condition = {"sensor": "rdk:component:sensor/door", "key": "closed"}
        assert await module.validate(IDLE | {"allow_restart": condition}) == ([], ["door"])
        await module.add("OTA", IDLE | {"allow_restart": condition})
        assert (await module.status("OTA"))["state"] == "idle"
        # null: the SDK's own reader would make it 0, which is out of every range.
        assert await module.validate(IDLE | {"sha256": None, "baud": None}) == ([], [])
        # viam-server sends SIGTERM and waits for the end.
        await module.terminate(timeout_s=5.0)
        assert module.log.count("SIGTERM: stopping") == 1
        assert "Traceback" not in module.log
