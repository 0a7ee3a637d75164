"""Whatever a person passes to be read: read as what it is by every function that reads, or refused in one sentence."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp.lens import reading_input
from tests.models import shared, tiny, tokenizer, tokens
from tests.seam.test_bridge import bridged

TEXTS = ["w4 w5 w6", "w7"]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} <eos>{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)
TALK = [{"role": "user", "content": "w4 w5"}]


def reader(side: str = "left") -> Any:
    made = tokenizer()
    made.padding_side, made.chat_template = side, TEMPLATE
    return made


@pytest.fixture(scope="module")
def lens() -> interp.Lens:
    return interp.load(shared("llama"), reader())


FORMS: dict[str, Callable[[Any], Any]] = {
    "texts": lambda tok: TEXTS,
    "a tuple of texts": lambda tok: tuple(TEXTS),
    "an array of texts": lambda tok: np.array(TEXTS),
    "a column of texts": lambda tok: pd.Series(TEXTS),
    "a deque of texts": lambda tok: deque(TEXTS),
    "an encoding": lambda tok: tok(TEXTS, return_tensors="pt", padding=True),
    "an encoding of arrays": lambda tok: tok(TEXTS, return_tensors="np", padding=True),
    "an encoding of lists": lambda tok: tok(TEXTS, padding=True),
    "an encoding without padding": lambda tok: tok(TEXTS),
    "an encoding with reports": lambda tok: tok(TEXTS, return_offsets_mapping=True, return_special_tokens_mask=True),
    "an encoding with token types": lambda tok: tok(TEXTS, return_token_type_ids=True),
    "a dictionary": lambda tok: dict(tok(TEXTS, return_tensors="pt", padding=True)),
    "an encoding each": lambda tok: [tok(text) for text in TEXTS],
    "an encoding of a tensor each": lambda tok: [tok(text, return_tensors="pt") for text in TEXTS],
    "rows of ids": lambda tok: tok(TEXTS).input_ids,
    "arrays of ids": lambda tok: [np.array(row) for row in tok(TEXTS).input_ids],
    "small arrays of ids": lambda tok: [np.array(row, dtype="uint8") for row in tok(TEXTS).input_ids],
    "tensors of ids": lambda tok: [torch.tensor(row) for row in tok(TEXTS).input_ids],
    "tensors [1, pos]": lambda tok: [torch.tensor([row]) for row in tok(TEXTS).input_ids],
    "a tuple of tuples": lambda tok: tuple(tuple(row) for row in tok(TEXTS).input_ids),
}
RIGHT = [name for name in FORMS if name.startswith(("an encoding", "a dictionary")) and not name.endswith("each")]


@pytest.mark.parametrize(("form", "side"), [*((f, "left") for f in FORMS), *((f, "right") for f in RIGHT)])
@torch.no_grad()
def test_every_form_reads_as_the_texts_do(lens: interp.Lens, form: str, side: str) -> None:
    given = FORMS[form](reader(side))
    last = torch.stack([lens(text)[0, -1] for text in TEXTS])
    ids, mask = lens.tokens_and_mask(given)
    logits = lens(given)
    ends = [int(row.nonzero().max()) for row in mask]
    torch.testing.assert_close(logits[[0, 1], ends], last, rtol=1e-4, atol=1e-4)
    assert torch.equal(ids, lens.to_tokens(given))
    torch.testing.assert_close(lens(given, return_type="loss"), lens(TEXTS, return_type="loss"))
    torch.testing.assert_close(lens.run_with_cache(given)[0], logits)
    torch.testing.assert_close(lens.run_with_hooks(given, fwd_hooks=[("hook_embed", lambda x, hook: x)]), logits)
    nats = torch.cat([lens.score(text, rest) for text, rest in zip(TEXTS, ["w8 w9", "w10 w11"], strict=True)])
    torch.testing.assert_close(lens.score(given, ["w8 w9", "w10 w11"]), nats, rtol=1e-4, atol=1e-4)
    wanted = [lens.generate(lens.to_tokens(text), 4, eos_token_id=None)[0, -4:] for text in TEXTS]
    out = lens.generate(given, 4, eos_token_id=None)
    if isinstance(out, list):
        assert out == [lens.generate(text, 4, eos_token_id=None) for text in TEXTS]
    else:
        assert torch.equal(out[:, -4:], torch.stack(wanted))
    results = [interp.probe(lens, x, "text_sinks")["text_sinks"] for x in (given, TEXTS)]
    found, expected = (result.drop_vars("seconds_forward", errors="ignore") for result in results)
    assert found.equals(expected)


@pytest.mark.parametrize("form", RIGHT)
@torch.no_grad()
def test_an_encoding_may_come_as_keywords(lens: interp.Lens, form: str) -> None:
    given = FORMS[form](reader())
    assert torch.equal(lens(**given), lens(given))
    assert torch.equal(lens.run_with_cache(**given)[0], lens(given))
    assert torch.equal(lens.generate(**given, max_new_tokens=3), lens.generate(given, max_new_tokens=3))


ONE: dict[str, Callable[[Any], Any]] = {
    "a text": lambda tok: "w4 w5 w6",
    "ids": lambda tok: tok("w4 w5 w6").input_ids,
    "numpy ids": lambda tok: list(np.array(tok("w4 w5 w6").input_ids)),
    "an array": lambda tok: np.array(tok("w4 w5 w6").input_ids, dtype="int16"),
    "a tensor of bytes": lambda tok: torch.tensor(tok("w4 w5 w6").input_ids, dtype=torch.uint8),
    "an encoding": lambda tok: tok("w4 w5 w6"),
    "an encoding of a tensor": lambda tok: tok("w4 w5 w6", return_tensors="pt"),
    "chat messages": lambda tok: TALK,
}


@pytest.mark.parametrize("form", ONE)
@torch.no_grad()
def test_one_of_every_form_goes_where_one_is_read(lens: interp.Lens, form: str) -> None:
    given = ONE[form](reader())
    ids = lens.to_tokens(given)
    assert torch.equal(lens(given), lens(ids))
    why = interp.explain(lens, interp.SnapKV(budget=0.5, window=1), given, "w7 w8 w9", ["perturbation"])
    assert why["perturbation"].sizes
    both = interp.side_by_side(lens, given, interp.KnockOut(keys=0), 3)
    assert both["token_id"].equals(interp.side_by_side(lens, ids, interp.KnockOut(keys=0), 3)["token_id"])
    other = ids.clone()
    other[0, 1] = 99
    metric = interp.patching.logit_difference(7, 8)
    back = interp.patch(lens, given, other.numpy(), "hook_resid_pre", metric)
    assert back.equals(interp.patch(lens, ids, other, "hook_resid_pre", metric))
    found = interp.probe(lens, given, "text_sinks")["text_sinks"]
    assert found.sizes["layer"] == 3
    assert ("text" in found.sizes) == (form == "an encoding of a tensor"), "a batch of one is a list of one text"


@pytest.mark.parametrize("form", [name for name in FORMS if name != "texts"])
@torch.no_grad()
def test_a_bridge_reads_them_too(form: str) -> None:
    lens = interp.load(bridged("llama"), reader())
    given = FORMS[form](reader())
    torch.testing.assert_close(lens(given), lens(TEXTS), rtol=1e-4, atol=1e-4)
    if isinstance(given, dict) or hasattr(given, "input_ids"):
        torch.testing.assert_close(lens(**given), lens(given))


def test_a_bridge_generates_from_ids() -> None:
    lens = interp.load(bridged("llama"), reader())
    assert lens.generate([4, 5, 6], max_new_tokens=2, verbose=False).shape[0] == 1
    with pytest.raises(interp.InterpError, match="without a mask"):
        lens.generate([[4, 5, 6], [7]], max_new_tokens=2)
    with pytest.raises(interp.InterpError, match="lone surrogate"):
        lens.generate("w4 \ud800", max_new_tokens=2)


NO_INPUT: dict[str, tuple[Any, str]] = {
    "nothing": (None, "not NoneType"),
    "a number": (5, "not int"),
    "a float": (1.5, "not float"),
    "a truth": (True, "not bool"),
    "bytes": (b"w4", "not bytes"),
    "a generator": ((text for text in TEXTS), "not generator, which has no order or is used up"),
    "a set": ({"w4", "w5"}, "not set, which has no order"),
    "keys": ({"w4": 1}.keys(), "not dict_keys, which has no order"),
    "a dictionary of other things": ({"text": "w4"}, "not dict"),
    "one message": ({"role": "user", "content": "w4"}, "not dict"),
    "messages without role": ([{"content": "w4"}], "'role': 'user'"),
    "text and None": (["w4", None], "not a list that holds NoneType"),
    "text and number": (["w4", 5], "not a list that holds int"),
    "words": ([["w4", "w5"]], "join the words"),
    "no ids": ([], "no tokens to read"),
    "no rows": (torch.zeros(0, 3, dtype=torch.long), "no tokens to read"),
    "no columns": (np.zeros((1, 0), dtype=int), "no tokens to read"),
    "an empty row": ([[4, 5], []], "row 1 holds no tokens"),
    "floats": ([1.5, 2.0], "integers, not float"),
    "rows of floats": ([[4.0, 5.0]], "integers, not float"),
    "not a number": ([float("nan")], "integers, not float"),
    "a float tensor": (torch.ones(1, 4), "integers of shape"),
    "a float array": (np.ones((1, 4)), "integers of shape"),
    "embeddings by position": (torch.ones(1, 4, 64), "inputs_embeds="),
    "truths": ([True, False], "integers, not bool"),
    "a bool tensor": (torch.tensor([True]), "integers of shape"),
    "negative": ([4, -1], "token id -1 is outside"),
    "beyond": ([[4, 128]], "token id 128, .*is outside|token id 128 is outside"),
    "far beyond": ([2**70], "is outside"),
    "three axes": (torch.ones(1, 2, 3, dtype=torch.long), "integers of shape"),
    "three axes of lists": ([[[4, 5], [6]]], "nested deeper"),
    "no axis": (torch.tensor(4), "integers of shape"),
    "ids and rows": ([4, [5]], "mixes rows of ids and ids"),
    "dates": (np.array(["2020-01-01"], dtype="datetime64[D]"), "not an array of datetime64"),
    "half a character": ("w4 \ud83d w5", r"lone surrogate \(U\+D83D at character 3\)"),
    "half a character in a list": (["w4", "\udcff"], r"lone surrogate \(U\+DCFF at character 0\)"),
    "half a character in a message": ([{"role": "user", "content": "\ud83d"}], "lone surrogate"),
    "pixels": ({"input_ids": [[4]], "pixel_values": 1}, "pixel_values"),
    "token types of two kinds": ({"input_ids": [[4, 5]], "token_type_ids": [[0, 1]]}, "token_type_ids"),
}
READERS: dict[str, Callable[[interp.Lens, Any], Any]] = {
    "call": lambda lens, x: lens(x),
    "run_with_cache": lambda lens, x: lens.run_with_cache(x),
    "run_with_hooks": lambda lens, x: lens.run_with_hooks(x),
    "generate": lambda lens, x: lens.generate(x, max_new_tokens=2),
    "score": lambda lens, x: lens.score(x, "w4"),
    "to_tokens": lambda lens, x: lens.to_tokens(x),
    "to_str_tokens": lambda lens, x: lens.to_str_tokens(x),
    "tokens_and_mask": lambda lens, x: lens.tokens_and_mask(x),
    "probe": lambda lens, x: interp.probe(lens, x, "text_sinks"),
    "patch": lambda lens, x: interp.patch(lens, x, "w4 w5", "hook_resid_pre", len),
    "explain": lambda lens, x: interp.explain(lens, interp.ThinK(), x, "w4 w5"),
    "side_by_side": lambda lens, x: interp.side_by_side(lens, x, interp.ThinK(), 2),
}


@pytest.mark.parametrize("reads", READERS)
@pytest.mark.parametrize("case", NO_INPUT)
def test_what_is_no_input_is_refused_in_one_sentence(lens: interp.Lens, case: str, reads: str) -> None:
    given, says = NO_INPUT[case]
    says = f"{says}|no text to read" if reads == "probe" and case == "no ids" else says
    says = "mask|used up|no tokens" if case == "a generator" else says
    with pytest.raises(interp.InterpError, match=says) as caught:
        READERS[reads](lens, given)
    assert "\n" not in str(caught.value)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 140) | st.floats() | st.text(max_size=4) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.dictionaries(st.sampled_from(
        ["input_ids", "attention_mask", "role", "content", "x"]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


MASKED = st.fixed_dictionaries({
    "input_ids": st.lists(st.lists(st.integers(0, 127), min_size=1, max_size=3), min_size=1, max_size=3),
    "attention_mask": ANYTHING | st.lists(st.lists(st.integers(0, 1) | st.floats(), max_size=3), max_size=3),
})  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(input=ANYTHING | MASKED)
def test_anything_is_read_or_refused_in_one_sentence(input: Any) -> None:
    lens = interp.load(shared("llama"), reader())
    try:
        ids, mask = lens.tokens_and_mask(input)
    except interp.InterpError:
        return
    assert ids.ndim == 2
    assert ids.numel() > 0
    assert 0 <= int(ids.min()) <= int(ids.max()) < 128
    if mask is None or mask.shape == ids.shape:
        assert lens(input).shape[:2] == ids.shape


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ([1], "there are 1 sequences of 2 tokens"),
        ([[1, 1], [1, 1]], "1 sequences of 2 tokens"),
        ([0.0, -1e9], "holds other numbers"),
        ("ab", "one entry for each token"),
        (1, "has 0 axes|one entry for each token"),
        (object(), "one entry for each token"),
        ([None, 1], "one entry for each token"),
        ({"mask": 1}, "one entry for each token"),
        (torch.ones(1, 1, 2), "has 3 axes"),
        (torch.ones(1, 1, 5, 2), r"mask is \[1, 1, 5, 2\]"),
        (np.array([1, 2], dtype="uint16"), "holds other numbers"),
    ],
)
def test_masks_that_fit_no_tokens(lens: interp.Lens, mask: Any, says: str) -> None:
    for ids in ([4, 5], [[4, 5]], torch.tensor([4, 5])):
        for call in (lens, lambda ids, attention_mask: lens.generate(ids, 2, attention_mask=attention_mask)):
            with pytest.raises(interp.InterpError, match=f"{says}|of .* entries"):
                call(ids, attention_mask=mask)


def test_masks_of_lists_and_arrays(lens: interp.Lens) -> None:
    wanted = lens(torch.tensor([[2, 4, 5]]), attention_mask=torch.tensor([[0, 1, 1]]))
    for mask in ([0, 1, 1], [[0, 1, 1]], np.array([0, 1, 1]), np.array([[False, True, True]]), torch.tensor([0, 1, 1])):
        assert torch.equal(lens([2, 4, 5], attention_mask=mask), wanted)


def test_one_thing_said_twice(lens: interp.Lens) -> None:
    encoded = lens.tokenizer("w4 w5", return_tensors="pt")
    for call, says in (
        (lambda: lens("w4", input_ids=tokens()), "input_ids comes beside another input"),
        (lambda: lens(tokens(), inputs_embeds=torch.zeros(1, 2, 64)), "inputs_embeds comes beside another input"),
        (lambda: lens(encoded, attention_mask=encoded["attention_mask"]), "pass it once"),
        (lambda: lens("w4 w5", attention_mask=torch.ones(1, 3)), "goes with tokens"),
        (lambda: lens.generate(["w4", "w5"], 2, attention_mask=torch.ones(2, 2)), "goes with tokens"),
    ):
        with pytest.raises(interp.InterpError, match=says):
            call()


@torch.no_grad()
def test_embeddings_in_the_place_of_tokens(lens: interp.Lens) -> None:
    ids = tokens()
    embedded = lens.model.get_input_embeddings()(ids)
    for call in (lambda: lens(inputs_embeds=embedded), lambda: lens({"inputs_embeds": embedded})):
        assert torch.equal(call(), lens(ids))
    new = lens.generate(inputs_embeds=embedded, max_new_tokens=3, eos_token_id=None)
    assert torch.equal(new, lens.generate(ids, max_new_tokens=3, eos_token_id=None)[:, -3:])
    for call, says in (
        (lambda: lens(inputs_embeds=embedded, return_type="loss"), "no loss"),
        (lambda: lens(inputs_embeds=embedded[..., :3]), r"should be a tensor \[batch, pos, 64\]"),
        (lambda: lens(inputs_embeds=[[1.0]]), "found list"),
        (lambda: lens.score({"inputs_embeds": embedded}, "w4"), "embeddings have no tokens"),
        (lambda: interp.probe(lens, {"inputs_embeds": embedded}), "embeddings have no tokens"),
        (lambda: interp.load(bridged("llama"))(inputs_embeds=embedded), "a TransformerBridge reads tokens"),
    ):
        with pytest.raises(interp.InterpError, match=says):
            call()


def test_ids_are_held_against_the_embedding_and_not_the_config() -> None:
    model = tiny("llama")
    model.set_input_embeddings(torch.nn.Embedding(100, 64))
    short = interp.load(model, tokenizer())
    assert short([99]).shape == (1, 1, 128)
    for input in ([100], "w4 w100", ["w4", "w120"]):
        with pytest.raises(interp.InterpError, match=r"token id 1\d\d.* is outside the vocabulary of 100"):
            short(input)
    grown = tiny("llama")
    grown.resize_token_embeddings(140)
    grown.config.vocab_size = 128
    assert interp.load(grown)([[139]]).shape[:2] == (1, 1)
    with pytest.raises(interp.InterpError, match="outside the vocabulary of 140"):
        interp.load(grown)([[140]])


def test_a_token_that_only_the_tokenizer_knows_is_named() -> None:
    more = tokenizer()
    more.add_tokens(["<new>"])
    lens = interp.load(shared("llama"), more)
    for call in (lambda: lens("w4 <new>"), lambda: lens.score("w4", " <new>"), lambda: lens.to_str_tokens("<new>")):
        with pytest.raises(interp.InterpError, match="token id 128, '<new>' of this tokenizer, is outside"):
            call()


@torch.no_grad()
def test_conversations_go_through_the_template(lens: interp.Lens) -> None:
    text = "user w4 w5 <eos>assistant "
    ids = torch.tensor([lens.token_ids(text)])
    assert torch.equal(lens.to_tokens(TALK), ids)
    assert torch.equal(lens(TALK), lens(ids))
    longer = [*TALK, {"role": "assistant", "content": "w6"}, {"role": "user", "content": "w7"}]
    both = lens.to_tokens([TALK, longer])
    assert both.shape[0] == 2
    assert torch.equal(lens.to_tokens([tuple(TALK), longer]), both)
    reply = lens.generate(TALK, max_new_tokens=3, eos_token_id=None)
    assert reply == lens.generate(TALK, max_new_tokens=3, chat=True, eos_token_id=None)
    assert reply == lens.generate("w4 w5", max_new_tokens=3, chat=True, eos_token_id=None)
    assert lens.generate([TALK, TALK], max_new_tokens=3, eos_token_id=None) == [reply, reply]
    seen = interp.probe(lens, [TALK, longer], "text_sinks")["text_sinks"]
    assert seen.sizes["text"] == 2


@torch.no_grad()
def test_a_reply_that_has_begun_is_continued(lens: interp.Lens) -> None:
    begun = [*TALK, {"role": "assistant", "content": "w6 w7"}]
    ids = torch.tensor([lens.token_ids("user w4 w5 <eos>assistant w6 w7")])
    new = lens.generate(ids, max_new_tokens=3, eos_token_id=None)[0, ids.shape[1] :]
    assert lens.generate(begun, max_new_tokens=3, eos_token_id=None) == lens.to_string(new)
    whole = lens.token_ids("user w4 w5 <eos>assistant w6 w7 <eos>")
    assert lens.to_tokens(begun).tolist() == [whole], "read, and not continued, it ends as the template ends it"


def test_templates_that_are_missing_or_refuse() -> None:
    with pytest.raises(interp.InterpError, match="has no chat template"):
        interp.load(shared("llama"), tokenizer())(TALK)
    strict = tokenizer()
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(interp.InterpError, match="does not take this conversation: roles must alternate"):
        interp.load(shared("llama"), strict).generate(TALK)
    with pytest.raises(interp.InterpError, match="no tokenizer"):
        interp.load(shared("llama"))(TALK)
    with pytest.raises(interp.InterpError, match="not chat messages"):
        interp.load(shared("llama"), reader()).score("w4", TALK)


@torch.no_grad()
def test_several_are_scored_in_pairs(lens: interp.Lens) -> None:
    prompts, rests = ["w4 w5 w6 w7", "w8"], ["w9 w10 w11", "w12"]
    nats = lens.score(prompts, rests)
    for i, (prompt, rest) in enumerate(zip(prompts, rests, strict=True)):
        alone = lens.score(prompt, rest)[0]
        torch.testing.assert_close(nats[i, : len(alone)], alone, rtol=1e-4, atol=1e-4)
        assert nats[i, len(alone) :].isnan().all()
    for some in ([[9, 10, 11], [12]], (np.array([9, 10, 11]), np.array([12])), {"input_ids": [[9, 10, 11], [12]]}):
        torch.testing.assert_close(lens.score(prompts, some), nats, equal_nan=True)
    with lens.apply(interp.StreamingLLM(budget=0.6, sinks=1)):
        under = lens.score(prompts, rests, chunk=1)
        assert under[1, 1:].isnan().all()
    for prompt, rest, says in (
        ("w4", [], "is empty"),
        ("w4", "", "is empty"),
        (["w4", "w5"], ["w6", ""], "is empty"),
        ("w4", ["w5", "w6"], "1 prompts and 2 continuations"),
        ("w4", None, "not NoneType"),
        ("w4", "\ud800", "lone surrogate"),
    ):
        with pytest.raises(interp.InterpError, match=says):
            lens.score(prompt, rest)


def test_tokens_and_text_back(lens: interp.Lens) -> None:
    assert lens.to_string([4, 5]) == lens.to_string(torch.tensor([4, 5])) == lens.to_string(np.array([4, 5])) == "w4 w5"
    assert lens.to_string([[4, 5]]) == ["w4 w5"]
    assert lens.to_str_tokens([4, 5]) == lens.to_str_tokens(torch.tensor([[4, 5]])) == ["w4", "w5"]
    assert lens.to_str_tokens(["w4", "w5 w6"]) == [["<bos>", "w4"], ["<bos>", "w5", "w6"]]
    assert lens.to_str_tokens(torch.tensor([[4], [5]])) == [["w4"], ["w5"]]
    assert interp.load(shared("llama")).to_str_tokens([4, 5]) == ["<4>", "<5>"]
    with pytest.raises(interp.InterpError, match="text already"):
        lens.to_string("w4")


@pytest.mark.parametrize("wrong", ["a path", object()])
def test_a_tokenizer_that_is_none(wrong: Any) -> None:
    with pytest.raises(interp.InterpError, match="tokenizer"):
        interp.load(shared("llama"), wrong)("w4")


def test_padding_goes_to_the_left() -> None:
    ids, mask = torch.tensor([[4, 5, 2, 2], [2, 6, 7, 2]]), torch.tensor([[1, 1, 0, 0], [0, 1, 1, 0]])
    moved, real = reading_input.left_padded(ids, mask)
    assert moved.tolist() == [[2, 2, 4, 5], [2, 2, 6, 7]]
    assert real.tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    with pytest.raises(interp.InterpError, match="leaves nothing of row 1"):
        reading_input.left_padded(ids, torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]))
