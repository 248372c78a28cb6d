# SPDX-License-Identifier: GPL-3.0-or-later
"""What a page may have to show, as statuses that are told to it in place of a service's."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from ota_service.client.failure import Failure
from ota_service.dashboard.guard import Guard
from ota_service.dashboard.server import serving

Status = dict[str, Any]

LONG = "2026.11.28-nightly+" + "f" * 109
"""A version of 128 bytes without a space."""
LONG_NAME = "the-board-behind-the-left-panel-" + "x" * 32
BOOT_LOG = [
    "== ota_1, as it started ==",
    *(f"I ({at}) boot: what led there" for at in range(1, 31)),
    "I (31) boot: ESP-IDF v5.3 2nd stage bootloader",
    "I (95) esp_image: segment 0: paddr=00010020 vaddr=3f400020 size=18a3ch (100924) map",
    "I (412) app_init: Project name:     arm-controller",
    "I (418) app_init: App version:      2.5.0",
    "Guru Meditation Error: Core  0 panic'ed (LoadProhibited). Exception was unhandled.",
    "Backtrace: 0x400d1f2e:0x3ffb1f50 0x400d20a1:0x3ffb1f70 0x400d2344:0x3ffb1f90",
]
LONG_LINE = "<b>not markup</b> " + "0123456789abcdef" * 12
BOOT_FAILED = {
    "code": "boot-failed",
    "message": "The new firmware panicked 2.1 s after its start.",
    "remedy": "Look at the boot log in the history; the old firmware runs again.",
}


def moment(minutes_ago: float) -> str:
    """As the service writes it."""
    then = datetime.now(UTC) - timedelta(minutes=minutes_ago)
    return then.isoformat(timespec="seconds").removesuffix("+00:00") + "Z"


def digest(of: str) -> str:
    """Some SHA-256."""
    return hashlib.sha256(of.encode()).hexdigest()


def board(number: int, state: str, **more: Any) -> dict[str, Any]:
    """One of the fleet, running 2.4.0 in ota_0."""
    version = "2.5.0" if state == "up_to_date" else "2.4.0"
    hub = f"{number // 8 + 1}.{number % 8 + 1}"
    shown = {
        "state": state,
        "port": f"/dev/serial/by-path/pci-0000:00:14.0-usb-0:{hub}:1.0-port0",
        "mac": f"24:0a:c4:12:34:{number:02x}",
        "chip": "ESP32",
        "flash_bytes": 8 << 20,
        "version": version,
        "version_read_at": moment(12),
        "running": {
            "slot": "ota_1" if state == "up_to_date" else "ota_0",
            "project": "arm-controller",
            "app_version": version,
        },
        "back": {"slot": "ota_1", "version": "2.3.1"},
        "good": state == "up_to_date",
        **more,
    }  # fmt: skip
    return {key: value for key, value in shown.items() if value is not None}


def being_written(number: int, percent: float) -> dict[str, Any]:
    """A board in the middle of its update."""
    total = 1_400_000
    done = int(total * percent / 100)
    progress = {"bytes_done": done, "bytes_total": total, "percent": percent,
                "eta_s": round((total - done) / 71_000, 1)}  # fmt: skip
    return board(number, "updating", phase="writing", progress=progress)


TARGET = {
    "url": "http://***@10.0.0.5:3001/arm-controller-2.5.0.bin", "version": "2.5.0",
    "sha256": "e740f3f69096a7fd5749d15af16beae6392e6780a0b59fdbe40b42270a639ca6",
    "size_bytes": 1_400_000, "project": "arm-controller", "app_version": "2.5.0", "chip": "ESP32",
}  # fmt: skip


def status(boards: Mapping[str, Any], outcome: str = "succeeded", **more: Any) -> Status:
    """A service's status around these boards."""
    run = {"id": "a7a7bcfeab6a", "trigger": "command", "started_at": moment(3), "outcome": outcome}
    if outcome != "running":
        run["finished_at"] = moment(1)
    return {
        "ok": True, "state": "updating" if outcome == "running" else "idle",
        "target": TARGET, "boards": dict(boards), "run": run, **more,
    }  # fmt: skip


