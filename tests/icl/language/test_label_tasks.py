"""Label tasks: what is drawn is balanced, disjoint and reproducible, and wrong label words are refused."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.errors import InterpError, UnknownNameError
from interp.icl.language.label_tasks import LabelTask, label_task, label_tasks, wrong_task_for
from tests.models import tokenizer

TOY = LabelTask(
    "toy", "w4 {text} w5", ("w100", "w101"), tuple((f"w{i}", i % 2) for i in range(10, 90)), "words of the tests"
)


class Characters:
    """One token a word, so that all labels of the real tasks are one token; `<s>` comes first, `</s>` last."""

    unk_token_id = None

    def __call__(self, text: str, add_special_tokens: bool = True) -> SimpleNamespace:
        ids = [hash(word) for word in text.split()]
        return SimpleNamespace(input_ids=[1, *ids, 2] if add_special_tokens else ids)


@pytest.mark.parametrize("name", label_tasks())
def test_every_task_has_texts_with_each_label_and_no_text_twice(name):
    task = label_task(name)
    counts = Counter(label for _, label in task.examples)
    texts = [text for text, _ in task.examples]
    assert sorted(counts) == list(range(len(task.labels)))
    assert min(counts.values()) >= 22  # a third of 16 + 24 + 24, or half of it with two labels: 32
    assert min(counts.values()) * len(task.labels) >= 64
    assert len(set(texts)) == len(texts)
    assert task.template.count("{text}") == 1


def test_at_least_four_tasks_and_each_has_a_wrong_one():
    assert len(label_tasks()) >= 4
    for name in label_tasks():
        wrong = wrong_task_for(label_task(name))
        assert wrong.name != name
        assert not set(wrong.labels) & set(label_task(name).labels)


def test_an_unknown_task_names_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'sentiment'"):
        label_task("sentimant")


@given(demos=st.integers(1, 20), queries=st.integers(1, 20), held_out=st.integers(0, 20), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_a_draw_is_balanced_and_shares_no_text(demos, queries, held_out, seed):
    prompts = TOY.draw(tokenizer(), demos, queries, held_out, seed)
    sets = (prompts.demos, prompts.queries, prompts.held_out)
    assert [len(s) for s in sets] == [demos, queries, held_out]
    used = [example.prompt for s in sets for example in s]
    assert len(set(used)) == len(used)
    for examples in sets:
        counts = Counter(example.label for example in examples)
        assert max(counts.values(), default=0) - min((counts[t] for t in prompts.label_tokens), default=0) <= 1
    assert prompts == TOY.draw(tokenizer(), demos, queries, held_out, seed)


def test_tokens_are_those_of_the_template_and_the_label_after_it():
    prompts = TOY.draw(tokenizer(), 4, 2, seed=3)
    labels = dict(zip(TOY.labels, prompts.label_tokens, strict=True))
    assert prompts.label_tokens == (100, 101)
    for example in (*prompts.demos, *prompts.queries):
        before, text, after = example.prompt
        assert (before, after) == (4, 5)
        assert example.label == labels[f"w{100 + text % 2}"]


def test_only_special_tokens_before_a_text_start_a_prompt():
    assert label_task("kind").draw(Characters(), 4, 2).start == (1,)
    assert TOY.draw(tokenizer(), 4, 2).start == (tokenizer()("w5").input_ids[0],) * (
        len(tokenizer()("w5").input_ids) - 1
    )


def test_shuffled_labels_keep_texts_and_label_counts_but_not_the_map():
    prompts = TOY.draw(tokenizer(), 6, 2)
    for seed in range(20):
        shuffled = prompts.with_shuffled_labels(seed)
        assert [d.prompt for d in shuffled.demos] == [d.prompt for d in prompts.demos]
        assert Counter(d.label for d in shuffled.demos) == Counter(d.label for d in prompts.demos)
        assert shuffled.demos != prompts.demos
        assert shuffled.queries == prompts.queries


def test_shuffling_one_label_ends():
    prompts = TOY.draw(tokenizer(), 1, 2)
    assert prompts.with_shuffled_labels(0) == prompts


def test_demonstrations_of_a_wrong_task_and_orders():
    other = replace(TOY, name="other", template="w6 {text} w7", labels=("w110", "w111"))
    prompts, wrong = TOY.draw(tokenizer(), 4, 3), other.draw(tokenizer(), 4, 1)
    taught = prompts.with_demos_of(wrong)
    assert (taught.demos, taught.queries) == (wrong.demos, prompts.queries)
    assert prompts.in_order([3, 1, 0, 2]).demos == tuple(prompts.demos[i] for i in (3, 1, 0, 2))
    with pytest.raises(InterpError, match="names each once"):
        prompts.in_order([0, 0, 1, 2])
    with pytest.raises(InterpError, match="share a label word"):
        prompts.with_demos_of(prompts)
    with pytest.raises(InterpError, match="draw as many"):
        prompts.with_demos_of(other.draw(tokenizer(), 5, 1))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (("w100 w101", "w102"), "'w100 w101' of toy is 2 tokens"),
        (("w100", "unheard"), "'unheard' of toy is 1 tokens of this tokenizer or unknown"),
        (("w100", "w100"), "are the same token"),
    ],
)
def test_label_words_that_are_not_one_token_each_are_refused(labels, message):
    with pytest.raises(InterpError, match=message):
        replace(TOY, labels=labels).draw(tokenizer(), 2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"template": "w4 w5"}, "does not hold {text} once"),
        ({"labels": ("w100",)}, "has 1 labels; a task takes two at least"),
        ({"examples": (("w10", 0), ("w11", 2))}, "has 2 labels and an example numbered 2"),
    ],
)
def test_a_task_that_cannot_be_asked_is_refused(change, message):
    with pytest.raises(InterpError, match=message):
        replace(TOY, **change)


def test_a_task_needs_a_tokenizer():
    with pytest.raises(InterpError, match="toy is a task of texts and needs a tokenizer"):
        TOY.draw(None)


def test_more_examples_than_there_are_is_refused():
    with pytest.raises(InterpError, match=r"too few labelled 'w10[01]' for a balanced draw of 90"):
        TOY.draw(tokenizer(), 40, 30, 20)
    with pytest.raises(InterpError, match="1 demonstration and 1 query"):
        TOY.draw(tokenizer(), 0, 3)
