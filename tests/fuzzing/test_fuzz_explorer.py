"""The explorer's door, its addresses and what they say: strangers get nothing, guests a page with sentences."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from interp.cli import explorer
from interp_explorer import address, text
from interp_explorer.door import Door
from tests.explorer.opening import opened, sentences
from tests.explorer.test_door import HOST, TOKEN, inside
from tests.fuzzing.drawing import Draw, changed_text, damaged
from tests.fuzzing.trying import fuzz, inputs

DOOR = Door(inside, TOKEN)
PATHS = ["/", "/rank", "//elsewhere.example/x", "/_stcore/stream", "/media/1.png", "/%2e%2e/x", "/é"]
QUERIES = [f"token={TOKEN}", f"layer=3&token={TOKEN}&with=a", "token=", "token", "a=b&token=x", ""]


def asked(draw: Draw) -> None:
    kind = draw.choice(("http", "http", "http", "websocket"))
    path = draw.choice(PATHS) if draw.often(0.5) else draw.text(draw.choice(PATHS))
    query = draw.choice(QUERIES).encode()
    query = damaged(draw, query) if query and draw.often(0.6) else query
    cookie = f"{DOOR.cookie}={TOKEN}".encode()
    headers = [
        (name, damaged(draw, value) if draw.often(0.5) else value)
        for name, value in (
            (b"host", HOST.encode()), (b"cookie", cookie), (b"origin", f"http://{HOST}".encode()),
            (b"cookie", b"a=b; c"), (b"x-forwarded-host", b"evil.example"), (b"origin", b"null"),
        )
        if draw.often(0.4)
    ]  # fmt: skip
    scope = {
        "type": kind, "method": draw.choice(("GET", "POST", "PUT", "", "\x00")), "path": path, "headers": headers,
        "raw_path": path.encode("utf-8", "replace"), "query_string": query, "scheme": draw.choice(("http", "https",
        "ws")),
        "server": ("127.0.0.1", 8501), "client": ("127.0.0.1", 5), "root_path": "", "http_version": "1.1",
    }  # fmt: skip
    draw.trying(scope)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(DOOR(scope, receive, send))
    knows = TOKEN.encode() in query or any(TOKEN.encode() in value for name, value in headers if name == b"cookie")
    said = b"".join(message.get("body", b"") + message.get("text", "").encode() for message in sent)
    assert knows or b"secret" not in said
    assert TOKEN.encode() not in said
    for message in sent:
        for name, value in message.get("headers", ()):
            assert knows or TOKEN.encode() not in value
            assert name != b"location" or (value.startswith(b"/") and not value.startswith(b"//"))


@inputs(800)
def test_the_door(count: int) -> None:
    fuzz("the door", count, asked)


def spelled(draw: Draw) -> None:
    value = draw.text(draw.choice(("256", "1e3", "-4", "0.25", "[0.3,0.8]")))
    draw.trying(value)
    assert isinstance(address._holdable(value), bool)
    shown = text.plain(value)
    assert not any(mark in shown.replace(f"\\{mark}", "") for mark in "<>`*[]$")


@inputs(400)
def test_what_addresses_say(count: int) -> None:
    fuzz("what addresses say", count, spelled)


def listened(draw: Draw) -> None:
    name = draw.text(draw.choice(("127.0.0.1", "::1", "0.0.0.0", "localhost", "192.0.2.1", "fe80::1%lo")))
    draw.trying(name)
    assert explorer._host(name)


@inputs(150)
def test_what_is_listened_on(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for = socket.getaddrinfo
    only = socket.AI_NUMERICHOST  # names would be looked up in a network
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *_, **__: asked_for(host, None, 0, socket.SOCK_STREAM, 0, only)
    )
    fuzz("what is listened on", count, listened)


SCREENS = {
    None: {"tokens": "8", "text": "typed", "typed": "some words to read", "layer": "3", "probe": "text_sinks"},
    "intervene": {"with": "think", "think ratio": "0.5", "steps": "2", "text": "typed", "typed": "x y",
    "from_text": "false"},
    "rank": {"tokens": "8", "text": "typed", "typed": "x y", "layer": "3", "head": "2"},
    "studies": {"folder": ".", "file": "x.nc", "x": "a", "y": "b"},
    "in_context": {"tokens": "8", "layer": "3", "head": "1"},
}  # fmt: skip


def opened_at(draw: Draw) -> None:
    screen = draw.choice(list(SCREENS))
    said = {name: draw.text(value) if draw.often(0.4) else value for name, value in SCREENS[screen].items()}
    said = {changed_text(draw, name) if draw.often(0.1) else name: value for name, value in said.items()}
    said = {name: value.encode("utf-8", "replace").decode() for name, value in said.items()}
    draw.trying(screen, said)
    sentences(opened(screen, clicked=False, **said))


@inputs(3)
def test_pages(count: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fuzz("pages", count, opened_at, seconds=120)  # the demo model may be unpacked for the first
