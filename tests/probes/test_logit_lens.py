"""Logit lens and direct attribution on tiny models of real architectures, against the models' own logits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp.probes.logit_lens import LogitLens
from tests.models import shared, tokenizer
from tests.probes.schema import check_result

TEXT = " ".join(f"w{(7 * i) % 124 + 4}" for i in range(80))
# RMSNorm and LayerNorm with bias, post-norms, scaled embeddings and branches, a final softcap, learned positions,
# parallel blocks, mixtures of experts with learned sinks, and logit scaling
KINDS = ("llama", "gpt2", "gemma2", "gemma3", "olmo2", "granite", "gpt_neox", "phi", "cohere", "gpt_oss")


def read(kind: str) -> tuple[xr.Dataset, torch.Tensor]:
    """The probe's result and the model's own logits at the last 64 positions."""
    lens = interp.load(shared(kind), tokenizer=tokenizer())
    ds = interp.probe(lens, TEXT, "logit_lens")["logit_lens"]
    with torch.no_grad():
        return ds, shared(kind)(lens.to_tokens(TEXT)).logits[0, -64:]


def parts(ds: xr.Dataset) -> float:
    layers = ds["attention_attribution"].sum() + ds["mlp_attribution"].sum()
    return float(ds["embed_attribution"] + layers + ds["bias_attribution"])


@pytest.mark.parametrize("kind", KINDS)
def test_contributions_sum_to_the_logit_difference(kind: str) -> None:
    ds, logits = read(kind)
    cap = getattr(shared(kind).config, "final_logit_softcapping", None)
    linear = logits if cap is None else cap * torch.atanh(logits.double() / cap)
    top, runner_up = linear[-1].topk(2).indices.tolist()
    difference = float(linear[-1, top] - linear[-1, runner_up])
    assert (ds.attrs["top_token_id"], ds.attrs["runner_up_id"]) == (top, runner_up)
    assert ds.attrs["logit_difference"] == pytest.approx(difference, rel=1e-3, abs=1e-3)
    assert parts(ds) == pytest.approx(difference, rel=1e-3, abs=2e-3)
    assert abs(ds.attrs["unexplained"]) < 1e-3


@pytest.mark.parametrize("kind", ["llama", "gemma2", "olmo2", "granite", "gpt_neox", "gpt2"])
def test_heads_sum_to_their_layers_attention(kind: str) -> None:
    ds, _ = read(kind)
    left = ds["attention_attribution"] - ds["head_attribution"].sum("head")
    bias = "gpt" in kind  # their output projections have one, and it belongs to no head
    assert (float(np.abs(left).max()) > 1e-3) == bias
    assert float(np.abs(ds["head_attribution"]).max()) > 0.01


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_the_last_layer_predicts_what_the_model_predicts(kind: str, tmp_path: Path) -> None:
    ds, logits = read(kind)
    last = ds.isel(layer=-1)
    top = int(logits[-1].argmax())
    assert float(last["lens_probability"]) == pytest.approx(float(logits[-1].softmax(-1)[top]), rel=1e-4)
    assert (int(last["lens_rank"]), last["lens_top_token"].item()) == (1, tokenizer().decode(top))
    assert float(last["kl_to_final"]) == pytest.approx(0, abs=1e-5)
    assert (ds["kl_to_final"].isel(layer=slice(0, -1)) > 1e-3).all()
    check_result(ds, tmp_path)


def test_earlier_layers_are_read_with_the_models_own_norm_and_unembedding() -> None:
    ds, logits = read("llama")
    model, ids = shared("llama"), torch.tensor([tokenizer()(TEXT)["input_ids"]])
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states  # the last is normalised already
        early = model.lm_head(model.model.norm(states[2]))[0, -64:].log_softmax(-1)  # after block 1
    final = logits.log_softmax(-1)
    top = int(final[-1].argmax())
    divergence = (final.exp() * (final - early)).sum(-1).mean()
    order = early[-1].argsort(descending=True).tolist()
    second = ds.sel(layer=1)
    assert float(second["kl_to_final"]) == pytest.approx(float(divergence), rel=1e-3)
    assert float(second["lens_probability"]) == pytest.approx(float(early[-1, top].exp()), rel=1e-3)
    assert int(second["lens_rank"]) == order.index(top) + 1
    assert second["lens_top_token"].item() == tokenizer().decode(order[0])


def test_attribution_is_what_is_lost_when_a_part_is_taken_out_and_the_norm_kept() -> None:
    ds, _ = read("llama")
    lens = interp.load(shared("llama"), tokenizer=tokenizer())
    top, runner_up = ds.attrs["top_token_id"], ds.attrs["runner_up_id"]
    with torch.no_grad():
        _, cache = lens.run_with_cache(lens.to_tokens(TEXT))
        resid = cache["resid_post", 2][0, -1]
        without = resid - cache["mlp_out", 1][0, -1]
        scale = shared("llama").model.norm(resid) / resid
        lost = shared("llama").lm_head(resid * scale) - shared("llama").lm_head(without * scale)
    assert float(ds["mlp_attribution"].sel(layer=1)) == pytest.approx(float(lost[top] - lost[runner_up]), rel=1e-3)


def test_one_token_of_text() -> None:
    lens = interp.load(shared("llama"), tokenizer=tokenizer())
    ds = interp.probe(lens, torch.tensor([5]), "logit_lens")["logit_lens"]
    assert ds.attrs["kl_positions"] == 1
    assert abs(ds.attrs["unexplained"]) < 1e-3


def test_findings_name_the_prediction_and_where_it_comes_from() -> None:
    ds, logits = read("llama")
    prediction, contributions = LogitLens().findings(ds)
    first, second = tokenizer().convert_ids_to_tokens(logits[-1].topk(2).indices.tolist())
    assert f'predicts "{first}"' in prediction
    rank = ds["lens_rank"].values
    elsewhere = np.flatnonzero(rank > 1)
    assert (f"from layer {elsewhere[-1] + 1} on" if len(elsewhere) else "in every layer") in prediction
    heads = np.abs(ds["head_attribution"].values)
    layer, head = np.unravel_index(heads.argmax(), heads.shape)
    assert f'above that of "{second}"' in contributions
    assert f"contribute most are layer {layer} head {head} (" in contributions
