"""One call of a model's attention: what the model passes, and what the model itself would have computed."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import nn

from interp.errors import UnsupportedModelError
from interp.seam.masks import kernel_facts

Tensor = torch.Tensor


# Keyword arguments that say nothing about the attention maths, or that the maths below honours.
UNDERSTOOD = {
    "position_ids", "use_cache", "is_causal", "sliding_window", "softcap", "s_aux", "output_attentions",
    "output_hidden_states", "output_router_logits", "return_dict", "cache_position", "position_embeddings",
    "token_type_ids", "num_items_in_batch", "dropout",
}  # fmt: skip


@dataclass(frozen=True)
class AttentionCall:
    """What a model passes to its attention: q `[batch, head, new, d_head]`, k and v `[batch, kv_head, key, d_head]`
    (after rotary embedding, cached keys included), a mask, the scale of the scores, and what else it may say."""

    module: nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Any
    scaling: float | None
    rest: Mapping[str, Any]
    implementation: str
    """Name of the model's own attention function: sdpa, eager, flash_attention_2, ..."""
    own: Callable[..., tuple[Tensor, Tensor | None]]
    """That function."""
    places: Tensor | None = None
    """Column in the input of every key `[batch, stored head, key]`, where keys are not simply the newest tokens."""
    tied: int | None = None
    """How many of a key's first channels are its value, where q, k and v are latent (`interp.seam.latent`)."""
    expanded: Callable[[Tensor], Tensor] | None = None
    """What heads then put out of what they read from values, as in `AttentionEvent`."""
    visible: Tensor | None = None
    """Which stored tokens each query sees `[batch, 1, new, token]`, where the model chooses them; None: all before."""
    bias: Tensor | None = None
    """What the model adds to its scores by position, beside the mask (T5): it fits `[batch, head, new, key]`."""

    @classmethod
    def through_registry(
        cls, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: Any, scaling: float | None,
        rest: dict[str, Any], implementation: str, own: Callable[..., tuple[Tensor, Tensor | None]],
    ) -> AttentionCall:  # fmt: skip
        """A call as models make it: a bias by position comes as a keyword, in files whose attention adds one."""
        bias = rest.get("position_bias")
        if bias is None or not adds_bias(cast(Hashable, type(module))):
            return cls(module, q, k, v, mask, scaling, rest, implementation, own)
        others = {name: value for name, value in rest.items() if name != "position_bias"}
        return cls(module, q, k, v, mask, scaling, others, implementation, own, bias=bias)

    @property
    def scale(self) -> float:
        return self.q.shape[-1] ** -0.5 if self.scaling is None else self.scaling

    def answer(self) -> tuple[Tensor, Tensor | None]:
        """What the model would have computed without us."""
        rest = self.rest if self.bias is None else {**self.rest, "position_bias": self.bias}
        return self.own(self.module, self.q, self.k, self.v, self.mask, scaling=self.scaling, **rest)

    @property
    def causal(self) -> bool:
        """Whether the model's own function lets no token attend to later ones where it gets no mask."""
        if self.implementation == "eager":
            return False
        asked = self.rest.get("is_causal")
        return bool(getattr(self.module, "is_causal", True) if asked is None else asked)

    def facts(self) -> dict[str, Any]:
        """What its mask says, in the keywords of `interp_kernels`."""
        self._refuse_bias()
        return kernel_facts(self.module, self.q, self.k, self.mask, self.causal)

    def maths(self) -> dict[str, Any]:
        """What `interp_kernels` has to know of the call beside its tensors; refuses what the kernels would ignore."""
        self.refuse_unknown()
        self._refuse_bias()
        return {"scale": self.scale, "softcap": self.rest.get("softcap"), "sinks": self.rest.get("s_aux")}

    def refuse_unknown(self) -> None:
        """Refuse to compute attention ourselves where the model passes something that we would ignore."""
        given = (name for name, value in self.rest.items() if value is not None and name not in UNDERSTOOD)
        unknown = sorted(name for name in given if self._reads(name))
        if unknown:
            raise UnsupportedModelError(
                f"{type(self.module).__name__} passes {', '.join(unknown)} to its attention, which scores, pattern and "
                "observables would ignore; hook q, k, v or z of this model instead."
            )

    @property
    def biased(self) -> bool:
        """Whether a bias changes the scores; T5 passes one of zeros where it has none."""
        return self.bias is not None and bool(self.bias.any())

    def _refuse_bias(self) -> None:
        if self.biased:
            raise UnsupportedModelError(
                f"the attention mask of {type(self.module).__name__} carries a bias by position, which observables "
                "would ignore; hook hook_pattern instead."
            )

    def _reads(self, keyword: str) -> bool:
        """Whether the model's attention makes anything of a keyword: models hand down whatever they were called with
        (`logits_to_keep`), and the functions at the end take most of it without a look.

        Asked of the function that the model uses and of the modelling file's own: one that names the keyword reads it,
        and so may one that is not transformers' own, since it could hand it to another.
        """
        functions = [self.own]
        with contextlib.suppress(UnsupportedModelError):
            functions.append(eager_of(cast(Hashable, type(self.module))))
        return any(_names(function, keyword) for function in functions)


def _names(function: Any, keyword: str) -> bool:
    bare = inspect.unwrap(function)
    code = getattr(bare, "__code__", None)
    if code is None or not bare.__module__.startswith("transformers."):
        return True
    return keyword in code.co_varnames or keyword in code.co_consts


@cache
def adds_bias(kind: Hashable) -> bool:
    """Whether the eager attention function of a module's file knows a bias by position, which it adds to the scores."""
    with contextlib.suppress(UnsupportedModelError):
        return "position_bias" in inspect.signature(eager_of(kind)).parameters
    return False


@cache
def eager_of(kind: Hashable) -> Callable[..., tuple[Tensor, Tensor]]:
    """The eager attention function of the file that defines a module's class or, for one that inherits it, its base."""
    assert isinstance(kind, type)
    for cls in kind.__mro__:
        function = vars(sys.modules[cls.__module__]).get("eager_attention_forward")
        if function is not None:
            return cast(Callable[..., tuple[Tensor, Tensor]], function)
    raise UnsupportedModelError(
        f"{kind.__module__} defines no eager attention function; load the model with attn_implementation='sdpa'."
    )
