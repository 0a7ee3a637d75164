"""A browser tab on the explorer, and the numbers of the charts in it."""

from __future__ import annotations

import base64
import json
from urllib.parse import urlencode

import numpy as np
import plotly.graph_objects as go

# Streamlit fetches what draws an element when the first one comes, and shows a skeleton meanwhile
DRAWN = """() => {
    const count = what => document.querySelectorAll(what).length
    return !count('[data-testid=stSkeleton]') && count('[data-testid=stPlotlyChart]') == count('.js-plotly-plot')
}"""


class Tab:
    """A browser tab on the explorer. `address` is where it is, with the token."""

    def __init__(self, page, url: str, address: str) -> None:
        self.page, self.url = page, url
        page.context.request.get(address)  # which leaves the token's cookie in this browser
        self.asked: list[str] = []
        """Addresses that the page asked anything of."""
        page.on("request", lambda request: self.asked.append(request.url))

    def open(self, screen: str = "", **address: str | int) -> Tab:
        self.page.goto(f"{self.url}/{screen}?{urlencode(address)}")
        return self.start()

    def start(self) -> Tab:
        """Press the button of an address that asks for work, if there is one, and wait until the work is done."""
        self.settle()
        if self.start_button().count():
            self.start_button().click()
            self.settle()
        return self

    def start_button(self):
        return self.page.get_by_role("button", name="Start", exact=True)

    def settle(self, seconds: float = 300) -> Tab:
        """Wait until the script has run to its end and stays there."""
        self.page.wait_for_timeout(300)
        self.page.wait_for_selector(
            "[data-testid=stApp][data-test-script-state=notRunning]", timeout=1000 * seconds, state="attached"
        )
        self.page.wait_for_function(DRAWN, timeout=120_000)
        self.page.wait_for_timeout(500)
        assert not self.page.locator("[data-testid=stException]").count(), self.text()
        return self

    def text(self) -> str:
        return self.page.locator("[data-testid=stMain]").inner_text()

    def click_on_chart(self, x: float, y: str | float, number: int = 0) -> None:
        """Click into the first panel of a chart that is not the last, at a number across and a row's name or number."""
        self.chart(number + 1)
        at = self.page.evaluate(
            "([x, y, n]) => { const p = document.querySelectorAll('.js-plotly-plot')[n], l = p._fullLayout;"
            "p.scrollIntoView({block: 'start'}); const box = p.getBoundingClientRect();"
            "return [box.left + l.xaxis._offset + l.xaxis.d2p(x), box.top + l.yaxis._offset + l.yaxis.d2p(y)] }",
            [x, y, number],
        )  # fmt: skip
        self.page.mouse.move(*at)
        self.page.wait_for_selector(".hoverlayer .hovertext")  # a click counts on what the pointer was seen over
        self.page.mouse.click(*at)

    def elsewhere(self) -> list[str]:
        """Addresses that were asked for and are not the explorer's own."""
        return [url for url in self.asked if not url.startswith((self.url, "data:", "blob:"))]

    def chart(self, number: int = 0) -> dict:
        """A chart as plotly holds it: data and layout, with packed numbers unpacked."""
        self.page.wait_for_function(f"document.querySelectorAll('.js-plotly-plot').length > {number}", timeout=60_000)
        found = self.page.evaluate(
            "n => { const p = document.querySelectorAll('.js-plotly-plot')[n];"
            "return JSON.stringify({data: p.data, layout: p.layout}) }", number,
        )  # fmt: skip
        return json.loads(found)


def numbers(value) -> np.ndarray:
    """An array as plotly keeps it: a list, or packed bytes with a dtype."""
    if isinstance(value, dict) and "bdata" in value:
        flat = np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]))
        shape = value.get("shape")
        return flat.reshape([int(n) for n in str(shape).split(",")]) if shape else flat
    if isinstance(value, dict):  # a typed array, as JSON writes it
        return np.array(list(value.values()), dtype=float)
    return np.array([numbers(row) if isinstance(row, (dict, list)) else row for row in value], dtype=float)


def assert_draws(chart: dict, figure: go.Figure) -> None:
    """Fails unless a chart on the page has the title, the traces and the numbers of a figure of the library."""
    wanted = json.loads(figure.to_json())
    assert chart["layout"]["title"]["text"] == wanted["layout"]["title"]["text"]
    assert [trace["type"] for trace in chart["data"]] == [trace["type"] for trace in wanted["data"]]
    for shown, own in zip(chart["data"], wanted["data"], strict=True):
        for axis in {"x", "y", "z"} & own.keys():
            if isinstance(own[axis], list) and any(isinstance(value, str) for value in own[axis]):
                assert shown[axis] == own[axis]
            else:
                np.testing.assert_allclose(numbers(shown[axis]), numbers(own[axis]), rtol=1e-4, atol=1e-6)
