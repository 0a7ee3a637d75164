"""`interp.probe`: all requested probes in one forward pass for each text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from interp.errors import InterpError, UnknownNameError
from interp.probes import Context, Fold, Probe, resolve

if TYPE_CHECKING:
    import xarray as xr

Progress = Callable[[int, int], None]
"""Called as `progress(layers done, layers in all)` while a model reads."""


def probe(
    lens: Any,
    inputs: str | torch.Tensor | Sequence[str],
    probes: Iterable[str | Probe] | str | Probe | None = None,
    *,
    tokens: int | None = None,
    progress: Progress | None = None,
) -> dict[str, xr.Dataset]:
    """Run probes on a model reading text; returns their results by name.

    Args:
        lens: from `interp.load`.
        inputs: a text, a list of texts, or tokens `[pos]` or `[batch, pos]` (each row is one text). Each text is read
        by
            itself, so that no padding enters a measurement; of several, results have a `text` dimension and, for what
            does not depend on positions, `<variable>_mean` with bootstrap limits `<variable>_low` and
            `<variable>_high`.
        probes: names, or probe objects with their parameters; None runs all.
        tokens: read only the first so many tokens of each text.
        progress: see `Progress`.

    Memory does not grow with depth times positions squared: each probe keeps a few numbers of each layer.
    """
    wanted = resolve(probes)
    rows = _rows(lens, inputs, tokens)
    total, done = lens.cfg.n_layers * len(rows), 0
    results: list[dict[str, xr.Dataset]] = []
    for row in rows:
        report = None if progress is None else partial(_report, progress, done, total)
        results.append(_probe_one(lens, row, wanted, report))
        done += lens.cfg.n_layers
    if not _several(inputs):
        return results[0]
    from interp.several import gather

    return {p.name: gather([r[p.name] for r in results]) for p in wanted}


def _report(progress: Progress, before: int, total: int, layer: int, _: Any = None) -> None:
    progress(before + layer, total)


def _several(inputs: Any) -> bool:
    return not isinstance(inputs, str) and not (isinstance(inputs, torch.Tensor) and inputs.ndim == 1)


def _rows(lens: Any, inputs: Any, n: int | None) -> list[torch.Tensor]:
    """One row of tokens `[1, pos]` for each text."""
    if n is not None and n < 1:
        raise InterpError(f"tokens={n} leaves nothing to read; ask for at least 1.")
    if isinstance(inputs, torch.Tensor):
        rows = list(lens.tokens_and_mask(inputs)[0][:, :n].split(1))
    else:
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        if not texts or not all(text.strip() for text in texts):
            raise InterpError("there is no text to read: pass at least one, and none that is empty.")
        rows = [lens.to_tokens(text, truncate=n) for text in texts]
    for row in rows:
        lens.check_length(row.shape[1])
    return rows


@torch.no_grad()
def _probe_one(lens: Any, tokens: torch.Tensor, wanted: list[Probe], report: Callable[..., None] | None) -> dict:
    context = Context(lens, tokens, lens.to_str_tokens(tokens))
    folds = {p.name: p.begin(context) for p in wanted}
    hooks = [hook for fold in folds.values() for hook in _attach(lens, fold)]
    if report is not None:
        last = lens.cfg.n_layers - 1
        hooks += [(f"blocks.{i}.hook_resid_post", _only(partial(report, i + 1))) for i in range(last + 1)]
    began = time.perf_counter()
    # The last position's logits suffice: all of them would be the largest tensor of the pass.
    lens.run_with_hooks(tokens, return_type=None, fwd_hooks=hooks, **lens.last_logits_only)
    seconds = time.perf_counter() - began
    results = {name: fold.result() for name, fold in folds.items()}
    for dataset in results.values():
        dataset.attrs |= {
            "model": lens.cfg.model_name,
            "architecture": lens.cfg.architecture,
            "n_tokens": context.n_tokens,
        }
        dataset.attrs |= {"seconds_forward": round(seconds, 3), "dtype": lens.cfg.dtype}
    return results


def _attach(lens: Any, fold: Fold) -> list[tuple[str, Callable]]:
    """A fold's wishes as (hook point name, hook)."""
    hooks = []
    for name, fn in fold.hooks().items():
        if name in lens.hook_dict:
            hooks.append((name, _only(partial(fn, -1))))
            continue
        layers = [i for i in range(lens.cfg.n_layers) if f"blocks.{i}.{name}" in lens.hook_dict]
        if not layers:
            raise UnknownNameError(f"{lens.cfg.architecture} has no hook point {name!r}, which this probe needs.")
        hooks += [(f"blocks.{i}.{name}", _only(partial(fn, i))) for i in layers]
    return hooks


def _only(look: Callable[[Any], None]) -> Callable:
    """A hook that looks and leaves the value alone."""

    def hook(value: Any, hook: Any) -> None:
        look(value)

    return hook
