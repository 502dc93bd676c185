"""State kept in fewer bytes: what comes back, what it weighs, and that training bears it."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from optimizer.ars2_neo import ARS2Neo
from optimizer.parts.state import state_per_weight
from optimizer.parts.stored import BLOCK, restored, stored


def back(tensor, storage):
    parts = stored(tensor, storage)
    return restored(parts["value"], parts.get("scale"), tensor)


def test_8_bit_blocks_by_hand():
    x = torch.zeros(2 * BLOCK)
    x[:3] = torch.tensor([127.0, -63.4, 0.4])
    x[BLOCK] = -2.54
    parts = stored(x, "8bit")
    assert parts["value"][0, :3].tolist() == [127, -63, 0]
    assert parts["scale"].flatten().tolist() == pytest.approx([1.0, 0.02])
    assert back(x, "8bit")[[0, 1, 2, BLOCK]].tolist() == pytest.approx([127, -63, 0, -2.54])


@pytest.mark.parametrize("shape", [(1,), (3, 5), (4, 70), (2, 3, 5, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_comes_back_is_close_and_alike(shape, dtype):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert torch.equal(back(x, "full"), x)
    for storage, error in (("bf16", 2**-8), ("8bit", 1 / 254 + 2**-8)):
        y = back(x, storage)
        assert y.shape == x.shape and y.dtype == dtype
        assert float((x - y).abs().max()) <= error * float(x.abs().max())
    assert torch.equal(back(torch.zeros_like(x), "8bit"), torch.zeros_like(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_largest_entry_of_each_block_keeps_its_sign(dtype):
    blocks = torch.randn(4000, BLOCK, generator=torch.Generator().manual_seed(0)).to(dtype)
    largest = blocks.abs().argmax(1, keepdim=True)
    expected, found = (x.gather(1, largest).float() for x in (blocks, back(blocks, "8bit")))
    torch.testing.assert_close(found, expected, rtol=torch.finfo(dtype).eps, atol=0)


def trained(storage, mode, steps=40, reload_at=None):
    """Losses of a small regression, and the optimizer."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32))
    x, y = torch.randn(2, steps, 16, 32)
    make = partial(ARS2Neo, list(model.parameters()), lr=2e-3, alpha=0.3, shear_storage=storage,
                   **mode)
    optimizer, losses = make(), []

    def closure():
        model.zero_grad()
        loss = (model(x[step]) - y[step]).square().mean()
        loss.backward()
        return loss.detach()

    for step in range(steps):
        if step == reload_at:
            state = copy.deepcopy(optimizer.state_dict())
            optimizer = make()
            optimizer.load_state_dict(state)
        losses.append(float(optimizer.step(closure)))
    return losses, optimizer


LAZY, AGA = {"k": 4}, {"k": 6, "adaptive_sync": True}


@pytest.mark.parametrize("mode", [LAZY, AGA], ids=["lazy", "aga"])
def test_the_loss_hardly_changes_and_the_state_shrinks(mode):
    losses, optimizer = trained("full", mode)
    full = state_per_weight(optimizer)
    assert full == pytest.approx(3, abs=0.01)
    for storage, weight in (("bf16", 2.5), ("8bit", 2.28)):  # 8 bit: biases fill blocks
        found, optimizer = trained(storage, mode)
        assert found[0] == losses[0] and found != losses
        assert found[-1] == pytest.approx(losses[-1], rel=0.01)
        assert state_per_weight(optimizer) == pytest.approx(weight, abs=0.02)


@pytest.mark.parametrize("storage", ["bf16", "8bit"])
def test_a_checkpoint_between_two_steps_changes_nothing(storage):
    assert trained(storage, LAZY)[0] == trained(storage, LAZY, reload_at=7)[0]


def test_an_unknown_storage_is_named():
    with pytest.raises(ValueError, match="4bit"):
        ARS2Neo([nn.Parameter(torch.ones(2, 2))], shear_storage="4bit")
