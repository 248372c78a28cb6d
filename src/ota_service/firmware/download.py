# SPDX-License-Identifier: GPL-3.0-or-later
"""One file over http or https into memory: redirects, limits, resumption, errors in our words.

Sources: RFC 9110 (validators, ranges, redirects), RFC 7617 (Basic authentication in UTF-8).
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import re
import socket
import ssl
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import aiohttp
import aiohttp.abc
from yarl import URL

from ota_service.errors import OtaError
from ota_service.firmware import secrets
from ota_service.firmware.cache import Cache, Known
from ota_service.firmware.explain import explained
from ota_service.firmware.failures import GaveUp, NotThere, Transient, is_retried
from ota_service.firmware.files import TEXT_BYTES, read_file
from ota_service.firmware.urls import redact_url

Progress = Callable[[int, int | None], None]

MAX_REDIRECTS = 10
CHUNK_BYTES = 64 << 10
# An attempt that brought at least this much was not in vain: the delays begin anew after it.
PROGRESS_BYTES = 1024
# A server that is slower for long is no better than one that is silent: a file of 1 MB would take
# more than half an hour.
MIN_BYTES_PER_S = 512
# Codings that change nothing: S3 stores what an upload was called, "aws-chunked" among them.
_PLAIN_CODINGS = frozenset({"", "identity", "none", "binary", "aws-chunked"})


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a download waits, in seconds.

    connect_s: for one address to take the connection, its TLS included; lookup_s: for names and
    all addresses together. stall_s: a server that sends no byte for this long counts as gone.
    delays_s: before each further attempt since the last one that brought anything.
    rate_window_s: over which a server must send MIN_BYTES_PER_S.
    retry_after_s: the longest that a server may ask for in its Retry-After.
    """

    connect_s: float = 15.0
    lookup_s: float = 60.0
    stall_s: float = 30.0
    delays_s: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0, 8.0)
    retry_after_s: float = 60.0
    rate_window_s: float = 30.0


