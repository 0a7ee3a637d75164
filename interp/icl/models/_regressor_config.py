"""The shape of an `AttentionRegressor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from interp.errors import InterpError
from interp.settings.checking import Checked

AttentionKind = Literal["linear", "softmax"]
MOST_LAYERS = 1000
"""So many a recurrent model may have, whose file is no larger for it."""


@dataclass(frozen=True)
class RegressorConfig(Checked):
    """Shape of an `AttentionRegressor`. Field names are TransformerLens' where it has one.

    Raises InterpError for a combination that cannot be built.

    Examples:
        >>> interp.icl.RegressorConfig(d_in=3, n_ctx=10, n_layers=2, recurrent=True).n_layers
        2
    """

    d_in: int = 10
    d_out: int = 1
    n_ctx: int = 10
    """Pairs in a training prompt, N. A constructed step of mean size η is η/N with this N; other N may be read."""
    n_layers: int = 1
    n_heads: int = 1
    d_head: int | None = None
    """Size of keys and values of one head; None: `d_model`, as in the paper."""
    attention: AttentionKind | tuple[AttentionKind, ...] = "linear"
    """One kind for all layers, or one per layer."""
    recurrent: bool = False
    """One set of weights applied `n_layers` times."""
    layout: Literal["concat", "interleaved"] = "concat"
    """`concat`: tokens (x_i, y_i) and (x_q, -W0 x_q). `interleaved`: x_1, (0..0, y_1), x_2, ..., x_q, `d_in` wide."""
    d_mlp: int = 0
    """Hidden width of an MLP after each attention layer; 0: none."""
    layer_norm: bool = False
    """LayerNorm (scale and offset) before attention and before the MLP."""
    clamp: float | None = None
    """Tokens are limited to ±clamp after each block."""
    n_pos_enc: int = 0
    """Sinusoidal position features that are concatenated to each token; 0: none."""
    residual: bool = True
    readout: Literal["y", "last"] = "y"
    """Which coordinates of the query token are the prediction: its y slot, or its last `d_out`, encodings included."""
    readout_sign: Literal[-1, 1] = -1
    """-1 as in von Oswald et al., where context targets become residuals; 1 in the papers on the optimal layer."""
    init_std: float | None = None
    """Standard deviation of every weight matrix; None: √(0.002 / (n_layers · fan-in)), the released code's."""

    def __post_init__(self) -> None:
        if not isinstance(self.attention, str):  # a list, as a file has it
            object.__setattr__(self, "attention", tuple(self.attention))
        if self.n_layers > MOST_LAYERS:
            raise InterpError(f"n_layers is at most {MOST_LAYERS:,}, found {self.n_layers}.")
        if min(self.d_in, self.d_out, self.n_ctx, self.n_layers, self.n_heads) < 1:
            raise InterpError("d_in, d_out, n_ctx, n_layers and n_heads are at least 1.")
        if (self.d_head is not None and self.d_head < 1) or min(self.d_mlp, self.n_pos_enc) < 0:
            raise InterpError("d_head is at least 1 (or None), d_mlp and n_pos_enc at least 0.")
        for name in ("clamp", "init_std"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise InterpError(f"{name} is positive (or None), not {value}.")
        if len(self.kinds) != self.n_layers:
            raise InterpError(f"attention names {len(self.kinds)} layers, but the model has {self.n_layers}.")
        if self.recurrent and len(set(self.kinds)) > 1:
            raise InterpError("a recurrent model applies one layer again and again, so its layers are of one kind.")
        if self.layout == "interleaved" and self.d_out > self.d_in:
            raise InterpError(f"interleaved tokens are {self.d_in} wide and cannot hold {self.d_out} targets.")

    @property
    def kinds(self) -> tuple[AttentionKind, ...]:
        """`attention` of each layer."""
        return (self.attention,) * self.n_layers if isinstance(self.attention, str) else tuple(self.attention)

    @property
    def d_token(self) -> int:
        """Width of a token before position features."""
        return self.d_in + self.d_out if self.layout == "concat" else self.d_in

    @property
    def d_model(self) -> int:
        """Width of a token."""
        return self.d_token + self.n_pos_enc

    @property
    def head_size(self) -> int:
        """`d_head` with its default filled in."""
        return self.d_head or self.d_model

    @property
    def y_slot(self) -> slice:
        """Where a token holds y."""
        return slice(self.d_token - self.d_out, self.d_token)

    @property
    def readout_slot(self) -> slice:
        """Where the query token holds the prediction in the end."""
        return self.y_slot if self.readout == "y" else slice(self.d_model - self.d_out, self.d_model)
