"""The regressor against attention written out token by token, its fast path against its plain one, and its hooks."""

import copy
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from interp.errors import InterpError, UnknownNameError
from interp.files import tensors as tensor_file
from interp.icl.models.attention_regressor import AttentionRegressor, RegressorConfig, sinusoids
from interp.icl.tasks.regression import make_regression, tokenise

SHAPES = {
    "one linear layer": RegressorConfig(d_in=4),
    "two heads, small keys": RegressorConfig(d_in=4, n_heads=2, d_head=3),
    "recurrent": RegressorConfig(d_in=4, n_layers=3, recurrent=True),
    "untied, vector targets": RegressorConfig(d_in=4, d_out=3, n_layers=3),
    "softmax": RegressorConfig(d_in=4, n_heads=2, attention="softmax"),
    "softmax deep, no residual": RegressorConfig(d_in=4, n_layers=2, attention="softmax", residual=False),
    "mlp and norm": RegressorConfig(d_in=4, n_layers=2, n_heads=2, d_mlp=7, layer_norm=True),
    "clamped": RegressorConfig(d_in=4, n_layers=3, clamp=0.8),
    "no minus": RegressorConfig(d_in=4, readout_sign=1),
    "interleaved": RegressorConfig(d_in=4, layout="interleaved", n_layers=2, attention=("softmax", "linear")),
    "encoded": RegressorConfig(d_in=4, layout="interleaved", n_pos_enc=5, readout="last", n_layers=2),
    "encoded concat": RegressorConfig(d_in=4, n_pos_enc=6, attention="softmax"),
}
shapes = pytest.mark.parametrize("cfg", SHAPES.values(), ids=SHAPES.keys())


def model_of(cfg, seed=0):
    """A model with weights large enough for every term to matter, norms and start included."""
    model = AttentionRegressor(replace(cfg, init_std=0.35), seed=seed).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 1:
                weight.add_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * 0.3)
        if cfg.layout == "concat":
            model.W0.normal_(generator=generator)
    return model


def tasks_of(cfg, batch=5, context=6, seed=1):
    return make_regression(batch, context, cfg.d_in, 1.0, d_y=cfg.d_out, seed=seed, dtype=torch.float64)


def by_hand(model, tokens):
    """All tokens of one prompt after all blocks, [pos, d_model]: loops over tokens and heads, no batching."""
    tokens = tokens.numpy().copy()
    for layer in range(model.cfg.n_layers):
        block = model.blocks[layer]
        weights = {name: weight.detach().numpy() for name, weight in block.named_parameters()}
        changed = []
        read = _normed(tokens, weights, "ln1")
        for j, token in enumerate(tokens):
            added = np.zeros_like(token)
            for h in range(model.cfg.n_heads):
                q = read[j] @ weights["attn.W_Q"][h]
                keys = [read[i] @ weights["attn.W_K"][h] for i in range(len(tokens) - 1)]
                values = [read[i] @ weights["attn.W_V"][h] for i in range(len(tokens) - 1)]
                scores = np.array([k @ q for k in keys])
                if model.cfg.kinds[layer] == "softmax":
                    e = np.exp(scores / math.sqrt(len(q)))
                    scores = e / e.sum()
                added += sum(s * v for s, v in zip(scores, values, strict=True)) @ weights["attn.W_O"][h]
            token = added + (token if model.cfg.residual else 0)
            if model.cfg.d_mlp:
                inner = _normed(token[None], weights, "ln2")[0] @ weights["mlp.W_in"] + weights["mlp.b_in"]
                gelu = 0.5 * inner * (1 + np.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
                token = gelu @ weights["mlp.W_out"] + weights["mlp.b_out"] + (token if model.cfg.residual else 0)
            changed.append(token if model.cfg.clamp is None else token.clip(-model.cfg.clamp, model.cfg.clamp))
        tokens = np.array(changed)
    return tokens


def _normed(tokens, weights, name):
    if f"{name}.weight" not in weights:
        return tokens
    centred = tokens - tokens.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


@shapes
def test_prediction_is_attention_written_out(cfg):
    model, tasks = model_of(cfg), tasks_of(cfg)
    tokens = model.tokens(tasks.X, tasks.y, tasks.xq)
    slot = slice(-cfg.d_out, None) if cfg.readout == "last" else cfg.y_slot
    expected = np.array([cfg.readout_sign * by_hand(model, prompt)[-1][slot] for prompt in tokens])
    predicted = model(tasks.X, tasks.y, tasks.xq)
    assert predicted.shape == ((5, cfg.d_out) if cfg.d_out > 1 else (5,))
    np.testing.assert_allclose(predicted.detach().numpy().reshape(expected.shape), expected, rtol=1e-10, atol=1e-12)


@shapes
def test_fast_path_has_the_numbers_and_gradients_of_the_plain_one(cfg):
    model, tasks = model_of(cfg), tasks_of(cfg)
    X, y, xq = (t.clone().requires_grad_() for t in (tasks.X, tasks.y, tasks.xq))
    tokens = model.tokens(X, y, xq)
    leaves = [*model.parameters(), X, y, xq]
    found = {}
    for path, query in (("fast", model.fast(tokens)), ("plain", model.plain(tokens)[:, -1])):
        out = model.read_out(query)
        gradients = torch.autograd.grad(out.square().sum(), leaves, retain_graph=True, allow_unused=True)
        found[path] = [out, *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, gradients, strict=True))]
    for fast, plain in zip(found["fast"], found["plain"], strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-11)


