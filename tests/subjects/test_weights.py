"""Loading GGUF files: the cached model is the fresh one bit by bit, and a bad file is one clear error."""

import logging
import os
import stat
import warnings
from concurrent.futures import ThreadPoolExecutor

import gguf
import pytest
import torch
from huggingface_hub.utils import are_progress_bars_disabled
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers import modeling_gguf_pytorch_utils as gguf_reader
from transformers.utils import logging as transformers_logging

from interp.errors import InterpError
from interp.subjects import weights
from interp.subjects.demo import demo_gguf
from interp.subjects.quiet import quiet_transformers
from interp.subjects.texts import demo_text
from interp.subjects.weight_cache import FORMAT
from interp.subjects.weights import WeightsError, load_gguf
from tests.subjects.tiny_gguf import write_tiny_gguf

PROCESSORS = gguf_reader.TENSOR_PROCESSORS


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty cache of its own."""
    monkeypatch.setenv("INTERP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights" / FORMAT


@pytest.fixture
def tiny(tmp_path):
    return write_tiny_gguf(tmp_path / "tiny.gguf")


def folders(home):
    return [path for path in home.iterdir() if path.name != "sources"] if home.is_dir() else []


def assert_same_model(found, expected):
    state, wanted = found.state_dict(), expected.state_dict()
    assert state.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name


def test_first_and_later_loads_equal_transformers_own(tiny, home, monkeypatch):
    expected = AutoModelForCausalLM.from_pretrained(tiny.parent, gguf_file=tiny.name)
    fresh, tokenizer = load_gguf(tiny)
    monkeypatch.setattr(weights, "_unpack", lambda *_: pytest.fail("unpacked again"))
    cached, cached_tokenizer = load_gguf(tiny)
    ids = torch.tensor([tokenizer.encode("the thin cat")])
    assert cached_tokenizer.encode("the thin cat") == ids[0].tolist()
    for model in (fresh, cached):
        assert_same_model(model, expected)
        assert torch.equal(model(ids).logits, expected(ids).logits)
        assert not model.training
        assert model.config.name_or_path == "tiny"
        assert not hasattr(model.config, "quantization_config")


def test_each_dtype_and_each_content_has_a_folder(tiny, home, tmp_path):
    load_gguf(tiny)
    model, _ = load_gguf(tiny, torch.bfloat16)
    assert model.dtype == torch.bfloat16
    copy = tmp_path / "elsewhere" / "copy.gguf"
    copy.parent.mkdir()
    copy.write_bytes(tiny.read_bytes())
    load_gguf(copy)
    assert sorted(path.name.split("-")[1] for path in folders(home)) == ["bfloat16", "float32"]
    load_gguf(write_tiny_gguf(tiny, seed=1))
    assert len(folders(home)) == 3


def test_damaged_cached_weights_are_reported_and_made_anew(tiny, home, caplog):
    expected, _ = load_gguf(tiny)
    (folder,) = folders(home)
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0xFF
    path.unlink()  # the loaded model still reads the old file
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING, logger="interp"):
        mended, _ = load_gguf(tiny)
    assert [record.getMessage().count("\n") for record in caplog.records] == [0]
    assert "damaged" in caplog.text
    assert_same_model(mended, expected)
    caplog.clear()
    load_gguf(tiny)
    assert not caplog.records


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.001, 0.1, 0.3, 0.6, 0.9, 0.9999])
def test_a_truncated_file_is_one_clear_error(share, tiny, home):
    data = tiny.read_bytes()
    tiny.write_bytes(data[: int(share * len(data))])
    with pytest.raises(WeightsError) as caught:
        load_gguf(tiny)
    message = str(caught.value)
    assert str(tiny) in message
    assert "\n" not in message
    assert folders(home) == []


def test_a_file_with_a_tensor_missing_is_refused(tmp_path, home, monkeypatch):
    add = gguf.GGUFWriter.add_tensor
    monkeypatch.setattr(
        gguf.GGUFWriter,
        "add_tensor",
        lambda self, name, data: None if name == "blk.1.ffn_up.weight" else add(self, name, data),
    )
    with pytest.raises(WeightsError, match=r"1 tensors are missing, model\.layers\.1\.mlp\.up_proj\.weight among them"):
        load_gguf(write_tiny_gguf(tmp_path / "holed.gguf"))
    assert folders(home) == []


def test_what_is_no_readable_gguf_file_is_refused_by_name(tmp_path, home):
    (tmp_path / "note.gguf").write_text("not weights")
    for path, reason in [
        (tmp_path / "absent.gguf", "there is no weights file"),
        (tmp_path, "is a folder"),
        (tmp_path / "note.gguf", "is not a GGUF file"),
        (write_tiny_gguf(tmp_path / "other.gguf", architecture="abacus"), "abacus is not supported"),
    ]:
        with pytest.raises(WeightsError, match=reason):
            load_gguf(path)


def test_a_cache_that_cannot_be_written_costs_only_time(tiny, tmp_path, monkeypatch, caplog):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the cache folder should be")
    monkeypatch.setenv("INTERP_CACHE", str(blocked))
    with caplog.at_level(logging.WARNING, logger="interp"):
        model, _ = load_gguf(tiny)
    assert model.config.name_or_path == "tiny"
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["the unpacked weights are not kept"]


def test_weights_kept_by_an_unknown_version_say_which_folder_to_delete(tiny, home, monkeypatch):
    load_gguf(tiny)
    (folder,) = folders(home)

    def unknown(*_, **__):
        raise KeyError("abacus")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", unknown)
    with pytest.raises(WeightsError, match=rf"{folder} .*delete that folder"):
        load_gguf(tiny)


def test_loading_is_silent_and_gives_back_the_callers_settings(tiny, home, capfd):
    from transformers import modeling_gguf_pytorch_utils as reader

    before = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled(), reader.tqdm
    load_gguf(tiny)
    load_gguf(tiny)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(ZeroDivisionError), quiet_transformers():
        raise ZeroDivisionError
    after = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled(), reader.tqdm
    assert after == before


def test_the_source_file_is_only_read(tiny, home):
    before = tiny.read_bytes()
    os.chmod(tiny, stat.S_IRUSR)
    load_gguf(tiny)
    assert tiny.read_bytes() == before
    assert [path.name for path in tiny.parent.iterdir() if path.name != "cache"] == ["tiny.gguf"]


@pytest.mark.slow
def test_the_cached_demo_model_equals_a_fresh_one():
    source = demo_gguf()
    with quiet_transformers():
        fresh = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    cached, cached_tokenizer = load_gguf(source)
    assert_same_model(cached, fresh)
    text = demo_text()[:20_000]
    assert cached_tokenizer.encode(text) == tokenizer.encode(text)
    assert cached_tokenizer.chat_template == tokenizer.chat_template
    ids = torch.tensor([tokenizer.encode(text)[:64]])
    assert torch.equal(cached(ids).logits, fresh(ids).logits)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("llama.block_count", 10**9, "block_count = 1000000000 and has 20 tensors"),
        ("llama.block_count", 2**32 - 1, "block_count = 4294967295"),
        ("llama.block_count", 0, "block_count = 0"),
        ("llama.block_count", 3, "are missing"),
        ("llama.embedding_length", 10**9, "asks for a model of"),
        ("llama.feed_forward_length", 10**9, "asks for a model of"),
        ("llama.attention.head_count", 0, "cannot read the weights"),
    ],
)
def test_a_file_that_claims_what_it_does_not_hold(tiny, home, field, value, says):
    content = tiny.read_bytes()
    at = content.index(field.encode()) + len(field) + 4  # after the name, the kind of value
    tiny.write_bytes(content[:at] + value.to_bytes(4, "little") + content[at + 4 :])
    with pytest.raises(InterpError, match=says) as caught:
        load_gguf(tiny)
    assert "\n" not in str(caught.value)
    assert not folders(home)


def test_loads_of_two_threads(tmp_path, home):
    """They wait for each other: transformers changes settings of the whole process while it loads, and so do we."""
    files = [write_tiny_gguf(tmp_path / f"tiny{seed}.gguf", seed=seed) for seed in range(4)]
    alone = [AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name) for path in files]
    settings = process_settings()
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):  # unpacked, then from the cache
            for (found, _), wanted in zip(pool.map(load_gguf, files), alone, strict=True):
                assert_same_model(found, wanted)
    assert process_settings() == settings


def process_settings():
    return (
        transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled(), gguf_reader.tqdm,
        gguf_reader.TENSOR_PROCESSORS is PROCESSORS, are_progress_bars_disabled(), torch.get_default_dtype(),
        torch.nn.init.normal_, len(warnings.filters),
    )  # fmt: skip
