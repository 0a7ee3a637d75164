"""Nine bugs of D2O's released code (12c99d8), each with the test that code with the bug would fail."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import interp
from interp import D2O
from interp.seam.event import AttentionEvent
from tests.interventions.d2o_reference import VARIANTS, Reference, close, deep
from tests.interventions.largest import Largest
from tests.models import tiny, tokens

pytestmark = pytest.mark.filterwarnings("ignore:d2o dropped nothing.*ended before it acts")
model = cache(deep)
POLICY = D2O(budget=0.3, variant="code")


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def run(lens: Any, policy: D2O, ids: torch.Tensor, later: torch.Tensor) -> dict[str, Any]:
    """Loss of a continuation, and what became of every token."""
    with lens.apply(policy, ledger=True):
        nll = lens.score(ids, later, chunk=1)
    return {"nll": nll, "ledger": lens.last_cache.keeper.ledger, "cache": lens.last_cache}


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert torch.equal(one["nll"], other["nll"])
    for a, b in zip(one["ledger"], other["ledger"], strict=True):
        for name in ("evicted", "score", "target", "similarity", "threshold", "merged"):
            assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_1_the_threshold_begins_anew_with_every_prompt() -> None:
    """A threshold kept on the policy, the model or the lens would start the second run where the first one ended."""
    lens, ids, later = interp.load(model("llama")), tokens(length=40), tokens(length=6, seed=2)
    first = run(lens, POLICY, ids, later)
    same(run(lens, POLICY, ids, later), first)
    assert not torch.equal(first["ledger"][0].threshold, first["ledger"][-2].threshold)


def test_2_scores_of_an_earlier_prompt_are_forgotten() -> None:
    """Another prompt before, longer and then shorter, and another sequence stepped in between: all as in a lens that
    has seen nothing else."""
    ids, later = tokens(length=40), tokens(length=6, seed=2)
    wanted = run(interp.load(model("llama")), POLICY, ids, later)
    lens = interp.load(model("llama"))
    for length in (47, 33):
        run(lens, POLICY, tokens(length=length, seed=3), later)
        same(run(lens, POLICY, ids, later), wanted)
    with lens.apply(POLICY, ledger=True):
        caches = []
        for prompt in (ids, tokens(length=44, seed=4)):
            lens(prompt, use_cache=True)
            caches.append(lens.last_cache)
    for new in later[:, :-1].split(1, 1):
        for each in caches:
            lens(new, past_key_values=each, use_cache=True)
    same({"nll": wanted["nll"], "ledger": caches[0].keeper.ledger}, wanted)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "d_head"), [(6, 3, 10), (5, 5, 12), (4, 1, 18)], ids=["grouped", "multi-head", "one kv head"]
)
def test_3_any_number_and_size_of_heads(heads: int, kv_heads: int, d_head: int) -> None:
    """The release has 32 heads of 128 channels written into its reshapes."""
    shape = {"num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": d_head, "hidden_size": 60}
    ids, later = tokens(length=40), tokens(length=5, seed=2)
    wanted = Reference(deep("llama", **shape), ids, VARIANTS["code"](0.3, 5)).nll(later)
    close(run(interp.load(deep("llama", **shape)), POLICY, ids, later)["nll"], wanted)


@pytest.mark.parametrize("padding", [0, 9])
def test_4_a_batch_is_its_texts_and_padding_is_hidden(padding: int) -> None:
    """Three texts at once, one of them padded, each against itself alone. (Layer budgets are means over the batch, so
    equal ones here.) Attention that saw padding, or a squeeze of the batch axis, would change the losses."""
    ids, later, lens = tokens(3, 40), tokens(3, 6, seed=2), interp.load(model("llama"))
    mask = torch.ones_like(ids)
    mask[1, :padding] = 0
    rest, cache = later, {"use_cache": True, "attention_mask": mask}
    with lens.apply(D2O(budget=12.3 / 41, metric="uniform")):
        lens(ids, **cache)
    batch, logits = lens.last_cache, []
    for new in rest.split(1, 1):
        mask = torch.cat([mask, torch.ones_like(new)], 1)
        logits.append(lens(new, past_key_values=batch, use_cache=True, attention_mask=mask))
    for row, start in enumerate((0, padding, 0)):
        with lens.apply(D2O(budget=12.3 / 41, metric="uniform")):
            lens(ids[row : row + 1, start:], use_cache=True)
        alone = lens.last_cache
        for i, new in enumerate(rest[row : row + 1].split(1, 1)):
            close(logits[i][row : row + 1], lens(new, past_key_values=alone, use_cache=True), 1e-4)
        assert alone.report().kept.tolist()[2:4] == [int(12.3 / 41 * (41 - start))] * 2
        assert batch.report().kept.tolist()[2:4] == [12, 12]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_5_sums_of_attention_are_kept_in_fp32(dtype: torch.dtype) -> None:
    """All queries are alike, so that few columns take nearly all attention: sums reach hundreds, where bf16 counts by
    twos and fp16 by quarters. Against fp64 sums over the same queries and keys after the prompt; then every step
    adds 1 a head."""
    peaked = tiny("gpt2")
    for block in peaked.transformer.h:
        block.attn.c_attn.weight[:, :64] = 0
        block.attn.c_attn.bias[:64] *= 200
    ids, lens = tokens(1, 400), interp.load(peaked.to(dtype))
    events: list[AttentionEvent] = []

    def keep(event: AttentionEvent, hook: Any) -> None:
        events.append(event)

    policy = D2O(budget=0.5, metric="uniform", skip=(), merge="none", compress_at="prefill_end")
    hooked = [(lambda name: name.endswith("attn.hook_event"), keep)]
    with lens.apply(policy, ledger=True), lens.hooks(fwd_hooks=hooked):
        lens(ids, use_cache=True)
    found = lens.last_cache
    wanted = [columns(event) for event in events]
    assert max(w.max() for w in wanted) > 256
    for layer, stored in found.stored.items():
        mass = torch.cat([segment.mass for segment in stored.segments], 2)
        close(mass.double(), wanted[layer].gather(2, where(stored)), 1e-5)
    for i in range(1, 7):
        lens(tokens(1, 1, seed=i), past_key_values=found, use_cache=True)
        for layer, stored in found.stored.items():
            held = sum(segment.mass.sum(-1) for segment in stored.segments)
            gone = sum(entry.score.sum(-1) for entry in found.keeper.ledger if entry.layer == layer)
            close(held + gone, torch.full((1, 8), 400.0 + i))


def columns(event: AttentionEvent) -> torch.Tensor:
    """Column sums `[batch, head, key]` in fp64 of an event of a multi-head model, from its queries and keys."""
    scores = event.q.double() @ event.k.double().mT * event.scale
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(scores.shape[-1] - scores.shape[-2] + 1)
    return scores.masked_fill(later, -torch.inf).softmax(-1).sum(2)


def where(stored: Any) -> torch.Tensor:
    """Positions `[batch, head, token]` in storage order."""
    shape = stored.keys.shape[:2]
    return torch.cat([segment.at().expand(*shape, -1) for segment in stored.segments], 2).long()


def test_6_sinks_keep_their_true_scores() -> None:
    """Forcing them to infinity in a view of the scores would stay there, and end in what the ledger and caches tell."""
    ids, lens = tokens(length=40), interp.load(model("llama"))
    wanted = Reference(deep("llama"), ids, VARIANTS["code"](0.3, 5))
    later = tokens(length=6, seed=2)
    wanted.nll(later)
    stored = run(lens, POLICY, ids, later)["cache"].stored[2]
    at, mass = where(stored), torch.cat([segment.mass for segment in stored.segments], 2)
    assert mass.isfinite().all()
    for row, text in enumerate(wanted.texts):
        for h, head in enumerate(text.heads[2]):
            for sink in range(4):
                assert head[sink].position == sink
                close(mass[row, h][at[row, h] == sink], torch.tensor([head[sink].mass]))


@pytest.mark.parametrize("length", range(33, 45))
@pytest.mark.parametrize("recent_share", [0.25, 0.5, 0.75])
def test_7_a_layer_keeps_its_whole_budget(length: int, recent_share: float) -> None:
    """Heavy hitters and recent tokens rounded down one by one would lose up to two tokens together."""
    lens = interp.load(tiny("gpt2"))
    policy = D2O(budget=0.35, metric="uniform", skip=(), recent_share=recent_share, compress_at="prefill_end")
    with lens.apply(policy):
        lens(tokens(1, length), use_cache=True)
    assert set(lens.last_cache.report().kept) == {length * 35 // 100}


def test_8_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """Eight layers, as the release prints in layer 6."""
    lens = interp.load(deep("llama", layers=8))
    with lens.apply(POLICY):
        lens.generate(tokens(length=40), max_new_tokens=4)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_9_no_attention_map_is_ever_held(variant: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own SDPA reads the prompt, and nothing as large as one head's map is made on the way to scores and
    budgets; the release needs eager attention and all heads' maps."""
    length = 1500
    lens = interp.load(deep("llama", layers=4, max_position_embeddings=2048))
    assert lens.model.config._attn_implementation == "sdpa"
    monkeypatch.setattr(AttentionEvent, "pattern", None)
    with Largest() as largest, lens.apply(D2O(budget=0.1, variant=variant)):
        lens.generate(tokens(1, length), max_new_tokens=3)
    assert lens.last_cache.stored[2].kept < length / 4
    assert largest.elements < length**2
