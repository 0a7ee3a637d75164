"""Processors of vision-language models, also where torchvision is not installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers.utils import PushToHubMixin

from interp.errors import InterpError
from interp.subjects.quiet import LOADING
from interp.undoing import undoing


class NoVideo(PushToHubMixin):  # type: ignore[misc]  # which marks what a processor saves beside itself
    """Stands where a processor wants a part for videos, which transformers builds with torchvision alone.

    Processors read the numbers of it that they need for images too.
    """

    merge_size = 2
    temporal_patch_size = 2
    model_input_names: tuple[str, ...] = ()
    _auto_class = None

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> NoVideo:
        """What stands for the part for videos of any processor."""
        return cls()

    def to_dict(self) -> dict[str, Any]:
        """What a processor saves of it: nothing."""
        return {}


class _Mapping:
    """transformers' classes for the parts of a processor, but for that of videos."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def __getitem__(self, modality: str) -> Any:
        return NoVideo if modality == "video_processor" else self._own[modality]

    def __contains__(self, modality: str) -> bool:
        return modality in self._own


@contextmanager
def without_video() -> Iterator[None]:
    """Inside, processors can be built that want a part for videos, given `NoVideo()` or found in a folder.

    SmolVLM's needs no package that spells numbers of frames then. Nothing else is loaded meanwhile.
    """
    from transformers import processing_utils
    from transformers.models.smolvlm import processing_smolvlm
    from transformers.processing_utils import ProcessorMixin

    check: Callable[..., Any] = ProcessorMixin.check_argument_for_proper_class

    def lenient(processor: Any, name: str, argument: Any) -> Any:
        return type(argument) if argument is None or isinstance(argument, NoVideo) else check(processor, name, argument)

    parts = processing_utils.MODALITY_TO_AUTOPROCESSOR_MAPPING
    with undoing() as undo:
        LOADING.hold(undo)
        changes: list[tuple[Any, str, Any]] = [
            (ProcessorMixin, "check_argument_for_proper_class", lenient),
            (processing_utils, "MODALITY_TO_AUTOPROCESSOR_MAPPING", _Mapping(parts)),
        ]
        if processing_smolvlm.num2words is None:
            changes.append((processing_smolvlm, "num2words", str))
        for owner, name, value in changes:
            undo.later(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, value)
        yield


def processor_of(name: str, **where: Any) -> Any:
    """The processor that came with the weights in a folder or of a hub id.

    Videos are left out where transformers cannot read them here. Raises what transformers raises.
    """
    from transformers import AutoProcessor
    from transformers.utils import is_torchvision_available

    if is_torchvision_available():
        return AutoProcessor.from_pretrained(name, **where)
    with without_video():
        return AutoProcessor.from_pretrained(name, **where)


def sees(processor: Any) -> bool:
    """Whether something is a processor of images beside text, and not a tokenizer."""
    return getattr(processor, "image_processor", None) is not None and hasattr(processor, "tokenizer")


MOST, MOST_PIXELS = 100_000, 50_000_000
"""Of any whole number in a processor's settings, and of those that are numbers of pixels."""
AREAS = ("shortest_edge", "longest_edge", "min_pixels", "max_pixels")
"""Settings that are areas in some processors (Qwen-VL) and sides in others."""


def refuse_enormous(processor: Any) -> None:
    """Raise InterpError for a processor whose settings ask for more than any model reads: it would be at work, or fill
    the memory, long before that shows."""
    own = {name: value for name, value in vars(processor).items() if isinstance(value, int)}
    for name, value in _numbers(own | processor.image_processor.to_dict()):
        most = MOST_PIXELS if name in AREAS else MOST
        if abs(value) > most and not name.endswith(("_id", "_ids")):
            raise InterpError(
                f"the processor's {name} is {value:.4g}, and none that is meant is above {most:,}; mend "
                "preprocessor_config.json or processor_config.json."
            )


def _numbers(settings: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """All whole numbers of nested settings by their names, and the areas of sizes."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _numbers(value)
            if all(isinstance(value.get(side), int) for side in ("height", "width")):
                yield "max_pixels", value["height"] * value["width"]
        elif isinstance(value, int) and not isinstance(value, bool):
            yield name, value
