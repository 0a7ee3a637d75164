"""The live cache under a policy, in everything that generation does with a cache."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers as hf

import interp
from interp import D2O, InterpError, Recall, ThinK
from tests.interventions.d2o_reference import deep
from tests.interventions.live_cache import Newest, close, left_padded, name_of, prefill
from tests.interventions.zero_fill import Plain, plain
from tests.models import shared, tokens

POLICY = ThinK(ratio=0.5, window=8, recent=6, sinks=2)


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


class Zeroed(hf.DynamicCache):
    """transformers' cache that overwrites what ThinK prunes with zeros, once the prompt was read."""

    def __init__(self, model: Any, pruned: dict[int, torch.Tensor], old: slice) -> None:
        super().__init__(config=model.config)
        self.pruned, self.old, self.reordered = pruned, old, 0

    def update(self, keys: torch.Tensor, values: torch.Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
        first = self.get_seq_length(layer) == 0
        out = super().update(keys, values, layer, *args, **kwargs)
        if first:
            self.layers[layer].keys = zeroed = self.layers[layer].keys.clone()
            gone = self.pruned[layer].repeat_interleave(len(keys) // len(self.pruned[layer]), 0)
            zeroed[:, :, self.old] = zeroed[:, :, self.old].masked_fill(gone[:, :, None], 0.0)
        return out

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self.reordered += int(not torch.equal(beam_idx, torch.arange(len(beam_idx))))
        super().reorder_cache(beam_idx)


def zeroed(name: str, ids: torch.Tensor) -> Zeroed:
    pruned = plain(name, ids).prune([0, 1, 2], 4, 8, 6, 2)
    return Zeroed(shared(name), pruned, slice(2, ids.shape[1] - 6))


GENERATIONS: dict[str, dict[str, Any]] = {
    "greedy": {"output_logits": True},
    "sampling": {"do_sample": True, "output_logits": True},
    "beams": {"num_beams": 3, "output_scores": True, "early_stopping": False},
    "several returned": {"num_beams": 4, "num_return_sequences": 2, "output_scores": True},
    "sampled beams": {"num_beams": 3, "do_sample": True, "output_scores": True},
}


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi"])
@pytest.mark.parametrize("kind", GENERATIONS)
def test_generation_is_that_of_a_zero_filled_cache(name: str, kind: str) -> None:
    ids, lens = tokens(length=30), interp.load(shared(name))
    asked = {"max_new_tokens": 12, "min_new_tokens": 12, "return_dict_in_generate": True, **GENERATIONS[kind]}
    theirs = zeroed(name, ids)
    torch.manual_seed(0)
    mask = torch.ones_like(ids)
    wanted = shared(name).generate(ids, attention_mask=mask, past_key_values=theirs, **{"do_sample": False} | asked)
    torch.manual_seed(0)
    with lens.apply(POLICY):
        found = lens.generate(ids, **asked)
    assert torch.equal(found.sequences, wanted.sequences)
    field = "scores" if "output_scores" in asked else "logits"
    for one, other in zip(found[field], wanted[field], strict=True):
        close(one, other)
    if "num_beams" in asked:
        assert theirs.reordered > 0
        close(found.sequences_scores, wanted.sequences_scores)
    own = shared(name).generate(ids, attention_mask=mask, **{"do_sample": False} | asked)
    assert (found[field][-1] - own[field][-1]).abs().nan_to_num(0).max() > 1e-3  # and pruning does something


@pytest.mark.parametrize("policy", [POLICY, Newest(10), Newest(10) | ThinK(0.5, 8, 4)], ids=name_of)
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("chunk", [7, 16, 29])
def test_a_chunked_prompt_is_the_whole_prompt(policy: Any, padded: bool, chunk: int) -> None:
    lens = interp.load(shared("llama"))
    ids, mask = left_padded() if padded else (tokens(length=30), None)
    asked = {"attention_mask": mask, "max_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True}
    with lens.apply(policy):
        whole = lens.generate(ids, **asked)
        one = lens.last_cache
        chunked = lens.generate(ids, prefill_chunk_size=chunk, **asked)
        other = lens.last_cache
    assert torch.equal(whole.sequences, chunked.sequences)
    for a, b in zip(whole.logits, chunked.logits, strict=True):
        close(a, b)
    assert one.nbytes() == other.nbytes()
    for layer in range(3):
        for a, b in zip(one.stored[layer].segments, other.stored[layer].segments, strict=True):
            assert (a.channels is None) == (b.channels is None)
            assert a.channels is None or torch.equal(a.channels, b.channels)
            close(a.keys, b.keys)


def test_compensation_uses_the_queries_of_every_chunk() -> None:
    lens, ids = interp.load(shared("llama")), tokens(length=30)
    policy = ThinK(0.5, 8, 6, compensate=True, selector="gram", value_ratio=0.3)
    with lens.apply(policy):
        lens.generate(ids, max_new_tokens=1)
        whole = lens.last_cache
        lens.generate(ids, max_new_tokens=1, prefill_chunk_size=4)
    for layer in range(3):
        one, other = whole.stored[layer].segments[0], lens.last_cache.stored[layer].segments[0]
        close(one.keys, other.keys)
        assert torch.equal(one.value_channels, other.value_channels)


@pytest.mark.parametrize("inside", [True, False])
def test_another_turn_goes_on_with_the_cache(inside: bool) -> None:
    """Two turns of generation against the plain model fed the same tokens; the second inside the block or after it."""
    lens, ids, more = interp.load(shared("qwen3")), tokens(length=30), tokens(length=5, seed=3)
    wanted = plain("qwen3", ids)
    wanted.prune([0, 1, 2], 8, 8, 6, 2)
    asked = {"min_new_tokens": 4, "max_new_tokens": 4, "return_dict_in_generate": True, "output_logits": True}

    def second(first: torch.Tensor, cache: Any) -> Any:
        return lens.generate(torch.cat([first, more], 1), past_key_values=cache, **asked)

    with lens.apply(POLICY):
        first = lens.generate(ids, **asked)
        cache = lens.last_cache
        then = second(first.sequences, cache) if inside else None
    then = then or second(first.sequences, cache)
    assert lens.last_cache is cache
    logits = wanted.step(then.sequences[:, 30:-1])
    close(torch.stack(first.logits, 1)[:, 1:], logits[:, :3])
    close(torch.stack(then.logits, 1), logits[:, 8:])
    assert (cache.report().tokens == 30 + 4 + 5 + 3).all()


@pytest.mark.parametrize("policy", [POLICY, Newest(10)], ids=name_of)
def test_crop_forgets_the_newest_tokens(policy: Any) -> None:
    lens, ids, more = interp.load(shared("llama")), tokens(length=30), tokens(length=5, seed=3)
    cache, other = prefill(lens, policy, ids), prefill(lens, policy, ids)
    lens(more, past_key_values=cache, use_cache=True)
    lens(more[:, :2], past_key_values=other, use_cache=True)
    cache.crop(-1)
    cache.crop(32)  # the first 32 of the text
    cache.crop(40)  # nothing to forget
    assert cache.get_seq_length() == 32
    assert cache.nbytes() == other.nbytes()
    again = tokens(length=3, seed=4)
    close(lens(again, past_key_values=cache, use_cache=True), lens(again, past_key_values=other, use_cache=True), 1e-6)


@pytest.mark.parametrize("policy", [POLICY, ThinK(0.5, 8, 0), Newest(10)], ids=name_of)
def test_crop_back_to_the_prompt(policy: Any) -> None:
    """transformers crops by a negative number of tokens, and by none at all."""
    lens, ids, more = interp.load(shared("llama")), tokens(length=30), tokens(length=3, seed=3)
    cache = prefill(lens, policy, ids)
    cache.crop(0)
    first = lens(more, past_key_values=cache, use_cache=True)
    cache.crop(-3)
    assert cache.get_seq_length() == 30
    assert torch.equal(lens(more, past_key_values=cache, use_cache=True), first)


def test_assisted_generation_is_refused() -> None:
    """Its first pass reads guessed tokens together with the prompt, so no policy can tell where the prompt ends."""
    lens, ids = interp.load(shared("llama")), tokens(batch=1, length=15).repeat(1, 2)
    with lens.apply(POLICY):
        lens.generate(ids, max_new_tokens=2)
        for asked in ({"prompt_lookup_num_tokens": 4}, {"assistant_model": shared("llama")}):
            with pytest.raises(InterpError, match="assist"):
                lens.generate(ids, max_new_tokens=12, **asked)


@pytest.mark.parametrize("policy", [POLICY, Newest(10)], ids=name_of)
def test_crop_refuses_what_was_compressed_and_stays_whole(policy: Any) -> None:
    lens, ids = interp.load(shared("llama")), tokens(length=30)
    cache = prefill(lens, policy, ids)
    before = cache.nbytes()
    for tokens_left in (-30, 5):
        with pytest.raises(InterpError, match="does not come back"):
            cache.crop(tokens_left)
    assert (cache.nbytes(), cache.get_seq_length()) == (before, 30)


def test_a_refused_crop_cuts_no_layer() -> None:
    """D2O as released leaves the first two layers and the last alone: these could go back further than the others."""
    lens, ids, later = interp.load(deep("llama")), tokens(length=40), tokens(length=3, seed=3)
    caches = [prefill(lens, D2O(budget=0.2, compress_at="prefill_end"), ids) for _ in range(2)]
    for cache in caches:
        lens(later, past_key_values=cache, use_cache=True)
    with pytest.raises(InterpError, match="does not come back"):
        caches[0].crop(-30)
    assert [layer.seen for layer in caches[0].layers] == [43] * 5
    assert (caches[0].report() == caches[1].report()).all(axis=None)
    one, other = (lens(later, past_key_values=cache, use_cache=True) for cache in caches)
    assert torch.equal(one, other)


@pytest.mark.filterwarnings("ignore:.*sliding window and stay as they are")
def test_a_crop_that_a_sliding_layer_refuses_cuts_no_layer() -> None:
    """transformers' own layers refuse as soon as they have forgotten what their window has left behind."""
    lens, ids = interp.load(shared("gemma3")), tokens(length=30)
    cache = prefill(lens, POLICY, ids)
    lens(tokens(length=3, seed=3), past_key_values=cache, use_cache=True)
    cache.layers.reverse()
    cache.layers.insert(0, cache.layers.pop(1))  # the layer that could crop comes first
    with pytest.raises(InterpError, match="the window of layer 1 has moved on"):
        cache.crop(-2)
    assert [layer.get_seq_length() for layer in cache.layers] == [33] * 3


@pytest.mark.filterwarnings("ignore:d2o dropped nothing.*ended before it acts")
def test_a_prompt_is_not_cropped_before_it_was_compressed() -> None:
    lens, ids = interp.load(deep("llama")), tokens(length=40)
    cache = prefill(lens, D2O(budget=0.2, compress_at="first_decode"), ids)
    for asked in (-1, 39):
        with pytest.raises(InterpError, match="yet to compress the prompt of 40"):
            cache.crop(asked)
    cache.crop(40)
    assert cache.get_seq_length() == 40


@pytest.mark.parametrize(
    "policy",
    [POLICY, ThinK(0.5, 8, 0), Newest(10), Newest(10) | ThinK(0.5, 8, 4)],
    ids=name_of,
)
@pytest.mark.parametrize("new", [1, 3])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_code_that_is_not_ours_gets_a_dense_view(name: str, policy: Any, new: int) -> None:
    """The bare model called with our cache: transformers' masks and attention, our tokens."""
    lens, ids, later = interp.load(shared(name)), tokens(length=30), tokens(length=2 * new, seed=3)
    ours, bare = prefill(lens, policy, ids), prefill(lens, policy, ids)
    for part in later.split(new, 1):
        found = shared(name)(part, past_key_values=bare, use_cache=True).logits
        close(found, lens(part, past_key_values=ours, use_cache=True))


@pytest.mark.parametrize("new", [1, 3])
def test_keys_of_every_query_head_are_no_view_for_a_grouped_model(new: int) -> None:
    """Its attention would repeat them once more; where there are no groups they are the model's own."""
    policy, ids, later = ThinK(0.5, 8, 6, granularity="query_head"), tokens(length=30), tokens(length=new, seed=3)
    cache = prefill(interp.load(shared("llama")), policy, ids)
    with pytest.raises(InterpError, match="query head"):
        shared("llama")(later, past_key_values=cache, use_cache=True)
    lens = interp.load(shared("gpt2"))
    ours, bare = (prefill(lens, policy, ids) for _ in range(2))
    found = shared("gpt2")(later, past_key_values=bare, use_cache=True).logits
    close(found, lens(later, past_key_values=ours, use_cache=True))


@pytest.mark.parametrize("new", [1, 3])
def test_a_bias_of_stored_tokens_is_not_dropped_for_a_dense_view(new: int) -> None:
    cache = prefill(interp.load(shared("llama")), Recall(budget=0.5), tokens(length=30))
    held = cache.nbytes()
    with pytest.raises(InterpError, match="with a bias; continue through it"):
        shared("llama")(tokens(length=new, seed=3), past_key_values=cache, use_cache=True)
    assert (cache.nbytes(), cache.get_seq_length()) == (held, 30)


def test_layers_of_different_length_have_no_mask_in_common() -> None:
    """One token needs no mask and goes on as through the Lens; several, or padding, would meet one of a wrong size."""
    lens, policy = interp.load(deep("llama")), D2O(budget=0.3, compress_at="prefill_end")
    ids, mask = left_padded()
    ours, bare = (prefill(lens, policy, ids) for _ in range(2))
    one, several = tokens(length=1, seed=3), tokens(length=3, seed=4)
    found = lens.model(one, past_key_values=bare, use_cache=True).logits
    close(found, lens(one, past_key_values=ours, use_cache=True))
    with pytest.raises(InterpError, match="tokens by layer, which no one mask fits"):
        lens.model(several, past_key_values=bare, use_cache=True)
    assert bare.get_seq_length() == 31
    padded = prefill(lens, policy, ids, attention_mask=mask)
    mask = torch.cat([mask, torch.ones_like(one)], 1)
    with pytest.raises(InterpError, match=r"tokens by layer, which no one mask fits|padding where a mask expects"):
        lens.model(one, attention_mask=mask, past_key_values=padded, use_cache=True)


@pytest.mark.parametrize("policy", [POLICY, Newest(25)], ids=name_of)
def test_the_dense_view_of_a_padded_batch(policy: Any) -> None:
    lens, later = interp.load(shared("llama")), tokens(length=2, seed=3)
    ids, mask = left_padded()
    ours, bare = (prefill(lens, policy, ids, attention_mask=mask) for _ in range(2))
    mask = torch.cat([mask, torch.ones_like(later)], 1)
    at = (mask.cumsum(-1) - 1)[:, 30:]
    found = shared("llama")(later, attention_mask=mask, position_ids=at, past_key_values=bare, use_cache=True).logits
    close(found, lens(later, attention_mask=mask, past_key_values=ours, use_cache=True))


@pytest.mark.parametrize("policy", [POLICY, Newest(10), Newest(10) | ThinK(0.5, 8, 4)], ids=name_of)
def test_positions_go_on_from_the_text_and_not_from_the_cache(policy: Any) -> None:
    lens, ids, seen = interp.load(shared("llama")), tokens(length=30), []
    hook = shared("llama").model.rotary_emb.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args[1:] or (kwargs["position_ids"],))[0]), with_kwargs=True
    )
    try:
        with lens.apply(policy):
            lens.generate(ids, min_new_tokens=5, max_new_tokens=5)
    finally:
        hook.remove()
    assert [at[0].tolist() for at in seen] == [list(range(30)), [30], [31], [32], [33]]


