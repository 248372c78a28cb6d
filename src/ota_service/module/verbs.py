# SPDX-License-Identifier: GPL-3.0-or-later
"""DoCommand's verbs: one row each, with the arguments that they take.

A command is `{"command": VERB, ...arguments}` or `{VERB: {...arguments}}`. Whatever is not
understood is refused by naming what exists. A further verb is one more row in `VERBS` and its
method in the fleet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from ota_service.fleet.settings import OVERRIDES
from ota_service.module.checks import (
    Strict,
    a_fault,
    check_firmware_url,
    check_mac,
    near,
    nearest,
    number_type,
    optional_type,
    sentences,
    where,
    whole_type,
    words_of,
)

# How long a verb that reads boards waits before it replies with its run's id.
WAIT_DEFAULT_S = 30.0
# A client's own timeout ends a call long before; this only refuses what cannot be meant.
WAIT_MAX_S = 86_400
HISTORY_MAX = 1000


MESSAGE_MAX_CHARS = 1000

# How like a verb a word must be (1: the same) to be taken for a slip of the pen. Who follows a
# hint in haste must not stop or restart something that was not meant.
_LIKE, _VERY_LIKE = 0.6, 0.8


class VerbError(ValueError):
    """A command that names no verb, or arguments that its verb does not take.

    A command may have 32 MiB, and its words are quoted: the text is shortened.
    """

    def __init__(self, text: str) -> None:
        cut = len(text) - MESSAGE_MAX_CHARS
        super().__init__(text if cut <= 0 else f"{text[:MESSAGE_MAX_CHARS]}... ({cut} more)")


def _texts(value: object, what: str) -> list[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise a_fault(f"must be a list of {what}")
    return list(dict.fromkeys(names))


def _boards(value: object) -> list[str]:
    names = _texts(value, 'names, MACs or ports, such as ["kitchen"]')
    if not names or not all(names):
        raise a_fault("names no board; leave boards out to mean all of them")
    return names


Boards = Annotated[
    list[str] | None,
    optional_type(_boards),
    Field(description="only these, by name, MAC or port; default: all boards"),
]
Wait = Annotated[float | None, number_type(0, WAIT_MAX_S, " s")]
LongestWait = Annotated[
    Wait,
    Field(
        description="how long to wait; then the reply has the run's id, what was asked for goes "
        "on, and its result is in the run's entry of history"
    ),
]


class Arguments(Strict):
    """The arguments of one verb; a verb without any uses this class itself.

    The descriptions are in the reply of `help`, and in docs/ota_service.md (docs/generate.py).
    """


class BoardsArguments(Arguments):
    """Arguments of the verbs that answer at once."""

    boards: Boards = None


def _overrides(value: object) -> list[str]:
    names = _texts(value, f'what is overridden, such as ["{OVERRIDES[0]}"]')
    unknown = [name for name in names if name not in OVERRIDES]
    if unknown:
        raise a_fault(f'"{unknown[0]}" cannot be overridden; what can is {", ".join(OVERRIDES)}')
    return names


class UpdateArguments(BoardsArguments):
    """Arguments of `update`."""

    force: bool = Field(
        False,
        description="although the version is equal, and nothing else; a board that runs the "
        "target's image already is restarted and watched, and keeps its way back",
    )
    override: Annotated[list[str] | None, optional_type(_overrides)] = Field(
        None,
        description="a list of what is overridden: not-allowed-now (allow_restart "
        "and before_restart), stopped (a firmware that failed on too many boards; it stays "
        "stopped for all others), other-project (a board of another project, or not ours)",
    )
    rescue: bool = Field(
        False,
        description="write a board of which it is proven that nothing on it boots: alone in "
        "boards, and with confirm; implies nothing else",
    )
    confirm: Annotated[str | None, optional_type(check_mac)] = Field(
        None, description="with rescue: the board's MAC; any other board is left alone"
    )
    probe: bool = Field(False, description="also open ports that are not known to be an ESP32's")
    dry_run: bool = Field(
        False, description="read the boards and reply with the plan for each; write nothing"
    )
    wait_s: Wait = Field(
        None,
        description="reply when the run ends, or after this many seconds; default: at once, "
        "with dry_run after 30",
    )

    @model_validator(mode="before")
    @classmethod
    def _dry_run_waits(cls, given: Mapping[str, Any]) -> Mapping[str, Any]:
        """By default, since its reply is its purpose."""
        return {"wait_s": WAIT_DEFAULT_S, **given} if given.get("dry_run") is True else given

    @model_validator(mode="after")
    def _rescues_one(self) -> UpdateArguments:
        if self.rescue and (self.boards is None or len(self.boards) != 1):
            raise a_fault("with rescue needs boards, with just the one board that is meant")
        if self.rescue and self.confirm is None:
            raise a_fault("with rescue needs confirm, the board's MAC")
        if self.confirm is not None and not self.rescue:
            raise a_fault("takes confirm with rescue only")
        return self


class PartArguments(BoardsArguments):
    """Arguments of the verbs that do a part of an update."""

    wait_s: Wait = Field(
        None,
        description="reply when the run ends, with what came of each board, or after this many "
        "seconds; default: at once",
    )


class ReadArguments(BoardsArguments):
    """Arguments of the verbs that read boards."""

    wait_s: LongestWait = WAIT_DEFAULT_S


class ReleaseArguments(BoardsArguments):
    """Arguments of `release`."""

    boards: Boards = Field(None, description="these boards, by name, MAC or port; or all: true")
    all: bool = Field(False, description="every board, instead of boards")
    stopped: bool = Field(
        False, description="let a firmware that was stopped be tried again, and nothing else"
    )

    @model_validator(mode="after")
    def _one_meaning(self) -> ReleaseArguments:
        if [self.boards is not None, self.all, self.stopped].count(True) != 1:
            raise a_fault("needs one of boards, all: true and stopped: true")
        return self


class HistoryArguments(Arguments):
    """Arguments of `history`."""

    board: str | None = Field(
        None, description="only runs of this board: a name, MAC or port; default: all runs"
    )
    limit: Annotated[int, whole_type(1, HISTORY_MAX, " runs")] = Field(
        20, description="how many runs at most"
    )
    id: str | None = Field(None, description="only the run of this id, with its boards' boot logs")
    boot_log: bool = Field(False, description="with what boards printed as they started")


def _path(value: object) -> str:
    if not isinstance(value, str) or not PurePath(value).is_absolute():
        raise a_fault("must be a file's whole path on the machine that has the boards")
    return value


class FlashArguments(Arguments):
    """Arguments of `flash`: one board, one file, and the MAC that confirms it."""

    board: str = Field(min_length=1, description="its name, MAC or port")
    confirm: Annotated[str, BeforeValidator(check_mac)] = Field(
        description="its MAC, since everything on it goes; any other board is left alone"
    )
    path: Annotated[str | None, optional_type(_path)] = Field(
        None,
        description="the file's whole path on the machine that has the boards",
        json_schema_extra={"inclusion": "Either"},
    )
    url: Annotated[str | None, optional_type(check_firmware_url)] = Field(
        None,
        description="instead of path: its http or https address",
        json_schema_extra={"inclusion": "Either"},
    )
    keep_nvs: bool = Field(
        False, description="carry all keys of the board's NVS over, also where its partition moves"
    )
    wait_s: LongestWait = WAIT_DEFAULT_S

    @model_validator(mode="after")
    def _one_file(self) -> FlashArguments:
        if (self.path is None) == (self.url is None):
            raise a_fault("needs either path or url")
        return self


@dataclass(frozen=True, slots=True)
class Verb:
    """One row: the verb, what it does, which boards it restarts, and its arguments."""

    name: str
    does: str
    restarts: str
    arguments: type[Arguments] = Arguments


VERBS: dict[str, Verb] = {
    verb.name: verb
    for verb in (
        Verb(
            "update",
            "Bring boards to the configured firmware; the run goes on in the background. With "
            "dry_run: reply with what would be done to each board, and why.",
            "those that it reads or writes",
            UpdateArguments,
        ),
        Verb(
            "stage",
            "Write the configured firmware into the boards' spare slots and verify it, but for the "
            "byte that would let it boot, and prove that the switch and the way back will fit. "
            "The boards keep their firmware; what stood in the spare slots is overwritten.",
            "those that it reads or writes, into their old firmware",
            PartArguments,
        ),
        Verb(
            "activate",
            "Switch boards to what is staged on them, in about a second each, together; then watch "
            "them as an update does. Needs no download.",
            "those that it switches",
            PartArguments,
        ),
        Verb("status", "Everything that is known, at once; opens no port.", "none"),
        Verb(
            "version",
            "Read the version that is stored in the boards' NVS, now.",
            "those that it reads",
            ReadArguments,
        ),
        Verb(
            "verify",
            "Whether the running slot holds the target image, by its digest, now.",
            "those that it reads",
            ReadArguments,
        ),
        Verb(
            "cancel",
            "Stop the run where that leaves every board bootable; boards before the switch keep "
            "the old firmware.",
            "those being written",
            BoardsArguments,
        ),
        Verb(
            "rollback",
            "Go back to the other slot if its image is intact, with the version that belongs to "
            "it; the board is held until its target changes, or release.",
            "those that it rolls back",
            ReadArguments,
        ),
        Verb(
            "release",
            "Let boards that were set aside, rolled back, wrong or not ours be taken up again; or, "
            "with stopped, a firmware that was stopped for all.",
            "none",
            ReleaseArguments,
        ),
        Verb(
            "flash",
            "Write a Merged Binary to one board: everything on it is replaced. With keep_nvs its "
            "keys stay. confirm must be its MAC.",
            "the one that it writes",
            FlashArguments,
        ),
        Verb("history", "What runs did, newest first.", "none", HistoryArguments),
        Verb("help", "The verbs and their arguments.", "none"),
    )
}


def parse_command(command: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Read one DoCommand: the verb's name, and its arguments without those that have no value.

    Raises VerbError, which names what exists.
    """
    name, given = _take_apart(command)
    verb = VERBS.get(name)
    if verb is None:
        hint = _meant(name, verbs_only="command" in command)
        raise VerbError(f'there is no verb "{name}"{hint} {_existing()}')
    try:
        # What arrives as null was not given.
        values = {key: value for key, value in given.items() if value is not None}
        return name, verb.arguments.model_validate(values).model_dump(exclude_none=True)
    except ValidationError as error:
        faults = [_in_words(dict(found), verb) for found in error.errors(include_url=False)]
        raise VerbError(sentences(faults)) from None


