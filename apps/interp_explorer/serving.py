"""Serving the explorer behind its door; `interp app` calls it."""

from __future__ import annotations

import signal
import sys
import threading
import webbrowser
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware
from streamlit.starlette import App

from interp_explorer.door import Door

SCRIPT = Path(__file__).with_name("app.py")


def explorer(token: str, **more: Any) -> App:
    """The explorer as an ASGI app that answers only those who know `token`; `more` is for Streamlit's `App`."""
    return App(SCRIPT, middleware=[Middleware(Door, token=token)], **more)


def serve(options: Mapping[str, Any], url: str, token: str, browser: bool) -> None:
    """Serve until interrupted or terminated, and say at which address.

    options: Streamlit's, by their names. url: where a browser on this machine finds it, without the token. browser:
    whether to open one.
    """
    address = f"{url}/?token={token}"

    @asynccontextmanager
    async def announced(_: App) -> AsyncIterator[None]:
        print(f"\n  The explorer is at {address}\n  Who has this address can use it. Ctrl-C ends it.\n", flush=True)
        if browser:  # in a thread, since a browser of the terminal would hold up the server that it asks
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
        yield

    sys.argv = [str(SCRIPT)]  # Streamlit takes what stands there for the script's place
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the server closes first, and then raises the signal again
    explorer(token, lifespan=announced).run(config=dict(options))
