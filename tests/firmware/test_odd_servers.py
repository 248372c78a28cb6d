# SPDX-License-Identifier: GPL-3.0-or-later
"""What the world's servers really send: each row is an answer, and what a user sees of it."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from esp32_sim.images import build_app
from ota_service.errors import OtaError
from ota_service.firmware import secrets
from ota_service.firmware.download import Download, Patience
from ota_service.firmware.failures import GaveUp, NotThere
from ota_service.firmware.supply import Supply
from ota_service.firmware.target import Target
from ota_service.firmware.urls import check_url, redact
from tests.firmware.test_toxic import request, tcp_server
from tests.support.certificates import certificate
from tests.support.firmware_server import FirmwareServer

APP = build_app("demo", "1.0", size_bytes=20_000)
QUICK = Patience(connect_s=0.5, lookup_s=0.5, stall_s=0.5, delays_s=(0.01,))
PASSWORD = "corr€ct-horse"
H2_SETTINGS = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x80"


@dataclass(frozen=True)
class Row:
    """What a server sends, and what becomes of it: a code with words, or the file."""

    name: str
    answer: bytes
    code: str = ""
    words: str = ""


def ok(headers: bytes, body: bytes = APP) -> bytes:
    """An answer with a body."""
    return b"HTTP/1.1 200 OK\r\n" + headers + b"\r\n" + body


SIZE = b"Content-Length: %d\r\n" % len(APP)
ROWS = (
    Row("coding of nothing", ok(SIZE + b"Content-Encoding: \r\n")),
    Row("coding none", ok(SIZE + b"Content-Encoding: none\r\n")),
    Row("coding binary", ok(SIZE + b"Content-Encoding: BINARY\r\n")),
    Row("coding aws-chunked", ok(SIZE + b"Content-Encoding: aws-chunked\r\n")),
    Row("two codings of nothing", ok(SIZE + b"Content-Encoding: aws-chunked, identity\r\n")),
    Row("coding gzip", ok(SIZE + b"Content-Encoding: gzip\r\n"), "download-failed", "(gzip)"),
    Row(
        "coding with an escape",
        ok(SIZE + b"Content-Encoding: \xc2\x9b31m\r\n"),
        "download-failed",
        "compressed, which",
    ),
    Row(
        "206 with the whole file",
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-19999/20000\r\n"
        + SIZE + b"\r\n" + APP,
    ),
    Row(
        "206 of 5,000 digits",
        b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-" + b"9" * 5000 + b"/*\r\n"
        + SIZE + b"\r\n" + APP,
        "download-truncated",
    ),
    Row("TLS", b"\x15\x03\x01\x00\x02\x02\x46", "download-failed", "speaks TLS there"),
    Row("HTTP/2", H2_SETTINGS, "download-failed", "speaks HTTP/2 only"),
    Row("SSH", b"SSH-2.0-OpenSSH_9.9\r\n", "download-failed", "speaks SSH"),
    Row("HTML without HTTP", b"<html></html>\r\n\r\n", "download-failed", "HTTP/1"),
    Row("20 kB of header", ok(b"X: " + b"a" * 20_000 + b"\r\n"), "download-failed", "8 KB"),
    Row("two lengths", ok(SIZE + b"Content-Length: 4\r\n"), "download-failed", "length twice"),
    Row("a length of 5,000 digits", ok(b"Content-Length: " + b"9" * 5000 + b"\r\n"),
        "download-failed", "no file has"),
    Row("length and chunks", ok(SIZE + b"Transfer-Encoding: chunked\r\n"), "download-failed",
        "in two ways"),
    Row("a bad chunk", ok(b"Transfer-Encoding: chunked\r\n", b"zz\r\n"), "download-failed",
        "parts of the file"),
    Row("a manifest without an end", ok(b"", b'{"format": 1, "images": {"a'), "download-truncated",
        "is not whole"),
    Row("a manifest of nothing", ok(b"", b'{"format": 1, "images": {}}'), "manifest-invalid",
        "version: is missing; images: is empty"),
    Row("nothing at all", b"", "download-failed", "closed the connection without an answer"),
    Row("status 9999", b"HTTP/1.1 9999 no\r\n\r\n", "download-failed", "HTTP/1"),
    Row("not there", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "http-status", "404"),
    Row("redirect to port 99999", b"HTTP/1.1 302 F\r\nLocation: http://a:99999/\r\n\r\n",
        "http-status", "no http address"),
    Row("redirect to nowhere", b"HTTP/1.1 302 F\r\nContent-Length: 0\r\n\r\n", "http-status",
        "no http address"),
    Row("redirect to a file", b"HTTP/1.1 302 F\r\nLocation: file:///etc/passwd\r\n\r\n",
        "http-status", "no http address"),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
async def test_an_odd_answer(row: Row, tmp_path: Path) -> None:
    """The file, or an error that says in words what the server does; never the password."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(row.answer)
        await writer.drain()

    supply = Supply(tmp_path, patience=QUICK)
    async with tcp_server(talk) as port:
        target = Target(f"http://user:{PASSWORD}@127.0.0.1:{port}/app.bin?token=0123456789ab", "1")
        if not row.code:
            assert (await supply.get(target)).data == APP
            return
        with pytest.raises(OtaError) as caught:
            await supply.get(target)
    error = caught.value
    assert (error.code, row.words in error.message) == (row.code, True), error.message
    told = f"{error.message} {error.remedy}"
    assert PASSWORD not in told
    assert "0123456789ab" not in told
    assert told.isprintable()


