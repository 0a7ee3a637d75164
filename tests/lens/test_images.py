"""A Lens on models that see: texts with images, the tower's points, and what is no input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

import interp
from interp.errors import InterpError, UnknownNameError
from interp.vision.prompts import marked
from tests.vision_models import NAMES, picture, shared

TWO = ["w1 w2 <image> w3 w4 <image> w7", "<image> w5"]
ONE_PLACE = ("paligemma",)
"""Whose processors put images before the text."""

BOTH_WAYS = ("paligemma",)
"""Whose prompts are seen both ways, so that what is scored is no part of one."""


@cache
def seeing(name: str) -> interp.Lens:
    return interp.Lens(*shared(name))


def pair(name: str) -> tuple[list[str], list[list[Any]]]:
    """Two texts of different length, and their images."""
    if name in ONE_PLACE:
        return ["<image> w1 w3", "<image> w5"], [[picture(0)], [picture(1)]]
    return TWO, [[picture(0), picture(1)], [picture(2)]]


def by_processor(name: str, texts: list[str], images: Any) -> dict[str, Any]:
    model, processor = shared(name)
    written = [marked(processor, model.config, text) for text in texts]
    made = dict(processor(text=written, images=images, return_tensors="pt", padding=True, padding_side="left"))
    made.pop("labels", None)
    return made


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_logits_are_the_models_own(name: str) -> None:
    texts, images = pair(name)
    bare = shared(name)[0](**by_processor(name, texts[:1], images[:1])).logits
    assert torch.equal(seeing(name)(texts[0], images=images[0]), bare)
    words = torch.arange(70, 82)[None]
    assert torch.equal(seeing(name)(words), shared(name)[0](words).logits)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_a_batch_is_its_texts_one_by_one(name: str) -> None:
    texts, images = pair(name)
    lens, real = seeing(name), by_processor(name, texts, images)["attention_mask"].bool()
    both = lens(texts, images=images)
    for i, (text, held) in enumerate(zip(texts, images, strict=True)):
        torch.testing.assert_close(both[i][real[i]], lens(text, images=held)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_generation_is_transformers_own(name: str) -> None:
    texts, images = pair(name)
    given = by_processor(name, texts, images)
    lens = seeing(name)
    own = shared(name)[0].generate(**given, max_new_tokens=4, do_sample=False)
    said = lens.tokenizer.batch_decode(own, skip_special_tokens=True)
    assert lens.generate(texts, 4, images=images) == said
    replies = lens.generate("w1 w2", 3, images=picture(), chat=True)
    talk = [{"role": "user", "content": [{"type": "image", "image": picture()}, {"type": "text", "text": "w1 w2"}]}]
    assert replies == lens.generate(talk, 3)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_scores_in_chunks_are_those_of_one_pass(name: str) -> None:
    """Positions after an image are right in every later call of the same cache, whatever other images came between."""
    texts, images = pair(name)
    lens = seeing(name)
    nats = lens.score(texts[0], "w30 w31 w32 w33", images=images[0], chunk=1)
    lens(texts[1], images=images[1])
    torch.testing.assert_close(
        nats, lens.score(texts[0], "w30 w31 w32 w33", images=images[0], chunk=2), atol=1e-5, rtol=1e-5
    )
    if name in BOTH_WAYS:
        return
    whole = lens(f"{texts[0]} w30 w31 w32 w33", images=images[0]).log_softmax(-1)
    ids = lens.tokenizer("w30 w31 w32 w33", add_special_tokens=False).input_ids
    expected = torch.stack([-whole[0, -5 + i, token] for i, token in enumerate(ids)])[None]
    torch.testing.assert_close(nats, expected, atol=1e-4, rtol=1e-4)


@contextmanager
def eager_weights(model: Any) -> Iterator[dict[Any, list[torch.Tensor]]]:
    """The weights that the eager functions of a model's own modelling files return, by attention module."""
    seen: dict[Any, list[torch.Tensor]] = {}
    files = {type(module).__module__ for module in model.modules()}
    with pytest.MonkeyPatch.context() as patch:
        for file in files:
            own = getattr(sys.modules[file], "eager_attention_forward", None)
            if own is None:
                continue

            def attend(module: Any, *args: Any, own: Any = own, **kwargs: Any) -> Any:
                out, weights = own(module, *args, **kwargs)
                seen.setdefault(module, []).append(weights)
                return out, weights

            patch.setattr(sys.modules[file], "eager_attention_forward", attend)
        before = model.config._attn_implementation
        model.set_attn_implementation("eager")
        try:
            yield seen
        finally:
            model.set_attn_implementation(before)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_patterns_of_tower_and_language_model_are_the_eager_ones(name: str) -> None:
    texts, images = pair(name)
    lens, (model, _) = seeing(name), shared(name)
    _, cached = lens.run_with_cache(texts[0], images=images[0], names_filter=lambda point: point.endswith("pattern"))
    with eager_weights(model) as seen:
        model(**by_processor(name, texts[:1], images[:1]))
    towers = 0
    for at, _, block in lens.anatomy.places:
        if (blocks := seen.get(block.attention)) is None:
            continue
        mine, at_row = cached[f"{at}.hook_pattern"], 0
        if len(blocks) > 1:  # a tower that attends to windows or images one by one
            towers += 1
            for own in blocks:
                rows = slice(at_row, at_row + own.shape[-1])
                torch.testing.assert_close(mine[..., rows, rows], own, atol=1e-5, rtol=1e-5)
                at_row += own.shape[-1]
            assert mine.sum() == pytest.approx(sum(float(own.sum()) for own in blocks), rel=1e-5)
            continue
        real = blocks[0].sum(-1) > 0.5
        torch.testing.assert_close(mine[real], blocks[0][real], atol=1e-5, rtol=1e-5)
        towers += at.startswith("vision.")
    assert towers == len(next(stack for stack in lens.anatomy.stacks if stack.prefix == "vision.").blocks)


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_edits_in_the_tower_reach_the_logits(name: str) -> None:
    texts, images = pair(name)
    lens = seeing(name)
    before = lens(texts[0], images=images[0])
    for point in (
        "vision.blocks.0.hook_resid_mid", "vision.blocks.0.attn.hook_z", "vision.blocks.0.hook_resid_post",
        "vision.hook_projected",
    ):  # fmt: skip
        same = lens.run_with_hooks(texts[0], images=images[0], fwd_hooks=[(point, lambda value, hook: value.clone())])
        torch.testing.assert_close(same, before, atol=1e-6, rtol=1e-6)
        # an RMSNorm after it would undo a factor, so channels are changed by different ones
        other = lens.run_with_hooks(
            texts[0], images=images[0],
            fwd_hooks=[(point, lambda value, hook: value * torch.linspace(-2, 2, value.shape[-1]))],
        )  # fmt: skip
        assert float((other - before).abs().max()) > 1e-3, point


