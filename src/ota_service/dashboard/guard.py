# SPDX-License-Identifier: GPL-3.0-or-later
"""Who may talk to the page's server: holders of a token, from the page itself.

Every account of this computer reaches its loopback, so there a token is needed, too. A browser
sends requests for any page that it shows, so a server on loopback must tell its own page from
others: by `Sec-Fetch-Site` and `Origin` (cross-site requests), and by `Host` (DNS rebinding: a
foreign name that resolves to this computer). Literal addresses cannot be rebound.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
import secrets
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler

from ota_service.client.addresses import is_loopback

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), serial=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cache-Control": "no-store",
}
"""Of every reply."""

_LOGGER = logging.getLogger("ota_service.dashboard")

COOKIE = "ota_dashboard"
UPLOAD = "/api/firmware"
BODIES = {UPLOAD: "application/octet-stream"}
"""What a path takes that takes no JSON: neither can come from another site's form."""
_OPEN_PATHS = ("/", "/api/login")
_STATIC = "/static/"
_SAME_SITE = ("same-origin", "none")
"""`Sec-Fetch-Site` of the page itself, and of an address that a person typed."""


class Guard:
    """The rules of one server.

    host: where it listens. token: what a browser must know; None: nothing, so that whoever reaches
    the server commands the boards. extra_hosts: further names that browsers may use for it.
    """

    def __init__(
        self, host: str, *, token: str | None = None, extra_hosts: Collection[str] = ()
    ) -> None:
        self.token = token
        self.loopback = is_loopback(host)
        self._session = secrets.token_urlsafe(24)
        own = {host.lower(), *(name.lower() for name in extra_hosts)}
        if not self.loopback:
            name = socket.gethostname().lower()
            own |= {name, f"{name}.local"}
        self._hosts = own

    def refusal(self, request: web.BaseRequest) -> str | None:
        """Why a request is refused whoever sent it, None: it is not."""
        headers = request.headers
        host = headers.get("Host", "")
        if not self._is_ours(host):  # of two, aiohttp itself makes a bad request
            return f"The host name {_name(host)!r} is not this server's; see --allow-host."
        if headers.get("Sec-Fetch-Site", "none") not in _SAME_SITE and not _opens_page(request):
            return "Another site asked. Type the address into the browser instead."
        origin = headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return "Another site asked."
        kind = BODIES.get(request.path, "application/json")
        if request.method == "POST" and request.content_type != kind:
            return f"Only {kind} is accepted."
        if request.method not in ("GET", "HEAD", "POST"):
            return "Only GET and POST are accepted."
        return None

    def knows(self, request: web.BaseRequest) -> bool:
        """Whether the sender has shown the token, where there is one."""
        if self.token is None:
            return True
        given = request.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.is_token(given) or _same(
            request.cookies.get(_cookie(request), ""), self._session
        )

    def is_token(self, given: str) -> bool:
        """Whether this is the token."""
        return self.token is not None and _same(given, self.token)

    def let_in(self, request: web.BaseRequest, response: web.Response) -> None:
        """Let the browser that gets this response in from now on."""
        # For this server's life; not for scripts, nor for requests that another site causes.
        name = _cookie(request)
        response.set_cookie(name, self._session, httponly=True, samesite="Strict", path="/")

    def _is_ours(self, host: str) -> bool:
        name = _name(host)
        if name in self._hosts or is_loopback(name):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return not self.loopback

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Applies the rules, and the headers to whatever is replied."""
        why = self.refusal(request)
        response: web.StreamResponse
        if why is not None:
            response = web.json_response({"error": {"message": why}}, status=403)
        elif not self._is_open(request.path) and not self.knows(request):
            words = "A token is needed: open the whole address that the command printed."
            response = web.json_response({"error": {"message": words}}, status=401)
        else:
            try:
                response = await handler(request)
            except web.HTTPException as error:
                error.headers.update(HEADERS)
                raise
            except Exception:
                _LOGGER.exception("%s %s failed", request.method, request.path)
                words = "The page's server failed; the command says more."
                response = web.json_response({"error": {"message": words}}, status=500)
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    @staticmethod
    def _is_open(path: str) -> bool:
        """The page and its parts say nothing of the machine."""
        return path in _OPEN_PATHS or path.startswith(_STATIC)


def _opens_page(request: web.BaseRequest) -> bool:
    """A link to the page, such as in a terminal that is itself a page: nothing but the page comes
    of it, in a window of its own, where what it may do is asked of it anew."""
    opens = request.headers.get("Sec-Fetch-Mode") == "navigate"
    return opens and request.method == "GET" and request.path == "/"


def _cookie(request: web.BaseRequest) -> str:
    """Cookies know no ports: the pages of two machines must not take each other's."""
    port = request.host.rpartition(":")[2]
    return f"{COOKIE}_{port}" if port.isdecimal() else COOKIE


def _name(host: str) -> str:
    """The name in a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), wanted.encode())
