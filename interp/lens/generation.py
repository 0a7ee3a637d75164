"""What `Lens.generate` adds to transformers' own: whose settings hold, sequences as text, activations of all steps.

The caller's keywords hold first, then a `generation_config` that was passed, then the Lens' own (64 new tokens,
greedy), then the model's `generation_config`, which is where transformers takes every other default from.
"""

from __future__ import annotations

import copy
import itertools
import math
import numbers
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from interp.errors import InterpError
from interp.lens.activations import LensActivations
from interp.lens.finite import LostError, Numbers
from interp.lens.foreign import asking, said_in
from interp.lens.reading_input import rows_of
from interp.lens.strict_hooks import Hook

if TYPE_CHECKING:
    from interp.lens.reading_input import Read
    from interp.lens.strict_hooks import HookedLens

Tensor = torch.Tensor
NEW_TOKENS = 64
COUNTS = {
    "max_new_tokens": 1,
    "max_length": 1,
    "min_new_tokens": 0,
    "min_length": 0,
    "num_beams": 1,
    "num_return_sequences": 1,
}
"""Settings that are whole numbers, and the least that each may be: NaN passes every comparison."""
GUESSING = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")


class Settings:
    """The settings of one call of `generate`, and the keywords that make transformers use them."""

    def __init__(self, model: Any, keywords: Mapping[str, Any], max_new_tokens: int | None) -> None:
        from transformers import GenerationConfig

        self.said = dict(keywords) | ({} if max_new_tokens is None else {"max_new_tokens": max_new_tokens})
        self.passed = self.said.pop("generation_config", None)
        if self.passed is not None and not isinstance(self.passed, GenerationConfig):
            raise InterpError(
                f"generation_config is a transformers.GenerationConfig, not {type(self.passed).__name__}; pass single "
                "settings as keywords."
            )
        self._own = getattr(model, "generation_config", None)

    def asked(self, name: str) -> Any:
        """What the caller says, or else the configuration that was passed; None where neither does."""
        value = self.said.get(name)
        return getattr(self.passed, name, None) if value is None else value

    def held(self, name: str) -> Any:
        """The value in force of a setting that is none of the Lens' own; None stands for transformers' default."""
        value = self.asked(name)
        return getattr(self._own, name, None) if value is None else value

    def new_tokens(self, prompt_tokens: int) -> int:
        """How many tokens to write at most. A `max_length` counts the prompt too."""
        for source in (self.said.get, partial(_field, self.passed)):
            if (count := source("max_new_tokens")) is not None:
                return at_least(1, "max_new_tokens", count)
            if (length := source("max_length")) is not None:
                if at_least(1, "max_length", length) <= prompt_tokens:
                    raise InterpError(
                        f"max_length={length} counts the prompt, which has {prompt_tokens} tokens already; raise it, "
                        "or pass max_new_tokens."
                    )
                return int(length) - prompt_tokens
        return NEW_TOKENS

    def use_cache(self, acting: bool) -> bool:
        """Whether a cache is kept. A cache that was passed, or a policy that acts on one, asks for it where the caller
        says nothing, whatever the model's own default."""
        value = self.asked("use_cache")
        if value is None and (acting or self.said.get("past_key_values") is not None):
            return True
        value = self.held("use_cache")
        return True if value is None else bool(value)

    def keywords(self, prompt_tokens: int, use_cache: bool, tokenizer: Any) -> dict[str, Any]:
        """What to pass to transformers."""
        if self.asked("cache_implementation") is not None:
            raise InterpError("pass no cache_implementation: the Lens makes the cache, so that hooks see new keys.")
        told = {name: value for name, value in self.said.items() if name != "max_length"}
        told |= {"max_new_tokens": self.new_tokens(prompt_tokens), "use_cache": use_cache}
        told["do_sample"] = bool(self.asked("do_sample"))
        if self.held("stop_strings") is not None and told.get("tokenizer") is None:
            if tokenizer is None:
                raise InterpError("stop_strings are read with a tokenizer, and this Lens has none; pass tokenizer=...")
            told["tokenizer"] = tokenizer
        # None says something only where there is a default to override
        told = {name: value for name, value in told.items() if value is not None or name in vars(self._own or object)}
        if getattr(self._own, "cache_implementation", None) is not None:
            told["cache_implementation"] = None
        if self.passed is None:
            return told
        config = copy.deepcopy(self.passed)
        config.max_length = None
        with in_one_sentence():
            rest: dict[str, Any] = config.update(**{name: value for name, value in told.items() if value is not None})
        return rest | {name: None for name, value in told.items() if value is None} | {"generation_config": config}


def _field(config: Any, name: str) -> Any:
    return getattr(config, name, None)