@pytest.mark.parametrize("name", NAMES)
def test_policies_and_edits_act_on_the_language_layers(name: str) -> None:
    texts, images = pair(name)
    lens = seeing(name)
    if not lens.cfg.full_attention_layers:
        pytest.skip("this release caches something else than the keys that are attended to")
    lens.generate(texts, 4, images=images)
    whole = lens.last_cache.nbytes()
    with lens.apply(interp.SnapKV(budget=0.5, window=4)):
        lens.generate(texts, 4, images=images)
    assert lens.last_cache.nbytes() < whole
    tower = {}

    def note(value: torch.Tensor, hook: Any) -> None:
        tower[hook.name] = value

    with torch.no_grad(), lens.apply(interp.KnockOut(keys=1)):
        edited = lens.run_with_hooks(
            texts[0], images=images[0], fwd_hooks=[("vision.blocks.0.attn.hook_pattern", note)]
        )
    assert float(tower["vision.blocks.0.attn.hook_pattern"][..., 1].max()) > 0
    assert not torch.equal(edited, lens(texts[0], images=images[0]))


def test_places_and_images_pair_up() -> None:
    lens = seeing("llava")
    with pytest.raises(InterpError, match="2 places for 1 image"):
        lens("<image> w1 <image>", images=picture())
    with pytest.raises(InterpError, match="0 places for 1 image"):
        lens("w1", images=picture())
    with pytest.raises(InterpError, match="1 place for 2 images"):
        lens("<image> w1", images=[picture(), picture()])
    with pytest.raises(InterpError, match="2 texts and images for 1"):
        lens(["<image> w1", "<image> w2"], images=[picture()])
    with pytest.raises(InterpError, match="tokens have none"):
        lens(torch.tensor([[4, 5]]), images=picture())
    with pytest.raises(InterpError, match="beside images"):
        lens("<image> w1", images=picture(), pixel_values=torch.zeros(1, 3, 56, 56))


