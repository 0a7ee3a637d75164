"""One model type measured.

Every check writes one cell: `ok`, `ok 3e-07` (how far off), `WRONG 0.2` (farther than allowed), `refused: why`,
`idle: why` (a policy that did nothing), `crashed: what`, `unknown: why` (nothing to compare with).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import interp
from benchmarks.coverage.build import build
from benchmarks.coverage.checks import CLOSE, Checks, Idle, Unknown, said
from benchmarks.coverage.reference import Bare
from interp.errors import InterpError

Tell = Callable[[str, str], None]


@torch.no_grad()
def measure(family: str, kind: str, tell: Tell) -> None:
    """Tell what is found of one type, as soon as it is: a name and a cell."""
    tell("built", "no answer")
    try:
        model = build(family, kind)
    except Exception as error:
        tell("built", f"failed: {said(error)}")
        return
    tell("built", "ok")
    tell("architecture", type(model).__name__)
    try:
        bare = Bare(model)
        tell("runs", "ok" if bool(torch.isfinite(bare.logits).all()) else "failed: its logits are not finite")
    except Exception as error:  # a Lens has to say so, too
        tell("runs", f"failed: {said(error)}")
        bare = None
    lens = _loaded(model, bare, tell)
    if lens is None or bare is None:
        return
    tell("layers", str(lens.cfg.n_layers))
    tell("attention_layers", str(len(lens.cfg.attention_layers)))
    tell("absent", "; ".join(f"{name.split('.')[-1]}: {why}" for name, why in _absent(lens).items()))
    checks = Checks(lens, bare)
    for name, check in checks.listed().items():
        tell(name, "no answer")
        tell(name, outcome(check))
    tell("done", "ok")


def _loaded(model: Any, bare: Bare | None, tell: Tell) -> interp.Lens | None:
    """A Lens of the model or, where it asks for that, of the model run eagerly, which is the bare one from then on."""
    try:
        lens = interp.load(model)
    except InterpError as error:
        if bare is None or "attn_implementation='eager'" not in str(error):
            tell("loads", f"refused: {said(error)}")
            return None
        bare.model = bare.eager
        bare.logits = bare.run(bare.model)
        tell("needs_eager", "yes")
        return _loaded(bare.eager, None, tell)
    except Exception as error:
        tell("loads", f"crashed: {_told(error)}")
        return None
    tell("loads", "ok")
    return lens


def _absent(lens: interp.Lens) -> dict[str, str]:
    """Points that could not be found, once for each reason; not those that the construction does not have."""
    points = {name: why for name, why in lens.absent.items() if not name.endswith(("hook_pre_rot_k", "resid_mid"))}
    first = {f"{name.rpartition('.')[2]} {why}": name for name, why in reversed(points.items())}
    return {name: points[name] for name in first.values()}


def outcome(check: Callable[[], Any]) -> str:
    """The cell of one check."""
    try:
        off = float(check())
    except Unknown as error:
        return f"unknown: {said(error)}"
    except Idle as error:
        return f"idle: {said(error)}"
    except InterpError as error:
        return f"refused: {said(error)}"
    except Exception as error:
        return f"crashed: {_told(error)}"
    if not off <= CLOSE:
        return f"WRONG {off:.2g}"
    return "ok" if off == 0 else f"ok {off:.1g}"


def _told(error: BaseException) -> str:
    """An error that is nobody's sentence, with the last line of ours that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    at = next((f for f in reversed(frames) if "/interp/" in f.filename), frames[-1])
    return f"{said(error)} @ {'/'.join(Path(at.filename).parts[-2:])}:{at.lineno}"
