"""VAR against the paper's definitions and the released code's, in plain torch, on models with sinks planted in them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformer_lens.model_bridge.sources import build_bridge_from_module

import interp
from interp import VAR, InterpError, KnockOut
from interp.vision.sinks import sink_values
from tests.interventions.edited_by_hand import in_pieces, one_sentence
from tests.interventions.live_cache import close
from tests.interventions.planted_sinks import (
    CHANNELS,
    FIRM,
    Batch,
    by_reference,
    code,
    continued,
    one_by_one,
    paper,
    planted,
)  # fmt: skip
from tests.lens.test_images import BOTH_WAYS, by_processor, pair
from tests.models import shared as text_model
from tests.models import tokens
from tests.vision_models import NAMES, picture, shared

EXAMPLES = [
    VAR(channels=7, tau_rel=0.6, min_visual_mass=0.05, min_nonsink_ratio=0.05, layers=(0, 1, 2)),
    VAR(channels=(3, 7), tau_rel=0.6, min_visual_mass=0.0, min_nonsink_ratio=0.01, variant="code", layers=(1, 2)),
    VAR(channels=7, tau_rel=0.6, min_visual_mass=0.05, min_nonsink_ratio=0.05, give_to="both", layers=(1, 2)),
]
KINDS = ("llava", "idefics3")
SOME = {"min_visual_mass": 0.55, "min_nonsink_ratio": 0.87}
"""At which some rows of these models are selected and others are not."""
EASY = {"min_visual_mass": 0.1, "min_nonsink_ratio": 0.3}


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


VARIANTS: dict[str, tuple[VAR, Callable[..., torch.Tensor], dict[str, Any]]] = {
    "paper": (VAR(**FIRM, **SOME), paper, {"layers": (0, 1), "rho": 0.87, "p": 0.6, "floor": 0.55}),
    "all of it": (
        VAR(**FIRM, **SOME, remove_fraction=1.0, layers=(1, 2)), paper,
        {"layers": (1, 2), "rho": 0.87, "p": 1.0, "floor": 0.55},
    ),
    "code": (
        VAR(**FIRM, variant="code"), code,
        {"layers": (2,), "rho": 0.5, "p": 0.6, "floor": 0.2, "exceeds": lambda phi: phi > 4.0},
    ),
    "code, other numbers": (
        VAR(**FIRM, **SOME, variant="code", remove_fraction=0.7), code,
        {"layers": (2,), "rho": 0.13, "p": 0.3, "floor": 0.55, "exceeds": lambda phi: phi > 4.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_is_what_the_paper_defines_and_what_the_code_does(kind: str, variant: str) -> None:
    """A padded batch, in one pass over the prompt, step by step, and in the open."""
    batch = Batch(kind, ["w1 w2 <image> w3 w4 w5", "<image> w6 w7"])
    edit, rule, numbers = VARIANTS[variant]
    ids, mask = continued(batch)
    real = mask.bool()
    with planted(batch.lens, batch.planted):
        wanted, edited, left = by_reference(batch, ids, mask, rule, **numbers)
        plain = batch(ids, mask)
        with batch.lens.apply(edit):
            found = one_by_one(batch, ids, mask)
            looked = batch.lens.run_with_hooks(
                batch.ids, attention_mask=batch.mask, **batch.rest,
                fwd_hooks=[(lambda name: name.endswith("hook_pattern"), lambda value, hook: None)],
            )  # fmt: skip
    assert edited > 10
    assert left > 10 or variant == "code"
    size = wanted[real].abs().max()
    close(found[real] / size, wanted[real] / size)
    prompt = batch.real
    close(looked[prompt] / size, wanted[:, : batch.ids.shape[1]][prompt] / size)
    assert float((plain - wanted)[real].abs().max() / size) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_what_hooks_of_a_bridge_make_of_the_same_model(kind: str) -> None:
    batch, numbers = Batch(kind, ["w1 <image> w3 w4 w5"]), VARIANTS["paper"][2]
    model = copy.deepcopy(shared(kind)[0])
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)

    def plant(stream: torch.Tensor, hook: Any) -> torch.Tensor:
        stream = stream.clone()
        for column in batch.planted[0]:
            stream[0, column, list(CHANNELS)] += torch.tensor([200.0, -120.0])
        return stream

    with bridge.hooks(fwd_hooks=[("blocks.1.hook_in", plant)]):
        wanted, edited, _ = by_reference(batch, batch.ids, batch.mask, paper, bridge=bridge, **numbers)
    with planted(batch.lens, batch.planted), batch.lens.apply(VARIANTS["paper"][0]):
        close(batch(), wanted)
    assert edited


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_texts_and_generation_with_a_cache_is_that_without(kind: str) -> None:
    texts = ["w1 w2 <image> w3 w4 w5", "<image> w6 w7"]
    batch, edit = Batch(kind, texts), VAR(**FIRM, **SOME)
    asked = {"max_new_tokens": 4, "eos_token_id": None}
    with planted(batch.lens, batch.planted), batch.lens.apply(edit):
        both = batch()
        cached = batch.lens.generate(batch.ids, attention_mask=batch.mask, **batch.rest, **asked)
        again = batch.lens.generate(batch.ids, attention_mask=batch.mask, **batch.rest, **asked, use_cache=False)
    assert torch.equal(cached, again)
    for b, text in enumerate(texts):
        padding = int((~batch.real[b]).sum())
        columns = [[column - padding for column in batch.planted[b]]]
        with planted(batch.lens, columns), batch.lens.apply(edit):
            alone = batch.lens(text, images=picture(b))
        close(both[b, padding:], alone[0], 1e-4)


def test_what_is_generated_is_never_tested() -> None:
    """Words that come after the prompt with a massive activation: written, written without a cache, and scored."""
    batch = Batch("llava", ["w1 <image> w3 w4"])
    prompt = batch.ids.shape[1]
    ids, mask = continued(batch, 4)
    loud = [[*batch.planted[0], prompt, prompt + 2]]
    edit = VAR(**FIRM, **SOME)
    numbers = {"layers": (0, 1), "rho": 0.87, "p": 0.6, "floor": 0.55}
    with planted(batch.lens, loud):
        wanted, edited, _ = by_reference(batch, ids, mask, paper, **numbers)
        with batch.lens.apply(edit):
            close(one_by_one(batch, ids, mask), wanted, 1e-4)
            nats = batch.lens.score("w1 <image> w3 w4", ids[:, prompt:], images=picture(0), chunk=2)
            together = batch(ids, mask)
            written = batch.lens.generate(batch.ids, attention_mask=batch.mask, **batch.rest, max_new_tokens=4)
            without = batch.lens.generate(
                batch.ids, attention_mask=batch.mask, **batch.rest, max_new_tokens=4, use_cache=False
            )
    assert edited
    assert torch.equal(written, without)
    costs = -wanted.log_softmax(-1)[:, prompt - 1 : -1].gather(-1, ids[:, prompt:, None])[..., 0]
    close(nats, costs, 1e-4)
    assert float((together - wanted).abs().max()) > 1e-3  # in one piece they are a prompt's, and tested


def test_rows_keep_their_sums_and_those_that_are_not_selected_every_bit() -> None:
    batch, edit = Batch("llava", ["w1 <image> w3 w4 w5"]), VAR(**FIRM, **EASY, layers=1, heads=(0, 2))
    names = ["blocks.1.attn.hook_pattern", "blocks.1.attn.hook_attn_scores", "blocks.1.attn.hook_z"]
    given = {"attention_mask": batch.mask, **batch.rest}
    with planted(batch.lens, batch.planted):
        _, before = batch.lens.run_with_cache(batch.ids, names_filter=names, **given)
        with batch.lens.apply(edit):
            _, after = batch.lens.run_with_cache(batch.ids, names_filter=names, **given)
            _, fused = batch.lens.run_with_cache(batch.ids, names_filter=names[2:], **given)
        _, own = batch.lens.run_with_cache(batch.ids, names_filter=names[2:], **given)
    plain, found = before["pattern", 1][0], after["pattern", 1][0]
    assert float((found.sum(-1) - 1).abs().max()) < 1e-6
    changed = (plain != found).any(-1)
    end = int(batch.images[0].nonzero().max()) + 1
    assert not changed[:, :end].any()
    assert not changed[[1, 3]].any()
    assert changed[[0, 2], end:].any()
    rows, heads = (~changed).T.nonzero(as_tuple=True)
    assert torch.equal(fused["z", 1][0, rows, heads], own["z", 1][0, rows, heads])
    row = changed.nonzero()[0].tolist()
    factors = torch.where(plain > 0, found / plain, 1.0)
    sinks = batch.planted[0]
    close(factors[row[0], row[1], sinks], torch.full((3,), 0.4))
    others = [j for j in range(row[1] + 1) if not batch.images[0, j] and j not in sinks]
    close(factors[row[0], row[1], others], torch.ones(len(others)), 1e-6)
    biased = (before["attn_scores", 1][0] + factors.log()).softmax(-1)  # the same edit as a bias of the logits
    close(found, biased, 1e-6)
    close(fused["z", 1], after["z", 1], 1e-6)


def test_nothing_to_do_is_exactly_nothing() -> None:
    batch = Batch("idefics3", ["w1 <image> w3 w4"])
    plain = batch()
    with batch.lens.apply(VAR(**FIRM, **EASY, remove_fraction=0.0)):
        assert torch.equal(batch(), plain)
    with pytest.warns(UserWarning, match="var changed nothing"), batch.lens.apply(VAR(**FIRM, **EASY)):
        assert torch.equal(batch(), plain)  # no sinks in it
    only_text = [[0]]
    with planted(batch.lens, only_text):
        plain = batch()
        with pytest.warns(UserWarning, match="var changed nothing"), batch.lens.apply(VAR(**FIRM, **EASY)):
            assert torch.equal(batch(), plain)  # and none of the image


def test_sinks_are_told_by_the_residual_stream_and_not_by_attention() -> None:
    """A key to which all rows attend, planted in the scores."""
    batch = Batch("llava", ["w1 <image> w3 w4"])
    sink = batch.planted[0][1]

    def raise_scores(scores: torch.Tensor, hook: Any) -> torch.Tensor:
        return scores + 8.0 * (torch.arange(scores.shape[-1]) == sink) * (scores > -1e30)

    hooks = [(lambda name: name.endswith("attn_scores"), raise_scores)]
    given = {"attention_mask": batch.mask, **batch.rest}
    plain = batch.lens.run_with_hooks(batch.ids, fwd_hooks=hooks, **given)
    assert float((plain - batch()).abs().max()) > 0.01
    with pytest.warns(UserWarning, match="var changed nothing"), batch.lens.apply(VAR(**FIRM, **EASY)):
        assert torch.equal(batch.lens.run_with_hooks(batch.ids, fwd_hooks=hooks, **given), plain)


def test_giving_to_the_text_gives_it_to_words_that_are_no_sinks() -> None:
    batch = Batch("llava", ["w1 w2 <image> w3 w4 w5"])
    name = "blocks.1.attn.hook_pattern"
    given = {"attention_mask": batch.mask, **batch.rest, "names_filter": name}
    image, sinks = batch.images[0].clone(), batch.planted[0]
    found = {}
    with planted(batch.lens, batch.planted):
        _, plain = batch.lens.run_with_cache(batch.ids, **given)
        for gaining in ("images", "text", "both"):
            with batch.lens.apply(VAR(**FIRM, **EASY, layers=1, give_to=gaining)):
                found[gaining] = batch.lens.run_with_cache(batch.ids, **given)[1][name][0]
    before = plain[name][0]
    image[sinks], words = False, ~image
    words[sinks] = False
    words &= ~batch.images[0]
    for gaining, who in {"images": image, "text": words, "both": image | words}.items():
        gained = found[gaining] > before
        assert gained.any()
        assert not gained[..., ~who].any()
        close(found[gaining].sum(-1), before.sum(-1), 1e-6)


def test_phi_has_no_scale_and_a_bound() -> None:
    x = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(0))
    x[0, 0, 4] = 1e4
    phi = sink_values(x, (4, 9))
    for scale in (1e-1, 7.0, 1e4):
        close(sink_values(scale * x, (4, 9)), phi, 1e-3)
    assert float(phi.max()) == pytest.approx(8.0, abs=1e-3)
    assert phi.shape == (3, 5)
    close(sink_values(x[1], (4,)), x[1, :, 4].abs() / x[1].square().mean(-1).sqrt())


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"min_nonsink_ratio": 0.0}, "min_nonsink_ratio should be above 0"),
        ({"remove_fraction": 1.2}, "remove_fraction should be 0 to 1, found 1.2"),
        ({"min_visual_mass": -0.1}, "min_visual_mass should be 0 to 1, found -0.1"),
        ({"tau_rel": 20.0}, "tau_rel should be above 0 and at most 1, found 20.0"),
        ({"channels": ()}, "without sink channels there are no sinks"),
        ({"channels": (3, 3)}, "channels should be distinct numbers"),
        ({"variant": "both"}, "variant should be one of paper, code"),
    ],
)
def test_a_bad_setting_is_told_when_it_is_made(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(InterpError) as told:
        VAR(**asked)
    assert says in str(told.value)
    one_sentence(told.value)


def test_what_a_model_lacks_is_told_before_it_runs() -> None:
    text, seeing = interp.load(text_model("llama")), interp.Lens(*shared("llava"))
    for lens, edit, says in (
        (text, VAR(channels=3), "reads text and no images"),
        (text, VAR(), "reads text and no images"),
        (text, interp.GroupKnockOut(channels=3), "reads text and no images"),
        (text, KnockOut(keys="images"), "reads text and no images"),
        (text, interp.AttentionBias(keys=3, queries="text"), "reads text and no images"),
        (seeing, VAR(), r"interp.sink_channels\(lens\)"),
        (seeing, interp.GroupKnockOut(), r"interp.sink_channels\(lens\)"),
        (seeing, VAR(channels=(3, 64)), "channels 0 to 63, found 64"),
    ):
        with pytest.raises(InterpError, match=says) as told:
            lens.apply(edit).__enter__()
        one_sentence(told.value)
    with pytest.warns(UserWarning, match="var changed nothing"), seeing.apply(VAR(channels=3, tau_rel=0.1)):
        seeing("w1 w2 w3")
    with pytest.warns(UserWarning, match="knock_out changed nothing"), seeing.apply(KnockOut(keys="images")):
        seeing("w1 w2 w3")


def test_all_images_can_be_knocked_out_of_what_the_text_sees() -> None:
    """Then the picture makes no difference."""
    batch = Batch("llava", ["w1 <image> w3 w4", "<image> w6 w7"])
    others = {name: value.flip(0) if name == "pixel_values" else value for name, value in batch.rest.items()}
    assert float((batch() - batch.lens(batch.ids, attention_mask=batch.mask, **others)).abs().max()) > 1e-3
    with batch.lens.apply(KnockOut(keys="images", queries="text")):
        words = batch.real & ~batch.images
        close(batch()[words], batch.lens(batch.ids, attention_mask=batch.mask, **others)[words], 1e-6)


def test_it_is_read_from_text() -> None:
    edit = interp.interventions.parse("var:channels=[11,40],tau_rel=0.5,variant=code")
    assert edit == VAR(channels=CHANNELS, tau_rel=0.5, variant="code")
    assert interp.interventions.parse("knock_out:keys=images") == KnockOut(keys="images")


def test_a_prompt_in_pieces_is_one() -> None:
    """Read as text that stands where an image's tokens would: pieces end within the image."""
    lens, ids = interp.Lens(*shared("llava")), tokens(1, 16)
    ids[:, 4:9] = lens.cfg.image_token_id
    with planted(lens, [[0, 5, 7]]), lens.apply(VAR(**FIRM, **EASY)):
        close(in_pieces(lens, ids, (3, 3, 6, 4)), lens(ids), 1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_family_writes_with_a_cache_what_it_writes_without(name: str) -> None:
    """Of texts with different numbers of images; in both the edit acts."""
    texts, images = pair(name)
    lens = interp.Lens(*shared(name))
    edit = VAR(channels=CHANNELS, tau_rel=0.5, min_visual_mass=0.0, min_nonsink_ratio=0.01, remove_fraction=1.0)
    ids = by_processor(name, texts, images)["input_ids"]
    columns = [(row == lens.cfg.image_token_id).nonzero().ravel().tolist() for row in ids]
    with planted(lens, [own[1:-1:3] for own in columns]):
        plain = lens(texts, images=images)
        with lens.apply(edit):
            edited = lens(texts, images=images)
            cached = lens.generate(texts, 4, images=images)
            without = lens.generate(texts, 4, images=images, use_cache=False)
    assert cached == without
    for b, own in enumerate(columns):
        changed = (plain[b] != edited[b]).any(-1)
        assert bool(changed[own[-1] + 1 :].any())
        assert not bool(changed[: own[0] + 1].any()) or name in BOTH_WAYS