def help_reply() -> dict[str, Any]:
    """The reply of `help`: every verb with its arguments, their types and defaults."""
    return {
        "ok": True,
        "verbs": {
            verb.name: {
                "does": verb.does,
                "restarts_boards": verb.restarts,
                "arguments": {
                    name: _describe(name, verb.arguments) for name in verb.arguments.model_fields
                },
            }
            for verb in VERBS.values()
        },
        "forms": ['{"command": VERB, ...arguments}', "{VERB: {...arguments}}"],
    }


def _take_apart(command: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The verb's name and its arguments, from either form."""
    if "command" in command:
        name = command["command"]
        if not isinstance(name, str) or not name:
            raise VerbError(f'"command" must be the name of a verb. {_existing()}')
        return name, {key: value for key, value in command.items() if key != "command"}
    if len(command) != 1:
        raise _not_one_verb(command)
    ((name, value),) = command.items()
    if isinstance(value, Mapping):
        return name, value
    # JSON has no way to write a verb without arguments; all of these are in use for it.
    if value is True or value is None or (value in ("", 0) and value is not False):
        return name, {}
    if name not in VERBS:
        return name, {}  # let the caller say that the verb does not exist
    raise VerbError(
        f'the arguments of {name} must be an object, such as {{"{name}": {{}}}}; '
        f"true, empty text and 0 mean no arguments"
    )


def _not_one_verb(command: Mapping[str, Any]) -> VerbError:
    """What is wrong with a command that has none, or several keys."""
    if not command:
        return VerbError(f"the command is empty. {_existing()}")
    known = [key for key in command if key in VERBS]
    if len(known) == 1:
        return VerbError(
            f"arguments go inside the verb's object, or beside "
            f'"command": {{"command": "{known[0]}", ...}}'
        )
    slip = any(near(key, {"command": _LIKE}) for key in command)
    return VerbError(
        f"a command holds one verb; this one has {len(command)} keys"
        f"{_hint('command') if slip else '.'} {_existing()}"
    )


def _in_words(found: dict[str, Any], verb: Verb) -> str:
    place = where(found["loc"])
    if found["type"] == "missing":
        return f"{verb.name} needs {place}: {verb.arguments.model_fields[place].description}"
    if not place:
        return f"{verb.name} {found['msg']}"
    if found["type"] == "extra_forbidden":
        known = list(verb.arguments.model_fields)
        if not known:
            return f"{verb.name} takes no arguments, but {place} was given"
        hint = nearest(place, known)
        words = f"; did you mean {hint}?" if hint else "."
        return f"{verb.name} has no argument {place}{words} It takes {', '.join(known)}"
    return f"{verb.name}: {place}: {words_of(found)}"


def _meant(name: str, *, verbs_only: bool) -> str:
    """The end of a sentence about a name that is no verb: what it was perhaps meant to be."""
    known = {verb.name: _LIKE if verb.restarts == "none" else _VERY_LIKE for verb in VERBS.values()}
    if not verbs_only:
        known["command"] = _LIKE
    word = near(name, known)
    return _hint(word) if word is not None else "."


def _hint(word: str) -> str:
    return f"; did you mean {word}?" if word in VERBS else f'; did you mean "{word}"?'


def _existing() -> str:
    return f"The verbs are {', '.join(sorted(VERBS))}."


_TYPES = {
    "boards": "list of text",
    "override": "list of text",
    "wait_s": "number of seconds",
    **dict.fromkeys(("board", "confirm", "path", "url", "id"), "text"),
    "limit": "whole number",
}


def _describe(name: str, arguments: type[Arguments]) -> dict[str, Any]:
    field = arguments.model_fields[name]
    shown: dict[str, Any] = {
        "type": _TYPES.get(name, "true or false"),
        "does": field.description or "",
    }
    if field.is_required():
        shown["required"] = True
    elif field.default is not None:
        shown["default"] = field.default
    return shown
