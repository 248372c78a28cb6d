# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is let in: over real HTTP, against the page's own server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import aiohttp
import pytest

from ota_service.cli.main import main
from ota_service.client.addresses import is_loopback
from ota_service.client.failure import Failure
from ota_service.dashboard.feed import Feed
from ota_service.dashboard.guard import HEADERS, Guard
from ota_service.dashboard.server import VERBS, serving
from tests.support.command import ended_by_hand, here

TOKEN = "a token of more than sixteen characters"


class Shelf:
    """A service whose replies stand on a shelf, and that notes what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.failure: Failure | None = None
        self.questions = 0

    async def status(self) -> dict[str, Any]:
        """The same each time, or the failure."""
        self.questions += 1
        if self.failure is not None:
            raise self.failure
        return {"state": "idle", "boards": {"a": {"state": "up_to_date", "attempts": 2.0}}}

    async def command(
        self, verb: str, arguments: Mapping[str, Any] | None = None, *, wait_s: float = 0
    ) -> dict[str, Any]:
        """Noted, and granted."""
        self.asked.append((verb, dict(arguments or {})))
        if self.failure is not None:
            raise self.failure
        return {"ok": True}


@asynccontextmanager
async def served(
    token: str | None = None, host: str = "127.0.0.1", listens: str = "127.0.0.1"
) -> AsyncIterator[tuple[Shelf, str, aiohttp.ClientSession]]:
    """A server whose guard was told that it listens at `host`."""
    shelf, guard = Shelf(), Guard(host, token=token, extra_hosts=("boards.example",))
    async with (
        serving(shelf, guard, listens, 0, label="m:1") as url,
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as client,
    ):
        yield shelf, url.partition("#")[0].rstrip("/"), client


async def asked(client: aiohttp.ClientSession, url: str, **headers: str) -> int:
    """The status of a command with these headers."""
    body = json.dumps({"command": "update"})
    given = {"Content-Type": "application/json", **headers}
    async with client.post(f"{url}/api/command", data=body, headers=given) as response:
        return response.status


async def test_every_reply_carries_the_strict_headers() -> None:
    """Also refusals and what does not exist; nothing inline is in the page."""
    async with served() as (_, url, client):
        for path, status in (("/", 200), ("/static/app.js", 200), ("/nowhere", 404),
                             ("/static/../guard.py", 404), ("/static/server.py", 404)):  # fmt: skip
            async with client.get(url + path) as response:
                assert response.status == status, path
                for name, value in HEADERS.items():
                    assert response.headers[name] == value, (path, name)
        async with client.get(url, headers={"Host": "evil.example"}) as response:
            assert response.status == 403
            assert response.headers["Content-Security-Policy"]
        async with client.get(url) as response:
            page = await response.text()
    assert "default-src 'none'" in HEADERS["Content-Security-Policy"]
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    assert "http://" not in page
    assert "https://" not in page
    assert "onclick" not in page
    assert "style=" not in page


async def test_other_sites_and_foreign_names_are_refused() -> None:
    """A page of another site in the same browser, and a name that was made to resolve to us."""
    async with served() as (shelf, url, client):
        host = url.removeprefix("http://")
        refused: list[dict[str, str]] = [
            {"Origin": "http://evil.example"},
            {"Origin": f"http://{host}.evil.example"},
            {"Origin": "null"},
            {"Origin": f"http://127.0.0.1:{int(host.rpartition(':')[2]) ^ 1}"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
            {"Host": "evil.example"},
            {"Host": "127.0.0.1.evil.example"},
            {"Host": "10.1.2.3"},
            {"Host": ""},
            {"Content-Type": "text/plain"},
            {"Content-Type": "application/x-www-form-urlencoded"},
        ]
        for headers in refused:
            assert await asked(client, url, **headers) == 403, headers
        assert shelf.asked == []
        async with client.get(f"{url}/api/events", headers={"Sec-Fetch-Site": "cross-site"}) as r:
            assert r.status == 403
        link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        for path, status in (("/", 200), ("/api/session", 403), ("/static/app.js", 403)):
            async with client.get(url + path, headers=link) as r:
                assert r.status == status, path
        async with client.put(f"{url}/api/command", json={}) as r:
            assert r.status == 403
        let_in: list[dict[str, str]] = [
            {},
            {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"},
            {"Host": "localhost:9"},
            {"Host": "[::1]:9"},
            {"Host": "boards.example"},
        ]
        for headers in let_in:
            assert await asked(client, url, **headers) == 200, headers
        assert len(shelf.asked) == len(let_in)


@pytest.mark.slow
async def test_elsewhere_a_token_is_needed() -> None:
    """As a header for programs, or once for a browser, which then has a cookie that no script and
    no other site can use."""
    async with served(TOKEN, host="0.0.0.0") as (shelf, url, client):
        for path in ("/api/session", "/api/events"):
            async with client.get(url + path) as response:
                assert response.status == 401
        assert await asked(client, url) == 401
        assert await asked(client, url, Authorization="Bearer wrong") == 401
        assert await asked(client, url, Cookie=f"ota_dashboard_{urlsplit(url).port}=wrong") == 401
        assert shelf.asked == []
        assert await asked(client, url, Authorization=f"Bearer {TOKEN}") == 200
        # A literal address cannot be rebound; a foreign name is refused with a token, too.
        assert await asked(client, url, Host="10.1.2.3", Authorization=f"Bearer {TOKEN}") == 200
        assert await asked(client, url, Host="evil.example", Authorization=f"Bearer {TOKEN}") == 403
        async with client.get(url) as response:
            assert response.status == 200  # the page itself, where the token is entered
        async with client.post(f"{url}/api/login", json={"token": "wrong"}) as response:
            assert response.status == 401
        assert await asked(client, url) == 401
        async with client.post(f"{url}/api/login", json={"token": TOKEN}) as response:
            assert response.status == 200
            cookie = response.cookies[f"ota_dashboard_{urlsplit(url).port}"]
            assert cookie["httponly"]
            assert cookie["samesite"] == "Strict"
            assert TOKEN not in cookie.value
        assert await asked(client, url) == 200
        # Cookies know no ports, so the page of another machine has one of another name.
        async with served(TOKEN) as (_, other, _):
            async with client.post(f"{other}/api/login", json={"token": TOKEN}) as response:
                assert response.status == 200
            assert await asked(client, other) == 200
            assert await asked(client, url) == 200


@pytest.mark.parametrize(
    ("path", "kind", "headers", "status"),
    [
        ("/api/firmware", "application/octet-stream", {}, 401),
        ("/api/firmware", "application/octet-stream", {"Authorization": "Bearer wrong"}, 401),
        ("/api/firmware", "application/octet-stream", {"Authorization": f"Bearer {TOKEN}"}, 404),
        ("/api/firmware", "application/json", {"Authorization": f"Bearer {TOKEN}"}, 403),
        ("/api/firmware", "multipart/form-data", {"Authorization": f"Bearer {TOKEN}"}, 403),
        ("/api/firmware", "text/plain", {"Authorization": f"Bearer {TOKEN}"}, 403),
        ("/api/firmware", "application/octet-stream", {"Origin": "http://evil.example"}, 403),
        ("/api/firmware", "application/octet-stream", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("/api/firmware", "application/octet-stream", {"Host": "evil.example"}, 403),
        ("/api/firmware/", "application/octet-stream", {"Authorization": f"Bearer {TOKEN}"}, 403),
        ("/api/command", "application/octet-stream", {"Authorization": f"Bearer {TOKEN}"}, 403),
        ("/api/login", "application/octet-stream", {}, 403),
    ],
)  # fmt: skip
async def test_a_file_is_let_in_as_a_command_is(
    path: str, kind: str, headers: dict[str, str], status: int
) -> None:
    """No other site's form can send one, and the page of a machine has no bench to take it: nor a
    log to watch. The token is asked for first."""
    async with served(TOKEN) as (shelf, url, client):
        given = {"Content-Type": kind, **headers}
        async with client.post(url + path, data=b"{}", headers=given) as response:
            assert response.status == status
            assert {name: response.headers[name] for name in HEADERS} == HEADERS
        for hidden in ("/api/log?board=a", "/api/history/0123456789ab"):
            async with client.get(url + hidden) as response:
                assert response.status == 401
        assert shelf.asked == []


async def test_the_session_says_what_the_page_may_ask_for() -> None:
    """A page of a machine has no bench; a run of its history comes as a file."""
    async with served() as (shelf, url, client):
        async with client.get(f"{url}/api/session") as response:
            assert await response.json() == {
                **{"ok": True, "machine": "m:1", "bench": False, "verbs": list(VERBS)},
            }
        for verb in ("stage", "activate", "version", "verify", "rollback"):
            async with client.post(f"{url}/api/command", json={"command": verb}) as response:
                assert response.status == 200
            waits = {} if verb in ("stage", "activate") else {"wait_s": 120.0}
            assert shelf.asked.pop() == (verb, waits)
        for verb in ("log", "tag", "clear", "flash"):
            async with client.post(f"{url}/api/command", json={"command": verb}) as response:
                assert response.status == 400
        async with client.get(f"{url}/api/history/0123456789ab") as response:
            assert response.status == 404  # the shelf has none
        assert shelf.asked == [("history", {"id": "0123456789ab"})]


async def test_only_the_pages_own_verbs_are_passed_on() -> None:
    """`flash` asks a person for a MAC, elsewhere; nonsense does not reach the machine, and is
    refused with the headers of every reply."""
    async with served() as (shelf, url, client):
        verbs: tuple[Any, ...] = ("flash", "nonsense", [], {}, 1)
        deep = (
            *(b"[" * 30_000, b'{"a":' * 10_000, b"[" * 30_000 + b"]" * 30_000),
            b'{"command": "update", "boards": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
            b'{"command": "update", "boards": ' + b"[" * 20 + b"]" * 20 + b"}",
            b'{"command": "update", "n": ' + b"9" * 5_000 + b"}",
        )
        bodies = (
            *(json.dumps({"command": verb}).encode() for verb in verbs),
            *(b"{}", b"[]", b'"x"', b"1", b"null", b"{", b"", b"\xff", b'{"command": "update"'),
            *deep,
        )
        for path, body in (
            *(("/api/command", body) for body in bodies),
            *(("/api/login", body) for body in deep),
        ):
            async with client.post(
                url + path, data=body, headers={"Content-Type": "application/json"}
            ) as response:
                assert response.status == 400, (path, body[:80])
                assert {name: response.headers[name] for name in HEADERS} == HEADERS
        async with client.post(f"{url}/api/command", json={"command": "x" * 70_000}) as response:
            assert response.status == 413
        assert shelf.asked == []
        dry = {"command": "update", "boards": ["a"], "dry_run": True}
        async with client.post(f"{url}/api/command", json=dry) as response:
            assert response.status == 200
        assert shelf.asked == [("update", {"boards": ["a"], "dry_run": True, "wait_s": 120.0})]


async def test_a_failure_of_the_server_says_nothing_of_it_and_has_the_headers() -> None:
    """Of the program behind it the log gets the trace, and the browser a sentence."""
    async with served() as (shelf, url, client):
        shelf.failure = RuntimeError("at /home/me: hunter2")  # type: ignore[assignment]
        async with client.post(f"{url}/api/command", json={"command": "history"}) as response:
            assert response.status == 500
            assert {name: response.headers[name] for name in HEADERS} == HEADERS
            assert "hunter2" not in await response.text()


@pytest.mark.parametrize(
    ("options", "env", "told"),
    [
        ((), {}, r"http://127\.0\.0\.1:\d+/#token=[\w-]{32}"),
        ((), {"ESP32_OTA_TOKEN": TOKEN}, r"http://127\.0\.0\.1:\d+/#token=" + quote(TOKEN)),
        (
            ("--token", "a b&c=d+e%20f#g-hijkl"),
            {},
            r"http://.*/#token=a%20b%26c%3Dd%2Be%2520f%23g-.*",
        ),
        (("--no-token",), {}, r"http://127\.0\.0\.1:\d+/"),
    ],
)
def test_a_token_is_the_default(
    options: tuple[str, ...],
    env: dict[str, str],
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The address that the command prints holds it, however it is written."""
    for name in ("ESP32_OTA_TOKEN", "VIAM_API_KEY", "VIAM_API_KEY_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    # Ends as soon as it serves: with the first question, which nobody answers.
    stop = ended_by_hand(monkeypatch)

    async def status(_: object) -> dict[str, Any]:
        stop()
        return {}

    monkeypatch.setattr("ota_service.client.machine.Machine.status", status)
    with contextlib.suppress(SystemExit):
        main(["dashboard", "--address", "127.0.0.1:9", "--port", "0", *options])
    out, err = capsys.readouterr()
    assert re.fullmatch(told, out.strip()), out
    assert ("without a token" in err.lower()) is ("--no-token" in options)


@pytest.mark.parametrize("options", [("--token", "short"), ("--token", TOKEN, "--no-token")])
def test_no_token_is_said_plainly(options: tuple[str, ...]) -> None:
    """And by itself; a short token is none."""
    done = here("dashboard", "--address", "127.0.0.1:9", "--port", "0", *options)
    assert done.code == 2
    assert "oken" in done.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("/dev/ttyUSB0", "--address", "127.0.0.1:9"), "not both"),
        (("bogus://x",), "not the url of a port"),
        (("/dev/ttyUSB0", "/dev/ttyUSB0"), "named twice"),
    ],
)
def test_a_bench_is_of_ports_or_of_what_is_attached(arguments: tuple[str, ...], said: str) -> None:
    """A machine has its own; what cannot be a port is said before anything is opened."""
    done = here("dashboard", "--port", "0", *arguments)
    assert done.code == 2
    assert said in done.err


