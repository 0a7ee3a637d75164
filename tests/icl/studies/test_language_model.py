"""The language-model study on a tiny random model, and its words on numbers made up for them."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import transformers as hf
import xarray as xr
from tokenizers import Tokenizer, models, pre_tokenizers

from interp.icl import studies
from interp.icl.language.comparison import MEASURES, SIMILARITIES
from interp.icl.language.controls import CONDITIONS, CONTROLS
from interp.icl.language.fine_tuning import LEARNING_RATES, RECIPES
from interp.icl.language.label_tasks import label_task, label_tasks
from interp.icl.studies import report
from interp.icl.studies.language_model import JUDGED, NAMED, LanguageModel, conclusion, excess_over_controls
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
        (0.9, 0.95, "no similarity exceeds its strongest control"),
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
