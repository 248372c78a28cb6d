# SPDX-License-Identifier: GPL-3.0-or-later
"""Drawn answers and drawn addresses: each ends soon, in the file or an error of the table, and no
text of it holds a secret. Seeded, so that a run repeats.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given, seed, settings
from hypothesis import strategies as st

from ota_service.errors import ERRORS, OtaError
from ota_service.firmware.cache import Cache
from ota_service.firmware.download import Download, Patience, run_attempts
from ota_service.firmware.urls import check_url, redact, redact_url
from tests.firmware.test_toxic import request, tcp_server

PASSWORD = "corr€ct-horse"
TOKEN = "0123456789abcdef"
PATIENCE = Patience(connect_s=0.2, lookup_s=0.2, stall_s=0.2, delays_s=(0.0,))
LIMIT_S = 5.0
UNSEEN = re.compile("[\x00-\x1f\x7f]")
CONTEXT = ssl.create_default_context()

# Redirects stay at the server: a name drawn freely would be looked up.
PLACES = st.sampled_from(
    ("", "/", "app.bin", "?", "#", "//", "http:", "http://", "ftp://x/", "http://[", "http://:1/",
     "https://127.0.0.1:1/", "http://127.0.0.1:99999/", "http://a\x00b/", "/ü b", "\\\\x")
).map(str.encode)  # fmt: skip
BYTES = st.binary(max_size=40) | st.sampled_from(
    (PASSWORD.encode(), TOKEN.encode(), b"", b"0", b"-1", b"5", b"9" * 400, b"gzip", b"identity",
     b"chunked", b"bytes 0-4/5", b"bytes 5-9/10", b"bytes */5", b'"x"', b'W/"x"', b"\xff",
     b"\x1b[31m", b"Wed, 21 Oct 2015 07:28:00 GMT", b"close", b"keep-alive", b"; ,=")
)  # fmt: skip
NAMES = st.binary(max_size=12) | st.sampled_from(
    (b"Content-Length", b"Content-Range", b"Content-Encoding", b"Transfer-Encoding", b"ETag",
     b"Last-Modified", b"Connection", b"Set-Cookie", b"Retry-After", b"X")
)  # fmt: skip
STATUS = st.binary(max_size=20) | st.sampled_from(
    (b"HTTP/1.1 200 OK", b"HTTP/1.0 200", b"HTTP/1.1 206 P", b"HTTP/1.1 204 N", b"HTTP/1.1 304 N",
     b"HTTP/1.1 302 F", b"HTTP/1.1 404 N", b"HTTP/1.1 416 R", b"HTTP/1.1 503 S", b"HTTP/1.1 100 C",
     b"HTTP/1.1 101 U", b"HTTP/1.1 599 ", b"HTTP/2 200", b"HTTP/1.1 -1 X", b"ICY 200 OK")
)  # fmt: skip


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """An answer, whole or cut, or anything else."""
    fields = draw(st.lists(st.tuples(NAMES, BYTES), max_size=4))
    fields = [(name, value) for name, value in fields if name.lower().strip() != b"location"]
    if draw(st.booleans()):
        fields.append((b"Location", draw(PLACES)))
    head = b"".join(name + b": " + value + b"\r\n" for name, value in fields)
    whole = draw(STATUS) + b"\r\n" + head + b"\r\n" + draw(BYTES)
    return whole[: draw(st.integers(0, len(whole)))] if draw(st.booleans()) else whole


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    """One loop for all of them."""
    with asyncio.Runner() as made:
        yield made


async def outcome(url: str, cache: Cache) -> None:
    """One download; what must hold of its end."""
    headers = {"X-Token": f"Bearer {TOKEN}"}
    download = Download(url, cache, 1 << 20, lambda *_: None, headers=headers)
    begun_s = time.monotonic()
    try:
        await asyncio.wait_for(run_attempts(download, CONTEXT, PATIENCE), LIMIT_S)
    except OtaError as error:
        assert error.code in ERRORS
        assert error.code != "internal"
        for text in (str(error), repr(error), error.remedy):
            shown = redact(text)
            assert shown == text, "a secret that only the net has caught"
            assert PASSWORD not in text
            assert TOKEN not in text
            assert not UNSEEN.search(text)
    assert time.monotonic() - begun_s < LIMIT_S


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """One for all of them."""
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.mark.slow
def test_each_drawn_answer_ends_in_an_error_of_ours_or_the_file(
    runner: asyncio.Runner, cache: Cache
) -> None:
    """Also where the server repeats what it was sent: headers, cut ones, and no HTTP at all."""
    sent = b""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(sent)
        await writer.drain()

    place = tcp_server(talk)
    port = runner.run(place.__aenter__())

    @seed(14)
    @settings(max_examples=200, deadline=None, database=None)
    @given(answers())
    @example(b"HTTP/1.1 302 F\r\nLocation: app.bin\r\n\r\n")
    @example(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n")
    def tried(answer: bytes) -> None:
        nonlocal sent
        sent = answer
        url = f"http://user:{PASSWORD}@127.0.0.1:{port}/app.bin?token={TOKEN}"
        runner.run(outcome(url, cache))

    try:
        tried()
    finally:
        runner.run(place.__aexit__(None, None, None))


@pytest.mark.slow
@seed(14)
@settings(max_examples=200, deadline=None, database=None)
@given(
    text=st.text(st.characters(codec="utf-8"), max_size=30),
    where=st.sampled_from(("user", "password", "path", "query", "fragment", "scheme", "port")),
)
@example(text="/", where="user")
def test_each_drawn_address_that_passes_ends_in_an_error_of_ours(
    runner: asyncio.Runner, cache: Cache, text: str, where: str
) -> None:
    """Whatever stands in it: no library's exception, and what is refused is so without secrets."""
    parts = {"user": "user", "password": PASSWORD, "port": "1", "path": "", "query": f"k={TOKEN}"}
    parts |= {"fragment": "", "scheme": "http"}
    parts[where] += text
    url = "{scheme}://{user}:{password}@127.0.0.1:{port}/{path}?{query}#{fragment}".format(**parts)
    words = check_url(url)
    if words is not None:
        assert PASSWORD not in words
        assert TOKEN not in words
        return
    assert PASSWORD not in redact_url(url)
    assert TOKEN not in redact_url(url)
    if urlsplit(url).hostname == "127.0.0.1":  # no other is looked up
        runner.run(outcome(url, cache))
