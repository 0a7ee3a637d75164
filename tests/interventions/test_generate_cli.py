"""`interp generate`: what it says is what independent counting says, and mistakes are one line with exit code 2."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf

import interp
from interp import cli, generating
from tests.models import GROUPED, shared, tokenizer

PROMPT = " ".join(f"w{i}" for i in range(5, 44))  # 40 tokens with <bos>
N = 40
LAYERS, KV_HEADS, WIDTH, FLOAT = 3, 2, 8, 4  # of the tiny Llama, in fp32
DENSE_TOKEN = 2 * KV_HEADS * WIDTH * FLOAT  # bytes of one token's key and value in one layer


@pytest.fixture
def model(tmp_path: Path) -> str:
    return stored("llama", tmp_path)


def stored(name: str, folder: Path, model: hf.PreTrainedModel | None = None) -> str:
    """A folder with a tiny model that never ends by itself, and its tokenizer with a chat template."""
    (model or shared(name)).save_pretrained(folder / name)
    settings = folder / name / "generation_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token_id": None}))
    words = tokenizer()
    words.chat_template = "{% for turn in messages %}w4 {{ turn['content'] }} w99{% endfor %}"
    words.save_pretrained(folder / name)
    return str(folder / name)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit code of the command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["interp", "generate", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, *arguments: str) -> dict:
    assert run(monkeypatch, *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


@torch.no_grad()
def bare(prompt_ids: list[int], new: int) -> list[int]:
    """New tokens of the model alone, chosen greedily without any cache."""
    model, ids = shared("llama"), torch.tensor([prompt_ids])
    for _ in range(new):
        ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    return ids[0, len(prompt_ids) :].tolist()


def ids_of(text: str) -> list[int]:
    return [0, *(int(word[1:]) for word in text.split())]


def test_without_interventions_it_is_the_model_itself(model: str, monkeypatch, capsys) -> None:
    out = told(monkeypatch, capsys, model, "--prompt", PROMPT, "--max-new-tokens", "6")
    new = bare(ids_of(PROMPT), 6)
    assert out["prompt_tokens"] == N
    assert out["new_tokens"] == len(new) == 6
    assert out["text"].split() == [f"w{i}" for i in new if i > 3]
    assert out["interventions"] == []
    seen = N + len(new) - 1
    assert out["cache"] == {
        "bytes": LAYERS * seen * DENSE_TOKEN,
        "dense_bytes": LAYERS * seen * DENSE_TOKEN,
        "tokens": seen,
        "kept_tokens": [seen] * LAYERS,
    }
    assert out["notes"] == []


def test_bytes_of_pruned_channels(model: str, monkeypatch, capsys) -> None:
    spec = "think:ratio=0.5,window=8,recent=6,sinks=2"
    out = told(monkeypatch, capsys, model, "--prompt", PROMPT, "--with", spec, "--max-new-tokens", "6")
    seen = N + out["new_tokens"] - 1
    pruned = N - 6 - 2
    keys = KV_HEADS * (pruned * WIDTH // 2 + (seen - pruned) * WIDTH) * FLOAT
    channels = KV_HEADS * (WIDTH // 2) * 2
    values = KV_HEADS * seen * WIDTH * FLOAT
    assert out["cache"]["bytes"] == LAYERS * (keys + channels + values)
    assert out["cache"]["dense_bytes"] == LAYERS * seen * DENSE_TOKEN
    assert out["cache"]["kept_tokens"] == [seen] * LAYERS
    think = interp.ThinK(ratio=0.5, window=8, recent=6, sinks=2)
    assert out["interventions"] == [think.settings()]
    lens = interp.load(shared("llama"), tokenizer())
    with lens.apply(think):
        text = lens.generate(PROMPT, max_new_tokens=6)
    assert text == f"{PROMPT} {out['text']}"


def test_several_interventions_from_options_and_from_a_file(model: str, tmp_path: Path, monkeypatch, capsys) -> None:
    both = interp.SnapKV(budget=16, window=8) | interp.ThinK(ratio=0.25, window=8, recent=4)
    file = str(interp.interventions.save(both, tmp_path / "both.toml"))
    asked = (model, "--prompt", PROMPT, "--max-new-tokens", "5")
    options = ("--with", "snapkv:budget=16,window=8", "--with", "think:ratio=.25,window=8,recent=4")
    one = told(monkeypatch, capsys, *asked, *options)
    other = told(monkeypatch, capsys, *asked, "--with", file)
    assert one["interventions"] == other["interventions"] == [part.settings() for part in both.members]
    assert one["text"] == other["text"]
    assert one["cache"] == other["cache"]
    new = one["new_tokens"]
    assert one["cache"]["kept_tokens"] == [16 + new - 1] * LAYERS
    assert one["cache"]["tokens"] == N + new - 1
    assert one["cache"]["dense_bytes"] == LAYERS * (N + new - 1) * DENSE_TOKEN


METHODS = interp.interventions.available()
OF_IMAGES = [name for name, cls in METHODS.items() if getattr(cls(), "reads_images", False)]


@pytest.mark.parametrize("name", OF_IMAGES)
def test_a_method_for_images_is_refused_by_a_model_of_text(name: str, model: str, monkeypatch, capsys) -> None:
    assert run(monkeypatch, model, "--prompt", PROMPT, "--with", name) == 2
    assert "reads text and no images" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(OF_IMAGES)))
def test_every_method_by_its_bare_name(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    torch.manual_seed(0)
    deep = stored("deep", tmp_path, hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED | {"num_hidden_layers": 6})))
    prompt = " ".join([PROMPT] * 8)
    out = told(monkeypatch, capsys, deep, "--prompt", prompt, "--with", name, "--max-new-tokens", "4")
    cls = interp.interventions.available()[name]
    assert out["interventions"] == [json.loads(json.dumps(cls().settings()))]
    drops = issubclass(cls, interp.interventions.CachePolicy)
    assert (out["cache"]["bytes"] < out["cache"]["dense_bytes"]) is drops
    assert out["notes"] == []


def test_layers_with_a_window_count_as_what_they_hold(tmp_path: Path, monkeypatch, capsys) -> None:
    gemma = stored("gemma3", tmp_path)  # one full-attention layer between two with a window of 5
    asked = (gemma, "--prompt", PROMPT, "--max-new-tokens", "5")
    plain = told(monkeypatch, capsys, *asked)
    think = told(monkeypatch, capsys, *asked, "--with", "think:ratio=0.5,window=8,recent=4")
    assert plain["cache"]["bytes"] == plain["cache"]["dense_bytes"] == think["cache"]["dense_bytes"]
    pruned = KV_HEADS * (N - 4) * (WIDTH // 2) * FLOAT - KV_HEADS * (WIDTH // 2) * 2
    assert plain["cache"]["bytes"] - think["cache"]["bytes"] == pruned
    assert plain["new_tokens"] == think["new_tokens"] == 5
    assert "2 of 3 layers have a sliding window" in think["notes"][0]


def test_a_prompt_file_and_a_chat(model: str, tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "prompt.txt").write_text(PROMPT)
    asked = ("--prompt-file", str(tmp_path / "prompt.txt"), "--max-new-tokens", "3")
    plain = told(monkeypatch, capsys, model, *asked)
    assert plain["prompt_tokens"] == N
    assert plain["run"]["prompt"] == str(tmp_path / "prompt.txt")
    chat = told(monkeypatch, capsys, model, *asked, "--chat")
    assert chat["prompt_tokens"] == N - 1 + 2  # the template's two words, and no <bos> besides
    assert chat["text"].split() == [f"w{i}" for i in bare([4, *ids_of(PROMPT)[1:], 99], 3) if i > 3]


def test_a_person_reads_text_and_account(model: str, monkeypatch, capsys) -> None:
    spec = "think:ratio=0.5,window=8,recent=6"
    assert run(monkeypatch, model, "--prompt", PROMPT, "--with", spec, "--max-new-tokens", "4") == 0
    printed = capsys.readouterr()
    assert "read 40 tokens and wrote 4 under think(ratio=0.5, window=8, recent=6" in printed.out
    assert "MiB for 43 tokens" in printed.out
    assert "tokens a second" in printed.out
    assert printed.err == ""


def test_a_policy_that_dropped_nothing_is_noted(model: str, monkeypatch, capsys) -> None:
    asked = (model, "--prompt", PROMPT, "--with", "think:ratio=0.5,recent=64,window=8", "--max-new-tokens", "3")
    assert "think dropped nothing" in told(monkeypatch, capsys, *asked)["notes"][0]
    assert run(monkeypatch, *asked) == 0
    line = capsys.readouterr().err
    assert line.startswith("note: think dropped nothing")
    assert line.count("\n") == 1


def test_one_new_token_has_no_speed(model: str, monkeypatch, capsys) -> None:
    out = told(monkeypatch, capsys, model, "--prompt", PROMPT, "--max-new-tokens", "1")
    assert out["new_tokens"] == 1
    assert out["cache"]["tokens"] == N
    assert out["decode_seconds"] is None
    assert out["decode_tokens_per_second"] is None
    assert out["prefill_seconds"] > 0


def test_speed_is_that_of_decoding_alone(monkeypatch) -> None:
    clock = iter([10.0, 17.0, 17.5, 18.0, 19.0])
    monkeypatch.setattr(generating.time, "perf_counter", lambda: next(clock))
    steps: list[tuple[int, int]] = []
    watch = generating._Stopwatch(4, lambda *at: steps.append(at))
    for _ in range(5):  # the prompt and four tokens
        watch.put(torch.tensor([1]))
    assert watch.seconds() == {"prefill_seconds": 7.0, "decode_seconds": 2.0, "decode_tokens_per_second": 1.5}
    assert steps == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.skipif(sys.platform != "linux", reason="the independent reading is Linux' own")
def test_peak_memory_is_this_process_and_in_bytes() -> None:
    """A process that takes 200 MB more than it has, and gives them back; started by one that is larger still."""
    code = (
        "from interp.runs.generating import peak_resident_bytes as peak\n"
        "now = lambda: int(open('/proc/self/statm').read().split()[1]) * __import__('os').sysconf('SC_PAGE_SIZE')\n"
        "taken = bytearray(b'1') * 200_000_000; full = now(); del taken\n"
        "print(full, peak(), now())\n"
    )
    starter = (
        "import subprocess, sys; large = bytearray(b'1') * 2_000_000_000;"
        "subprocess.run([sys.executable, '-c', sys.argv[1]], check=True)"
    )
    out = subprocess.run([sys.executable, "-c", starter, code], capture_output=True, text=True, check=True).stdout
    full, peak, after = map(int, out.split())
    assert after < full - 150_000_000
    assert full - 2**20 <= peak < full + 300_000_000  # the system counts pages in batches


MISTAKES = {
    "no prompt": ([], "either --prompt TEXT or --prompt-file FILE"),
    "two prompts": (["--prompt", "w5", "--prompt-file", "x"], "either --prompt TEXT or --prompt-file FILE"),
    "empty prompt": (["--prompt", " "], "the prompt is empty"),
    "missing file": (["--prompt-file", "/no/such.txt"], "/no/such.txt"),
    "unknown intervention": (["--prompt", "w5", "--with", "thnk"], "did you mean 'think'"),
    "unknown setting": (["--prompt", "w5", "--with", "think:rato=1"], "did you mean 'ratio'"),
    "bad value": (["--prompt", "w5", "--with", "think:ratio=x"], "ratio should be a finite number"),
    "ratio of one": (["--prompt", "w5", "--with", "think:ratio=1"], "below 1"),
    "no room for the sinks": (["--prompt", PROMPT, "--with", "h2o:budget=3,sinks=9"], "has no room for 9 sinks"),
    "two of one stage": (["--prompt", PROMPT, "--with", "h2o", "--with", "knorm"], "apply one of them"),
    "beyond the context": (["--prompt", PROMPT, "--max-new-tokens", "500"], "context of 512"),
    "unknown dtype": (["--prompt", PROMPT, "--dtype", "int3"], "dtype is one of"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_one_line(case: str, model: str, monkeypatch, capsys) -> None:
    arguments, says = MISTAKES[case]
    assert run(monkeypatch, model, *arguments, "--json") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert says in printed.err
    assert printed.err.count("\n") == 1


def test_a_model_without_a_chat_template(tmp_path: Path, monkeypatch, capsys) -> None:
    shared("llama").save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    assert run(monkeypatch, str(tmp_path / "model"), "--prompt", "w5", "--chat") == 2
    assert "has no chat template" in capsys.readouterr().err