@dataclass(slots=True)
class Download:
    """A download across its attempts.

    cache: what must have room for the file; None: it is kept nowhere.
    headers: sent to the url's own server, and to no other.
    arrived: the file so far; nothing where the cached one is still current (`unchanged`).
    etag, last_modified: the validators of what has arrived.
    open_ended: the server never said where the file ends, so nothing but the file itself can
    tell whether it is whole. gave_up: it ended by a failure that may pass.
    """

    url: str = field(repr=False)
    cache: Cache | None = field(repr=False)
    max_bytes: int
    progress: Progress = field(repr=False)
    known: Known | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    arrived: bytearray = field(default_factory=bytearray, repr=False)
    unchanged: bool = False
    etag: str | None = None
    last_modified: str | None = None
    open_ended: bool = False
    gave_up: bool = False

    def __post_init__(self) -> None:
        secrets.learn(self.url, self.headers)

    @property
    def shown(self) -> str:
        """The url without its secrets."""
        return redact_url(self.url)

    async def attempt(self, context: ssl.SSLContext, patience: Patience) -> None:
        """Try once; go on where an earlier attempt ended, if the server can.

        Raises OtaError where another attempt would end alike, Transient where it may not.
        """
        timeout = aiohttp.ClientTimeout(
            total=None,
            connect=patience.lookup_s,
            sock_connect=patience.connect_s,
            sock_read=patience.stall_s,
        )
        resolver = _Resolver()
        try:
            async with aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context, resolver=resolver),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=timeout,
                auto_decompress=False,
            ) as session:
                await self._follow(session, resolver, patience)
        except (OtaError, Transient):
            raise
        except aiohttp.ClientPayloadError:
            raise self._truncated() from None
        except Exception as error:
            raise explained(error, self.shown, stall_s=patience.stall_s) from None

    async def _follow(
        self, session: aiohttp.ClientSession, resolver: _Resolver, patience: Patience
    ) -> None:
        url, login = _address(self.url)
        # What opens the door at the configured place is for that place alone.
        own = {**login, **self.headers}
        near: bool | None = None  # asked where it matters: at a redirect
        for _ in range(MAX_REDIRECTS + 1):
            # Any number of answers 1xx, or a byte of a header now and then, end here.
            async with asyncio.timeout(patience.lookup_s + patience.stall_s):
                answer = await session.get(
                    url, headers={**own, **self._headers()}, allow_redirects=False,
                    proxy=_proxy(url),
                )  # fmt: skip
            async with answer:
                if answer.status not in (301, 302, 303, 307, 308):
                    await self._take(answer, patience.rate_window_s)
                    return
                target = self._redirected(url, answer.headers.get("Location", ""))
            if not _same_place(url, target):
                own = {}
            if near is None:
                near = resolver.any_place = await _is_local(url.host, timeout_s=patience.lookup_s)
            if target.host != url.host and not resolver.may_be(target.host):
                raise OtaError(
                    "redirect-refused", f"{self.shown} redirects to this machine itself."
                )
            url = target
        raise OtaError("http-status", f"{self.shown} redirects more than {MAX_REDIRECTS} times.")

    def _headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "User-Agent": "esp32-ota"}
        # A weak validator must not join two parts (RFC 9110, section 13.1.5).
        weak = self.etag is None or self.etag.startswith("W/")
        validator = self.last_modified if weak else self.etag
        if self.arrived and validator:
            headers["Range"] = f"bytes={len(self.arrived)}-"
            headers["If-Range"] = validator
        elif self.known is not None:
            if self.known.etag:
                headers["If-None-Match"] = self.known.etag
            elif self.known.last_modified:
                headers["If-Modified-Since"] = self.known.last_modified
        return headers

    def _redirected(self, url: URL, location: str) -> URL:
        """Where a redirect leads, without user info."""
        try:
            target, _ = _address(str(url.join(_as_written(_escaped(location)))))
        except ValueError:
            target = URL()
        if not location or target.scheme not in ("http", "https") or not target.host:
            raise OtaError("http-status", f"{self.shown} redirects to what is no http address.")
        if url.scheme == "https" and target.scheme == "http":
            raise OtaError(
                "http-status",
                f"{self.shown} redirects from https to http, which is not followed.",
                remedy="Let the server redirect to https, or configure the final address.",
            )
        return target

    async def _take(self, answer: aiohttp.ClientResponse, window_s: float) -> None:
        if answer.status == HTTPStatus.NOT_MODIFIED and self.known is not None:
            self.unchanged = True
            return
        if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and self.arrived:
            raise self._truncated(forget=True)
        if answer.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            raise self._refused(answer)
        coding = answer.headers.get("Content-Encoding", "").strip().lower()
        if not {one.strip() for one in coding.split(",")} <= _PLAIN_CODINGS:
            name = f" ({coding})" if re.fullmatch(r"[a-z0-9, -]{1,20}", coding) else ""
            raise OtaError(
                "download-failed",
                f"The server of {self.shown} sends the file compressed{name}, which was not "
                "asked for.",
                remedy="Switch content encoding off for this file at its server.",
            )
        await self._receive(answer.content, self._begin(answer), window_s)

    async def _receive(
        self, content: aiohttp.StreamReader, total_bytes: int | None, window_s: float
    ) -> None:
        arrived = self.arrived
        self.progress(len(arrived), total_bytes)
        began_s, began_bytes = time.monotonic(), len(arrived)
        async for chunk in content.iter_chunked(CHUNK_BYTES):
            if len(arrived) + len(chunk) > self.max_bytes:
                raise self._too_large(None)
            arrived += chunk
            self.progress(len(arrived), total_bytes)
            spent_s = time.monotonic() - began_s
            if spent_s >= window_s:
                brought = len(arrived) - began_bytes
                if brought < MIN_BYTES_PER_S * spent_s:
                    words = f"The server of {self.shown} sent {brought:,} bytes in {spent_s:.0f} s."
                    raise Transient(OtaError("download-stalled", words))
                began_s, began_bytes = time.monotonic(), len(arrived)
        if total_bytes is not None and len(arrived) != total_bytes:
            raise self._truncated()

    def _begin(self, answer: aiohttp.ClientResponse) -> int | None:
        """Make ready for the body; returns the whole file's size where the server says it."""
        partial = answer.status == HTTPStatus.PARTIAL_CONTENT
        match = re.fullmatch(
            r"bytes (\d{1,15})-(\d{1,15})/(\d{1,15}|\*)", answer.headers.get("Content-Range", "")
        )
        if partial and match and match[1] == "0" and int(match[2]) + 1 == _number(match[3]):
            partial = False  # the whole file, whatever it is called
        if partial:
            total = self._continued(match, answer.content_length)
        else:
            total = answer.content_length
            chunked = answer.headers.get("Transfer-Encoding", "").lower() == "chunked"
            self.open_ended = total is None and not chunked
            self.etag = answer.headers.get("ETag")
            self.last_modified = answer.headers.get("Last-Modified")
        if total is not None and total > self.max_bytes:
            raise self._too_large(total)
        if not partial:
            self.arrived.clear()
            if self.cache is not None:
                self.cache.require_room(total or 0)
        return total

    def _continued(self, match: re.Match[str] | None, length: int | None) -> int | None:
        """The whole file's size, as the rest of it says: its Content-Range, and its length."""
        if not self.arrived or match is None or int(match[1]) != len(self.arrived):
            raise self._truncated(forget=True)
        total = _number(match[3])
        return total if total is not None or length is None else len(self.arrived) + length

    def _refused(self, answer: aiohttp.ClientResponse) -> Exception:
        status = answer.status
        name = next((s.phrase for s in HTTPStatus if s.value == status), "")
        remedy = {
            401: "Check the user and password, or the token, in the url.",
            403: "Check the user and password, or the token, in the url, and whether it expired.",
            404: "Check the path in the url, and that the file has been published.",
            407: "Check the user and password of the proxy.",
        }.get(status)
        error = OtaError(
            "http-status",
            f"The server of {self.shown} answered {status} {name}".rstrip() + ".",
            remedy=remedy or ("Look at the firmware's server." if status >= 500 else None),
        )
        if is_retried(status):
            return Transient(error, after_s=_retry_after_s(answer.headers.get("Retry-After", "")))
        if status in (403, 404):
            # It may be published later; S3 says 403 of what is not there.
            return NotThere(error.code, error.message, remedy=error.remedy)
        return error

    def _too_large(self, total_bytes: int | None) -> OtaError:
        size = f"{total_bytes:,} bytes" if total_bytes else f"more than {self.max_bytes:,} bytes"
        return OtaError(
            "download-too-large",
            f"The file at {self.shown} has {size}; max_image_bytes is {self.max_bytes:,}.",
        )

    def _truncated(self, *, forget: bool = False) -> Transient:
        """It ended too early. forget: what has arrived is of no use."""
        if forget:
            self.arrived.clear()
        size_bytes = len(self.arrived)
        words = f"The download from {self.shown} ended after {size_bytes:,} bytes, too early."
        return Transient(OtaError("download-truncated", words))