async def events(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, Any]]:
    """The events of a stream."""
    async for line in response.content:
        if line.startswith(b"data: "):
            yield json.loads(line[6:])


async def test_the_status_streams_and_a_failure_is_told_with_its_remedy() -> None:
    """Whole numbers are whole again; a command makes the next question come at once."""
    async with served() as (shelf, url, client), client.get(f"{url}/api/events") as response:
        stream = events(response)
        first = await asyncio.wait_for(anext(stream), 5)
        assert first["status"]["boards"]["a"]["attempts"] == 2
        shelf.failure = Failure("It is gone.", "Look.", code="unreachable")
        assert await asked(client, url) == 502  # a command makes it ask at once
        news = await asyncio.wait_for(anext(stream), 5)
        gone = {"message": "It is gone.", "remedy": "Look.", "code": "unreachable"}
        assert news == {"error": gone}


async def test_nobody_is_asked_when_nobody_looks_on() -> None:
    """A machine has better things to do; the next one who looks gets a fresh status."""
    shelf = Shelf()
    feed = Feed(shelf)
    for looks in (1, 2):
        before = asyncio.all_tasks()
        async with contextlib.aclosing(feed.watch()) as news:
            assert "status" in await asyncio.wait_for(anext(news), 5)
            assert shelf.questions == looks
            asking = asyncio.all_tasks() - before
            assert asking
        await asyncio.wait(asking, timeout=5)
        assert all(task.done() for task in asking)


