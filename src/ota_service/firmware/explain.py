# SPDX-License-Identifier: GPL-3.0-or-later
"""What went wrong with a download, in our words and under our codes.

Nothing that a library says of a url or a server's answer is repeated: such texts carry user
info, tokens and control characters. Source: aiohttp's client reference, "Client exceptions".
"""

from __future__ import annotations

import errno
import os
import ssl
from datetime import UTC, datetime

import aiohttp

from ota_service.errors import OtaError
from ota_service.firmware.failures import GaveUp, Transient, is_retried

# OpenSSL's x509_vfy.h: X509_V_ERR_CERT_NOT_YET_VALID.
_NOT_YET_VALID = 9
# What HTTP's parser says holds one of these -> what is so, and what may be done about it.
_NO_HTTP: tuple[tuple[str, str, str], ...] = (
    ("Duplicate Content-Length", "says the file's length twice", "Look at that server."),
    ("Transfer-Encoding", "says in two ways where the file ends", "Look at that server."),
    ("Content-Length", "says a length that no file has", "Look at that server."),
    ("Got more than", "answers with a header of more than 8 KB", "Look at that server."),
    ("Too many headers", "answers with too many headers", "Look at that server."),
    ("chunk", "marks the parts of the file wrongly", "Look at that server."),
    (r"b'\x15\x03", "speaks TLS there, not plain http", "Begin the url with https://."),
    (r"b'\x00\x00", "speaks HTTP/2 only", "Let that server speak HTTP/1.1 as well."),
    ("b'SSH-", "speaks SSH there, not http", "Check the port in the url."),
    ("", "does not speak HTTP/1 there", "Check the port in the url."),
)

# What may pass by itself; the first that fits, and its remedy where the table's is not the one.
_NO_WAY: tuple[tuple[type[Exception], str, str | None], ...] = (
    (
        aiohttp.ClientProxyConnectionError,
        "No connection to the proxy for {shown}: {reason}.",
        "Check the proxy in this process's environment (HTTP_PROXY, HTTPS_PROXY, NO_PROXY).",
    ),
    (aiohttp.ClientConnectorDNSError, "The host of {shown} has no address.", None),
    (aiohttp.ClientConnectorError, "No connection to {shown}: {reason}.", None),
    (aiohttp.SocketTimeoutError, "The server of {shown} sent nothing for {stall_s:g} s.", None),
    (TimeoutError, "The server of {shown} does not answer.", None),
    (
        aiohttp.ServerDisconnectedError,
        "The server of {shown} closed the connection without an answer.",
        None,
    ),
    (Exception, "The connection to {shown} broke off ({reason}).", None),
)


def explained(error: Exception, shown: str, *, stall_s: float) -> Exception:
    """An exception of the client library as an `OtaError`, or as `Transient`.

    shown: the url without its secrets; stall_s: for how long a silent server was waited for.
    """
    found = getattr(error, "certificate_error", error)
    if isinstance(found, ssl.SSLCertVerificationError):
        return _certificate(found, shown)
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return OtaError(
            "tls",
            f"The server of {shown} does not speak TLS as it should.",
            remedy="Check the port and whether the url should begin with http://.",
        )
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return _proxy_refused(error.status, shown)
    if isinstance(error, aiohttp.ClientResponseError):
        # What cannot be read as an answer, by HTTP's parser. One of them may be noise.
        _, what, hint = next(row for row in _NO_HTTP if row[0] in error.message)
        text = f"The server of {shown} {what}."
        return Transient(OtaError("download-failed", text, remedy=hint))
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError | ValueError):
        return OtaError("download-failed", f"{shown} is not a usable address.")
    words, remedy = next(
        (words, remedy) for kind, words, remedy in _NO_WAY if isinstance(error, kind)
    )
    cause = getattr(error, "os_error", error)
    number = getattr(cause, "errno", None) or 0
    reason = getattr(cause, "strerror", None) or type(cause).__name__
    if number in errno.errorcode:  # asyncio puts the address, once more, into words of its own
        reason = os.strerror(number).lower()
    message = words.format(shown=shown, reason=reason, stall_s=stall_s)
    return Transient(OtaError("download-failed", message, remedy=remedy))


def _certificate(error: ssl.SSLCertVerificationError, shown: str) -> OtaError:
    if error.verify_code == _NOT_YET_VALID:
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        return GaveUp(
            "clock-behind",
            f"The certificate of the server of {shown} is not valid yet; this machine's clock "
            f"says {now}.",
        )
    reason = f": {error.verify_message}" if error.verify_message else ""
    return OtaError(
        "tls", f"The certificate of the server of {shown} could not be verified{reason}."
    )


def _proxy_refused(status: int, shown: str) -> Exception:
    error = OtaError(
        "http-status",
        f"The proxy for {shown} answered {status}.",
        remedy="Check the proxy in this process's environment, its user and password.",
    )
    return Transient(error) if is_retried(status) else error
