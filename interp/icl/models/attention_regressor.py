"""Small attention models that read a regression prompt and predict the query's target.

The subjects of von Oswald et al., "Transformers learn in-context by gradient descent" (ICML 2023), and of the papers
that solve one linear layer exactly. A prompt is N pairs (x_i, y_i) and a query x_q. Every token attends to the context;
the query token attends but is no key. Layers are linear or softmax attention, with weights of their own or one set for
all (`recurrent`), as in the paper's released code (google-research/self-organising-systems).

    model = AttentionRegressor(RegressorConfig(d_in=10, n_layers=2, recurrent=True), seed=0)
    prediction = model(X, y, xq)                                   # [batch]
    prediction, cache = model.run_with_cache(X, y, xq)             # TransformerLens' names: cache["pattern", 0]

With nothing hooked the model computes only what the prediction needs (see `_regressor_block.py`): the same numbers and
gradients up to rounding. Beyond the released code there are hook points, a start `W0` of the inner model (Proposition 1
in full), prompts of other lengths than the training ones, and the read-out without a minus of other papers.
"""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Self, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import InterpError
from interp.files import tensors as tensor_file
from interp.icl.models._regressor_block import BLOCK_POINTS, EMBED, MLP_POINTS, Block, fill_
from interp.icl.models._regressor_block import AttentionLayer as AttentionLayer
from interp.icl.models._regressor_block import Mlp as Mlp
from interp.icl.models._regressor_config import RegressorConfig as RegressorConfig
from interp.lens.strict_hooks import HookedLens, HookTree
from interp.seam.points import live

INIT_VARIANCE = 0.002
"""The released code draws weights with variance 0.002 / (layers · fan-in)."""


