"""What holds for every attention edit: composing, restoring, text and settings, and errors that say what is wrong."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
import transformers as hf
from interp_kernels import visual_redistribution

import interp
from interp import H2OPrefill, InterpError, KnockOut, interventions
from interp.interventions import PatternEdit
from interp.interventions.edits.base import NewTokens
from tests.interventions.edited_by_hand import by_hand, in_pieces, knocked_out, one_sentence
from tests.interventions.live_cache import close, left_padded
from tests.models import GROUPED, shared, tiny, tokens


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("name", ["llama", "gpt_oss"])
def test_edits_that_meet_act_one_after_the_other(name: str) -> None:
    """Factors multiply, and each edit renormalises what the one before it left."""
    lens, ids = interp.load(shared(name)), tokens(length=10)
    first, second = {"keys": [0, 2], "heads": [0, 1]}, {"keys": [2, 3], "heads": [1, 2], "strength": 0.5}
    third = {"keys": [1], "renormalise": False, "layers": [1], "queries": [4, 5, 6]}
    edits = [knocked_out(**one) for one in (first, second, third)]

    def one_after_the_other(layer: int, pattern: torch.Tensor) -> torch.Tensor:
        for edit in edits:
            pattern = edit(layer, pattern)
        return pattern

    wanted = by_hand(lens, ids, one_after_the_other)
    with lens.apply(KnockOut(**first) | KnockOut(**second) | KnockOut(**third)):
        close(in_pieces(lens, ids, (6, 3, 1)), wanted, 1e-4)


def test_two_that_remove_are_one_that_removes_both() -> None:
    lens, ids = interp.load(shared("llama")), tokens()
    with lens.apply(KnockOut(keys=[0, 3])):
        wanted = lens(ids)
    with lens.apply(KnockOut(keys=0) | KnockOut(keys=3)):
        close(lens(ids), wanted)


def test_more_groups_than_are_told_apart() -> None:
    """Seven edits with a token each make eight groups; an eighth one is refused, unless it acts elsewhere."""
    lens, ids = interp.load(shared("llama")), tokens()
    many: Any = KnockOut(keys=0, layers=1)
    for key in range(1, 7):
        many = many | KnockOut(keys=key, layers=1)
    with lens.apply(many | KnockOut(keys=7, layers=2)):
        found = lens(ids)
    with lens.apply(KnockOut(keys=range(7), layers=1) | KnockOut(keys=7, layers=2)):
        close(found, lens(ids))
    with pytest.raises(InterpError, match="9 groups") as told, lens.apply(many | KnockOut(keys=7, layers=1)):
        lens(ids)
    one_sentence(told.value)


@dataclass(frozen=True)
class ToTheImage(PatternEdit):
    """A stand-in for redistribution to image tokens: groups from ids and the residual stream, rows after the image."""

    name: ClassVar[str] = "to_the_image"
    group_count: ClassVar[int] = 4
    reads_residual = True

    def groups(self, text: NewTokens) -> torch.Tensor:
        new = slice(-text.new, None)
        image = text.ids[:, new] < 60
        sink = loud(text.residual)
        return torch.where(image, torch.where(sink, 1, 2), torch.where(sink, 0, 3))

    def rows(self, text: NewTokens) -> torch.Tensor:
        image = (text.ids < 60) & (text.positions >= 0)
        return (image.cumsum(-1) > 0)[:, -text.new :] & ~image[:, -text.new :]

    def factors(self, masses: torch.Tensor) -> torch.Tensor:
        return visual_redistribution(0.5, 0.2, 0.1)(masses)


def loud(residual: torch.Tensor) -> torch.Tensor:
    return residual.abs().amax(-1) > 0.33 * residual.norm(dim=-1)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "phi"])
def test_groups_from_ids_and_residual_stream_and_a_rule_of_the_masses(name: str) -> None:
    """The family's other members need no more than a file: four groups, their masses decide, in pieces as in one."""
    lens, (ids, mask) = interp.load(shared(name)), left_padded(16, 5)
    ids = torch.where((torch.arange(16) > 5) & (torch.arange(16) < 10), ids % 50 + 4, ids % 50 + 60)
    streams = [f"blocks.{layer}.hook_resid_pre" for layer in range(3)]
    real, seen = mask.bool(), {}

    def edit(layer: int, pattern: torch.Tensor) -> torch.Tensor:
        image, sink = (ids < 60) & real, loud(seen[layer]) & real
        members = [~image & sink, image & sink, image & ~sink, ~image & ~sink]
        masses = [(pattern * m[:, None, None]).sum(-1, keepdim=True) for m in members]
        t, v, n, _ = masses
        chosen = (v + n >= 0.1) & (n >= 0.2 * (v + n)) & (n > 0) & (v > 0).flatten(1).any(1)[:, None, None, None]
        chosen = chosen & ((image.cumsum(-1) > 0) & ~image)[:, None, :, None]
        moved = 0.5 * (t + v)
        factor = torch.where(sink[:, None, None], 0.5, torch.where(members[2][:, None, None], 1 + moved / n, 1.0))
        return torch.where(chosen, pattern * factor.nan_to_num(), pattern)

    keep = [(point, lambda x, hook: seen.update({int(hook.name.split(".")[1]): x})) for point in streams]
    with lens.hooks(fwd_hooks=keep):
        wanted = by_hand(lens, ids, edit, attention_mask=mask)
    with lens.apply(ToTheImage()):
        close(lens(ids, attention_mask=mask)[real], wanted[real], 1e-4)
        close(in_pieces(lens, ids, (10, 3, 1, 2), mask)[real], wanted[real], 1e-4)
    assert (lens(ids, attention_mask=mask) - wanted)[real].abs().max() > 0.001