def test_evicted_tokens_are_gone_as_from_a_cut_cache() -> None:
    """transformers' cache cut by hand to the newest tokens, true positions given by hand."""
    lens, ids, later = interp.load(shared("llama")), tokens(length=30), tokens(length=4, seed=3)
    wanted = plain("llama", ids).cache
    for layer in wanted.layers:
        layer.keys, layer.values = layer.keys[:, :, 20:], layer.values[:, :, 20:]
    cache = prefill(lens, Newest(10), ids)
    assert cache.nbytes() == sum(2 * 4 * layer.keys.numel() for layer in wanted.layers)
    for i, new in enumerate(later.split(1, 1)):
        own = shared("llama")(
            new, position_ids=torch.full((2, 1), 30 + i), past_key_values=wanted, use_cache=True
        ).logits
        close(lens(new, past_key_values=cache, use_cache=True), own)
    assert (cache.report()[["tokens", "kept"]] == [34, 14]).all(axis=None)


def test_report_sums_to_the_bytes_held() -> None:
    lens = interp.load(shared("llama"))
    ids, mask = left_padded()
    policy = Newest(20) | ThinK(0.5, 8, 4, 2, value_ratio=0.3)
    cache = prefill(lens, policy, ids, attention_mask=mask)
    report = cache.report()
    parts = report.drop(columns=["tokens", "kept", "bytes"])
    assert {"keys", "values", "channels", "value_channels", "positions"} == set(parts)
    assert (parts.sum(axis=1) == report.bytes).all()
    assert report.bytes.sum() == cache.nbytes()
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for _, _, t in cache.parts()}
    assert cache.nbytes() == sum(held.values()) == sum(t.numel() * t.element_size() for _, _, t in cache.parts())


