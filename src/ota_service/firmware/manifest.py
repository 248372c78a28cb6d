# SPDX-License-Identifier: GPL-3.0-or-later
"""A manifest: several firmwares that belong together, for which boards, in which order.

JSON with `format: 1` and `images` (docs/manifests.md, docs/manifest.schema.json). Pure: bytes in,
values out. Where its images are is said relative to the file itself; where that was had, and with
which version, is a `Target`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from ota_service.errors import OtaError
from ota_service.firmware.target import (
    NAME_MAX_BYTES,
    Target,
    check_name,
    check_sha256,
    check_version,
)
from ota_service.firmware.urls import check_url, is_path
from ota_service.formats.chips import plain_chip

MAX_BYTES = 1 << 20
"""Of a manifest's file; hundreds of images take a tenth of it."""
MAX_NAMED = 256
"""Images, and boards: the status shows them all."""
FILE_NAME = "manifest.json"
"""What a folder's manifest is called."""

_SHOWN_FAULTS = 5
_SHOWN_KEYS = 4
_KINDS: tuple[tuple[frozenset[str], str], ...] = (
    (frozenset({"signed", "signatures"}), "metadata of a signed repository: the url is that of "
     "BASE/targets/FILE"),
    (frozenset({"name", "builds"}), "a manifest of ESP Web Tools"),
    (frozenset({"mac", "table", "nvs"}), "a board's backup"),
    (frozenset({"write_flash_args", "flash_files"}), "a list of ESP-IDF's files to flash"),
)  # fmt: skip
"""JSON of other kinds, by keys that all of them have."""


def a_fault(words: str) -> PydanticCustomError:
    """An error whose text is `words`."""
    # The words are no template: braces in them stand for themselves.
    return PydanticCustomError("fault", "{words}", {"words": words})


def _checked(problem: str | None) -> None:
    if problem:
        raise a_fault(problem)


def _number(value: object) -> object:
    _checked("must be the number 1" if isinstance(value, bool) else None)
    return value


def _name(value: str) -> str:
    _checked(check_name(value))
    return value


def _tag(value: str) -> str:
    _checked(check_version(value))
    return value


def _digest(value: str) -> str:
    _checked(check_sha256(value))
    return value.lower()


def _reference(value: str) -> str:
    """An address, a path, or what is relative to the file; the words never repeat it."""
    scheme = value.partition(":")[0].lower()
    if not value or value.startswith("//"):
        _checked("is neither an address nor a path relative to the file")
    whole = ":" in value.partition("/")[0]
    if whole and scheme not in ("http", "https"):
        _checked("must be relative to the file, an http or https address, or a path")
    if not value.isprintable() or "\0" in unquote(value):
        _checked("holds characters that cannot be printed")
    try:
        joined = value if whole else urljoin("http://host/", value)
    except ValueError:
        joined = "http://["
    _checked(check_url(joined))
    if not urlsplit(joined).path.rpartition("/")[2]:
        _checked("names no file")
    return value


Name = Annotated[str, Field(min_length=1), AfterValidator(_name)]
Tag = Annotated[str, Field(min_length=1), AfterValidator(_tag)]
Digest = Annotated[str, Field(pattern=r"^[0-9A-Fa-f]{64}$"), AfterValidator(_digest)]


class Strict(BaseModel):
    """What a person wrote: no name that is not known, no value bent into another type."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class ImageEntry(Strict):
    """One image: where it is, which file, and which boards it is for."""

    url: Annotated[str, AfterValidator(_reference)] = Field(
        repr=False,
        description="Where the App Image is: relative to the manifest's own place, or an http or "
        "https address.",
    )
    sha256: Digest = Field(description="The SHA-256 of the App Image's file, 64 hex digits.")
    project: Name | None = Field(
        None, description="The project in its app descriptor; default: as the file says."
    )
    chip: Name | None = Field(
        None, description="The chip that it is for, such as esp32s3; default: as the file says."
    )
    version: Tag | None = Field(
        None, description="The tag that its boards get; default: the manifest's version."
    )

    def fits(self, project: str, chip: str) -> bool:
        """Whether a board that runs this project on this chip is one of its boards."""
        return self.project == project and self.chip is not None and same_chip(self.chip, chip)


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive steps that go together, since groups span them; without a group: one step.

    steps: each the names of images. groups: of images whose boards go forward or back as a whole.
    """

    steps: tuple[tuple[str, ...], ...]
    groups: tuple[frozenset[str], ...] = ()


