"""Every attention edit that there is, of either stage, against its own definition and against itself.

A new edit is crossed with all this by being found. What only its author can know is in its own test.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import Any

import pytest
import torch
import transformers as hf

import interp
from interp import H2O, InterpError, RandomTokens, Recall, SnapKV, StreamingLLM, ThinK, UnsupportedModelError
from interp.interventions import AttentionEdit, LogitEdit, PatternEdit
from tests.interventions.by_definition import by_definition
from tests.interventions.edited_by_hand import check_observables, in_pieces, one_sentence
from tests.interventions.edits_found import EDITS, EXAMPLES, lens_for, seeing, text_for, with_places
from tests.interventions.live_cache import close, left_padded, name_of
from tests.models import NAMES, SHAPE, tiny, tokens

PADDING = 5
PIECES = (7, 4, 1, 1, 1)
LOOK = [(lambda name: name.endswith("hook_pattern"), lambda value, hook: None)]
KINDS = ("llama", "gemma2", "gpt_oss", "mistral")
"""Grouped queries; softcap and windows in some layers; learned sinks; a window in every layer."""
every_example = pytest.mark.parametrize("edit", EXAMPLES.values(), ids=EXAMPLES)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", EDITS)
def test_it_is_of_one_stage_and_has_a_setting_at_which_it_is_idle(name: str) -> None:
    cls = EDITS[name]
    assert issubclass(cls, LogitEdit) != issubclass(cls, PatternEdit)
    assert cls.idle_at
    assert not cls().idle
    assert replace(cls(), **cls.idle_at).idle


@pytest.mark.parametrize("name", NAMES)
@every_example
def test_every_phase_is_the_definition(name: str, edit: AttentionEdit) -> None:
    """A batch with padding, whole, in pieces with a cache, and in the open; some heads and layers, and all."""
    lens, (ids, mask) = lens_for(edit, name), left_padded(14, PADDING)
    real, ids = mask.bool(), text_for(edit, ids)
    for one in (edit, replace(edit, heads=(1, 6), layers=(0, 2))):
        wanted = by_definition(lens, one, ids, mask)
        with lens.apply(one):
            whole = lens(ids, attention_mask=mask)
            pieces = in_pieces(lens, ids, PIECES, mask)
            watched = lens.run_with_hooks(ids, attention_mask=mask, fwd_hooks=LOOK)
        size = wanted[real].abs().max()
        for found in (whole, pieces, watched):
            close(found[real] / size, wanted[real] / size)
        assert (lens(ids, attention_mask=mask) - wanted)[real].abs().max() > 0.001


@pytest.mark.parametrize("name", KINDS)
@every_example
def test_what_it_leaves_alone_keeps_every_bit(name: str, edit: AttentionEdit) -> None:
    lens, ids = lens_for(edit, name), text_for(edit, tokens())
    z = [f"blocks.{layer}.attn.hook_z" for layer in range(3)]
    logits, plain = lens.run_with_cache(ids, names_filter=z)
    with lens.apply(replace(edit, **edit.idle_at)):
        assert torch.equal(lens(ids), logits)
        assert torch.equal(lens.run_with_hooks(ids, fwd_hooks=[(z[0], lambda value, hook: None)]), logits)
        lens.generate(ids, max_new_tokens=2)
    with lens.apply(replace(edit, layers=1, heads=(3,))):
        _, found = lens.run_with_cache(ids, names_filter=z)
    assert torch.equal(found["z", 0], plain["z", 0])
    changed = (found["z", 1] != plain["z", 1]).any(-1).any(0).any(0)
    assert changed.nonzero().ravel().tolist() == [3]
    assert torch.equal(lens(ids), logits)  # and afterwards the model is as before


@pytest.mark.parametrize("name", KINDS)
@every_example
def test_hooks_and_observables_show_the_edited_attention(name: str, edit: AttentionEdit) -> None:
    """The pattern, and every number that the kernels give, against sums over the pattern of a run in the open."""
    lens, (ids, mask) = lens_for(edit, name), left_padded(14, PADDING)
    real, ids = mask.bool(), text_for(edit, ids)
    seen = ("attn_scores", "pattern", "z", "event", "column_mass", "row_entropy", "lse", "cached_v")
    names = [f"blocks.1.attn.hook_{point}" for point in seen]
    with lens.apply(replace(edit, layers=1)):
        _, cache = lens.run_with_cache(ids, attention_mask=mask, names_filter=names)
        _, fused = lens.run_with_cache(ids, attention_mask=mask, names_filter=names[2:])
    rows = real[:, None].expand(-1, 8, -1)
    wanted = cache["pattern", 1].masked_fill(~real[:, None, :, None], 0.0)
    close(fused["z", 1][real], cache["z", 1][real])
    check_observables(fused, 1, wanted, real)
    close(fused["lse", 1][rows], cache["attn_scores", 1].logsumexp(-1)[rows])
    event = fused["event", 1]
    if isinstance(edit, LogitEdit) and event.sinks is not None:
        sink = torch.sigmoid(event.sink_logits - event.lse)
        close(sink.expand(2, 8, 14)[rows], 1 - wanted.sum(-1)[rows])


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"prefill_chunk_size": 4}], ids=str)
@every_example
def test_generation_with_a_cache_is_that_without_one(name: str, how: dict[str, Any], edit: AttentionEdit) -> None:
    lens, (ids, mask) = lens_for(edit, name), left_padded(12, PADDING)
    ids = text_for(edit, ids)
    asked = {"max_new_tokens": 4, "eos_token_id": None, "attention_mask": mask}
    with lens.apply(edit):
        found = lens.generate(ids, **asked, **how)
        without = {name: value for name, value in how.items() if name != "prefill_chunk_size"}
        assert torch.equal(found, lens.generate(ids, **asked, **without, use_cache=False))


@pytest.mark.parametrize(
    ("build", "dtype", "tolerance"),
    [
        (lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SHAPE, num_key_value_heads=2)), torch.float64, 1e-9),
        (lambda: tiny("gemma2"), torch.float64, 1e-6),  # its softmax is in fp32 whatever the model's dtype is
        (lambda: tiny("gpt_oss"), torch.float32, 1e-4),  # its experts know no fp64
    ],
    ids=["llama", "gemma2", "gpt_oss"],
)
@every_example
def test_gradients_are_those_of_the_definition(
    build: Any, dtype: torch.dtype, tolerance: float, edit: AttentionEdit
) -> None:
    """Of all weights, learned sinks too, with and without the pattern in the open."""
    torch.manual_seed(0)
    model = build().to(dtype).eval()
    lens, ids = interp.load(seeing(model) if edit.reads_images else model), text_for(edit, tokens(length=12))

    def gradients(run: Any) -> list[torch.Tensor]:
        with torch.enable_grad():
            loss = run().square().mean()
            return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True))

    wanted = gradients(lambda: by_definition(lens, edit, ids))
    with lens.apply(edit):
        found = gradients(lambda: lens(ids))
        watched = gradients(lambda: lens.run_with_hooks(ids, fwd_hooks=LOOK))
    assert all(by is not None for by in wanted) or dtype == torch.float32
    for one, two, by in zip(found, watched, wanted, strict=True):
        if by is not None:
            assert by.abs().max() > 0
            for gradient in (one, two):
                close(gradient / by.abs().max(), by / by.abs().max(), tolerance)


STORED = [
    StreamingLLM(budget=12, sinks=3),
    ThinK(0.5, window=8, recent=4, granularity="query_head"),
    RandomTokens(budget=14) | ThinK(0.5, window=8, recent=4),
]


@pytest.mark.filterwarnings("ignore:.*sliding window")
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("policy", STORED, ids=name_of)
@every_example
def test_stored_tokens_are_edited_wherever_they_lie(name: str, policy: Any, edit: AttentionEdit) -> None:
    """Positions are those of the text, whatever the cache has dropped; packed or dense, with other tokens by head."""
    lens, (ids, mask) = lens_for(edit, name), left_padded(30, PADDING)
    ids, sizes, real = text_for(edit, ids), (22, 1, 3, 1, 3), mask.bool()
    wanted = by_definition(lens, edit, ids, mask, sizes, policy)
    with lens.apply(edit | policy):
        found = in_pieces(lens, ids, sizes, mask)
    size = wanted[real].abs().max()
    close(found[real] / size, wanted[real] / size)
    with lens.apply(policy | edit):
        assert torch.equal(in_pieces(lens, ids, sizes, mask)[real], found[real])


@pytest.mark.filterwarnings("ignore:.*sliding window")
@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
@pytest.mark.parametrize(
    "policy", [H2O(budget=12, sinks=1), SnapKV(budget=12, window=4), Recall(budget=12)], ids=name_of
)
@every_example
def test_policies_observe_the_edited_attention(name: str, policy: Any, edit: AttentionEdit) -> None:
    """What they keep and the account they keep of it, by the kernels and from the pattern in the open."""
    lens, (ids, mask) = lens_for(edit, name), left_padded(28, PADDING)
    ids, runs = text_for(edit, ids), []
    for hooks in ([], LOOK):
        with lens.apply(policy | edit), lens.hooks(fwd_hooks=hooks):
            logits = in_pieces(lens, ids, (22, 1, 1, 3, 1), mask)
        runs.append((logits[mask.bool()], lens.last_cache.stored))
    close(runs[0][0] / runs[0][0].abs().max(), runs[1][0] / runs[0][0].abs().max(), 1e-4)
    for layer, one in runs[0][1].items():
        other = runs[1][1][layer]
        places = [torch.cat([s.at().expand(s.keys.shape[:3]) for s in kept.segments], 2) for kept in (one, other)]
        assert torch.equal(places[0].sort(-1).values, places[1].sort(-1).values)
        if one.keeps_mass:
            mass = [torch.cat([s.mass for s in kept.segments], 2) for kept in (one, other)]
            close(mass[0].sort(-1).values, mass[1].sort(-1).values, 1e-4)


@pytest.mark.filterwarnings("ignore:.*changed nothing")
@every_example
def test_the_cache_remembers_what_it_read(edit: AttentionEdit) -> None:
    """Cropped, copied, reordered and repeated: each text takes its own along."""
    lens, ids = lens_for(edit, "llama"), text_for(edit, tokens(3, 16))
    with lens.apply(edit):
        wanted = lens(ids)
        lens(ids[:, :12], use_cache=True)
        cache = lens.last_cache
        lens(tokens(3, 2, seed=9), use_cache=True, past_key_values=cache)
        cache.crop(-2)
        copies = [copy.deepcopy(cache) for _ in range(3)]
        copies[0].reorder_cache(torch.tensor([2, 0, 1]))
        copies[1].batch_select_indices(torch.tensor([1]))
        copies[2].batch_repeat_interleave(2)
        for held, rows in zip([cache, *copies], ([0, 1, 2], [2, 0, 1], [1], [0, 0, 1, 1, 2, 2]), strict=True):
            for part in ids[rows, 12:].split(2, 1):
                found = lens(part, use_cache=True, past_key_values=held)
            close(found, wanted[rows, -2:], 1e-4)
    with lens.apply(edit | edit):
        lens(ids)
        with pytest.raises(InterpError, match="start a new one inside the block") as told:
            lens(ids[:, :1], use_cache=True, past_key_values=cache)
    one_sentence(told.value)


@pytest.mark.filterwarnings("ignore:.*changed nothing")
@every_example
def test_where_attention_is_not_ours_it_is_refused(edit: AttentionEdit) -> None:
    lens, ids = lens_for(edit, "llama", fresh=True), text_for(edit, tokens())
    layer = lens.anatomy.blocks[1].attention

    def biased(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"position_bias": torch.zeros(1, 8, 12, 12)}

    with layer.register_forward_pre_hook(biased, with_kwargs=True), lens.apply(edit):
        with pytest.raises(UnsupportedModelError, match=f"{edit.name} cannot act here: .* position_bias") as told:
            lens(ids)
        one_sentence(told.value)
        with pytest.raises(UnsupportedModelError, match="position_bias"):
            lens.run_with_hooks(ids, fwd_hooks=LOOK)
    layer.train()
    layer.attention_dropout = 0.1
    with lens.apply(edit), pytest.raises(UnsupportedModelError, match=f"{edit.name} does not go with .* dropout"):
        lens(ids)


@every_example
def test_what_it_names_and_the_model_lacks_is_told_before_it_runs(edit: AttentionEdit) -> None:
    lens = lens_for(edit, "llama")
    for asked, says in ({"layers": (0, 3)}, "layers 0 to 2, found 3"), ({"heads": (8,)}, "heads 0 to 7, found 8"):
        with pytest.raises(InterpError, match=f"{edit.name}: LlamaForCausalLM has {says}") as told:
            lens.apply(replace(edit, **asked)).__enter__()
        one_sentence(told.value)
    with pytest.warns(UserWarning, match=f"{edit.name}: the model did not run"), lens.apply(edit):
        pass


def test_all_of_them_at_once_are_one_after_the_other() -> None:
    """Logits first, then the pattern, each in their order, wherever the others stand between."""
    found = list(EXAMPLES.values())
    for name in KINDS:
        lens, (ids, mask) = interp.load(seeing(tiny(name))), left_padded(14, PADDING)
        ids = with_places(ids)
        for edits in (found[1:5], found[-4:], found[::-2][:4]):
            together = reduce(or_, edits)
            wanted = by_definition(lens, together, ids, mask)
            with lens.apply(together):
                got = in_pieces(lens, ids, PIECES, mask)
            size = wanted[mask.bool()].abs().max()
            close(got[mask.bool()] / size, wanted[mask.bool()] / size)
