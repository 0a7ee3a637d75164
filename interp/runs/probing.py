"""`interp.probe`: all requested probes in one forward pass for each text, or one after another on regression tasks."""

from __future__ import annotations

import difflib
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from interp.errors import InterpError, UnknownNameError
from interp.icl.tasks.regression import Tasks
from interp.lens.encoder_view import reading_text
from interp.lens.evaluating import in_evaluation_mode
from interp.lens.finite import finite, refuse_weights
from interp.lens.foreign import ids_of
from interp.lens.image_layout import TokenLayout, layout
from interp.lens.protocol import reads_text, takes_interventions
from interp.lens.spelling import AS_THE_TOKENIZER_DOES
from interp.probes import Context, Fold, Probe, TaskProbe, resolve
from interp.seam.precision import autocast_dtype, plain_numbers
from interp.settings.checking import checked
from interp.vision.pictures import nested, thumbnail

if TYPE_CHECKING:
    import xarray as xr

    from interp.icl.models.attention_regressor import AttentionRegressor
    from interp.lens.protocol import TextLens
    from interp.lens.strict_hooks import Hook

Progress = Callable[[int, int], None]
"""Called as `progress(layers done, layers in all)` while a model reads text; on tasks it counts probes."""


@in_evaluation_mode
def probe(
    lens: TextLens | AttentionRegressor,
    inputs: Any,
    probes: Iterable[str | Probe] | str | Probe | None = None,
    *,
    tokens: int | None = None,
    attention_mask: Any = None,
    images: Any = None,
    chat: bool = False,
    progress: Progress | None = None,
) -> dict[str, xr.Dataset]:
    """Run probes on a model reading text; returns their results by name.

    A model of regression tasks (`interp.icl.AttentionRegressor`) is read with `Tasks` from `interp.icl.make_regression`
    as inputs, by the probes that read those; `tokens` and `attention_mask` are for text.

    Args:
        lens: from `interp.load`.
        inputs: a text, a list of texts, or tokens `[pos]` or `[batch, pos]` (each row is one text); or anything else
            that `lens.tokens_and_mask` takes: lists of ids, what a tokenizer returned (its mask says what is padding),
            chat messages. Each text is read by itself, so that no padding enters a measurement; of several, results
            have a `text` dimension and, for what does not depend on positions, `<variable>_mean` with bootstrap limits
            `<variable>_low` and `<variable>_high` (`interp.results.many_texts` says by which rules, and picks one text
            out again).
        probes: names, with settings (`"text_sinks:epsilon=[0.3,0.8]"`) or without, or probe objects; None runs all,
            those of images where there are any.
        tokens: read only the first so many tokens of each text.
        attention_mask: for tokens only, of their shape: zeros on the left and on the right of a row are padding, which
            is cut away. Without it every token is read as text, padding tokens too.
        images: for a model that sees, what stands at `<image>` in each text, as in `lens(text, images=...)`. Along
            `token` results then have coordinates `modality` (text, image, separator), `image`, `tile`, `view` (whole,
            part) and `box` (left, top, right, bottom in pixels of the upright picture).
        chat: read each text as a conversation of one message, with images before it; for texts with images. With images
            inputs may be chat messages, too, or several conversations: of a question and its answer, for example.
        progress: see `Progress`.

    Of an encoder-decoder probes look at the encoder, which reads the text, and `attrs["stack"]` says so.
    Memory does not grow with depth times positions squared: each probe keeps a few numbers of each layer. Inside
    `lens.apply(...)` probes see attention as edits leave it, and `attrs["interventions"]` has the edits' settings.

    Examples:
        >>> seen = interp.probe(lens, prompt, ["text_sinks", "channel_imbalance"], tokens=32)
        >>> list(seen), seen["text_sinks"].sizes["token"]
        (['text_sinks', 'channel_imbalance'], 32)
        >>> both = interp.probe(lens, [prompt, "w9 w8 w7"], ["text_sinks"])["text_sinks"]
        >>> both.sizes["text"]
        2
    """
    from interp.results.provenance import provenance

    if isinstance(inputs, Tasks):
        if tokens is not None or attention_mask is not None or images is not None:
            raise InterpError("tokens, attention_mask and images are for text; of tasks take a part with tasks[:n].")
        return _probe_tasks(lens, inputs, cast("list[TaskProbe]", resolve(probes, "tasks")), progress)
    wanted = resolve(probes, "text" if images is None else "images")
    if not reads_text(lens):
        raise InterpError(
            f"text is read by a Lens from interp.load, and this is {type(lens).__name__}; a model of regression tasks "
            "reads those that interp.icl.make_regression makes."
        )
    stack, lens = lens, reading_text(lens)
    if lens is not stack:
        wanted = _without_logits(wanted, asked=probes is not None)
    rows, alone = _rows(lens, inputs, tokens, attention_mask, images, chat)
    facts = provenance(lens.device) | {"special_tokens": _special_tokens(lens)}
    facts |= {} if lens is stack else {"stack": "encoder"}
    total, done = lens.cfg.n_layers * len(rows), 0
    results: list[dict[str, xr.Dataset]] = []
    for row in rows:
        report = None if progress is None else partial(_report, progress, done, total)
        results.append(_probe_one(lens, row, wanted, report))
        for dataset in results[-1].values():
            dataset.attrs |= facts
        done += lens.cfg.n_layers
    if alone:
        return results[0]
    from interp.results.many_texts import gather

    return {p.name: gather([r[p.name] for r in results]) for p in wanted}


