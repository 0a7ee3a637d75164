"""Names with settings as text: lists of them come apart as they were put together, whatever is in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from interp.errors import InterpError
from interp.settings.reading import made, read, split


@dataclass(frozen=True)
class Some:
    """One setting of each kind that text can be."""

    name: ClassVar[str] = "some"
    label: str = "a"
    count: int = 1
    shares: float | tuple[float, ...] = (0.5,)


KNOWN = {"some": Some}
EXAMPLE = "some:count=2"
words = st.from_regex(r"[a-z_]{1,6}", fullmatch=True)
values = st.one_of(words, st.integers().map(str), st.lists(words, max_size=3).map(lambda items: f"[{','.join(items)}]"))
descriptions = st.builds(
    lambda name, settings: name if not settings else f"{name}:{','.join(f'{k}={v}' for k, v in settings.items())}",
    words,
    st.dictionaries(words, values, max_size=3),
)


@given(st.lists(descriptions, max_size=4), st.sampled_from([",", " , ", ",,"]))
def test_a_list_comes_apart_as_it_was_put_together(wanted: list[str], comma: str) -> None:
    assert split([comma.join(wanted)], "thing") == wanted
    assert split(wanted, "thing") == wanted


@given(st.lists(words, min_size=1, max_size=4))
def test_plain_names_are_what_they_were(names: list[str]) -> None:
    assert split([",".join(names)], "thing") == names


def test_settings_do_not_reach_into_the_next_text() -> None:
    assert split(["some:count=2,label=b", "other"], "thing") == ["some:count=2,label=b", "other"]
    with pytest.raises(InterpError, match=r"^'label=b' is a setting of no thing: write it as name:label=b\.$"):
        split(["some:count=2", "label=b"], "thing")


def test_a_colon_or_a_sign_within_a_value_belongs_to_it() -> None:
    (text,) = split(["some:count=2,label=a:b=c"], "thing")
    assert read(text, "thing", KNOWN, EXAMPLE) == Some(count=2, label="a:b=c")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("some", Some()), ("some:shares=1", Some(shares=1.0)), ("some:shares=[1, 0.25]", Some(shares=(1.0, 0.25)))],
)
def test_what_is_wanted_may_be_text_or_the_thing_itself(text: str, expected: Some) -> None:
    assert made("thing", text, Some, KNOWN, EXAMPLE) == expected
    assert made("thing", expected, Some, KNOWN, EXAMPLE) is expected


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("sone", "there is no thing 'sone'; did you mean 'some'"),
        ("some:cuont=2", "some has no setting 'cuont'; did you mean 'count'"),
        ("some:count=2.5", "some: count should be a whole number, found '2.5'"),
        ("some:count", "'some:count' is no thing: write name:key=value,key=value, as in some:count=2"),
        ("some:shares=[a]", "shares should be a finite number or a list of finite numbers in brackets"),
        (None, "there is no thing None"),
        (["some"], r"there is no thing \['some'\]"),
    ],
)
def test_a_mistake_is_one_sentence(wanted: object, says: str) -> None:
    with pytest.raises(InterpError, match=says) as told:
        made("thing", wanted, Some, KNOWN, EXAMPLE)  # type: ignore[arg-type]
    assert "\n" not in str(told.value)
