"""Two continuations of one prompt: whose tokens they are, and what either model thinks of them."""

from __future__ import annotations

import json
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import interp
from interp import InterpError
from interp.figures._need import FigureError
from interp.runs.generating import generate
from interp.runs.side_by_side import findings
from tests.vision_models import picture, shared

PROMPT = "The library reads files of text. The library writes files of numbers. The library keeps"
STEPS = 6


@pytest.fixture(scope="module")
def lens():
    return interp.load("demo")


@pytest.fixture(scope="module")
def strong(lens):
    return interp.side_by_side(lens, PROMPT, interp.Knorm(budget=0.2), STEPS)


def test_texts_are_what_each_model_generates(lens, strong):
    tokens = lens.to_tokens(PROMPT)
    unchanged = lens.generate(tokens, max_new_tokens=STEPS)[0, tokens.shape[1] :]
    with lens.apply(interp.Knorm(budget=0.2)):
        intervened = lens.generate(tokens, max_new_tokens=STEPS)[0, tokens.shape[1] :]
    assert strong["token_id"].sel(side="unchanged").values.tolist() == unchanged.tolist()
    assert strong["token_id"].sel(side="intervened").values.tolist() == intervened.tolist()
    assert strong["token_text"].sel(side="unchanged").values.tolist() == lens.to_str_tokens(unchanged[None])
    differ = np.flatnonzero(unchanged != intervened)
    assert strong.attrs["first_divergence"] == (differ[0] if len(differ) else -1)
    assert len(differ), "this policy is strong enough to change the text"


def test_the_unchanged_models_probabilities_are_those_of_one_forward_pass(lens, strong):
    prompt = lens.to_tokens(PROMPT)
    for side in ("unchanged", "intervened"):
        text = torch.tensor(strong["token_id"].sel(side=side).values)[None]
        logits = lens(torch.cat([prompt, text], 1))[0, prompt.shape[1] - 1 : -1]
        wanted = logits.log_softmax(-1).gather(-1, text[0][:, None])[:, 0].detach()
        found = strong["logprob"].sel(side=side, by="unchanged").values
        np.testing.assert_allclose(found, wanted.numpy(), atol=2e-4)


def test_a_shift_is_what_the_intervention_does_to_a_token(lens, strong):
    by = strong["logprob"]
    np.testing.assert_allclose(strong["shift"], by.sel(by="intervened") - by.sel(by="unchanged"), atol=1e-6)
    np.testing.assert_allclose(strong["shift"].isel(step=0), 0, atol=1e-5)  # the prompt alone predicts it
    assert (np.abs(strong["shift"].isel(step=slice(1, None))) > 1e-3).any()
    with lens.apply(interp.Knorm(budget=0.2)):
        own = lens.score(lens.to_tokens(PROMPT), torch.tensor(strong["token_id"].values[1:2]), chunk=1)
    np.testing.assert_allclose(by.sel(side="intervened", by="intervened"), -own[0].numpy(), atol=1e-5)


def test_an_intervention_that_does_nothing_changes_nothing(lens):
    ds = interp.side_by_side(lens, PROMPT, interp.ThinK(ratio=0.0, window=8), STEPS)
    assert ds.attrs["first_divergence"] == -1
    assert (ds["token_id"][0] == ds["token_id"][1]).all()
    np.testing.assert_allclose(ds["shift"], 0, atol=1e-5)
    assert findings(ds)[0] == f"Both write the same {STEPS} tokens."


def test_findings_and_accounts_are_those_of_the_runs(strong):
    unchanged, intervened = json.loads(strong.attrs["accounts"])
    assert intervened["cache"]["bytes"] < unchanged["cache"]["bytes"]
    assert unchanged["interventions"] == []
    sentences = findings(strong)
    assert sentences[0] == f"The texts part at new token {strong.attrs['first_divergence']}."
    mean = -float(strong["shift"].sel(side="unchanged").mean())
    assert f"{mean:+.3f} nats a token" in sentences[1]


def test_progress_reaches_its_end_and_never_falls(lens):
    seen = []
    interp.side_by_side(lens, PROMPT, interp.Knorm(budget=0.5), 3, progress=lambda done, of: seen.append(done / of))
    assert seen == sorted(seen)
    assert seen[-1] == 1


def test_the_figure_colours_every_token_and_frames_the_first_difference(strong):
    fig = interp.figures.side_by_side(strong)
    bars = [trace for trace in fig.data if trace.type == "bar"]
    assert [len(bar.text) for bar in bars] == [STEPS, STEPS]
    for bar in bars:
        framed = np.flatnonzero(np.asarray(bar.marker.line.width))
        assert framed.tolist() == [strong.attrs["first_divergence"]]
    with pytest.raises(FigureError):
        interp.figures.side_by_side(strong.drop_vars("shift"))


def test_an_empty_prompt_is_refused(lens):
    with pytest.raises(InterpError):
        interp.side_by_side(lens, "", interp.Knorm(budget=0.5), 3)


@pytest.mark.parametrize("chat", [False, True])
def test_of_a_prompt_with_images_texts_and_probabilities_are_those_of_the_lens(chat):
    seen = interp.Lens(*shared("llava"))
    prompt, images = "w3 w5" if chat else "<image> w3 w5", picture()
    edit = interp.KnockOut(keys="images")
    ds = interp.side_by_side(seen, prompt, edit, 4, chat=chat, images=images)
    talk = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": prompt}]}] if chat else prompt
    for side, applied in (("unchanged", False), ("intervened", True)):
        with seen.apply(edit) if applied else nullcontext():
            told = generate(seen, talk, None, 4, images=images)
            own = torch.tensor([told["new_token_ids"]])
            nats = seen.score(talk, own, chunk=1, images=images)[0].numpy()
        assert ds["token_id"].sel(side=side).values.tolist() == told["new_token_ids"]
        np.testing.assert_allclose(ds["logprob"].sel(side=side, by=side), -nats, atol=1e-5)
    assert (np.abs(ds["shift"]) > 1e-3).any(), "without the image other tokens are likely"
    assert ds.attrs["prompt"] == prompt