def fleet_mid_run() -> Status:
    """32 boards, of which one went back, one cannot be updated, one has the version to run and is
    not good, and eight are being written."""
    boards: dict[str, Any] = {}
    for number in range(1, 33):
        name = f"arm-{number}"
        if number == 14:
            boards[name] = board(number, "rolled_back", error=BOOT_FAILED, attempts=1)
        elif number == 23:
            boards[name] = board(number, "unsupported", running=None, back=None, error={
                "code": "no-ota-slots",
                "message": "The board's partition table has no otadata partition.",
                "remedy": "Give the board a partition table with OTA slots: write a Merged Binary "
                "with `esp32-ota flash PORT FILE`."})  # fmt: skip
        elif number == 9:
            boards[name] = board(number, "absent", running=None)
        elif number == 30:
            boards[name] = board(number, "rolled_back")  # as a person wanted it
        elif number == 12:  # the tag is the target's, and that is all
            boards[name] = board(number, "up_to_date", good=False, running={
                "slot": "ota_0", "project": "lamp", "app_version": "1.0"},
                notice="It stores the version to run, and runs another program.")  # fmt: skip
        elif number < 12:
            boards[name] = board(number, "up_to_date", back={"slot": "ota_0", "version": "2.4.0"})
        elif number <= 20:
            boards[name] = being_written(number, (number * 37) % 97 + 0.4)
        elif number == 21:
            boards[name] = board(number, "updating", phase="booting")
        elif number >= 31:
            boards[name] = board(number, "outdated", staged={
                "version": "2.5.0", "slot": "ota_1", "digest": str(TARGET["sha256"]),
                "since": moment(400)})  # fmt: skip
        else:
            phase = "waiting" if number < 29 else None
            boards[name] = board(number, "updating" if phase else "outdated", phase=phase)
    return status(boards, "running")


def fleet_after() -> Status:
    """The same, when the run is over."""
    boards = {
        name: board(int(name[4:]), "up_to_date", back={"slot": "ota_0", "version": "2.4.0"})
        if one.get("phase")
        else one
        for name, one in fleet_mid_run()["boards"].items()
    }
    return status(boards, "partly")


def long_words() -> Status:
    """Names and versions as long as they may be, without a space to break at; candidates; an error
    of the service, and a host with a policy."""
    boards = {
        LONG_NAME: board(1, "outdated", version=LONG, back={"slot": "ota_1", "version": LONG},
                         staged={"version": LONG, "slot": "ota_1", "digest": "0" * 64,
                                 "since": moment(60 * 70)}),
        "y" * 64: board(2, "failed", version=LONG[::-1], error={
            "code": "verify-failed", "message": "The slot reads back " + "0123456789abcdef" * 8,
            "remedy": "Try a lower `baud`."}),
        "/dev/ttyUSB7": {"state": "candidate", "port": "/dev/ttyUSB7"},
        "gone": board(3, "absent", running=None, error={
            "code": "port-missing", "message": "The port does not exist.", "remedy": "Attach it."}),
    }  # fmt: skip
    told = status(boards, "failed", trust={"requires": ["secure-boot-v2", "repository"]}, error={
        "code": "stopped", "message": f"{LONG} was stopped: it failed on the canary.",
        "remedy": "Configure another version, or `release` with `stopped`."})  # fmt: skip
    told["target"] = {**TARGET, "version": LONG, "url": "http://10.0.0.5/" + "a" * 120 + ".bin"}
    return told


