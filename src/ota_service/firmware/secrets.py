# SPDX-License-Identifier: GPL-3.0-or-later
"""Passwords and tokens that this process was given, kept out of every text that leaves it.

Urls are shown without them (`urls.redact_url`). This is the net behind that: a library, a server
or a proxy may repeat one in a text of its own, in another form.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import parse_qsl, quote, unquote, urlsplit

HIDDEN = "***"
# Shorter ones would hide ordinary words: a password "idle" the state of that name. A query also
# holds versions and names.
MIN_CHARS, MIN_QUERY_CHARS = 8, 12
MAX_FORMS = 2000

_forms: dict[str, None] = {}
_told: dict[str, None] = {}
_pattern: re.Pattern[str] | None = None


def tell(*values: str | None) -> None:
    """These are shown, and are no tokens where a url's query has them as well: a version tag."""
    for value in values:
        if value is not None:
            _told[value] = None
    while len(_told) > MAX_FORMS:
        del _told[next(iter(_told))]


def learn(url: str, headers: Mapping[str, str] | None = None) -> None:
    """Hide from now on what opens the door at `url`: password, tokens, values of headers."""
    global _pattern
    new = [form for secret in _secrets(url, headers or {}) for form in _written(secret)]
    if all(form in _forms for form in new):
        return
    for form in new:
        _forms.pop(form, None)  # known ones become the newest
        _forms[form] = None
    while len(_forms) > MAX_FORMS:
        del _forms[next(iter(_forms))]
    _pattern = re.compile("|".join(map(re.escape, sorted(_forms, key=len, reverse=True))))


def hide(text: str) -> str:
    """`text` with every secret that is known replaced."""
    return _pattern.sub(HIDDEN, text) if _pattern is not None else text


def _secrets(url: str, headers: Mapping[str, str]) -> Iterator[str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        return
    user, colon, password = parts.netloc.rpartition("@")[0].partition(":")
    if colon:
        yield from _long((password, f"{user}:{password}"), MIN_CHARS)
    query = (value for _, value in parse_qsl(parts.query) if value not in _told)
    yield from _long(query, MIN_QUERY_CHARS)
    for value in headers.values():
        # "Bearer <token>", "Basic <base64>"
        yield from _long((value, value.rpartition(" ")[2]), MIN_CHARS)


def _long(values: Iterable[str], least: int) -> Iterator[str]:
    return (value for value in values if len(value) >= least)


def _written(secret: str) -> Iterator[str]:
    """The forms in which it may come back."""
    for plain in {secret, unquote(secret)}:
        raw = plain.encode("utf-8", "surrogatepass")
        yield from (plain, quote(raw, safe=""), quote(raw), ascii(plain)[1:-1])
        yield json.dumps(plain, ensure_ascii=False)[1:-1]
        for code in (base64.b64encode(raw), base64.urlsafe_b64encode(raw)):
            yield code.decode().rstrip("=")
