"""One block of an `AttentionRegressor`: attention, optional MLP, each computed in the open and fast.

The plain path projects queries, keys and values of every token, fires every hook point and is the definition. The fast
path is the same algebra in another order: only the products W_Q W_Kᵀ and W_V W_O act on tokens, linear attention
needs only the second moments of the context, and the last block needs only the query's row.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.icl.models._regressor_config import RegressorConfig
from interp.lens.strict_hooks import HookTree
from interp.seam.points import Point

TRUNCATED_STD = 0.87962566103423978
"""Standard deviation of a standard normal that is cut off at two standard deviations."""


def _edit(name: str, shape: str, axis: int, meaning: str) -> Point:
    return Point(name, shape, "edit", axis, meaning)


STREAM = "batch pos d_model"
EMBED = _edit("hook_embed", STREAM, -2, "tokens of the prompt: the context's, then the query's")
BLOCK_POINTS = (
    _edit("hook_resid_pre", STREAM, -2, "tokens entering the block"),
    _edit("attn.hook_q", "batch pos head d_head", -3, "queries of all tokens"),
    _edit("attn.hook_k", "batch key head d_head", -3, "keys of the context tokens; the query token is no key"),
    _edit("attn.hook_v", "batch key head d_head", -3, "values of the context tokens"),
    _edit("attn.hook_attn_scores", "batch head pos key", -2, "scores; softmax layers: divided by √d_head"),
    _edit("attn.hook_pattern", "batch head pos key", -2, "softmax of the scores; linear layers: the scores"),
    _edit("attn.hook_z", "batch pos head d_head", -3, "output of each head before the output projection"),
    _edit("hook_attn_out", STREAM, -2, "what attention adds to the tokens"),
    _edit("hook_resid_mid", STREAM, -2, "tokens between attention and MLP"),
    _edit("hook_mlp_out", STREAM, -2, "what the MLP adds to the tokens"),
    _edit("hook_resid_post", STREAM, -2, "tokens leaving the block, clamped if the model clamps"),
)
MLP_POINTS = ("hook_resid_mid", "hook_mlp_out")


class AttentionLayer(HookTree):
    """Weights of one attention layer: `W_Q`, `W_K`, `W_V` [head, d_model, d_head] and `W_O` [head, d_head, d_model].

    Row vectors as in TransformerLens (`q = token @ W_Q`); there are no biases. Hook points are added by the model.
    """

    def __init__(self, cfg: RegressorConfig, softmax: bool) -> None:
        super().__init__()
        self.cfg, self.softmax = cfg, softmax
        inward, outward = (cfg.n_heads, cfg.d_model, cfg.head_size), (cfg.n_heads, cfg.head_size, cfg.d_model)
        self.W_Q, self.W_K, self.W_V = (nn.Parameter(torch.empty(inward)) for _ in range(3))
        self.W_O = nn.Parameter(torch.empty(outward))

    @property
    def scale(self) -> float:
        """What scores are multiplied by: 1/√d_head before a softmax, 1 in linear attention."""
        return self.W_Q.shape[-1] ** -0.5 if self.softmax else 1.0

    def forward(self, tokens: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The plain path: all tokens but the last are keys."""
        context = tokens[:, :-1]
        q = self.hook_q(torch.einsum("bpd,hde->bphe", tokens, self.W_Q))
        k = self.hook_k(torch.einsum("bkd,hde->bkhe", context, self.W_K))
        v = self.hook_v(torch.einsum("bkd,hde->bkhe", context, self.W_V))
        scores = self.hook_attn_scores(torch.einsum("bphe,bkhe->bhpk", q, k) * self.scale)
        pattern = self.hook_pattern(scores.softmax(-1) if self.softmax else scores)
        z = self.hook_z(torch.einsum("bhpk,bkhe->bphe", pattern, v))
        return torch.einsum("bphe,hed->bpd", z, self.W_O)

    def fast(
        self, rows: Float[Tensor, "batch row d_model"], context: Float[Tensor, "batch key d_model"]
    ) -> Float[Tensor, "batch row d_model"]:
        """What attention adds to `rows`; heads are folded into rows, so every product is one batched matmul."""
        heads, width, _ = self.W_Q.shape
        batch, n_rows, _ = rows.shape
        scores_map = (self.W_Q @ self.W_K.mT) * self.scale
        output_map = self.W_V @ self.W_O
        asked = (rows @ scores_map.permute(1, 0, 2).reshape(width, heads * width)).view(batch, n_rows * heads, width)
        if not self.softmax and n_rows > 1:
            mixed = asked @ (context.mT @ context)
        else:
            scores = asked @ context.mT
            mixed = (scores.softmax(-1) if self.softmax else scores) @ context
        return mixed.view(batch, n_rows, heads * width) @ output_map.reshape(heads * width, width)


class Mlp(nn.Module):
    """d_model → d_mlp → d_model with biases and GELU in its tanh form, the released code's (JAX's) default."""

    def __init__(self, d_model: int, d_mlp: int) -> None:
        super().__init__()
        self.W_in = nn.Parameter(torch.empty(d_model, d_mlp))
        self.b_in = nn.Parameter(torch.zeros(d_mlp))
        self.W_out = nn.Parameter(torch.empty(d_mlp, d_model))
        self.b_out = nn.Parameter(torch.zeros(d_model))

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = nn.functional.gelu(tokens @ self.W_in + self.b_in, approximate="tanh")
        return hidden @ self.W_out + self.b_out


class Block(HookTree):
    """Attention, then an MLP if the model has one, each reading normalised tokens if the model has LayerNorm."""

    def __init__(self, cfg: RegressorConfig, layer: int) -> None:
        super().__init__()
        self.residual, self.clamp = cfg.residual, cfg.clamp
        self.attn = AttentionLayer(cfg, softmax=cfg.kinds[layer] == "softmax")
        self.mlp = Mlp(cfg.d_model, cfg.d_mlp) if cfg.d_mlp else None
        self.ln1, self.ln2 = (nn.LayerNorm(cfg.d_model) if cfg.layer_norm else nn.Identity() for _ in range(2))

    def forward(self, tokens: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """The plain path, hook point by hook point."""
        tokens = self.hook_resid_pre(tokens)
        tokens = self._added(tokens, self.hook_attn_out(self.attn(self.ln1(tokens))))
        if self.mlp is not None:
            tokens = self.hook_resid_mid(tokens)
            tokens = self._added(tokens, self.hook_mlp_out(self.mlp(self.ln2(tokens))))
        after: Tensor = self.hook_resid_post(self._clamped(tokens))
        return after

    def fast(self, tokens: Float[Tensor, "batch pos d_model"], rows: slice) -> Float[Tensor, "batch row d_model"]:
        """The same numbers for the tokens in `rows` only, with no hook point fired."""
        normed = self.ln1(tokens)
        kept = self._added(tokens[:, rows], self.attn.fast(normed[:, rows], normed[:, :-1]))
        if self.mlp is not None:
            kept = self._added(kept, self.mlp(self.ln2(kept)))
        return self._clamped(kept)

    def _added(self, tokens: Tensor, change: Tensor) -> Tensor:
        return tokens + change if self.residual else change

    def _clamped(self, tokens: Tensor) -> Tensor:
        return tokens if self.clamp is None else tokens.clamp(-self.clamp, self.clamp)


def fill_(weight: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Normal numbers cut off at two standard deviations, in place, whose own standard deviation is `std`."""
    uncut = std / TRUNCATED_STD
    return nn.init.trunc_normal_(weight, std=uncut, a=-2 * uncut, b=2 * uncut, generator=generator)