class _Resolver(aiohttp.ThreadedResolver):
    """Looks names up, and leaves out what a redirect may not lead to.

    any_place: the configured url is at this machine itself, or on its link; so may redirects be.
    """

    any_place = True

    def may_be(self, host: str | None) -> bool:
        """Whether a redirect may lead to this host, as far as its name says."""
        return self.any_place or not _is_near(host or "")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        """The addresses of a name, without those that it may not have."""
        found = await super().resolve(host, port, family)
        allowed = [one for one in found if self.may_be(one["host"])]
        if found and not allowed:
            raise OtaError("redirect-refused", f"{host} is this machine itself.")
        return allowed


def _is_near(address: str) -> bool:
    """Whether an address is this machine itself, or on its link (169.254.169.254 among them)."""
    name = address.partition("%")[0].rstrip(".")
    found: ipaddress.IPv4Address | ipaddress.IPv6Address
    try:
        found = ipaddress.ip_address(name)
    except ValueError:
        try:  # 2130706433, 127.1 and 0x7f.1 are what connects to 127.0.0.1, too
            found = ipaddress.IPv4Address(socket.inet_aton(name))
        except (OSError, ValueError):
            return name.lower() == "localhost"
    found = getattr(found, "ipv4_mapped", None) or found
    return found.is_loopback or found.is_link_local or found.is_unspecified