def going_back() -> Status:
    """A group of which one member failed, while the others go back."""
    image = {
        "left": "motor",
        "right": "motor",
        "bow": "sensor",
        "stern": "sensor",
        "panel": "display",
    }
    versions = {"motor": "2.0", "sensor": "2.0", "display": "1.7"}

    def member(number: int, name: str, state: str, **more: Any) -> dict[str, Any]:
        tag = versions[image[name]]
        url = f"http://10.0.0.5:3001/{image[name]}.bin"
        return board(number, state, image=image[name], version="1.9",
                     target={"url": url, "version": tag}, **more)  # fmt: skip

    staged = {"version": "1.7", "slot": "ota_1", "digest": "5f" * 32, "since": moment(540)}
    boards = {
        "left": member(1, "left", "updating", phase="connecting"),
        "right": member(2, "right", "outdated"),
        "bow": member(3, "bow", "updating", phase="rolling_back"),
        "stern": member(4, "stern", "rolled_back", error=BOOT_FAILED, attempts=1),
        "panel": member(5, "panel", "outdated", staged=staged),
    }
    told = status(boards, "running")
    steps = [["motor", "sensor"], ["display"]]
    told["target"] = {
        "url": "http://10.0.0.5:3001/manifest.json", "version": "2.0", "sha256": "ab" * 32,
        "manifest": {"images": list(versions), "steps": steps, "together": [["motor", "sensor"]]},
    }  # fmt: skip
    told["run"]["manifest"] = {
        "version": "2.0", "phase": "going_back", "step": 1, "steps": steps, "boards": image,
        "half": ["bow", "left"],
    }  # fmt: skip
    return told


def gone_back() -> Status:
    """The same, when all members run what they ran."""
    told = going_back()
    for one in told["boards"].values():
        if one.pop("phase", None):
            one["state"] = "outdated"
    told["run"] = {**told["run"], "outcome": "failed", "finished_at": moment(0.1)}
    del told["run"]["manifest"]["half"]
    told["state"] = "idle"
    told["error"] = {
        "code": "stopped",
        "message": "stopped: stern: it panicked. So its group went back.",
        "remedy": "Configure another version, or `release` with `stopped`.",
    }
    told["boards"]["panel"]["error"] = told["error"]
    return told


