"""How far a policy moves outputs and loss, against `lens.score` and against hooks."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from tests.explaining.cases import THINK, Drop, G, S, ask
from tests.models import tokens


@pytest.mark.parametrize("policy", [THINK, Drop(), Drop(stepping=True)])
def test_perturbation_agrees_with_score_and_with_hooks(lens, policy):
    ds = ask(lens, policy, "perturbation")
    prompt, rest = tokens(1, S), tokens(1, G + 1, seed=5)
    np.testing.assert_allclose(ds["nll_full"], lens.score(prompt, rest)[0, 1:], atol=1e-5)
    with lens.apply(policy):
        np.testing.assert_allclose(ds["nll_policy"], lens.score(prompt, rest, chunk=1)[0, 1:], atol=1e-5)
    seen = {"full": [], "policy": []}
    for name in seen:
        with torch.no_grad(), nullcontext() if name == "full" else lens.apply(policy):
            lens(prompt, use_cache=True)
            cache = lens.last_cache
            for token in rest[0, :-1]:
                hook = ("blocks.1.attn.hook_z", lambda z, hook, name=name: seen[name].append(z[0, 0].clone()))
                lens.run_with_hooks(token.view(1, 1), fwd_hooks=[hook], past_key_values=cache, use_cache=True)
    full, other = (torch.stack(seen[name]) for name in ("full", "policy"))
    expected = (full - other).norm(dim=-1) / full.norm(dim=-1)
    np.testing.assert_allclose(ds["head_error"][1].T, expected, rtol=1e-3, atol=1e-5)
    whole = (full - other).flatten(1).norm(dim=-1) / full.flatten(1).norm(dim=-1)
    np.testing.assert_allclose(ds["layer_error"][1], whole, rtol=1e-3, atol=1e-5)
