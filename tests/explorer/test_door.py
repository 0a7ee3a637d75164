"""The door: without the token nothing is answered, whatever is asked for and however."""

from __future__ import annotations

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from interp_explorer.door import Door

TOKEN = "a-token-of-this-test"
HOST = "127.0.0.1:8501"
PATHS = ["/", "/rank", "/_stcore/health", "/_stcore/host-config", "/media/1.png", "/static/js/index.js", "/no/such"]


async def inside(scope, receive, send):
    """What Streamlit would be: it tells a secret to all, by both ways."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "secret"})
        await send({"type": "websocket.close", "code": 1000})
    else:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"secret"})


@pytest.fixture
def stranger() -> TestClient:
    return TestClient(Door(inside, TOKEN), base_url=f"http://{HOST}", follow_redirects=False)


@pytest.fixture
def guest(stranger) -> TestClient:
    """Who came with the token once."""
    assert stranger.get("/", params={"token": TOKEN}).status_code == 303
    return stranger


def said_over_socket(client: TestClient, **headers: str) -> str:
    with client.websocket_connect(f"ws://{HOST}/_stcore/stream", headers=headers) as socket:
        return socket.receive_text()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS"])
def test_a_stranger_gets_a_page_that_says_where_the_token_is(stranger, method, path):
    answer = stranger.request(method, path)
    assert answer.status_code == 403
    assert "secret" not in answer.text
    assert TOKEN not in str(answer.headers) + answer.text
    if method != "HEAD":
        assert "printed in the terminal" in answer.text


def test_a_stranger_cannot_talk_to_a_page(stranger):
    with pytest.raises(WebSocketDisconnect):
        said_over_socket(stranger)


@pytest.mark.parametrize("given", ["", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.upper(), "é\udcff", "\x00"])
def test_a_wrong_token_opens_nothing(stranger, given):
    assert stranger.get("/", params={"token": given.encode("utf-8", "replace")}).status_code == 403
    assert not Door(inside, TOKEN)._is_token(given)
    assert not stranger.cookies


def test_the_token_opens_and_leaves_the_address(guest):
    assert guest.get("/rank").text == "secret"
    assert said_over_socket(guest) == "secret"
    assert said_over_socket(guest, origin=f"http://{HOST}") == "secret"
    answer = guest.get(f"/rank?layer=3&token={TOKEN}&with=a&with=b%26c")
    assert answer.headers["location"] == "/rank?layer=3&with=a&with=b%26c"
    (kept,) = answer.headers.get_list("set-cookie")
    assert "HttpOnly" in kept
    assert "SameSite=lax" in kept
    assert "max-age" not in kept.lower(), "it is gone with the browser"


def test_a_visit_with_the_token_leads_to_no_other_machine(guest):
    answer = guest.get(f"http://{HOST}//elsewhere.example/x?token={TOKEN}")
    assert answer.headers["location"] == "/elsewhere.example/x"


@pytest.mark.parametrize("origin", ["http://127.0.0.1:8977", "http://evil.example", "null", "http://127.0.0.1"])
def test_a_page_of_another_address_gets_nothing_with_a_guests_cookie(guest, origin):
    for method in ("GET", "PUT", "POST"):
        answer = guest.request(method, "/_stcore/upload_file/a/b", headers={"origin": origin})
        assert answer.status_code == 403
        assert "secret" not in answer.text
    with pytest.raises(WebSocketDisconnect):
        said_over_socket(guest, origin=origin)


def test_no_page_of_another_address_may_frame_it(guest):
    for answer in (guest.get("/"), guest.get(f"/?token={TOKEN}"), guest.get("/", headers={"origin": "null"})):
        assert answer.headers["content-security-policy"] == "frame-ancestors 'self'"
        assert answer.headers["x-frame-options"] == "SAMEORIGIN"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"


def test_two_explorers_of_one_machine_keep_apart():
    assert Door(inside, "one").cookie != Door(inside, "two").cookie


def test_streamlit_itself_stands_behind_the_door():
    """Its pages, its health, its uploads: what is really served, in this process."""
    from interp_explorer import serving

    client = TestClient(serving.explorer(TOKEN), base_url=f"http://{HOST}", follow_redirects=False)
    for path in ("/", "/_stcore/health", "/_stcore/host-config", "/media/1.png", "/_stcore/metrics"):
        assert client.get(path).status_code == 403
    assert client.put("/_stcore/upload_file/a/b", content=b"x").status_code == 403
    with pytest.raises(WebSocketDisconnect):
        said_over_socket(client)
    client.get(f"/?token={TOKEN}")
    assert client.get("/_stcore/health").text == "ok"


@pytest.mark.parametrize("origin", ["http://[", "ht-p://1\xa2[:8", "http://[::1", "//["])
def test_an_origin_that_is_no_address_is_a_strangers(guest, origin):
    assert guest.get("/rank", headers={"origin": origin.encode("latin-1")}).status_code == 403


def test_an_address_in_other_bytes_is_answered(guest):
    answer = guest.get(f"http://{HOST}/%ff/a%3Fb?token={TOKEN}&x=%ff")
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/")
