"""`interp.probe`: one pass for all probes, many texts, intervals, and its refusals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import xarray as xr

import interp
from interp.probes import Context, Fold, Probe, available, resolve
from interp.probes.text_sinks import TextSinks
from interp.results import provenance
from tests.models import shared, tokenizer, tokens


class NormFold(Fold):
    def __init__(self, n_layers: int, point: str) -> None:
        self.norms, self.point, self.embed = np.zeros(n_layers), point, 0

    def hooks(self) -> Mapping[str, Callable[[int, Any], None]]:
        return {self.point: self.see, "hook_embed": self.see_embed}

    def see(self, layer: int, resid: torch.Tensor) -> None:
        self.norms[layer] = float(resid.norm(dim=-1).mean())

    def see_embed(self, layer: int, value: torch.Tensor) -> None:
        assert layer == -1
        self.embed += 1

    def result(self) -> xr.Dataset:
        assert self.embed == 1, "one forward pass"
        norm = xr.DataArray(self.norms, dims="layer", attrs={"units": "1", "description": "mean norm"})
        return xr.Dataset({"norm": norm, "token_id": ("token", np.arange(3))}, attrs={"title": "norms"})


@dataclass(frozen=True)
class Norms(Probe):
    """A probe that a user might write: nothing but this class."""

    name: ClassVar[str] = "norms"
    point: str = "hook_resid_post"

    def begin(self, context: Context) -> NormFold:
        assert context.n_tokens == len(context.str_tokens)
        return NormFold(context.cfg.n_layers, self.point)


@dataclass(frozen=True)
class Others(Norms):
    name: ClassVar[str] = "others"


@pytest.fixture
def lens() -> interp.Lens:
    return interp.load(shared("llama"), tokenizer())


def norms(lens: interp.Lens, ids: torch.Tensor) -> np.ndarray:
    _, cache = lens.run_with_cache(ids)
    return np.array([float(cache["resid_post", i].norm(dim=-1).mean()) for i in range(lens.cfg.n_layers)])


@torch.no_grad()
def test_one_text_one_pass_for_all_probes(lens: interp.Lens) -> None:
    calls: list[int] = []
    with lens.hooks(fwd_hooks=[("hook_embed", lambda x, hook: calls.append(1))]):
        found = interp.probe(lens, "w5 w6 w7 w8", [Norms(), Others()])
    assert list(found) == ["norms", "others"]
    assert calls == [1]
    np.testing.assert_allclose(found["norms"].norm, norms(lens, lens.to_tokens("w5 w6 w7 w8")), rtol=1e-5)
    assert found["norms"].attrs["n_tokens"] == lens.to_tokens("w5 w6 w7 w8").shape[1]
    assert found["norms"].attrs["architecture"] == "LlamaForCausalLM"


@torch.no_grad()
def test_many_texts_are_read_alone_and_summarised(lens: interp.Lens) -> None:
    texts = ["w5 w6 w7", "w8 w9", "w10 w11 w12 w13 w14", "w4"]
    found = interp.probe(lens, texts, Norms())["norms"]
    assert found.sizes["text"] == 4
    for i, text in enumerate(texts):
        np.testing.assert_allclose(found.norm[i], norms(lens, lens.to_tokens(text)), rtol=1e-5)
    np.testing.assert_allclose(found.norm_mean, found.norm.mean("text"))
    assert (found.norm_low <= found.norm_mean).all()
    assert (found.norm_mean <= found.norm_high).all()
    assert (found.norm_low < found.norm_high).all()
    assert (found.norm_low >= found.norm.min("text") - 1e-9).all()
    assert "token_id_mean" not in found


@torch.no_grad()
def test_a_batch_of_tokens_is_as_many_texts(lens: interp.Lens) -> None:
    ids = tokens()
    found = interp.probe(lens, ids, Norms())["norms"]
    np.testing.assert_allclose(found.norm[1], norms(lens, ids[1:]), rtol=1e-5)
    single = interp.probe(lens, ids[0], Norms())["norms"]
    assert "text" not in single.dims


def test_progress_counts_layers_and_texts(lens: interp.Lens) -> None:
    seen: list[tuple[int, int]] = []
    interp.probe(lens, tokens(), Norms(), progress=lambda done, of: seen.append((done, of)))
    assert seen == [(i + 1, 6) for i in range(6)]


def test_truncation(lens: interp.Lens) -> None:
    found = interp.probe(lens, "w5 w6 w7 w8 w9", Norms(), tokens=3)["norms"]
    assert found.attrs["n_tokens"] == 3


def test_refusals(lens: interp.Lens) -> None:
    for call, says in (
        (lambda: interp.probe(lens, "w5", "chanel_imbalance"), "did you mean 'channel_imbalance'"),
        (lambda: interp.probe(lens, "w5", [Norms(), Norms(point="hook_resid_pre")]), "norms is asked for twice"),
        (lambda: interp.probe(lens, "w5", []), "no probe was asked for"),
        (lambda: interp.probe(lens, [], Norms()), "no text"),
        (lambda: interp.probe(lens, "", Norms()), "no tokens|no text"),
        (lambda: interp.probe(lens, "w5", Norms(), tokens=0), "at least 1"),
        (lambda: interp.probe(lens, tokens(batch=1, length=600), Norms()), "exceed the context"),
        (lambda: interp.probe(lens, "w5", Norms(point="attn.hook_nothing")), "which this probe needs"),
    ):
        with pytest.raises(interp.InterpError, match=says):
            call()


def test_names_take_settings(lens: interp.Lens) -> None:
    """In a list, alone, and beside objects; the same numbers as an object gives."""
    (wanted,) = interp.probe(lens, "w5 w6 w7", TextSinks(epsilon=(0.3, 0.8), position=1)).values()
    found = interp.probe(lens, "w5 w6 w7", ["text_sinks:position=1,epsilon=[0.3,0.8]", Norms()])
    assert list(found) == ["text_sinks", "norms"]
    xr.testing.assert_equal(found["text_sinks"], wanted)
    assert resolve("text_sinks:epsilon=0.25") == [TextSinks(epsilon=0.25)] == [TextSinks(epsilon=[0.25])]
    assert resolve("text_sinks:epsilon=0.3") == resolve("text_sinks") == [TextSinks()]
    assert hash(TextSinks(epsilon=[0.25])) == hash(TextSinks(epsilon=(0.25,)))
    for asked, says in (
        ("text_sinks:epsilon=2", "between 0 and 1"),
        ("text_sinks:k=1", "text_sinks has no setting 'k'; did you mean"),
        ("text_sink:epsilon=0.3", "did you mean 'text_sinks'"),
        ("text_sinks,attention_rank", "there is no probe 'text_sinks,attention_rank'"),
        (3, "there is no probe 3; did you mean"),
    ):
        with pytest.raises(interp.InterpError, match=says):
            resolve([asked])


def test_every_probe_of_the_library_is_found() -> None:
    assert set(available()) >= {"channel_imbalance", "attention_rank", "text_sinks", "logit_lens"}
    assert [p.name for p in resolve(None)] == sorted(available())


@torch.no_grad()
def test_models_are_compared_by_name(lens: interp.Lens) -> None:
    """Models of different depth side by side; what one has and the other lacks is named."""
    one = interp.probe(lens, tokens()[0], Norms())["norms"]
    other = interp.probe(interp.load(shared("gpt2")), tokens()[0], Norms())["norms"].isel(layer=slice(0, 2))
    other = other.assign(extra=("layer", [1.0, 2.0]))
    both = interp.compare({"llama": one, "gpt2": other})
    assert both.norm.sel(model="gpt2").isnull().sum() == 1
    np.testing.assert_allclose(both.norm.sel(model="llama"), one.norm)
    assert both.attrs["left_out"] == "extra"
    with pytest.raises(interp.InterpError, match="at least two"):
        interp.compare({"llama": one})
    with pytest.raises(interp.InterpError, match="different probes"):
        interp.compare({"llama": one, "gpt2": other.assign_attrs(title="something else")})


@torch.no_grad()
def test_results_say_where_they_come_from(lens: interp.Lens) -> None:
    ids = lens.to_tokens("w5 w6 w7 w8")
    attrs = interp.probe(lens, "w5 w6 w7 w8", Norms())["norms"].attrs
    assert set(provenance.provenance()) <= set(attrs)
    assert attrs["special_tokens"] == "[0]"
    assert attrs["tokens_sha256"] == hashlib.sha256(ids[0].numpy().astype("<i8").tobytes()).hexdigest()
    assert all(type(value) in (str, int, float) for value in attrs.values())
    bare = interp.probe(interp.load(shared("llama")), ids[0], Norms())["norms"].attrs
    assert bare["special_tokens"] == "none"
    assert bare["tokens_sha256"] == attrs["tokens_sha256"]


@torch.no_grad()
def test_results_name_the_edits_in_force(lens: interp.Lens) -> None:
    """Of models compared, those that were not edited do not take the name over."""
    plain = interp.probe(lens, tokens(), "attention_rank")["attention_rank"]
    edit = interp.KnockOut(keys=[0, 2], strength=0.5) | interp.SinkRemoval(sinks="first")
    with lens.apply(edit):
        edited = interp.probe(lens, tokens(), "attention_rank")["attention_rank"]
    assert json.loads(plain.attrs["interventions"]) == []
    told = json.loads(edited.attrs["interventions"])
    assert [one["name"] for one in told] == ["knock_out", "sink_removal"]
    assert told[0]["keys"] == [0, 2]
    assert not plain.equals(edited)
    both = interp.compare({"plain": plain, "edited": edited})
    assert "interventions" not in both.attrs


@torch.no_grad()
def test_provenance_is_taken_once(lens: interp.Lens, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(provenance, "provenance", lambda device: taken.append(1) or {"device": str(device)})
    found = interp.probe(lens, tokens(), [Norms(), Others()])
    assert taken == [1]
    assert found["others"].attrs["device"] == "cpu"


@torch.no_grad()
def test_padding_is_cut_away_by_the_mask(lens: interp.Lens) -> None:
    real = [tokens(1, n)[0] for n in (6, 4, 3)]
    ids, mask = torch.full((3, 6), 2), torch.zeros(3, 6, dtype=torch.long)
    for row, start in ((0, 0), (1, 0), (2, 3)):  # full, padded on the right, padded on the left
        ids[row, start : start + len(real[row])] = real[row]
        mask[row, start : start + len(real[row])] = 1
    found = interp.probe(lens, ids, Norms(), attention_mask=mask)["norms"]
    for i, row in enumerate(real):
        np.testing.assert_allclose(found.norm[i], norms(lens, row[None]), rtol=1e-5)
    assert found.n_tokens.values.tolist() == [6, 4, 3]
    first = interp.probe(lens, ids[2], Norms(), attention_mask=mask[2].bool(), tokens=2)["norms"]
    np.testing.assert_allclose(first.norm, norms(lens, real[2][None, :2]), rtol=1e-5)
    unmasked = interp.probe(lens, ids, Norms())["norms"]
    assert unmasked.attrs["n_tokens"] == 6, "without a mask every token is read"


def test_refused_masks(lens: interp.Lens) -> None:
    ids = tokens(2, 4)
    for inputs, mask, says in (
        (ids, torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1]]), "hole in row 1"),
        (ids, torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]), "leaves nothing of row 0"),
        (ids, torch.ones(2, 3), r"shape \(2, 3\) and the tokens have \(2, 4\)"),
        ("w5 w6", torch.ones(1, 3), "goes with tokens"),
    ):
        with pytest.raises(interp.InterpError, match=says):
            interp.probe(lens, inputs, Norms(), attention_mask=mask)


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (None, "not NoneType"),
        (5, "not int"),
        (b"w5", "not bytes"),
        ({"words": [5]}, "not dict"),
        ((word for word in ("w5", "w6")), "not generator"),
        ({"w5", "w6"}, "not set"),
        (["w5", None], "not a list that holds NoneType"),
    ],
)
def test_other_inputs_are_refused(lens: interp.Lens, inputs: Any, says: str) -> None:
    with pytest.raises(interp.InterpError, match=f"reads a text, a list of texts, or an integer tensor.*{says}"):
        interp.probe(lens, inputs, Norms())


def test_missing_points_are_refused_with_the_reason(lens: interp.Lens) -> None:
    parallel = interp.load(shared("gpt_neox"), tokenizer())
    with pytest.raises(interp.UnknownNameError, match=r"no hook point 'hook_resid_mid'.*\(norms\): .*parallel block"):
        interp.probe(parallel, "w5", Norms(point="hook_resid_mid"))
    with pytest.raises(interp.UnknownNameError, match="nearest is 'hook_resid_post'"):
        interp.probe(lens, "w5", Norms(point="hook_resid_pots"))
    del lens.hook_dict["blocks.1.hook_mlp_out"]
    lens.absent["blocks.1.hook_mlp_out"] = "it could not be identified"
    with pytest.raises(
        interp.InterpError, match=r"no blocks\.1\.hook_mlp_out, which norms needs in every layer: it could not be"
    ):
        interp.probe(lens, "w5", Norms(point="hook_mlp_out"))
