"""Which lists of layers a model has, and which attention of a layer is which.

The main stack is the list whose layers attend, or the decoder's of an encoder-decoder. An encoder is a list that is
done with the text before the main stack begins; nothing is known by name. Whose tokens a layer of the main stack
attends to shows in the number of its keys (`interp.lens.first_look`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from interp.errors import UnsupportedModelError
from interp.lens.arguments import is_encoder_decoder
from interp.lens.first_look import READ, TOKENS, Look

ENCODER = "encoder."
"""What stands before the names of the points of an encoder."""
VISION = "vision."
"""What stands before the names of the points of the tower that sees images."""


@dataclass(frozen=True)
class Listed:
    """A list of layers: its name in the model, the prefix of its points, and how many tokens it got."""

    name: str
    prefix: str = ""
    tokens: int | None = TOKENS
    """None where they are patches, as many as there are."""
    attention: tuple[tuple[str, nn.Module], ...] = ()
    """Modules that attend, each with the name of its block."""

    def own(self, block: str) -> list[nn.Module]:
        """The attention modules of a block, in the order in which they attend."""
        return [module for name, module in self.attention if name == block]


def lists_of(model: Any, look: Look) -> tuple[Listed, ...]:
    """The model's lists of layers with attention, the main one first.

    Raises UnsupportedModelError where there are several and they are no encoder and its decoder, and where a module
    attends more than once.
    """
    found = _in_order(model, look, attending_lists(model, look))
    for module, calls in look.calls.items():
        if len(calls) > 1:
            raise UnsupportedModelError(
                f"{look.names[module]} of {type(model).__name__} attends {len(calls)} times in one pass (it is shared "
                "by layers, or attends several times in one), and a Lens has one set of points for a layer's attention."
            )
    return found


def attending_lists(model: Any, look: Look) -> dict[str, list[tuple[str, nn.Module]]]:
    """Names of the lists of layers that attend, each with its modules that do and the names of their blocks.

    Raises UnsupportedModelError where a module that attends is in no list.
    """
    held: dict[str, list[tuple[str, nn.Module]]] = {}
    for module in look.calls:
        block = _block_of(look.names[module], model)
        held.setdefault(block.rpartition(".")[0], []).append((block, module))
    return held


def _in_order(model: Any, look: Look, held: dict[str, list[tuple[str, nn.Module]]]) -> tuple[Listed, ...]:
    last = max(held, key=lambda name: max(look.finished(name)))
    main = Listed(last, attention=tuple(held[last]))
    others = [name for name in held if name != last]
    if not others:
        return (main,)
    if len(others) == 1 and is_encoder_decoder(model) and _reads_alone(look, others[0], held, last):
        return main, Listed(others[0], ENCODER, READ, tuple(held[others[0]]))
    stacks = sorted(held)
    raise UnsupportedModelError(
        f"{type(model).__name__} has attention in {len(stacks)} lists of layers ({', '.join(stacks[:4])}"
        f"{', ...' if len(stacks) > 4 else ''}); a Lens numbers the layers of one, and those of its encoder."
    )


def _reads_alone(look: Look, name: str, held: dict[str, list[tuple[str, nn.Module]]], main: str) -> bool:
    """Whether a list attends to the encoder's tokens alone, and is done with them before the main one begins."""
    keys = {look.calls[module][0]["n_keys"] for _, module in held[name]}
    return keys == {READ} and max(look.finished(name)) < min(look.finished(main))


def told_apart(
    model: Any, look: Look, block: str, modules: Iterable[nn.Module]
) -> tuple[nn.Module | None, nn.Module | None]:
    """Of a block's attention modules the one of the block's own tokens (which may take the encoder's in as well), and
    the one of the encoder's tokens alone.

    Raises UnsupportedModelError where there are several of a kind.
    """
    modules = list(modules)
    keys = [look.calls[module][0]["n_keys"] for module in modules]
    crossing = [module for module, n in zip(modules, keys, strict=True) if n == READ and is_encoder_decoder(model)]
    if not any(n != READ for n in keys):  # an encoder's layer, or one that has no other attention
        crossing = []
    own = [module for module in modules if module not in crossing]
    if len(own) > 1 or len(crossing) > 1:
        raise UnsupportedModelError(
            f"{block} of {type(model).__name__} has {len(modules)} attention modules, and a Lens has one set of points "
            "for a layer's attention."
        )
    return next(iter(own), None), next(iter(crossing), None)


def _block_of(attention_name: str, model: nn.Module) -> str:
    """Name of the ancestor that sits in a ModuleList; an attention module that does itself is one of several.

    Of lists inside one another the innermost counts, but in encoder-decoders the outermost: T5 keeps the parts of each
    of its layers in a list.
    """
    name, found, outermost = attention_name, "", is_encoder_decoder(model)
    while name and (outermost or not found or found == attention_name):
        parent, _, _ = name.rpartition(".")
        if isinstance(model.get_submodule(parent), nn.ModuleList):
            found = name
        name = parent
    if not found:
        raise UnsupportedModelError(
            f"attention module {attention_name} is in no list of layers, so its depth is unknown."
        )
    return found
