# SPDX-License-Identifier: GPL-3.0-or-later
"""Urls shown without their secrets, and checked before anything is opened."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ota_service.firmware.target import Target
from ota_service.firmware.urls import check_url, redact, redact_url

SECRET = "hunter2s3cret"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://10.0.0.5:3001/app.bin", "http://10.0.0.5:3001/app.bin"),
        ("http://u:hunter2@10.0.0.5:3001/a.bin", "http://***@10.0.0.5:3001/a.bin"),
        ("https://token@h/a", "https://***@h/a"),
        ("https://h/a?token=hunter2&x=&y", "https://h/a?token=***&x=&***"),
        ("https://h/a#hunter2", "https://h/a#***"),
        ("https://u:p@[::1]:80/a", "https://***@[::1]:80/a"),
        ("http://u:hun/ter2@h/a", "http://***"),
        ("http://u:hun#ter2@h/a", "http://***"),
        ("http://u:1?ter2@h/a", "http://***"),
        ("http://[::1", "http://***"),
        ("/dev/ttyUSB0", "/dev/ttyUSB0"),
    ],
)
def test_what_is_shown_of_a_url(url: str, shown: str) -> None:
    """Host and path stay readable; what cannot be taken apart is hidden whole."""
    assert redact_url(url) == shown


def test_urls_inside_a_sentence_are_found() -> None:
    """Messages of libraries quote urls in many ways."""
    text = "GET 'http://u:hunter2@h/a?t=hunter2', (https://h/b?k=hunter2)."
    assert redact(text) == "GET 'http://***@h/a?t=***', (https://h/b?k=***)."


# What a url may hold as it is. A bare / ends the host's place for every reader of urls, so what
# comes before it is the host, and no user info.
_IN_URL = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters='"<>\\^`{|}/')
)


@given(before=_IN_URL, after=_IN_URL)
def test_a_secret_is_never_shown(before: str, after: str) -> None:
    """Whatever stands around it, in a url or in a sentence."""
    for url in (
        f"http://u:{before}{SECRET}@host/path",
        f"http://{SECRET}{after}@host/path",
        f"http://host/path?token={before}{SECRET}&x={after}",
        f"http://u:{before}{SECRET}{after}@host/path?x=1",
    ):
        assert SECRET not in redact(f"failed: {url} again")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("", "fill in the http or https address"),
        ("ftp://h/a", "must begin with http:// or https://"),
        ("app.bin", "or be a whole path, from / on"),
        ("./build/app.bin", "or be a whole path, from / on"),
        ("~/app.bin", "or be a whole path, from / on"),
        ("file:///srv/app.bin", "write the path alone"),
        ("${packages.module.fw}", "viam-server has not replaced"),
        ("/srv/a\nb.bin", "characters that cannot be printed"),
        ("http:/h/a", "must begin with http:// or https://"),
        ("http://", "has no host"),
        ("http:///a", "has no host"),
        ("http://:80/a", "has no host"),
        ("http://h:99999/a", "no valid port"),
        ("http://h:x/a", "no valid port"),
        ("http://u:p#q@h/a", "no valid port"),
        ("http://[::1/a", "brackets"),
        ("http://h/a b", "%20"),
        ("http://h/a\n", "%0A"),
    ],
)
def test_what_is_wrong_with_a_url_is_said_in_words(url: str, words: str) -> None:
    """The words go into a configuration's fault."""
    problem = check_url(url)
    assert problem is not None
    assert words in problem


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.5:3001/app.bin",
        "https://u:p%40ss@h/a?token=x",
        "http://[fd00::1]:3001/app.bin",
        "HTTP://host",
        "/srv/firmware/app.bin",
        "/root/.viam/packages/data/module/acme-firmware-1_0_0",
        "/srv/Föhn (neu)/app.bin",
        "http://host/a?mail=me@example.org",
        "https://bücher.example/ä.bin",
    ],
)
def test_usable_urls_pass(url: str) -> None:
    """User info, tokens, IPv6 and other scripts are all in use."""
    assert check_url(url) is None


@given(st.text())
def test_any_text_is_a_usable_url_or_gets_a_reason(text: str) -> None:
    """Nothing that a configuration may hold ends in an exception."""
    assert check_url(text) is None or check_url(text)
    redact(text)
    redact_url(text)


def test_a_targets_repr_and_key_hold_no_secret() -> None:
    """Values end in logs, keys in file names and the journal."""
    target = Target(f"https://u:{SECRET}@h/a?t={SECRET}", "1.0")
    assert SECRET not in repr(target) + str(target) + target.key + target.shown_url


def test_the_key_follows_url_version_and_digest() -> None:
    """A board that was set aside is taken up again when one of the three changes."""
    target = Target("http://h/a", "1.0", "0" * 64)
    others = [
        dataclasses.replace(target, url="http://h/b"),
        dataclasses.replace(target, version="1.1"),
        dataclasses.replace(target, sha256=None),
    ]
    assert len({target.key, *(other.key for other in others)}) == 4
    assert Target("http://h/a", "1.0", "0" * 64).key == target.key


def test_a_pinned_boards_target() -> None:
    """The service's digest belongs to the service's url, not to a board's own."""
    service = Target("http://h/a", "1.0", "0" * 64)
    assert service.pinned() == service
    assert service.pinned(version="0.9") == Target("http://h/a", "0.9", "0" * 64)
    assert service.pinned(url="http://h/b", version="2") == Target("http://h/b", "2", None)
    assert service.pinned(url="http://h/b", sha256="1" * 64).sha256 == "1" * 64
