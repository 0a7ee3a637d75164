"""What a Lens is asked for while exceptions are thrown into it: scenarios that together pass through the rooms.

A new intervention becomes a scenario by being found.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as hf

import interp
from interp.errors import InterpError
from interp.interventions._specs import from_toml, to_toml
from interp.patching import logit_difference
from interp.runs.generating import generate as account
from tests import vision_models
from tests.interventions.edits_found import seeing, with_places
from tests.interventions.examples import EXAMPLES
from tests.lens import many
from tests.lens.test_encoder_decoder import BART, T5
from tests.models import GROUPED, RECENT, tiny, tokenizer, tokens
from tests.seam.test_bridge import bridged
from tests.seam.test_softmax_seam import model_of
from tests.vision_models import picture

Scenario = tuple[str, Callable[[Any], Any]]
TEXT = tokens(1, 14)
LONG = tokens(1, 40, seed=2)
PADDED = {"input_ids": [[4, 5, 6, 7, 8, 9, 10], [4, 5, 6]], "attention_mask": [[1] * 7, [1] * 3]}
HOOKS: list[tuple[str, Any]] = [
    ("blocks.1.attn.hook_z", lambda z, hook: z * 0.5),
    ("blocks.0.hook_resid_mid", lambda x, hook: x + 0.0),
    ("blocks.1.attn.hook_pattern", lambda x, hook: None),
    ("blocks.0.attn.hook_column_mass", lambda x, hook: None),
]
GENERATE = {"max_new_tokens": 3, "min_new_tokens": 3}
WITHOUT_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}


def llama() -> Any:
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**{**GROUPED, "num_hidden_layers": 2}))


MODELS: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "gemma3": lambda: tiny("gemma3"),
    "gpt_oss": lambda: tiny("gpt_oss"),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=128, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1,
                      pad_token_id=2, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)),
    "bart": lambda: hf.BartForConditionalGeneration(hf.BartConfig(**BART, **WITHOUT_DROPOUT)),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, dropout_rate=0.0)),
    "deepseek_v3": lambda: tiny("deepseek_v3"),
    "deepseek_v32": lambda: tiny("deepseek_v32"),
    "qwen3_next": lambda: many.model_of("qwen3_next"),
    "bloom": lambda: model_of("bloom"),
    "falcon": lambda: model_of("falcon"),
    "gpt_neo": lambda: model_of("gpt_neo"),
    "image places": lambda: seeing(tiny("llama")),
}  # fmt: skip


@cache
def lens_of(kind: str) -> Any:
    """A Lens on a model in train mode, which has no dropout: what measures has to put the mode back."""
    if kind == "bridge":
        lens = interp.load(bridged("llama"))
        lens.bridge.train()
        return lens
    if kind == "llava":
        model, processor = vision_models.built(kind)
        return interp.Lens(model.train(), processor)
    torch.manual_seed(0)
    return interp.load(MODELS[kind]().train(), tokenizer())


def in_hooks(lens: Any, hooks: list[tuple[str, Any]]) -> None:
    with lens.hooks(fwd_hooks=hooks):
        lens(TEXT)


def generate(lens: Any, intervention: Any, text: Any = TEXT, **kwargs: Any) -> None:
    with lens.apply(intervention):
        lens.generate(text, **{**GENERATE, **kwargs})


def score(lens: Any, intervention: Any) -> None:
    with lens.apply(intervention):
        lens.score(TEXT, TEXT[:, :5], chunk=2)


def autocast(lens: Any) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        lens.run_with_cache(TEXT, names_filter=["blocks.0.attn.hook_column_mass", "blocks.1.attn.hook_pattern"])


def seen_in_code(name: str) -> bool:
    return name.endswith(("hook_pattern", "hook_z", "hook_resid_post"))


def everything(lens: Any) -> None:
    """All points, observables and what is computed of them."""
    _, cache = lens.run_with_cache(TEXT, names_filter=lambda name: True)
    for name, value in cache.items():
        if name.endswith("hook_event"):
            for observable in ("lse", "entropy", "column_mass"):
                getattr(value, observable)


def activations(lens: Any) -> None:
    _, cache = lens.run_with_cache(TEXT)
    cache["pattern", 0]
    cache.decompose_resid(layer=1, return_labels=True)
    cache.stack_head_results(layer=1)
    cache.apply_ln_to_stack(cache.accumulated_resid(layer=-1), layer=-1)
    cache.logit_attrs(cache.accumulated_resid(layer=-1), tokens=TEXT[0, -1:])
    cache.remove_batch_dim()
    lens.run_with_cache(TEXT, remove_batch_dim=True, pos_slice=-1)


def gradients(lens: Any) -> None:
    lens.run_with_cache(TEXT, incl_bwd=True, return_type="loss", names_filter="blocks.0.hook_resid_mid")
    lens.zero_grad()


def texts(lens: Any) -> None:
    lens(["w4 w5 w6", "w7"], return_type="both", prepend_bos=True, padding_side="right")
    lens("w4 w5 w6", return_type="loss", loss_per_token=True)
    lens(PADDED)
    lens(TEXT, stop_at_layer=1)
    lens.generate("w4 w5 w6", num_beams=2, num_return_sequences=2, **GENERATE)
    lens.generate(["w4 w5 w6", "w7"], names_filter="blocks.0.attn.hook_z", **GENERATE)
    lens.score("w4 w5", "w6 w7")
    lens.to_str_tokens("w4 w5")
    lens.get_token_position("w5", "w4 w5")
    lens.to_string(TEXT)
    lens.loss_fn(lens(TEXT), TEXT)
    [getattr(lens, name) for name in ("W_E", "W_U", "W_Q", "W_K", "W_V", "W_O")]
    lens.unembed(lens.normalized(torch.zeros(1, 1, lens.cfg.d_model)))


def beams(lens: Any, policy: Any, **how: Any) -> None:
    generate(lens, policy, PADDED, num_beams=2, num_return_sequences=2, **how)


class Streamer:
    def put(self, value: Any) -> None: ...

    def end(self) -> None: ...


def saved(lens: Any) -> None:
    """A cache that goes to a file and back, and on."""
    with tempfile.TemporaryDirectory() as folder, lens.apply(interp.H2O(budget=8)):
        lens(TEXT, use_cache=True)
        cache = interp.load_cache(lens, interp.save_cache(lens, Path(folder) / "cache.safetensors"))
        lens(TEXT[:, :1], past_key_values=cache, use_cache=True)


@torch.no_grad()
def cropped(lens: Any) -> None:
    """A plain cache that forgets, is repeated, copied and chosen from."""
    lens(TEXT, use_cache=True)
    cache = copy.deepcopy(lens.last_cache)
    cache.crop(12)
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([1]))
    cache.reorder_cache(torch.tensor([0]))
    lens(TEXT[:, :2], past_key_values=cache, use_cache=True)
    cache.report(), cache.nbytes()


def in_pieces(lens: Any, policy: Any, text: Any = LONG) -> None:
    """A prompt in two calls, a text after it, and hooks on what is stored."""
    with lens.apply(policy):
        lens(text, use_cache=True)
        cache = lens.last_cache
        for piece in (TEXT[:, :1], TEXT[:, :3]):
            lens.run_with_hooks(piece, past_key_values=cache, use_cache=True, fwd_hooks=HOOKS[:3])


def written(lens: Any) -> None:
    """Interventions as text and back, and applied to a batch."""
    both = interp.interventions.parse_all(["snapkv:budget=6,window=2", "knock_out:keys=[0,1],layers=[0]"])
    generate(lens, from_toml(to_toml(both)), PADDED)
    interp.interventions.named("random", budget=4)


def lost(lens: Any) -> None:
    """Numbers that are none, and where they come from."""
    nothing = [("blocks.1.hook_mlp_out", lambda x, hook: x * torch.nan)]
    with lens.hooks(fwd_hooks=nothing), suppress(InterpError):
        lens.score(TEXT, TEXT[:, :2])
    with lens.hooks(fwd_hooks=nothing), suppress(InterpError):
        interp.probe(lens, TEXT, "logit_lens")


def answered(lens: Any) -> None:
    """Hooks that answer with what has to be stretched, or does not fit."""
    answers = (lambda x, hook: 0.0, lambda x, hook: x[..., :1], lambda x, hook: x.double(), lambda x, hook: x[:, :2])
    for answer in (*answers, lambda x, hook: "a", lambda x, hook: x.clone()):
        with suppress(InterpError):
            lens.run_with_hooks(TEXT, fwd_hooks=[("blocks.0.hook_resid_post", answer)])


def refused(lens: Any) -> None:
    """Calls that end in a sentence."""
    one = {"input_ids": [[4, 5]]}
    wrong: list[Callable[[], Any]] = [
        lambda: lens("w4", return_type="loss"), lambda: lens(TEXT, stop_at_layer=9), lambda: lens(TEXT, other=1),
        lambda: lens(TEXT, attention_mask=torch.ones(1, 3)), lambda: lens([]), lambda: lens([[4], []]),
        lambda: lens(TEXT.float()), lambda: lens(one, input_ids=[[4]]), lambda: lens({4}), lambda: lens([["w4"]]),
        lambda: lens([[4, 5]], attention_mask=[[1]]), lambda: lens([{"role": "user", "content": "w4"}]),
        lambda: lens([4, 128]), lambda: lens(TEXT, position_ids="a"), lambda: lens(TEXT, past_key_values="a"),
        lambda: lens(TEXT, prepend_bos=True), lambda: lens(np.array([[4.0, 5.0]])), lambda: lens(torch.zeros(1, 2,
        3)),
        lambda: lens.run_with_cache(TEXT, names_filter="hook_pattern"), lambda: lens.run_with_cache(TEXT,
        pos_slice=[99]),
        lambda: lens.point_names(lambda name: False), lambda: lens.add_hook("hook_embed", 3), lambda: lens.W_pos,
        lambda: lens.run_with_hooks(TEXT, fwd_hooks=[("blocks.0.attn.hook_column_mass", lambda x, hook: x * 2)]),
        lambda: lens.generate(PADDED["input_ids"], max_new_tokens=0), lambda: lens.generate(TEXT, freq_penalty=2),
        lambda: lens.score(TEXT, TEXT[:, :0]), lambda: lens.score(TEXT, "w4", chunk=0), lambda: lens.to_tokens("w4",
        truncate=0),
        lambda: generate(lens, interp.H2O(budget=4), use_cache=False), lambda: interp.save_cache(lens, "/dev/null/x"),
        lambda: interp.load_cache(lens, "/dev/null"), lambda: lens.run_with_hooks(TEXT, fwd_hooks=[("hook_embed",
        nested)]),
        lambda: generate(lens, 3), lambda: interp.load("nowhere.gguf"), lambda: interp.load(3),
        lambda: interp.load("/dev/null"),
    ]  # fmt: skip

    def nested(value: Any, hook: Any) -> None:
        lens(TEXT)

    for call in wrong:
        with suppress(InterpError, NotImplementedError):
            call()


def other_attention(lens: Any) -> None:
    """A model that is changed between two calls is learnt anew."""
    before = lens.model.config._attn_implementation
    try:
        lens.model.set_attn_implementation("eager")
        lens(TEXT)
    finally:
        lens.model.set_attn_implementation(before)
    lens(TEXT)


def encoder(lens: Any) -> None:
    lens.run_with_cache("w4 w5 w6", names_filter=seen_in_code, decoder_input="w7 w8")
    lens.generate(["w4 w5 w6", "w7"], decoder_input=["w7", "w8"], **GENERATE)
    lens.run_with_hooks(TEXT, decoder_input=TEXT[:, :2], use_cache=True, fwd_hooks=HOOKS[:1])
    lens.score("w4 w5 w6", "w7 w8")
    lens(TEXT, labels=TEXT[:, :3], return_type="loss")


def of_a_folder(lens: Any) -> None:
    interp.load(folder_of_weights())


@cache
def folder_of_weights() -> str:
    folder = tempfile.mkdtemp()
    lens_of("llama").model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def bridge_runs(lens: Any) -> None:
    lens.run_with_cache(TEXT, names_filter=["blocks.0.attn.hook_pattern", "blocks.0.attn.hook_event"])
    lens.generate(TEXT, max_new_tokens=1, verbose=False)


def of_method(one: Any, ask: Callable[[Any, Any, Any], None]) -> Scenario:
    """An intervention on a text, with places of images in it where it asks for them."""
    if getattr(one, "reads_images", False):
        return "image places", lambda lens: ask(lens, one, with_places(LONG))
    return "llama", lambda lens: ask(lens, one, LONG)


def pictures(lens: Any) -> None:
    lens.run_with_cache("w1 <image> w3", images=[picture()], names_filter=seen_in_code)
    lens.generate(["w1 <image> w3", "<image>"], images=[[picture()], [picture(1)]], **GENERATE)
    interp.probe(lens, "w1 <image> w3", images=[picture()])


FIRST: dict[str, Scenario] = {
    "plain": ("llama", lambda lens: lens(TEXT)),
    "cache": ("llama", lambda lens: lens.run_with_cache(TEXT)),
    "hooks": ("llama", lambda lens: in_hooks(lens, HOOKS)),
    "policy": ("llama", lambda lens: generate(lens, interp.H2O(budget=8))),
    "prefill": ("llama", lambda lens: generate(lens, interp.SnapKV(budget=8, window=4), names_filter="hook_embed")),
    "edit": ("llama", lambda lens: generate(lens, interp.KnockOut(keys=0) | interp.StreamingLLM(budget=8))),
    "score": ("llama", lambda lens: score(lens, interp.Temperature(temperature=2.0))),
    "autocast": ("llama", autocast),
    "building": ("llama", lambda lens: interp.load(lens.model)),
    "in code": ("bloom", lambda lens: lens.run_with_cache(TEXT, names_filter=seen_in_code)),
    "sdpa in code": ("falcon", lambda lens: lens.run_with_cache(TEXT)),
    "bridge": ("bridge", lambda lens: in_hooks(lens, HOOKS[:1] + HOOKS[3:])),
}
"""Every line of these is tried in each of them."""
_TAUGHT = interp.Temperature(temperature=2.0) | interp.KnockOut(keys=0) | interp.SinkRemoval()
FURTHER: dict[str, Scenario] = {
    "everything": ("llama", everything),
    "activations": ("llama", activations),
    "gradients": ("llama", gradients),
    "texts": ("llama", texts),
    "beams": ("llama", lambda lens: beams(lens, interp.H2O(budget=4))),
    "beams in the prompt": ("llama", lambda lens: beams(lens, interp.SnapKV(budget=4,
    window=2) | interp.ThinK(window=2))),
    "beams and edits": ("llama", lambda lens: beams(lens, interp.KnockOut(keys=1) | interp.TOVA(budget=4))),
    "streaming": ("llama", lambda lens: generate(lens, interp.TOVA(budget=6), streamer=Streamer())),
    "account": ("llama", lambda lens: account(lens, TEXT, interp.H2O(budget=6), 3)),
    "patch": ("llama", lambda lens: interp.patch(
        lens, TEXT[:, :3], TEXT[:, 3:6], "attn.hook_pattern", logit_difference(7, 8), by="head")),
    "probe": ("llama", lambda lens: interp.probe(lens, ["w4 w5 w6 w7 w8", "w9"])),
    "explain": ("llama", lambda lens: interp.explain(lens, interp.H2O(budget=8) | interp.ThinK(window=4), LONG,
    TEXT[:, :4])),
    "explain edits": ("llama", lambda lens: interp.explain(lens, interp.D2O(budget=0.3, skip=()), LONG, TEXT[:, :4],
    "ledger")),
    "side by side": ("llama", lambda lens: interp.side_by_side(lens, TEXT, interp.TOVA(budget=6), 2)),
    "saved": ("llama", saved),
    "cropped": ("llama", cropped),
    "written": ("llama", written),
    "lost": ("llama", lost),
    "answered": ("llama", answered),
    "refused": ("llama", refused),
    "changed model": ("llama", other_attention),
    "folder": ("llama", of_a_folder),
    "windows": ("gemma3", lambda lens: generate(lens, interp.H2O(budget=8) | interp.ThinK(window=4), LONG)),
    "windows and edits": ("gemma3", lambda lens: generate(lens, _TAUGHT, LONG, names_filter=seen_in_code)),
    "sinks": ("gpt_oss", lambda lens: generate(lens, _TAUGHT | interp.H2O(budget=8), LONG)),
    "sinks seen": ("gpt_oss", everything),
    "learned positions": ("gpt2", everything),
    "learned positions, building": ("gpt2", lambda lens: interp.load(lens.model)),
    "two texts": ("bart", encoder),
    "two texts, probed": ("bart", lambda lens: interp.probe(lens, ["w4 w5 w6", "w7"], ["text_sinks"])),
    "two texts, building": ("bart", lambda lens: interp.load(lens.model)),
    "biased": ("t5", encoder),
    "biased, building": ("t5", lambda lens: interp.load(lens.model)),
    "in code, building": ("bloom", lambda lens: interp.load(lens.model)),
    "window in code": ("gpt_neo", lambda lens: lens.run_with_cache(TEXT, names_filter=seen_in_code)),
    "hybrid": ("qwen3_next", lambda lens: generate(lens, interp.H2O(budget=8), names_filter=seen_in_code)),
    "hybrid, building": ("qwen3_next", lambda lens: interp.load(lens.model)),
    "bridge seen": ("bridge", bridge_runs),
    "bridge, building": ("bridge", lambda lens: interp.load(lens.bridge)),
    "pictures": ("llava", pictures),
    "pictures, building": ("llava", lambda lens: interp.load(lens.model)),
    **{f"{name}, in pieces": of_method(one, in_pieces) for name, one in EXAMPLES.items()},
    **{f"{name}, generating": of_method(one, generate) for name, one in EXAMPLES.items()},
}  # fmt: skip
"""Lines of these are tried where no scenario before has passed them."""
if RECENT:
    FURTHER |= {
        "latents": ("deepseek_v3", lambda lens: generate(lens, interp.H2O(budget=8), LONG)),
        "latents, packed": ("deepseek_v3", lambda lens: in_pieces(lens, interp.SnapKV(budget=8, window=4))),
        "latents seen": ("deepseek_v3", everything),
        "latents, building": ("deepseek_v3", lambda lens: interp.load(lens.model)),
        "indexed latents": ("deepseek_v32", lambda lens: generate(lens, interp.SnapKV(budget=8, window=4), LONG)),
        "indexed latents, steps": ("deepseek_v32", lambda lens: generate(lens, interp.TOVA(budget=8), LONG)),
    }
SCENARIOS = FIRST | FURTHER
