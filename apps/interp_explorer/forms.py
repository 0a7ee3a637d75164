"""Widgets for the settings of a frozen dataclass, made from its fields, so that a new method has its form at once."""

from __future__ import annotations

import dataclasses
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import streamlit as st

from interp.errors import InterpError
from interp_explorer import address, waiting
from interp_explorer.text import plain


def settings(cls: type, key: str) -> dict[str, Any]:
    """What the user set, by field; fields that are as by default are left out."""
    kinds = get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.init]
    chosen = {}
    for column, field in zip(_columns(len(fields)), fields, strict=True):
        default = None if field.default is dataclasses.MISSING else field.default
        with column:
            value = _widget(field.name, kinds[field.name], default, f"{key} {field.name}")
        if value != default:
            chosen[field.name] = value
    return chosen


def described(cls: type) -> None:
    """A method's own words about itself, behind a button."""
    with st.popover("What it does", icon=":material/help:"):
        st.text(cls.__doc__ or "")


def _columns(count: int) -> list[Any]:
    columns = st.columns(3)
    return [columns[i % 3] for i in range(count)]


def _widget(name: str, kind: Any, default: Any, key: str) -> Any:
    """A widget for one field. What has no better one is a line of text, read as on the command line."""
    label = name.replace("_", " ")
    bound: dict[str, Any] = {"key": key, "bind": "query-params", "on_change": waiting.clicked}
    if kind is bool:
        return st.checkbox(label, default, **bound)
    if get_origin(kind) is Literal:
        options = list(get_args(kind))
        return st.selectbox(label, options, options.index(default) if default in options else 0, **bound)
    if kind in (int, float):
        address.number(key)
    if kind is int:
        return st.number_input(label, value=default, step=1, **bound)
    if kind is float:
        return st.number_input(label, value=default, step=0.05, format="%.4g", **bound)
    shown = "none" if default is None and _allows_none(kind) else "" if default is None else _written(default)
    text = st.text_input(label, shown, help=f"as on the command line; by default {shown or 'not set'}", **bound)
    return default if text == shown else text


def _allows_none(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType) and NoneType in get_args(kind)


def _written(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)


def intervention(name: str, key: str) -> tuple[Any, str]:
    """The intervention called `name` with a form for its settings, and how it is written on the command line.

    A value that makes no sense becomes a sentence on the page, and the page ends there.
    """
    from interp.interventions import available, parse

    cls = available()[name]
    described(cls)
    with st.expander("Settings"):
        chosen = settings(cls, key)
    text = ",".join(f"{field}={_written(value)}" for field, value in chosen.items())
    spec = f"{name}:{text}" if text else name
    try:
        return parse(spec), spec
    except InterpError as error:
        st.error(plain(str(error)))
        st.stop()