class Manifest(Strict):
    """Several firmwares that belong together, as a file at a service's url names them."""

    format: Annotated[Literal[1], BeforeValidator(_number)] = Field(
        description="The form of this file."
    )
    version: Tag = Field(
        description="What a service's configuration names as its version for all of it; 1 to 128 "
        "bytes of UTF-8."
    )
    images: dict[Name, ImageEntry] = Field(
        min_length=1, max_length=MAX_NAMED, description="The images, by names of your own."
    )
    boards: dict[Name, Name] | None = Field(
        None,
        max_length=MAX_NAMED,
        description="Which board gets which image: a board's name in the service's configuration "
        "-> the image's name. Default: an image goes to the boards that run its project on its "
        "chip.",
    )
    order: list[Annotated[list[Name], Field(min_length=1)]] = Field(
        [],
        description="Steps, one after the other, each a list of images; images that stand in none "
        "form a last step. The next step begins when every board of the former is good.",
    )
    together: list[Annotated[list[Name], Field(min_length=1)]] = Field(
        [],
        description="Groups, each a list of images: their boards go forward or back as a whole.",
    )

    @property
    def steps(self) -> tuple[tuple[str, ...], ...]:
        """All images, step by step; what `order` does not name comes last."""
        named = set(chain.from_iterable(self.order))
        rest = tuple(name for name in self.images if name not in named)
        return (*map(tuple, self.order), *([rest] if rest else []))

    @property
    def binds(self) -> bool:
        """Whether boards wait for others: there are steps, or groups."""
        return len(self.steps) > 1 or bool(self.together)

    def blocks(self) -> tuple[Block, ...]:
        """The steps, those that a group spans in one block."""
        steps = self.steps
        at = {name: number for number, step in enumerate(steps) for name in step}
        spans = [(min(map(at.__getitem__, group)), max(map(at.__getitem__, group)))
                 for group in self.together]  # fmt: skip
        blocks, first = [], 0
        while first < len(steps):
            last, inside = first, -1
            while inside != last:  # until no group leads any further
                inside = last
                last = max([last, *(end for begin, end in spans if begin <= last <= end)])
            groups = [group for group, (begin, _) in zip(self.together, spans, strict=True)
                      if first <= begin <= last]  # fmt: skip
            blocks.append(Block(steps[first : last + 1], tuple(map(frozenset, groups))))
            first = last + 1
        return tuple(blocks)

    def targets(self, base: Target) -> dict[str, Target]:
        """What the boards of each image are to run. base: with the url of this file itself."""
        return {
            name: base.pinned(
                url=image_url(base.url, image.url),
                version=image.version or self.version,
                sha256=image.sha256,
            )
            for name, image in self.images.items()
        }

    def filled(self, about: Mapping[str, tuple[str, str]]) -> Manifest:
        """The same with project and chip where the file leaves them out, as its images say.

        about: image -> (project, chip). Raises OtaError where it says something else than they.
        """
        faults, images = [], dict(self.images)
        for name, (project, chip) in about.items():
            image = images[name]
            if image.project not in (None, project):
                faults.append(f'images.{name}.project: the file is of "{project}"')
            if image.chip is not None and not same_chip(image.chip, chip):
                faults.append(f"images.{name}.chip: the file is for {chip}")
            images[name] = image.model_copy(update={"project": project, "chip": chip})
        if faults:
            raise _invalid(faults)
        return self.model_copy(update={"images": images})

    @property
    def open_images(self) -> list[str]:
        """The images of which only their files can say which boards they are for."""
        if self.boards is not None:
            return []
        return [name for name, image in self.images.items() if None in (image.project, image.chip)]

    def dump(self) -> bytes:
        """The file, as `parse_manifest` reads it; what has no value is left out."""
        shown = self.model_dump(exclude_none=True)
        shown = {key: value for key, value in shown.items() if value != []}
        return (json.dumps(shown, indent=2, ensure_ascii=False) + "\n").encode()

    @classmethod
    def checked(cls, found: Any) -> Self:
        """From what JSON held. Raises OtaError `manifest-invalid`, naming the paths in the file."""
        try:
            made = cls.model_validate(found)
        except ValidationError as error:
            raise _invalid([_in_words(dict(one)) for one in error.errors(include_url=False)]) from (
                None
            )
        faults = list(made._faults())
        if faults:
            raise _invalid(faults)
        return made

    def _faults(self) -> Iterator[str]:
        """What single values do not show."""
        for board, name in (self.boards or {}).items():
            if name not in self.images:
                yield f'boards.{board}: there is no image "{name}"'
        for key, lists in (("order", self.order), ("together", self.together)):
            seen: dict[str, str] = {}
            for number, names in enumerate(lists):
                for index, name in enumerate(names):
                    place = f"{key}[{number}][{index}]"
                    if name not in self.images:
                        yield f'{place}: there is no image "{name}"'
                    elif name in seen:
                        yield f'{place}: "{name}" stands at {seen[name]} already'
                    seen.setdefault(name, place)


def same_chip(one: str, other: str) -> bool:
    """Whether two names are one chip's: "esp32s3" and "ESP32-S3" are."""
    return plain_chip(one) == plain_chip(other)


