"""ThinK: key channels that no query asks for are dropped from the cache (Xu et al., ICLR 2025, arXiv:2407.21018)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from interp_kernels import channel_gram
from jaxtyping import Float

from interp.cache.segments import Segment, others
from interp.errors import InterpError
from interp.interventions.base import CachePolicy, ChannelEntry, Plan, Prompt
from interp.interventions.policies import _channels
from interp.interventions.policies._window import window_read
from interp.seam.event import AttentionEvent

if TYPE_CHECKING:
    from interp.cache.stored_layer import StoredLayer
    from interp.seam.config import LensConfig

Tensor = torch.Tensor


@dataclass(frozen=True)
class ThinK(CachePolicy):
    """Prune key channels after the prompt, once a layer; the mask stays, and new tokens are stored with all channels.

    A channel's score is the norm of its share in the logits, ‖Q[:, j] K[:, j]ᵀ‖_F over the last `window` queries of the
    prompt, which ranks as mean(Q[:, j]²) * mean(K[:, j]²) does (released code). The ⌊ratio * d_head⌋ channels with the
    smallest scores go, from all tokens but the last `recent`. Scores keep their 1 / √d_head.

    In latent attention the channels of a latent are key and value at once, and dropping them as keys would free
    nothing: they stay, and a share of `ratio` of the rotated channels beside them goes, by the same scores. That
    frees little: at 0.5 in DeepSeek-V3 32 channels of 576.

    Args:
        ratio: share of key channels pruned, 0 <= ratio < 1; 0 changes nothing. The paper sweeps 0.4 to 0.6.
        window: queries at the prompt's end that judge; of a shorter prompt all of them, None: all in any case (ours).
        recent: tokens at the prompt's end that keep all channels.
        sinks: tokens at the prompt's beginning that keep all channels too (ours; 0 as published).
        compensate: fold pruned channels into kept ones by ridge regression over all queries of the prompt (ours).
        ridge: its strength, as a share of the mean query energy.
        selector: "think"; "gram", backward elimination on the exact loss (ours); "surgeon", elimination that reckons
            with compensation (ours); "key_norm", without queries; "random".
        fill: what stands for a pruned channel: "zero" as published, or "mean" (ours), its mean over the pruned tokens,
            one number a channel. Softmax does not see what all keys share, so scores then count what differs between
            tokens: variance in place of energy.
        weigh: whether all "tokens" count alike in scores and means, as published, or by the "attention" that they
            received (ours): an error in a logit matters as much as its token is attended to.
        granularity: one channel set a key/value head, from the mean query energy of its group (as kvpress), or one a
            query head as in the release, where grouped keys are then stored once for every query head.
        score_tokens: keys that enter the score: "all" as released, or "prunable", those that lose channels.
        rounding: "code", ⌊ratio * d_head⌋ pruned; "paper", ⌊(1 - ratio) * d_head⌋ kept.
        value_ratio: share of value channels pruned from the same tokens (the paper's extension; not in its code).
        value_score: "magnitude", mean V²; "attn", ‖A[window] V[:, j]‖; "attn_wo", that times ‖W_O[j, :]‖, which is the
            exact error of a single channel where no group shares it; over a group, squares are summed.
        seed: of the random selector.

    Differs from the release: keys are stored at key/value-head granularity and what is pruned is freed (its flash build
    fills zeros in again at every step); batches, left padding and chunked prefill work.

    Examples:
        >>> text = lens.generate(prompt, max_new_tokens=4)
        >>> dense = lens.last_cache.nbytes()
        >>> with lens.apply(interp.ThinK(ratio=0.5, window=8, recent=8)):
        ...     text = lens.generate(prompt, max_new_tokens=4)
        >>> lens.last_cache.nbytes() < 0.9 * dense
        True
    """

    name: ClassVar[str] = "think"
    stage: ClassVar[Literal["tokens", "channels"]] = "channels"
    ratio: float = 0.4
    window: int | None = 32
    recent: int = 32
    sinks: int = 0
    compensate: bool = False
    ridge: float = 0.01
    selector: Literal["think", "gram", "surgeon", "key_norm", "random"] = "think"
    fill: Literal["zero", "mean"] = "zero"
    weigh: Literal["tokens", "attention"] = "tokens"
    granularity: Literal["kv_head", "query_head"] = "kv_head"  # type: ignore[misc]  # a setting here, fixed elsewhere
    score_tokens: Literal["all", "prunable"] = "all"
    rounding: Literal["code", "paper"] = "code"
    value_ratio: float = 0.0
    value_score: Literal["magnitude", "attn", "attn_wo"] = "attn_wo"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("ratio", "value_ratio"):
            if not 0 <= getattr(self, name) < 1:
                raise InterpError(f"think: {name} should be at least 0 and below 1, found {getattr(self, name)}.")
        if (
            (self.window is not None and self.window < 1)
            or self.recent < 0
            or self.sinks < 0
            or not self.ridge > 0
            or self.seed < 0
        ):
            raise InterpError("think: window should be at least 1, recent, sinks and seed at least 0, ridge above 0.")

    @classmethod
    def recommended(cls, ratio: float = 0.5, **settings: Any) -> ThinK:
        """The settings that lost least on the demo model (`python -m benchmarks cache_quality`); all are ours.

        Against ThinK as published the loss of 256 tokens after 1,024 rose by 0.016 in place of 0.023 nats a token at
        ratio 0.5, by 0.080 in place of 0.174 at 0.7, and by 0.213 in place of 0.306 at 0.9 (mean of sixteen excerpts;
        less in 9, 16 and 16 of them). It costs the bytes of four dense tokens and one mean a pruned channel.

        Examples:
            >>> interp.ThinK.recommended(0.7).selector
            'surgeon'
        """
        ours: dict[str, Any] = {
            "sinks": 4, "compensate": True, "selector": "surgeon", "fill": "mean", "weigh": "attention",
            "score_tokens": "prunable",
        }  # fmt: skip
        return cls(ratio=ratio, **(ours | settings))

    @property
    def takes_over(self) -> bool:
        """Whether kept channels do the work of pruned ones, for which all queries of the prompt are wanted."""
        return self.compensate or self.selector == "surgeon"

    def unfit_for_latents(self, cfg: LensConfig) -> str | None:
        if self.value_ratio:
            return "its values are latents, which are keys too, so pruning their channels frees nothing"
        if cfg.latent_widths is not None and cfg.latent_widths[1] == 0:
            return "its keys are latents alone, which are values too, so pruning their channels frees nothing"
        return super().unfit_for_latents(cfg) if self.granularity == "query_head" else None

    def begin(self, prompt: Prompt) -> Plan:
        return _ThinKPlan(self, prompt)


BY_SELECTOR = {
    "think": "mean q² of the last queries times mean k²",
    "gram": "what dropping the channel adds to the squared error of q·k, given the channels dropped before it",
    "surgeon": "the square of what other channels cannot take over of its q·k, given the channels dropped before it",
    "key_norm": "mean k²",
    "random": "a random number",
}
"""What the score of each selector is: a mean over tokens, as `weigh` weighs them, of keys less what `fill` fills in."""
BY_VALUE_SCORE = {
    "magnitude": "mean v²",
    "attn": "squared norm of what the last queries read from the channel",
    "attn_wo": "squared norm of what the last queries read from the channel, times that of its row of W_O",
}


class _ThinKPlan(Plan):
    def __init__(self, policy: ThinK, prompt: Prompt) -> None:
        self.policy, self.prompt = policy, prompt
        self.judges: dict[int, _Judge] = {}
        self.queries_needed = None if policy.takes_over or policy.weigh == "attention" else policy.window

    def observe(self, layer: int, event: AttentionEvent) -> None:
        if layer not in self.judges:  # the prompt's queries judge, not those of generated tokens
            self.judges[layer] = _Judge.of(event, self.policy, layer, self.prompt.output_norms)

    def compress(self, layer: int, stored: StoredLayer) -> None:
        policy, judge = self.policy, self.judges.pop(layer)
        k = _channels.pruned_count(stored.d_head - (stored.tied or 0), policy.ratio, policy.rounding)
        k_value = _channels.pruned_count(stored.d_value, policy.value_ratio, policy.rounding)
        if k + k_value == 0:
            return
        heads = self.prompt.cfg.n_heads if policy.granularity == "query_head" else None
        whole = stored.whole(heads)
        old = stored.protect(policy.sinks, policy.recent, heads)
        if len(old) == 0:
            return
        if k:
            judged = whole if policy.score_tokens == "all" else old
            self._pack_keys(layer, judge, judged, old, k, stored)
        if k_value:
            chosen = judge.values(real(whole.values, whole, stored.padding), k_value)
            self._note(layer, "values", chosen)
            stored.pack(value_channels=chosen.kept)

    def _note(self, layer: int, of: Literal["keys", "values"], chosen: _channels.Chosen) -> None:
        """Write down what channels were chosen by, if somebody keeps account."""
        if self.channel_ledger is not None:
            about = BY_SELECTOR[self.policy.selector] if of == "keys" else BY_VALUE_SCORE[self.policy.value_score]
            self.channel_ledger.append(ChannelEntry(layer, of, chosen.score.clone(), about))

    def reorder(self, rows: Tensor) -> None:
        # judges are there from the prompt until a token policy that waits has compressed
        self.judges = {layer: judge.of_rows(rows) for layer, judge in self.judges.items()}

    def _pack_keys(self, layer: int, judge: _Judge, judged: Segment, old: Segment, k: int, stored: StoredLayer) -> None:
        """Drop k key channels of `old`, chosen by how the keys of `judged` spread."""
        policy, padding, tied = self.policy, stored.padding, stored.tied or 0
        spread = judged.keys[..., tied:].float() - judge.centre(judged, padding)
        spread *= judge.weights(judged, padding).sqrt()[..., None]
        chosen = judge.keys(spread, k, (policy.seed, layer))
        kept, score = chosen
        centre = judge.centre(old, padding)
        keys = old.keys[..., tied:].float() - centre
        if policy.compensate:
            keys = _channels.compensated(keys, kept, judge.all_gram, policy.ridge)
        mean = None
        if policy.fill == "mean":
            mean = centre[:, :, 0].gather(-1, others(kept, keys.shape[-1])).to(old.keys.dtype)
        keys = (keys + centre).to(old.keys.dtype)
        if tied:  # channels that are values too stay, and nothing ranks them
            values = torch.arange(tied, device=kept.device).expand(*kept.shape[:2], -1)
            kept = torch.cat([values, kept + tied], -1)
            score = torch.nn.functional.pad(score, (tied, 0), value=torch.nan)
            keys = torch.cat([old.values, keys], -1)
        self._note(layer, "keys", _channels.Chosen(kept, score))
        stored.pack(kept, keys=keys, key_mean=mean)


@dataclass(frozen=True)
class _Judge:
    """What the prompt's queries say about a layer's channels, by stored head, fp32."""

    policy: ThinK
    mass: Float[Tensor, "batch head token"]
    """Attention that each token of the prompt received, where it weighs."""
    energy: Float[Tensor, "batch head d"]
    """Mean square of the last `window` queries, over the group too."""
    gram: Float[Tensor, "batch head d d"]
    """QᵀQ of the same queries, summed over the group."""
    all_gram: Float[Tensor, "batch head d d"]
    """QᵀQ of all queries of the prompt."""
    read: Float[Tensor, "batch head d_value"] | None
    """Squared norm of what the window reads from each value channel, with W_O's norms where asked for."""

    @classmethod
    def of(cls, event: AttentionEvent, policy: ThinK, layer: int, output_norms: Callable[[int], Tensor]) -> _Judge:
        q = event.q[..., event.tied or 0 :].float()
        if (rows := event.facts.get("query_mask")) is not None:
            q = q.masked_fill(~rows[:, None, :, None], 0.0)
        group = 1 if policy.granularity == "query_head" else q.shape[1] // event.k.shape[1]
        grouped = torch.unflatten(q, 1, (-1, group))  # [batch, head, group, query, d]
        last = grouped if policy.window is None else grouped[:, :, :, -policy.window :]
        empty = q.new_empty(0)
        return cls(
            policy,
            mass=torch.unflatten(event.column_mass, 1, (-1, group)).sum(2) if policy.weigh == "attention" else empty,
            energy=last.square().mean((2, 3)),
            gram=channel_gram(last.flatten(1, 2), heads=last.shape[1]) if policy.selector == "gram" else empty,
            all_gram=channel_gram(q, heads=last.shape[1]) if policy.takes_over else empty,
            read=cls._read(event, policy, group, layer, output_norms),
        )

    def of_rows(self, rows: Tensor) -> _Judge:
        """What the queries of `rows` of the batch say."""
        held = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen: dict[str, Any] = {
            name: x.index_select(0, rows.to(x.device))
            for name, x in held.items()
            if isinstance(x, Tensor) and x.numel()
        }
        return replace(self, **chosen)

    @staticmethod
    def _read(
        event: AttentionEvent, policy: ThinK, group: int, layer: int, norms: Callable[[int], Tensor]
    ) -> Tensor | None:
        if not policy.value_ratio or policy.value_score == "magnitude":
            return None
        z = window_read(event, policy.window or event.q.shape[2])
        read = z.square().sum(2)
        if policy.value_score == "attn_wo":
            read = read * norms(layer).to(read.dtype).square()
        return torch.unflatten(read, 1, (-1, group)).sum(2)

    def weights(self, segment: Segment, padding: Tensor | None) -> Float[Tensor, "batch head token"]:
        """How much each token's key counts: all alike, or as the attention it received; 0 for padding, sum 1."""
        shape = segment.keys.shape[:3]
        weights = torch.ones(shape, device=segment.keys.device)
        at = segment.at().expand(shape).long()
        if self.policy.weigh == "attention":
            beyond = max(0, int(at.max()) + 1 - self.mass.shape[-1])  # tokens generated since have received nothing
            weights = torch.nn.functional.pad(self.mass, (0, beyond)).gather(2, at)
        if padding is not None:
            weights = weights.masked_fill(at < padding[:, None, None], 0.0)
        return weights / weights.sum(-1, keepdim=True).clamp_min(1e-30)

    def centre(self, segment: Segment, padding: Tensor | None) -> Float[Tensor, "batch head 1 d"]:
        """What a pruned channel is filled with: zero, or the weighted mean of a segment's keys. Of channels that may be
        pruned."""
        keys = segment.keys[..., segment.tied or 0 :]
        if self.policy.fill == "zero":
            return torch.zeros_like(keys[:, :, :1], dtype=torch.float32)
        return (self.weights(segment, padding)[..., None] * keys).sum(2, keepdim=True)

    def keys(self, keys: Tensor, k: int, seed: tuple[int, ...]) -> _channels.Chosen:
        """Key channels that stay, from keys `[batch, head, token, d]` multiplied by the roots of their weights."""
        if self.policy.selector == "gram":
            return _channels.by_elimination(_channels.loss_matrix(self.gram, keys.mT @ keys), k)
        if self.policy.selector == "surgeon":
            return _channels.by_surgery(self.all_gram.double(), (keys.mT @ keys).double(), k, self.policy.ridge)
        if self.policy.selector == "random":
            draw = np.random.default_rng(seed).random(
                keys.shape[1::2], np.float32
            )  # for every text what it draws alone
            return _channels.without_smallest(torch.from_numpy(draw).to(keys.device).expand(len(keys), -1, -1), k)
        score = keys.square().sum(2)
        if self.policy.selector == "think":
            score = score * self.energy
        return _channels.without_smallest(score, k)

    def values(self, values: Tensor, k: int) -> _channels.Chosen:
        """Value channels that stay."""
        score = values.square().mean(2) if self.read is None else self.read
        return _channels.without_smallest(score, k)


def real(x: Tensor, segment: Segment, padding: Tensor | None) -> Float[Tensor, "batch head token d"]:
    """x `[batch, head, token, d]` in fp32 with zeros at padding."""
    if padding is None:
        return x.float()
    return x.float().masked_fill((segment.at() < padding[:, None, None])[..., None], 0.0)
