"""Models: shapes, roles, and equality with plain computations in float64."""

import math
import sys

import pytest
import torch

from model import available_models, build_model, model_class

DOUBLE = torch.float64
SMALL = {name: sys.modules[model_class(name).__module__].TINY for name in available_models()}
PUBLISHED = {"grokking_transformer": {"vocab_size": 114}, "resnet18": {},
             "qwen3": {"vocab_size": 300}, "gpt": {"vocab_size": 256}}


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
    ("gpt", 18, {"embed.weight": "embedding", "head.weight": "head", "head.bias": "vector"}),
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
    assert count["gpt"] == 182_720
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


@pytest.mark.parametrize("name", ["gpt", "grokking_transformer", "qwen3"])
def test_more_layers_than_any_machine_trains_are_refused_at_once(name):
    tiny = sys.modules[model_class(name).__module__].TINY
    (key,) = (key for key in tiny if key.endswith("layers"))
    with pytest.raises(ValueError, match=f"{key} must be at most 1000, got {2**63 - 1}"):
        build_model({"name": name, **tiny, key: 2**63 - 1})


@pytest.mark.parametrize("name", list(SMALL))
def test_gradients_reach_every_parameter(name):
    model = small(name)
    for p in model.parameters():
        if not p.any():  # a matrix that starts at 0 lets nothing through
            torch.nn.init.normal_(p)
    if "vocab_size" in SMALL[name]:
        outputs = model(torch.randint(0, SMALL[name]["vocab_size"], (8, 3)))
    else:
        outputs = model(torch.randn(8, 3, 32, 32))
    outputs.flatten(0, -2).log_softmax(-1)[:, 0].square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in model.parameters())


def plain_gpt(model, tokens):
    """Head by head and position by position, as the formulas have it, in float64."""
    def rms(x, gain=1.0):
        return gain * x / (x.square().mean(-1, keepdim=True) + torch.finfo(DOUBLE).eps).sqrt()

    def rotated(x, position):
        half, quarter = len(x) // 2, len(x) // 4
        y = x.clone()
        for i in range(quarter):  # the other frequencies are 0
            angle = position * 1024 ** -(i / max(1, quarter - 1))
            c, s = math.cos(angle), math.sin(angle)
            y[i], y[i + half] = c * x[i] + s * x[i + half], c * x[i + half] - s * x[i]
        return y

    x = rms(model.embed.weight[tokens], model.embed_norm.weight)  # (sequence, width)
    for block in model.blocks:
        seen = rms(x, block.attention_norm.weight)
        d, mixed = block.head_width, torch.zeros_like(x)
        for first in range(0, x.shape[1], d):
            q, k, v = ((seen @ layer.weight.T + layer.bias)[:, first : first + d]
                       for layer in (block.query, block.key, block.value))
            q, k = (torch.stack([rotated(row, t) for t, row in enumerate(rms(part))])
                    for part in (q, k))
            for t in range(len(x)):
                logits = k[: t + 1] @ q[t] * 0.12 * math.sqrt(128 / d)
                mixed[t, first : first + d] = logits.softmax(0) @ v[: t + 1]
        x = x + mixed @ block.project_heads.weight.T + block.project_heads.bias
        hidden = rms(x, block.mlp_norm.weight) @ block.up.weight.T + block.up.bias
        x = x + hidden.clamp_min(0) ** 2 @ block.project_up.weight.T + block.project_up.bias
    logits = rms(x, model.head_norm.weight) @ model.head.weight.T + model.head.bias
    return 15 * logits / (logits**2 + 15**2).sqrt()


def test_gpt_equals_the_plain_computation():
    model = small("gpt", projection_gain=1.0).to(DOUBLE)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))  # gains, biases and the head too
        tokens = torch.randint(20, (3, 7))
        expected = torch.stack([plain_gpt(model, row) for row in tokens])
        assert torch.allclose(model(tokens), expected, rtol=1e-9, atol=1e-9)


def test_gpt_starts_with_equal_logits_and_the_stated_deviations():
    model = small("gpt", vocab_size=256, width=64, head_width=32, hidden_gain=1.5)
    assert not model(torch.randint(256, (2, 5))).any()
    block = model.blocks[0]
    assert not block.project_up.weight.any() and not block.project_heads.weight.any()
    assert float(block.up.weight.detach().std()) == pytest.approx(1.5 / (3 * 64) ** 0.5, rel=0.05)
    assert float(model.embed.weight.detach().std()) == pytest.approx(1, rel=0.05)
    with pytest.raises(ValueError, match="width a multiple of head_width"):
        small("gpt", head_width=12)