@pytest.mark.parametrize("noise", [b"\x00\xff\x15\r\n", ok(b"Content-Length: x\r\n"), b"HTTP"])
async def test_one_noisy_answer_ends_no_download(noise: bytes, tmp_path: Path) -> None:
    """It is as good as a broken connection: asked again."""
    answers = [noise, ok(SIZE)]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(answers.pop(0))
        await writer.drain()

    async with tcp_server(talk) as port:
        supply = Supply(tmp_path, patience=QUICK)
        assert (await supply.get(Target(f"http://127.0.0.1:{port}/", "1"))).data == APP
    assert not answers


@pytest.mark.slow
@pytest.mark.parametrize("endless", [b"HTTP/1.1 102 Processing\r\n\r\n", b"X"])
async def test_what_never_becomes_an_answer_ends(endless: bytes, tmp_path: Path) -> None:
    """Answers 1xx without end, and a header that comes byte by byte."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        if endless == b"X":
            writer.write(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            writer.write(endless)
            await writer.drain()
            await asyncio.sleep(0.02)

    async with tcp_server(talk) as port:
        with pytest.raises(GaveUp, match="does not answer"):
            await Supply(tmp_path, patience=QUICK).get(Target(f"http://127.0.0.1:{port}/", "1"))


@pytest.mark.parametrize("password", ["geheim", "naïve", "päß:wört", "密码", "%", "a%2Fb"])
async def test_every_password_is_sent_as_utf_8(password: str, tmp_path: Path) -> None:
    """As RFC 7617 has it; servers that ask for anything else are older than it."""
    async with FirmwareServer.start() as server:
        server.put("/app.bin", APP, login=f"jürgen:{password.replace('%2F', '/')}")
        url = server.url("/app.bin", user_info=f"jürgen:{password.replace('%', '%25')}")
        if password == "a%2Fb":
            url = server.url("/app.bin", user_info="jürgen:a%2Fb")
        assert (await Supply(tmp_path, patience=QUICK).get(Target(url, "1"))).data == APP


@pytest.mark.parametrize(
    ("location", "path"),
    [("/a b/ü.bin", "/a%20b/%C3%BC.bin"), (" /x.bin ", "/x.bin"), ("/a%2Fb.bin", "/a%2Fb.bin")],
)
async def test_a_raw_location_is_followed_as_browsers_do(
    location: str, path: str, tmp_path: Path
) -> None:
    """Blanks and other scripts as they stand in the header; what is encoded stays as it is."""
    asked: list[str] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await request(reader)).split(" ")[1])
        if len(asked) == 1:
            head = f"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: {location}\r\n\r\n"
            writer.write(head.encode())
        else:
            writer.write(ok(SIZE))
        await writer.drain()

    async with tcp_server(talk) as port:
        await Supply(tmp_path, patience=QUICK).get(Target(f"http://127.0.0.1:{port}/app", "1"))
    assert asked == ["/app", path]


async def test_a_header_goes_to_no_other_origin(tmp_path: Path) -> None:
    """A token for one server is nothing that another one may see, nor the first one after it."""
    async with FirmwareServer.start() as first, FirmwareServer.start() as other:
        first.put("/app.bin", APP)
        other.redirect("/hop", first.url("/app.bin"))
        first.redirect("/start", other.url("/hop"))
        download = Download(
            first.url("/start"), Supply(tmp_path)._cache, 1 << 20, lambda *_: None,
            headers={"Authorization": "Bearer secret-token"},
        )  # fmt: skip
        await download.attempt(ssl.create_default_context(), QUICK)
        seen = [one.headers.get("Authorization") for one in first.requests + other.requests]
        assert seen == ["Bearer secret-token", None, None]


async def test_a_header_may_stand_in_a_file(tmp_path: Path) -> None:
    """Read at each download, so that a token may be renewed; what is no such file is named."""
    supply = Supply(tmp_path / "cache", patience=QUICK)
    token = tmp_path / "token"
    async with FirmwareServer.start() as server:
        url = server.put("/app.bin", APP, validators=False)
        for value in ("first-token", "second-token"):
            token.write_text(f"{value}\n")
            await supply.get(Target(url, "1", headers=(("X-Token", token), ("X-Plain", "yes!"))))
        assert [one.headers["X-Token"] for one in server.requests] == [
            "first-token",
            "second-token",
        ]
        assert server.requests[0].headers["X-Plain"] == "yes!"
    assert "first-token" not in redact("it said first-token")
    os.mkfifo(tmp_path / "fifo")
    for name, text in (
        ("none", None),
        ("fifo", None),
        ("empty", "\n"),
        ("two", "a\nb"),
        ("ü", "ü"),
    ):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(OtaError) as caught:
            await supply.get(Target(url, "1", headers=(("X-Token", tmp_path / name),)))
        assert caught.value.code == "file-access"
        assert str(tmp_path / name) in caught.value.message


@pytest.mark.slow
async def test_no_redirect_leads_into_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the configured url is there itself. The tests' own server stands for one elsewhere."""
    monkeypatch.setattr("ota_service.firmware.download._is_local", elsewhere)
    supply = Supply(tmp_path, patience=QUICK)
    async with FirmwareServer.start() as server:
        server.put("/app.bin", APP)
        for near in (
            *("localhost", "[::1]", "169.254.169.254", "0.0.0.0", "[::ffff:127.0.0.1]"),
            *("2130706433", "127.1", "0177.0.0.1", "0x7f.1", "0x7f000001", "0", "127.0.0.1."),
            *("elsewhere@127.1", "elsewhere:80@2130706433", "[0:0:0:0:0:0:0:1]", "LOCALHOST."),
        ):
            url = server.redirect("/start", f"http://{near}:{server.port}/app.bin")
            with pytest.raises(OtaError) as caught:
                await supply.get(Target(url, "1"))
            assert caught.value.code == "redirect-refused", near
        server.redirect("/start", "/app.bin")
        assert (await supply.get(Target(url, "1"))).data == APP


