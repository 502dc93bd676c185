"""The chunked cross entropy of a linear head: torch's own numbers, whatever the chunks."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from exp.harness.objective import Objective
from exp.wikitext2 import loss as chunked
from exp.wikitext2.loss import linear_cross_entropy, token_losses
from exp.wikitext2.train import loss_fn, next_token_losses
from model import build_model
from optimizer import build_optimizer

POSITIONS, CLASSES, WIDTH = 13, 7, 5


def problem(dtype=torch.float64, ignored=4):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(POSITIONS, WIDTH, generator=generator, dtype=torch.float64)
    weight = 3 * torch.randn(CLASSES, WIDTH, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, CLASSES, (POSITIONS,), generator=generator)
    targets[torch.randperm(POSITIONS, generator=generator)[:ignored]] = -100
    return features.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def in_chunks_of(monkeypatch, positions):
    monkeypatch.setitem(chunked.CHUNK_BYTES, "cpu", 4 * CLASSES * positions)


@pytest.mark.parametrize("ignored", [0, 4, POSITIONS - 1])
@pytest.mark.parametrize("positions", [1, 4, 100])
def test_value_and_gradients_are_those_of_torch(monkeypatch, positions, ignored):
    in_chunks_of(monkeypatch, positions)
    features, weight, targets = problem(ignored=ignored)
    loss = 3 * linear_cross_entropy(features, weight, targets)
    expected = 3 * F.cross_entropy(features @ weight.T, targets)
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(loss, expected, **close)
    found = torch.autograd.grad(loss, (features, weight))
    wanted = torch.autograd.grad(expected, (features, weight))
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **close)
    losses = token_losses(features, weight, targets)
    torch.testing.assert_close(
        losses, F.cross_entropy(features @ weight.T, targets, reduction="none"), **close)
    assert not losses.requires_grad


def test_nothing_to_predict_costs_nothing():
    """Where torch says nan: one process's part of a batch may be all padding."""
    features, weight, targets = problem(ignored=POSITIONS)
    loss = linear_cross_entropy(features, weight, targets)
    loss.backward()
    assert loss == 0 and not features.grad.any() and not weight.grad.any()


def test_extreme_logits_stay_finite(monkeypatch):
    in_chunks_of(monkeypatch, 4)
    features, weight, targets = problem(torch.float32)
    features = (1e4 * features.detach()).requires_grad_()
    loss = linear_cross_entropy(features, weight, targets)
    torch.testing.assert_close(loss, F.cross_entropy(features @ weight.T, targets))
    loss.backward()
    assert features.grad.isfinite().all() and weight.grad.isfinite().all()


def test_autocast_multiplies_in_bfloat16_and_sums_in_float32(monkeypatch):
    in_chunks_of(monkeypatch, 4)
    features, weight, targets = problem(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = linear_cross_entropy(features, weight, targets)
        losses = token_losses(features, weight, targets)
    loss.backward()
    half = [x.detach().bfloat16().double().requires_grad_() for x in (features, weight)]
    exact = F.cross_entropy(half[0] @ half[1].T, targets)
    exact.backward()
    for tensor, expected in ((loss, exact), (features.grad, half[0].grad),
                             (weight.grad, half[1].grad)):
        assert tensor.dtype == torch.float32
        error = (tensor - expected).norm() / expected.norm()
        assert error < 0.02
    torch.testing.assert_close(losses[targets >= 0].mean(), loss)


def test_a_second_backward_finds_the_gradients_again():
    features, weight, targets = problem()
    loss = linear_cross_entropy(features, weight, targets)
    first = torch.autograd.grad(loss, weight, retain_graph=True)[0].clone()
    torch.testing.assert_close(torch.autograd.grad(loss, weight)[0], first, rtol=0, atol=0)


class Plain(nn.Module):
    """A language model that gives its logits and nothing else."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, inputs):
        return self.model(inputs)

    def roles(self):
        return {f"model.{name}": role for name, role in self.model.roles().items()}


@pytest.mark.parametrize("tied", [True, False])
def test_two_pass_training_without_logits_is_training_with_them(monkeypatch, tied):
    monkeypatch.setitem(chunked.CHUNK_BYTES, "cpu", 4 * 20 * 5)
    sizes = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 24,
             "max_position_embeddings": 8, "tie_word_embeddings": tied}
    inputs, targets = torch.randint(0, 20, (2, 3, 8), generator=torch.Generator().manual_seed(1))
    targets[0, 5:] = -100
    results = []
    for wrap in (lambda model: model, Plain):
        torch.manual_seed(0)
        model = wrap(build_model({"name": "qwen3", **sizes}).double())
        optimizer = build_optimizer({"name": "ars2_neo", "lr": 1e-2, "k": 1}, model)
        objective = Objective(model, loss_fn, nullcontext)
        losses = [optimizer.step(objective.on((inputs, targets))) for _ in range(3)]
        with torch.inference_mode():
            losses.append(next_token_losses(model, inputs, targets.flatten()).sum())
        results.append(torch.stack(losses))
    torch.testing.assert_close(*results, rtol=1e-6, atol=0)
