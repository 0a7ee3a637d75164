"""A model that computes NaN or inf is said to, before anything is said of its numbers."""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

import interp
from interp.cli import main
from interp.lens.finite import NonFiniteError
from interp.patching import logit_difference
from interp.probes import available
from tests.models import shared, tokenizer, tokens
from tests.seam.test_bridge import bridged
from tests.seam.test_softmax_seam import model_of

TEXT = tokens(1, 24)
READ = int(TEXT[0, 3])
UNREAD = next(i for i in range(4, 128) if i not in TEXT)
LAYER, GPT = "model.layers.1", "transformer.h.1"
WEIGHTS = {
    "llama": [
        "model.embed_tokens.weight", f"{LAYER}.self_attn.q_proj.weight", f"{LAYER}.self_attn.v_proj.weight",
        f"{LAYER}.self_attn.o_proj.weight", f"{LAYER}.mlp.up_proj.weight", f"{LAYER}.input_layernorm.weight",
        "model.norm.weight", "lm_head.weight",
    ],
    "gpt2": [f"{GPT}.attn.c_attn.weight", f"{GPT}.mlp.c_proj.bias", f"{GPT}.ln_2.weight", "transformer.wte.weight"],
    "gemma2": [f"{LAYER}.self_attn.k_proj.weight", f"{LAYER}.post_feedforward_layernorm.weight"],
    "gpt_neox": ["gpt_neox.layers.1.attention.query_key_value.weight", "gpt_neox.layers.2.mlp.dense_h_to_4h.bias"],
    "bloom": [f"{GPT}.self_attention.query_key_value.weight", f"{GPT}.mlp.dense_h_to_4h.weight"],
}  # fmt: skip
PLANTED = [(name, weight) for name, weights in WEIGHTS.items() for weight in weights]
OVERFLOWING = {"llama": f"{LAYER}.mlp.down_proj", "gpt2": f"{GPT}.mlp.c_proj", "phi": f"{LAYER}.mlp.fc2"}


def loaded(name: str) -> Any:
    """A Lens on a model of its own, whole when it is loaded."""
    return interp.load(copy.deepcopy(model_of(name) if name == "bloom" else shared(name)), tokenizer())


@torch.no_grad()
def plant(model: torch.nn.Module, name: str, value: float) -> None:
    """One number of a parameter: of a table of tokens one that is read, of a head one that is not."""
    weight = model.get_parameter(name)
    row = UNREAD if "head" in name else READ if weight.shape[0] == 128 and weight.ndim == 2 and "emb" in name else 0
    weight[(row, *[0] * (weight.ndim - 1))] = value


def measures(lens: Any) -> dict[str, Callable[[], Any]]:
    """What says something about a model."""
    policy = interp.H2O(budget=12)
    # of attention that stays in the module's own code there is no event
    probes = [name for name in available() if name == "logit_lens" or "blocks.0.attn.hook_event" in lens.hook_dict]
    found: dict[str, Callable[[], Any]] = {p: lambda p=p: interp.probe(lens, TEXT, [p]) for p in probes}
    if type(lens) is interp.Lens:
        found["score"] = lambda: lens.score(TEXT, TEXT[:, :4])
    if lens.cfg.architecture.startswith("Llama") and type(lens) is interp.Lens:
        found["explain"] = lambda: interp.explain(lens, policy, TEXT, TEXT[:, :4])
    return found


@pytest.mark.parametrize(("name", "weight"), PLANTED)
def test_one_number_of_a_weight(name: str, weight: str) -> None:
    lens = loaded(name)
    plant(lens.model, weight, torch.nan)
    said = re.escape(weight)
    for measure in measures(lens).values():
        with pytest.raises(NonFiniteError, match=f"not finite, first in .*{said} has 1 of"):
            measure()
    if "embed" not in weight:  # of which other tokens are read then
        with pytest.raises(NonFiniteError, match=said):
            interp.load(lens.model)