async def elsewhere(host: str | None, *, timeout_s: float) -> bool:
    """No host is this machine."""
    return False


async def test_a_certificate_of_tomorrow_is_the_clocks_fault(tmp_path: Path) -> None:
    """It passes by itself, so it is tried again; the clock is named."""
    context, ca_file = certificate(tmp_path, begins_in_days=1)
    async with FirmwareServer.start(tls=context) as server:
        url = server.put("/app.bin", APP)
        with pytest.raises(GaveUp) as caught:
            await Supply(tmp_path, patience=QUICK).get(Target(url, "1"), ca_file=str(ca_file))
    assert caught.value.code == "clock-behind"
    assert re.search(r"clock says 20\d\d-\d\d-\d\d \d\d:\d\d UTC", caught.value.message)


@pytest.mark.parametrize("status", [403, 404])
async def test_what_is_not_published_yet_is_told_apart(status: int, tmp_path: Path) -> None:
    """At once, without further attempts: it is looked for again later."""
    async with FirmwareServer.start() as server:
        url = server.put("/app.bin", APP)
        server.fail_next("/app.bin", status)
        with pytest.raises(NotThere):
            await Supply(tmp_path, patience=QUICK).get(Target(url, "1"))
        assert len(server.requests) == 1


async def test_no_entry_of_netrc_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody configured it; a `default` entry would go to any server."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login a password b\ndefault login c password d\n")
    monkeypatch.setenv("NETRC", str(netrc))
    async with FirmwareServer.start() as server:
        await Supply(tmp_path / "c", patience=QUICK).get(Target(server.put("/app.bin", APP), "1"))
        assert "Authorization" not in server.requests[0].headers


