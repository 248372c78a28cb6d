# SPDX-License-Identifier: GPL-3.0-or-later
"""One file over http or https into a `Part`: redirects, limits, resumption, errors in our words.

Nothing that the client library says of a url is repeated: its exceptions carry user info and
tokens. Sources: RFC 9110 (validators, ranges, redirects), aiohttp's client reference.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus

import aiohttp
from yarl import URL

from ota_service.errors import OtaError
from ota_service.firmware.cache import Cache, Known, Part
from ota_service.firmware.urls import redact_url

Progress = Callable[[int, int | None], None]

CONNECT_TIMEOUT_S = 15.0
# A server that sends no byte for this long counts as gone.
STALL_TIMEOUT_S = 30.0
MAX_REDIRECTS = 10
CHUNK_BYTES = 64 << 10
# RFC 6585, section 4; RFC 9110, section 15.5.9.
_RETRIED_STATUS = (408, 425, 429)


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
    """

    url: str
    cache: Cache
    max_bytes: int
    progress: Progress
    known: Known | None = None
    part: Part | None = None
    unchanged: bool = False
    etag: str | None = None
    last_modified: str | None = None

    @property
    def shown(self) -> str:
        """The url without its secrets."""
        return redact_url(self.url)

    async def attempt(self, context: ssl.SSLContext) -> None:
        """Try once; go on where an earlier attempt ended, if the server can.

        Raises OtaError where another attempt would end alike, Transient where it may not.
        """
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=STALL_TIMEOUT_S
        )
        try:
            async with aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=timeout,
                trust_env=True,
                auto_decompress=False,
            ) as session:
                await self._follow(session)
        except (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError) as error:
            raise OtaError("tls", self._certificate_words(error)) from None
        except (aiohttp.ClientSSLError, ssl.SSLError):
            raise OtaError(
                "tls",
                f"The server of {self.shown} does not speak TLS as it should.",
                remedy="Check the port and whether the url should begin with http://.",
            ) from None
        except aiohttp.ClientPayloadError:
            raise Transient(OtaError("download-truncated", self._truncated_words())) from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            raise OtaError("download-failed", f"{self.shown} is not a usable address.") from None
        except TimeoutError:
            raise Transient(
                OtaError("download-failed", f"The server of {self.shown} does not answer.")
            ) from None
        except aiohttp.ClientConnectorDNSError:
            raise Transient(
                OtaError("download-failed", f"The host of {self.shown} has no address.")
            ) from None
        except aiohttp.ClientConnectorError as error:
            reason = error.os_error.strerror or type(error.os_error).__name__
            raise Transient(
                OtaError("download-failed", f"No connection to {self.shown}: {reason}.")
            ) from None
        except (aiohttp.ClientError, ConnectionError) as error:
            raise Transient(
                OtaError(
                    "download-failed",
                    f"The connection to {self.shown} broke off ({type(error).__name__}).",
                )
            ) from None

    async def _follow(self, session: aiohttp.ClientSession) -> None:
        url = _as_written(self.url)
        for _ in range(MAX_REDIRECTS + 1):
            async with session.get(url, headers=self._headers(), allow_redirects=False) as answer:
                if answer.status not in (301, 302, 303, 307, 308):
                    await self._take(answer)
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

    async def _take(self, answer: aiohttp.ClientResponse) -> None:
        if answer.status == HTTPStatus.NOT_MODIFIED and self.known is not None:
            self.unchanged = True
            return
        if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and self.part is not None:
            self._forget_part()
            raise Transient(OtaError("download-truncated", self._truncated_words()))
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
        total_bytes = self._begin(answer)
        part = self.part
        assert part is not None
        self.progress(part.size_bytes, total_bytes)
        async for chunk in answer.content.iter_chunked(CHUNK_BYTES):
            if part.size_bytes + len(chunk) > self.max_bytes:
                raise self._too_large(None)
            part.append(chunk)
            self.progress(part.size_bytes, total_bytes)
        if total_bytes is not None and part.size_bytes != total_bytes:
            raise Transient(OtaError("download-truncated", self._truncated_words()))

    def _begin(self, answer: aiohttp.ClientResponse) -> int | None:
        """Make ready for the body; returns the whole file's size where the server says it."""
        length = answer.content_length
        if answer.status == HTTPStatus.PARTIAL_CONTENT:
            match = re.fullmatch(
                r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", "")
            )
            if self.part is None or match is None or int(match[1]) != self.part.size_bytes:
                self._forget_part()
                raise Transient(OtaError("download-truncated", self._truncated_words()))
            total = int(match[2]) if match[2] != "*" else None
            if total is None and length is not None:
                total = self.part.size_bytes + length
        else:
            total = length
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

    def _forget_part(self) -> None:
        if self.part is not None:
            self.part.restart()

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
            after = answer.headers.get("Retry-After", "")
            return Transient(error, after_s=float(after) if after.isdecimal() else 0.0)
        return error

    def _too_large(self, total_bytes: int | None) -> OtaError:
        size = f"{total_bytes:,} bytes" if total_bytes else f"more than {self.max_bytes:,} bytes"
        return OtaError(
            "download-too-large",
            f"The file at {self.shown} has {size}; max_image_bytes is {self.max_bytes:,}.",
        )

    def _truncated_words(self) -> str:
        size_bytes = self.part.size_bytes if self.part is not None else 0
        return f"The download from {self.shown} ended after {size_bytes:,} bytes, too early."

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


async def run_attempts(
    download: Download, context: ssl.SSLContext, delays_s: tuple[float, ...]
) -> None:
    """Attempt the download, once more after each of `delays_s` where it may help.

    Raises OtaError.
    """
    for delay_s in (*delays_s, None):
        try:
            await download.attempt(context)
            return
        except Transient as failure:
            if delay_s is None:
                raise failure.error from None
            # A server may ask for more patience than a run has: the next run asks again.
            await asyncio.sleep(min(max(delay_s, failure.after_s), max(delays_s)))
