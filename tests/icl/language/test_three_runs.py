"""Three runs against an independent computation, and the controls that no similarity comes without."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from interp import Lens
from interp.errors import InterpError
from interp.icl.language.changes import fine_tuned_change, in_context_change
from interp.icl.language.comparison import BY_LAYER, MEASURES, SIMILARITIES
from interp.icl.language.controls import CONDITIONS, CONTROLS, gaussian, untrained
from interp.icl.language.fine_tuning import fine_tuned
from interp.icl.language.order_of_runs import order_sensitivity_of_runs
from interp.icl.language.readings import demo_tokens, read
from interp.icl.language.similarity import simaou
from interp.icl.language.three_runs import three_runs
from tests.icl.language.test_readings import UNEVEN
from tests.models import tiny, tokenizer

WRONG = replace(UNEVEN, name="wrong", template="w6 {text} w7 w8", labels=("w110", "w111"))
SIZES = {"demos": 4, "queries": 6, "held_out": 4, "seed": 5, "wrong_task": WRONG}
LR = {"sgd": 0.05, "layer_causal": 0.02}


@cache
def lens(name: str = "llama") -> Lens:
    return Lens(tiny(name), tokenizer(), name)


@cache
def result(name: str = "llama"):
    return three_runs(lens(name), UNEVEN, learning_rates=LR, **SIZES)


def test_every_similarity_comes_with_all_controls():
    ds = result()
    assert tuple(ds["condition"].values) == ("demos", "untrained", "gaussian", "wrong_task", "shuffled_labels")
    assert tuple(ds["recipe"].values) == ("sgd", "layer_causal")
    for name in MEASURES:
        assert ds[name].dims == ("recipe", "condition"), name
        assert ds[f"{name}_se"].dims == ("recipe", "condition")
        assert ds[name].attrs["units"] == "1"
    for name in BY_LAYER:
        assert set(ds[f"{name}_by_layer"].dims) == {"recipe", "condition", "layer"}
    defined = [name for name in SIMILARITIES if name != "rec2ftp"]
    assert not any(bool(ds[name].isnull().any()) for name in defined)


def attention_outputs(model, rows: list[list[int]]) -> torch.Tensor:
    """`[query, layer, d_model]` of what attention returns at the last token of each row."""
    found = []
    for row in rows:
        seen: list[torch.Tensor] = []

        def keep(module, args, out, seen=seen):
            seen.append(out[0][0, -1])

        hooks = [block.self_attn.register_forward_hook(keep) for block in model.model.layers]
        with torch.no_grad():
            model(torch.tensor([row]))
        for hook in hooks:
            hook.remove()
        found.append(torch.stack(seen))
    return torch.nn.functional.normalize(torch.stack(found), dim=-1)


def test_simaou_is_that_of_an_independent_fine_tuning():
    prompts = UNEVEN.draw(tokenizer(), 4, 6, 4, seed=5)
    model = copy.deepcopy(lens().model)
    bare_rows = [[*prompts.start, *query.prompt] for query in prompts.queries]
    zsl = attention_outputs(model, bare_rows)
    icl = attention_outputs(model, [[*demo_tokens(prompts).tokens, *query.prompt] for query in prompts.queries])
    trained = [p for n, p in model.named_parameters() if "k_proj" in n or "v_proj" in n]
    optimiser = torch.optim.SGD(trained, lr=LR["sgd"])
    for demo in prompts.demos:
        optimiser.zero_grad()
        logits = model(torch.tensor([[*prompts.start, *demo.prompt]])).logits[0, -1]
        (-logits.log_softmax(-1)[demo.label]).backward()
        optimiser.step()
    ft = attention_outputs(model, bare_rows)
    cosines = torch.nn.functional.cosine_similarity(icl - zsl, ft - zsl, dim=-1)
    found = result().sel(recipe="sgd", condition="demos")
    assert float(found["simaou"]) == pytest.approx(float(cosines.mean()), abs=1e-4)
    np.testing.assert_allclose(found["simaou_by_layer"], cosines.mean(0).numpy(), atol=2e-4)
    error = cosines.mean(1).std() / 6**0.5
    assert float(found["simaou_se"]) == pytest.approx(float(error), abs=1e-4)


def test_controls_are_fine_tuned_on_what_they_say_and_held_against_the_right_prompt():
    right = UNEVEN.draw(tokenizer(), 4, 6, 4, seed=5)
    zsl, icl = (read(lens(), right, demos=demos) for demos in (False, True))
    taught = {
        "demos": right,
        "wrong_task": right.with_demos_of(WRONG.draw(tokenizer(), 4, 1, 0, seed=5)),
        "shuffled_labels": right.with_shuffled_labels(5),
    }
    seen = set()
    for condition, prompts in taught.items():
        with fine_tuned(lens(), prompts, LR["sgd"]):
            ft = read(lens(), right, demos=False)
        expected = float(simaou(zsl.attn_out, icl.attn_out, ft.attn_out).mean())
        assert float(result()["simaou"].sel(recipe="sgd", condition=condition)) == pytest.approx(expected, abs=1e-5)
        seen.add(round(expected, 3))
    assert len(seen) == 3


def test_weights_and_random_state_are_left_alone():
    before = {n: p.detach().clone() for n, p in lens().model.named_parameters()}
    state = torch.random.get_rng_state()
    three_runs(lens(), UNEVEN, learning_rates=LR, recipes=("sgd",), **SIZES)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(p, before[n]) for n, p in lens().model.named_parameters())


def test_fine_tuning_with_a_rate_of_zero_is_the_bare_run():
    prompts = UNEVEN.draw(tokenizer(), 4, 6, seed=5)
    zsl = read(lens(), prompts, demos=False)
    with fine_tuned(lens(), prompts, 0.0):
        ft = read(lens(), prompts, demos=False)
    for name in ("attn_out", "scores", "last_query", "logits"):
        assert torch.equal(getattr(ft, name), getattr(zsl, name)), name
    ds = three_runs(lens(), UNEVEN, learning_rates={"sgd": 0.0}, recipes=("sgd",), **SIZES).isel(recipe=0)
    demos = ds.sel(condition="demos")
    assert np.isnan(demos["simaou"])
    assert np.isnan(demos["simam_update"])
    assert float(demos["simam"]) == float(demos["simam_zsl"])
    assert float(demos["accuracy_ft"]) == float(demos["accuracy_zsl"])
    assert float(demos["update_ratio"]) == 0


def test_untrained_weights_give_a_simaou_that_is_not_zero():
    """What makes the control mandatory: a model that has learnt nothing still scores."""
    bare = Lens(untrained(lens(), 3).model, tokenizer(), "bare")
    ds = three_runs(bare, UNEVEN, learning_rates=LR, **{**SIZES, "queries": 16})
    for condition in ("demos", "untrained"):
        score, error = (ds[n].sel(recipe="sgd", condition=condition) for n in ("simaou", "simaou_se"))
        assert float(score) > 3 * float(error)
    gauss = ds.sel(recipe="sgd", condition="gaussian")
    assert abs(float(gauss["simaou"])) < 4 * float(gauss["simaou_se"])


def test_the_untrained_control_is_the_whole_comparison_on_fresh_weights():
    """Bare, in-context and fine-tuned: all three are those of the untrained model, at the same learning rates."""
    alone = three_runs(untrained(lens(), SIZES["seed"]), UNEVEN, learning_rates=LR, **SIZES).sel(condition="demos")
    control = result().sel(condition="untrained")
    for name in MEASURES:
        np.testing.assert_array_equal(control[name], alone[name], err_msg=name)


def test_untrained_weights_are_fresh_and_depend_on_the_seed_alone():
    one, same, other = (untrained(lens(), seed).model for seed in (1, 1, 2))
    for (name, p), q, r in zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        if p.ndim > 1:
            assert not torch.equal(p, r)
            assert not torch.equal(p, dict(lens().model.named_parameters())[name])
    assert one.config._attn_implementation == lens().model.config._attn_implementation
    with pytest.raises(InterpError, match="for a plain Lens, not for a Identity; load the model itself"):
        untrained(torch.nn.Identity(), 0)


def changes():
    prompts = UNEVEN.draw(tokenizer(), 4, 6, seed=5)
    zsl = read(lens(), prompts, demos=False)
    with fine_tuned(lens(), prompts, 0.05) as training:
        ft = read(lens(), prompts, demos=False)
    icl = in_context_change(zsl, read(lens(), prompts, demos=True), prompts)
    return icl, fine_tuned_change(zsl, ft, training), ft, training


def test_a_gaussian_is_as_long_as_what_it_replaces_and_points_anywhere():
    _, change, _, _ = changes()
    drawn = gaussian(change, 0)
    for name in ("attn_out", "scores", "scores_update"):
        there, here = getattr(change, name), getattr(drawn, name)
        torch.testing.assert_close(here.norm(dim=-1), there.norm(dim=-1), rtol=1e-4, atol=1e-6)
        assert torch.equal(here == 0, there == 0)
    mean = torch.nn.functional.normalize(drawn.attn_out, dim=-1).mean()
    assert abs(float(mean)) < 0.02  # numbers from U(0, 1) have a mean of .11 here


def test_first_layer_of_a_rotary_model_cannot_change_scores_of_the_querys_own_tokens():
    icl, ft, _, _ = changes()
    assert not icl.scores_update[:, 0].any()
    assert bool(icl.scores_update[:, 1].norm(dim=-1).all())
    assert bool(ft.scores_update[:, 0].norm(dim=-1).all())
    assert np.isnan(result()["simam_update_by_layer"].sel(recipe="sgd", condition="demos")[0])


def test_demonstration_scores_of_fine_tuning_are_products_of_queries():
    icl, change, ft, training = changes()
    expected = torch.tensor([[float(ft.last_query[2, 1] @ q) for q in training.queries[3][1]]])
    torch.testing.assert_close(change.demo_scores[3][2, 1][None], expected, rtol=1e-4, atol=1e-5)
    assert [s.shape for s in icl.demo_scores] == [s.shape for s in change.demo_scores]


def test_accuracies_and_recovered_queries_fit_together():
    ds = result()
    for name in ("accuracy_zsl", "accuracy_icl"):
        kept = ds[name].sel(condition=["demos", "gaussian", "wrong_task", "shuffled_labels"])
        assert float(kept.max() - kept.min()) == 0  # only untrained weights read differently
    assert bool((ds["rec2ftp_queries"] <= SIZES["queries"] * (1 - ds["accuracy_zsl"]) + 1e-6).all())
    assert bool((ds["rec2ftp"].isnull() == (ds["rec2ftp_queries"] == 0)).all())


def test_the_same_seed_gives_the_same_numbers():
    again = three_runs(lens(), UNEVEN, learning_rates=LR, **SIZES)
    assert again.identical(result())


@pytest.mark.parametrize("name", ["gpt2", "phi3", "cohere"])
def test_other_architectures(name):
    ds = three_runs(lens(name), UNEVEN, learning_rates=LR, **SIZES)
    assert bool(np.isfinite(ds["simaou"]).all())


def test_learning_rates_are_chosen_on_held_out_examples():
    ds = three_runs(lens(), UNEVEN, recipes=("sgd",), **SIZES)
    assert float(ds["learning_rate"][0]) in (1e-3, 3e-3, 1e-2)


def test_too_little_to_compare_is_refused():
    with pytest.raises(InterpError, match="4 of them at least; found 3"):
        three_runs(lens(), UNEVEN, **{**SIZES, "demos": 3})
    with pytest.raises(InterpError, match="at least one recipe"):
        three_runs(lens(), UNEVEN, recipes=(), **SIZES)


def test_recipes_without_a_rate_or_unknown_are_refused():
    with pytest.raises(InterpError, match="names sgd and the recipe layer_causal is asked for"):
        three_runs(lens(), UNEVEN, learning_rates={"sgd": 0.1}, **SIZES)
    with pytest.raises(InterpError, match="one of sgd, layer_causal, not 'adam'"):
        three_runs(lens(), UNEVEN, recipes=("adam",), **SIZES)


def test_order_matters_in_a_prompt_and_not_where_nothing_is_learnt():
    prompts = UNEVEN.draw(tokenizer(), 4, 5, seed=0)
    ds = order_sensitivity_of_runs(lens(), prompts, {"sgd": 0.0, "layer_causal": 0.05}, permutations=3)
    sensitivity = ds["order_sensitivity"].to_series()
    assert list(sensitivity.index) == ["icl", "sgd", "layer_causal"]
    assert sensitivity["icl"] > 0.01
    assert sensitivity["sgd"] == 0
    assert sensitivity["layer_causal"] > 0


def test_conditions_say_what_they_are():
    assert tuple(CONDITIONS)[1:] == CONTROLS
    assert all(CONDITIONS.values())
