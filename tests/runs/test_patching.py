"""Activation patching against hooks of our own on the bare transformers model, and its exact limits: all, nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import interp
from interp.runs.patching import logit_difference
from tests.models import NAMES, shared, tiny, tokens
from tests.probes.schema import check_result

Tensor = torch.Tensor
CLEAN, CORRUPTED = tokens(1, 9, seed=1), tokens(1, 9, seed=2)
METRIC = logit_difference(5, 6)
EAGER = ("attn.hook_attn_scores", "attn.hook_pattern")


def by_hand(logits: Tensor) -> float:
    return float(logits[0, -1, 5] - logits[0, -1, 6])


@torch.no_grad()
def swapped(module: torch.nn.Module, model: Any, place: Any, of_input: bool = False) -> float:
    """The metric of the corrupted run of a bare model with entries `place` of a module's output (or input) from the
    clean run."""
    held: list[Tensor] = []
    first = lambda out: out[0] if isinstance(out, tuple) else out  # noqa: E731

    def look(m: Any, given: Any, out: Any) -> None:
        held.append(given[0].clone() if of_input else first(out).clone())

    def put(value: Tensor) -> Tensor:
        value = value.clone()
        value[place] = held[0][place]
        return value

    handle = module.register_forward_hook(look)
    model(CLEAN)
    handle.remove()
    if of_input:
        handle = module.register_forward_pre_hook(lambda m, given: (put(given[0]), *given[1:]))
    else:
        handle = module.register_forward_hook(
            lambda m, given, out: (put(out[0]), *out[1:]) if isinstance(out, tuple) else put(out)
        )
    patched = by_hand(model(CORRUPTED).logits)
    handle.remove()
    return patched


@torch.no_grad()
def unpatched(model: Any) -> tuple[float, float]:
    return by_hand(model(CLEAN).logits), by_hand(model(CORRUPTED).logits)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_each_position_of_the_residual_stream(name: str) -> None:
    lens = interp.load(shared(name))
    blocks = lens.model.transformer.h if name == "gpt2" else lens.model.model.layers
    result = interp.patch(lens, CLEAN, CORRUPTED, "hook_resid_post", METRIC, by="position")
    assert result["metric"].dims == ("layer", "position")
    expected = np.array([[swapped(block, lens.model, (0, p)) for p in range(9)] for block in blocks])
    np.testing.assert_allclose(result["metric"].values, expected, rtol=1e-5, atol=1e-5)
    clean, corrupted = unpatched(lens.model)
    assert result.attrs["clean_metric"] == pytest.approx(clean, abs=1e-5)
    assert result.attrs["corrupted_metric"] == pytest.approx(corrupted, abs=1e-5)
    np.testing.assert_allclose(
        result["recovered"].values, (expected - corrupted) / (clean - corrupted), rtol=1e-4, atol=1e-4
    )
    assert np.ptp(expected) > 0.1  # the patches differ, so agreement means something


def test_each_head_at_chosen_positions() -> None:
    lens = interp.load(shared("llama"))
    result = interp.patch(lens, CLEAN, CORRUPTED, "attn.hook_z", METRIC, by="head", heads=[1, -1], positions=[-1, 3])
    width = lens.cfg.d_head
    expected = [
        [
            swapped(
                block.self_attn.o_proj,
                lens.model,
                (0, torch.tensor([3, 8])[:, None], torch.arange(head * width, (head + 1) * width)),
                of_input=True,
            )
            for head in (1, 7)
        ]
        for block in lens.model.model.layers
    ]
    np.testing.assert_allclose(result["metric"].values, expected, rtol=1e-5, atol=1e-5)
    assert result["head"].values.tolist() == [1, 7]
    assert result.attrs["positions"] == "[8, 3]"
    assert result["point"].values.tolist() == [f"blocks.{layer}.attn.hook_z" for layer in range(3)]


def test_values_are_patched_by_key_value_head() -> None:
    lens = interp.load(shared("llama"))
    result = interp.patch(lens, CLEAN, CORRUPTED, ["blocks.1.attn.hook_v"], METRIC, by="head")
    assert result["metric"].dims == ("layer", "kv_head")
    project = lens.model.model.layers[1].self_attn.v_proj
    expected = [[swapped(project, lens.model, (0, slice(None), slice(8 * h, 8 * h + 8))) for h in range(2)]]
    np.testing.assert_allclose(result["metric"].values, expected, rtol=1e-5, atol=1e-5)
    assert result["layer"].values.tolist() == [1]


def test_patterns_are_patched_by_query_position() -> None:
    """Hooks of our own on the same point: rows of one head's pattern."""
    lens = interp.load(shared("llama"))
    name = "blocks.1.attn.hook_pattern"
    result = interp.patch(lens, CLEAN, CORRUPTED, name, METRIC, by="position", heads=[2])
    with torch.no_grad():
        _, held = lens.run_with_cache(CLEAN, names_filter=name)

        def row(p: int) -> float:
            def put(value: Tensor, hook: Any) -> Tensor:
                value = value.clone()
                value[:, 2, p] = held[name][:, 2, p]
                return value

            return by_hand(lens.run_with_hooks(CORRUPTED, fwd_hooks=[(name, put)]))

        expected = [[row(p) for p in range(9)]]
    np.testing.assert_array_equal(result["metric"].values, expected)


