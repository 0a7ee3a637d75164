"""Models that mix attention with something else: their depth, their points, edits by hand, policies and probes."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import interp
from benchmarks.coverage.build import enliven, small_config
from interp.report import write_report
from tests.lens.many import by_hand, ids, kept, lens_of, logits_with, model_of

Tensor = torch.Tensor
HYBRIDS = ("qwen3_next", "granitemoehybrid", "nemotron_h", "lfm2", "jamba", "bamba", "zamba", "zamba2", "minimax")
ATTENTION = ("full_attention", "hybrid")
KNOWN = HYBRIDS[:-1]
"""Hybrids whose mixers were found: MiniMax's blocks add up multiples of both sides."""


def config_kinds(lens: interp.Lens) -> list[str]:
    config = lens.model.config
    return list(getattr(config, "layer_types", None) or config.layers_block_type)


@pytest.mark.parametrize("kind", [*HYBRIDS, "falcon_h1"])
def test_layers_are_numbered_by_depth(kind: str) -> None:
    lens = lens_of(kind)
    kinds = config_kinds(lens)
    attends = tuple(i for i, what in enumerate(kinds) if what in ATTENTION)
    assert lens.cfg.n_layers == len(kinds) == len(lens.blocks)
    assert lens.cfg.attention_layers == attends
    assert [what == "none" for what in lens.cfg.attn_types] == [i not in attends for i in range(len(kinds))]
    for i in range(len(kinds)):
        assert (f"blocks.{i}.attn.hook_z" in lens.hook_dict) == (i in attends)


@pytest.mark.parametrize("kind", KNOWN)
def test_a_block_without_attention_has_a_mixer(kind: str) -> None:
    lens = lens_of(kind)
    other = next(i for i in range(lens.cfg.n_layers) if i not in lens.cfg.attention_layers)
    own = lens.cfg.attention_layers[0]
    assert {f"blocks.{other}.hook_mixer_out", f"blocks.{own}.hook_attn_out"} <= set(lens.hook_dict)
    assert not {f"blocks.{own}.hook_mixer_out", f"blocks.{other}.hook_attn_out"} & set(lens.hook_dict)
    assert lens.anatomy.blocks[other].mixer != "attention"
    with pytest.raises(interp.UnknownNameError, match="hook_mixer_out"):
        lens.run_with_cache(ids(), names_filter=f"blocks.{other}.hook_attn_out")


def test_one_writer_blocks_say_that_they_have_no_mlp() -> None:
    lens = lens_of("nemotron_h")
    with pytest.raises(interp.UnknownNameError, match="has NemotronHMamba2Mixer and no MLP"):
        lens.run_with_cache(ids(), names_filter="blocks.0.hook_mlp_out")
    assert not lens.absent  # nothing is missing: such a block has none
    assert lens.anatomy.additive


def test_what_is_unknown_says_why() -> None:
    lens = lens_of("falcon_h1")
    assert not lens.anatomy.additive
    with pytest.raises(interp.UnknownNameError, match="what attention adds to the residual stream is unknown"):
        lens.run_with_cache(ids(), names_filter="blocks.0.hook_attn_out")


@pytest.mark.parametrize("kind", KNOWN)
def test_the_residual_stream_adds_up(kind: str) -> None:
    lens = lens_of(kind)
    cache = kept(lens, "resid_pre", "attn_out", "mixer_out", "resid_mid", "mlp_out", "resid_post")
    for i in range(lens.cfg.n_layers):
        mixed = cache.get(f"blocks.{i}.hook_attn_out", cache.get(f"blocks.{i}.hook_mixer_out"))
        made = cache[f"blocks.{i}.hook_resid_pre"] + mixed
        if f"blocks.{i}.hook_mlp_out" in cache:
            torch.testing.assert_close(made, cache[f"blocks.{i}.hook_resid_mid"])
            made = made + cache[f"blocks.{i}.hook_mlp_out"]
        torch.testing.assert_close(made, cache[f"blocks.{i}.hook_resid_post"], rtol=1e-4, atol=1e-4)
        if i:
            assert torch.equal(cache[f"blocks.{i}.hook_resid_pre"], cache[f"blocks.{i - 1}.hook_resid_post"])
    last = cache[f"blocks.{lens.cfg.n_layers - 1}.hook_resid_post"]
    torch.testing.assert_close(lens.unembed(lens.normalized(last)), lens(ids()), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("kind", "layer", "module"), [
    ("qwen3_next", 0, "model.layers.0.linear_attn"),
    ("granitemoehybrid", 2, "model.layers.2.mamba"),
    ("nemotron_h", 1, "model.layers.1.mixer"),
    ("lfm2", 0, "model.layers.0.conv"),
    ("jamba", 2, "model.layers.2.mamba"),
    ("bamba", 0, "model.layers.0.mamba"),
    ("zamba2", 2, "model.layers.2.mamba"),
])  # fmt: skip
def test_edits_of_a_mixer_are_what_they_are_by_hand(kind: str, layer: int, module: str) -> None:
    lens = lens_of(kind)
    edited = logits_with(lens, f"blocks.{layer}.hook_mixer_out", lambda x, hook: 0.5 * x)
    assert torch.equal(edited, by_hand(lens, module, lambda x: 0.5 * x))


