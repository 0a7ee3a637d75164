"""Rules from the literature: from the masses of a row's groups to the groups' factors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from .edit import Rule

TEXT_SINK, VISUAL_SINK, VISUAL, OTHER = range(4)
"""The groups of `visual_redistribution`: T, V, N and O."""


def knock_out(groups_removed: int | Sequence[int]) -> Rule:
    """Cut the attention to some groups: their factor is 0, the others' 1.

    Args:
        groups_removed: one group or several.

    Raises:
        ValueError: when it meets masses, on a group that they do not have.

    Source: attention knockout (Geva et al. 2023, "Dissecting Recall of Factual Associations in Auto-Regressive Language
    Models", arXiv:2304.14767), which sets the edges' scores to -inf before the softmax: the same as this rule with
    `renormalise=True`. Without sinks, that is; with them the sink's column keeps its probability here and grows there.

    Examples:
        >>> interp_kernels.knock_out(1)(torch.tensor([[[[0.7, 0.3]]]]))
        tensor([[[[1., 0.]]]])
    """
    removed = [groups_removed] if isinstance(groups_removed, int) else list(groups_removed)

    def rule(masses: Tensor) -> Tensor:
        count = masses.shape[-1]
        if not all(0 <= group < count for group in removed):
            raise ValueError(f"knock_out: groups_removed should lie in 0 to {count - 1}, found {removed}.")
        factors = masses.new_ones(1, 1, 1, count)
        factors[..., removed] = 0.0
        return factors

    return rule


def visual_redistribution(
    remove_fraction: float = 0.6,
    min_nonsink_ratio: float = 0.8,
    min_visual_mass: float = 0.2,
    give_to: Literal["images", "text", "both"] = "images",
) -> Rule:
    """Move attention from sinks to the image tokens that are none, in rows that look at the image.

    Groups: 0 text sinks (T), 1 visual sinks (V), 2 visual tokens that are no sinks (N), 3 all other keys (O). Call with
    group_count=4, so that a layer without some of them has all four masses.
    A row is selected where its visual mass S_V + S_N is at least min_visual_mass, and at least min_nonsink_ratio of it
    lies on N. There both kinds of sink lose remove_fraction of their mass, and N gains what they lost, shared out as
    its attention already is; O stays. The row's sum does not change, so renormalising changes nothing.
    A row that pays nothing to visual sinks is left alone, so that a layer without any is. Which rows may be edited at
    all (text after the image, and decoding) is the caller's `rows`.

    Args:
        remove_fraction: p of the paper, in 0 to 1; 0 changes nothing. The released code's p is 1 minus this.
        min_nonsink_ratio: rho of the paper, above 0 and up to 1: 0.8 in general, 0.5 against hallucination, 0.9 for
            vision-centric tasks. The released code's rho is 1 minus this.
        min_visual_mass: the least visual mass of a row that is selected, 0 to 1.
        give_to: who gains: "images" is N, as in the method; the paper's ablation gives to "text", which is O, or to
            "both" in proportion. A row without any of those keeps what it has.

    Raises:
        ValueError: on numbers out of range, and on masses that are not of four groups.

    Source: VAR (Kang et al. 2025, "See What You Are Told: Visual Attention Sink in Large Multimodal Models",
    arXiv:2503.03321). The released code adds 1e-6 a key to the ratio's denominator, which is left out here.

    Examples:
        >>> rule = interp_kernels.visual_redistribution(remove_fraction=0.5)
        >>> rule(torch.tensor([[[[0.2, 0.05, 0.45, 0.3]]]])).shape
        torch.Size([1, 1, 1, 4])
    """
    if not 0 <= remove_fraction <= 1:
        raise ValueError(f"visual_redistribution: remove_fraction should be in 0 to 1, found {remove_fraction}.")
    if not 0 < min_nonsink_ratio <= 1:
        raise ValueError(
            f"visual_redistribution: min_nonsink_ratio should be above 0, for a row without such tokens has nowhere to "
            f"put what it takes, and at most 1, found {min_nonsink_ratio}."
        )
    if not 0 <= min_visual_mass <= 1:
        raise ValueError(f"visual_redistribution: min_visual_mass should be in 0 to 1, found {min_visual_mass}.")
    if give_to not in ("images", "text", "both"):
        raise ValueError(f"visual_redistribution: give_to should be images, text or both, found {give_to!r}.")

    def rule(masses: Tensor) -> Tensor:
        if masses.shape[-1] != 4:
            raise ValueError(
                f"visual_redistribution: there should be the four groups text sink, visual sink, visual, other, found "
                f"{masses.shape[-1]}; pass group_count=4."
            )
        text_sink, visual_sink, visual, other = masses.unbind(-1)
        seen = visual_sink + visual
        gaining = {"images": visual, "text": other, "both": visual + other}[give_to]
        selected = (seen >= min_visual_mass) & (visual >= min_nonsink_ratio * seen)
        selected = selected & (torch.minimum(visual_sink, gaining) > 0)  # then visual is above 0 too
        if masses.requires_grad:  # a quotient that is not taken would have a gradient of NaN
            gaining = torch.where(selected, gaining, 1.0)
        left, gain = _shares(remove_fraction, give_to, masses.dtype, masses.device)
        moved = (text_sink + visual_sink) / gaining
        return torch.where(selected[..., None], torch.addcmul(left, gain, moved[..., None]), 1.0)

    return rule


@lru_cache(maxsize=64)
def _shares(remove_fraction: float, give_to: str, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of each group what is left where sinks lose, and the part of the moved mass, over its own, by which it grows."""
    visual, other = remove_fraction * (give_to != "text"), remove_fraction * (give_to != "images")
    with torch.inference_mode(False):  # they may be needed where gradients are
        left = torch.tensor([1 - remove_fraction, 1 - remove_fraction, 1.0, 1.0], dtype=dtype, device=device)
        return left, torch.tensor([0.0, 0.0, visual, other], dtype=dtype, device=device)
