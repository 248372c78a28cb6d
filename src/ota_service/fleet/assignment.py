# SPDX-License-Identifier: GPL-3.0-or-later
"""Which board gets which image of a manifest, and how far a run is with it: values, without
I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ota_service.errors import OtaError
from ota_service.firmware.manifest import Manifest
from ota_service.firmware.target import Target
from ota_service.fleet.group_policy import Phase


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a board. project, chip: of what runs on it; None: it has to be looked at;
    "": it was, and does not say it."""

    name: str
    project: str | None = None
    chip: str | None = None


@dataclass(frozen=True)
class Assignment:
    """A manifest on a service's boards.

    base: the service's target, at whose url it stands. place: where its file is, which is in the
    folder that `base` may name. images: board -> image. problems: why a board gets none. unsure:
    boards that have to be looked at before it is clear what they get.
    """

    base: Target
    place: str
    manifest: Manifest
    images: dict[str, str] = field(default_factory=dict)
    problems: dict[str, OtaError] = field(default_factory=dict)
    unsure: list[str] = field(default_factory=list)

    @cached_property
    def targets(self) -> Mapping[str, Target]:
        """Image -> what its boards are to run."""
        return self.manifest.targets(replace(self.base, url=self.place))

    @property
    def keys(self) -> set[str]:
        """Of all targets of the manifest."""
        return {target.key for target in self.targets.values()}

    @property
    def unused(self) -> list[str]:
        """Images that no board gets."""
        return [name for name in self.manifest.images if name not in self.images.values()]

    def rests_on(self, name: str) -> str | None:
        """The project for which a board gets its image; None: it is named, or gets none."""
        image = self.images.get(name) if self.manifest.boards is None else None
        return self.manifest.images[image].project if image is not None else None

    def of(self, boards: Iterable[Known]) -> Assignment:
        """The same for these boards: all that the service has, but for those that are pinned."""
        made = replace(self, images={}, problems={}, unsure=[])
        for one in boards:
            fits = self._fits(one)
            if len(fits) == 1:
                made.images[one.name] = fits[0]
            elif self.manifest.boards is None and None in (one.project, one.chip):
                made.unsure.append(one.name)
            else:
                made.problems[one.name] = self._problem(one, fits)
        return made

    def _fits(self, board: Known) -> list[str]:
        named = self.manifest.boards
        if named is not None:
            return [named[board.name]] if board.name in named else []
        if not board.project or not board.chip:
            return []
        images = self.manifest.images.items()
        return [name for name, image in images if image.fits(board.project, board.chip)]

    def _problem(self, board: Known, fits: list[str]) -> OtaError:
        if fits:
            return OtaError(
                "manifest-invalid",
                f"The images {', '.join(fits)} of the manifest all fit this board, so it gets none "
                "of them.",
                board=board.name,
                remedy="Say in the manifest's boards which one it gets, such as "
                f'"boards": {{"{board.name}": "{fits[0]}"}}.',
            )
        if self.manifest.boards is not None:
            why = "The manifest's boards do not name this one"
        elif board.project:
            why = f'No image of the manifest is of the project "{board.project}" for {board.chip}'
        else:
            why = "What runs on this board does not say its project"
        return OtaError(
            "other-project",
            f"{why}, so it keeps what it has.",
            board=board.name,
            remedy="Name it in the manifest, pin it to an App Image of its own, or leave it out of "
            "boards.",
        )

    @property
    def notice(self) -> str | None:
        """What fits nowhere, in words; None: everything has its place."""
        return f"No board gets {', '.join(self.unused)} of the manifest." if self.unused else None


@dataclass
class Course:
    """Where a run stands in its manifest. step: from 1 on; phase: of a group's way, as far as it
    has come. half: boards that have the new firmware while others of their group have not, where
    that waits for something. back: a group failed, and went back."""

    assignment: Assignment
    step: int = 1
    phase: Phase | None = None
    half: list[str] = field(default_factory=list)
    back: bool = False

    @classmethod
    def recalled(cls, shown: Mapping[str, Any], base: Target) -> Course:
        """As the journal has it shown, of a process that ended: to be shown on."""
        steps = [list(step) for step in shown["steps"]]
        unknown = {"url": "unknown", "sha256": "0" * 64}
        images = {image: unknown for step in steps for image in step}
        made = {"format": 1, "version": shown["version"], "images": images, "order": steps}
        assignment = Assignment(base, "", Manifest.checked(made), dict(shown["boards"]))
        half = list(shown.get("half", ()))
        return cls(assignment, int(shown["step"]), shown.get("phase"), half)

    def at(self, step: Sequence[str]) -> None:
        """A step begins."""
        self.step = self.assignment.manifest.steps.index(tuple(step)) + 1

    def to_dict(self) -> dict[str, Any]:
        """As in the status and the history."""
        manifest = self.assignment.manifest
        shown = {
            "version": manifest.version,
            "phase": self.phase,
            "step": self.step,
            "steps": [list(step) for step in manifest.steps],
            "boards": dict(self.assignment.images),
            "half": self.half or None,
            "notice": self.assignment.notice,
        }
        return {key: value for key, value in shown.items() if value is not None}


def about_manifest(manifest: Manifest) -> dict[str, Any]:
    """As the status has it of a service's target: its images, and how they belong together."""
    shown = {"images": list(manifest.images), "steps": list(map(list, manifest.steps))}
    return {**shown, **({"together": manifest.together} if manifest.together else {})}


# --- how long it takes


def expected_s(action: str, size_bytes: int, entries: Iterable[Mapping[str, Any]]) -> float | None:
    """How long a board's update will take, by what updates took on this machine.

    action: a plan's. entries: of boards in the history, those that tell most first. None: nothing
    like it was measured.
    """
    for entry in entries:
        phases: Mapping[str, float] = entry.get("phases") or {}
        written, writing_s = int(entry.get("bytes") or 0), float(phases.get("writing", 0.0))
        if action == "refuse" or entry.get("outcome") != "up_to_date" or not phases:
            continue
        if entry.get("action") != action or (action == "write" and not written):
            continue
        others_s = sum(phases.values()) - writing_s
        share = size_bytes / written if action == "write" else 0.0
        return round(others_s + writing_s * share, 1)
    return None
