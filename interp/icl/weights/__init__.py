"""Small trained models that ship with the library, so that a notebook can look inside one at once.

`python -m interp.icl.weights` trains them again and writes the files beside this one: each is the first seed of the
study of its name, by the released code's settings of von Oswald et al. 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from interp.icl.models.attention_regressor import AttentionRegressor

FOLDER = Path(__file__).parent


class Trained(NamedTuple):
    layers: int
    recurrent: bool
    steps: int


MODELS: Mapping[str, Trained] = {"single-layer": Trained(1, False, 2000), "two-layers": Trained(2, True, 4000)}


def pretrained(name: str) -> AttentionRegressor:
    """A trained model of linear attention on ten pairs in ten dimensions, inputs U(-0.5, 0.5), float32.

    `single-layer` has learned one step of gradient descent in 2,000 steps; `two-layers`, one layer applied twice, GD++
    in 4,000. Raises UnknownNameError for another name.

    Examples:
        >>> interp.icl.pretrained("single-layer").cfg.d_in
        10
    """
    from interp.discovery import unknown
    from interp.icl.models.attention_regressor import AttentionRegressor

    if not isinstance(name, str) or name not in MODELS:
        raise unknown("pretrained model", name, MODELS)
    return AttentionRegressor.load(FOLDER / f"{name}.safetensors")


def write(folder: Path = FOLDER) -> None:
    """Train all models from seed 0 and write them to `folder`; two minutes on one core."""
    from functools import partial

    from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig
    from interp.icl.models.training import recipe, train
    from interp.icl.tasks.regression import make_regression

    for name, trained in MODELS.items():
        used = recipe(RegressorConfig(n_layers=trained.layers, recurrent=trained.recurrent))
        model = AttentionRegressor(used.cfg, seed=0)
        draw = partial(make_regression, N=10, d=10, half_width=used.half_width)
        train(model, draw, trained.steps, seed=0, **used.optimiser)
        print(f"wrote {model.save(folder / f'{name}.safetensors')}")