def test_a_scaled_mixer_is_seen_as_it_is_added() -> None:
    """Granite multiplies what every part adds: the point sees the multiple, and an edit replaces it."""
    model_of("granitemoehybrid")  # skips where there is none
    config = small_config("causal", "granitemoehybrid")
    config.residual_multiplier = 0.25
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    enliven(model)
    lens = interp.load(model)
    assert lens.cfg.residual_scale == pytest.approx(0.25)
    edited = logits_with(lens, "blocks.0.hook_mixer_out", lambda x, hook: x + 0.1)
    by = by_hand(lens, "model.layers.0.mamba", lambda x: x + 0.4)
    torch.testing.assert_close(edited, by, rtol=1e-4, atol=1e-4)


def test_edits_of_gated_heads_are_what_the_output_projection_reads() -> None:
    lens = lens_of("qwen3_next")
    layer, heads = lens.cfg.attention_layers[0], lens.cfg.n_heads

    def without_head(x: Tensor) -> Tensor:
        x = x.unflatten(-1, (heads, -1)).clone()
        x[:, :, 1] = 0
        return x.flatten(-2)

    def edit(z: Tensor, hook: object) -> Tensor:
        z = z.clone()
        z[:, :, 1] = 0
        return z

    module = f"model.layers.{layer}.self_attn.o_proj"
    edited = logits_with(lens, f"blocks.{layer}.attn.hook_gated_z", edit)
    assert torch.equal(edited, by_hand(lens, module, without_head, reads=True))
    assert torch.equal(logits_with(lens, f"blocks.{layer}.attn.hook_z", edit), edited)  # a gate leaves nothing at 0
    cache = kept(lens, "hook_z", "hook_gated_z", "hook_attn_out")
    z, gated = (cache[f"blocks.{layer}.attn.{name}"] for name in ("hook_z", "hook_gated_z"))
    assert z.shape == gated.shape
    assert bool((gated.abs() <= z.abs()).all())
    parts = lens.head_contributions(layer, gated)
    torch.testing.assert_close(parts.sum(0), cache[f"blocks.{layer}.hook_attn_out"][0, -1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["granitemoehybrid", "gemma4_text"])
def test_a_sum_of_two_is_edited_by_its_difference(kind: str) -> None:
    """A mixture of experts and a shared MLP, an MLP and a per-layer embedding: the point is both, and an edit moves
    what the block hands on."""
    lens = lens_of(kind)
    assert lens.anatomy.blocks[1].writers.rest
    assert torch.equal(logits_with(lens, "blocks.1.hook_mlp_out", lambda x, hook: None), lens(ids()))
    edited = logits_with(lens, "blocks.1.hook_mlp_out", lambda x, hook: x + 0.5)
    cache = kept(lens, "hook_resid_mid", "hook_resid_post")
    whole = cache["blocks.1.hook_resid_post"] - cache["blocks.1.hook_resid_mid"]
    torch.testing.assert_close(kept(lens, "1.hook_mlp_out")["blocks.1.hook_mlp_out"], whole)
    torch.testing.assert_close(edited, by_hand(lens, "model.layers.1", lambda x: x + 0.5), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [*KNOWN, "falcon_h1"])
def test_policies_act_on_attention_layers_only(kind: str) -> None:
    lens, prompt = lens_of(kind), ids(24)
    with lens.apply(interp.SnapKV(budget=8, window=4)):
        out = lens.generate(prompt, max_new_tokens=3, min_new_tokens=3)
    cache = lens.last_cache
    assert tuple(cache.stored) == lens.cfg.full_attention_layers == lens.cfg.attention_layers
    assert {layer.kept for layer in cache.stored.values()} == {8 + 2}  # two of the three are stored by now
    report = cache.report()
    recurrent = [i for i in report.index if i not in cache.stored]
    assert (report.loc[recurrent, "kept"] == 0).all()
    assert torch.equal(out[:, :25], lens.generate(prompt, max_new_tokens=1))


@pytest.mark.parametrize("kind", ["qwen3_next", "lfm2", "jamba", "falcon_h1", "zamba2"])
def test_recurrent_states_are_reordered_with_the_beams(kind: str) -> None:
    lens, prompt = lens_of(kind), ids(12)
    told = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": 3}
    bare = lens.model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, **told)
    assert torch.equal(lens.generate(prompt, **told), bare)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # keeping all drops nothing, which is said
        with lens.apply(interp.SnapKV(budget=64, window=4)):
            assert torch.equal(lens.generate(prompt, **told), bare)


