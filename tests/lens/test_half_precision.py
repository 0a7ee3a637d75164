"""Half precision: what a Lens says of a model does not depend on the dtype that its weights are kept in."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

import interp
from interp.probes import resolve
from tests.models import ROTARY, shared, tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [name for name in ROTARY if name not in ("gpt_oss", "smollm3")])
def test_the_same_layers_rotate_their_keys(kind: str, dtype: torch.dtype) -> None:
    half = interp.load(copy.deepcopy(shared(kind)).to(dtype))
    assert half.absent == interp.load(shared(kind)).absent


def test_a_sentence_says_how_many_layers_it_is_about() -> None:
    """Where keys are known before rotation in some layers only."""
    ds = interp.probe(interp.load(shared("llama")), tokens(1, 20)[0], "channel_imbalance")["channel_imbalance"]
    (probe,) = resolve("channel_imbalance")
    before = [said for said in probe.findings(ds) if said.startswith("Before the rotary embedding")]
    assert "layers whose keys" not in before[0]
    ds = ds.copy(deep=True)
    for variable in ("energy", "max_over_median"):
        ds[variable].loc[{"tensor": "key_pre_rotary", "layer": [0, 2]}] = np.nan
    (before,) = [said for said in probe.findings(ds) if said.startswith("Before the rotary embedding")]
    assert "in the 1 of 3 layers whose keys are known before it" in before
