"""Tiny random models of real architectures: what the seam is tested on. Three layers, width 64, vocabulary 128."""

from __future__ import annotations

from functools import cache

import torch
import transformers as hf
from packaging.version import Version
from tokenizers import Tokenizer, models, pre_tokenizers

SHAPE = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 8,
    "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
GROUPED = {**SHAPE, "num_key_value_heads": 2}
LOCAL_GLOBAL = ["sliding_attention", "full_attention", "sliding_attention"]

BUILDERS = {
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)),
    "qwen3": lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GROUPED, head_dim=16)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**GROUPED, sliding_window=5)),
    "gemma2": lambda: hf.Gemma2ForCausalLM(
        hf.Gemma2Config(**GROUPED, head_dim=8, sliding_window=5, attn_logit_softcapping=2.0, query_pre_attn_scalar=2,
                        layer_types=LOCAL_GLOBAL)),
    "gemma3": lambda: hf.Gemma3ForCausalLM(
        hf.Gemma3TextConfig(**GROUPED, head_dim=8, sliding_window=5, layer_types=LOCAL_GLOBAL,
        query_pre_attn_scalar=8)),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SHAPE, rotary_pct=0.25)),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=128, n_positions=512, n_embd=64, n_layer=3, n_head=8, bos_token_id=0, eos_token_id=1,
                      pad_token_id=2)),
    "phi3": lambda: hf.Phi3ForCausalLM(hf.Phi3Config(**GROUPED)),
    "phi": lambda: hf.PhiForCausalLM(hf.PhiConfig(**GROUPED, partial_rotary_factor=0.5)),
    "olmo2": lambda: hf.Olmo2ForCausalLM(hf.Olmo2Config(**GROUPED)),
    "gpt_oss": lambda: hf.GptOssForCausalLM(
        hf.GptOssConfig(**GROUPED, head_dim=8, sliding_window=5, num_local_experts=4, num_experts_per_tok=2,
                        layer_types=LOCAL_GLOBAL)),
    "granite": lambda: hf.GraniteForCausalLM(
        hf.GraniteConfig(**GROUPED, residual_multiplier=0.22, logits_scaling=3.0, attention_multiplier=0.3)),
    "cohere": lambda: hf.CohereForCausalLM(hf.CohereConfig(**GROUPED)),
    "smollm3": lambda: hf.SmolLM3ForCausalLM(hf.SmolLM3Config(**GROUPED, no_rope_layers=[1, 0, 1])),
    "stablelm": lambda: hf.StableLmForCausalLM(hf.StableLmConfig(**GROUPED, partial_rotary_factor=0.25)),
}  # fmt: skip
NAMES = tuple(BUILDERS)
LATENT_SHAPE = {
    **SHAPE, "num_key_value_heads": 8, "first_k_dense_replace": 3, "kv_lora_rank": 16, "q_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12,
}  # fmt: skip
RECENT = Version(hf.__version__) >= Version("5.23")
LATENT = {
    "deepseek_v3": lambda: hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**LATENT_SHAPE)),
    "deepseek_v32": lambda: hf.DeepseekV32ForCausalLM(
        hf.DeepseekV32Config(**LATENT_SHAPE, index_n_heads=32, index_head_dim=16, index_topk=6)),
} if RECENT else {}  # fmt: skip
"""Multi-head latent attention, of all earlier tokens and of those that an index chooses, by so many heads that no two
tokens score alike. Older releases cache keys and values."""
PARALLEL = ("gpt_neox", "phi", "cohere")
ROTARY = tuple(n for n in NAMES if n != "gpt2")


def tiny(name: str) -> hf.PreTrainedModel:
    """A fresh model with seeded weights large enough that attention is far from uniform."""
    torch.manual_seed(0)
    model = (BUILDERS | LATENT)[name]().eval()
    if name == "gemma2":
        model.set_attn_implementation("eager")  # newer releases' default; older ones take sdpa and lose the softcap
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4.0)
            elif parameter.abs().sum() == 0:
                parameter.normal_(0, 0.1)  # biases and gpt-oss' sinks start at zero or uninitialised
        for module in model.modules():
            if isinstance(getattr(module, "sinks", None), torch.nn.Parameter):
                module.sinks.normal_(0, 1)
            if name in LATENT and hasattr(module, "kv_a_layernorm"):
                module.kv_a_layernorm.weight.uniform_(0.2, 2.0)  # else all latents would have one length
    return model


@cache
def shared(name: str) -> hf.PreTrainedModel:
    """One model of each kind for tests that leave it as it was."""
    return tiny(name)


def tokens(batch: int = 2, length: int = 12, seed: int = 1) -> torch.Tensor:
    return torch.randint(4, 128, (batch, length), generator=torch.Generator().manual_seed(seed))


def tokenizer(n: int = 128) -> hf.PreTrainedTokenizerFast:
    """A word-level tokenizer that knows w4 ... w127 and needs no hub."""
    vocabulary = {"<bos>": 0, "<eos>": 1, "<pad>": 2, "<unk>": 3, **{f"w{i}": i for i in range(4, n)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>",
        name_or_path="tiny", add_bos_token=True,
    )  # fmt: skip