ODD_URLS = (
    "http://server..local/a.bin",
    "http://" + "a" * 64 + ".local/a.bin",
    f"http://us%er:{PASSWORD}\u2100@host/a.bin",
    f"http://user:{PASSWORD}@ho\u0308st..x/a.bin",
    "http://host:99999/a.bin",
    f"http://user:{PASSWORD}@a\u2100b/x",
)


@pytest.mark.parametrize("url", ODD_URLS)
def test_an_address_that_no_client_can_use_is_refused_in_words(url: str) -> None:
    """At the configuration, and without what it holds."""
    words = check_url(url)
    assert words is not None
    assert PASSWORD not in words
    assert "host" in words or "port" in words or "user name" in words


FORMS: tuple[Callable[[str], str], ...] = (
    str,
    lambda text: base64.b64encode(text.encode()).decode(),
    lambda text: "".join(f"%{byte:02X}" if byte > 127 else chr(byte) for byte in text.encode()),
    lambda text: ascii(text)[1:-1],
)


@pytest.mark.parametrize("form", FORMS)
def test_a_known_secret_is_hidden_in_each_form(form: Callable[[str], str]) -> None:
    """A library may repeat it as it likes; the pair of both as base64, too."""
    secrets.learn(f"https://joe:{PASSWORD}@h/?sig=abcdefghijklmnop&v=1.2.3",
                  {"Authorization": "Bearer tokentoken"})  # fmt: skip
    for secret in (PASSWORD, f"joe:{PASSWORD}", "abcdefghijklmnop", "tokentoken"):
        assert secret not in redact(f"it said {form(secret)}!")
        assert form(secret).rstrip("=") not in redact(f"it said {form(secret)}!")
    assert redact("joe has version 1.2.3") == "joe has version 1.2.3"


def test_a_version_in_the_query_is_no_token() -> None:
    """The tag and the digest are shown, wherever else they stand; a password never is."""
    tag, digest = "1.20.3-build.451", "ab" * 32
    Target(f"https://h/app.bin?v={tag}&sum={digest}&sig=abcdefghijklmnop", tag, digest)
    assert redact(f"{tag} {digest} abcdefghijklmnop") == f"{tag} {digest} ***"
    Target(f"https://joe:{tag}@h/", tag)
    assert redact(f"joe:{tag}") == "***"


def test_a_short_password_hides_no_word_of_a_status() -> None:
    """It never stands in a text of ours; the net is for what is surely no word."""
    secrets.learn("https://joe:idle@h/?v=updating")
    assert redact("the state is idle, joe:idle@") == "the state is idle, ***@"
