"""The files that CONTRIBUTING.md shows are found, work on a tiny model, and are documented: in a copy of the tree."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEMPLATES = dict(
    re.findall(
        r'^```python title="([^"]+)"\n(.*?)^```$',
        (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )
)

CHECKS = """
import contextlib, doctest, importlib, json, sys, tempfile, traceback
import torch
from transformers import LlamaConfig, LlamaForCausalLM
import interp, interp_kernels
from interp import explaining, figures, icl
from docs import api_pages, write_interventions, write_probes, write_tasks

torch.manual_seed(0)
shape = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
lens = interp.load(LlamaForCausalLM(LlamaConfig(vocab_size=64, num_hidden_layers=2, **shape)).eval())
tokens = torch.randint(4, 64, (1, 40))


def probe():
    result = interp.probe(lens, tokens[0], ["key_size"])["key_size"]
    _, cache = lens.run_with_cache(tokens)
    expected = cache["rot_k", 1][0].norm(dim=-1).mean(0)
    torch.testing.assert_close(torch.as_tensor(result.key_norm.sel(layer=1).values), expected)
    assert interp.probes.resolve("key_size")[0].findings(result)[0].startswith("Keys are largest in layer")
    assert "key_size" in write_probes.page()


def figure():
    drawn = figures.key_size(interp.probe(lens, tokens[0], ["key_size"])["key_size"])
    assert figures.figures_of("key_size") and len(drawn.data[0].x) == 2


def policy():
    assert interp.interventions.parse("loud_values:budget=0.5") == interp.LoudValues(budget=0.5)
    _, cache = lens.run_with_cache(tokens)
    with lens.apply(interp.LoudValues(budget=10, recent=2) | interp.ThinK(ratio=0.5, window=8, recent=4)):
        lens.generate(tokens, max_new_tokens=3)
    assert set(lens.last_cache.report().kept) == {12}
    with lens.apply(interp.LoudValues(budget=10, recent=2), ledger=True):
        lens.generate(tokens, max_new_tokens=2)
    size = cache["v", 0][0, :, 1].norm(dim=-1)
    loudest = size[:38].argsort(descending=True)[:8].tolist()
    lost = next(e for e in lens.last_cache.keeper.ledger if e.layer == 0).evicted[0, 1].tolist()
    assert set(lost) == set(range(38)) - set(loudest)
    why = interp.explain(lens, interp.LoudValues(budget=10), tokens[:, :30], tokens[:, 30:], ["perturbation"])
    assert explaining.findings(why)
    assert "loud_values" in write_interventions.page()


def channel_policy():
    _, cache = lens.run_with_cache(tokens)
    with lens.apply(interp.StillChannels(ratio=0.5, recent=4)):
        lens.generate(tokens, max_new_tokens=2)
    spread = cache["rot_k", 0][0, :36, 1].var(0)  # [channel], of one head's tokens but the recent ones
    (packed,) = [s for s in lens.last_cache.layers[0].segments if s.channels is not None]
    assert sorted(packed.channels[0, 1].tolist()) == sorted(spread.argsort(descending=True)[:4].tolist())
    why = interp.explain(lens, interp.StillChannels(ratio=0.5), tokens[:, :30], tokens[:, 30:], "attribution")
    assert why["attribution"].attrs["own_score"] == "not recorded"
    with lens.apply(interp.StillChannels(ratio=0.0)):
        left = lens.generate(tokens, max_new_tokens=4)
    assert torch.equal(left, lens.generate(tokens, max_new_tokens=4))


def edit():
    muted = int(tokens[0, 5])
    with lens.apply(interp.MuteWords(ids=muted)):
        _, cache = lens.run_with_cache(tokens, names_filter=lambda name: name.endswith("hook_pattern"))
    pattern = cache["pattern", 1]
    assert float(pattern[..., tokens[0] == muted].sum(-1)[..., 6:].max()) == 0
    torch.testing.assert_close(pattern.sum(-1), torch.ones(1, 4, 40))
    with lens.apply(interp.MuteWords(ids=muted, strength=0.0)):
        idle = lens(tokens)
    assert torch.equal(idle, lens(tokens))


def logit_edit():
    with lens.apply(interp.Fade(nats=2.0, block=4, layers=1)):
        _, cache = lens.run_with_cache(tokens, names_filter="blocks.1.attn.hook_pattern")
    _, plain = lens.run_with_cache(tokens, names_filter="blocks.1.attn.hook_attn_scores")
    taken = 2.0 * (1 - torch.arange(40).div(4, rounding_mode="floor").clamp(max=4) / 4)
    torch.testing.assert_close(cache["pattern", 1], (plain["attn_scores", 1] - taken).softmax(-1), atol=1e-5, rtol=1e-4)


def kernel():
    from interp_kernels import channel_peak, operations
    x = torch.randn(2, 3, 63, 7)
    mask = torch.ones(2, 63, dtype=torch.bool)
    mask[0, :20] = False
    for path in ("reference", "cpu"):
        with interp_kernels.use(path):
            assert torch.equal(channel_peak(x, mask)[0], x[0, :, 20:].abs().amax(1))
    (example,) = operations.examples("channel_peak", operations.Draw(torch.float32), 7)
    assert example.operation(*example.arguments).shape == (2, 3, 16)
    assert "channel_peak" in [entry.label for entry in api_pages.kernels()]