def bench_of(*files: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """What lies on the bench."""
    return {"files": [dict(file) for file in files], **more}


def file(name: str, kind: str, size_bytes: int, **more: Any) -> dict[str, Any]:
    """One of them."""
    return {"name": name, "kind": kind, "size_bytes": size_bytes, "sha256": digest(name), **more}


OF_ARM = {"project": "arm-controller", "app_version": "2.5.0", "chip": "ESP32"}
APP = file("arm-controller.bin", "app", 1_400_000, **OF_ARM)
MERGED = file("arm-merged.bin", "merged", 4 << 20, **OF_ARM)
REFUSED = file("bootloader.bin", "refused", 26_000, error={
    "code": "bootloader-image", "message": "This is a bootloader, no App Image.",
    "remedy": "Drop the `.bin` that the build names after the project."})  # fmt: skip


def bench_boards() -> dict[str, Any]:
    """Four that are attached to a bench: a newer version on one; on another another program, what
    waits to be activated, and a failure, all of a former firmware; another chip; a bridge."""
    unsupported = fleet_mid_run()["boards"]["arm-23"]
    staged = {"version": "2.4.1", "slot": "ota_1", "digest": "5f" * 32, "since": moment(9)}
    return {
        "24:0a:c4:12:34:01": board(1, "outdated", port="/dev/ttyACM0", version="2.10.0"),
        "24:0a:c4:12:34:02": board(
            2, "failed", port="/dev/ttyACM1", error=BOOT_FAILED, staged=staged,
            running={"project": "motor", "app_version": "1.0.0"}),
        "24:0a:c4:12:34:17": {**unsupported, "port": "/dev/ttyACM2", "chip": "ESP32-S3"},
        "/dev/ttyUSB0": {"state": "candidate", "port": "/dev/ttyUSB0"},
    }  # fmt: skip


def bench_empty() -> Status:
    """As it is found."""
    told = {"ok": True, "state": "idle", "target": {}, "boards": {}}
    return {**told, "bench": bench_of()}


def bench_dropped() -> Status:
    """An App Image, a Merged Binary, and a file that is of no use."""
    merged = {key: MERGED[key] for key in ("name", "size_bytes", "chip", "sha256")}
    firmware = {"kind": "app", "name": APP["name"], "sha256": APP["sha256"], "version": "2.5.0"}
    told = {"ok": True, "state": "idle", "target": {}, "boards": bench_boards()}
    return {**told, "bench": bench_of(APP, MERGED, REFUSED, firmware=firmware, merged=merged)}


def bench_manifest() -> Status:
    """A manifest with two of its three images, and another App Image."""
    apps = [file(f"{name}.bin", "app", 900_000, **{**OF_ARM, "project": name})
            for name in ("motor", "sensor", "display")]  # fmt: skip
    images = [
        {"name": app["project"], "file": app["name"], "sha256": app["sha256"], "version": "2.0"}
        for app in apps
    ]
    manifest = file("manifest.json", "manifest", 800, images=images, boards={"left": "motor"})
    firmware = {"kind": "manifest", "name": "manifest.json", "sha256": manifest["sha256"],
                "version": "2.0", "missing": ["display.bin"]}  # fmt: skip
    told = {"ok": True, "state": "idle", "target": {}, "boards": bench_boards()}
    files = (*apps[:2], manifest, APP, MERGED)
    return {**told, "bench": bench_of(*files, firmware=firmware, merged=MERGED)}


SCENES = {
    "32 boards": fleet_mid_run, "long words": long_words,
    "going back": going_back, "gone back": gone_back, "no boards": lambda: status({}),
    "bench, empty": bench_empty, "bench, dropped": bench_dropped, "bench, manifest": bench_manifest,
}  # fmt: skip


def history(told: Status) -> list[dict[str, Any]]:
    """Runs that fit a status: the one it names, and one of yesterday."""
    entries = {}
    for name, one in told["boards"].items():
        to = one.get("target", told["target"]).get("version")
        entry = {"outcome": one["state"], "from": one.get("version"), "to": to,
                 "phases": {"writing": 12.1, "booting": 6.2}}  # fmt: skip
        if one["state"] == "rolled_back" and "error" in one:
            entry |= {"error": one["error"], "boot_log": BOOT_LOG}
        elif one["state"] == "failed":
            entry |= {"error": one["error"], "boot_log": [*BOOT_LOG, LONG_LINE]}
        elif "image" in one and one["image"] != "display":
            entry |= {"by": "its group"}
        entries[name] = entry
    target = {"url": told["target"].get("url"), "version": told["target"].get("version", "2.5.0")}
    run = {"service": "OTA", "target": target, "boards": entries, **told.get("run", {})}
    before = {
        "id": "0ld0ld0ld000", "trigger": "configured", "outcome": "succeeded",
        "started_at": moment(1500), "finished_at": moment(1498), "target": {"version": "2.4.0"},
        "boards": {name: {"outcome": "up_to_date", "to": "2.4.0"} for name in entries},
    }  # fmt: skip
    return [run, before] if "run" in told else []


class ToldService:
    """In the place of a service: tells what it is given, and notes what it is asked.

    now: the status, or the failure to answer. replies: of verbs, else {"ok": true}.
    """

    def __init__(self, now: Status | Failure) -> None:
        self.begin(now)

    def begin(self, now: Status | Failure) -> None:
        """Tell this from now on, and forget what was."""
        self.now = now
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.replies: dict[str, dict[str, Any]] = {}

    async def status(self) -> Status:
        """What is to be told now."""
        if isinstance(self.now, Failure):
            raise self.now
        return self.now

    async def command(
        self, verb: str, arguments: Mapping[str, Any] | None = None, *, wait_s: float = 0
    ) -> dict[str, Any]:
        """The history is looked up; everything else is noted, and granted."""
        given = dict(arguments or {})
        if verb == "history":
            return {"ok": True, "runs": self._history(given)}
        self.asked.append((verb, given))
        return self.replies.get(verb, {"ok": True})

    def _history(self, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        runs = [] if isinstance(self.now, Failure) else history(self.now)
        if "id" in given:
            runs = [run for run in runs if run["id"] == given["id"]]
        if "board" in given:
            runs = [{**run, "boards": {name: entry for name, entry in run["boards"].items()
                                       if name == given["board"]}} for run in runs]  # fmt: skip
        return runs


class ToldBench(ToldService):
    """The same, in the place of the boards that are attached here. bench: it is told, too."""

    bench = None


@asynccontextmanager
async def served(
    now: Status, *, label: str = "rover.local:8080"
) -> AsyncIterator[tuple[ToldService, str]]:
    """The page of what tells this, by the real server: the service, and the page's address."""
    service = ToldBench(now) if "bench" in now else ToldService(now)
    async with serving(service, Guard("127.0.0.1"), "127.0.0.1", 0, label=label) as url:
        yield service, url
