# SPDX-License-Identifier: GPL-3.0-or-later
"""One file over http or https into a `Part`: redirects, limits, resumption, errors in our words.

Nothing that the client library says of a url is repeated: its exceptions carry user info and
tokens. Sources: RFC 9110 (validators, ranges, redirects), aiohttp's client reference.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import aiohttp
from yarl import URL

from ota_service.errors import OtaError
from ota_service.firmware.cache import Cache, Known, Part
from ota_service.firmware.urls import redact_url

Progress = Callable[[int, int | None], None]

MAX_REDIRECTS = 10
CHUNK_BYTES = 64 << 10
# An attempt that brought at least this much was not in vain: the delays begin anew after it.
PROGRESS_BYTES = 1024
# A server that is slower for long is no better than one that is silent: a file of 1 MB would take
# more than half an hour.
MIN_BYTES_PER_S = 512
# RFC 6585, section 4; RFC 9110, section 15.5.9.
_RETRIED_STATUS = (408, 425, 429)


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


class GaveUp(OtaError):
    """A download that ended by a failure that may pass: the same one may succeed later."""


class Transient(Exception):
    """A failure that a further attempt may mend. error: what to tell where none does."""

    def __init__(self, error: OtaError, *, after_s: float = 0.0) -> None:
        super().__init__(error.message)
        self.error = error
        # The least time to wait, where the server asked for one.
        self.after_s = after_s


@dataclass(slots=True)
class Download:
    """A download across its attempts.

    part: what has arrived; None before the first answer, and where the cached file is still
    current (`unchanged`). etag, last_modified: the validators of what has arrived.
    open_ended: the server never said where the file ends, so nothing but the file itself can
    tell whether it is whole. gave_up: it ended by a failure that may pass.
    """

    url: str = field(repr=False)
    cache: Cache = field(repr=False)
    max_bytes: int
    progress: Progress = field(repr=False)
    known: Known | None = None
    part: Part | None = field(default=None, repr=False)
    unchanged: bool = False
    etag: str | None = None
    last_modified: str | None = None
    open_ended: bool = False
    gave_up: bool = False

    @property
    def shown(self) -> str:
        """The url without its secrets."""
        return redact_url(self.url)

    @property
    def size_bytes(self) -> int:
        """How much of the file is there."""
        return self.part.size_bytes if self.part is not None else 0

    def discard(self) -> None:
        """Remove what has arrived."""
        if self.part is not None:
            self.part.discard()

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
        try:
            async with aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=timeout,
                trust_env=True,
                auto_decompress=False,
            ) as session:
                await self._follow(session, patience.rate_window_s)
        except (aiohttp.ClientError, ssl.SSLError, ConnectionError, TimeoutError) as error:
            raise self._explained(error, patience) from None

    def _explained(self, error: Exception, patience: Patience) -> Exception:
        """A failure of the client library's, in words that repeat none of its own."""
        match error:
            case aiohttp.ClientConnectorCertificateError() | ssl.SSLCertVerificationError():
                return OtaError("tls", self._certificate_words(error))
            case aiohttp.ClientSSLError() | ssl.SSLError():
                return OtaError(
                    "tls",
                    f"The server of {self.shown} does not speak TLS as it should.",
                    remedy="Check the port and whether the url should begin with http://.",
                )
            case aiohttp.ClientPayloadError():
                return self._truncated()
            case aiohttp.InvalidURL() | aiohttp.NonHttpUrlClientError():
                return OtaError("download-failed", f"{self.shown} is not a usable address.")
            case aiohttp.ClientHttpProxyError():
                return self._proxy_refused(error.status)
        words, remedy = self._no_connection(error, patience), None
        if isinstance(error, aiohttp.ClientProxyConnectionError):
            remedy = (
                "Check the proxy in this process's environment (HTTP_PROXY, HTTPS_PROXY, NO_PROXY)."
            )
        return Transient(OtaError("download-failed", words, remedy=remedy))

    def _no_connection(self, error: Exception, patience: Patience) -> str:
        cause = getattr(error, "os_error", None)
        reason = cause and (cause.strerror or type(cause).__name__)
        match error:
            case aiohttp.SocketTimeoutError():
                return f"The server of {self.shown} sent nothing for {patience.stall_s:g} s."
            case TimeoutError():
                return f"The server of {self.shown} does not answer."
            case aiohttp.ClientProxyConnectionError():
                return f"No connection to the proxy for {self.shown}: {reason}."
            case aiohttp.ClientConnectorDNSError():
                return f"The host of {self.shown} has no address."
            case aiohttp.ClientConnectorError():
                return f"No connection to {self.shown}: {reason}."
        return f"The connection to {self.shown} broke off ({type(error).__name__})."

    async def _follow(self, session: aiohttp.ClientSession, window_s: float) -> None:
        url = _as_written(self.url)
        for _ in range(MAX_REDIRECTS + 1):
            async with session.get(url, headers=self._headers(), allow_redirects=False) as answer:
                if answer.status not in (301, 302, 303, 307, 308):
                    await self._take(answer, window_s)
                    return
                url = self._redirected(url, answer.headers.get("Location"))
        raise OtaError("http-status", f"{self.shown} redirects more than {MAX_REDIRECTS} times.")

    def _headers(self) -> dict[str, str]:
        headers = {"Accept-Encoding": "identity", "User-Agent": "esp32-ota"}
        # A weak validator must not join two parts (RFC 9110, section 13.1.5).
        weak = self.etag is None or self.etag.startswith("W/")
        validator = self.last_modified if weak else self.etag
        if self.part is not None and self.part.size_bytes and validator:
            headers["Range"] = f"bytes={self.part.size_bytes}-"
            headers["If-Range"] = validator
        elif self.known is not None:
            if self.known.etag:
                headers["If-None-Match"] = self.known.etag
            elif self.known.last_modified:
                headers["If-Modified-Since"] = self.known.last_modified
        return headers

    def _redirected(self, url: URL, location: str | None) -> URL:
        """Where a redirect leads, without the user info of another host."""
        try:
            target = url.join(_as_written(location or ""))
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
        # From http to https on the usual ports it is still the same server.
        upgraded = url.host == target.host and url.port == 80 and target.port == 443
        if url.origin() == target.origin() or upgraded:
            return target.with_user(url.user).with_password(url.password)
        return target.with_user(None)

    async def _take(self, answer: aiohttp.ClientResponse, window_s: float) -> None:
        if answer.status == HTTPStatus.NOT_MODIFIED and self.known is not None:
            self.unchanged = True
            return
        if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and self.part is not None:
            raise self._truncated(forget=True)
        if answer.status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            raise self._refused(answer)
        encoding = answer.headers.get("Content-Encoding", "identity").lower()
        if encoding != "identity":
            raise OtaError(
                "download-failed",
                f"The server of {self.shown} sends the file compressed ({encoding:.20}), which "
                "was not asked for.",
                remedy="Switch content encoding off for this file at its server.",
            )
        await self._receive(answer.content, self._begin(answer), window_s)

    async def _receive(
        self, content: aiohttp.StreamReader, total_bytes: int | None, window_s: float
    ) -> None:
        part = self.part
        assert part is not None
        self.progress(part.size_bytes, total_bytes)
        began_s, began_bytes = time.monotonic(), part.size_bytes
        async for chunk in content.iter_chunked(CHUNK_BYTES):
            if part.size_bytes + len(chunk) > self.max_bytes:
                raise self._too_large(None)
            part.append(chunk)
            self.progress(part.size_bytes, total_bytes)
            spent_s = time.monotonic() - began_s
            if spent_s >= window_s:
                brought = part.size_bytes - began_bytes
                if brought < MIN_BYTES_PER_S * spent_s:
                    words = f"The server of {self.shown} sent {brought:,} bytes in {spent_s:.0f} s."
                    raise Transient(OtaError("download-stalled", words))
                began_s, began_bytes = time.monotonic(), part.size_bytes
        if total_bytes is not None and part.size_bytes != total_bytes:
            raise self._truncated()

    def _begin(self, answer: aiohttp.ClientResponse) -> int | None:
        """Make ready for the body; returns the whole file's size where the server says it."""
        length = answer.content_length
        if answer.status == HTTPStatus.PARTIAL_CONTENT:
            match = re.fullmatch(
                r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "")
            )
            if self.part is None or match is None or int(match[1]) != self.part.size_bytes:
                raise self._truncated(forget=True)
            total = int(match[2]) if match[2] != "*" else None
            if total is None and length is not None:
                total = self.part.size_bytes + length
        else:
            total = length
            chunked = answer.headers.get("Transfer-Encoding", "").lower() == "chunked"
            self.open_ended = total is None and not chunked
            self.etag = answer.headers.get("ETag")
            self.last_modified = answer.headers.get("Last-Modified")
        if total is not None and total > self.max_bytes:
            raise self._too_large(total)
        if answer.status != HTTPStatus.PARTIAL_CONTENT:
            if self.part is None:
                self.part = self.cache.part(total)
            else:
                self.part.restart()
        return total

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
        if status >= 500 or status in _RETRIED_STATUS:
            return Transient(error, after_s=_retry_after_s(answer.headers.get("Retry-After", "")))
        return error

    def _proxy_refused(self, status: int) -> Exception:
        error = OtaError(
            "http-status",
            f"The proxy for {self.shown} answered {status}.",
            remedy="Check the proxy in this process's environment, its user and password.",
        )
        return Transient(error) if status >= 500 or status in _RETRIED_STATUS else error

    def _too_large(self, total_bytes: int | None) -> OtaError:
        size = f"{total_bytes:,} bytes" if total_bytes else f"more than {self.max_bytes:,} bytes"
        return OtaError(
            "download-too-large",
            f"The file at {self.shown} has {size}; max_image_bytes is {self.max_bytes:,}.",
        )

    def _truncated(self, *, forget: bool = False) -> Transient:
        """It ended too early. forget: what has arrived is of no use."""
        if forget and self.part is not None:
            self.part.restart()
        words = f"The download from {self.shown} ended after {self.size_bytes:,} bytes, too early."
        return Transient(OtaError("download-truncated", words))

    def _certificate_words(self, error: Exception) -> str:
        found = getattr(error, "certificate_error", error)
        reason = getattr(found, "verify_message", "")
        return (
            f"The certificate of the server of {self.shown} could not be verified"
            f"{': ' + reason if reason else ''}."
        )