def error_of(call: Any) -> str:
    """What a call under KnockOut raises, in one sentence."""
    with pytest.raises(InterpError) as told:
        call()
    return one_sentence(told.value)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"keys": []}, "keys should be distinct numbers counted from 0, found []"),
        ({"keys": [-1]}, "keys should be distinct numbers counted from 0, found [-1]"),
        ({"keys": [1, 1]}, "keys should be distinct numbers"),
        ({"keys": ["a"]}, "keys should be a whole number or a list of whole numbers"),
        ({"layers": -1}, "layers should be distinct numbers counted from 0, found [-1]"),
        ({"strength": 1.5}, "strength should be 0 to 1, found 1.5"),
        ({"strength": float("nan")}, "strength should be a finite number"),
        ({"renormalise": 1}, "renormalise should be true or false"),
    ],
)
def test_a_bad_setting_is_told_when_it_is_made(asked: dict[str, Any], says: str) -> None:
    assert says in error_of(lambda: KnockOut(**asked))


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"layers": [0, 3]}, "LlamaForCausalLM has layers 0 to 2, found 3"),
        ({"heads": [8, 9]}, "LlamaForCausalLM has heads 0 to 7, found 8, 9"),
        ({"keys": [3, 512]}, "keys 512 would lie beyond 512 tokens, the context of LlamaForCausalLM"),
        ({"queries": [600]}, "queries 600 would lie beyond 512 tokens"),
    ],
)
def test_what_the_model_does_not_have_is_told_before_it_runs(asked: dict[str, Any], says: str) -> None:
    lens = interp.load(shared("llama"))
    with lens.model.register_forward_pre_hook(lambda *_: pytest.fail("the model ran")):
        assert says in error_of(lambda: lens.apply(KnockOut(**asked)).__enter__())
    assert torch.equal(lens(tokens()), lens.model(tokens()).logits)  # and nothing is in force


