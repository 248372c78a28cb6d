# SPDX-License-Identifier: GPL-3.0-or-later
"""Urls of firmware, or paths instead: checked before use, and shown without their secrets."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from yarl import URL

from ota_service.firmware.secrets import HIDDEN, hide

EXAMPLE = "http://10.0.0.5:3001/app.bin"

# An address inside a sentence ends at white space or at a character that no url may hold. Its
# scheme is tried from the beginning of a word only, and never given back (`*+`): messages may
# quote megabytes.
_URL = re.compile(
    r"(?<![A-Za-z0-9+.\-])([0-9+.\-]*+)([A-Za-z][A-Za-z0-9+.\-]*+://[^\s\"<>\\^`{|}]+)"
)
# RFC 3986, appendix A: what stands in a url only percent-encoded. Other scripts are let
# through: the client encodes them.
_NOT_IN_URL = re.compile(r"[\x00-\x20\x7f\"<>\\^`{|}]")
# RFC 1035, section 2.3.4; a last dot is the root's.
_HOST = re.compile(r"(?=.{1,254}$)[^.]{1,63}(?:\.[^.]{1,63})*\.?")
_CLOSING = ".,;:!?)]}'\""


def redact(text: str) -> str:
    """`text` with the secrets of each url in it replaced, and those that are known."""
    return hide(_URL.sub(lambda found: found[1] + _redact_found(found[2]), text))


def redact_url(url: str) -> str:
    """`url` with user info, query values and fragment as `***`; host and path stay readable.

    Whatever cannot be taken apart with certainty is hidden whole.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    parts = _split(url)
    if parts is None:
        return f"{scheme}://{HIDDEN}"
    _, at, host = parts.netloc.rpartition("@")
    if not _host_is_certain(parts):
        return f"{scheme}://{HIDDEN}"
    shown = f"{scheme}://{HIDDEN}@{host}" if at else f"{scheme}://{host}"
    shown += parts.path
    if parts.query:
        shown += "?" + "&".join(_redact_pair(pair) for pair in parts.query.split("&"))
    elif "?" in rest.partition("#")[0]:
        shown += "?"
    if parts.fragment:
        shown += f"#{HIDDEN}"
    return shown


def is_path(url: str) -> bool:
    """Whether a configured url is a path of this machine."""
    return url.startswith("/")


def check_url(url: str) -> str | None:
    """What is wrong with `url` as the address of a firmware, in words; None: nothing is.

    The words never repeat the url. Nothing is looked up or opened.
    """
    if not url:
        return f'is empty; fill in the http or https address of the App Image, such as "{EXAMPLE}"'
    if is_path(url):
        return None if url.isprintable() else "holds characters that cannot be printed"
    if url.startswith("${"):
        return (
            "is a placeholder that viam-server has not replaced: is that package in the machine's "
            "configuration?"
        )
    bad = _NOT_IN_URL.search(url)
    if bad:
        code = f"%{ord(bad.group()):02X}"
        return (
            f"holds the character {bad.group()!r}, which a url cannot; "
            f"write it percent-encoded ({code})"
        )
    scheme = url.partition(":")[0].lower()
    if scheme == "file":
        return 'is a path with a scheme; write the path alone, such as "/srv/firmware/app.bin"'
    if scheme not in ("http", "https") or "://" not in url:
        return (
            f'must begin with http:// or https://, such as "{EXAMPLE}", or be a whole path, '
            "from / on"
        )
    return _wrong_host(url)


def _wrong_host(url: str) -> str | None:
    """What is wrong with the part of an address that says where it leads; None: nothing is."""
    parts = _split(url)
    if parts is None:
        return "cannot be read as a url: look at its brackets, and at odd letters in its host"
    if not _host_is_certain(parts):
        return (
            "has no valid port after its host, or a : before an @ in its path; a /, ?, # or @ in "
            "a user name or password is written percent-encoded (%2F, %3F, %23, %40)"
        )
    if not parts.hostname:
        return f'has no host, such as "{EXAMPLE}" has 10.0.0.5'
    try:
        host = URL(url, encoded=url.isascii()).raw_host or ""
    except ValueError:  # its text quotes the url
        return "has a user name, password or host with a character that no address can have"
    if ":" not in host and not _HOST.fullmatch(host):
        return "has a host that no name server knows: its parts have 1 to 63 characters"
    return None


def _redact_found(found: str) -> str:
    """Redact an address found in a sentence, whose closing marks are not part of it."""
    url = found.rstrip(_CLOSING)
    return redact_url(url) + found[len(url) :]


def _redact_pair(pair: str) -> str:
    name, equals, value = pair.partition("=")
    if not equals:
        return HIDDEN if name else ""  # a bare token
    return f"{name}={HIDDEN}" if value else pair


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:
        return None


def _host_is_certain(parts: SplitResult) -> bool:
    """Whether what stands in the host's place is the host and not a part of a password.

    An unencoded / in a password leaves its beginning as the port, one in a user name the pair's
    rest in the path; an unencoded # or ? leaves an @ behind the host's place and no path between.
    """
    if "@" in parts.query + parts.fragment and not parts.path:
        return False
    before, at, _ = parts.path.rpartition("@")
    if at and ":" in before:
        return False
    try:
        _ = parts.port
    except ValueError:
        return False
    return True