@pytest.mark.parametrize("kind", ["qwen3_next", "lfm2", "jamba", "falcon_h1", "zamba2"])
@torch.no_grad()
def test_a_fork_goes_on_by_itself(kind: str) -> None:
    lens, text = lens_of(kind), ids(12)
    lens(text[:, :10], use_cache=True)
    cache = lens.last_cache
    fork = cache.fork()
    for token in (10, 11):  # the fork reads something else
        lens(torch.tensor([[7 * token]]), past_key_values=fork, use_cache=True)
    own = lens.model(text[:, :10], use_cache=True).past_key_values
    for i in (10, 11):
        step = lens(text[:, i : i + 1], past_key_values=cache, use_cache=True)
        assert torch.equal(step, lens.model(text[:, i : i + 1], past_key_values=own, use_cache=True).logits)
    with pytest.raises(interp.InterpError, match="recurrent state, which has no past"):
        cache.crop(5)


def test_a_cache_of_the_models_own_is_left_to_it() -> None:
    lens, prompt = lens_of("minimax"), ids(12)
    assert lens.anatomy.own_cache
    bare = lens.model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=4, do_sample=False)
    seen: list[int] = []
    with lens.hooks(fwd_hooks=[("blocks.0.attn.hook_cached_k", lambda k, hook: seen.append(k.shape[1]))]):
        assert torch.equal(lens.generate(prompt, max_new_tokens=4), bare)
    assert seen == [12, 13, 14, 15]
    with pytest.raises(interp.InterpError, match="no layer whose cache"), lens.apply(interp.SnapKV()):
        pass
    with lens.apply(interp.KnockOut(keys=0)):
        assert not torch.equal(lens(prompt), lens.model(prompt, use_cache=False).logits)
        with pytest.raises(interp.InterpError, match="keeps a cache of its own"):
            lens.generate(prompt, max_new_tokens=2)


@pytest.mark.parametrize("kind", ["qwen3_next", "nemotron_h", "zamba2", "falcon_h1"])
def test_probes_name_layers_by_depth(kind: str) -> None:
    lens = lens_of(kind)
    results = interp.probe(lens, ids(30)[0])
    for name in ("text_sinks", "attention_rank", "channel_imbalance"):
        assert results[name]["layer"].values.tolist() == list(lens.cfg.attention_layers), name
    assert results["logit_lens"]["layer"].values.tolist() == list(range(lens.cfg.n_layers))


@pytest.mark.parametrize("kind", KNOWN)
def test_attribution_with_mixers_adds_up(kind: str) -> None:
    lens = lens_of(kind)
    ds = interp.probe(lens, ids(30)[0], "logit_lens")["logit_lens"]
    assert abs(ds.attrs["unexplained"]) < 1e-3
    mixed, attended = ds["mixer_attribution"].values, ds["attention_attribution"].values
    attends = np.isin(np.arange(lens.cfg.n_layers), lens.cfg.attention_layers)
    assert (np.isfinite(mixed) == ~attends).all()
    assert (np.isfinite(attended) == attends).all()
    heads = ds["head_attribution"].values
    assert np.isnan(heads[~attends]).all()


def test_shares_that_do_not_add_up_are_not_given() -> None:
    ds = interp.probe(lens_of("falcon_h1"), ids(30)[0], "logit_lens")["logit_lens"]
    assert np.isnan(ds.attrs["unexplained"])
    assert np.isnan(ds["attention_attribution"]).all()
    assert np.isfinite(ds["lens_probability"]).all()


@pytest.mark.parametrize("kind", ["qwen3_next", "nemotron_h"])
def test_a_report_on_a_hybrid(kind: str, tmp_path: Path) -> None:
    text = " ".join(f"w{(7 * i) % 124 + 4}" for i in range(40))
    made = tmp_path / "report.html"
    lens = lens_of(kind)
    write_report(interp.probe(lens, text), {"model": lens.cfg.model_name}, made)
    page = made.read_text(encoding="utf-8")
    assert "mixer" in page
    assert "logit_lens" in page
