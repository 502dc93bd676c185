"""Models: shapes, roles, and equality with plain computations in float64."""

import math
import sys

import pytest
import torch

from model import available_models, build_model, model_class

DOUBLE = torch.float64
SMALL = {name: sys.modules[model_class(name).__module__].TINY for name in available_models()}
PUBLISHED = {"grokking_transformer": {"vocab_size": 114}, "resnet18": {},
             "qwen3": {"vocab_size": 300}}


def small(name, **changes):
    torch.manual_seed(0)
    return build_model({"name": name, **SMALL[name], **changes})


def test_the_folder_is_the_registry():
    assert {"grokking_transformer", "qwen3", "resnet18"} <= set(available_models())
    assert model_class("ResNet-18") is model_class("resnet18")
    with pytest.raises(ValueError, match="qwen3"):
        model_class("vgg")


@pytest.mark.parametrize("name", list(SMALL))
def test_roles_cover_every_parameter_once(name):
    model = small(name)
    roles = model.roles()
    assert list(roles) == [n for n, _ in model.named_parameters()]
    assert set(roles.values()) <= {"hidden", "embedding", "head", "vector"}
    for parameter_name, p in model.named_parameters():
        assert (roles[parameter_name] == "vector") == (p.ndim < 2)


@pytest.mark.parametrize(("name", "hidden", "others"), [
    ("grokking_transformer", 6, {"W_E": "embedding", "W_pos": "embedding", "W_U": "head"}),
    ("resnet18", 20, {"head.weight": "head", "head.bias": "vector"}),
    ("qwen3", 21, {"network.model.embed_tokens.weight": "embedding"}),
])
def test_published_sizes_and_their_roles(name, hidden, others):
    model = build_model({"name": name, **PUBLISHED[name]})
    roles = model.roles()
    assert list(roles.values()).count("hidden") == hidden
    for parameter_name, role in others.items():
        assert roles[parameter_name] == role


def test_parameter_counts():
    count = {name: sum(p.numel() for p in build_model({"name": name, **sizes}).parameters())
             for name, sizes in PUBLISHED.items()}
    assert count["resnet18"] == 11_173_962
    assert count["grokking_transformer"] == 128 * (114 + 114 + 3) + 4 * 128**2 + 2 * 128 * 512 + 640
    attention, mlp = 4 * 512 * 512, 3 * 512 * 2048
    assert count["qwen3"] == 300 * 512 + 3 * (attention + mlp + 2 * 512 + 2 * 128) + 512


def plain_transformer(model, tokens):
    """Every query of every layer, head by head, as the formulas have it."""
    x = model.W_E.T[tokens] + model.W_pos[: tokens.shape[1]]
    mask = torch.tril(torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool))
    for block in model.blocks:
        mixed = []
        for w_q, w_k, w_v in zip(block.W_Q, block.W_K, block.W_V, strict=True):
            scores = (x @ w_q.T) @ (x @ w_k.T).mT / math.sqrt(len(w_q))
            weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), -1)
            mixed.append(weights @ (x @ w_v.T))
        x = x + torch.cat(mixed, -1) @ block.W_O.T
        hidden = torch.relu(x @ block.W_in.T + block.b_in)
        x = x + hidden @ block.W_out.T + block.b_out
    return (x @ model.W_U)[:, -1]


@pytest.mark.parametrize("batch", [5, 40])  # fewer and more than tokens in the vocabulary
@pytest.mark.parametrize("layers", [1, 2])
def test_grokking_transformer_equals_the_plain_computation(layers, batch):
    model = small("grokking_transformer", num_layers=layers).to(DOUBLE)
    tokens = torch.randint(0, 12, (batch, 3))
    torch.testing.assert_close(model(tokens), plain_transformer(model, tokens))
    ours = torch.autograd.grad(model(tokens).square().sum(), list(model.parameters()))
    plain = torch.autograd.grad(plain_transformer(model, tokens).square().sum(),
                                list(model.parameters()))
    torch.testing.assert_close(ours, plain)


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ValueError, match="sequence_length 1"):
        small("grokking_transformer", sequence_length=1)(torch.zeros(2, 3, dtype=torch.long))


@pytest.mark.parametrize("batch", [5, 40])
@pytest.mark.parametrize("token", [-1, 12])
def test_a_token_outside_the_vocabulary_is_no_other_position(batch, token):
    tokens = torch.zeros(batch, 3, dtype=torch.long)
    tokens[0, 0] = token
    with pytest.raises(IndexError):
        small("grokking_transformer")(tokens)


def test_initial_scales_are_the_published_ones():
    torch.manual_seed(0)
    model = build_model({"name": "grokking_transformer", "vocab_size": 114})
    assert float(model.W_E.detach().std()) == pytest.approx(128**-0.5, rel=0.03)
    assert float(model.W_U.detach().std()) == pytest.approx(114**-0.5, rel=0.03)
    assert float(model.blocks[0].W_out.detach().std()) == pytest.approx(128**-0.5, rel=0.03)
    assert float(model.blocks[0].b_in.detach().abs().sum()) == 0


def test_resnet_halves_the_image_three_times():
    model = small("resnet18").eval()
    shapes = []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _i, out: shapes.append(tuple(out.shape[1:])))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert shapes[::2] == [(2, 32, 32), (4, 16, 16), (8, 8, 8), (16, 4, 4)]


def test_qwen3_is_causal_tied_and_its_features_give_its_logits():
    model = small("qwen3").to(DOUBLE)
    tokens = torch.randint(0, 20, (2, 9))
    changed = tokens.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 20
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])
    torch.testing.assert_close(before, model.features(tokens) @ model.head_weight.T)
    torch.testing.assert_close(before, model.network(input_ids=tokens).logits)
    assert model.head_weight is model.network.model.embed_tokens.weight
    untied = small("qwen3", tie_word_embeddings=False)
    assert untied.roles()["network.lm_head.weight"] == "head"


def test_rope_theta_takes_effect():
    tokens = torch.randint(0, 20, (1, 12))
    near, far = (small("qwen3", rope_theta=theta)(tokens) for theta in (10.0, 1e6))
    assert not torch.allclose(near, far, atol=1e-4)


@pytest.mark.parametrize(("name", "changes", "word"), [
    ("grokking_transformer", {"d_model": 0}, "d_model"), ("resnet18", {"width": 0}, "width"),
    ("qwen3", {"num_key_value_heads": 3}, "num_key_value_heads"),
    ("qwen3", {"head_dim": 3}, "even"), ("qwen3", {"rope_theta": 0.0}, "rope_theta"),
    ("qwen3", {"attention_dropout": 1.5}, "attention_dropout"),
    ("grokking_transformer", {"activation": "tanh"}, "activation"),
    ("qwen3", {"hidden_size": 0}, "hidden_size")])
def test_impossible_sizes_are_refused(name, changes, word):
    with pytest.raises(ValueError, match=word):
        small(name, **changes)


@pytest.mark.parametrize("name", list(SMALL))
def test_gradients_reach_every_parameter(name):
    model = small(name)
    if "vocab_size" in SMALL[name]:
        outputs = model(torch.randint(0, SMALL[name]["vocab_size"], (8, 3)))
    else:
        outputs = model(torch.randn(8, 3, 32, 32))
    outputs.flatten(0, -2).log_softmax(-1)[:, 0].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())
