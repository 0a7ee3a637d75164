"""Latent attention (MLA) as attention to what its cache stores: one key and one value a token, for all heads.

A module with multi-head latent attention stores a latent c and a rotated key r a token, and makes of them, at every
call, keys A_h c + B_h r and values V_h c of all heads. Since q · (A_h c + B_h r) = (A_hᵀ q) · c + (B_hᵀ q) · r, the
same scores come of queries `[A_hᵀ q, B_hᵀ q]` and the one key `[c, r]`; and since a sum of p_i V_h c_i is V_h times the
sum of p_i c_i, the same output comes of the one value c. The pattern is the model's own, up to rounding (DeepSeek-V2,
arXiv:2405.04434, section 2.1.2, where matrices are absorbed into others in this way).

The matrices are what the module makes of unit vectors: no name of a weight is known here, and adapters, edits of
weights and quantisation hold. That is r + d_rotated tokens more for the module to expand at a call; without a policy it
expands all that were seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from interp_kernels import KeySegment
from jaxtyping import Bool, Float

from interp.cache.latent import StoredIndexed
from interp.cache.stored_layer import StoredLayer
from interp.seam.call import AttentionCall
from interp.seam.masks import facts_of_dense_mask

Tensor = torch.Tensor


@dataclass(frozen=True)
class Expansion:
    """What a module makes of stored channels."""

    keys: Float[Tensor, "head stored d_head"]
    values: Float[Tensor, "head d_latent d_value"]

    @classmethod
    def of(cls, module: Any, d_latent: int, d_rotated: int, like: Tensor) -> Expansion:
        """Ask a module for it, in the dtype and at the place of `like`."""
        units = torch.eye(d_latent + d_rotated, dtype=like.dtype, device=like.device)[None, None]
        keys, values = module.expand_kv(units[..., :d_latent], units[..., d_latent:])
        return cls(keys[0], values[0, :, :d_latent])

    def absorbed(self, call: AttentionCall, d_latent: int) -> AttentionCall:
        """A call with queries as they meet stored keys, `[batch, head, new, stored]`; its k and v stay as they are."""
        q = call.q @ self.keys.mT.to(call.q.dtype)
        return replace(call, q=q, scaling=call.scale, tied=d_latent, expanded=self.expanded)

    def expanded(self, z: Float[Tensor, "batch new head d_latent"]) -> Float[Tensor, "batch new head d_value"]:
        """Of what heads read from latents, what they read from values."""
        return (z.transpose(1, 2) @ self.values.to(z.dtype)).transpose(1, 2).contiguous()


def makes(module: Any, latents: Tensor, rotated: Tensor, keys: Tensor, values: Tensor, fit: float) -> bool:
    """Whether a module's keys and values `[batch, head, token, d]` are linear in the latents and rotated keys
    `[batch, 1, token, d]` that its cache stores, values in latents alone, without constants.

    fit: how far off rounding may be, as a share of the largest number.
    """
    if not hasattr(module, "expand_kv") or latents.shape[1] != 1 or latents.shape[:3] != rotated.shape[:3]:
        return False
    d_latent, d_rotated = latents.shape[-1], rotated.shape[-1]
    zeros = module.expand_kv(torch.zeros_like(latents), torch.zeros_like(rotated))
    _, of_rotated = module.expand_kv(torch.zeros_like(latents), rotated)
    if any(bool(x.any()) for x in (*zeros, of_rotated)):
        return False
    own = Expansion.of(module, d_latent, d_rotated, latents)
    stored = torch.cat([latents, rotated], -1).to(latents.dtype)
    made = stored @ own.keys, latents @ own.values
    return all(
        x.shape == y.shape and torch.allclose(x, y, rtol=fit, atol=fit * float(y.abs().max()))
        for x, y in zip(made, (keys, values), strict=True)
    )


def chosen(call: AttentionCall, stored: StoredLayer) -> Bool[Tensor, "batch 1 new token"] | None:
    """Which stored tokens the queries of a call see by the model's own choice; None where it makes none.

    They are the columns of its mask at the stored tokens' positions. A query of whose choice nothing is left sees its
    own token.
    """
    if not isinstance(stored, StoredIndexed):
        return None
    return columns(facts_of_dense_mask(call.mask)["mask"], stored)


def columns(mask: Bool[Tensor, "#batch 1 new seen"], stored: StoredLayer) -> Bool[Tensor, "batch 1 new token"]:
    """A mask's columns at the tokens that a layer stores, see `chosen`."""
    at, (new, seen) = stored.places().long()[:, :, None], mask.shape[2:]
    visible = mask.expand(len(at), 1, new, seen).gather(-1, at.clamp_min(0).expand(-1, -1, new, -1))
    visible = visible & (at >= (0 if stored.padding is None else stored.padding[:, None, None, None]))
    own = seen - new + torch.arange(new, device=at.device)[:, None]
    return visible | ((at == own) & ~visible.any(-1, keepdim=True))


def showing(segments: Sequence[KeySegment], visible: Bool[Tensor, "batch 1 token"]) -> list[KeySegment]:
    """Segments of which one query sees what is visible, of their tokens one after the other."""
    biases = torch.where(visible, 0.0, -torch.inf).split([segment.keys.shape[2] for segment in segments], -1)
    pairs = zip(segments, biases, strict=True)
    return [own._replace(bias=bias if own.bias is None else own.bias + bias) for own, bias in pairs]