def all_points(lens: Any) -> list[str]:
    return [name for name in lens.hook_dict if lens.point_table[name].mode == "edit"]


@pytest.mark.parametrize("name", NAMES)
def test_everything_recovers_the_clean_run_exactly_and_nothing_the_corrupted_one(name: str) -> None:
    lens = interp.load(shared(name))
    everything = interp.patch(lens, CLEAN, CORRUPTED, all_points(lens), METRIC, together=True)
    assert everything.sizes == {"point": 1}
    assert float(everything["metric"][0]) == everything.attrs["clean_metric"]
    assert float(everything["recovered"][0]) == 1
    nothing = interp.patch(lens, CLEAN, CORRUPTED, all_points(lens), METRIC, positions=[])
    assert nothing.sizes == {"point": len(all_points(lens))}
    assert (nothing["metric"] == nothing.attrs["corrupted_metric"]).all()
    assert (nothing["recovered"] == 0).all()


def test_the_embedding_decides_everything_and_a_common_beginning_nothing() -> None:
    lens = interp.load(shared("llama"))
    whole = interp.patch(lens, CLEAN, CORRUPTED, "hook_embed", METRIC)
    assert whole["recovered"].values.tolist() == [1]
    other = CORRUPTED.clone()
    other[:, :4] = CLEAN[:, :4]
    points = ["hook_embed", "attn.hook_rot_k", "attn.hook_pattern", "hook_mlp_out"]
    result = interp.patch(lens, CLEAN, other, points, METRIC, by="position")
    assert (result["recovered"].sel(position=slice(0, 3)) == 0).all()
    assert (np.abs(result["recovered"].sel(position=8)) > 0).any()


def test_points_one_by_one_several_and_by_a_filter() -> None:
    lens = interp.load(shared("llama"))
    mixed = interp.patch(lens, CLEAN, CORRUPTED, ["hook_resid_mid", "ln_final.hook_normalized"], METRIC)
    names = [*(f"blocks.{i}.hook_resid_mid" for i in range(3)), "ln_final.hook_normalized"]
    assert mixed["point"].values.tolist() == names
    assert mixed["metric"].dims == ("point",)
    assert float(mixed["recovered"][-1]) == 1
    chosen = interp.patch(lens, CLEAN, CORRUPTED, lambda n: n.startswith("blocks.2.attn"), METRIC)
    assert set(chosen["point"].values.tolist()) == {n for n in all_points(lens) if n.startswith("blocks.2.attn")}
    twice = interp.patch(lens, CLEAN, CORRUPTED, ["hook_resid_mid", "blocks.1.hook_resid_mid"], METRIC)
    assert twice["layer"].values.tolist() == [0, 1, 2]