def test_a_place_without_an_image_is_refused() -> None:
    """Everywhere: the embedding of an image token means nothing."""
    lens = seeing("llava")
    for read in (
        lambda: lens("<image> w1"), lambda: lens.generate("<image> w1"), lambda: lens.score("<image>", "w1"),
        lambda: lens.run_with_cache(["w1", "<image>"]), lambda: interp.probe(lens, "<image> w1 w2"),
        lambda: interp.patch(lens, "<image> w1", "w2 w1", "hook_resid_post", lambda logits: logits[0, -1, 0]),
    ):  # fmt: skip
        with pytest.raises(InterpError, match="place for an image, and none came"):
            read()
    assert lens.to_tokens("<image> w1").shape == (1, 3)


def test_a_loaded_model_takes_a_folder_for_its_processor(tmp_path: Any) -> None:
    model, processor = shared("llava")
    processor.save_pretrained(tmp_path)
    lens = interp.load(model, str(tmp_path))
    assert torch.equal(lens("<image> w1", images=picture()), seeing("llava")("<image> w1", images=picture()))


@pytest.mark.parametrize("name", ["gemma3", "paligemma", "qwen3_vl"])
@torch.no_grad()
def test_patterns_computed_later_know_what_images_see(name: str) -> None:
    """Of a cache without patterns they come from queries and keys, and image tokens may see each other both ways."""
    text, lens = ("<image> w1 w2" if name in ONE_PLACE else "w1 <image> w2"), seeing(name)
    _, later = lens.run_with_cache(text, images=picture())
    _, stored = lens.run_with_cache(text, images=picture(), names_filter=lambda point: point.endswith("hook_pattern"))
    for layer in range(lens.cfg.n_layers):
        torch.testing.assert_close(later["pattern", layer], stored["pattern", layer], atol=1e-5, rtol=1e-5)


def test_models_that_cannot_see_say_so() -> None:
    from tests.models import shared as text_model
    from tests.models import tokenizer

    with pytest.raises(InterpError, match="reads text and no images"):
        interp.Lens(text_model("llama"), tokenizer())("<image>", images=picture())
    blind = interp.Lens(shared("llava")[0], shared("llava")[1].tokenizer)
    with pytest.raises(InterpError, match=r"interp.load\(model, processor\)"):
        blind("<image> w1", images=picture())
    with pytest.raises(UnknownNameError, match="without the processor"):
        blind.run_with_cache("w1 w2", names_filter="vision.blocks.0.hook_resid_pre")


def test_windows_of_a_tower_are_one_row() -> None:
    lens = seeing("qwen2_5_vl")
    _, cached = lens.run_with_cache("<image> w1", images=picture(width=180, height=120))
    rows = cached["vision.blocks.0.hook_resid_pre"].shape[1]
    assert cached["vision.blocks.0.attn.hook_rot_k"].shape[1] == rows
    with pytest.raises(InterpError, match="pos_slice"):
        lens.run_with_cache("<image> w1", images=picture(width=180, height=120), pos_slice=-1)


def test_text_alone_fires_nothing_in_the_tower() -> None:
    with pytest.warns(UserWarning, match="did not fire"):
        seeing("llava").run_with_hooks(
            "w1 w2", fwd_hooks=[("vision.blocks.0.hook_resid_pre", lambda value, hook: None)]
        )


def test_images_of_any_kind_are_the_same_image(tmp_path: Any) -> None:
    lens, image = seeing("llava"), picture()
    image.save(tmp_path / "a.png")
    expected = lens("<image> w1", images=image)
    for same in (tmp_path / "a.png", str(tmp_path / "a.png"), np.asarray(image), [image], [[image]]):
        assert torch.equal(lens("<image> w1", images=same), expected)


@pytest.mark.parametrize(
    "name", ["llava", "llava_onevision", "idefics3", "smolvlm", "qwen2_5_vl", "internvl", "glm46v"]
)
def test_folders_bring_their_processor(name: str, tmp_path: Any) -> None:
    """Also where transformers alone cannot build it, for want of torchvision or of a package that spells numbers."""
    model, processor = shared(name)
    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    lens = interp.load(tmp_path)
    assert type(lens.model) is type(model)
    with torch.no_grad():
        assert torch.equal(lens("<image> w1", images=picture()), seeing(name)("<image> w1", images=picture()))


def test_a_processor_that_cannot_be_made_leaves_the_text(tmp_path: Any) -> None:
    model, processor = shared("llava")
    processor.tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text('{"processor_class": "LlavaProcessor"}')
    with pytest.warns(UserWarning, match="read as text alone"):
        lens = interp.load(tmp_path)
    assert lens("w1 w2").shape[:2] == (1, 3)
    with pytest.raises(InterpError, match="no processor here"):
        lens("<image>", images=picture())
