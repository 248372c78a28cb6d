# SPDX-License-Identifier: GPL-3.0-or-later
"""Downloads over connections that misbehave below HTTP: cut, slow, silent, proxied, IPv6."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from esp32_sim.images import build_app
from ota_service.errors import OtaError
from ota_service.firmware.download import Patience
from ota_service.firmware.supply import Supply
from ota_service.firmware.target import Target
from tests.support.firmware_server import FirmwareServer

APP = build_app("demo", "1.0", size_bytes=100_000)
QUICK = Patience(connect_s=0.3, lookup_s=1.0, stall_s=0.3, delays_s=(0.01, 0.01))

Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def tcp_server(talk: Conversation, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """A server that talks as `talk` does on each connection; yields its port."""
    talking: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        talking.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await talk(reader, writer)
        finally:
            talking.discard(task)
            writer.close()

    server = await asyncio.start_server(one, host, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(talking):
            task.cancel()
        await asyncio.gather(*talking, return_exceptions=True)


async def request(reader: asyncio.StreamReader) -> str:
    """The head of the next request."""
    return (await reader.readuntil(b"\r\n\r\n")).decode()


async def refusal(supply: Supply, url: str) -> OtaError:
    """The error that a download ends in."""
    with pytest.raises(OtaError) as caught:
        await supply.get(Target(url, "1"))
    return caught.value


async def test_a_link_that_is_cut_at_each_10_kb_still_gets_the_file(tmp_path: Path) -> None:
    """Ten cuts, two delays: each attempt gets further, so none of them was in vain."""
    starts: list[int] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wanted = re.search(r"Range: bytes=(\d+)-", await request(reader))
        begin = int(wanted[1]) if wanted else 0
        starts.append(begin)
        status = "206 Partial Content" if begin else "200 OK"
        writer.write(
            f'HTTP/1.1 {status}\r\nETag: "x"\r\nContent-Length: {len(APP) - begin}\r\n'
            f"Content-Range: bytes {begin}-{len(APP) - 1}/{len(APP)}\r\n\r\n".encode()
            + APP[begin : begin + 10_000]
        )
        await writer.drain()

    async with tcp_server(talk) as port:
        got = await Supply(tmp_path, patience=QUICK).get(Target(f"http://127.0.0.1:{port}/a", "1"))
    assert got.data == APP
    assert starts == list(range(0, len(APP), 10_000))


async def test_one_byte_at_a_time_is_slow_but_no_stall(tmp_path: Path) -> None:
    """Headers and body in single bytes: whole in the end."""
    small = build_app("demo", "1.0", size_bytes=3000)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(small)}\r\n\r\n".encode() + small
        for byte in answer:
            writer.write(bytes((byte,)))
            await writer.drain()
            await asyncio.sleep(0)

    async with tcp_server(talk) as port:
        got = await Supply(tmp_path, patience=QUICK).get(Target(f"http://127.0.0.1:{port}/a", "1"))
    assert got.data == small


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_server_that_never_answers_is_given_up(tmp_path: Path, scheme: str) -> None:
    """It takes the connection and says nothing, not even TLS."""
    connections = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await asyncio.Event().wait()

    async with tcp_server(talk) as port, asyncio.timeout(10):
        error = await refusal(
            Supply(tmp_path, patience=QUICK), f"{scheme}://u:hunter2@127.0.0.1:{port}/a"
        )
    assert error.code == "download-failed"
    assert "hunter2" not in str(error)
    assert connections == 3


@pytest.mark.slow
async def test_a_stall_within_the_body_is_noticed_and_gone_on_from(tmp_path: Path) -> None:
    """No byte for the time set: the rest is asked for on a new connection."""
    ranges: list[str] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wanted = re.search(r"Range: bytes=(\d+)-", await request(reader))
        begin = int(wanted[1]) if wanted else 0
        ranges.append(str(begin))
        status = "206 Partial Content" if begin else "200 OK"
        writer.write(
            f'HTTP/1.1 {status}\r\nETag: "x"\r\nContent-Length: {len(APP) - begin}\r\n'
            f"Content-Range: bytes {begin}-{len(APP) - 1}/{len(APP)}\r\n\r\n".encode()
        )
        writer.write(APP[begin:] if begin else APP[:40_000])
        await writer.drain()
        await asyncio.Event().wait()

    async with tcp_server(talk) as port, asyncio.timeout(10):
        got = await Supply(tmp_path, patience=QUICK).get(Target(f"http://127.0.0.1:{port}/a", "1"))
    assert got.data == APP
    assert ranges == ["0", "40000"]


async def test_a_file_whose_end_nobody_marks_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    """HTTP/1.0 without a length ends with the connection, and so does a cut."""
    bodies = [APP[:50_000], APP]

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + bodies.pop(0))
        await writer.drain()

    supply = Supply(tmp_path, patience=QUICK)
    async with tcp_server(talk) as port:
        url = f"http://127.0.0.1:{port}/a"
        error = await refusal(supply, url)
        assert error.code == "download-truncated"
        assert "does not say how long" in error.message
        assert (await supply.get(Target(url, "1"))).data == APP


async def test_garbage_instead_of_http_is_an_error_in_words(tmp_path: Path) -> None:
    """A port that speaks something else, such as SSH."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
        await writer.drain()

    async with tcp_server(talk) as port:
        error = await refusal(Supply(tmp_path, patience=QUICK), f"http://127.0.0.1:{port}/a")
    assert error.code == "download-failed"


