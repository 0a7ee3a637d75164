"""Registers planted in the tower, and sinks planted on their tokens or elsewhere: what agrees is known."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp.errors import InterpError
from interp.probes.vision_registers import shared, since
from interp.results.many_texts import one
from tests.lens.test_images import seeing
from tests.probes.schema import check_result
from tests.vision_models import NAMES, picture

NAME = "vision_registers"
TEXT = "w1 w2 <image> w3 w4 w5"
CHANNELS = (5, 40)
PROBE = interp.VisionRegisters(tau_rel=0.6)


def grown(rows: Sequence[int], block: int, size: float = 300.0) -> Any:
    """A hook that lets rows of the tower's stream grow, counted over all tiles."""

    def plant(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone(memory_format=torch.contiguous_format)
        value.flatten(0, -2)[list(rows), 3] += size
        return value

    return (f"vision.blocks.{block}.hook_resid_post", plant)


def sinking(places: Sequence[int]) -> Any:
    def plant(value: torch.Tensor, hook: Any) -> torch.Tensor:
        value = value.clone()
        value[:, list(places), CHANNELS[0]] += 400.0
        value[:, list(places), CHANNELS[1]] -= 240.0
        return value

    return ("blocks.0.hook_resid_post", plant)


def measured(kind: str, hooks: Sequence[Any] = (), probe: interp.VisionRegisters = PROBE, **how: Any) -> xr.Dataset:
    lens = seeing(kind)
    with lens.hooks(fwd_hooks=list(hooks)):
        return interp.probe(lens, TEXT, probe, **{"images": picture(), **how})[NAME]


@pytest.mark.parametrize("kind", NAMES)
def test_rows_go_into_the_tokens_that_they_change(kind: str) -> None:
    """Against the other way round: a row is changed, and the tokens that the language model reads are looked at."""
    lens, result = seeing(kind), measured(kind)
    token = result.patch_token.values
    assert set(token[token >= 0]) == set(np.flatnonzero(result.modality.values == "image"))

    def read(hooks: Sequence[Any] = ()) -> torch.Tensor:
        kept: list[torch.Tensor] = []
        keep = ("blocks.0.hook_resid_pre", lambda value, hook: kept.append(value[0].clone()))
        with torch.no_grad():
            lens.run_with_hooks(TEXT, images=picture(), fwd_hooks=[*hooks, keep])
        return kept[0]

    quiet, last = read(), result.attrs["read_layer"]
    for patch in range(0, len(token), max(1, len(token) // 7)):
        moved = (read([grown([int(result.patch_row[patch])], last, 5.0)]) - quiet).abs().amax(-1)
        assert moved.argmax() == token[patch] if token[patch] >= 0 else moved.max() == 0


@pytest.mark.parametrize(
    ("kind", "left_out", "rows"),
    [("llava", 1, 16), ("llava_next", 5, 80), ("internvl", 5, 80), ("gemma4", 40, 240), ("qwen2_5_vl", 0, 24)],
)
def test_class_tokens_and_padding_are_no_patches(kind: str, left_out: int, rows: int) -> None:
    result = measured(kind)
    assert (result.attrs["rows_left_out"], result.sizes["patch"]) == (left_out, rows)
    assert ("class token" in result.attrs["left_out"]) == bool(left_out)


@pytest.mark.parametrize("kind", ["llava_next", "idefics3", "qwen2_5_vl"])
def test_planted_registers_are_found_with_the_layer_of_their_emergence(kind: str, tmp_path: Path) -> None:
    bare = measured(kind)
    patches = [4, 9]
    rows = bare.patch_row.values[patches].tolist()
    result = measured(kind, [grown(rows, 0)])
    check_result(result, tmp_path)
    for layer in result.tower_layer.values:
        assert np.flatnonzero(result.is_register.values[layer]).tolist() == patches
        assert result.registers.values[layer] == 2
        assert result.register_share.values[layer] == pytest.approx(2 / result.sizes["patch"])
    assert set(result.emerged.values[patches]) == {0}
    assert (np.delete(result.emerged.values, patches) == -1).all()
    assert any("since layer 0" in said for said in PROBE.findings(result))
    later = measured(kind, [grown(rows, 1)])
    if later.attrs["read_layer"] == 1:
        assert set(later.emerged.values[patches]) == {1}


def test_norms_are_those_of_the_stream() -> None:
    lens, result = seeing("llava"), measured("llava")
    with torch.no_grad():
        _, cached = lens.run_with_cache(TEXT, images=picture(), names_filter=lambda n: n.startswith("vision.blocks"))
    for layer in (0, 1):
        norms = cached[f"vision.blocks.{layer}.hook_resid_post"][0, 1:].norm(dim=-1).numpy()
        np.testing.assert_allclose(result.patch_norm.values[layer], norms, rtol=1e-5)
        assert result.norm_limit.values[layer] == pytest.approx(norms.mean() + 3 * norms.std(), rel=1e-5)
    middle = float(np.median(result.patch_norm.values))
    by_hand = measured("llava", probe=interp.VisionRegisters(threshold=middle))
    np.testing.assert_array_equal(by_hand.is_register.values, by_hand.patch_norm.values > middle)


@pytest.mark.parametrize("kind", ["llava_next", "idefics3"])
def test_sinks_on_the_same_tokens_agree_and_on_others_do_not(kind: str) -> None:
    bare = measured(kind)
    token = bare.patch_token.values
    patches = np.flatnonzero(token >= 0)[[3, 20]]
    planted = [grown(bare.patch_row.values[patches].tolist(), 0)]
    own = sorted(set(token[patches]))
    agreed = measured(kind, [*planted, sinking(own)])
    assert np.flatnonzero(agreed.is_v_sink.values).tolist() == own
    for layer in (1, 2):
        at = agreed.isel(layer=layer)
        assert (float(at.precision), float(at.recall), float(at.jaccard)) == (1, 1, 1)
        n = int((agreed.modality == "image").sum())
        assert float(at.chance_precision) == pytest.approx(2 / n)
        assert float(at.overlap_p) == pytest.approx(2 / comb(n, 2), rel=1e-4)
    images = np.flatnonzero(agreed.modality.values == "image")
    apart = measured(kind, [*planted, sinking([t for t in images if t not in own][:2])])
    assert apart.overlap.values[1:].tolist() == [0, 0]
    assert not any("than chance" in said for said in PROBE.findings(apart)), "no overlap of two by two is no news"
    if kind == "llava_next":
        assert any("more often than chance in layers 1-2" in said for said in PROBE.findings(agreed))


def test_chance_is_what_random_sets_share() -> None:
    rng, v = np.random.default_rng(0), np.arange(20) < 6
    drawn = [shared(v, rng.permutation(np.arange(20) < 5)) for _ in range(4000)]
    for name in ("precision", "recall", "jaccard"):
        assert np.mean([one[name] for one in drawn]) == pytest.approx(drawn[0][f"chance_{name}"], abs=0.01)
    assert np.mean([one["overlap_p"] < 0.05 for one in drawn]) < 0.05
    assert np.isnan(shared(v, np.zeros(20, bool))["precision"])


def test_emergence_begins_where_a_patch_stays_high() -> None:
    high = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [1, 1, 0, 1], [0, 0, 1, 0]], bool)
    assert since(high, [0, 1, 2, 3], 2).tolist() == [2, 1, -1, 0]
    assert since(high, [0, 1, 2, 3], 3).tolist() == [-1, -1, 3, -1]


def test_where_rows_cannot_be_told_apart_the_agreement_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from interp.runs import probing

    def mixed(*args: Any) -> Any:
        laid = real(*args)
        return replace(laid, patches=replace(laid.patches, apart=False))

    real = probing.layout
    monkeypatch.setattr(probing, "layout", mixed)
    result = measured("llava", [grown([3], 0)])
    assert "several tokens" in result.attrs["agreement"]
    assert result.registers.values[0] == 1
    assert np.isnan(result.precision.values).all()
    assert any("Nothing is said" in said for said in PROBE.findings(result))


def test_several_images_and_texts() -> None:
    lens = seeing("qwen2_5_vl")
    texts = ["w1 <image> w2 <image> w3", "<image> w9 w8"]
    images = [[picture(0), picture(1, 60, 100)], [picture(1, 60, 100)]]
    both = interp.probe(lens, texts, PROBE, images=images)[NAME]
    alone = interp.probe(lens, texts[1], PROBE, images=images[1])[NAME]
    np.testing.assert_allclose(one(both, 1).patch_norm.values, alone.patch_norm.values, rtol=1e-4)
    first = one(both, 0)
    assert first.attrs["agreement"] == "measured"
    assert set(first.patch_token.values) == set(np.flatnonzero(first.modality.values == "image"))


def test_what_it_says_of_few_patches_and_bad_settings() -> None:
    few = measured("llava", probe=interp.VisionRegisters(sigmas=4.0))
    assert interp.VisionRegisters(sigmas=4.0).findings(few)[0].startswith("Of 16 patches none can lie 4 standard")
    none = interp.VisionRegisters(threshold=1e6)
    said = none.findings(measured("llava", probe=none))
    assert said == ["No layer of the tower has high-norm patches (norm above 1e+06)."]
    for setting in ({"sigmas": 0.0}, {"threshold": -1.0}, {"tau_rel": 2.0}):
        with pytest.raises(InterpError, match=r"should be|above 0"):
            interp.VisionRegisters(**setting)
    with pytest.raises(InterpError, match="reads texts with images"):
        interp.probe(seeing("llava"), "w1 w2", NAME)


def test_a_tower_that_merges_patches_is_refused() -> None:
    from interp.lens.image_layout import TokenLayout
    from interp.probes import Context

    laid = TokenLayout(np.array(["image"]), np.zeros(1, int), np.zeros(1, int), np.array([""]), np.zeros((1, 4)))
    fold = PROBE.begin(Context(seeing("llava"), torch.zeros(1, 1, dtype=torch.long), ["x"], laid))
    hooks = fold.hooks()
    for layer, patches in ((0, 16), (1, 4)):
        hooks[f"vision.blocks.{layer}.hook_resid_post"](-1, torch.ones(1, patches, 32))
    with pytest.raises(InterpError, match="merges patches on its way"):
        fold.result()