@pytest.mark.slow
async def test_two_lookers_on_share_the_questions() -> None:
    """A page more is no load more for the machine."""
    async with (
        served() as (shelf, url, client),
        client.get(f"{url}/api/events") as one,
        client.get(f"{url}/api/events") as two,
    ):
        streams = [events(one), events(two)]
        for stream in streams:
            assert "status" in await asyncio.wait_for(anext(stream), 5)
        before = shelf.questions
        assert before <= 2
        for stream in streams:
            await asyncio.wait_for(anext(stream), 5)
        assert shelf.questions <= before + 1


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("127.9.9.9", True),
     ("0.0.0.0", False), ("192.168.1.4", False), ("example.com", False), ("", False)],
)  # fmt: skip
def test_what_is_this_computer_alone(host: str, loopback: bool) -> None:
    """Decides whether a token is made up; in doubt it is."""
    assert is_loopback(host) is loopback


async def test_two_host_headers_are_none() -> None:
    """Whatever stands in front of the server may have looked at the other one."""
    async with served() as (shelf, url, _):
        at = urlsplit(url)
        for hosts, status in ((("127.0.0.1",), 200), ((), 400), (("evil.example",), 403),
                              (("127.0.0.1", "evil.example"), 400)):  # fmt: skip
            reader, writer = await asyncio.open_connection(at.hostname, at.port)
            head = "".join(f"Host: {host}\r\n" for host in hosts)
            writer.write(f"GET / HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode())
            line = (await reader.readline()).decode()
            writer.close()
            assert int(line.split()[1]) == status, hosts
        assert not shelf.asked
