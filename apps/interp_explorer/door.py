"""The door of the explorer: nobody gets anything from its server without the token of this start.

It stands before everything that Streamlit serves: pages, the connection that a page talks through, uploads, media.
"""

from __future__ import annotations

import hashlib
import hmac
from urllib.parse import quote, urlencode, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": "frame-ancestors 'self'",
    "X-Frame-Options": "SAMEORIGIN",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
"""Said with every answer: no foreign page may frame it, embed parts of it, hold its window or learn its address."""

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>interp</title>
<body style="font: 1.1rem/1.6 system-ui, sans-serif; max-width: 40rem; margin: 15vh auto; padding: 0 1rem">
<h1 style="font-size: 1.4rem">{title}</h1><p>{words}</p></body></html>"""
_NO_TOKEN = _PAGE.format(
    title="This explorer asks for a token",
    words="Open the address that <code>interp app</code> printed in the terminal where it was started: it ends in "
    "<code>token=…</code>. This browser then keeps the token until it is closed. Every start has a new one.",
)
_FOREIGN = _PAGE.format(title="Refused", words="This request came from a page of another address.")


class Door:
    """ASGI middleware that lets in who knows `token`, from the address or a cookie that the address has set.

    A visit with the token in its address is sent on to the same address without it, so that it does not stay in
    the address bar, and not in links that are copied from there.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token
        # Cookies do not know ports: two explorers of one machine need two names.
        self.cookie = f"interp-explorer-{hashlib.sha256(token.encode()).hexdigest()[:8]}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on to Streamlit."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        asked = HTTPConnection(scope)
        answer: ASGIApp = self.app
        if not _from_its_own_pages(asked):
            answer = _refusal(scope, _FOREIGN)
        elif scope["type"] == "http" and self._is_token(asked.query_params.get("token")):
            answer = self._welcome(asked)
        elif not self._is_token(asked.cookies.get(self.cookie)):
            answer = _refusal(scope, _NO_TOKEN)
        await answer(scope, receive, _with_headers(send))

    def _is_token(self, given: str | None) -> bool:
        """Compared in constant time, so that nothing can be learned from how long it takes."""
        return hmac.compare_digest((given or "").encode("utf-8", "surrogatepass"), self.token.encode())

    def _welcome(self, asked: HTTPConnection) -> Response:
        rest = urlencode([(name, value) for name, value in asked.query_params.multi_items() if name != "token"])
        inside = str(asked.scope["path"]).lstrip("/")  # two slashes would name another machine
        path = "/" + quote(inside, errors="replace")
        answer = RedirectResponse(f"{path}?{rest}" if rest else path, 303, {"Cache-Control": "no-store"})
        secure = asked.scope.get("scheme") == "https"
        answer.set_cookie(self.cookie, self.token, httponly=True, samesite="lax", secure=secure)
        return answer


def _from_its_own_pages(asked: HTTPConnection) -> bool:
    """Whether no page of another address is behind a request, as far as browsers say.

    A page on another port of this machine has the cookie sent along, as the same site, so this is looked at beside it.
    """
    origin = asked.headers.get("origin")
    if origin is None:
        return True
    try:
        return urlsplit(origin).netloc.lower() == asked.headers.get("host", "").lower()
    except ValueError:  # what is no address is none of ours
        return False


def _refusal(scope: Scope, page: str) -> ASGIApp:
    if scope["type"] == "http":
        return HTMLResponse(page, 403, {"Cache-Control": "no-store"})

    async def close(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "websocket.close", "code": 1008})

    return close


def _with_headers(send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return with_headers
