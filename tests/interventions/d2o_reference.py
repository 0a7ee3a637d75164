"""D2O by hand: a plain transformers model, attention maps held whole, loops over heads and tokens in double precision.

Written from the paper's description and the released code, with nothing taken from the library. A text at a time: each
has its own plain DynamicCache, whose keys and values are overwritten after every step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers as hf
from transformers import AttentionInterface, AttentionMaskInterface

from tests.models import GROUPED, SHAPE

NAME = "materialised"
_patterns: dict[int, torch.Tensor] = {}
"""Attention `[head, query, key]` of every layer in the last call of a model loaded with `materialised`."""


def materialised(module: Any, q: Any, k: Any, v: Any, mask: Any, scaling: float | None = None, **_: Any) -> Any:
    """Causal attention of one text: the last query sees all keys, whatever positions they stand for."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = q @ k.mT * (q.shape[-1] ** -0.5 if scaling is None else scaling)
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(scores.shape[-1] - scores.shape[-2] + 1)
    pattern = scores.masked_fill(later, -math.inf).softmax(-1)
    _patterns[module.layer_idx] = pattern[0]
    return (pattern @ v).transpose(1, 2), pattern


AttentionInterface.register(NAME, materialised)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-5) -> None:
    """What a live cache holds against what was computed by hand, in double precision."""
    torch.testing.assert_close(found, wanted.to(found.dtype), rtol=tolerance, atol=tolerance)


def deep(name: str, layers: int = 5, **settings: Any) -> Any:
    """A seeded model of more layers than tests.models builds, so that skipping 0, 1 and the last leaves some."""
    torch.manual_seed(0)
    if name == "gpt2":
        shape = {"n_embd": 64, "n_layer": layers, "n_head": 8, "n_positions": 512}
        model = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=128, bos_token_id=0, eos_token_id=1, **shape, **settings))
    else:
        shape = SHAPE if settings.pop("multi_head", False) else GROUPED
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**{**shape, "num_hidden_layers": layers, **settings}))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.mul_(4.0)
    return model.eval()


@dataclass(frozen=True)
class Rules:
    """What is open in D2O; `PAPER` and `CODE` close it. A method's settings bear the same names in the library."""

    metric: str
    budget: float
    recent_share: float
    skip: tuple[int, ...]
    weights: str
    gate: str
    beta: float
    compress_at: str
    sinks: int = 4
    merge: str = "key_value"
    centre: float = math.e


def paper(budget: float, n_layers: int) -> Rules:
    """Raw variance, N:M = 3:1, no layer skipped, normalised exponential weights, a gate for every token, after
    prefill."""
    return Rules("paper_raw", budget, 1 / 4, (), "paper", "per_head", 0.7, "prefill_end")


def code(budget: float, n_layers: int) -> Rules:
    """Variances rescaled between heads, N:M = 1:1, first two and last layer skipped, scatter-mean, a gate for slots of
    all heads, in the first decode step."""
    return Rules("code_minmax", budget, 1 / 2, (0, 1, n_layers - 1), "code", "slot_mean", 0.5, "first_decode")


VARIANTS = {"paper": paper, "code": code}


@dataclass
class Token:
    position: int
    key: torch.Tensor
    value: torch.Tensor
    mass: float


@dataclass
class Text:
    """One text of the batch: `heads[layer][head]` are its tokens; `size[layer]` is None for a layer left to grow."""

    cache: hf.DynamicCache
    seen: int
    heads: dict[int, list[list[Token]]] = field(default_factory=dict)
    threshold: dict[int, list[float]] = field(default_factory=dict)
    size: dict[int, int | None] = field(default_factory=dict)
    gates: list[tuple[int, float, float]] = field(default_factory=list)
    """(layer, similarity, threshold) of everything that was gated: for tests to see that both outcomes occur."""


