"""Sinks among tokens: a few channels of the residual stream are huge at them (Kang et al. 2025, arXiv:2503.03321)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float

Tensor = torch.Tensor
EPSILON = 1e-6


def sink_values(residual: Float[Tensor, "*token d_model"], channels: Sequence[int]) -> Float[Tensor, "*token"]:
    """phi of each token: its largest |x| on the sink channels, over the root mean square of all of its channels.

    At most sqrt(d_model). No learned gain takes part, and it is computed in fp32.
    """
    x = residual.detach().float()
    return x[..., list(channels)].abs().amax(-1) * torch.rsqrt(x.square().mean(-1) + EPSILON)