def _without_logits(probes: list[Probe], asked: bool) -> list[Probe]:
    """The probes that an encoder has something for. Raises InterpError where others were `asked` for by name."""
    if asked and (without := [probe.name for probe in probes if probe.reads_logits]):
        raise InterpError(
            f"{', '.join(without)} reads logits, and probes look at the encoder, which makes none; lens.unembed reads "
            "the decoder's stream out."
        )
    return [probe for probe in probes if not probe.reads_logits]


def _probe_tasks(
    model: TextLens | AttentionRegressor, tasks: Tasks, wanted: list[TaskProbe], progress: Progress | None
) -> dict[str, xr.Dataset]:
    from interp.results.provenance import provenance

    results = {}
    if isinstance(model, torch.nn.Module):
        refuse_weights(model)
    for done, probe in enumerate(wanted, start=1):
        began = time.perf_counter()
        results[probe.name] = probe.measure(model, tasks)
        results[probe.name].attrs |= {"seconds": round(time.perf_counter() - began, 3), **provenance(tasks.X.device)}
        if progress is not None:
            progress(done, len(wanted))
    return results


def _report(progress: Progress, before: int, total: int, layer: int, _: Any = None) -> None:
    progress(before + layer, total)


class Row(NamedTuple):
    """One text as it is read."""

    tokens: torch.Tensor
    """`[1, pos]`."""
    seen: Mapping[str, Any]
    """What else the model is given of it: its images."""
    layout: TokenLayout | None
    pictures: tuple[str, ...] = ()
    """Thumbnails of its images."""


def _rows(
    lens: TextLens, inputs: Any, n: int | None, attention_mask: Any, images: Any, chat: bool
) -> tuple[list[Row], bool]:
    """Each text by itself, and whether there is only one that came alone."""
    checked("probe", "tokens", n, int | None)
    if n is not None and n < 1:
        raise InterpError(f"tokens={n} leaves nothing to read; ask for at least 1.")
    texts = [inputs] if isinstance(inputs, str) else inputs if isinstance(inputs, (list, tuple)) else []
    if not all(text.strip() for text in texts if isinstance(text, str)):
        raise InterpError("there is no text to read: pass at least one, and none that is empty.")
    if isinstance(inputs, (list, tuple)) and not inputs:
        raise InterpError("there is no text to read: pass at least one, and none that is empty.")
    if images is not None:
        if n is not None or attention_mask is not None:
            raise InterpError("a text with images is read whole; leave tokens and attention_mask out.")
        rows, alone = _with_images(lens, inputs, images, chat)
    elif chat:
        raise InterpError("chat=True is for texts with images; pass chat messages, which need no such word.")
    else:
        plain, alone = lens.rows(inputs, attention_mask, truncate=n)
        rows = [Row(row, {}, None) for row in plain]
    for row in rows:
        lens.check_length(row.tokens.shape[1])
    return rows, alone


def _with_images(lens: TextLens, inputs: Any, images: Any, chat: bool) -> tuple[list[Row], bool]:
    """The same of texts, each with its images."""
    if not takes_interventions(lens):
        raise InterpError("images are read by a Lens; a TransformerBridge is probed on text.")
    alone = isinstance(inputs, str) or _is_conversation(inputs)
    texts = [inputs] if alone else inputs
    if not isinstance(texts, (list, tuple)) or not all(isinstance(t, str) or _is_conversation(t) for t in texts):
        raise InterpError(
            "images go with a text or a list of texts, in which <image> stands for each, or with chat messages."
        )
    rows: list[Row] = []
    for text, held in zip(texts, nested(images, len(texts), alone), strict=True):
        seen: dict[str, Any] = {"images": held}
        read = lens.read_arguments(text, None, seen, AS_THE_TOKENIZER_DOES, chat)
        small = tuple(thumbnail(picture) for picture in held)
        rows.append(Row(read.tokens, seen, layout(lens, read.tokens[0], read.sizes[0]), small))
    return rows, alone


def _is_conversation(given: Any) -> bool:
    return isinstance(given, (list, tuple)) and bool(given) and all(isinstance(one, Mapping) for one in given)