@shapes
def test_watching_changes_nothing(cfg):
    model, tasks = model_of(cfg), tasks_of(cfg)
    alone = model(tasks.X, tasks.y, tasks.xq)
    watched, cache = model.run_with_cache(tasks.X, tasks.y, tasks.xq)
    torch.testing.assert_close(watched, alone, rtol=1e-9, atol=1e-11)
    assert set(cache.cache_dict) == set(model.hook_dict)
    assert not any(point._forward_hooks for point in model.hook_dict.values())


def test_cache_has_transformer_lens_shapes():
    model, tasks = model_of(SHAPES["two heads, small keys"]), tasks_of(SHAPES["two heads, small keys"])
    _, cache = model.run_with_cache(tasks.X, tasks.y, tasks.xq)
    shapes_of = {name.removeprefix("blocks.0."): tuple(value.shape) for name, value in cache.cache_dict.items()}
    assert shapes_of == {
        "hook_embed": (5, 7, 5), "hook_resid_pre": (5, 7, 5), "attn.hook_q": (5, 7, 2, 3), "attn.hook_k": (5, 6, 2, 3),
        "attn.hook_v": (5, 6, 2, 3), "attn.hook_attn_scores": (5, 2, 7, 6), "attn.hook_pattern": (5, 2, 7, 6),
        "attn.hook_z": (5, 7, 2, 3), "hook_attn_out": (5, 7, 5), "hook_resid_post": (5, 7, 5),
    }  # fmt: skip
    z = torch.einsum("bhpk,bkhe->bphe", cache["pattern", 0], cache["v", 0])
    torch.testing.assert_close(z, cache["z", 0])
    torch.testing.assert_close(cache["resid_post", 0], cache["resid_pre", 0] + cache["attn_out", 0])


def test_an_edit_changes_the_prediction():
    cfg = SHAPES["recurrent"]
    model, tasks = model_of(cfg), tasks_of(cfg)
    silence = [(f"blocks.{l}.hook_attn_out", lambda out, hook: torch.zeros_like(out)) for l in range(cfg.n_layers)]
    silenced = model.run_with_hooks(tasks.X, tasks.y, tasks.xq, fwd_hooks=silence)
    torch.testing.assert_close(silenced, tasks.xq @ model.W0[0])  # what the query token carried from the start


def test_names_that_select_nothing_are_refused():
    model, tasks = model_of(SHAPES["one linear layer"]), tasks_of(SHAPES["one linear layer"])
    with pytest.raises(UnknownNameError, match=r"did you mean 'blocks\.0\.attn\.hook_q'"):
        model.run_with_cache(tasks.X, tasks.y, tasks.xq, names_filter="blocks.0.attn.hook_qq")
    with pytest.raises(UnknownNameError, match="no MLP"):
        model.run_with_hooks(tasks.X, tasks.y, tasks.xq, fwd_hooks=[("blocks.0.hook_mlp_out", lambda out, hook: out)])
    with pytest.raises(InterpError, match="no layer 1"):
        model.block(1)