def test_a_copy_of_a_cache_goes_its_own_way() -> None:
    """copy.deepcopy is transformers' way to reuse a prompt's cache."""
    lens, ids, later = interp.load(shared("llama")), tokens(length=30), tokens(length=2, seed=3)
    cache = prefill(lens, POLICY, ids)
    other = copy.deepcopy(cache)
    wanted = lens(later, past_key_values=cache, use_cache=True)
    assert other.get_seq_length() == 30
    close(lens(later, past_key_values=other, use_cache=True), wanted)
    assert lens.generate(ids[:, :5], max_new_tokens=1).shape == (2, 6)


def test_a_reset_cache_compresses_its_next_prompt() -> None:
    lens, ids = interp.load(shared("llama")), tokens(length=30, seed=5)
    with lens.apply(POLICY):
        lens(tokens(length=20), use_cache=True)
        cache = lens.last_cache
        cache.reset()
        lens(ids, past_key_values=cache, use_cache=True)
        lens(ids, use_cache=True)
        fresh = lens.last_cache
    assert cache.nbytes() == fresh.nbytes()
    assert torch.equal(cache.stored[1].segments[0].channels, fresh.stored[1].segments[0].channels)


def test_rows_of_a_batch_can_be_taken_and_repeated() -> None:
    lens, later = interp.load(shared("llama")), tokens(length=2, seed=3)
    ids, mask = left_padded()
    cache = prefill(lens, POLICY, ids, attention_mask=mask)
    whole = torch.cat([mask, torch.ones_like(later)], 1)
    cache.batch_select_indices(torch.tensor([1]))
    cache.batch_repeat_interleave(3)
    found = lens(later[1:].repeat(3, 1), attention_mask=whole[1:].repeat(3, 1), past_key_values=cache, use_cache=True)
    alone = prefill(lens, POLICY, ids[1:, 11:])
    close(found, lens(later[1:], past_key_values=alone, use_cache=True).expand(3, -1, -1))
    assert Plain.reads(shared("llama"), ids[1:, 11:]).cache.get_seq_length() + 2 == alone.get_seq_length()
