"""A default config made small by the names of its fields, whatever else it says.

The first rule that matches a field's name gives the most that it may be. Widths, heads and head dims agree with each
other because every config gets the same ones. Layers are chosen so that every kind of layer is there: lists that say
something of each layer keep the entries of the layers chosen, and lists of layer numbers are numbered anew.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from typing import Any

VOCAB, WIDTH, HEADS, KV_HEADS, HEAD_DIM, LAYERS, WINDOW = 128, 64, 4, 2, 16, 3, 6
Fields = dict[str, Any]

RULES: tuple[tuple[str, int], ...] = (
    (r"initial.*|.*seed.*|.*version.*", 1 << 62),
    (r".*vocab_size.*", VOCAB),
    (r"global_head_dim|q_lora_rank", 32),
    (r"qk_rope_head_dim|rotary_dim|laurel_rank|.*chunk_size|mamba_n_heads|mamba_num_heads", 8),
    (r"qk_head_dim", 24),
    (r".*sliding_window.*|.*window_size|local_attention|floor_scale|index_topk", WINDOW),
    (r".*head_dim|.*d_head|d_kv|dim_head|kv_channels|mamba_headdim|query_pre_attn_scalar|.*lora_rank", HEAD_DIM),
    (r"(mamba_)?(d_state|state_size|ssm_state_size)|num_mel_bins|adapter_dim", HEAD_DIM),
    (r"mamba_d_ssm", 128),
    (r"max_.*(positions|embeddings|len|length)|n_positions|n_ctx|seq_length|max_length", 256),
    (r"num_experts_per_tok(en)?|.*top_?k(_experts)?|moe_k|.*_topk_blocks|linear_num_key_heads|index(er)?_n_heads", 2),
    (r"n_mamba_heads|o_groups|zero_expert_num|altup_num_inputs|.*(layer|attention)_(period|interval)", 2),
    (r"n_group|topk_group|num_expert_group|(mamba_)?n_?groups|first_k_dense_replace|(expert|attn)_layer_offset", 1),
    (r"pretraining_tp", 1),
    (r"num_nextn_predict_layers|additional_vocab_size", 0),
    (r".*experts|.*num_heads|lora_r|(time_step|dt)_rank|mamba_dt_rank|index_block_size|.*query_(num|tokens)", 4),
    (r"layer_group_size", 2),
    (r"num_(position_)?embeddings|codebook_size|lru_width|vision_output_dim|projector_hidden_size", WIDTH),
    (r"(in|num)_channels", 3),
    (r".*(intermediate|ffn|mlp).*(size|dim)|.*ffn_dim|d_ff|dff|dim_ff|n_inner|inner_dim|expert_dim", 96),
    (r".*(hidden_size|_dim|dim_model|n_embd|d_model|embed_dim|hidden_dim).*|dim|width|.*embedding_size", WIDTH),
)
HEAD_NAMES = re.compile(r"((encoder_|decoder_)?(num_)?(attention|attn)_heads|n_heads?|(encoder_|decoder_)?num_heads)")
KV_NAMES = re.compile(r"(encoder_|decoder_)?(num_key_value_heads|num_kv_heads|n_kv_heads|kv_n_heads)|num_query_groups")
DEPTH = re.compile(
    r"num_hidden_layers(_encoder)?|n_layers?|num_layers|depth|(en|de)coder_layers|num_(en|de)coder_layers|"
    r"num_blocks|layers"
)
LAYER_NUMBERS = re.compile(r".*(_idxs|_indices|_indexes|_layer_ids|_layers|_layer_list|attn_layer_idx)")
TOKEN = re.compile(r"(?!.*_per_token).*(token_id|token_index|_token|_id|token_ids)")
NOT_TEXT = re.compile(r"vision|audio|vq|image|visual|sam|protein|vit|backbone")
EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2}
LEFT_OUT = {"architectures", "id2label", "label2id", "transformers_version", "_name_or_path", "dtype", "torch_dtype",
            "problem_type", "return_dict", "output_attentions", "output_hidden_states",
            "chunk_size_feed_forward"}  # fmt: skip


@dataclass
class Chosen:
    """The layers that stay, of so many."""

    of: int = 0
    layers: list[int] = field(default_factory=list)

    def __contains__(self, length: int) -> bool:
        return self.of > 1 and length == self.of


@dataclass
class Shrinking:
    """One config made small; the same special token is the same everywhere in it."""

    exceptions: Fields = field(default_factory=dict)
    tokens: dict[int, int] = field(default_factory=dict)

    def small(self, given: Fields, path: str = "") -> Fields:
        """The fields of a config, or of one inside it, whose `path` ends in a dot."""
        chosen, made = _chosen(given, bool(NOT_TEXT.search(path))), {}
        for name, value in given.items():
            if name not in LEFT_OUT and f"{path}{name}" not in {"model_type", *self.exceptions}:
                made[name] = self.value(str(name), value, given, chosen, path)
        for key, value in self.exceptions.items():
            head, _, name = key.rpartition(".")
            if path == (f"{head}." if head else "") and value is not Ellipsis:
                made[name] = copy.deepcopy(value)
        return made

    def value(self, name: str, value: Any, given: Fields, chosen: Chosen, path: str) -> Any:
        if isinstance(value, dict):
            return self.mapping(name, value, given, chosen, path)
        if isinstance(value, (list, tuple)):
            return type(value)(self.sequence(name, value, chosen))
        if value is None:
            return _unsaid(name, given)
        if isinstance(value, bool) or not isinstance(value, int):
            return value
        return value if value <= 0 and not TOKEN.fullmatch(name) else self.number(name, value, given, chosen, path)

    def number(self, name: str, value: int, given: Fields, chosen: Chosen, path: str) -> int:
        if name == "image_size":
            return min(value, 4 * min(_first(given.get("patch_size", 14)), 16))
        if name == "patch_size":
            return min(value, 16)
        if name == "qk_head_dim":
            return min(given["qk_nope_head_dim"], HEAD_DIM) + min(given["qk_rope_head_dim"], 8)
        if name == "head_dim" and value == given.get("qk_rope_head_dim"):
            return min(value, 8)
        if HEAD_NAMES.fullmatch(name):
            return min(value, 8 if "state_size" in given else HEADS)
        if KV_NAMES.fullmatch(name):
            return 1 if value == 1 else HEADS if value >= _heads(given, value) else KV_HEADS
        if DEPTH.fullmatch(name):
            return len(chosen.layers) if value in chosen else min(value, 2 if NOT_TEXT.search(path) else LAYERS)
        if TOKEN.fullmatch(name):
            return self.token(value)
        most = next((most for rule, most in RULES if re.fullmatch(rule, name)), None)
        return _unnamed(name, value) if most is None else min(value, most)

    def token(self, old: int) -> int:
        """Special tokens have the highest numbers, which no text here has; the first few stay what they are."""
        return old if old < 4 else self.tokens.setdefault(old, VOCAB - 1 - len(self.tokens) % 32)

    def mapping(self, name: str, value: Fields, given: Fields, chosen: Chosen, path: str) -> Fields:
        if name in ("rope_parameters", "rope_scaling"):
            return _rotation(value, given)
        if name == "compress_rates":
            return {key: min(rate, 4) for key, rate in value.items()}
        if name == "per_layer_config":
            kept = {chosen.layers.index(int(i)): own for i, own in value.items() if int(i) in chosen.layers}
            return {i: {k: 2 * HEAD_DIM if k == "head_dim" else v for k, v in own.items()} for i, own in kept.items()}
        return self.small(value, f"{path}{name}.")

    def sequence(self, name: str, value: Any, chosen: Chosen) -> list[Any]:
        numbers = bool(value) and all(isinstance(x, int) and not isinstance(x, bool) for x in value)
        if numbers and TOKEN.fullmatch(name):
            return [self.token(x) for x in value]
        if name == "image_size":
            return [min(x, 56) for x in value]
        if chosen.of and numbers and LAYER_NUMBERS.fullmatch(name):
            return [chosen.layers.index(x) for x in value if x in chosen.layers] or [len(chosen.layers) - 1]
        if len(value) in chosen:
            kept = [value[i] for i in chosen.layers]
            return [self.number(name, x, {}, Chosen(), "") if numbers and x > 100 else x for x in kept]
        return list(value)


def _chosen(given: Fields, vision: bool) -> Chosen:
    """Every kind of layer once, at least three (two, where no text is read), at most five."""
    n = next((v for k, v in given.items() if DEPTH.fullmatch(str(k)) and isinstance(v, int) and v > 1), None)
    if n is None:
        return Chosen()
    lists = {k: v for k, v in given.items() if isinstance(v, (list, tuple)) and len(v) == n}
    said = [v for k, v in lists.items() if not LAYER_NUMBERS.fullmatch(k)]
    said = [v for v in said if all(isinstance(x, (str, int, float)) for x in v) and len(set(v)) <= LAYERS + 3]
    kinds = [tuple(v[i] for v in said) for i in range(n)]
    layers = sorted(kinds.index(kind) for kind in dict.fromkeys(kinds))[:5]
    others = (i for i in range(n) if i not in layers)
    while len(layers) < min(n, 2 if vision else LAYERS):
        layers = sorted([*layers, next(others)])
    return Chosen(n, layers)


def _unsaid(name: str, given: Fields) -> int | None:
    """A size that the config would else take from others, which are small by now, or that it cannot do without."""
    if "moe_intermediate_size" in given and name in EXPERTS:
        return EXPERTS[name]
    if not any(HEAD_NAMES.fullmatch(key) and isinstance(value, int) for key, value in given.items()):
        return None
    return HEAD_DIM if name == "head_dim" else KV_HEADS if KV_NAMES.fullmatch(name) else None


def _unnamed(name: str, value: int) -> int:
    """A number that no rule knows: what looks like a size becomes small."""
    if value <= 16:
        return value
    for word, most in (("heads", HEADS), ("rank", HEAD_DIM), ("layers", 2), ("blocks", 2), ("window", WINDOW)):
        if word in name:
            return min(value, most)
    return min(value, WIDTH) if re.search(r"(size|dims?|channels|features|filters|hidden)$", name) else value


def _rotation(value: Fields, given: Fields) -> Fields:
    """Rotary parameters whose lists have the length that the small head dim asks for."""
    made = copy.deepcopy(value)
    for part in (made, *(v for v in made.values() if isinstance(v, dict))):
        share = part.get("partial_rotary_factor") or given.get("partial_rotary_factor") or 1.0
        half = max(1, int(HEAD_DIM * share) // 2)
        if sections := part.get("mrope_section"):
            each = max(1, half // len(sections))
            part["mrope_section"] = [half - each * (len(sections) - 1), *[each] * (len(sections) - 1)]
        for factors in ("short_factor", "long_factor"):
            if isinstance(part.get(factors), list):
                part[factors] = part[factors][: HEAD_DIM // 2]
    return made


def _heads(given: Fields, default: int) -> int:
    return next((v for k, v in given.items() if HEAD_NAMES.fullmatch(k) and isinstance(v, int)), default)


def _first(value: Any) -> int:
    return value if isinstance(value, int) else value[0]