class Reference:
    """A model that has read prompts `ids [batch, token]` under `rules`; `logits` are those of the last call.

    sizes: of each layer's cache, instead of what the rules' budgets say (for a text that was padded).
    """

    def __init__(self, model: Any, ids: torch.Tensor, rules: Rules, sizes: list[int] | None = None) -> None:
        model.set_attn_implementation(NAME)
        self.model, self.rules, self.sizes = model, rules, sizes
        self.n_layers, self.prompt = model.config.num_hidden_layers, ids.shape[1]
        self.texts = [Text(hf.DynamicCache(config=model.config), 0) for _ in ids]
        self.variances: list[list[list[float]]] = []  # [text][layer][head]
        self.logits = torch.cat([self._read(text, row) for text, row in zip(self.texts, ids, strict=True)])
        self.sizes_by_budget = self._sizes()
        if rules.compress_at == "prefill_end":
            self._compress()

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Feed one token `[batch, 1]` to each text; logits `[batch, 1, d_vocab]`."""
        parts = [self._decode(text, row) for text, row in zip(self.texts, ids, strict=True)]
        self.logits = torch.cat(parts)
        if not self.texts[0].size:
            self._compress()
        else:
            for text in self.texts:
                for layer in range(self.n_layers):
                    self._fit(text, layer)
        return self.logits

    @torch.no_grad()
    def nll(self, continuation: torch.Tensor) -> torch.Tensor:
        """Loss of every token of `continuation [batch, token]`, which is fed one token at a time but for the last."""
        losses = []
        for i in range(continuation.shape[1]):
            distribution = self.logits[:, -1].double().log_softmax(-1)
            losses.append(-distribution.gather(1, continuation[:, i : i + 1]))
            if i + 1 < continuation.shape[1]:
                self.step(continuation[:, i : i + 1])
        return torch.cat(losses, 1)

    @torch.no_grad()
    def _read(self, text: Text, ids: torch.Tensor) -> torch.Tensor:
        logits = self.model(ids[None], past_key_values=text.cache, use_cache=True).logits
        text.seen = len(ids)
        variances = []
        for layer in range(self.n_layers):
            sums = _patterns[layer].double().sum(1)  # [query head, token]
            variances.append([sample_variance(row) for row in sums.tolist()])
            text.heads[layer] = [[] for _ in range(text.cache.layers[layer].keys.shape[1])]
            for position in range(text.seen):
                self._append(text, layer, position)
            self._receive(text, layer, sums)
        self.variances.append(variances)
        return logits

    @torch.no_grad()
    def _decode(self, text: Text, ids: torch.Tensor) -> torch.Tensor:
        at = torch.tensor([[text.seen]])
        logits = self.model(ids[None], position_ids=at, past_key_values=text.cache, use_cache=True).logits
        for layer in range(self.n_layers):
            self._append(text, layer, text.seen, slot=-1)
            self._receive(text, layer, _patterns[layer][:, 0].double())
        text.seen += 1
        return logits

    def _append(self, text: Text, layer: int, position: int, slot: int | None = None) -> None:
        stored = text.cache.layers[layer]
        slot = position if slot is None else slot
        for h, tokens in enumerate(text.heads[layer]):
            tokens.append(Token(position, stored.keys[0, h, slot].double(), stored.values[0, h, slot].double(), 0.0))

    def _receive(self, text: Text, layer: int, rows: torch.Tensor) -> None:
        """Attention received, `[query head, token]`, summed over the query heads of a group."""
        group = len(rows) // len(text.heads[layer])
        for head, row in enumerate(rows.tolist()):
            for token, received in zip(text.heads[layer][head // group], row, strict=True):
                token.mass += received

    def _sizes(self) -> list[int | None]:
        """Tokens that every layer keeps; None where it is left alone."""
        rules = self.rules
        densities = [
            self._density([mean([text[layer][h] for text in self.variances]) for h in range(len(self.variances[0][0]))])
            for layer in range(self.n_layers)
        ]
        shares = [
            min(max(math.exp(-own) / sum(math.exp(-f) for f in densities) * self.n_layers * rules.budget, 0.01), 1.0)
            for own in densities
        ]
        tokens = self.prompt + (rules.compress_at == "first_decode")
        sizes = [max(rules.sinks + 1, math.floor(share * tokens + 1e-9)) for share in shares]
        return [None if size >= tokens or layer in rules.skip else size for layer, size in enumerate(sizes)]

    def _density(self, variances: list[float]) -> float:
        match self.rules.metric:
            case "uniform":
                return 0.0
            case "paper_raw":
                return mean(variances)
            case "log":
                return mean([math.log(1 + v) / math.log(1 + self.prompt) for v in variances])
        least, most = min(variances), max(variances)
        return mean([(v - least) / (most - least + 1e-6) for v in variances])

    def _compress(self) -> None:
        for text in self.texts:
            for layer in range(self.n_layers):
                text.size[layer] = self.sizes_by_budget[layer] if self.sizes is None else self.sizes[layer]
                self._fit(text, layer)

    def _fit(self, text: Text, layer: int) -> None:
        """Bring a layer to its size: heavy hitters outside the recent window stay, and the window."""
        size = text.size[layer]
        if size is None or len(text.heads[layer][0]) <= size:
            return
        recent = min(int(size * self.rules.recent_share), size - self.rules.sinks)
        evicted, retained = [], []
        for tokens in text.heads[layer]:
            old, window = tokens[: len(tokens) - recent], tokens[len(tokens) - recent :]
            ranked = sorted(old, key=lambda t: -math.inf if t.position < self.rules.sinks else -t.mass)
            kept = {id(token) for token in ranked[: size - recent]}
            evicted.append([token for token in old if id(token) not in kept])
            retained.append([token for token in old if id(token) in kept] + window)
        if self.rules.merge != "none":
            retained = self._merge(text, layer, evicted, retained)
        text.heads[layer] = retained
        stored = text.cache.layers[layer]
        stored.keys = torch.stack([torch.stack([t.key for t in head]) for head in retained])[None].float()
        stored.values = torch.stack([torch.stack([t.value for t in head]) for head in retained])[None].float()

    def _merge(
        self, text: Text, layer: int, evicted: list[list[Token]], retained: list[list[Token]]
    ) -> list[list[Token]]:
        heads, slots = len(evicted), len(evicted[0])
        target = [[0] * slots for _ in range(heads)]
        similarity = [[0.0] * slots for _ in range(heads)]
        for h in range(heads):
            for n, token in enumerate(evicted[h]):
                cosines = [cosine(token.key, other.key) for other in retained[h]]
                similarity[h][n] = max(cosines)
                target[h][n] = cosines.index(max(cosines))
        by_slot = self.rules.gate == "slot_mean"
        seen = [mean(row) for row in similarity]
        if by_slot:
            seen = [mean(seen)] * heads
        before, beta = text.threshold.get(layer), self.rules.beta
        threshold = seen if before is None else [(1 - beta) * b + beta * s for b, s in zip(before, seen, strict=True)]
        text.threshold[layer] = threshold
        after = [[replace(token) for token in head] for head in retained]
        for h in range(heads):
            into: dict[int, list[tuple[float, Token]]] = {}
            for n, token in enumerate(evicted[h]):
                judged = mean([row[n] for row in similarity]) if by_slot else similarity[h][n]
                text.gates.append((layer, judged, threshold[h]))
                if judged >= threshold[h]:
                    into.setdefault(target[h][n], []).append((similarity[h][n], token))
            for j, sources in into.items():
                after[h][j].value = self._average(retained[h][j].value, [(u, t.value) for u, t in sources])
                if self.rules.merge == "key_value":
                    after[h][j].key = self._average(retained[h][j].key, [(u, t.key) for u, t in sources])
        return after

    def _average(self, own: torch.Tensor, sources: list[tuple[float, torch.Tensor]]) -> torch.Tensor:
        if self.rules.weights == "code":
            return sum((u * x for u, x in sources), own) / (1 + len(sources))
        total = self.rules.centre + sum(math.exp(u) for u, _ in sources)
        return sum((math.exp(u) / total * x for u, x in sources), self.rules.centre / total * own)


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def sample_variance(numbers: list[float]) -> float:
    middle = mean(numbers)
    return sum((x - middle) ** 2 for x in numbers) / (len(numbers) - 1)


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
