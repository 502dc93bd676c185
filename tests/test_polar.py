"""Orthogonalization against hand-checked numbers and the SVD."""

from collections import defaultdict

import numpy as np
import pytest
import torch
from references import keller5, msign
from torch.optim._muon import _zeropower_via_newtonschulz as torch_polar

from exp.bench.polar import inputs
from optimizer.parts.polar import (
    COEFFICIENTS,
    exact_polar,
    newton_schulz,
    orthogonalize,
    product_dtype,
)

DOUBLE = {"dtype": torch.float64}


def one(matrix, name, steps=5):
    return newton_schulz(torch.tensor([matrix], **DOUBLE), steps, name)[0]


def test_keller_five_steps_on_a_diagonal():
    expected = torch.diag(torch.tensor([0.722876, 1.119204], **DOUBLE))
    torch.testing.assert_close(one([[3.0, 0], [0, 4.0]], "keller"), expected, atol=1e-6, rtol=0)


def test_keller_five_steps_on_the_identity_and_on_ones():
    identity = one([[1.0, 0], [0, 1.0]], "keller")
    torch.testing.assert_close(identity, 1.108111 * torch.eye(2, **DOUBLE), atol=1e-6, rtol=0)
    ones = one([[1.0, 1], [1, 1.0]], "keller")
    torch.testing.assert_close(ones, torch.full((2, 2), 0.348218, **DOUBLE), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("name", "steps", "tolerance"), [
    ("cubic", 5, 1e-6), ("cubic", 12, 1e-12), ("taylor", 8, 1e-12), ("polar_express", 10, 1e-5)])
def test_convergent_sets_reach_msign_of_a_well_conditioned_matrix(name, steps, tolerance):
    result = one([[3.0, 0], [0, 4.0]], name, steps)
    torch.testing.assert_close(result, torch.eye(2, **DOUBLE), atol=tolerance, rtol=0)


@pytest.mark.parametrize(("name", "low", "high"), [
    ("keller", 0.682, 1.134), ("youjiacheng", 0.978, 1.032), ("polar_express", 0.870, 1.124),
    ("polar_express_5", 0.859, 1.141), ("taylor", 0.229, 1.000)])
def test_five_steps_map_singular_values_into_the_published_range(name, low, high):
    # 1 x 1 matrices would all be normalized to 1: a diagonal whose norm is 1 holds each value.
    for value in np.geomspace(0.01, 0.999, 400):
        rest = (1 - value**2) ** 0.5
        diagonal = one([[value, 0.0], [0.0, rest]], name)
        assert low - 1e-3 <= float(diagonal[0, 0]) <= high + 1e-3


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (3, 5, 7), (3, 7, 5), (4, 3, 2, 2)])
def test_orthogonalize_equals_a_plain_version_matrix_by_matrix(shape):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0), **DOUBLE)
    stack = tensor.reshape(1, shape[0], -1) if len(shape) != 3 else tensor
    for name, reference in (("keller", keller5), ("svd", msign)):
        (result,) = orthogonalize([tensor], name)
        expected = np.stack([reference(matrix) for matrix in stack.numpy()])
        torch.testing.assert_close(result, torch.from_numpy(expected), atol=1e-12, rtol=1e-12)


def test_a_list_of_mixed_shapes_keeps_its_order():
    generator = torch.Generator().manual_seed(1)
    shapes = [(4, 9), (9, 4), (4, 9), (5, 5), (2, 9, 4)]
    tensors = [torch.randn(s, generator=generator, **DOUBLE) for s in shapes]
    for tensor, result in zip(tensors, orthogonalize(tensors), strict=True):
        torch.testing.assert_close(result, orthogonalize([tensor])[0])


@pytest.mark.parametrize("name", [*COEFFICIENTS, "svd"])
def test_symmetries_zero_and_scale(name):
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(2), **DOUBLE)
    (o,) = orthogonalize([x], name)
    torch.testing.assert_close(orthogonalize([-x], name)[0], -o)
    torch.testing.assert_close(orthogonalize([x.T], name)[0], o.mT)
    torch.testing.assert_close(orthogonalize([x * 1e-12], name)[0], o)
    assert torch.equal(orthogonalize([torch.zeros(3, 4)], name)[0], torch.zeros(1, 3, 4))
    # A momentum that dies away: its squares underflow in float32 long before it is zero itself.
    for scale in (1e-18, 1e-22, 1e-30, 1e-38, 1e-44):
        (faint,) = orthogonalize([scale * torch.randn(3, 4)], name)
        assert faint.isfinite().all() and faint.abs().max() < 1.5