@pytest.mark.parametrize("name", OVERFLOWING)
def test_float16_that_overflows_in_a_middle_layer(name: str) -> None:
    lens = loaded(name)
    weight = lens.model.get_parameter(f"{OVERFLOWING[name]}.weight").data
    weight.copy_(weight.sign() * 5e4)  # which float16 still holds
    for measure in measures(lens).values():
        measure()  # in float32 there is nothing to it
    lens.model.half()
    where = re.escape(OVERFLOWING[name])
    for measure in measures(lens).values():
        with pytest.raises(NonFiniteError, match=rf"layer 1 \({where}.*float16.*bfloat16 or float32"):
            measure()


def test_a_query_that_torch_hides() -> None:
    """torch's SDPA makes finite numbers of it where a text is short."""
    lens = loaded("llama")
    plant(lens.model, f"{LAYER}.self_attn.q_proj.weight", torch.nan)
    for probe in ("text_sinks", "channel_imbalance", "attention_rank"):
        with pytest.raises(NonFiniteError, match=r"q_proj.weight has 1 of"):
            interp.probe(lens, TEXT[:, :4], [probe])


def test_a_part_that_is_lost_for_one_token_alone() -> None:
    """In the last layer, where no other token reads it and the logits of the last are what they were."""
    lens = loaded("llama")
    last = lens.model.model.layers[-1].mlp

    def lose(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        return out.index_fill(1, torch.tensor([2]), torch.nan)

    with torch.no_grad():
        handle = last.register_forward_hook(lose)
        assert lens(TEXT)[:, -1].isfinite().all()
    for probe in available():
        with pytest.raises(NonFiniteError, match=r"layer 2 \(model.layers.2.mlp\)"):
            interp.probe(lens, TEXT, [probe])
    handle.remove()


def says(lens: Any) -> dict[str, Callable[[], Any]]:
    """What says something of a model's logits alone."""
    sampled = {"do_sample": True, "num_return_sequences": 2}
    found: dict[str, Callable[[], Any]] = {
        "loss": lambda: lens(TEXT, return_type="loss"),
        "both": lambda: lens(TEXT, return_type="both"),
        "loss of each token": lambda: lens(["w5 w6 w7", "w8 w9"], return_type="loss", loss_per_token=True),
        "patch": lambda: interp.patch(lens, TEXT, TEXT.flip(1), "hook_resid_pre", logit_difference(4, 5)),
    }
    if type(lens) is interp.Lens:
        ways: dict[str, dict[str, Any]] = {
            "greedy": {},
            "beams": {"num_beams": 2},
            "sampled": sampled,
            "no cache": {"use_cache": False},
        }
        for way, how in ways.items():
            found[way] = lambda how=how: lens.generate(["w5 w6 w7", "w8"], 3, **how)
        found["embeddings"] = lambda: lens.generate(inputs_embeds=torch.full((1, 3, 64), torch.nan), max_new_tokens=2)
    return found


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_what_is_said_of_logits_alone(name: str) -> None:
    lens = loaded(name)
    for way, say in says(lens).items():
        if way != "embeddings":
            say()
    weight = next(n for n, _ in lens.model.named_parameters() if "1." in n and "mlp" in n and n.endswith("weight"))
    plant(lens.model, weight, torch.nan)
    for way, say in says(lens).items():
        with pytest.raises(NonFiniteError, match="float32" if way == "embeddings" else re.escape(weight)):
            say()
    assert lens(TEXT).isnan().any()  # logits are what they are
    assert lens.generate(TEXT, 2, remove_invalid_values=True).shape == (1, 26)


def test_a_number_that_is_lost_while_it_writes() -> None:
    """The prompt reads as ever; the token that breaks the model is its own."""
    lens = loaded("llama")
    written = lens.generate(TEXT, 6, min_new_tokens=6)
    new = next(i for i in written[0, 24:].tolist() if i not in TEXT)
    lens.model.model.embed_tokens.weight.data[new] = torch.nan
    seen = []
    says = r"first in model.embed_tokens: .*embed_tokens.weight has 64 of"
    hooks = [("hook_embed", lambda value, hook: seen.append(value.shape[1]))]
    with lens.hooks(fwd_hooks=hooks), pytest.raises(NonFiniteError, match=says):
        lens.generate(TEXT, 40, min_new_tokens=40)
    assert len(seen) < 10  # it does not go on
    assert torch.equal(lens.generate(TEXT, 1), written[:, :25])


def test_hooks_processors_and_padding_are_nothing_lost() -> None:
    lens = loaded("llama")
    out = lens.generate(TEXT, 4, min_new_tokens=4)
    assert torch.equal(lens.model.generate(TEXT, max_new_tokens=4, min_new_tokens=4, do_sample=False), out)
    with lens.hooks(fwd_hooks=[("blocks.1.hook_resid_post", lambda value, hook: value * torch.nan)]):
        for call in (lambda: lens.generate(TEXT, 2), lambda: lens(TEXT, return_type="loss")):
            with pytest.raises(NonFiniteError, match="finite ones when it is left alone"):
                call()
    each = lens(["w5 w6 w7", "w8"], return_type="loss", loss_per_token=True)
    assert each.isnan().sum() == 2
    allowed = lens.generate(TEXT, 3, min_new_tokens=3, prefix_allowed_tokens_fn=lambda batch, ids: [7])
    assert allowed[0, 24:].tolist() == [7, 7, 7]


def test_a_patched_run_that_is_lost() -> None:
    """Where both prompts are read as ever."""
    lens, runs = loaded("llama"), []

    def lose(value: torch.Tensor, hook: Any) -> torch.Tensor:
        runs.append(hook)
        return value if len(runs) < 4 else value * torch.nan

    with (
        lens.hooks(fwd_hooks=[("blocks.2.hook_resid_post", lose)]),
        pytest.raises(NonFiniteError, match="when it is left alone"),
    ):
        interp.patch(lens, TEXT, TEXT.flip(1), "hook_resid_pre", logit_difference(4, 5))
    assert len(runs) == 4


def test_a_hook_that_makes_nan_is_not_the_models_fault() -> None:
    lens = loaded("llama")
    hooks = [("blocks.1.hook_resid_post", lambda value, hook: value * torch.nan)]
    with lens.hooks(fwd_hooks=hooks), pytest.raises(NonFiniteError, match="finite ones when it is left alone"):
        interp.probe(lens, TEXT, ["text_sinks"])


def test_other_errors_stay_what_they_are() -> None:
    lens = loaded("llama")
    hooks = [("blocks.1.hook_resid_post", lambda value, hook: 1 / 0)]
    with lens.hooks(fwd_hooks=hooks), pytest.raises(ZeroDivisionError):
        interp.probe(lens, TEXT, ["text_sinks"])


def test_a_bridge() -> None:
    lens = interp.load(bridged("llama"))
    plant(lens.bridge, next(n for n, _ in lens.bridge.named_parameters() if "1" in n and "up_proj" in n), torch.nan)
    with pytest.raises(NonFiniteError, match="mlp"):
        interp.probe(lens, TEXT, ["text_sinks"])


def test_tasks_of_regression() -> None:
    model = interp.icl.AttentionRegressor(interp.icl.RegressorConfig(d_in=4, n_layers=1))
    next(iter(model.parameters())).data.view(-1)[0] = torch.nan
    with pytest.raises(NonFiniteError, match="has 1 of"):
        interp.probe(model, interp.icl.make_regression(8, 5, 4))


def test_padding_and_shorter_rows_are_nothing_lost() -> None:
    lens = interp.load(shared("llama"), tokenizer())
    nats = lens.score(["w5 w6 w7", "w8"], ["w9", "w10 w11 w12"])
    assert nats.isnan().sum() == 2
    assert (nats[~nats.isnan()] > 0).all()


def test_the_command_line(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model, folder, text = copy.deepcopy(shared("llama")), tmp_path / "model", tmp_path / "text.txt"
    plant(model, f"{LAYER}.self_attn.v_proj.weight", torch.nan)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    text.write_text("w5 w6 w7 w8")
    given = [folder, "--text", text, "--out", tmp_path / "r.html"]
    monkeypatch.setattr(sys, "argv", ["interp", "report", *map(str, given)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "v_proj.weight has 1 of" in capsys.readouterr().err
