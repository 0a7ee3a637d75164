"""What a Lens knows of its model, looked at again when the model has changed.

Adapters added in place, another dtype, device or attention implementation, a larger vocabulary, a module put in place
of another: `cfg` and `anatomy` are those of the model as it is now. They are read as one at the beginning of a call and
stay as they are until it ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from interp.errors import InterpError
from interp.lens.anatomy import config_of, dissect
from interp.lens.freshness import Fingerprint, refuse_unrunnable
from interp.lens.parts import Anatomy
from interp.lens.strict_hooks import HookPoint
from interp.lens.turns import Calls, Turn
from interp.seam.config import LensConfig
from interp.seam.points import live
from interp.seam.precision import plain_numbers
from interp.seam.routing import forget


@dataclass(frozen=True)
class Known:
    """What a Lens learnt of its model, and what the model was like then."""

    seen: Fingerprint
    anatomy: Anatomy
    cfg: LensConfig


class CurrentMixin:
    """`cfg` and `anatomy` of the model as it is."""

    model: Any
    processor: Any
    hook_dict: dict[str, HookPoint]
    absent: dict[str, str]
    _turn: Turn
    _name: str | None
    _known: Known
    _calls_of: Calls
    _built = False
    """Whether its points are those of what it knows: not while they are made, nor after an interrupt there."""

    def _learn(self) -> None:
        """Take the model apart and build what depends on its parts."""
        refuse_unrunnable(self.model)
        forget(self.model)
        with plain_numbers(self.model.device):  # parts are found by arithmetic
            anatomy = dissect(self.model, self.processor)
        self._know(anatomy, config_of(self.model, anatomy, self._name))

    def _know(self, anatomy: Anatomy, cfg: LensConfig) -> None:
        self._check_config(cfg)
        self._built = False
        self._known = Known(Fingerprint(self.model), anatomy, cfg)
        self._build(anatomy, cfg)
        self._built = True

    def _check_config(self, cfg: LensConfig) -> None:
        """Raise UnsupportedModelError for a model that a Lens would read wrongly."""
        raise NotImplementedError

    def _build(self, anatomy: Anatomy, cfg: LensConfig) -> None:
        """Make what depends on a model's parts."""
        raise NotImplementedError

    def _look(self) -> None:
        """See whether the model has changed since it was taken apart and, outside a call, learn what it is now."""
        if self._calls_of.depth or self._turn.inside:
            return
        if self._is_current():
            return
        with self._turn.gate.held():
            if self._is_current():  # another thread has seen to it
                return
            known = self._known
            if self._built and known.seen.same_parts(self.model) and str(self.model.device) != "meta":
                self._know(known.anatomy, config_of(self.model, known.anatomy, self._name))
                return
            hooked = {name for name, point in self.hook_dict.items() if live(point)}
            self._learn()
        if gone := sorted(hooked - self.hook_dict.keys()):
            reason = self.absent.get(gone[0], "the model has changed")
            raise InterpError(
                f"{gone[0]} is hooked and gone, since {reason}; call reset_hooks() or take the hook away."
            )

    def _is_current(self) -> bool:
        seen = self._known.seen
        return self._built and seen.same_parts(self.model) and seen.same_weights()

    @property
    def cfg(self) -> LensConfig:
        """The shape of the model as it is now, in TransformerLens' field names."""
        self._look()
        return self._known.cfg

    @property
    def anatomy(self) -> Anatomy:
        """The parts of the model as it is now."""
        self._look()
        return self._known.anatomy