async def test_a_host_without_an_address_is_named(tmp_path: Path) -> None:
    """The name of a host that cannot exist (RFC 6761)."""
    error = await refusal(Supply(tmp_path, patience=QUICK), "http://u:hunter2@nowhere.invalid/a")
    assert error.code == "download-failed"
    assert "nowhere.invalid" in error.message
    assert "hunter2" not in str(error)


def has_ipv6() -> bool:
    """Whether this machine has an IPv6 loopback."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_ipv6_addresses_work(tmp_path: Path) -> None:
    """In brackets, as urls have them."""
    async with FirmwareServer.start(host="::1") as server:
        server.put("/a", APP)
        got = await Supply(tmp_path).get(Target(f"http://[::1]:{server.port}/a", "1"))
    assert got.data == APP


async def test_the_environments_proxy_is_used_and_its_faults_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets the whole url; without it, and where it refuses, the error says that it is it."""
    heads: list[str] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await request(reader))
        if heads[-1].startswith("CONNECT") or "/locked" in heads[-1]:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
        else:
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(APP)}\r\n\r\n".encode() + APP)
        await writer.drain()

    supply = Supply(tmp_path, patience=QUICK)
    async with tcp_server(talk) as port:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://me:hunter2@127.0.0.1:{port}")
        monkeypatch.setenv("no_proxy", "")
        got = await supply.get(Target("http://firmware.example/a?token=s3cret", "1"))
        assert got.data == APP
        assert heads[0].startswith("GET http://firmware.example/a?token=s3cret HTTP/1.1\r\n")
        assert base64.b64encode(b"me:hunter2").decode() in heads[0]
        for url in ("https://firmware.example/a", "http://firmware.example/locked"):
            error = await refusal(supply, url)
            assert error.code == "http-status"
            assert "407" in error.message
            assert "proxy" in error.remedy
            assert "hunter2" not in str(error)
    error = await refusal(supply, "http://firmware.example/b")
    assert error.code == "download-failed"
    assert "proxy" in error.message
    assert "hunter2" not in str(error)


async def test_no_credentials_reach_another_host(tmp_path: Path) -> None:
    """Not by a redirect, not within one, and not by the Referer: what arrives is looked at."""
    heads: list[str] = []

    async def away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await request(reader))
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(APP)}\r\n\r\n".encode() + APP)
        await writer.drain()

    async with tcp_server(away) as port, FirmwareServer.start() as server:
        # The same machine under another name is another host.
        server.redirect("/a", f"http://localhost:{port}/b")
        url = server.url("/a", user_info="user:hunter2", query="token=s3cret")
        assert (await Supply(tmp_path).get(Target(url, "1"))).data == APP
    (head,) = heads
    for secret in ("hunter2", "s3cret", base64.b64encode(b"user:hunter2").decode()):
        assert secret not in head


@pytest.mark.slow
async def test_a_server_that_drips_has_stalled(tmp_path: Path) -> None:
    """It sends a byte again and again, so that it is never silent, and would take for ever."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(APP)}\r\n\r\n".encode())
        for byte in APP:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)  # the fault itself: it has a rhythm

    patience = Patience(stall_s=10.0, delays_s=(0.01,), rate_window_s=0.3)
    supply = Supply(tmp_path, patience=patience)
    async with tcp_server(drip) as port:
        with pytest.raises(OtaError) as caught:
            await supply.get(Target(f"http://127.0.0.1:{port}/x.bin", "1.0"))
    assert caught.value.code == "download-stalled"
    assert re.search(r"sent \d+ bytes in \d+ s\.", caught.value.message)