async def _is_local(host: str | None, *, timeout_s: float) -> bool:
    """Whether the configured host is this machine itself, or on its link."""
    try:
        async with asyncio.timeout(timeout_s):
            found = await asyncio.get_running_loop().getaddrinfo(host, None)
    except OSError:
        return False
    return any(_is_near(str(where[0])) for *_, where in found)


def _proxy(url: URL) -> str | None:
    """The proxy for a url by the environment: HTTP_PROXY, HTTPS_PROXY, NO_PROXY."""
    if url.host is None or urllib.request.proxy_bypass(url.host):
        return None
    return urllib.request.getproxies().get(url.scheme)


def _same_place(url: URL, target: URL) -> bool:
    """Whether a redirect stays at its server; from http to https on the usual ports it does."""
    upgraded = url.host == target.host and url.port == 80 and target.port == 443
    return url.origin() == target.origin() or upgraded


def _address(url: str) -> tuple[URL, dict[str, str]]:
    """A url without its user info, and the header that this stands for. Raises ValueError."""
    whole = _as_written(url)
    if whole.raw_user is None and whole.raw_password is None:
        return whole, {}
    words = f"{whole.user or ''}:{whole.password or ''}".encode()
    return whole.with_user(None), {"Authorization": f"Basic {base64.b64encode(words).decode()}"}


def _as_written(url: str) -> URL:
    """A url as it stands: a signature over it would not survive another spelling."""
    return URL(url, encoded=url.isascii())


def _escaped(location: str) -> str:
    """A Location as browsers take it: blanks and what is not ASCII percent-encoded."""
    raw = location.strip().encode("utf-8", "surrogateescape")
    return "".join(chr(byte) if 0x20 < byte < 0x7F else f"%{byte:02X}" for byte in raw)


def _number(digits: str) -> int | None:
    """A number, or "*" for one that is not known."""
    return None if digits == "*" else int(digits)


def make_ssl_context(ca_file: str | None) -> ssl.SSLContext:
    """The certificates to trust: the system's, and those of `ca_file`. Raises OtaError tls."""
    context = ssl.create_default_context()
    if ca_file:
        try:
            text = read_file(ca_file, TEXT_BYTES).decode("ascii", "replace")
            # What is beside the certificates may be in any script.
            context.load_verify_locations(cadata=text.replace("\ufffd", "?"))
        except (OtaError, ssl.SSLError, ValueError) as error:
            reason = f"{ca_file} holds no certificate."
            raise OtaError(
                "tls",
                f"ca_file cannot be used: {getattr(error, 'message', reason)}",
                remedy="Set ca_file to a readable file of certificates in PEM form.",
            ) from None
    return context


def _retry_after_s(value: str) -> float:
    """Seconds from a Retry-After (RFC 9110, section 10.2.3): a number, or a date."""
    if value.isdecimal():
        return float(value[:9])
    try:
        until = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    until = until if until.tzinfo is not None else until.replace(tzinfo=UTC)
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


async def run_attempts(
    download: Download,
    context: ssl.SSLContext,
    patience: Patience | None = None,
    fails: Callable[[OtaError], None] = lambda _: None,
) -> None:
    """Attempt the download until it is whole; raises OtaError. fails: told of each attempt that is
    not the last.

    It ends when as many attempts in a row as there are delays brought nothing: a link that is
    cut again and again still gets the file, as long as each attempt gets further.
    """
    patience = patience or Patience()
    vain = 0
    furthest_bytes = len(download.arrived)
    while True:
        try:
            await download.attempt(context, patience)
            return
        except Transient as failure:
            error, remedy = failure.error, failure.error.remedy
            further = len(download.arrived) >= furthest_bytes + PROGRESS_BYTES
            if further and error.code != "download-stalled":
                vain, furthest_bytes = 0, len(download.arrived)
            in_vain = vain >= len(patience.delays_s)
            if in_vain or failure.after_s > patience.retry_after_s:
                download.gave_up = True
                if not in_vain:  # more patience than a run has: the next run asks again
                    after = f"{failure.after_s:.0f} s"
                    remedy = f"The server asks to be left alone for {after}; try again then."
                raise GaveUp(error.code, error.message, remedy=remedy) from None
            fails(error)
            delay_s = max(patience.delays_s[vain], failure.after_s)
        vain += 1
        await asyncio.sleep(delay_s)
