"""What a probe is: parameters, and a fold over the layers of one forward pass.

A new probe is one new file in this folder: a frozen dataclass that derives from `Probe` and a `Fold` that says at which
hook points it listens. `interp.probe` attaches the folds of all requested probes to the same forward pass, so that each
sees a layer's values while they exist and keeps only the few numbers it needs. What is observed on regression tasks
instead of a text derives from `TaskProbe`, which has one method in place of the fold.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

from interp.errors import InterpError
from interp.results.columns import Column, layer_columns
from interp.settings.checking import Checked

if TYPE_CHECKING:
    import xarray as xr

    from interp.icl.tasks.regression import Tasks
    from interp.lens.image_layout import TokenLayout
    from interp.lens.protocol import TextLens


@dataclass(frozen=True)
class Context:
    """What a probe may know before the forward pass starts: the lens and the one text that it will read."""

    lens: TextLens
    tokens: torch.Tensor
    """`[1, position]`, int64."""
    str_tokens: list[str]
    """The text of each token, as the tokenizer prints it; untrusted."""
    layout: TokenLayout | None = None
    """Which tokens are parts of images, and where in them; None for a text without images."""

    @property
    def cfg(self) -> Any:
        """The model's shape in TransformerLens' field names."""
        return self.lens.cfg

    @property
    def n_tokens(self) -> int:
        return int(self.tokens.shape[1])

    def with_images(self, probe: str) -> TokenLayout:
        """The layout, for a probe that reads images. Raises InterpError for a text without any."""
        if self.layout is None or not (self.layout.modality == "image").any():
            raise no_images(probe)
        return self.layout


def no_images(probe: str) -> InterpError:
    """What a probe of images says to a text without any."""
    return InterpError(f"{probe} reads texts with images: interp.probe(lens, text, images=...).")


class Fold(ABC):
    """Collects one probe's numbers while a model reads one text."""

    @abstractmethod
    def hooks(self) -> Mapping[str, Callable[[int, Any], None]]:
        """Hook points this fold listens to.

        Names are relative to a block (`attn.hook_event`, `hook_resid_post`) and are attached in every layer; names that
        exist outside the blocks (`hook_embed`, `ln_final.hook_normalized`) are attached once and get layer -1.
        """

    @abstractmethod
    def result(self) -> xr.Dataset:
        """What was seen, with named dimensions and units."""


class Probe(Checked, ABC):
    """A named observation with its parameters. Subclasses are frozen dataclasses with a class attribute `name`."""

    name: ClassVar[str]
    reads: ClassVar[Literal["text", "tasks", "images"]] = "text"
    """What a model is shown while it is observed: a text, regression tasks, or a text with images."""
    reads_logits: ClassVar[bool] = False
    """Whether it turns the residual stream into logits, which an encoder makes none of."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Findings are about one text, for every probe: `_of_one_text` is the one place that sees to it."""
        super().__init_subclass__(**kwargs)
        if "findings" in vars(cls):
            # wrapped once, when its class is made
            cls.findings = _of_one_text(cls.findings)  # type: ignore[assignment, method-assign]  # no method may vary

    @abstractmethod
    def begin(self, context: Context) -> Fold:
        """A fresh fold for one forward pass over one text."""

    def findings(self, result: xr.Dataset) -> list[str]:
        """Plain-text sentences computed from the result of one text; what reports and the command line print.

        Subclasses see results of several texts, once `.isel(text=i)` or `interp.results.many_texts.one` has picked one,
        as if that text had been read alone. Raises InterpError where none was picked.
        """
        return []

    @classmethod
    def columns(cls, result: xr.Dataset) -> list[Column]:
        """What the result of one text says about each layer in the table of a report.

        Every variable with one value a layer, by its name and description, unless a subclass chooses better.
        """
        return layer_columns(result)


class TaskProbe(Probe):
    """A probe of a model that reads regression tasks (`interp.icl.make_regression`); it calls the model itself."""

    reads = "tasks"

    @abstractmethod
    def measure(self, model: Any, tasks: Tasks) -> xr.Dataset:
        """What was seen, with named dimensions and units. Raises `self.refusal()` for a model that reads text."""

    def begin(self, context: Context) -> Fold:
        raise self.refusal()

    def refusal(self) -> InterpError:
        """Why this probe has nothing to say about text."""
        return InterpError(
            f"{self.name} reads an interp.icl.AttentionRegressor on tasks from interp.icl.make_regression, not text; "
            "what a language model learns from examples in its text is measured by interp.icl.language."
        )


def _of_one_text(findings: Callable[[Any, xr.Dataset], list[str]]) -> Callable[[Any, xr.Dataset], list[str]]:
    @wraps(findings)
    def of_one_text(probe: Any, result: xr.Dataset) -> list[str]:
        from interp.results.many_texts import single
        from interp.results.reading import read_off
        from interp.results.wording import with_numbers

        with read_off(f"the findings of {probe.name}"):
            return with_numbers(findings(probe, single(result)))

    return of_one_text
