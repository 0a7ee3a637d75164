"""`make coverage`: what its rows come to, that the page says no more than they do, and how models are made small."""

from __future__ import annotations

import pytest

from benchmarks.coverage import kinds, page
from benchmarks.coverage.build import build
from benchmarks.coverage.exceptions import EXCEPTIONS, VARIANTS
from benchmarks.coverage.judge import SOUND, judge, worse
from benchmarks.coverage.measure import measure, outcome
from benchmarks.coverage.sizes import VOCAB, Shrinking
from docs.sections import sections
from interp.errors import InterpError

SOUND_ROW = {"built": "ok", "runs": "ok", "loads": "ok", "done": "ok", "logits": "ok", "pattern": "ok 3e-07"}


@pytest.mark.parametrize(("found", "verdict", "about"), [
    ({}, "full", ""),
    ({"needs_eager": "yes"}, "full", "with eager attention"),
    ({"pattern": "WRONG 0.2"}, "wrong", "pattern"),
    ({"pattern": "WRONG 0.2", "logits": "crashed: KeyError"}, "wrong", "pattern"),
    ({"logits": "crashed: KeyError: 'x' @ lens/lens.py:3"}, "crashed", "logits"),
    ({"think": "refused: think cannot act on the latent attention of X: its keys are"}, "partial", "latent attention"),
    ({"think": "idle: think dropped nothing: the prompt"}, "partial", "policies have no layer to act on"),
    ({"absent": "hook_mlp_out: what the MLP adds to the residual stream is unknown: because"}, "partial",
     "parts of the residual stream unknown"),
    ({"pattern": "unknown: the model reports weights of something else"}, "partial",
     "patterns not compared: the model reports none of what it computes"),
    ({"think": "refused: X is an encoder-decoder model, which caches the encoder's keys"}, "partial",
     "no cache policies on encoder-decoders"),
    ({"loads": "crashed: KeyError"}, "crashed", "while loading"),
    ({"built": "failed: ValueError: no"}, "not built", ""),
    ({"done": "", "think": "no answer", "end": "stopped after 90 s"}, "crashed", "at think"),
    ({"runs": "failed: TypeError"}, "crashed", "loads what does not run"),
])  # fmt: skip
def test_what_a_row_comes_to(found: dict[str, str], verdict: str, about: str) -> None:
    told = judge(SOUND_ROW | found)
    assert (told.verdict, told.group) == (verdict, about)


def test_a_process_that_said_nothing_is_no_model_that_was_not_built() -> None:
    assert judge({"end": "ended with status 1"}).verdict == "crashed"


def test_what_a_run_may_not_find() -> None:
    def row(kind: str, verdict: str) -> dict[str, str]:
        return {"family": "causal", "kind": kind, "verdict": verdict, "reason": "because"}

    before = {("causal", kind): row(kind, "full") for kind in "abc"} | {("causal", "d"): row("d", "partial")}
    now = [row("a", "full"), row("b", "partial"), row("c", "wrong"), row("d", "refused"), row("e", "crashed")]
    assert [text.split()[0] for text in worse(now, before)] == ["causal:b", "causal:c", "causal:e"]


def refuses() -> float:
    raise InterpError("no, in one sentence.")


@pytest.mark.parametrize(("check", "cell"), [
    (lambda: 0.0, "ok"), (lambda: 3e-7, "ok 3e-07"), (lambda: 0.2, "WRONG 0.2"), (lambda: float("nan"), "WRONG nan"),
    (lambda: float("inf"), "WRONG inf"), (refuses, "refused: no, in one sentence."),
])  # fmt: skip
def test_what_a_check_comes_to(check: object, cell: str) -> None:
    assert outcome(check) == cell  # type: ignore[arg-type]


def test_a_type_is_measured() -> None:
    row: dict[str, str] = {}
    measure("causal", "qwen2", lambda name, cell: row.update({name: cell}))
    assert judge(row).verdict == "full"
    assert "no answer" not in row.values()
    assert row["pattern"].startswith("ok")
    assert {"logits_padded_hooked", "column_mass", "values", "residual", "readout", "d2o", "h2o_keeps_all"} <= set(row)


def test_the_page_says_what_the_rows_say() -> None:
    assert sections(page.PAGE.read_text(encoding="utf-8")) == sections(page.page()), "run python -m docs.write"


def test_every_type_has_a_row_and_none_is_wrong() -> None:
    """Of the release that was measured; another may have other types."""
    rows = page.rows()
    assert len({(row["family"], row["kind"]) for row in rows}) == len(rows) > 250
    assert [row["kind"] for row in rows if row["verdict"] not in SOUND] == []
    full = {f"{row['family']}:{row['kind']}" for row in rows if row["verdict"] == "full"}
    assert len(full & set(kinds.quick())) > 30


def test_sizes_are_made_small_by_their_names() -> None:
    given = {
        "model_type": "x", "vocab_size": 32000, "hidden_size": 4096, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": None, "num_hidden_layers": 48, "eos_token_id": 31999,
        "layer_types": ["a", *["b"] * 46, "c"], "attn_layer_indices": [0, 47], "rms_norm_eps": 1e-6, "tie": True,
        "vision_config": {"model_type": "v", "hidden_size": 1152, "depth": 27, "image_token_id": 31999},
    }  # fmt: skip
    small = Shrinking({"vision_config.depth": 1, "extra": 5}).small(given)
    assert small["vocab_size"] == VOCAB
    assert (small["num_attention_heads"], small["num_key_value_heads"], small["head_dim"]) == (4, 2, 16)
    assert small["layer_types"] == ["a", "b", "c"]
    assert (small["num_hidden_layers"], small["attn_layer_indices"]) == (3, [0, 2])
    assert small["vision_config"]["depth"] == 1
    assert small["vision_config"]["image_token_id"] == small["eos_token_id"] < VOCAB
    assert (small["rms_norm_eps"], small["tie"], small["extra"]) == (1e-6, True, 5)
    assert "model_type" not in small


def test_exceptions_are_of_types_that_there_are() -> None:
    known = {kind for names, _, _ in kinds.FAMILIES.values() for kind in names}
    unknown = {kind.partition("@")[0] for kind in (*EXCEPTIONS, *VARIANTS)} - known
    assert not unknown, f"no type is called so: {sorted(unknown)}"
    assert kinds.targets(["llama", "vl:gemma3"]) == ["causal:llama", "vl:gemma3"]


@pytest.mark.parametrize("kind", ["llama@yarn", "falcon@new"])
def test_variants_are_built(kind: str) -> None:
    assert sum(parameter.numel() for parameter in build("variant", kind).parameters()) < 1_000_000
