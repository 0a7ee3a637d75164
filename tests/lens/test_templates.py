"""Chat templates are programs of others: those that do not end are a sentence, real ones say what they did."""

from __future__ import annotations

from typing import Any

import pytest

import interp
from interp.lens import templates
from interp.lens.templates import TemplateError
from tests.models import shared, tokenizer

TALK = [{"role": "user", "content": "w4 w5"}, {"role": "assistant", "content": "w6", "tool_calls": None}]
CHATML = """{% for m in messages %}
{{- '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ bos_token }}assistant{% endif %}"""
REAL = (
    CHATML,
    "{% for m in messages %}{% if m.tool_calls is defined %}tools{% endif %}{{ m | tojson(indent=2) }}{% endfor %}",
    "{%- set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{% if ns.n > 1 %}{% break %}{% endif %}{% generation %}{{ m.content | trim }}{% endgeneration %}"
    "{% endfor %}{{ strftime_now('%Y') }}",
    {"default": "{{ messages[-1]['content'] }} of the default", "tool_use": "another"},
)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less patience than users have."""
    monkeypatch.setattr(templates, "SECONDS", 1)


def lens_with(template: Any) -> interp.Lens:
    made = tokenizer()
    made.chat_template = template
    return interp.load(shared("llama"), made)


@pytest.mark.parametrize("template", REAL)
@pytest.mark.parametrize("how", [{"add_generation_prompt": True}, {"continue_final_message": True}])
def test_what_comes_back_is_transformers_own(template: Any, how: dict[str, bool]) -> None:
    made = tokenizer()
    made.chat_template = template
    try:
        expected = made.apply_chat_template(TALK, tokenize=False, **how)
    except ValueError as error:
        with pytest.raises(TemplateError, match=str(error)[:40]):
            templates.templated(made, TALK, "x", **how)
        return
    assert templates.templated(made, TALK, "x", **how) == expected


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            "takes longer than any does",
        ),
        ("{{ 'x' * 100000000000 }}", "expands to more"),
        (
            "{% set n = namespace(s='xx') %}{% for a in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
            "expands to more",
        ),
        ("{{ 'w4 ' * 1000000 }}", "makes 3,000,000 characters of this conversation"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{{ raise_exception('roles\nmust alternate') }}", "roles must alternate"),
        ("{{ a.b.c }}", "'a' is undefined"),
        ("{% if %}", "Expected an expression"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% include '/etc/hostname' %}", "no loader"),
        ("{{ '\x1b[31m' ~ raise_exception('\x1b[31mred') }}", "red"),
        (5, "does not take this conversation"),
        ({"tool_use": "w4"}, "does not take this conversation"),
    ],
)
def test_templates_that_do_not_end_in_a_text(template: Any, says: str) -> None:
    lens = lens_with(template)
    with pytest.raises(TemplateError, match=says) as caught:
        lens.generate("w4", 2, chat=True)
    assert str(caught.value).isprintable()
    assert "w5" in lens.to_str_tokens("w4 w5")


def test_a_template_that_is_empty_is_the_text_of_nothing() -> None:
    with pytest.raises(interp.InterpError, match="no tokens"):
        lens_with("{{ '' }}").to_tokens(TALK)


def test_messages_of_more_than_text() -> None:
    """A template sees the kind of what is no plain data, as in transformers."""
    lens = lens_with("{% for part in messages[0]['content'] %}{{ part['image'] or part['text'] }} {% endfor %}")
    talk = [{"role": "user", "content": [{"type": "image", "image": object()}, {"type": "text", "text": "w5"}]}]
    assert templates.templated(lens.tokenizer, talk, "x") == "<object> w5 "


def test_a_tokenizer_with_a_program_of_its_own() -> None:
    lens = lens_with("w4")
    lens.tokenizer.apply_chat_template = lambda talk, **how: "w7 w8"
    assert lens.to_str_tokens(lens.to_tokens(TALK)) == ["<bos>", "w7", "w8"][1:]

    def broken(talk: Any, **how: Any) -> str:
        raise KeyError("a\nb")

    lens.tokenizer.apply_chat_template = broken
    with pytest.raises(TemplateError, match="does not take this conversation"):
        lens.to_tokens(TALK)
