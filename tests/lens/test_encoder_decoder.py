"""Encoder-decoders in a Lens: two stacks and the attention between them, beside the bare models."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers as hf

import interp
from interp.lens.finite import NonFiniteError
from interp.patching import logit_difference
from tests.models import RECENT, tokenizer

Tensor = torch.Tensor

BART = {
    "vocab_size": 128, "d_model": 64, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 8, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "max_position_embeddings": 64,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "decoder_start_token_id": 3, "forced_eos_token_id": None,
}  # fmt: skip
T5 = {
    "vocab_size": 128, "d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 3, "num_heads": 4,
    "pad_token_id": 2, "eos_token_id": 1, "decoder_start_token_id": 3, "relative_attention_num_buckets": 8,
}  # fmt: skip
GEMMA = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 4, "query_pre_attn_scalar": 16,
    "layer_types": ["sliding_attention", "full_attention"], "max_position_embeddings": 64,
}  # fmt: skip


def t5gemma() -> hf.PreTrainedModel:
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    parts = {part: hf.T5GemmaModuleConfig(**GEMMA, **special) for part in ("encoder", "decoder")}
    config = hf.T5GemmaConfig(**parts, vocab_size=128, **special)
    return hf.T5GemmaForConditionalGeneration._from_config(config, attn_implementation="eager")  # sdpa knows no softcap


BUILDERS = {
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5)),
    "gated t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, feed_forward_proj="gated-gelu")),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART)),
    "mbart": lambda: hf.MBartForConditionalGeneration(hf.MBartConfig(**BART)),
    "m2m_100": lambda: hf.M2M100ForConditionalGeneration(hf.M2M100Config(**BART)),
    "pegasus": lambda: hf.PegasusForConditionalGeneration(hf.PegasusConfig(**BART)),
    "t5gemma": t5gemma,
}
NAMES = tuple(BUILDERS)
PRE_NORM = ("t5", "gated t5", "mbart", "m2m_100", "pegasus", "t5gemma")
POST_NORM = ("bart",)


OLDER = ("t5", "gated t5", "t5gemma")
"""What the lowest release supported has in another form: T5's attention in its own code, another cache of T5Gemma's."""


@cache
def lens_of(name: str) -> interp.Lens:
    if not RECENT and name in OLDER:
        pytest.skip(f"this release of transformers has another {name}")
    torch.manual_seed(0)
    model = BUILDERS[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0, 0.7 if "embed" in name else parameter.shape[-1] ** -0.5)
    model.generation_config.eos_token_id = None
    model.generation_config.decoder_start_token_id = 3
    return interp.load(model, tokenizer=tokenizer())


def ids(batch: int = 2, length: int = 9, seed: int = 1) -> Tensor:
    return torch.randint(4, 128, (batch, length), generator=torch.Generator().manual_seed(seed))


READ, WRITTEN = ids(), ids(length=6, seed=2)
MASK = torch.ones_like(READ)
MASK[0, -3:] = 0
GIVEN = {"attention_mask": MASK, "decoder_input_ids": WRITTEN}


@torch.no_grad()
def bare(lens: interp.Lens, **given: object) -> Tensor:
    return lens.model(input_ids=READ, use_cache=False, **(GIVEN | given)).logits


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_logits_are_the_models_own(name: str) -> None:
    lens = lens_of(name)
    assert torch.equal(lens(READ, **GIVEN), bare(lens))
    logits, kept = lens.run_with_cache(READ, **GIVEN)
    assert torch.equal(logits, bare(lens))
    at = ("encoder.blocks.1.attn.hook_z", "blocks.2.cross_attn.hook_v", "encoder.hook_embed", "hook_embed")
    assert all(point in kept for point in (*at[: 1 if name == "t5gemma" else 2], *at[2:]))
    assert kept["hook_embed"].shape[:2] == WRITTEN.shape
    assert kept["encoder.hook_embed"].shape[:2] == READ.shape
    start = torch.full((2, 1), 3)
    assert torch.equal(lens(READ, attention_mask=MASK), bare(lens, decoder_input_ids=start))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_patterns_are_those_that_the_model_reports(name: str) -> None:
    lens = lens_of(name)
    eager = copy.deepcopy(lens.model)
    eager.set_attn_implementation("eager")
    said = eager(input_ids=READ, use_cache=False, output_attentions=True, **GIVEN)
    _, kept = lens.run_with_cache(READ, names_filter=lambda point: point.endswith("hook_pattern"), **GIVEN)
    stacks = {"encoder.blocks.{}.attn": said.encoder_attentions, "blocks.{}.attn": said.decoder_attentions,
              "blocks.{}.cross_attn": said.cross_attentions}  # fmt: skip
    assert len(kept) == sum(map(len, stacks.values()))
    for at, reported in stacks.items():
        for i, weights in enumerate(reported):
            shown = kept[f"{at.format(i)}.hook_pattern"]
            rows = (
                MASK[:, None, :, None].bool() if "encoder" in at else torch.tensor(True)
            )  # the rest attend to padding
            torch.testing.assert_close(shown.where(rows, 0), weights.where(rows, 0), rtol=0, atol=1e-5)
    looked = lens.run_with_hooks(READ, fwd_hooks=[(n, lambda p, hook: None) for n in kept], **GIVEN)
    torch.testing.assert_close(looked, bare(lens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["bart", "t5gemma", "t5"])
@torch.no_grad()
def test_observables_of_cross_attention_are_those_of_its_pattern(name: str) -> None:
    lens = lens_of(name)
    real = torch.ones_like(WRITTEN)
    real[1, -2:] = 0
    points = [f"blocks.1.cross_attn.hook_{what}" for what in ("pattern", "column_mass", "row_entropy", "lse")]
    for width in (9, 6, 5):  # more keys than queries, as many, and fewer
        given = {"attention_mask": MASK[:, -width:], "decoder_input_ids": WRITTEN, "decoder_attention_mask": real}
        _, kept = lens.run_with_cache(READ[:, -width:], names_filter=points, **given)
        pattern, mass, entropy, lse = (kept[point] for point in points)
        rows = real[:, None, :, None]
        torch.testing.assert_close(mass, (pattern * rows).sum(2), rtol=1e-4, atol=1e-5)
        there = real[:, None].expand_as(entropy).bool()
        torch.testing.assert_close(entropy[there], torch.special.entr(pattern).sum(-1)[there], rtol=1e-3, atol=1e-5)
        assert bool(torch.isfinite(lse[there]).all())


def test_a_bias_by_position_is_shown_and_not_ignored() -> None:
    """T5 adds one to its scores; the kernels of observables know of none."""
    lens = lens_of("t5")
    for point in ("encoder.blocks.0.attn.hook_column_mass", "blocks.1.attn.hook_event"):
        with pytest.raises(interp.UnsupportedModelError, match="carries a bias by position"):
            lens.run_with_cache(READ, names_filter=[point], **GIVEN)
    with torch.no_grad():
        point = "blocks.2.attn.hook_attn_scores"
        _, kept = lens.run_with_cache(
            READ, names_filter=[point, "blocks.2.attn.hook_q", "blocks.2.attn.hook_k"], **GIVEN
        )
        products = torch.einsum("bqhd,bkhd->bhqk", kept["blocks.2.attn.hook_q"], kept["blocks.2.attn.hook_k"])
        table = lens.model.decoder.block[0].layer[0].SelfAttention.compute_bias(6, 6)
        seen = torch.ones(6, 6).tril().bool()
        torch.testing.assert_close(kept[point][..., seen], (products + table)[..., seen], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PRE_NORM)
@torch.no_grad()
def test_the_decoders_stream_is_the_sum_of_three_writers(name: str) -> None:
    lens = lens_of(name)
    _, kept = lens.run_with_cache(READ, **GIVEN)
    for i in range(lens.cfg.n_layers):
        stream = kept[f"blocks.{i}.hook_resid_pre"]
        for writer, after in (("attn_out", "mid"), ("cross_attn_out", "mid2"), ("mlp_out", "post")):
            stream = stream + kept[f"blocks.{i}.hook_{writer}"]
            torch.testing.assert_close(kept[f"blocks.{i}.hook_resid_{after}"], stream, rtol=1e-5, atol=1e-5)
    for i in range(2):
        ends = [kept[f"encoder.blocks.{i}.hook_{at}"] for at in ("resid_pre", "attn_out", "mlp_out", "resid_post")]
        torch.testing.assert_close(ends[0] + ends[1] + ends[2], ends[3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(lens.unembed(lens.normalized(stream)), bare(lens), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_what_hooks_return_moves_the_model(name: str) -> None:
    lens = lens_of(name)
    before = bare(lens)
    layer = lens.cfg.n_layers - 1
    points = [f"blocks.{layer}.{point}" for point in (
        "cross_attn.hook_q", "cross_attn.hook_k", "cross_attn.hook_v", "cross_attn.hook_z", "cross_attn.hook_pattern",
        "hook_resid_mid", "hook_resid_mid2")]  # fmt: skip
    points += [f"encoder.blocks.1.{point}" for point in ("attn.hook_v", "hook_resid_pre", "hook_resid_mid")]
    for point in [*points, "encoder.hook_embed", "hook_embed"]:
        same = lens.run_with_hooks(READ, fwd_hooks=[(point, lambda x, hook: x.clone())], **GIVEN)
        torch.testing.assert_close(same, before, rtol=1e-4, atol=1e-4)
        moved = lens.run_with_hooks(READ, fwd_hooks=[(point, lambda x, hook: x.flip(-1))], **GIVEN)
        assert not torch.allclose(moved, before, atol=1e-4), point
    # nothing of the encoder reaches the logits where nothing attends to it
    hooks = [(lambda n: n.endswith("cross_attn.hook_z"), lambda z, hook: torch.zeros_like(z))]
    one, other = (lens.run_with_hooks(x, fwd_hooks=hooks, **GIVEN) for x in (READ, READ.flip(1)))
    assert torch.equal(one, other)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_padding_changes_nothing(name: str) -> None:
    """Texts are padded on the right, where positions begin for each text at its first token."""
    lens = lens_of(name)
    texts, starts = ["w5 w6 w7 w8", "w9 w10"], ["w11", "w12 w13 w14"]
    together = lens(texts, decoder_input=starts)
    alone = [lens(text, decoder_input=start) for text, start in zip(texts, starts, strict=True)]
    for row, one in zip(together, alone, strict=True):
        torch.testing.assert_close(row[: one.shape[1]], one[0], rtol=1e-4, atol=1e-4)
    both = lens.generate(texts, 4)
    assert both == [lens.generate(text, 4) for text in texts]
    nats = lens.score(texts, starts)
    for row, text, start in zip(nats, texts, starts, strict=True):
        torch.testing.assert_close(row[~row.isnan()], lens.score(text, start)[0], rtol=1e-4, atol=1e-4)
    assert nats.isnan().tolist() == [[False, True, True], [False] * 3]


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_generation_is_the_models_own(name: str) -> None:
    lens = lens_of(name)
    own = lens.model.generate(READ, attention_mask=MASK, max_new_tokens=5, do_sample=False)
    assert torch.equal(lens.generate(READ, 5, attention_mask=MASK), own)
    with lens.hooks(fwd_hooks=[(point, lambda x, hook: None) for point in lens.point_names(None)]):
        assert torch.equal(lens.generate(READ, 5, attention_mask=MASK), own)
    beams = {"num_beams": 2, "max_new_tokens": 4, "attention_mask": MASK}
    assert torch.equal(lens.generate(READ, **beams), lens.model.generate(READ, do_sample=False, **beams))
    begun = lens.generate(READ, 3, decoder_input=own[:, :3], attention_mask=MASK)
    assert torch.equal(begun, own)
    points = ["encoder.blocks.0.hook_resid_post", "blocks.1.hook_resid_post", "blocks.1.cross_attn.hook_pattern"]
    out, steps = lens.generate(READ, 5, attention_mask=MASK, names_filter=points)
    _, kept = lens.run_with_cache(READ, attention_mask=MASK, decoder_input_ids=out[:, :-1], names_filter=points)
    for point in points[:2]:
        torch.testing.assert_close(steps[point], kept[point], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(torch.cat(steps[points[2]], 2), kept[points[2]], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["t5", "bart"])
@torch.no_grad()
def test_hooks_change_every_step_of_generation(name: str) -> None:
    """Keys that a hook returned are what later steps attend to: the decoder's own, and the encoder's."""
    lens = lens_of(name)
    k = "rot_k" if name == "t5gemma" else "k"
    hooks = [(f"blocks.1.attn.hook_{k}", lambda x, hook: x.flip(-1)),
             ("blocks.1.cross_attn.hook_v", lambda x, hook: x.flip(-1))]  # fmt: skip
    with lens.hooks(fwd_hooks=hooks):
        cached = lens.generate(READ, 5)
        assert torch.equal(cached, lens.generate(READ, 5, use_cache=False))
    assert not torch.equal(cached, lens.generate(READ, 5))


@torch.no_grad()
def test_scores_and_losses() -> None:
    lens = lens_of("bart")
    rest = WRITTEN[:, 1:]
    fed = torch.cat([torch.full((2, 1), 3), rest[:, :-1]], 1)
    logits = bare(lens, decoder_input_ids=fed).log_softmax(-1)
    wanted = -logits.gather(-1, rest[..., None])[..., 0]
    torch.testing.assert_close(lens.score({"input_ids": READ, "attention_mask": MASK}, rest), wanted)
    labels = rest.clone()
    labels[0, 0] = -100
    given = {"attention_mask": MASK, "labels": labels}
    said = lens.model(input_ids=READ, **given)
    logits, loss = lens(READ, return_type="both", **given)
    assert torch.equal(logits, said.logits)
    torch.testing.assert_close(loss, said.loss)
    torch.testing.assert_close(
        lens(READ, return_type="loss", attention_mask=MASK, decoder_input=torch.cat([fed, rest[:, -1:]], 1)),
        wanted.mean(),
    )
    text = lens("w5 w6", decoder_input="w7 w8")
    assert torch.equal(text, lens("w5 w6", decoder_input=torch.tensor([[3, 7, 8]])))
    cached = lens(READ, use_cache=True, **GIVEN)
    kept = lens.last_cache
    after = lens(READ, attention_mask=MASK, decoder_input=WRITTEN[:, :1], past_key_values=kept, use_cache=True)
    whole = lens(READ, attention_mask=MASK, decoder_input=torch.cat([WRITTEN, WRITTEN[:, :1]], 1))
    torch.testing.assert_close(torch.cat([cached, after], 1), whole, rtol=1e-4, atol=1e-4)
    assert kept.nbytes() == 2 * 4 * 64 * 2 * 3 * (7 + 9)


@pytest.mark.parametrize("name", ["t5", "bart", "t5gemma"])
@torch.no_grad()
def test_edits_act_on_the_decoders_own_attention(name: str) -> None:
    lens = lens_of(name)
    last, second = lens.cfg.n_layers - 1, "blocks.1.attn.hook_pattern"
    with lens.apply(interp.KnockOut(keys=0, layers=[1])):
        shut = lens(READ, **GIVEN)
        _, kept = lens.run_with_cache(READ, names_filter=[second, f"blocks.{last}.cross_attn.hook_pattern"], **GIVEN)
        text = lens.generate(READ, 5)
        assert torch.equal(text, lens.generate(READ, 5, use_cache=False))

    def without_first(pattern: Tensor, hook: object) -> Tensor:
        shut = pattern.clone()
        shut[..., 0] = 0
        return shut / shut.sum(-1, keepdim=True).clamp_min(1e-12)

    by_hand = lens.run_with_hooks(READ, fwd_hooks=[(second, without_first)], **GIVEN)
    assert float(kept[second][:, :, 1:, 0].abs().max()) == 0
    torch.testing.assert_close(shut, by_hand, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(shut, bare(lens), atol=1e-4)


def patched(lens: interp.Lens, where: object, by: str) -> object:
    return interp.patch(lens, "w4 w5 w6", "w4 w9 w6", where, logit_difference(7, 8), by=by)


def hooked(lens: interp.Lens, name: str) -> object:
    return lens.run_with_cache(READ, names_filter=name)


@pytest.mark.parametrize(("call", "says"), [
    (lambda lens: hooked(lens, "encoder.blocks.2.attn.hook_z"), "did you mean 'encoder.blocks"),
    (lambda lens: hooked(lens, "encoder.blocks.0.cross_attn.hook_z"), "there is no hook point"),
    (lambda lens: hooked(lens, "encoder_blocks.0.attn.hook_z"), "encoder are encoder.blocks.0"),
    (lambda lens: hooked(lens, "decoder_blocks.0.self_attn.hook_z"), "decoder are blocks.0"),
    (lambda lens: lens(READ, return_type="loss"), "one token"),
    (lambda lens: lens(READ, decoder_input="w4", decoder_input_ids=WRITTEN), "comes beside decoder_input_ids"),
    (lambda lens: lens(READ, decoder_input_ids=WRITTEN[:1]), "pass one for each"),
    (lambda lens: lens(READ, decoder_input=torch.full((2, 3), 500)), "outside the vocabulary"),
    (lambda lens: lens(READ, decoder_input_ids=torch.zeros(2, 65, dtype=torch.long)), "exceed the context of 64"),
    (lambda lens: lens(READ, decoder_inputs=WRITTEN), "knows no argument decoder_inputs"),
    (lambda lens: lens.generate(["w4", "w5"], 2, decoder_input=["w4", "w5 w6"]), "generate them one by one"),
    (lambda lens: lens.score("w4", ""), "the continuation is empty"),
    (lambda lens: lens.score(["w4", "w5"], "w4"), "do not pair up"),
    (lambda lens: lens.apply(interp.SnapKV()).__enter__(), "cache policies do not act on it"),
    (lambda lens: interp.probe(lens, "w4 w5 w6", ["logit_lens"]), "logit_lens reads logits"),
    (lambda lens: patched(lens, "hook_resid_pre", "position"), "positions are the encoder's"),
    (lambda lens: patched(lens, ["encoder.attn.hook_z", "attn.hook_z"], "head"), "patch one of them"),
    (lambda lens: lens.run_with_cache(READ)[1].decompose_resid(), "cross-attention of BartFor"),
    (lambda lens: interp.icl.language.induction_scores(lens, length=5, samples=2), "go on with what they read"),
])  # fmt: skip
def test_wrong_calls_say_so(call: object, says: str) -> None:
    with pytest.raises(interp.InterpError, match=says) as caught:
        call(lens_of("bart"))
    assert "\n" not in str(caught.value)


def test_a_decoder_without_a_start_says_so() -> None:
    lens = interp.load(hf.T5ForConditionalGeneration(hf.T5Config(**T5 | {"decoder_start_token_id": None})).eval())
    with pytest.raises(interp.InterpError, match="does not say which token its decoder starts from"):
        lens(READ)
    assert lens(READ, decoder_input=WRITTEN).shape == (2, 6, 128)


def test_patching_the_encoder_and_what_the_decoder_reads_of_it() -> None:
    """Two texts that differ in one token: it alone brings the clean answer back at the encoder's first block."""
    lens = lens_of("bart")
    back = patched(lens, "encoder.hook_resid_pre", "position")
    assert dict(back.recovered.sizes) == {"layer": 2, "position": 4}
    torch.testing.assert_close(torch.tensor(back.recovered.values[0]), torch.tensor([0.0, 0, 1, 0]), atol=1e-4, rtol=0,
                               check_dtype=False)  # fmt: skip
    assert dict(patched(lens, "encoder.attn.hook_z", "head").recovered.sizes) == {"layer": 2, "head": 4}
    assert dict(patched(lens, "cross_attn.hook_z", "head").recovered.sizes) == {"layer": 3, "head": 8}


