# SPDX-License-Identifier: GPL-3.0-or-later
"""A manifest's file: what it names, what is wrong with it in words, and where its images are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ota_service.errors import OtaError
from ota_service.firmware.manifest import (
    MAX_BYTES,
    Manifest,
    image_url,
    is_json,
    is_whole,
    parse_manifest,
)
from ota_service.firmware.target import Target

DIGEST = "0123456789abcdef" * 4


def image(**more: Any) -> dict[str, Any]:
    """One image's entry."""
    return {"url": "app.bin", "sha256": DIGEST, **more}


def written(**more: Any) -> bytes:
    """A manifest's file with two images; more: what else stands in it, or something else."""
    made = {"format": 1, "version": "2.0", "images": {"motor": image(), "arm": image()}, **more}
    return json.dumps(made).encode()


def steps_of(names: str, order: list[str], together: list[str]) -> Manifest:
    """One whose images are single letters, as are the members of steps and groups."""
    images = {name: image() for name in names}
    lists = {"order": [list(s) for s in order], "together": [list(g) for g in together]}
    return parse_manifest(written(images=images, **lists))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (written(images={"motor": image(sha256="ab")}), "images.motor.sha256: must be 64 hex"),
        (written(images={"motor": image(sha256="g" * 64)}), "images.motor.sha256: must be 64 hex"),
        (written(images={"motor": {"url": "a.bin"}}), "images.motor.sha256: is missing"),
        (written(images={"motor": {"sha256": DIGEST}}), "images.motor.url: is missing"),
        (written(images={"motor": image(sha=1)}), "images.motor.sha: is not known here"),
        (written(images={"motor": image(url="")}), "images.motor.url: is neither an address"),
        (written(images={"motor": image(url="//evil/a.bin")}), "images.motor.url: is neither"),
        (written(images={"motor": image(url="file:///etc/passwd")}), "images.motor.url: must be"),
        (written(images={"motor": image(url="ftp://h/a.bin")}), "images.motor.url: must be rel"),
        (written(images={"motor": image(url="a b.bin")}), "images.motor.url: holds the character"),
        (written(images={"motor": image(url="a/")}), "images.motor.url: names no file"),
        (written(images={"motor": image(url="http:a.bin")}), "images.motor.url: must begin with"),
        (written(images={"motor": image(url="http:///a.bin")}), "images.motor.url: has no host"),
        (written(images={"motor": image(url="http://h")}), "images.motor.url: names no file"),
        (written(images={"motor": image(url="http://h/a/?b")}), "images.motor.url: names no file"),
        (written(images={"motor": image(url="%00.bin")}), "images.motor.url: holds characters"),
        (written(images={"motor": image(url="\ud800.bin")}), "images.motor.url: holds characters"),
        (written(images={"motor": image(url=7)}), "images.motor.url: must be text"),
        (written(images={"motor": image(version="")}), "images.motor.version: is empty"),
        (written(images={"motor": image(version="x" * 129)}), "images.motor.version: 129 bytes"),
        (written(images={"motor": image(chip="\n")}), "images.motor.chip: is empty"),
        (written(images={}), "images: is empty"),
        (written(images={f"i{n}": image() for n in range(257)}), "images: names more than 256"),
        (written(boards={f"b{n}": "arm" for n in range(257)}), "boards: names more than 256"),
        (written(images=[]), "images: must be an object"),
        (written(images={"a\x07": image()}), "images.a?: holds characters"),
        (written(images={"m" * 65: image()}), "65 bytes; the limit is 64"),
        (written(format=True), "format: must be the number 1."),
        (written(version=2), "version: must be text"),
        (written(version="a\0"), "version: holds a NUL"),
        (written(boards={"left": "motr"}), 'boards.left: there is no image "motr"'),
        (written(boards=["motor"]), "boards: must be an object"),
        (written(order=["motor"]), "order[0]: must be a list"),
        (written(order=[["motor", "x"]]), 'order[0][1]: there is no image "x"'),
        (written(order=[["motor"], ["motor"]]), 'order[1][0]: "motor" stands at order[0][0]'),
        (written(order=[[]]), "order[0]: is empty"),
        (written(together=[["motor"], ["arm", "motor"]]), 'together[1][1]: "motor" stands at'),
        (written(before_restart={}), "before_restart: is not known here"),
        (b'{"format": 1, "images": {"a": {}, "a": {}}}', "a: stands twice in one object"),
        (b'{"images": ' + b"9" * 5000 + b"}", "cannot be read: a number is too long"),
        (b'{"format": 1,\n "images": {},}', "cannot be read in line 2, column 15"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(data: bytes, words: str) -> None:
    """`manifest-invalid`, with the path in the file, and never a url's text."""
    with pytest.raises(OtaError) as caught:
        parse_manifest(data)
    assert caught.value.code == "manifest-invalid"
    assert words in caught.value.message
    assert "passwd" not in caught.value.message


def test_many_faults_are_told_at_once_and_counted() -> None:
    """A publisher sees more than the first one, and a log is not flooded."""
    with pytest.raises(OtaError) as caught:
        parse_manifest(written(images={f"i{n}": {} for n in range(20)}))
    assert "images.i0.url: is missing; images.i0.sha256: is missing" in caught.value.message
    assert caught.value.message.endswith("and 35 more.")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"[1, 2]", "JSON: a list"),
        (b"{}", "empty JSON"),
        (b'{"name": "x", "version": "1", "builds": []}', "a manifest of ESP Web Tools"),
        (b'{"signatures": [], "signed": {}}', "metadata of a signed repository"),
        (b'{"format": 1, "mac": "", "table": {}, "nvs": []}', "a board's backup"),
        (b'{"format": 2, "images": {}}', "whose format is 2"),
        (b'{"images": {}}', "whose format is none"),
        (b'{"error": "no such file", "code": 404}', "JSON with error, code"),
        (b'{"error": "cut o', "cannot be read in line 1"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"images": ' + b" " * MAX_BYTES, "JSON of"),
        (b'{"\xff": 1}', "it is no UTF-8"),
        (b'{"x": ' + b"9" * 5000 + b"}", "cannot be read: a number is too long"),
        (b'{"x": 1, "x": 2}', "no manifest: x: stands twice"),
    ],
)
def test_other_json_is_named(data: bytes, words: str) -> None:
    """`not-an-image`, and what it is instead."""
    with pytest.raises(OtaError) as caught:
        parse_manifest(data)
    assert caught.value.code == "not-an-image"
    assert words in caught.value.message