def test_pos_slice_cuts_keys_and_tokens():
    model, tasks = model_of(SHAPES["one linear layer"]), tasks_of(SHAPES["one linear layer"])
    _, cache = model.run_with_cache(tasks.X, tasks.y, tasks.xq, pos_slice=-1)
    _, whole = model.run_with_cache(tasks.X, tasks.y, tasks.xq)
    torch.testing.assert_close(cache["resid_post", 0], whole["resid_post", 0][:, -1:])
    torch.testing.assert_close(cache["k", 0], whole["k", 0][:, -1:])


@pytest.mark.parametrize("name", ["one linear layer", "recurrent", "untied, vector targets", "softmax", "mlp and norm"])
def test_order_of_the_context_does_not_matter_without_positions(name):
    model, tasks = model_of(SHAPES[name]), tasks_of(SHAPES[name])
    order = torch.randperm(6, generator=torch.Generator().manual_seed(0))
    shuffled = model(tasks.X[:, order], tasks.y[:, order], tasks.xq)
    torch.testing.assert_close(shuffled, model(tasks.X, tasks.y, tasks.xq), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["encoded", "encoded concat"])
def test_order_matters_with_positions(name):
    model, tasks = model_of(SHAPES[name]), tasks_of(SHAPES[name])
    reversed_ = model(tasks.X.flip(1), tasks.y.flip(1), tasks.xq)
    assert (reversed_ - model(tasks.X, tasks.y, tasks.xq)).abs().max() > 1e-3


def test_a_recurrent_model_has_one_set_of_weights():
    model = model_of(SHAPES["recurrent"])
    for one in (model, copy.deepcopy(model), model.float()):
        assert len(list(one.parameters())) == 4
        assert one.block(0).W_Q is one.block(2).W_Q
    assert len(list(AttentionRegressor(SHAPES["untied, vector targets"]).parameters())) == 12


@pytest.mark.parametrize("layout", ["concat", "interleaved"])
def test_tokens_are_those_of_the_tasks(layout):
    cfg = RegressorConfig(d_in=4, d_out=2, layout=layout)
    tasks = tasks_of(cfg)
    tokens = AttentionRegressor(cfg).double().tokens(tasks.X, tasks.y, tasks.xq)
    assert torch.equal(tokens, tokenise(tasks, layout))


def test_position_features_are_sines_and_cosines():
    table = sinusoids(21, 10)
    assert table.shape == (21, 10)
    for position, column in ((0, 0), (3, 4), (20, 9), (7, 1)):
        angle = position / 10000 ** ((column - column % 2) / 10)
        expected = math.cos(angle) if column % 2 else math.sin(angle)
        assert float(table[position, column]) == pytest.approx(expected, abs=1e-12)
    assert sinusoids(4, 5).shape == (4, 5)


