"""Which channels a policy keeps: alike between heads, layers and prompts? And for how long do they stay right?"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float

from interp.cache.lens_cache import LensCache
from interp.cache.segments import Part
from interp.cache.stored_layer import StoredLayer
from interp.errors import InterpError
from interp.explaining.base import NothingToSay, Question
from interp.explaining.case import Case, one_text
from interp.interventions.keeper import Keeper
from interp.results.described import described
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor
Mask = Bool[Tensor, "head channel"]


@dataclass(frozen=True)
class Masks(Question):
    """Overlap of kept channel sets, as Jaccard indices |A ∩ B| / |A ∪ B|.

    Drift compares the set chosen after the prompt with the one that the same policy would choose had the prompt gone on
    for `checkpoint` more tokens of the continuation, so that its last queries judge. Channels with one number have the
    same rotary frequency in every head and layer, so sets of different heads can be compared.

    Args:
        other_prompts: more prompts (texts or tokens), whose sets are compared with this prompt's.
        checkpoints: how many tokens after the prompt to look again; None for a quarter, half, three quarters and all.
        of: channels of "keys" or of "values"; None takes keys where the policy drops some.

    Examples:
        >>> policy = interp.ThinK(ratio=0.5, window=8, recent=8)
        >>> why = interp.explain(lens, policy, prompt, "w9 w10 w11", ["masks"])
        >>> why["masks"].overlap_layers.dims
        ('layer', 'other_layer')
    """

    name: ClassVar[str] = "masks"
    stages: ClassVar[tuple[str, ...]] = ("channels",)
    other_prompts: tuple[Any, ...] = ()
    checkpoints: tuple[int, ...] | None = None
    of: Literal["keys", "values"] | None = None

    def ask(self, case: Case) -> xr.Dataset:
        after = self._after(case)
        of: Part = self.of or ("keys" if kept_channels(case.policy.rest, "keys") else "values")
        first = kept_channels(case.policy.rest, of)
        if not first:
            raise NothingToSay(f"masks: this policy stores all channels of {of}; there is no set to compare.")
        layers = sorted(first)
        kept = torch.stack([first[i] for i in layers])  # [layer, head, channel]
        prompts = [kept]
        for prompt in self.other_prompts:
            tokens = one_text(case.lens, prompt)
            case.lens.check_length(int(tokens.shape[1]))
            with case.applied():
                found = kept_channels(case.read(tokens), of)
            if sorted(found) != layers:
                raise InterpError("masks: one of other_prompts is so short that the policy dropped no channel of it.")
            prompts.append(torch.stack([found[i] for i in layers]))
        later = chosen_later(case, after, of)
        drift = torch.stack([jaccard(kept, torch.stack([m[i] for i in layers])) for m in later], -1)
        by_prompt = torch.stack([torch.stack([jaccard(a, b) for b in prompts], -1) for a in prompts], -2)
        flat = kept.flatten(0, 1)
        pairs = jaccard(flat[:, None], flat[None]).view(*kept.shape[:2], *kept.shape[:2])
        heads = torch.stack([pairs[i, :, i] for i in range(len(layers))])
        width, size = kept.shape[-1], int(kept[0, 0].sum())
        data: dict[str, Any] = {
            "kept": (("layer", "kv_head", "channel"), kept.to(torch.int8), "1", "1 where a channel is stored"),
            "overlap_heads": (
                ("layer", "kv_head", "other_head"), heads, "1", "Jaccard index of the sets of two heads of a layer"
            ),
            "overlap_layers": (
                ("layer", "other_layer"), pairs.mean((1, 3)), "1",
                "Jaccard index of the sets of two layers, mean over all pairs of their heads",
            ),
            "overlap_prompts": (
                ("layer", "kv_head", "prompt", "other_prompt"), by_prompt, "1",
                "Jaccard index of one head's sets for two prompts",
            ),
            "drift": (
                ("layer", "kv_head", "checkpoint"), drift, "1",
                "Jaccard index of the set chosen after the prompt and the one chosen so many tokens later",
            ),
            "chance": ((), chance_overlap(width, size), "1", "expected Jaccard index of two random sets of this size"),
        }  # fmt: skip
        coords = {
            "layer": layers, "other_layer": layers, "kv_head": np.arange(kept.shape[1]),
            "other_head": np.arange(kept.shape[1]), "channel": np.arange(width),
            "prompt": np.arange(len(prompts)), "other_prompt": np.arange(len(prompts)),
            "checkpoint": ("checkpoint", list(after), {"units": "tokens", "description": "tokens after the prompt"}),
        }  # fmt: skip
        attrs = {
            "title": f"Channels of {of} that are kept",
            "description": f"Which channels of {of} each stored head keeps, and how alike these sets are",
            "kept_channels": size,
            "of": of,
        }
        return described(data, coords, attrs)

    def _after(self, case: Case) -> tuple[int, ...]:
        n = case.steps
        after = self.checkpoints or tuple(sorted({-(-n * quarter // 4) for quarter in (1, 2, 3, 4)}))
        if wrong := [g for g in after if not 0 <= g <= n]:
            raise InterpError(f"masks: checkpoint {wrong[0]} lies outside the {n} tokens fed after the prompt.")
        return tuple(after)

    def findings(self, result: xr.Dataset) -> list[str]:
        chance = float(result["chance"])
        of, size, width = result.attrs["of"], result.attrs["kept_channels"], result.sizes["channel"]
        said = []
        if result.sizes["kv_head"] > 1:
            heads = result["overlap_heads"].values[:, ~np.eye(result.sizes["kv_head"], dtype=bool)]
            said.append(
                f"Of {width} channels of {of} each head keeps {size}; two heads of a layer share them with a Jaccard "
                f"index of {heads.mean():.2f}, where random sets would have {chance:.2f}."
            )
        if result.sizes["layer"] > 1:
            layers = result["overlap_layers"].values[~np.eye(result.sizes["layer"], dtype=bool)]
            said.append(f"Heads of different layers: {layers.mean():.2f}.")
        last = result["drift"].isel(checkpoint=-1)
        where = np.unravel_index(int(last.values.argmin()), last.shape)
        said.append(
            f"Chosen again {int(result['checkpoint'][-1])} tokens later, a head's set overlaps with the frozen one by "
            f"{float(last.mean()):.2f} on average and {float(last.min()):.2f} at least (layer "
            f"{int(result['layer'][where[0]])}, head {int(where[1])})."
        )
        if result.sizes["prompt"] > 1:
            other = result["overlap_prompts"].values[..., ~np.eye(result.sizes["prompt"], dtype=bool)]
            said.append(f"Between prompts, one head's sets overlap by {other.mean():.2f} on average.")
        return said


def kept_channels(cache: LensCache, of: Part) -> dict[int, Mask]:
    """Which channels each stored head keeps of the tokens that lost some, by layer."""
    return {i: mask for i, layer in cache.stored.items() if (mask := layer.kept_channels(of)) is not None}


@torch.no_grad()
def chosen_later(case: Case, after: tuple[int, ...], of: Part) -> list[dict[int, Mask]]:
    """What the policy would keep of prompt + `after` tokens, from one pass over the whole text.

    At each layer a fresh plan for every checkpoint sees the attention of the text up to there, as it would in prefill.
    """
    trials = [_Trial(case, n, of) for n in after]

    def look(layer: int, event: AttentionEvent) -> None:
        for trial in trials:
            trial.attended(layer, event)

    case.watched(case.seen, look)
    return [trial.masks for trial in trials]


class _Trial:
    """One checkpoint: a keeper at work on caches of its own, of which only the masks are kept."""

    def __init__(self, case: Case, after: int, of: Part) -> None:
        self.tokens, self.of = int(case.prompt.shape[1]) + after, of
        self.keeper = Keeper(case.policies, case.lens.cfg, case.layers, case.lens.output_norms)
        self.keeper.expect(self.tokens)
        self.stored: dict[int, StoredLayer] = {}
        self.masks: dict[int, Mask] = {}

    def attended(self, layer: int, event: AttentionEvent) -> None:
        n = self.tokens
        stored = self.stored[layer] = StoredLayer()
        stored.tied = event.tied
        stored.update(event.k[:, :, :n], event.v[:, :, :n])
        unrotate, later = event.unrotate, event.q.shape[2] - n

        def unrotated(x: Tensor) -> Tensor:  # the tables are those of the whole text
            assert unrotate is not None
            return unrotate(torch.nn.functional.pad(x, (0, 0, 0, later)))[:, :, :n]

        mask = event.facts.get("mask")
        facts = {"causal": True, "offset": 0} if mask is None else {"mask": mask[:, :, :n, :n]}
        part = dataclasses.replace(
            event, q=event.q[:, :, :n], k=event.k[:, :, :n], v=event.v[:, :, :n], facts=facts,
            unrotate=None if unrotate is None else unrotated,
        )  # fmt: skip
        self.keeper.attended(layer, self.stored, part.q, lambda: part)
        if self.keeper.moment == "first_decode" and layer == self.keeper.layers[-1]:
            for each in self.keeper.layers:  # no decoding follows: the prompt alone decides
                self.keeper.compress(each, self.stored[each])
        for done in [i for i in self.stored if i in self.keeper.compressed]:
            if (mask := self.stored.pop(done).kept_channels(self.of)) is not None:
                self.masks[done] = mask


def jaccard(a: Bool[Tensor, "*b channel"], b: Bool[Tensor, "*b channel"]) -> Float[Tensor, "*b"]:
    """|A ∩ B| / |A ∪ B| of boolean sets, 1 for two empty ones."""
    union = (a | b).sum(-1)
    return torch.where(union == 0, 1.0, (a & b).sum(-1) / union.clamp_min(1))


def chance_overlap(width: int, size: int) -> float:
    """Expected Jaccard index of two random sets of `size` of `width` channels (hypergeometric intersection)."""
    from scipy.stats import hypergeom

    shared = np.arange(size + 1)
    return float((hypergeom.pmf(shared, width, size, size) * shared / np.maximum(2 * size - shared, 1)).sum())
