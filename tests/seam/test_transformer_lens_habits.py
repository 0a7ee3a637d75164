"""What a TransformerLens user types works: caches, short names, slices, text, losses, observables while hooked."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import interp
from tests.models import shared, tokenizer, tokens


@pytest.fixture
def lens() -> interp.Lens:
    return interp.load(shared("llama"), tokenizer())


def test_cache_by_short_name_and_negative_layer(lens: interp.Lens) -> None:
    _, cache = lens.run_with_cache(tokens())
    assert torch.equal(cache["resid_post", -1], cache["blocks.2.hook_resid_post"])
    assert cache["z", 0].shape == (2, 12, 8, 8)
    assert cache["rot_k", 0].shape == (2, 12, 2, 8)
    assert not any("pattern" in n or "scores" in n or "mass" in n or "cached" in n for n in cache)
    _, cache = lens.run_with_cache(
        tokens(), names_filter=["blocks.1.attn.hook_pattern", "blocks.1.attn.hook_column_mass"]
    )
    assert cache["pattern", 1].shape == (2, 8, 12, 12)
    assert cache["column_mass", 1].shape == (2, 8, 12)


@torch.no_grad()
def test_pos_slice_cuts_each_point_along_its_own_axis(lens: interp.Lens) -> None:
    _, whole = lens.run_with_cache(tokens(), names_filter=lambda n: not n.endswith("hook_event"))
    _, cut = lens.run_with_cache(tokens(), names_filter=lambda n: not n.endswith("hook_event"), pos_slice=(3, 7))
    for name, full in whole.items():
        axis = lens.point_table[name].position_axis
        expected = full if axis is None else full.narrow(axis, 3, 4)
        assert torch.equal(cut[name], expected), name


def test_remove_batch_dim(lens: interp.Lens) -> None:
    _, cache = lens.run_with_cache(tokens(batch=1), remove_batch_dim=True)
    assert cache["resid_pre", 0].shape == (12, 64)


def test_loss_and_both(lens: interp.Lens) -> None:
    ids = tokens()
    logits, loss = lens(ids, return_type="both")
    expected = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(loss, expected)
    padded, mask = torch.cat([torch.full((2, 3), 2), ids], 1), torch.ones(2, 15, dtype=torch.long)
    mask[:, :3] = 0
    torch.testing.assert_close(lens(padded, attention_mask=mask, return_type="loss"), loss, rtol=1e-4, atol=1e-4)


def test_text_in_text_out(lens: interp.Lens) -> None:
    text = "w5 w6 w7"
    assert lens.to_str_tokens(text)[-3:] == ["w5", "w6", "w7"]
    ids = lens.to_tokens(text)
    assert torch.equal(lens(text), lens(ids))
    out = lens.generate(text, max_new_tokens=3, eos_token_id=None)
    assert isinstance(out, str)
    assert out.startswith("w5 w6 w7 ")
    assert lens.generate(ids, max_new_tokens=3, eos_token_id=None).shape == (1, ids.shape[1] + 3)
    both = lens.generate([text, "w8"], max_new_tokens=3, eos_token_id=None)
    assert both[0] == out
    assert len(both) == 2
    assert both[1] == lens.generate("w8", max_new_tokens=3, eos_token_id=None)
    assert lens.last_cache.nbytes() > 0
    with pytest.raises(interp.InterpError, match="chat template"):
        lens.generate(text, chat=True)


def test_batch_of_texts_is_padded_on_the_left(lens: interp.Lens) -> None:
    logits = lens(["w5 w6 w7 w8", "w9 w10"])
    torch.testing.assert_close(logits[1, -1], lens("w9 w10")[0, -1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_nothing_is_computed_that_nobody_hooks(lens: interp.Lens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without hooks the seam is not even entered; a hooked pattern makes that layer eager and no other."""
    import interp.seam.attention as seam

    delegated: list[nn.Module] = []
    plain = seam.AttentionCall.answer

    def counting(call: seam.AttentionCall) -> Any:
        delegated.append(call.module)
        return plain(call)

    monkeypatch.setattr(seam.AttentionCall, "answer", counting)
    lens(tokens())
    assert delegated == []
    lens.run_with_cache(tokens(), names_filter="blocks.1.attn.hook_pattern")
    assert [m.layer_idx for m in delegated] == [0, 2]


def test_the_config_speaks_transformer_lens(lens: interp.Lens) -> None:
    cfg = lens.cfg
    assert (cfg.n_layers, cfg.n_heads, cfg.n_key_value_heads, cfg.d_head, cfg.d_model) == (3, 8, 2, 8, 64)
    assert (cfg.d_vocab, cfg.n_ctx, cfg.positional_embedding_type) == (128, 512, "rotary")
    assert interp.load(shared("gemma3")).cfg.attn_types == ("local", "global", "local")


def test_the_models_modules_keep_their_names(lens: interp.Lens) -> None:
    assert not any(isinstance(getattr(m, "name", None), str) for m in lens.model.modules())
    assert set(dict(lens.named_parameters())) == {f"model.{n}" for n, _ in lens.model.named_parameters()}


def test_a_second_thread_waits(lens: interp.Lens) -> None:
    """Hooks are global to a Lens: while one thread holds some, another's call must not run under them."""
    import threading

    alone = lens.model(tokens()).logits
    outs: list[torch.Tensor] = []
    other = threading.Thread(target=lambda: outs.append(lens(tokens())))
    with lens.hooks(fwd_hooks=[("blocks.0.hook_resid_post", lambda x, hook: x * 0)]):
        other.start()
        other.join(0.5)
        assert outs == []
        assert not torch.equal(lens(tokens()), alone)
    other.join()
    assert torch.equal(outs[0], alone)