def study():
    made = icl.studies.make("one-step", quick=True)
    with tempfile.TemporaryDirectory() as folder:
        result = made.run(folder)
    assert all(row.verdict == "not measured (quick)" for row in made.verdicts(result))
    assert all(abs(row.ours / float(law) - 1) < 0.1 for row, law in zip(made.verdicts(result), result.law))
    assert made.figures(result)[0].figure.data


def task():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["<eos>", "<unk>", *(f"w{n}" for n in range(62))])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    reader = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<eos>", unk_token="<unk>")
    result = interp.evaluate(interp.load(lens.model, reader), "opposites:pairs=3", items=4)
    assert result.sizes["item"] == 4 and not result["correct"].any()
    right = result.assign(correct=("item", [1.0, 1.0, 0.0, 1.0]))
    assert interp.tasks.summary(right).estimate[0] == 0.75
    item = interp.tasks.made("opposites").items(0)[0]
    assert interp.tasks.made("opposites").judge(item, f"{item.expected[0].upper()}.") == {"correct": 1.0}
    assert "opposites" in write_tasks.page()


def documented():
    members = [entry for _, entries in api_pages.families().values() for entry in entries]
    labels = {entry.label for entry in members}
    assert {"key_size", "interp.LoudValues", "interp.StillChannels"} <= labels
    assert {"interp.MuteWords", "interp.Fade", "channel_peak", "one-step", "opposites"} <= labels


def examples():
    ran = 0
    for name in sys.argv[1].split(","):
        found = doctest.testmod(importlib.import_module(name), verbose=False, raise_on_error=True)
        ran += found.attempted
    assert ran >= 8


told = {}
for check in (probe, figure, policy, channel_policy, edit, logit_edit, kernel, study, task, documented, examples):
    try:
        with contextlib.redirect_stdout(sys.stderr):
            check()
        told[check.__name__] = ""
    except Exception:
        told[check.__name__] = traceback.format_exc()
print(json.dumps(told))
"""
KINDS = (
    "probe",
    "figure",
    "policy",
    "channel_policy",
    "edit",
    "logit_edit",
    "kernel",
    "study",
    "task",
    "documented",
    "examples",
)


def copied(folder: Path) -> Path:
    """The tree with the templates in it."""
    ignored = shutil.ignore_patterns("__pycache__", "images", "*.md")
    for part in ("interp", "kernels", "docs"):
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    for name, text in TEMPLATES.items():
        path = folder / name
        assert not path.exists(), f"{name} is there already; show another file in CONTRIBUTING.md"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the checks said, each "" or a traceback."""
    folder = copied(tmp_path_factory.mktemp("tree"))
    names = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in TEMPLATES]
    modules = ",".join(name.removeprefix("kernels.") for name in names)
    # -P and the path: neither the working directory nor this tree is where `interp` comes from
    paths = ":".join(str(folder / part) for part in (".", "kernels"))
    script = f"import sys; sys.path[:0] = {paths.split(':')!r}\n" + CHECKS
    run = subprocess.run(
        [sys.executable, "-P", "-c", script, modules], cwd=folder, capture_output=True, text=True, timeout=280
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("kind", KINDS)
def test_what_contributing_shows_works(told: dict[str, str], kind: str) -> None:
    assert not told[kind], told[kind]


MUTED = """from interp.interventions.edits.mute_words import MuteWords

EXAMPLES = [MuteWords(ids=tuple(range(4, 66)))]  # half of all words, so that every text has some of them
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_contributing_shows_passes_what_every_method_must(tmp_path: Path) -> None:
    """The matrices of tests that cross all methods, in a copy of the tree that has the templates."""
    folder = copied(tmp_path)
    for part in ("tests", "apps", "benchmarks"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", "results", "runs"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "tests/interventions/test_mute_words.py").write_text(MUTED, encoding="utf-8")
    words = " or ".join(["key_size", "loud_values", "still_channels", "mute_words", "fade", "channel_peak"])
    where = ["tests/probes", "tests/interventions", "tests/kernels", "tests/figures"]
    environment = {**os.environ, "PYTHONPATH": ":".join(str(folder / part) for part in (".", "kernels", "apps"))}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", words, *where]
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-3000:]
    passed = re.search(r"(\d+) passed", run.stdout)
    assert passed is not None
    assert int(passed[1]) > 200


def test_there_is_a_recipe_for_each_kind() -> None:
    rooms = {name.rpartition("/")[0] for name in TEMPLATES}
    assert {"interp/probes", "interp/figures", "interp/interventions/policies", "interp/interventions/edits",
            "kernels/interp_kernels/channel_peak", "interp/icl/studies"} <= rooms  # fmt: skip


def test_templates_are_clean() -> None:
    """Formatted and free of what ruff finds, as all code here is."""
    for name, text in TEMPLATES.items():
        for command in (["check", "-q"], ["format", "--check", "-q"]):
            ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(ROOT / name), "-"]
            found = subprocess.run(ruff, input=text, cwd=ROOT, capture_output=True, text=True)
            assert found.returncode == 0, f"{name}: {' '.join(command)}\n{found.stdout}"
