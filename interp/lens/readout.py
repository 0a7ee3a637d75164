"""From the residual stream to logits: what the logit lens and direct logit attribution need."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import nn

from interp.errors import UnsupportedModelError
from interp.lens.head import FIT
from interp.lens.parts import Anatomy, BlockParts
from interp.lens.strict_hooks import HookTree
from interp.seam.config import LensConfig

Tensor = torch.Tensor


class FinalNorm(HookTree):
    """The model's final norm with its hook point; calling it applies the norm, which stays the model's own child."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self._norm = (norm,)  # in a tuple, so that its parameters are not registered a second time

    def forward(self, resid: Tensor) -> Tensor:
        normalized: Tensor = self._norm[0](resid)
        return normalized


class ReadoutMixin:
    """Reads the residual stream `[..., d_model]` out in the model's own terms."""

    model: Any
    if TYPE_CHECKING:

        @property
        def anatomy(self) -> Anatomy: ...

        @property
        def cfg(self) -> LensConfig: ...

    def unembed(self, normalized: Tensor) -> Tensor:
        """Logits `[..., d_vocab]` of a normalised residual stream, scaled or softcapped as the model does."""
        if self.anatomy.unembed is None:
            raise UnsupportedModelError(
                f"{self.cfg.architecture} turns its last residual stream into logits in an unknown way."
            )
        return self.anatomy.unembed(normalized)

    def normalized(self, resid: Tensor) -> Tensor:
        """A residual stream after the final norm; as it is where the model has none (BERT, whose blocks end in one)."""
        if self.anatomy.final_norm is None:
            return resid
        after: Tensor = self.anatomy.final_norm(resid)
        return after

    def final_norm_frozen(self, resid: Tensor) -> Callable[[Tensor], Tensor]:
        """The final norm as a linear map, with its scale frozen at the residual stream `resid [d_model]`.

        The images of parts that add up to `resid` add up to the norm of `resid`, except for the bias of a LayerNorm,
        which belongs to no part.
        """
        norm = self.anatomy.final_norm
        if norm is None:
            if self.anatomy.unembed is None:
                raise UnsupportedModelError(f"{self.cfg.architecture} has no final norm that could be found.")
            return lambda part: part
        return frozen(norm, resid)

    def output_norms(self, layer: int) -> Tensor:
        """Norms of the rows of W_O: `[head, d_head]`, how far a unit in a channel of z moves the residual stream."""
        return output_norms(self.cfg, self.anatomy.blocks[layer], layer)

    def head_contributions(self, layer: int, z: Tensor, pos: int = -1) -> Tensor:
        """What each head adds to the residual stream at one position: `[head, d_model]` from `z [1, pos, head,
        d_head]`; where the layer has `hook_gated_z`, from that.

        The output projection's bias belongs to no head. Where a norm follows attention (Gemma, OLMo-2) its scale is
        frozen.
        """
        part = self.anatomy.blocks[layer]
        project = part.out_projection
        if project is None or part.attn_out is None or not part.heads_written:
            raise _no_projection(self.cfg, layer)
        heads = z[0, pos]
        alone = torch.zeros(heads.shape[0], *heads.shape, dtype=z.dtype, device=z.device)
        alone[torch.arange(len(heads)), torch.arange(len(heads))] = heads
        nothing = project(torch.zeros_like(heads).flatten())
        contributions: Tensor = project(alone.flatten(1)) - nothing
        passes_on = any(m is part.attention for m in part.attn_out.modules()) or isinstance(part.attn_out, nn.Dropout)
        if part.attn_out is not project and not passes_on:
            contributions = frozen(part.attn_out, project(heads.flatten()))(contributions)
        return part.residual_scale * contributions


def output_map(
    cfg: LensConfig, part: BlockParts, layer: int
) -> tuple[Float[Tensor, "head d_head d_model"], Float[Tensor, " d_model"]]:
    """(W_O, b_O) of the layer whose parts are `part`, read off from what its output projection does, whatever module
    that is; where z meets a gate, without it."""
    project = part.out_projection
    if project is None:
        raise _no_projection(cfg, layer)
    like = next(project.parameters())
    heads = part.seen.get("n_heads", cfg.n_heads)
    units = torch.eye(heads * part.seen.get("d_value", cfg.d_head), dtype=like.dtype, device=like.device)
    bias: Tensor = project(torch.zeros_like(units[:1]))[0]
    rows: Tensor = project(units) - bias
    return rows.unflatten(0, (heads, -1)), bias


def output_norms(cfg: LensConfig, part: BlockParts, layer: int) -> Float[Tensor, "head d_head"]:
    """What `Lens.output_norms` returns, of the layer whose parts are `part`."""
    norms: Tensor = output_map(cfg, part, layer)[0].float().norm(dim=-1)
    return norms


def _no_projection(cfg: LensConfig, layer: int) -> UnsupportedModelError:
    return UnsupportedModelError(f"layer {layer} of {cfg.architecture} has no output projection that could be found.")


def frozen(norm: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """`norm` as a linear map with its statistics taken from `x [d_model]`.

    An RMSNorm of any family multiplies each channel, a LayerNorm first subtracts the mean; the factors are read off
    from what the norm does to x, so that Gemma's 1 + weight or a norm without weights needs no case of its own. Which
    of the two it is shows in its symmetries: signs of the input pass through an RMSNorm, a constant does not pass a
    LayerNorm.

    Raises UnsupportedModelError for a norm that is neither.
    """
    signs = torch.where(torch.arange(x.shape[-1], device=x.device) % 3 == 0, -1, 1).to(x.dtype)
    close = partial(torch.allclose, rtol=10 * FIT[x.dtype], atol=10 * FIT[x.dtype] * float(norm(x).abs().max()))
    if close(norm(signs * x), signs * norm(x)):
        factor = _ratio(norm(x), x)
        return lambda part: part * factor
    if close(norm(x + x.std()), norm(x)):
        factor = _ratio(norm(x) - norm(torch.zeros_like(x)), x - x.mean())
        return lambda part: (part - part.mean(-1, keepdim=True)) * factor
    raise UnsupportedModelError(
        f"{type(norm).__name__} is neither a LayerNorm nor an RMSNorm, so its scale cannot be frozen."
    )


def _ratio(y: Tensor, x: Tensor) -> Tensor:
    """y / x, and 0 where x is 0."""
    nothing = x.abs() < torch.finfo(x.dtype).tiny
    return torch.where(nothing, 0.0, y / torch.where(nothing, 1.0, x))