def image_url(base: str, reference: str) -> str:
    """Where an image is. base: where the manifest's file is. Both as in a `Target`.

    User and query of the file's url go along to the same server, unless the image's url has its
    own: what opens the door there opens it for both.
    """
    if is_path(base):
        if urlsplit(reference).scheme:
            return reference
        return str(PurePosixPath(base).parent / unquote(reference))
    parts = urlsplit(base)
    found = urlsplit(urljoin(urlunsplit(parts._replace(query="", fragment="")), reference))
    if (found.scheme, found.hostname, found.port) == (parts.scheme, parts.hostname, parts.port):
        user, at, _ = parts.netloc.rpartition("@")
        own = "@" in found.netloc
        netloc = found.netloc if own else f"{user}{at}{found.netloc}"
        found = found._replace(netloc=netloc, query=found.query or parts.query)
    return urlunsplit(found)


def is_json(data: bytes) -> bool:
    """Whether a file can be JSON at all: no image begins like it."""
    return data[:64].removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")


def is_whole(data: bytes) -> bool:
    """Whether JSON is there to its end."""
    try:
        json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return True


def parse_manifest(data: bytes) -> Manifest:
    """Read a manifest's file.

    Raises OtaError `manifest-invalid`, naming the path in the file, and `not-an-image` for other
    JSON, naming what it is.
    """
    if len(data) > MAX_BYTES:
        raise OtaError("not-an-image", f"The file is JSON of {len(data):,} bytes, no App Image.")
    try:
        found = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_no_twins)
    except _TwiceError as error:
        why = f"{error.args[0]}: stands twice in one object"
        if b'"images"' in data:
            raise _invalid([why]) from None
        raise OtaError("not-an-image", f"The file is JSON, no manifest: {why}.") from None
    except RecursionError:
        raise OtaError("not-an-image", "The file is JSON nested too deeply.") from None
    except ValueError as error:
        where = getattr(error, "lineno", None)
        at = f" in line {where}, column {getattr(error, 'colno', 0)}" if where else ""
        text = isinstance(error, UnicodeError)
        words = getattr(error, "msg", "it is no UTF-8" if text else "a number is too long")
        why = f"the JSON cannot be read{at}: {words}"
        if b'"images"' in data:
            raise _invalid([why]) from None
        raise OtaError("not-an-image", f"The file is no App Image, and {why}.") from None
    if isinstance(found, dict) and "images" in found and found.get("format") == 1:
        return Manifest.checked(found)
    raise OtaError("not-an-image", f"The file is {_what(found)}.")


# --- inside


class _TwiceError(Exception):
    """A key that stands twice in one object: JSON keeps the last one in silence."""


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise _TwiceError(_shown(key))
        made[key] = value
    return made


def _what(found: Any) -> str:
    """What other JSON is, as the end of "The file is ..."."""
    if not isinstance(found, dict):
        return f"JSON: {'a list' if isinstance(found, list) else 'a single value'}"
    for keys, name in _KINDS:
        if keys <= set(found):
            return f"JSON: {name}"
    if "images" in found:
        given = json.dumps(found["format"])[:20] if "format" in found else "none"
        return f"JSON with images, whose format is {given}; a manifest has format 1"
    listed = ", ".join(_shown(key) for key in list(found)[:_SHOWN_KEYS])
    listed += ", .." if len(found) > _SHOWN_KEYS else ""
    return f"JSON with {listed}; a manifest has format and images" if found else "empty JSON"


def _shown(text: str) -> str:
    """A key of somebody's file, safe to print."""
    made = "".join(char if char.isprintable() else "?" for char in text[: NAME_MAX_BYTES + 1])
    return made if len(made) <= NAME_MAX_BYTES else f"{made[:NAME_MAX_BYTES]}.."


def _invalid(faults: list[str]) -> OtaError:
    text = "; ".join(faults[:_SHOWN_FAULTS])
    if len(faults) > _SHOWN_FAULTS:
        text += f"; and {len(faults) - _SHOWN_FAULTS} more"
    return OtaError("manifest-invalid", f"{text}.")


_WORDS = {
    "missing": "is missing",
    "extra_forbidden": "is not known here",
    "string_pattern_mismatch": "must be 64 hex digits, as `sha256sum` prints them",
    "string_type": "must be text",
    "list_type": "must be a list",
    "too_long": f"names more than {MAX_NAMED}",
    **dict.fromkeys(("too_short", "string_too_short"), "is empty"),
    **dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), "must be an object"),
}
"""Pydantic's kinds of faults in our words; of others its own."""


def _in_words(found: dict[str, Any]) -> str:
    """A fault that pydantic found: the path in the file, and what is wrong there."""
    place = ""
    for part in found["loc"]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part != "[key]":  # of an object's name, which is what the path ends with
            place += f".{_shown(part)}" if place else _shown(part)
    return f"{place}: {_WORDS.get(found['type'], found['msg'])}"