def _special_tokens(lens: TextLens) -> str:
    """JSON list of the ids that the tokenizer adds by default, or "none"."""
    ids = [] if lens.tokenizer is None else ids_of(lens.tokenizer, "", special=True)
    return json.dumps(ids) if ids else "none"


@torch.no_grad()
def _probe_one(
    lens: TextLens, row: Row, wanted: list[Probe], report: Callable[..., None] | None
) -> dict[str, xr.Dataset]:
    tokens = row.tokens
    context = Context(lens, tokens, lens.to_str_tokens(tokens), row.layout)
    with plain_numbers(lens.device):
        folds = {p.name: p.begin(context) for p in wanted}
    hooks = [hook for name, fold in folds.items() for hook in _attach(lens, name, fold)]
    ends = {i: name for i in range(lens.cfg.n_layers) if (name := f"blocks.{i}.hook_resid_post") in lens.hook_dict}
    if report is not None:
        hooks += [(end, _only(partial(report, i + 1))) for i, end in ends.items()]
    with finite(lens, [{"input_ids": tokens, **row.seen} if row.seen else tokens]) as numbers:
        events = {name for name, _ in hooks if name.endswith("hook_event")}
        hooks += [(name, _only(numbers.take_event)) for name in sorted(events)]
        hooks += [(end, _only(numbers.take)) for end in ends.values()]
        began = time.perf_counter()
        # The last position's logits suffice: all of them would be the largest tensor of the pass.
        logits = lens.run_with_hooks(tokens, return_type="logits", fwd_hooks=hooks, **lens.last_logits_only, **row.seen)
        seconds = time.perf_counter() - began
        numbers.take_logits(logits[:, -1])
    with plain_numbers(lens.device):
        results = {name: fold.result() for name, fold in folds.items()}
    ids = tokens[0].cpu().numpy().astype("<i8")  # what was read, whatever the tokenizer: little-endian int64
    facts = {
        "model": lens.cfg.model_name,
        "architecture": lens.cfg.architecture,
        "n_tokens": context.n_tokens,
        "tokens_sha256": hashlib.sha256(ids.tobytes()).hexdigest(),
        "seconds_forward": round(seconds, 3),
        "dtype": lens.cfg.dtype,
        "interventions": json.dumps([edit.settings() for edit in lens.edits_in_force]),
    }
    for name, dataset in results.items():
        dataset.attrs |= facts
        if row.layout is not None and dataset.sizes.get("token") == context.n_tokens:
            placed = dataset.assign_coords(row.layout.coordinates)
            results[name] = placed.assign_attrs(pictures=json.dumps(row.pictures))
    return results


def _attach(lens: TextLens, probe: str, fold: Fold) -> list[tuple[str, Hook]]:
    """A fold's wishes as (hook point name, hook)."""
    hooks, dtype = [], lens.model.dtype
    for name, fn in fold.hooks().items():
        if name in lens.hook_dict:
            hooks.append((name, _only(partial(fn, -1), dtype)))
            continue
        wanted = {i: f"blocks.{i}.{name}" for i in range(lens.cfg.n_layers)}
        built = {i: point for i, point in wanted.items() if point in lens.hook_dict or point in lens.absent}
        missing = [point for point in built.values() if point not in lens.hook_dict]
        if missing or not built:  # blocks that are not built to have it (hybrids) are left out
            raise _no_point(lens, probe, name, None if len(missing) == len(built) else missing[0])
        hooks += [(point, _only(partial(fn, i), dtype)) for i, point in built.items()]
    return hooks


def _no_point(lens: TextLens, probe: str, name: str, first: str | None) -> InterpError:
    """Why a point that a probe needs is nowhere, or is missing for the first time at `first`."""
    reason = lens.absent.get(first or f"blocks.0.{name}", lens.absent.get(name))
    if reason is None:
        known = sorted({point.split(".", 2)[2] if point.startswith("blocks.") else point for point in lens.hook_dict})
        reason = f"the nearest is {difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]!r}"
    if first is None:
        return UnknownNameError(
            f"{lens.cfg.architecture} has no hook point {name!r}, which this probe needs ({probe}): {reason}."
        )
    return InterpError(f"{lens.cfg.architecture} has no {first}, which {probe} needs in every layer: {reason}.")


def _only(look: Callable[[Any], None], dtype: torch.dtype | None = None) -> Hook:
    """A hook that looks and leaves the value alone; under autocast it looks in the dtype of the weights."""

    def hook(value: Any, hook: Any) -> None:
        if not isinstance(value, torch.Tensor):  # an event has one dtype
            look(value)
            return
        if dtype is not None and autocast_dtype(value.device) is not None:
            value = value.to(dtype)
        with plain_numbers(value.device):
            look(value)

    return hook