def test_a_batch_is_measured_as_a_whole() -> None:
    lens = interp.load(shared("llama"))
    clean, corrupted = tokens(2, 9, seed=1), tokens(2, 9, seed=2)
    metric = logit_difference([5, 7], [6, 8])
    both = interp.patch(lens, clean, corrupted, "hook_resid_pre", metric, positions=[8])
    alone = [logit_difference(5, 6), logit_difference(7, 8)]
    rows = [
        interp.patch(lens, clean[i], corrupted[i], "hook_resid_pre", alone[i], positions=[8])["metric"]
        for i in range(2)
    ]
    np.testing.assert_allclose(both["metric"], (rows[0] + rows[1]) / 2, rtol=1e-5, atol=1e-5)


def test_the_result_describes_itself(tmp_path: Path) -> None:
    from tests.models import tokenizer

    lens = interp.load(shared("llama"), tokenizer())
    done: list[tuple[int, int]] = []
    result = interp.patch(
        lens, "w5 w6 w7", "w5 w8 w7", "attn.hook_z", METRIC, by="position", progress=lambda *at: done.append(at)
    )
    check_result(result, tmp_path)
    assert result["clean_token"].values.tolist() == ["<bos>", "w5", "w6", "w7"]
    assert result["corrupted_token"].values.tolist() == ["<bos>", "w5", "w8", "w7"]
    assert {"torch", "transformers", "platform", "time"} <= result.attrs.keys()
    assert result.attrs["metric"] == "logit_difference(answer=5, wrong=6, position=-1)"
    assert result.attrs["n_tokens"] == 4
    assert result.attrs["clean_tokens_sha256"] != result.attrs["corrupted_tokens_sha256"]
    assert done == [(i, 12) for i in range(1, 13)]


@pytest.mark.parametrize(
    "value", [3, 3.0, np.float32(3), np.array([3.0]), torch.tensor(3), torch.tensor([[3.0]])], ids=repr
)
def test_a_metric_may_return_any_single_number(value: Any) -> None:
    lens = interp.load(shared("llama"))
    seen: list[int] = []

    def metric(logits: Tensor) -> Any:
        seen.append(1)
        return value if len(seen) == 1 else 0.0

    result = interp.patch(lens, CLEAN, CORRUPTED, "hook_embed", metric)
    assert result.attrs["clean_metric"] == 3
    assert float(result["recovered"][0]) == 0


