"""The language model that answers: the demo model, frozen, with a place for pictures and, if wanted, adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from interp.subjects.demo import demo_gguf
from interp.subjects.weights import load_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IMAGE = "<image>"
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The demo model's own chat, without the system's message that it puts first and that would cost tokens."""
ADAPTED = ("q_proj", "k_proj", "v_proj", "o_proj")
RANK = 16
LOUDNESS = 2.0
"""By what an adapter's product is multiplied."""


def language_model(dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The demo model, frozen, and its tokenizer with one token more, `<image>`, for which the embeddings have a row."""
    model, tokenizer = load_gguf(demo_gguf(), dtype)
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    tokenizer.chat_template = TEMPLATE
    embeddings = model.get_input_embeddings().weight
    unknown = (
        embeddings[tokenizer.unk_token_id].detach().clone()
    )  # a row that is never wanted where it is not asked for
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[len(tokenizer) - 1] = unknown
    return model.requires_grad_(False).eval(), tokenizer


class Adapter(nn.Module):
    """A frozen linear map and a product of low rank beside it, zero at first; `merge` adds it to the map."""

    down: nn.Parameter
    up: nn.Parameter

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.frozen = frozen
        self.down = nn.Parameter(torch.empty(RANK, frozen.in_features))
        self.up = nn.Parameter(torch.zeros(frozen.out_features, RANK))
        nn.init.normal_(self.down, std=frozen.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        beside = F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))
        out: Tensor = self.frozen(x) + LOUDNESS * beside
        return out


def adapt(model: nn.Module) -> dict[str, Adapter]:
    """Put adapters into the attention of every layer; returns them by the name of what they stand for."""
    found = {
        name: module
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in ADAPTED and isinstance(module, nn.Linear)
    }
    adapters = {name: Adapter(module) for name, module in found.items()}
    for name, adapter in adapters.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, adapter)
    return adapters


@torch.no_grad()
def merge(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Add what adapters of these weights (`LAYER.down`, `LAYER.up`) would do to a model's own weights."""
    for name in sorted({name.rpartition(".")[0] for name in weights}):
        layer: Any = model.get_submodule(name).weight
        product = weights[f"{name}.up"].float() @ weights[f"{name}.down"].float()
        layer.copy_((layer.float() + LOUDNESS * product).to(layer.dtype))


def word_embeddings(model: PreTrainedModel, tokenizer: Any, words: list[str]) -> Tensor:
    """What the model reads at each of some words of one token, after a space [word, width]."""
    ids = [tokenizer.encode(f" {word}", add_special_tokens=False) for word in words]
    assert all(len(one) == 1 for one in ids), [word for word, one in zip(words, ids, strict=True) if len(one) > 1]
    found: Tensor = model.get_input_embeddings().weight[torch.tensor(ids)[:, 0]].detach()
    return found
