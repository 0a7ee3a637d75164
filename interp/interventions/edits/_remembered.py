"""Groups of the keys of all layers at once, for steps of generation: what is the same in every layer is done once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from interp_kernels.checks import accumulator
from jaxtyping import Float, Int

from interp.interventions.edits._answers import Answer
from interp.interventions.edits._edit_memory import EditMemory
from interp.interventions.edits.base import AttentionEdit
from interp.seam.event import AttentionEvent

Tensor = torch.Tensor


@dataclass(frozen=True)
class _Step:
    """What an edit said of the newest tokens, and which group each key is in, 1 or 0, by layer."""

    answer: Answer
    dtype: torch.dtype
    by_layer: Mapping[int, Float[Tensor, "batch 1 group key"]]


class Groups:
    """The groups of single edits in all layers in which they act, during one Lens call."""

    def __init__(self, memory: EditMemory) -> None:
        self._memory = memory
        self.layers: dict[int, list[int]] = {}
        """In which layers an edit acts, by its number."""
        self._steps: dict[int, _Step] = {}
        self._all: dict[int, tuple[int, Int[Tensor, "layer batch token"]]] = {}
        """By the number of an edit all groups, and the version of the memory that they are of."""

    def members(
        self, number: int, edit: AttentionEdit, answer: Answer, layer: int, event: AttentionEvent
    ) -> Float[Tensor, "batch 1 group key"] | None:
        """1 where a key that a layer attends to, one of the newest, is in a group, else 0. None at the first tokens,
        which later layers know nothing of yet.

        answer: what the edit said of the newest tokens, which holds in all of its layers.
        """
        dtype, keys = accumulator(event.q), event.k.shape[2]
        step = self._steps.get(number)
        if step is None or step.answer is not answer or step.dtype != dtype:
            groups = self._groups(number, answer)
            if groups is None:
                return None
            every = torch.arange(edit.group_count, dtype=groups.dtype, device=groups.device)
            of_all = (groups[:, :, None, None] == every[:, None]).to(dtype)
            step = _Step(answer, dtype, dict(zip(self.layers[number], of_all.unbind(0), strict=True)))
            self._steps[number] = step
        members = step.by_layer[layer]
        members = members if members.shape[-1] == keys else members[..., -keys:]
        return members if members.device == event.q.device else members.to(event.q.device)

    def _groups(self, number: int, answer: Answer) -> Int[Tensor, "layer batch token"] | None:
        memory, layers = self._memory, self.layers[number]
        version, groups = self._all.get(number, (None, None))
        if groups is not None and version == memory.version and groups.shape[2] < memory.tokens:
            groups = torch.cat([groups, answer.groups.expand(len(layers), -1, -1)], 2)
        if groups is None or version != memory.version or groups.shape[2] != memory.tokens:
            if any((layer, number) not in memory for layer in layers):
                return None
            known = [memory.groups((layer, number)) for layer in layers]
            groups = torch.stack([of_layer.to(known[0].device) for of_layer in known])
        self._all[number] = memory.version, groups
        return groups