MISTAKES = {
    "different lengths": ({"corrupted": tokens(1, 8)}, "9 tokens and the corrupted one 8"),
    "different batches": ({"corrupted": tokens(2, 9)}, "in 2 sequences"),
    "unknown point": ({"where": "blocks.0.attn.hook_zz"}, "did you mean 'blocks.0.attn.hook_z'"),
    "unknown point of every layer": ({"where": "attn.hook_patern"}, "did you mean 'attn.hook_pattern'"),
    "one unknown of several": ({"where": ["attn.hook_z", "hook_resid_prae"]}, "did you mean 'hook_resid_pre'"),
    "observable": ({"where": "blocks.1.attn.hook_lse"}, "hook_lse is computed for looking only"),
    "read only": ({"where": "attn.hook_cached_k"}, "hook_cached_k is read-only"),
    "no point": ({"where": []}, "selects no hook point"),
    "filter of observables": ({"where": lambda n: n.endswith("lse")}, "selects no hook point"),
    "filter of nothing": ({"where": lambda n: False}, "the filter matches none"),
    "no heads there": ({"where": "hook_resid_pre", "by": "head"}, "has no heads"),
    "heads chosen where none are": ({"where": "hook_resid_pre", "heads": [0]}, "has no heads"),
    "two kinds of head": ({"where": ["attn.hook_z", "attn.hook_v"], "by": "head"}, "patch one kind"),
    "head out of range": ({"where": "attn.hook_v", "heads": [2]}, "there is no head 2; there are 2"),
    "position out of range": ({"positions": [9]}, "there is no position 9; there are 9"),
    "no position": ({"by": "position", "positions": []}, "no position is left"),
    "unknown axis": ({"by": "layer"}, "by is 'head', 'position' or None"),
    "metric of a vector": ({"metric": lambda logits: logits[0, -1]}, "one number, found shape (128,)"),
    "metric of a list": ({"metric": lambda logits: [1.0]}, "one number, found list"),
    "metric of nothing": ({"metric": lambda logits: None}, "one number, found NoneType"),
    "complex metric": ({"metric": lambda logits: torch.tensor(1j)}, "one number, found complex"),
    "metric that is none": ({"metric": 3}, "metric is a function of logits"),
    "not a number": ({"metric": lambda logits: float("nan")}, "should be finite"),
    "constant metric": ({"metric": lambda logits: 2.0}, "is 2 for both prompts"),
    "answer outside": ({"metric": logit_difference(128, 1)}, "outside the vocabulary of 128"),
    "answers for other batches": ({"metric": logit_difference([1, 2], 3)}, "one for each of 1 texts"),
    "metric's position": ({"metric": logit_difference(1, 2, position=9)}, "no position 9 among 9"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_clear_error_and_leaves_no_hook(case: str) -> None:
    change, says = MISTAKES[case]
    lens = interp.load(shared("llama"))
    asked = {"clean": CLEAN, "corrupted": CORRUPTED, "where": "hook_resid_pre", "metric": METRIC} | change
    with pytest.raises(interp.InterpError) as caught:
        interp.patch(lens, **asked)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not any(point._forward_hooks for point in lens.hook_dict.values())


def test_a_point_that_an_architecture_lacks_is_refused_with_the_reason() -> None:
    lens = interp.load(shared("gpt_neox"))
    for where in ("hook_resid_mid", "blocks.1.hook_resid_mid"):
        with pytest.raises(interp.UnknownNameError, match="parallel block"):
            interp.patch(lens, CLEAN, CORRUPTED, where, METRIC)


@pytest.mark.parametrize("where", ["hook_resid_post", "attn.hook_z", "attn.hook_pattern"])
def test_a_bridge_agrees(where: str) -> None:
    from tests.seam.test_bridge import bridged

    lens, bridge = interp.load(shared("llama")), interp.load(bridged("llama"))
    ours, theirs = (interp.patch(each, CLEAN, CORRUPTED, where, METRIC, positions=[4, 8]) for each in (lens, bridge))
    np.testing.assert_allclose(ours["metric"], theirs["metric"], rtol=1e-5, atol=1e-5)


def test_texts_that_pad_differently_are_refused() -> None:
    from tests.models import tokenizer

    lens = interp.load(shared("llama"), tokenizer())
    with pytest.raises(interp.InterpError, match="each pair must be equal"):
        interp.patch(lens, ["w5 w6", "w5 w6 w7"], ["w5 w6 w7", "w5 w6"], "hook_resid_pre", METRIC)


def test_not_inside_apply() -> None:
    lens = interp.load(shared("llama"))
    with (
        pytest.warns(UserWarning, match="nothing was changed"),
        lens.apply(interp.ThinK()),
        pytest.raises(interp.InterpError, match=r"leave the block of lens\.apply"),
    ):
        interp.patch(lens, CLEAN, CORRUPTED, "hook_resid_pre", METRIC)


def test_the_model_is_left_as_it_was() -> None:
    lens = interp.load(tiny("llama"))
    with torch.no_grad():
        before = lens.model(CLEAN).logits
    first = interp.patch(lens, CLEAN, CORRUPTED, "attn.hook_attn_scores", METRIC, by="head")
    second = interp.patch(lens, CLEAN, CORRUPTED, "attn.hook_attn_scores", METRIC, by="head")
    np.testing.assert_array_equal(first["metric"].values, second["metric"].values)
    with torch.no_grad():
        assert torch.equal(lens.model(CLEAN).logits, before)
