"""The language-model study on a tiny random model, and its words on numbers made up for them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import transformers as hf
import xarray as xr
from tokenizers import Tokenizer, models, pre_tokenizers

from interp.errors import InterpError, UnknownNameError
from interp.icl import studies
from interp.icl.language.comparison import MEASURES, SIMILARITIES
from interp.icl.language.controls import CONDITIONS, CONTROLS
from interp.icl.language.fine_tuning import LEARNING_RATES, RECIPES
from interp.icl.language.label_tasks import label_task, label_tasks
from interp.icl.studies import report
from interp.icl.studies.language_model import (
    CELLS,
    JUDGED,
    NAMED,
    LanguageModel,
    conclusion,
    excess_over_controls,
    over_draws,
)
from tests.models import GROUPED

TASKS = ("language", "kind")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A folder with a random Llama that knows the words of two tasks and all labels, each as one token."""
    folder = tmp_path_factory.mktemp("model")
    texts = [f"{task.template} {' '.join(task.labels)}" for task in map(label_task, label_tasks())]
    texts += [text for task in map(label_task, TASKS) for text, _ in task.examples]
    split = pre_tokenizers.Whitespace()
    words = dict.fromkeys(word for text in texts for word, _ in split.pre_tokenize_str(text))
    vocabulary = {word: i for i, word in enumerate(["<bos>", "<eos>", "<pad>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = split
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    config = hf.LlamaConfig(**{**GROUPED, "vocab_size": len(vocabulary), "initializer_range": 0.2})
    hf.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def quick(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    study = LanguageModel(quick=True, model=model)
    told: list[float] = []
    return study, study.run(folder, lambda fraction, what: told.append(fraction)), folder, told


def test_it_is_found_by_its_name():
    assert studies.available()["language-model"] is LanguageModel


def test_progress_rises_to_the_end(quick):
    told = quick[3]
    assert told == sorted(told)
    assert (told[0], told[-1]) == (0.0, 1.0)


def test_a_second_run_reads_what_the_first_measured(quick):
    study, ds, folder, _ = quick
    again = replace(study, model=study.model).run(folder)
    xr.testing.assert_identical(again.drop_attrs(deep=False), ds.drop_attrs(deep=False))


def test_the_report_shows_every_score_beside_its_controls(quick):
    study, ds, folder, _ = quick
    assert set(ds["condition"].values) == {"demos", *CONTROLS}
    files = report.write(study, ds, folder)
    notes = study.notes(ds)
    for name in SIMILARITIES:
        for recipe in NAMED.values():
            (line,) = (note for note in notes if note.startswith(f"{recipe}, {name}: "))
            assert re.findall(r"(untrained|gaussian|wrong_task|shuffled_labels) (?:-?\d|undefined)", line) == list(
                CONTROLS
            )
    untrained = float(ds["simaou"].sel(recipe="sgd", condition="untrained").mean())
    assert untrained != 0
    line = next(note for note in notes if note.startswith(f"{NAMED['sgd']}, simaou: "))
    assert f"untrained {untrained:.3f}" in line
    for path in files.values():
        assert f"untrained {untrained:.3f}" in path.read_text()


def test_raw_scores_stand_beside_those_of_the_bare_model(quick):
    study, ds, _, _ = quick
    bare = float(ds["simam_zsl"].sel(recipe="sgd", condition="demos").mean())
    lines = [note for note in study.notes(ds) if "ICL against ZSL" in note]
    assert [line.split(":")[0] for line in lines] == [f"{recipe}, simam" for recipe in NAMED.values()]
    assert all(line.endswith(f"; ICL against ZSL {bare:.3f}.") for line in lines)


def test_recovered_queries_are_counted_over_all_draws(quick):
    """9 of 10 in one task and 0 of 1 in the other are 9 of 11, not the mean of 0.9 and 0."""
    shares, queries = np.array([[0.9, np.nan], [0.0, np.nan]]), np.array([[10, 0], [1, 0]])
    of = xr.Dataset({"rec2ftp": (CELLS, shares), "rec2ftp_queries": (CELLS, queries)})
    assert float(over_draws(of, "rec2ftp")) == pytest.approx(9 / 11)
    study, ds, _, _ = quick
    (line,) = (note for note in study.notes(ds) if note.startswith(f"{NAMED['sgd']}, rec2ftp: "))
    told = [int(n or 0) for n in re.findall(r"(?:(?:of (\d+) queries)|undefined)", line)]
    assert told == ds["rec2ftp_queries"].sel(recipe="sgd").sum(CELLS).values.tolist()


def test_accuracies_come_with_chance_and_recipes_with_their_rates(quick):
    study, ds, _, _ = quick
    notes = study.notes(ds)
    assert any(note.startswith("Accuracy on language (chance 0.33): ZSL ") for note in notes)
    (line,) = (note for note in notes if note.startswith(f"{NAMED['sgd']}: learning rate "))
    assert line.endswith(
        f", {LEARNING_RATES['sgd'][-1]:g} in 1 of 1 tasks; 1 at an end of the grid, beyond which a better one may lie."
    )


def test_the_report_names_the_wrong_tasks(quick):
    study, _, _, _ = quick
    (choice,) = (choice for choice in study.choices() if choice.setting == "wrong task")
    assert choice.used.startswith("language for sentiment, kind for language, ")


def test_quick_judges_nothing(quick):
    study, ds, _, _ = quick
    assert {row.verdict for row in study.verdicts(ds)} == {"not measured (quick)"}
    assert all("too little to judge" in note for note in study.notes(ds)[:2])


def test_figures_hold_all_similarities_and_conditions(quick):
    study, ds, _, _ = quick
    pictures = {picture.name: picture for picture in study.figures(ds)}
    assert set(pictures) == {"scores", "layers", "accuracy"}
    grid = pictures["scores"].figure.data[0]
    assert (list(grid.y), list(grid.x)) == (list(SIMILARITIES), list(CONDITIONS))
    assert {t.name for t in pictures["layers"].figure.data if t.name} == set(CONDITIONS)


def test_it_runs_over_tasks_and_seeds(model, tmp_path):
    study = LanguageModel(model=model, tasks=TASKS, seeds=2, demos=4, queries=4, permutations=2)
    ds = study.run(tmp_path)
    assert dict(ds["simaou"].sizes) == {"task": 2, "seed": 2, "recipe": 2, "condition": 5}
    for recipe in RECIPES:
        assert set(ds["learning_rate"].sel(recipe=recipe).values.ravel()) <= set(LEARNING_RATES[recipe])
    rows = study.verdicts(ds)
    assert len(rows) == 2 * (len(JUDGED) + 1) + 2
    assert {row.verdict for row in rows} <= {"reproduced", "not reproduced"}


def test_quick_takes_what_there_is(model, tmp_path):
    ds = LanguageModel(quick=True, model=model, tasks=("kind",)).run(tmp_path)
    assert list(ds["task"].values) == ["kind"]


def test_settings_that_measure_nothing_are_refused():
    for settings, said in (
        ({"tasks": ()}, "takes one task at least"), ({"seeds": 0}, "run from 1 seed or more"),
        ({"permutations": 0}, "permutations should be at least 1"), ({"tasks": 0.5}, "tasks should be a list of texts"),
    ):  # fmt: skip
        with pytest.raises(InterpError, match=said):
            LanguageModel(**settings)
    with pytest.raises(UnknownNameError, match="did you mean 'sentiment'"):
        LanguageModel(tasks=("sentimant",))


def made_up(demos: float, controls: float, spread: float = 0.01) -> xr.Dataset:
    """Four cells of one recipe in which every similarity has these values."""
    values = np.full((2, 2, 5), controls)
    values[..., 0] = demos
    values += spread * np.random.default_rng(0).normal(size=values.shape)
    return xr.Dataset(
        dict.fromkeys(MEASURES, (("task", "seed", "condition"), values)),
        {"task": ["a", "b"], "seed": [0, 1], "condition": list(CONDITIONS)},
    )


@pytest.mark.parametrize(
    ("demos", "controls", "says"),
    [
        (0.9, 0.1, "this fine-tuning recipe matches in-context learning on this model"),
        (0.3, 0.1, "this fine-tuning recipe does not match in-context learning on this model"),
        (0.9, 0.95, "exceeds its strongest control by 2 standard errors, so these numbers give no reason"),
    ],
)
def test_the_conclusion_follows_from_the_numbers(demos, controls, says):
    assert says in conclusion(made_up(demos, controls), "SGD")


def test_a_conclusion_names_what_stays_below_its_controls():
    of = made_up(0.9, 0.1)
    of["token_overlap"] = made_up(0.1, 0.4)["token_overlap"]
    assert "does not match" in conclusion(of, "SGD")
    assert "and does not in token_overlap, and" in conclusion(of, "SGD")


def test_excess_is_over_the_strongest_control():
    score = made_up(0.5, 0.1, spread=0)["simaou"].copy()
    score.loc[{"condition": "shuffled_labels"}] = 0.3
    excess, strongest = excess_over_controls(score)
    assert strongest == "shuffled_labels"
    np.testing.assert_allclose(excess, 0.2)


def test_a_control_that_is_defined_nowhere_is_not_the_strongest():
    score = made_up(0.5, 0.1, spread=0)["simaou"].copy()
    score.loc[{"condition": "untrained"}] = np.nan
    score.loc[{"condition": "wrong_task"}] = 0.2
    excess, strongest = excess_over_controls(score)
    assert strongest == "wrong_task"
    np.testing.assert_allclose(excess, 0.3)


def judged(by_task: tuple[float, ...], seeds: int = 2) -> xr.Dataset:
    """Both recipes, with an excess over the controls that differs between tasks and not between draws."""
    values = np.zeros((len(by_task), seeds, 5))
    values[..., 0] = np.array(by_task)[:, None]
    one = xr.Dataset(
        dict.fromkeys(MEASURES, (("task", "seed", "condition"), values)),
        {"task": list("abcdef")[: len(by_task)], "seed": range(seeds), "condition": list(CONDITIONS)},
    )
    return xr.concat([one, one], "recipe").assign_coords(recipe=list(RECIPES))


def test_draws_of_one_task_are_no_independent_samples():
    """0.15 ± 0.1 over two tasks; their four draws, each counted, would make it 0.15 ± 0.058."""
    row = LanguageModel().verdicts(judged((0.05, 0.25)))[0]
    assert (row.ours, row.se, row.verdict) == (pytest.approx(0.15), pytest.approx(0.1), "not reproduced")
    assert "over tasks" in row.expected
    assert "give no reason" in conclusion(judged((0.05, 0.25)).sel(recipe="sgd"), "SGD")
    assert LanguageModel().verdicts(judged((0.15, 0.25)))[0].verdict == "reproduced"


def test_draws_tell_where_there_is_one_task():
    ds = judged((0.2,), seeds=3) + 0.01 * xr.DataArray([0.0, 1.0, 2.0], dims="seed")
    row = LanguageModel().verdicts(ds)[5]
    assert row.ours == pytest.approx(0.21)
    assert row.se == pytest.approx(0.01 / 3**0.5)


def test_one_draw_of_one_task_is_not_judged():
    rows = LanguageModel().verdicts(judged((0.9,), seeds=1))
    assert {row.verdict for row in rows if "simaou itself" not in row.claim} == {"not measured"}
    assert "too little to judge" in conclusion(judged((0.9,), seeds=1).sel(recipe="sgd"), "SGD")


def test_no_excess_is_none():
    assert LanguageModel().verdicts(judged((0.0, 0.0)))[0].verdict == "not reproduced"
