"""Temperature against softmaxes written out, learned sinks and softcap included."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
from interp import InterpError, Temperature, interventions
from tests.interventions.edited_by_hand import in_pieces, one_sentence
from tests.interventions.live_cache import close, left_padded
from tests.models import shared, tokens

EXAMPLES = [Temperature(), Temperature(temperature=0.4, queries=(3, 6, 9, 11))]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def plain(lens: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of the first layer, whose queries and keys no edit changes: scores (masked), pattern, values of every head."""
    names = [f"blocks.0.attn.hook_{name}" for name in ("attn_scores", "pattern", "v")]
    _, cache = lens.run_with_cache(ids, names_filter=names)
    values = cache["v", 0].transpose(1, 2)
    return {
        "scores": cache["attn_scores", 0],
        "pattern": cache["pattern", 0],
        "values": values.repeat_interleave(8 // values.shape[1], 1),
    }


def first_z(lens: Any, ids: torch.Tensor) -> torch.Tensor:
    return lens.run_with_cache(ids, names_filter="blocks.0.attn.hook_z")[1]["z", 0].transpose(1, 2)


@settings(max_examples=30, deadline=None)
@given(
    temperature=st.floats(0.05, 50.0),
    heads=st.none() | st.lists(st.integers(0, 7), min_size=1, max_size=4, unique=True),
    queries=st.none() | st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True),
    name=st.sampled_from(["llama", "gemma2", "gpt_oss", "mistral"]),
)
def test_any_settings(temperature: float, heads: Any, queries: Any, name: str) -> None:
    """The softmax of scores over the temperature, in which a learned sink's logit is one of them."""
    lens, ids = interp.load(shared(name)), tokens(length=10)
    with torch.no_grad():
        told = plain(lens, ids)
        logits, sinks = told["scores"].double(), getattr(lens.anatomy.blocks[0].attention, "sinks", None)
        if sinks is not None:
            logits = torch.cat([logits, sinks.double()[None, :, None, None].expand(2, 8, 10, 1)], -1)
        edited = (logits / temperature).softmax(-1)[..., :10]
        chosen = torch.zeros(8, 10, dtype=torch.bool)
        chosen[torch.tensor(heads if heads is not None else range(8))[:, None], queries or list(range(10))] = True
        wanted = torch.where(chosen[..., None], edited, told["pattern"].double()).float() @ told["values"]
        with lens.apply(Temperature(temperature, heads=heads, queries=queries)):
            close(first_z(lens, ids), wanted)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_at_its_ends_all_keys_are_alike_or_one_takes_all(name: str) -> None:
    lens, ids = interp.load(shared(name)), tokens(1, 10)
    told = plain(lens, ids)
    visible = (told["scores"] > -1e30).float()
    sink = 1.0 if name == "gpt_oss" else 0.0  # it is one logit among the others
    with lens.apply(Temperature(1e6)):
        close(first_z(lens, ids), visible @ told["values"] / (visible.sum(-1, keepdim=True) + sink), 1e-4)
    if name == "llama":
        (top, second), best = told["scores"].topk(2, -1).values.unbind(-1), told["scores"].argmax(-1, keepdim=True)
        clear = top - second > 0.02  # e to the 20th at this temperature
        assert clear.float().mean() > 0.9
        with lens.apply(Temperature(0.001)):
            found = first_z(lens, ids)
        close(found[clear], told["values"].gather(2, best.expand(-1, -1, -1, 8))[clear], 1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
def test_entropy_grows_with_it(name: str) -> None:
    lens, (ids, mask) = interp.load(shared(name)), left_padded(14, 5)
    found = []
    for temperature in (0.5, 0.9, 1.0, 1.1, 4.0):
        with lens.apply(Temperature(temperature, layers=0)):
            _, cache = lens.run_with_cache(ids, attention_mask=mask, names_filter="blocks.0.attn.hook_row_entropy")
        found.append(cache["row_entropy", 0][0, :, 8:].mean())
    if name != "gpt_oss":  # there a part of the row goes to the sink, which has no part in the entropy
        assert found == sorted(found)
    assert len(set(map(float, found))) == 5


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_two_multiply(name: str) -> None:
    """Also where only some rows and heads have both; and one that undoes the other leaves what was."""
    lens, ids = interp.load(shared(name)), tokens()
    with lens.apply(Temperature(2.0)):
        once = in_pieces(lens, ids, (8, 3, 1))
    with lens.apply(Temperature(0.5) | Temperature(4.0)):
        close(in_pieces(lens, ids, (8, 3, 1)), once, 1e-4)
    with lens.apply(Temperature(0.5, heads=(1, 2)) | Temperature(2.0, heads=(2, 1))):
        assert torch.equal(lens(ids), lens.model(ids).logits)


def test_the_learned_sinks_share_is_that_of_its_divided_logit() -> None:
    """In the probe too, by row and head."""
    lens, ids = interp.load(shared("gpt_oss")), tokens(1, 20)
    for edit in (Temperature(3.0), Temperature(0.5, heads=(0, 4), queries=range(5, 12))):
        with lens.apply(edit):
            found = interp.probe(lens, ids, ["text_sinks"])["text_sinks"]["learned_sink_mass"]
            _, cache = lens.run_with_cache(ids, names_filter=lambda name: name.endswith("hook_pattern"))
        for layer in range(3):
            wanted = 1 - cache["pattern", layer][0].sum(-1).mean(-1)
            close(torch.as_tensor(found.isel(layer=layer).values.ravel()), wanted)


def test_half_precision_is_edited_in_fp32() -> None:
    model = interp.load(shared("llama")).model
    lens, ids = interp.load(type(model)(model.config).to(torch.bfloat16).eval()), tokens()
    names = [f"blocks.0.attn.hook_{name}" for name in ("rot_q", "rot_k", "v", "z")]
    with lens.apply(Temperature(0.3, heads=(1, 5))):
        _, cache = lens.run_with_cache(ids, names_filter=names)
    q, k, v = (cache[name].float().transpose(1, 2) for name in names[:3])
    k, v = k.repeat_interleave(4, 1), v.repeat_interleave(4, 1)
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(~torch.ones(12, 12).tril().bool(), -torch.inf)
    scores[:, [1, 5]] /= 0.3
    assert cache["z", 0].dtype == torch.bfloat16
    torch.testing.assert_close(cache["z", 0].float().transpose(1, 2), scores.softmax(-1) @ v, rtol=1e-2, atol=1e-2)


def test_what_did_nothing_says_so() -> None:
    lens, ids = interp.load(shared("llama")), tokens()
    for edit, says in (
        (Temperature(queries=20), "temperature changed nothing: queries 20 would lie beyond 12 tokens"),
        (Temperature(queries=(3, 20)), "queries 20 would lie beyond 12 tokens, the longest text that it met"),
    ):
        with pytest.warns(UserWarning, match=says), lens.apply(edit):
            lens(ids)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"temperature": 0.0}, "temperature should be at least 0.001, found 0.0"),
        ({"temperature": -1.0}, "temperature should be at least 0.001, found -1.0"),
        ({"temperature": float("inf")}, "temperature should be a finite number"),
        ({"queries": [2, 2]}, "queries should be distinct numbers"),
    ],
)
def test_a_bad_setting_is_told_when_it_is_made(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(InterpError) as told:
        Temperature(**asked)
    assert says in one_sentence(told.value)


def test_rows_that_no_text_has_are_told_before_it_runs() -> None:
    lens = interp.load(shared("llama"))
    with pytest.raises(InterpError, match="queries 600 would lie beyond 512 tokens, the context") as told:
        lens.apply(Temperature(queries=600)).__enter__()
    one_sentence(told.value)


def test_it_is_read_from_text() -> None:
    edit = interventions.parse("temperature:temperature=0.5,queries=[1,2],heads=3")
    assert edit == Temperature(0.5, queries=(1, 2), heads=3)