def _as_written(url: str) -> URL:
    """A url as it stands: a signature over it would not survive another spelling."""
    return URL(url, encoded=url.isascii())


def make_ssl_context(ca_file: str | None) -> ssl.SSLContext:
    """The certificates to trust: the system's, and those of `ca_file`. Raises OtaError tls."""
    context = ssl.create_default_context()
    if ca_file:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror or "it holds no certificate"
            raise OtaError(
                "tls",
                f"ca_file {ca_file} cannot be used: {reason}.",
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


async def run_attempts(download: Download, context: ssl.SSLContext, patience: Patience) -> None:
    """Attempt the download until it is whole; raises OtaError.

    It ends when as many attempts in a row as there are delays brought nothing: a link that is
    cut again and again still gets the file, as long as each attempt gets further.
    """
    vain = 0
    furthest_bytes = download.size_bytes
    while True:
        try:
            await download.attempt(context, patience)
            return
        except Transient as failure:
            further = download.size_bytes >= furthest_bytes + PROGRESS_BYTES
            if further and failure.error.code != "download-stalled":
                vain, furthest_bytes = 0, download.size_bytes
            if vain >= len(patience.delays_s):
                download.gave_up = True
                error = failure.error
                raise GaveUp(error.code, error.message, remedy=error.remedy) from None
            if failure.after_s > patience.retry_after_s:
                download.gave_up = True
                raise _not_now(failure) from None
            delay_s = max(patience.delays_s[vain], failure.after_s)
        vain += 1
        await asyncio.sleep(delay_s)


def _not_now(failure: Transient) -> GaveUp:
    """The server asks for more patience than a run has: the next run asks again."""
    return GaveUp(
        failure.error.code,
        failure.error.message,
        remedy=f"The server asks to be left alone for {failure.after_s:.0f} s; try again then.",
    )