@pytest.mark.parametrize(
    ("order", "together", "blocks"),
    [
        ([], [], [["abcdef"]]),
        (["b"], [], [["b"], ["acdef"]]),
        (["b", "ca"], [], [["b"], ["ca"], ["def"]]),
        (["a", "b", "c", "def"], ["bc"], [["a"], ["b", "c"], ["def"]]),
        (["a", "b", "c", "def"], ["ac"], [["a", "b", "c"], ["def"]]),
        (["a", "b", "c", "d", "ef"], ["ac", "bd"], [["a", "b", "c", "d"], ["ef"]]),
        (["a", "b", "c", "d", "ef"], ["ab", "cd"], [["a", "b"], ["c", "d"], ["ef"]]),
        (["a", "b"], ["af"], [["a", "b", "cdef"]]),
        (["a", "b"], ["ef"], [["a"], ["b"], ["cdef"]]),
    ],
)
def test_groups_make_blocks_of_the_steps_they_span(
    order: list[str], together: list[str], blocks: list[list[str]]
) -> None:
    """What no step names comes last; groups that overlap make one block."""
    made = steps_of("abcdef", order, together).blocks()
    assert [["".join(step) for step in block.steps] for block in made] == blocks
    groups = [group for block in made for group in block.groups]
    assert groups == [frozenset(group) for group in together]


DOOR, TOKEN = "http://user:secret-word@host:3001", "?token=long-secret-token"
BASES = {"http": f"{DOOR}/robot/manifest.json{TOKEN}", "path": "/srv/robot/manifest.json"}


@pytest.mark.parametrize(
    ("base", "reference", "url"),
    [
        ("http", "app.bin", f"{DOOR}/robot/app.bin{TOKEN}"),
        ("http", "../x/app.bin", f"{DOOR}/x/app.bin{TOKEN}"),
        ("http", "/app.bin?v=1", f"{DOOR}/app.bin?v=1"),
        ("http", "http://host:3001/a.bin", f"{DOOR}/a.bin{TOKEN}"),
        ("http", "http://o:p@host:3001/a.bin?x=1", "http://o:p@host:3001/a.bin?x=1"),
        ("http", "https://host:3001/a.bin", "https://host:3001/a.bin"),
        ("http", "http://other/a.bin", "http://other/a.bin"),
        ("http", "http://host:3002/a.bin", "http://host:3002/a.bin"),
        ("path", "app.bin", "/srv/robot/app.bin"),
        ("path", "my%20app.bin", "/srv/robot/my app.bin"),
        ("path", "/opt/app.bin", "/opt/app.bin"),
        ("path", "https://host/a.bin", "https://host/a.bin"),
    ],
)  # fmt: skip
def test_where_an_image_is(base: str, reference: str, url: str) -> None:
    """Relative to the file; user and query of its url go to the same server alone."""
    assert image_url(BASES[base], reference) == url


def test_targets_have_the_tag_and_the_digest_of_their_image() -> None:
    """An image's own version counts before the manifest's, and headers stay with their server."""
    images = {"motor": image(version="m-1"), "arm": image(url="http://cdn/arm.bin")}
    manifest = parse_manifest(written(images=images))
    base = Target("http://host/m.json", "2.0", "f" * 64, (("X-Token", "sesame-sesame"),))
    found = manifest.targets(base)
    assert found["motor"] == Target("http://host/app.bin", "m-1", DIGEST)
    assert found["arm"] == Target("http://cdn/arm.bin", "2.0", DIGEST)
    assert (found["motor"].headers, found["arm"].headers) == (base.headers, ())