def expect_counts(said: Mapping[str, Any], max_new_tokens: Any = None) -> None:
    """Raises InterpError for settings that would never end, or that mean nothing, before anything is read."""
    keywords = said if max_new_tokens is None else {**said, "max_new_tokens": max_new_tokens}
    for source in (keywords.get, partial(_field, said.get("generation_config"))):
        for name, least in COUNTS.items():
            if (value := source(name)) is not None:
                at_least(least, name, value)
        seconds = source("max_time")
        if seconds is not None and not (isinstance(seconds, numbers.Real) and 0 < float(seconds) < math.inf):
            raise InterpError(f"generate: max_time should be a finite number of seconds above 0, found {seconds!r}.")


def at_least(least: int, name: str, value: Any) -> int:
    """A whole number. Raises InterpError for anything else, and for a smaller one."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise InterpError(f"generate: {name} should be a number of at least {least}, found {value!r}.")
    return int(value)


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """What transformers' own generation does not take as InterpError; errors from hooks and others' processors pass."""
    try:
        yield
    except Exception as error:  # what its checks overlook ends in any error, such as one of arithmetic
        if isinstance(error, InterpError) or not said_in(error, "transformers.generation"):
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        said = reason[:300].rstrip(".")
        raise InterpError(f"transformers does not generate with these settings: {said}.") from error


class Looking:
    """A processor of logits that changes nothing: it looks whether they are finite, and remembers what was read.

    On a CPU, which need not be waited for, a step that is lost is the last one; a GPU is asked at the end.
    """

    def __init__(self, tokens: Tensor, mask: Tensor | None, paired: bool, seen: Mapping[str, Any]) -> None:
        self._tokens, self._mask, self._paired, self._seen = tokens, mask, paired, seen
        self._ids: Tensor | None = None
        self.numbers = Numbers()

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._ids = input_ids
        self.numbers.take_logits(scores)
        if scores.device.type == "cpu" and self.numbers.lost_last:
            raise LostError
        return scores

    def beside(self, others: Any) -> Any:
        """A list of it and, after it, the caller's own processors."""
        from transformers import LogitsProcessorList

        return LogitsProcessorList([self, *(others or ())])

    def rows(self) -> Iterator[Any]:
        """The texts so far without their padding; of an encoder-decoder what the encoder read, of images the prompts
        with them."""
        if self._ids is None or self._paired or self._seen:
            yield from rows_of(self._tokens, self._mask, self._seen)
            return
        each = len(self._ids) // len(self._tokens)
        for i, row in enumerate(self._ids.split(1)):
            yield row[:, 0 if self._mask is None else int((self._mask[i // each] == 0).sum()) :]


def as_text(tokenizer: Any, sequences: Tensor, prompt: Read, alone: bool) -> str | list[str]:
    """Text of sequences `[prompt * returned, pos]` without special tokens and padding; of a conversation the reply
    alone. One string where one prompt came alone and one sequence came back. `alone`: they hold no prompt."""
    width, each = prompt.tokens.shape[1], sequences.shape[0] // prompt.tokens.shape[0]
    padding = [0] * prompt.tokens.shape[0]
    if prompt.mask is not None:
        padding = (prompt.mask == 0).sum(1).tolist()
    if alone:
        width, padding = 0, [0] * len(padding)
    begins = [width if prompt.conversation else n for n in itertools.chain(*([n] * each for n in padding))]
    rows = [row[begin:] for row, begin in zip(sequences.tolist(), begins, strict=True)]
    with asking(tokenizer):
        texts: list[str] = tokenizer.batch_decode(rows, skip_special_tokens=True)
    return texts[0] if prompt.single and len(texts) == 1 else texts


class Recorder:
    """Activations of every step of one generation."""

    def __init__(self, lens: HookedLens, names_filter: Any) -> None:
        self.lens = lens
        self.steps: dict[str, list[Any]] = {name: [] for name in lens.point_names(names_filter)}

    @property
    def hooks(self) -> list[tuple[str, Hook]]:
        return [(name, partial(self._note, name)) for name in self.steps]

    def _note(self, name: str, value: Any, hook: Any) -> None:
        self.steps[name].append(value.detach() if isinstance(value, Tensor) else value)

    def activations(self, cached: bool) -> LensActivations:
        """Steps one after the other along the position axis, where a point has one; else a list with one item a step.

        Without a cache every step reads the whole text again, so the last one has it all.
        """
        found: dict[str, Any] = {}
        for name, steps in self.steps.items():
            point = self.lens.point_table[name]
            axes = point.shape.split()
            if not cached and steps:
                found[name] = steps[-1]
            elif steps and "pos" in axes and "key" not in axes and point.position_axis is not None:
                found[name] = torch.cat(steps, point.position_axis)
            else:
                found[name] = steps
        return LensActivations(found, self.lens)