class AttentionRegressor(HookedLens):
    """A self-attention model `model(X, y, xq)` over regression prompts, with TransformerLens' hook points.

    Args:
        cfg: its shape.
        seed: of the initial weights; torch's global generator is left alone.

    Attributes:
        W0: [d_out, d_in] buffer, zero at first: the inner model's start, which the query token carries as -W0 x_q.

    Examples:
        >>> tasks = interp.icl.make_regression(200, N=10, d=3, seed=1)
        >>> model = interp.icl.AttentionRegressor(interp.icl.RegressorConfig(d_in=3, n_ctx=10))
        >>> model(tasks.X, tasks.y, tasks.xq).shape
        torch.Size([200])
    """

    W0: Tensor

    def __init__(self, cfg: RegressorConfig, seed: int = 0) -> None:
        super().__init__()
        self.cfg = cfg
        self.register_buffer("W0", torch.zeros(cfg.d_out, cfg.d_in))
        self._build()
        self.reset(seed)
        self.setup()

    def _build(self) -> None:
        cfg = self.cfg
        self.hook_embed = self._place(EMBED, "hook_embed")
        self.blocks = nn.ModuleList()
        for layer in range(cfg.n_layers):
            block = Block(cfg, layer)
            if cfg.recurrent and layer:
                _share(self._blocks[0], block)
            self.blocks.append(block)
            self._add_points(block, layer)

    def _add_points(self, block: Block, layer: int) -> None:
        for point in BLOCK_POINTS:
            name = f"blocks.{layer}.{point.name}"
            if point.name in MLP_POINTS and block.mlp is None:
                self.absent[name] = "it has no MLP (d_mlp=0)"
                continue
            room: HookTree = block.attn if point.name.startswith("attn.") else block
            room.add_module(point.name.removeprefix("attn."), self._place(point, name))

    def reset(self, seed: int) -> None:
        """Draw new initial weights, as `cfg.init_std` says, and set W0, biases and norms to their start."""
        generator = torch.Generator().manual_seed(seed)
        self.W0.zero_()
        for name, weight in self.named_parameters():
            with torch.no_grad():
                if weight.ndim == 1:
                    weight.fill_(float(name.endswith(".weight")))  # a norm's scale; biases are zero
                else:
                    drawn = torch.empty(weight.shape)  # on the CPU in float32, so that a seed means the same everywhere
                    weight.copy_(fill_(drawn, self._initial_std(name, weight), generator))

    def _initial_std(self, name: str, weight: Tensor) -> float:
        fan_in = math.prod(weight.shape[:-1]) if name.endswith("W_O") else weight.shape[-2]
        return self.cfg.init_std or math.sqrt(INIT_VARIANCE / (self.cfg.n_layers * fan_in))

    def block(self, layer: int) -> AttentionLayer:
        """The attention weights of one layer; in a recurrent model all layers return the same tensors."""
        if not -self.cfg.n_layers <= layer < self.cfg.n_layers:
            raise InterpError(f"there is no layer {layer}; this model has {self.cfg.n_layers} layers.")
        return self._blocks[layer].attn

    @property
    def _blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def point_names(self, name: Any) -> list[str]:
        """As on a Lens, but None selects every point: prompts are short, so the cache keeps patterns as well."""
        return list(self.hook_dict) if name is None else super().point_names(name)

    def forward(
        self,
        X: Float[Tensor, "batch context d_in"],
        y: Float[Tensor, "batch context"] | Float[Tensor, "batch context d_out"],
        xq: Float[Tensor, "batch d_in"],
    ) -> Float[Tensor, " batch"] | Float[Tensor, "batch d_out"]:
        """Predictions [batch], or [batch, d_out] for d_out > 1. Raises InterpError for shapes that do not fit.

        A prompt may have any number of pairs; with none the query is all that there is.
        """
        with self._gate.held():
            return self.read_out(self.run_tokens(self.tokens(X, y, xq)))

    def run_tokens(self, tokens: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_model"]:
        """The query token (the last) after all blocks; every other token is context."""
        if any(live(point) for point in self.hook_dict.values()):
            return self.plain(tokens)[:, -1]
        return self.fast(tokens)

    def plain(self, tokens: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        """All tokens after all blocks, every activation computed and every hook point fired: the definition."""
        tokens = self.hook_embed(tokens)
        for block in self._blocks:
            tokens = block(tokens)
        return tokens

    def fast(self, tokens: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_model"]:
        """The query token after all blocks without the rest of the last one, no hook point fired.

        `model.fast = torch.compile(model.fast)` compiles it for training of deep models.
        """
        *first, last = self._blocks
        for block in first:
            tokens = block.fast(tokens, slice(None))
        return last.fast(tokens, slice(-1, None))[:, 0]

    def read_out(self, query: Float[Tensor, "batch d_model"]) -> Float[Tensor, " batch"] | Float[Tensor, "batch d_out"]:
        """The prediction that a query token holds."""
        out = self.cfg.readout_sign * query[:, self.cfg.readout_slot]
        return out[:, 0] if self.cfg.d_out == 1 else out

    def tokens(self, X: Tensor, y: Tensor, xq: Tensor) -> Float[Tensor, "batch pos d_model"]:
        """The prompt as tokens: N context tokens (`concat`) or 2N (`interleaved`), then the query's."""
        cfg = self.cfg
        y = y.unsqueeze(-1) if y.ndim == 2 else y
        self._check(X, y, xq, cfg.d_in)
        if cfg.layout == "concat":
            query = torch.cat([xq, -xq @ self.W0.mT], -1)
            tokens = torch.cat([torch.cat([X, y], -1), query[:, None]], 1)
        else:
            targets = nn.functional.pad(y, (cfg.d_in - cfg.d_out, 0))
            context = torch.stack([X, targets], 2).flatten(1, 2)
            tokens = torch.cat([context, xq[:, None]], 1)
        if not cfg.n_pos_enc:
            return tokens
        features = sinusoids(tokens.shape[1], cfg.n_pos_enc).to(tokens)
        return torch.cat([tokens, features.expand(len(tokens), -1, -1)], -1)

    def _check(self, X: Tensor, y: Tensor, xq: Tensor, d_in: int) -> None:
        d_out = self.cfg.d_out
        targets = f"[batch, N, {d_out}]" if d_out > 1 else "[batch, N]"
        if X.ndim != 3 or X.shape[-1] != d_in or y.shape != (*X.shape[:2], d_out) or xq.shape != (len(X), d_in):
            found = f"{list(X.shape)}, {list(y.shape)}, {list(xq.shape)}"
            raise InterpError(
                f"this model reads X [batch, N, {d_in}], y {targets}, xq [batch, {d_in}]; it was given {found}."
            )
        if X.dtype != self.W0.dtype:
            raise InterpError(
                f"the model's weights are {self.W0.dtype} and the tasks {X.dtype}; convert one with .to()."
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """The same weights in a model without hooks (the lock that guards them cannot be copied)."""
        made: Self = type(self)(self.cfg).to(self.W0)
        made.load_weights(self.weights())
        for mine, theirs in zip(self.parameters(), made.parameters(), strict=True):
            theirs.requires_grad_(mine.requires_grad)
        return made

    def save(self, path: str | Path) -> Path:
        """Write weights and config to one safetensors file; it appears complete or not at all."""
        return tensor_file.write(path, self.weights(), "config", asdict(self.cfg))

    def weights(self) -> dict[str, Tensor]:
        """Each weight once (a recurrent model's under layer 0) and W0, as they are, not copied."""
        return {"W0": self.W0, **{name: weight.detach() for name, weight in self.named_parameters()}}

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The model that `save` wrote. Raises InterpError for a file that is missing or is no such model."""
        try:
            stored, settings = tensor_file.read(path, "config")
        except InterpError:
            raise
        except tensor_file.UNREADABLE as error:
            raise InterpError(f"cannot read a regressor from {path}: {error}.") from None
        if not isinstance(settings, dict):
            raise InterpError(f"{path} holds no regressor's config; write it with AttentionRegressor.save.")
        known = {field.name for field in fields(RegressorConfig)}
        if unknown := sorted(settings.keys() - known):
            raise InterpError(f"{path} was written with {unknown[0]}, which this version does not know.")
        cfg = RegressorConfig(**settings)
        if not _fits(cfg, stored):  # before a model is made whose size a few words decide
            raise InterpError(f"{path} holds weights of another model than its config says: {cfg}.")
        model: Self = cls(cfg).to(stored["W0"].dtype)
        model.load_weights(stored)
        return model

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        """Copy in what `weights` returned. Raises InterpError where names or shapes differ."""
        mine = self.weights()
        if {name: w.shape for name, w in mine.items()} != {name: w.shape for name, w in weights.items()}:
            raise InterpError(f"these weights are of another model; this one has {', '.join(mine)} as {self.cfg}.")
        for name, weight in mine.items():
            weight.copy_(weights[name])


def _fits(cfg: RegressorConfig, weights: dict[str, Tensor]) -> bool:
    """Whether a model of this config is as large as these weights."""
    attention = (cfg.n_heads, cfg.d_model, cfg.head_size)
    shapes = {"W0": (cfg.d_out, cfg.d_in), "blocks.0.attn.W_Q": attention}
    if not cfg.recurrent:
        shapes[f"blocks.{cfg.n_layers - 1}.attn.W_Q"] = attention
    if cfg.d_mlp:
        shapes["blocks.0.mlp.W_in"] = (cfg.d_model, cfg.d_mlp)
    return all(name in weights and weights[name].shape == shape for name, shape in shapes.items())


def sinusoids(n_positions: int, size: int) -> Float[Tensor, "pos size"]:
    """Sines (even columns) and cosines (odd) of position · 10000^(-column/size), as in "Attention is all you need"."""
    columns = torch.arange(0, size, 2, dtype=torch.float64)
    angles = torch.arange(n_positions, dtype=torch.float64)[:, None] * torch.exp(columns * (-math.log(10000.0) / size))
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :size]


def _share(first: Block, other: Block) -> None:
    """Let `other` use the very parameters of `first`."""
    for name, weight in first.named_parameters():
        *path, leaf = name.split(".")
        setattr(other.get_submodule(".".join(path)), leaf, weight)
