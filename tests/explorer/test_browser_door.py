"""In a real browser: who has no token, and pages of strangers that try to use the explorer of who has it."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

STUDY = "softmax-regression"


@contextmanager
def foreign_page(host: str, body: str) -> Iterator[str]:
    """A page of somebody else's on this machine; its address."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://{host}:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


def test_without_the_token_there_is_a_page_that_says_where_it_is(chromium, server):
    page = chromium.new_page()
    for screen in ("", "intervene", "studies?folder=/"):
        page.goto(f"{server.url}/{screen}")
        assert "printed in the terminal" in page.inner_text("body")
        assert not page.locator("[data-testid=stApp]").count()
    page.close()


def test_the_token_leaves_the_address_and_a_link_without_it_opens(chromium, server):
    page = chromium.new_page()
    page.goto(f"{server.url}/studies?token={server.address.partition('token=')[2]}")
    page.wait_for_selector("text=Results folder")
    assert "token" not in page.url
    page.goto(f"{server.url}/studies?folder=/no/such/folder")
    page.get_by_role("button", name="Start", exact=True).click()
    page.wait_for_selector("text=there is no folder /no/such/folder")
    page.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])  # the same site on another port, and another site
def test_a_foreign_page_cannot_frame_read_or_start_anything(tab, server, host):
    asks = f"{server.url}/in_context?study={STUDY}&run_study=true&heads=true"
    body = f"""<iframe id=f src="{asks}"></iframe><script>
        const told = {{}}, note = (what, found) => {{ told[what] = found; window.told = told }}
        fetch("{server.url}/_stcore/health", {{credentials: "include"}})
            .then(a => a.text()).then(a => note("read", a), () => note("read", "refused"))
        fetch("{server.url}/", {{credentials: "include", mode: "no-cors"}})
            .then(a => note("blind", "opaque"), () => note("blind", "refused"))
        const socket = new WebSocket("{server.url.replace("http", "ws")}/_stcore/stream")
        socket.onopen = () => note("talk", "open"); socket.onerror = () => note("talk", "refused")
    </script>"""
    with foreign_page(host, body) as address:
        tab.page.goto(address)
        tab.page.wait_for_function("window.told && Object.keys(told).length == 3")
        assert tab.page.evaluate("told") == {"read": "refused", "blind": "refused", "talk": "refused"}
        frame = tab.page.frames[1]
        assert not frame.url.startswith(server.url), "the browser shows nothing of it"
    assert not list(server.temporary.glob(f"private-*/studies/{STUDY}"))


def test_a_window_that_a_foreign_page_opens_starts_nothing(tab, server):
    asks = f"{server.url}/in_context?study={STUDY}&run_study=true&model=/no/such/model"
    with foreign_page("localhost", f"<a href='{asks}' target=w>go</a>") as address:
        tab.page.goto(address)
        with tab.page.context.expect_page() as opened:
            tab.page.click("a")
        opened.value.wait_for_selector("text=This address asks for loading /no/such/model")
        opened.value.evaluate("location.hash = 'x'")
        opened.value.wait_for_timeout(1500)
        assert opened.value.get_by_role("button", name="Start", exact=True).count() == 1
    assert not list(server.temporary.glob(f"private-*/studies/{STUDY}"))
