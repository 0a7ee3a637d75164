"""A Lens changes nothing: bit-identical logits through the seam, in every phase, on every architecture."""

from __future__ import annotations

import pytest
import torch

import interp
from tests.models import NAMES, ROTARY, shared, tokens

LOOK = [(lambda name: name.endswith("hook_z"), lambda value, hook: None)]  # sends every layer through the seam


def left_padded(ids: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The second row shortened by n tokens on the left."""
    mask = torch.ones_like(ids)
    mask[1, :n] = 0
    return ids.masked_fill(mask == 0, 2), mask


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_without_hooks_and_through_the_seam(name: str) -> None:
    model, ids = shared(name), tokens()
    bare = model(ids).logits
    lens = interp.load(model)
    assert torch.equal(lens(ids), bare)
    assert torch.equal(lens.run_with_hooks(ids, fwd_hooks=LOOK), bare)
    assert torch.equal(model(ids).logits, bare)  # and nothing stays behind


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_left_padding(name: str) -> None:
    model = shared(name)
    ids, mask = left_padded(tokens(), 5)
    lens = interp.load(model)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    bare = model(ids, attention_mask=mask, position_ids=positions).logits
    seen = lens.run_with_hooks(ids, attention_mask=mask, fwd_hooks=LOOK)
    assert torch.equal(seen, bare)
    alone = lens(ids[1:, 5:])
    torch.testing.assert_close(seen[1:, 5:], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_chunks_with_a_cache(name: str) -> None:
    """Prefill in two chunks, then one token: the bare model with its own cache against the seam with ours."""
    import transformers

    model, ids = shared(name), tokens(length=13)
    bare_cache = transformers.DynamicCache(config=model.config)
    lens = interp.load(model)
    past = None
    for part in (ids[:, :7], ids[:, 7:12], ids[:, 12:]):
        bare = model(part, past_key_values=bare_cache, use_cache=True).logits
        with lens.hooks(fwd_hooks=LOOK):
            mine = lens(part, use_cache=True, **({} if past is None else {"past_key_values": past}))
        past = lens.last_cache
        assert torch.equal(mine, bare)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beams", [1, 3])
def test_generate(name: str, beams: int) -> None:
    model = shared(name)
    ids, mask = left_padded(tokens(), 4)
    how = {"attention_mask": mask, "max_new_tokens": 6, "num_beams": beams, "do_sample": False, "eos_token_id": None}
    bare = model.generate(ids, **how)
    lens = interp.load(model)
    assert torch.equal(lens.generate(ids, **how), bare)
    with lens.hooks(fwd_hooks=LOOK):
        assert torch.equal(lens.generate(ids, **how), bare)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_eager_layers_agree(name: str) -> None:
    """Hooking the pattern moves that layer to the open maths: same logits to rounding, and rows that sum as they
    should."""
    model = shared(name)
    ids, mask = left_padded(tokens(), 3)
    lens = interp.load(model)
    plain = lens(ids, attention_mask=mask)
    logits, cache = lens.run_with_cache(ids, attention_mask=mask, names_filter=lambda n: n.endswith("hook_pattern"))
    assert len(cache) == lens.cfg.n_layers
    real = mask.bool()
    torch.testing.assert_close(logits[real], plain[real], rtol=1e-4, atol=1e-4)
    for layer in range(lens.cfg.n_layers):
        rows = cache["pattern", layer].sum(-1).transpose(1, 2)[real]
        if lens.cfg.learned_sinks:
            assert (rows < 1).all()
            assert (rows > 0).all()
        else:
            torch.testing.assert_close(rows, torch.ones_like(rows))


@pytest.mark.parametrize("name", ROTARY)
@torch.no_grad()
def test_keys_before_rotation(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotating back gives what went into the modelling file's rotation."""
    import sys

    model, ids = shared(name), tokens()
    lens = interp.load(model)
    modelling = sys.modules[type(lens.anatomy.blocks[0].attention).__module__]
    rotate, given = modelling.apply_rotary_pos_emb, []

    def recording(q: torch.Tensor, k: torch.Tensor, *args: object, **kwargs: object) -> object:
        given.append(k)
        return rotate(q, k, *args, **kwargs)

    monkeypatch.setattr(modelling, "apply_rotary_pos_emb", recording)
    lens(ids)
    monkeypatch.undo()
    _, cache = lens.run_with_cache(ids, names_filter=lambda n: n.endswith("hook_pre_rot_k"))
    rotated = [i for i, block in enumerate(lens.anatomy.blocks) if not isinstance(block.rotation, str)]
    assert len(given) == len(rotated) == len(cache)
    assert name == "smollm3" or len(rotated) == lens.cfg.n_layers
    for layer, k in zip(rotated, given, strict=True):
        found = cache["pre_rot_k", layer].transpose(1, 2)[..., : k.shape[-1]]
        torch.testing.assert_close(found, k, rtol=1e-4, atol=1e-4)
