"""Odd numbers in an address, odd names and odd cells of tables: a sentence, or shown as they are."""

from __future__ import annotations

import os

import pandas as pd
import pytest

from interp_explorer import tables
from tests.explorer.opening import opened, sentences

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("value", ["1e400", "-inf", "nan", "9" * 400, "1e300", "-9" + "9" * 30])
def test_a_number_that_no_widget_can_hold_is_a_sentence(value):
    app = opened(clicked=False, tokens=value, text="typed", typed=" ")
    said = sentences(app)
    assert f"The address says tokens={value[:40]}, which is no number that can be used here." in said
    assert "the text is empty" in said, "the page goes on"
    assert app.number_input(key="tokens").value == 256
    assert "The address says" not in sentences(app.run()), "said once"


@pytest.mark.parametrize("value", ["1e400", "nan"])
def test_so_is_a_setting(value):
    bad = {"think ratio": value, "steps": value}
    quick = {"text": "typed", "typed": "x y", "tokens": "2", "from_text": "false"}
    said = sentences(opened("intervene", **{"with": "think"}, **quick, **bad))
    for name in bad:
        assert f"The address says {name}={value}" in said
    assert "The prompt is empty" in said, "the page goes on"


def test_a_text_may_be_such_a_number():
    assert sentences(opened(text="typed", typed="1e400", tokens="4")) == ""


def test_a_name_that_is_no_utf8_is_shown_with_its_bytes(tmp_path):
    with open(os.path.join(os.fsencode(tmp_path), b"bad\xff.csv"), "w") as file:
        file.write("a,b\n1,2\n")
    app = opened("studies", folder=str(tmp_path))
    assert sentences(app) == ""
    assert app.selectbox(key="file").options == ["bad\\udcff.csv"]
    assert app.dataframe[0].value["a"].tolist() == [1]


TABLES = [
    "a,b,c\n1,2,x\n3,4,\n5,6,z\n",  # an empty cell
    "a,b,c\n1,2,x\n,,\n",
    "a,b,c\n1,2,\n3,4,\n",  # an empty column
    "a,b\n1,inf\n2,\n",
    "a,a,\n1,2,\n",
    "a\n",
]


@pytest.mark.parametrize("content", TABLES)
def test_a_table_with_empty_cells_is_shown_filtered_and_drawn(tmp_path, content):
    (tmp_path / "t.csv").write_text(content)
    app = opened("studies", folder=str(tmp_path))
    assert sentences(app) == ""
    app.multiselect(key="filters").set_value(app.multiselect(key="filters").options).run()
    assert sentences(app) == ""
    assert len(app.dataframe[0].value) == content.count("\n") - 1


def test_a_table_of_other_things_than_numbers_and_text(tmp_path):
    table = pd.DataFrame(
        {
            "a": [1.0, 2.0, 3.0],
            "b": [3.0, 2.0, 1.0],
            "bytes": [b"x", None, b"\xff"],
            "truth": [True, None, False],
            "nothing": [None] * 3,
            "lists": [[1], None, [2, 3]],
            "day": pd.to_datetime(["2020", None, "2021"]),
        }
    )
    table.to_parquet(tmp_path / "t.parquet")
    app = opened("studies", folder=str(tmp_path))
    assert sentences(app) == ""
    app.multiselect(key="filters").set_value(app.multiselect(key="filters").options).run()
    assert sentences(app) == ""


def test_words_of_a_point_leave_an_empty_cell_empty():
    table = pd.DataFrame({"x": [1, 2], "y": [2, 1], "name": ["one", None], "what": ["a", "<b>"]})
    figure = tables.front(table, "x", "y")
    assert list(figure.data[1].text) == ["one · a", " · &lt;b&gt;"]


def test_different_things_have_an_order():
    assert tables.different(pd.Series([3, None, 1, 2, 1])) == [1, 2, 3]
    assert tables.different(pd.Series(["b", 1, None, "a"], dtype=object)) == [1, "a", "b"]