def test_initial_weights_follow_the_seed_and_the_released_scale():
    cfg = RegressorConfig(d_in=40, n_layers=2, n_heads=3)
    before = torch.get_rng_state()
    model = AttentionRegressor(cfg, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    for name, fan_in in (("W_Q", 41), ("W_V", 41), ("W_O", 3 * 41)):
        weight = getattr(model.block(1), name).detach()
        std = math.sqrt(0.002 / (2 * fan_in))
        assert float(weight.std()) == pytest.approx(std, rel=0.03)
        assert float(weight.abs().max()) < 2.3 * std
    assert torch.equal(AttentionRegressor(cfg, seed=5).block(0).W_K, model.block(0).W_K)
    assert not torch.equal(AttentionRegressor(cfg, seed=6).block(0).W_K, model.block(0).W_K)
    wide = AttentionRegressor(replace(cfg, init_std=0.5)).weights()["blocks.0.attn.W_O"]
    assert float(wide.std()) == pytest.approx(0.5, rel=0.03)


@shapes
def test_a_saved_model_comes_back(cfg, tmp_path):
    model, tasks = model_of(cfg), tasks_of(cfg)
    loaded = AttentionRegressor.load(model.save(tmp_path / "model.safetensors"))
    assert loaded.cfg == model.cfg
    assert torch.equal(loaded(tasks.X, tasks.y, tasks.xq), model(tasks.X, tasks.y, tasks.xq))


def test_files_that_hold_no_model_are_refused(tmp_path):
    with pytest.raises(InterpError, match="cannot read a regressor"):
        AttentionRegressor.load(tmp_path / "missing.safetensors")
    (tmp_path / "text").write_text("no weights")
    with pytest.raises(InterpError, match="cannot read a regressor"):
        AttentionRegressor.load(tmp_path / "text")
    with pytest.raises(InterpError, match="another model"):
        AttentionRegressor(RegressorConfig()).load_weights(AttentionRegressor(RegressorConfig(d_in=3)).weights())


@pytest.mark.parametrize(
    "wrong", [{"d_head": 2**31}, {"d_in": 2**31}, {"d_mlp": 2**31}, {"n_layers": 900}, {"d_out": 2}, {"n_heads": 2**31}]
)
def test_words_of_a_file_do_not_decide_how_much_memory_is_taken(wrong, tmp_path):
    model = AttentionRegressor(RegressorConfig())
    tensor_file.write(tmp_path / "m.safetensors", model.weights(), "config", asdict(replace(model.cfg, **wrong)))
    with pytest.raises(InterpError, match="weights of another model than its config says"):
        AttentionRegressor.load(tmp_path / "m.safetensors")


@pytest.mark.parametrize("shape", [{}, {"attention": "softmax"}, {"layout": "interleaved"}, {"n_layers": 2}])
def test_without_a_pair_the_query_is_all_there_is(shape):
    model = AttentionRegressor(RegressorConfig(d_in=4, init_std=0.5, **shape)).double()
    W0 = torch.linspace(-1, 1, 4, dtype=torch.float64)[None]
    model.W0.copy_(W0)
    X, y, xq = torch.zeros(3, 0, 4).double(), torch.zeros(3, 0).double(), torch.randn(3, 4).double()
    expected = -xq[:, 3] if shape.get("layout") else (xq @ W0.T)[:, 0]
    for said in (model(X, y, xq), model.run_with_cache(X, y, xq)[0]):
        torch.testing.assert_close(said, expected)


def test_prompts_that_do_not_fit_are_refused():
    model, tasks = AttentionRegressor(RegressorConfig(d_in=4)), tasks_of(RegressorConfig(d_in=4))
    X, y, xq = (t.float() for t in (tasks.X, tasks.y, tasks.xq))
    for wrong in ((X[..., :3], y, xq), (X, y[:, :2], xq), (X, y, xq[:2]), (X, y[..., None].expand(-1, -1, 2), xq)):
        with pytest.raises(InterpError, match=r"reads X \[batch, N, 4\]"):
            model(*wrong)
    with pytest.raises(InterpError, match="float64"):
        model(tasks.X, tasks.y, tasks.xq)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"attention": "sparse"}, "attention should be one of linear, softmax or a list"),
        ({"n_layers": 2, "attention": ("linear",)}, "names 1 layers"),
        ({"n_layers": 2, "attention": ("linear", "softmax"), "recurrent": True}, "one kind"),
        ({"layout": "stacked"}, "layout should be one of concat, interleaved"),
        ({"layout": "interleaved", "d_in": 2, "d_out": 3}, "cannot hold 3"),
        ({"readout": "first"}, "readout should be one of y, last"),
        ({"readout_sign": 2}, "readout_sign should be one of -1, 1"),
        ({"n_heads": 0}, "at least 1"),
        ({"n_heads": None}, "n_heads should be a whole number"),
        ({"clamp": "a"}, "clamp should be a finite number or none"),
        ({"n_layers": 2**31}, "n_layers is at most 1,000"),
        ({"d_head": 0}, "d_head is at least 1"),
        ({"d_mlp": -1}, "d_mlp and n_pos_enc at least 0"),
        ({"n_pos_enc": -1}, "at least 0"),
        ({"clamp": 0.0}, "clamp is positive"),
        ({"init_std": 0.0}, "init_std is positive"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused(wrong, message):
    with pytest.raises(InterpError, match=message):
        RegressorConfig(**wrong)


def test_a_kind_of_attention_is_for_all_layers_or_one_each():
    both = RegressorConfig(n_layers=2, attention=["softmax", "linear"])
    assert both.kinds == ("softmax", "linear")
    assert replace(RegressorConfig(attention="softmax"), n_layers=3).kinds == ("softmax",) * 3