def test_exact_polar_drops_the_null_space():
    rank_one = torch.ones(1, 2, 2, **DOUBLE)
    torch.testing.assert_close(exact_polar(rank_one), rank_one / 2)


def test_float32_agrees_with_float64():
    x = torch.randn(16, 40, generator=torch.Generator().manual_seed(3))
    (single,), (double,) = orthogonalize([x]), orthogonalize([x.double()])
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, atol=2e-5, rtol=0)


def spectrum(m, n, values):
    """A float64 matrix (1, m, n) with these singular values."""
    generator = torch.Generator().manual_seed(4)
    u, _, vh = torch.linalg.svd(torch.randn(m, n, generator=generator, **DOUBLE),
                                full_matrices=False)
    return (u[:, : len(values)] * torch.as_tensor(values) @ vh[: len(values)]).unsqueeze(0)


@pytest.mark.parametrize(("values", "tolerance"), [
    (np.linspace(1, 0.3, 150), 1e-5), (np.geomspace(1, 1e-6, 150), 1e-3),
    (np.ones(75), 1e-4), (np.ones(1), 2e-3)], ids=["well", "ill", "half the rank", "rank one"])
@pytest.mark.parametrize("name", ["keller", "polar_express"])
def test_gram_space_loses_little_in_float32_whatever_the_condition(name, values, tolerance):
    # 150 rows: symmetric products are split, and the last block row is shorter than the others.
    x = spectrum(150, 400, values)
    expected = newton_schulz(x, 5, name)  # float64: the long matrix itself
    error = (newton_schulz(x.float(), 5, name) - expected).norm() / expected.norm()
    assert float(error) < tolerance


def test_gram_space_starts_anew_before_its_rounding_grows():
    x = spectrum(20, 60, np.ones(1))
    result = newton_schulz(x.float(), 12, "polar_express")
    assert float((result - x).norm()) < 2e-2


def test_split_products_of_square_matrices_are_the_plain_ones():
    x = torch.randn(1, 300, 310, generator=torch.Generator().manual_seed(5), **DOUBLE)
    expected = torch.from_numpy(keller5(x[0].numpy()))
    torch.testing.assert_close(newton_schulz(x)[0], expected, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("shape", "seeds"), [((16, 16), 8), ((24, 80), 8), ((136, 140), 1)])
def test_bfloat16_is_no_less_exact_than_torch(shape, seeds):
    # Distances from the same five steps in float64. The 2 % are luck: both round the input, and
    # where that decides (rank one) they are equal.
    errors = defaultdict(list)
    for seed in range(seeds):
        for kind, matrix in inputs(*shape, seed):
            x, exact = matrix.float(), newton_schulz(matrix[None])[0]
            theirs = torch_polar(x, COEFFICIENTS["keller"][1][0], 5, 1e-7)
            for turned in (x, x.T):
                ours = orthogonalize([turned], ns_dtype="bfloat16")[0][0]
                ours = ours if turned is x else ours.T
                errors[kind].append([float((o.double() - exact).norm()) for o in (ours, theirs)])
    for kind, distances in errors.items():
        ours, theirs = np.mean(distances, 0)
        assert ours <= 1.02 * theirs, kind


def test_the_dtype_of_products_is_chosen_in_one_place():
    single, half, double = (torch.ones(3, 4, dtype=dtype) for dtype in (
        torch.float32, torch.bfloat16, torch.float64))
    assert [product_dtype(x, "auto") for x in (single, half, double)] == [
        torch.float32, torch.float32, torch.float64]
    assert {product_dtype(x, "bfloat16") for x in (single, half, double)} == {torch.bfloat16}
    (auto,), (same,) = (orthogonalize([single], ns_dtype=name) for name in ("auto", "float32"))
    assert torch.equal(auto, same)
    (narrow,) = orthogonalize([single], ns_dtype="bfloat16")
    assert narrow.dtype == torch.float32 and torch.equal(narrow, narrow.bfloat16().float())
    exact = orthogonalize([single], "svd", ns_dtype="bfloat16")[0]
    assert torch.equal(exact, orthogonalize([single], "svd")[0])