def test_a_generation_has_an_account_and_a_side() -> None:
    lens = lens_of("t5")
    both = interp.side_by_side(lens, "w5 w6 w7", interp.Temperature(0.5), max_new_tokens=3)
    account = json.loads(both.attrs["accounts"])[0]
    a_token = 2 * 64 * 3 * 4  # keys and values of 4 bytes in 3 layers
    assert account["cache"]["bytes"] == account["cache"]["dense_bytes"] == (3 + 4) * a_token
    text = lens.generate("w5 w6 w7", 3)
    assert account["text"] == text
    assert both["shift"].sizes == {"side": 2, "step": 3}


def test_a_folder_loads_with_its_encoder(tmp_path: Path) -> None:
    lens = lens_of("bart")
    lens.model.save_pretrained(tmp_path)
    read = interp.load(tmp_path, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(read(READ, **GIVEN), bare(lens))


def test_probes_look_at_the_encoder() -> None:
    lens = lens_of("bart")
    seen = interp.probe(lens, "w5 w6 w7 w8 w9 w10")
    assert "text_sinks" in seen
    assert "logit_lens" not in seen
    sinks = seen["text_sinks"]
    assert (sinks.sizes["layer"], sinks.sizes["head"], sinks.attrs["stack"]) == (2, 4, "encoder")
    with pytest.raises(interp.InterpError, match="knock_out acts in the decoder"), lens.apply(interp.KnockOut(keys=0)):
        interp.probe(lens, "w5 w6")


def test_shapes_of_both_stacks() -> None:
    lens = lens_of("bart")
    assert (lens.cfg.n_layers, lens.cfg.n_heads, lens.cfg.d_head) == (3, 8, 8)
    assert [len(stack.blocks) for stack in lens.anatomy.stacks] == [3, 2]
    assert lens.anatomy.further[0].blocks[0].seen["n_heads"] == 4
    assert all("cross_attn" not in name for name in lens.hook_dict if name.startswith("encoder."))


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_weight_that_is_nan_is_named(part: str) -> None:
    lens = interp.load(copy.deepcopy(lens_of("t5").model), tokenizer=tokenizer())
    with torch.no_grad():
        lens.model.get_parameter(f"{part}.block.1.layer.{1 if part == 'encoder' else 2}.DenseReluDense.wi.weight")[
            0
        ] = torch.nan
    calls = [lambda: lens.score(READ, WRITTEN), lambda: interp.probe(lens, READ[:1], ["text_sinks"])]
    for call in (*calls, lambda: interp.load(lens.model)):
        with pytest.raises(NonFiniteError, match=rf"layer 1 .*{part}\.block\.1.*wi\.weight has 64 of"):
            call()