def test_what_is_left_out_the_images_say() -> None:
    """Project and chip come from the files; a manifest that says something else is refused."""
    images = {"motor": image(), "arm": image(project="arm", chip="esp32s3")}
    manifest = parse_manifest(written(images=images))
    assert manifest.open_images == ["motor"]
    assert parse_manifest(written(images=images, boards={"a": "motor"})).open_images == []
    filled = manifest.filled({"motor": ("m", "ESP32"), "arm": ("arm", "ESP32-S3")})
    assert filled.open_images == []
    assert filled.images["motor"].fits("m", "esp32")
    assert filled.images["arm"].fits("arm", "ESP32-S3")
    assert not filled.images["arm"].fits("arm", "ESP32")
    with pytest.raises(OtaError) as caught:
        manifest.filled({"arm": ("leg", "ESP32")})
    assert caught.value.message == (
        'images.arm.project: the file is of "leg"; images.arm.chip: the file is for ESP32.'
    )


NAMES = st.text("abcdef-é", min_size=1, max_size=6)


@st.composite
def manifests(draw: st.DrawFn) -> dict[str, Any]:
    """Valid ones of all kinds."""
    names = draw(st.lists(NAMES, min_size=1, max_size=8, unique=True))
    tags = st.none() | st.text("0123456789.v", min_size=1, max_size=12)
    made: dict[str, Any] = {"format": 1, "version": draw(tags.filter(bool))}
    made["images"] = {
        name: {k: v for k, v in image(version=draw(tags)).items() if v is not None}
        for name in names
    }
    for key in ("order", "together"):
        some = draw(st.permutations(names))[: draw(st.integers(0, len(names)))]
        cuts = sorted(draw(st.sets(st.integers(1, max(1, len(some))), max_size=4)))
        lists = [list(some[a:b]) for a, b in zip([0, *cuts], [*cuts, len(some)], strict=True)]
        made[key] = [one for one in lists if one]
    if draw(st.booleans()):
        made["boards"] = draw(st.dictionaries(NAMES, st.sampled_from(names), max_size=5))
    return made


@pytest.mark.slow
@settings(max_examples=60)
@given(manifests())
def test_a_manifest_is_read_as_it_was_written(made: dict[str, Any]) -> None:
    """What is written is what was read; blocks hold every image once and every group whole."""
    manifest = parse_manifest(json.dumps(made).encode())
    assert parse_manifest(manifest.dump()) == manifest
    blocks = manifest.blocks()
    named = [name for block in blocks for step in block.steps for name in step]
    assert sorted(named) == sorted(made["images"])
    assert tuple(step for block in blocks for step in block.steps) == manifest.steps
    for group in made["together"]:
        (of,) = [block for block in blocks if frozenset(group) in block.groups]
        assert set(group) <= {name for step in of.steps for name in step}
    for block in blocks:  # no larger than its groups make it
        assert len(block.steps) == 1 or block.groups
    assert len(manifest.targets(Target("http://h/m.json", "1"))) == len(made["images"])


@pytest.mark.slow
@settings(max_examples=60)
@given(st.data())
def test_no_file_breaks_the_reader(data: st.DataObject) -> None:
    """Whatever JSON holds, and wherever it is cut, is a manifest or an error of ours."""
    values = st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
        max_leaves=8,
    )
    made = data.draw(manifests())
    place = data.draw(st.sampled_from(list(made)))
    text = json.dumps({**made, place: data.draw(values)}).encode()
    for file in (text, text[: data.draw(st.integers(0, len(text)))]):
        try:
            parse_manifest(file)
        except OtaError as error:
            assert error.code in ("manifest-invalid", "not-an-image")
        assert is_whole(file) or not file.endswith(b"}") or file != text


@pytest.mark.parametrize(
    ("data", "json_"),
    [
        (b"  {", True), (b"\xef\xbb\xbf\n[", True), (b"\xe9\x01", False), (b"", False),
        (b"<html>", False),
    ],
)  # fmt: skip
def test_json_is_told_from_images(data: bytes, json_: bool) -> None:
    """By the first character; no image begins like it."""
    assert is_json(data) is json_


def test_the_robot_in_the_docs_is_a_manifest() -> None:
    """Its digests, which are cut short there, apart."""
    page = (Path(__file__).parents[2] / "docs" / "manifests.md").read_text(encoding="utf-8")
    (text,) = [text for text in re.findall(r"```json\n(.*?)```", page, re.S) if "images" in text]
    made = parse_manifest(re.sub(r'"\w+\.\."', f'"{DIGEST}"', text).encode())
    (first, last) = made.blocks()
    assert (first.steps, first.groups) == (
        (("motor", "sensor"),),
        (frozenset({"motor", "sensor"}),),
    )
    assert last.steps == (("display",),)
