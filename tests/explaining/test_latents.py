"""Questions about policies on latent attention: what is put back is what the cache stores, and heads share it."""

from __future__ import annotations

import pytest
import torch

import interp
from interp.explaining.case import Case
from interp.explaining.restoring import with_channels, with_tokens
from tests.interventions.live_cache import close
from tests.lens.many import RECENT, ids, lens_of
from tests.models import LATENT, shared

KINDS = ("deepseek_v3", "deepseek_v32", "kimi_linear")
pytestmark = [
    pytest.mark.skipif(not RECENT, reason="older releases of transformers cache keys and values of all heads"),
    pytest.mark.filterwarnings("ignore:.*have no attention and stay as they are"),
]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def made(kind: str) -> interp.Lens:
    """With an index, one by which no two tokens score alike: which of those is chosen, the length of a text decides."""
    return interp.load(shared(kind)) if kind in LATENT else lens_of(kind)


def case_of(kind: str, policy: interp.interventions.CachePolicy) -> Case:
    return Case.of(made(kind), policy, ids(24), ids(7, seed=5))


@pytest.mark.parametrize("kind", KINDS)
def test_with_every_token_back_the_model_goes_on_as_with_its_whole_cache(kind: str) -> None:
    case = case_of(kind, interp.SnapKV(budget=9, window=3))
    run, events = case.policy, case.full.events
    gone = [(i, 0, t) for i, at in run.evicted_at.items() for t in range(24) if int(at[0, t]) == 0]
    assert len(gone) == len(case.layers) * 15
    keys, values = ({i: getattr(event, part)[:, :, :24] for i, event in events.items()} for part in "kv")
    cache = with_tokens(run.rest, keys, values, [gone, []], {})
    logits = case.lens(case.fed.expand(2, -1), past_key_values=cache, use_cache=True)
    close(logits[0], case.full.logits, 1e-4)
    close(logits[1], run.logits, 1e-4)
    assert float((run.logits - case.full.logits).abs().max()) > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_with_every_channel_back_too(kind: str) -> None:
    case = case_of(kind, interp.ThinK(ratio=0.5, window=4, recent=4))
    run = case.policy
    gone = [
        (i, 0, channel)
        for i, stored in run.rest.stored.items()
        for channel in (~stored.kept_channels("keys")[0]).nonzero()[:, 0].tolist()
    ]
    assert len(gone) == len(case.layers) * 4
    cache = with_channels(run.rest, {i: event.k[:, :, :24] for i, event in case.full.events.items()}, [gone])
    close(case.lens(case.fed, past_key_values=cache, use_cache=True)[0], case.full.logits, 1e-4)
    assert float((run.logits - case.full.logits).abs().max()) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_missed_mass_is_the_models_own_attention_to_what_went(kind: str) -> None:
    policy = interp.SnapKV(budget=9, window=3)
    case, lens = case_of(kind, policy), made(kind)
    told = interp.explain(lens, policy, ids(24), ids(7, seed=5), ["missed_mass"])["missed_mass"]
    _, shown = lens.run_with_cache(case.seen, names_filter=lambda name: name.endswith("hook_pattern"))
    first = case.layers[0]
    for layer in case.layers:
        gone = case.policy.evicted_at[layer][0] == 0
        wanted = shown[f"blocks.{layer}.attn.hook_pattern"][0, :, 24:, gone].sum(-1)
        close(torch.from_numpy(told.missed_mass.sel(layer=layer).values), wanted)
    # what reaches the first layer is what reached it in the whole model, so the error of z is that of the policy's run
    z = case.full.z[first]
    error = (case.policy.z[first] - z).norm(dim=-1) / z.norm(dim=-1)
    close(torch.from_numpy(told.output_error.sel(layer=first).values), error.T, 1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_masks_of_channels_are_those_that_a_longer_prompt_would_get(kind: str) -> None:
    policy, lens = interp.ThinK(ratio=0.5, window=4, recent=4), made(kind)
    told = interp.explain(lens, policy, ids(24), ids(7, seed=5), ["masks"])["masks"]
    case = case_of(kind, policy)
    run = case.policy
    with lens.apply(policy):
        lens(case.seen, use_cache=True)
    for layer in case.layers:
        before, later = (cache.stored[layer].kept_channels("keys")[0] for cache in (run.rest, lens.last_cache))
        overlap = float((before & later).sum()) / float((before | later).sum())
        assert float(told.drift.sel(layer=layer)[0, -1]) == pytest.approx(overlap)
        assert torch.equal(torch.from_numpy(told.kept.sel(layer=layer).values[0]).bool(), before)