def test_an_edit_that_did_nothing_says_so() -> None:
    lens, ids = interp.load(shared("llama")), tokens(length=12)
    with pytest.warns(UserWarning, match="the model did not run inside apply"), lens.apply(KnockOut()):
        pass
    for edit, says in (
        (KnockOut(keys=20), "knock_out changed nothing: keys 20 would lie beyond 12 tokens"),
        (KnockOut(keys=[1, 20]), "keys 20 would lie beyond 12 tokens, the longest text that it met"),
        (KnockOut(keys=5, queries=3), "changed nothing: no row that it edits paid attention to its keys"),
    ):
        with pytest.warns(UserWarning, match=says), lens.apply(edit):
            lens(ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for edit in (KnockOut(), KnockOut(strength=0.0), KnockOut(keys=14)):
            with lens.apply(edit):
                lens.generate(ids, max_new_tokens=6, eos_token_id=None)


def test_a_text_is_as_long_as_it_is_without_its_padding() -> None:
    lens, (ids, mask) = interp.load(shared("llama")), left_padded(16, 5)
    says = "keys 12 would lie beyond 11 tokens, the longest text that it met"
    with pytest.warns(UserWarning, match=says), lens.apply(KnockOut(keys=[0, 12])):
        lens(ids[1:], attention_mask=mask[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with lens.apply(KnockOut(keys=[0, 12])):
            lens(ids, attention_mask=mask)


def test_several_texts_in_a_row_are_refused() -> None:
    """Each has a first token of its own, and an edit would see that of the row alone."""
    lens, (ids, mask) = interp.load(shared("llama")), left_padded(12, 5)
    packed = torch.cat([torch.arange(5), torch.arange(7)])[None]
    with lens.apply(KnockOut()):
        assert "give each text a row of its own" in error_of(lambda: lens(ids[:1], position_ids=packed))
        lens(ids[:1], position_ids=torch.arange(3, 15)[None])
        lens(ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).masked_fill(mask == 0, 1))


def test_the_warning_names_the_line_of_the_block() -> None:
    lens = interp.load(shared("llama"))
    with pytest.warns(UserWarning, match="did not run") as caught, lens.apply(KnockOut()):
        pass
    assert caught[0].filename == __file__


def test_what_does_not_go_together() -> None:
    lens, ids = interp.load(shared("llama")), tokens(length=12)
    lens(ids, use_cache=True)
    plain, theirs = lens.last_cache, hf.DynamicCache(config=lens.model.config)
    mask = torch.zeros(2, 1, 12, 12).masked_fill(torch.ones(12, 12).triu(1).bool(), torch.finfo(torch.float32).min)
    with lens.apply(KnockOut()):
        lens(ids, use_cache=True)
        mine = lens.last_cache
        for cache in (plain, theirs):
            assert "start a new one inside the block" in error_of(
                lambda cache=cache: lens(ids[:, :1], past_key_values=cache, use_cache=True)
            )
        assert "put them together with |" in error_of(lambda: lens.apply(KnockOut(2)).__enter__())
        assert "prepared attention mask" in error_of(lambda: lens(ids, attention_mask=mask))
        lens(ids)
    lens(ids[:, :1], past_key_values=mine, use_cache=True)  # after the block the text goes on unedited ...
    with pytest.warns(UserWarning, match="did not run"), lens.apply(KnockOut()):  # ... and cannot come back
        assert "1 were read without the attention edits" in error_of(
            lambda: lens(ids[:, :1], past_key_values=mine, use_cache=True)
        )
    assert "there is none among the interventions" in error_of(lambda: lens.apply(KnockOut(), ledger=True).__enter__())
    assert "knock_out edits attention and drops nothing" in error_of(
        lambda: interp.explain(lens, KnockOut() | H2OPrefill(0.5), ids[:1], ids[:1, :4])
    )


def test_attention_that_the_kernel_does_not_know_is_refused() -> None:
    """A bias on the scores, as ALiBi has, and dropout; hooks on the pattern do not get around it."""
    model = tiny("llama")
    lens, ids = interp.load(model), tokens()
    layer = lens.anatomy.blocks[1].attention

    def biased(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {"position_bias": torch.zeros(1, 8, 12, 12)}

    look = [("blocks.1.attn.hook_pattern", lambda value, hook: None)]
    with layer.register_forward_pre_hook(biased, with_kwargs=True), lens.apply(KnockOut()):
        assert "knock_out cannot act here: LlamaAttention passes position_bias" in error_of(lambda: lens(ids))
        assert "position_bias" in error_of(lambda: lens.run_with_hooks(ids, fwd_hooks=look))
    with layer.register_forward_pre_hook(biased, with_kwargs=True), lens.apply(KnockOut(layers=[0, 2])):
        lens(ids)
    layer.train()
    layer.attention_dropout = 0.1
    with lens.apply(KnockOut()):
        assert "put the model into eval mode" in error_of(lambda: lens(ids))


def test_latent_attention_is_edited_too() -> None:
    sizes = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
    config = {**GROUPED, "num_key_value_heads": 8, "first_k_dense_replace": 3, **sizes}
    torch.manual_seed(0)
    lens, ids = interp.load(hf.DeepseekV3ForCausalLM(hf.DeepseekV3Config(**config)).eval()), tokens(length=10)
    wanted = by_hand(lens, ids, knocked_out([0, 2], heads=[1, 3]))
    with lens.apply(KnockOut(keys=[0, 2], heads=[1, 3])):
        close(in_pieces(lens, ids, (6, 3, 1)), wanted, 1e-4)


def test_settings_as_text(tmp_path: Any) -> None:
    edit = interventions.parse("knock_out:keys=[0,3],layers=2,heads=[1,4],strength=0.5,renormalise=false")
    assert edit == KnockOut(keys=(0, 3), layers=2, heads=[1, 4], strength=0.5, renormalise=False)
    assert interventions.parse("knock_out:keys=0") == KnockOut(keys=[0]) == KnockOut(keys=range(1)) == KnockOut()
    assert eval(repr(edit)) == edit
    assert hash(edit) == hash(interventions.load(interventions.save(edit, tmp_path / "edit.toml")))
    both = interventions.parse_all(["knock_out:keys=0", "h2o_prefill:budget=0.5"])
    assert both == KnockOut() | H2OPrefill(budget=0.5)
