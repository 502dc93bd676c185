"""The survey's axioms: exact numbers of small landscapes, and verdicts by hand."""

from itertools import islice

import numpy as np
import pytest
import torch
from test_theory import rows

from exp.papers.survey import meta_train
from exp.papers.survey.statements import (
    adafactor_memory,
    adam_diverges,
    edge_of_stability,
    lamb_batches,
    learned_rule,
    lion_decay,
    nesterov_rates,
    one_bit,
    polyak_lojasiewicz,
    sign_descent,
    svrg,
    traffic,
)
from exp.report.jsonfile import read_json
from exp.report.rows import Rows, rows_of
from exp.theory import sweeps
from exp.theory.statement import measure


@pytest.mark.parametrize(("amsgrad", "expected"), [
    (False, {3: 1, 30: 1, 300: 1, 3000: 1}),
    (True, {3: 0.909835, 30: 0.728750, 300: 0.200043, 3000: -0.998790})])
def test_adam_stays_at_the_worst_point_and_amsgrad_leaves_it(amsgrad, expected):
    path = [x for x, *_ in islice(adam_diverges.iterates(amsgrad), 3000)]
    assert {step: path[step - 1] for step in expected} == pytest.approx(expected, abs=1e-6)


def test_the_sign_of_a_gradient_climbs_on_average_and_stays_where_it_is(monkeypatch):
    monkeypatch.setattr(sign_descent, "STEPS", 300)
    found = Rows(list(measure(sign_descent, [1])))
    first = found.where(axis="first example").tree("optimizer")
    assert first == {"SGD": [0.25], "signSGD": [-0.5]}
    assert found.where(axis="second example, x1 + x2").tree("optimizer")["signSGD"] == [2.0]
    losses = found.where(axis="second example, loss").tree("optimizer")
    assert losses["signSGD"] == [2.0] and losses["EF-signSGD"][0] < 1e-4
    assert sign_descent.judge(found).word == "does not hold"  # at 2000 steps 7e-37
    one = sign_descent.descend("EF-signSGD", 1)  # p = .02 (3, -1): its length is .04
    np.testing.assert_allclose(one, [1 - 0.04, 1 + 0.04], rtol=1e-12)


def test_the_sharp_constant_of_the_pl_inequality():
    mu, x = polyak_lojasiewicz.sharp_constant()
    assert (mu, x) == pytest.approx((0.1755309859, 2.2017), abs=1e-4)
    assert mu == pytest.approx(0.1755309859, abs=1e-10)
    found = Rows(list(measure(polyak_lojasiewicz, [1])))
    values = found.where(axis="f").tree("step")
    assert values[0][0] == pytest.approx(9.0597445700, abs=1e-10)
    assert values[1][0] == pytest.approx(7.0492337012, abs=1e-10)
    assert values[10][0] == pytest.approx(1.8e-34, rel=0.02)
    assert polyak_lojasiewicz.judge(found).word == "holds"


def test_nesterovs_rates_and_bounds():
    found = Rows(list(measure(nesterov_rates, [1]))).tree("problem", "axis", "steps")
    convex, strong = found["convex"], found["strongly convex"]
    assert convex["Nesterov"] == {10: [pytest.approx(0.0201187724, abs=1e-10)],
                                  50: [pytest.approx(0.0038177124, abs=1e-10)]}
    assert convex["bound"] == {10: [pytest.approx(0.5537, abs=1e-4)],
                               50: [pytest.approx(0.02576, abs=1e-5)]}
    assert convex["descent"][50] == [pytest.approx(0.0127918913, abs=1e-10)]
    assert strong["Nesterov"][50] == [pytest.approx(9.467429e-06, rel=1e-6)]
    assert strong["descent"][50] == [pytest.approx(0.1353262606, abs=1e-10)]
    least = nesterov_rates.solution()
    assert nesterov_rates.chain(least) == pytest.approx(-0.1237745098, abs=1e-10)
    assert float(least @ least) == pytest.approx(33.5016339, abs=1e-7)
    np.testing.assert_allclose(nesterov_rates.chain_slope(least), 0, atol=1e-15)


def test_descent_on_the_chain_by_its_matrix():
    """The error after 10 steps, from eigenvalues: x_k - x* = (I - A / 4)^k (0 - x*)."""
    n = nesterov_rates.N
    a = (2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1)) / 4
    error = -np.linalg.matrix_power(np.eye(n) - a, 10) @ nesterov_rates.solution()
    path = nesterov_rates.descent(nesterov_rates.chain_slope, np.zeros(n), 1.0, 10)
    found = nesterov_rates.chain(path[-1]) - nesterov_rates.chain(nesterov_rates.solution())
    assert found == pytest.approx(float(error @ a @ error) / 2, rel=1e-10)


def test_heavy_ball_with_the_new_gradient_is_nesterov_at_its_look_ahead_point():
    """The survey's form: m <- b m + g, w <- w - lr (b m + g)."""
    rate, b, w, m = 0.005, 0.8, np.ones(2), np.zeros(2)
    path = nesterov_rates.nesterov(nesterov_rates.bowl_slope, np.ones(2), rate, 21, b)
    for k in range(1, 21):
        g = nesterov_rates.bowl_slope(w)
        m = b * m + g
        w = w - rate * (b * m + g)
        np.testing.assert_allclose(w, path[k] + b * (path[k] - path[k - 1]), atol=1e-12)


def test_the_edge_of_stability_is_two_over_the_curvature():
    assert edge_of_stability.descend(1.0) == 1
    assert abs(edge_of_stability.descend(1.01)) == pytest.approx(1.02**100)
    assert abs(edge_of_stability.descend(0.99)) == pytest.approx(0.98**100)


def test_svrg_by_hand_and_at_the_end():
    mean = svrg.full_slope(np.zeros(2))
    np.testing.assert_allclose(mean, [-1 / 3, -4 / 3])
    path = svrg.epoch(np.zeros(2), 0.3, 3, True)
    np.testing.assert_allclose([path[0], path[2]], [[0.1, 0.4], [0.15, 0.27]], atol=1e-12)
    assert svrg.judge(Rows(list(measure(svrg, [1])))).word == "holds"


@pytest.mark.parametrize(("bits", "verdict"), [
    ([5.0, 5.0005], "holds"), ([5.0, 5.08], "inconclusive"), ([5.2, 5.21], "does not hold")])
def test_the_verdict_on_one_bit(bits, verdict):
    grids = {name: {0.1: losses, 0.2: [9.0, 9.0]} for name, losses in {
        "SGD": [5.0, 5.0], "EF-signSGD": bits, "EF top 1 %": [5.0, 5.0],
        "Signum, no feedback": [5.5, 5.5]}.items()}
    assert one_bit.judge(rows(grids, "optimizer", "lr")).word == verdict


def test_the_bytes_of_adafactors_state_by_hand(monkeypatch):
    monkeypatch.setattr(adafactor_memory, "MODELS", {"CIFAR-10": {"name": "resnet18", "width": 2}})
    monkeypatch.setattr(adafactor_memory, "GRID", {"task": ("CIFAR-10",)})
    found = Rows(list(measure(adafactor_memory, [1])))
    share = found.values(axis="share")[0]
    assert 0.3 < share < 0.5  # of 3 x 3 kernels 6 numbers of 9 are left, of 1 x 1 two of one
    with_moment = found.values(axis="share, with a first moment")[0]
    assert with_moment == pytest.approx(share + 0.5, abs=0.02)
    matrix = torch.nn.Linear(30, 20, bias=False)
    assert adafactor_memory.state(matrix, torch.optim.Adafactor) == pytest.approx(
        (20 + 30 + 1) / 600)  # rows, columns, the step
    assert adafactor_memory.state(matrix, torch.optim.AdamW) == pytest.approx((1200 + 1) / 600)
    assert adafactor_memory.judge(found).word == ("holds" if share >= 0.4 else "does not hold")


@pytest.mark.parametrize(("share", "losses", "verdict"), [
    (0.06, [5.0, 5.001, 5.002], "holds"), (0.06, [5.5, 5.51, 5.52], "does not hold"),
    (0.2, [5.0, 5.001, 5.002], "does not hold")])
def test_the_verdict_on_traffic(share, losses, verdict):
    grids = {name: {0.1: values, 0.2: [9.0] * 3} for name, values in {
        traffic.BASE: [5.0, 5.0, 5.0], "LocalSGD": losses, "DiLoCo": [6.0, 6.1, 6.2]}.items()}
    sent = rows_of({traffic.BASE: [1000.0], "LocalSGD": [1000 * share], "DiLoCo": [60.0]},
                   ("optimizer",), [1], axis="bytes")
    measured = Rows([*rows(grids, "optimizer", "lr"), *sent])
    assert traffic.shares(measured)["LocalSGD"] == pytest.approx(share)
    assert traffic.judge(measured).word == verdict
    assert len(traffic.tables(measured)["losses"]) == 4


@pytest.mark.parametrize(("lion", "verdict"), [
    (1.0, "holds"), (0.2, "does not hold"), (8.0, "does not hold")])
def test_the_verdict_on_lions_decay(lion, verdict):
    def losses(best):  # a parabola over log decay, seeds a little apart
        return {d: [np.log(d / best / shift) ** 2 for shift in (0.95, 1.0, 1.05)]
                for d in lion_decay.DECAYS}

    tree = {"AdamW": {2**-7: losses(0.25)}, "Lion": {2**-9: losses(lion)}}
    found = rows(tree, *lion_decay.KEYS)
    assert lion_decay.judge(found).word == verdict
    assert lion_decay.tables(found)["losses"][1][:2] == ("AdamW", "0.0078125")


@pytest.mark.parametrize(("large", "verdict"), [(5.3, "holds"), (5.6, "does not hold")])
def test_the_verdict_on_lambs_batches(large, verdict):
    def grid(loss):
        return {0.1: [loss - 0.01, loss, loss + 0.01], 0.2: [9.0] * 3}

    tree = {"AdamW": {4: grid(5.0), 64: {**grid(5.5), 0.1: [5.5, 5.5, 5.5]}},
            "LAMB": {4: grid(5.0), 64: {**grid(large), 0.1: [large, large + .02, large]}}}
    found = rows(tree, *lamb_batches.KEYS)
    assert lamb_batches.judge(found).word == verdict
    assert len(lamb_batches.tables(found)["losses"]) == 5


def test_a_tiny_run_of_the_surveys_numbers(tiny_data, monkeypatch):
    monkeypatch.setitem(sweeps.curve.__kwdefaults__, "count", 4)
    monkeypatch.setattr(sweeps, "LONGEST", 3)
    monkeypatch.setattr(lion_decay, "DECAYS", (0.1, 1.0))
    monkeypatch.setattr(lamb_batches, "EXAMPLES", 64)
    monkeypatch.setattr(lamb_batches, "LARGE", 8)
    monkeypatch.setattr(meta_train, "STEPS", 3)
    for module in (lion_decay, lamb_batches):
        found = module.judge(Rows(list(measure(module, [1]))))
        assert found.word == "inconclusive" and found.numbers  # of one seed nothing follows
    found = Rows(list(learned_rule.measure([1], "grokking", "Celo2")))
    assert len(found) == 1 and 0 < found[0].value < 10
    loss, sent = traffic.trained({**sweeps.adamw(0.01), **traffic.RULES["DiLoCo"]}, 1, 3)
    assert 0 < loss < 10 and sent == 0  # one process sends nothing


# --- the learned rule


def test_meta_training_descends_and_goes_on_to_the_bit(monkeypatch, tmp_path, capsys):
    """On a bowl instead of trainings: loss 1 + |numbers|^2, that of the reference 1."""
    def bowl(table, task, seed, network=None):
        return 1.0 if network is None else 1 + float(network.square().sum())

    monkeypatch.setattr(meta_train, "final_loss", bowl)
    path = tmp_path / "weights.json"
    command = ["--minutes", "1", "--output", str(path)]
    ticks = iter([0, 0, 0, 1, 30, 30, 31, 61, 100, 100, 100, 101, 161])
    monkeypatch.setattr(meta_train.time, "perf_counter", lambda: next(ticks))
    assert [meta_train.main(command) for _ in range(2)] == [0, 0]  # two generations, then one
    state = read_json(path)
    assert (state["generation"], state["seconds"]) == (3, 3.0)
    whole = meta_train.read(tmp_path / "none", 0)
    for _ in range(3):
        whole = meta_train.advanced(whole)
    assert all(state[key] == whole[key] for key in ("start", "trained", "log_ratios"))
    before, after = (sum(x * x for x in state[key]) for key in ("start", "trained"))
    assert after < before
    assert state["log_ratios"][0] == pytest.approx(np.log(1 + before + 347 * meta_train.SIGMA**2),
                                                   rel=0.05)
    assert meta_train.main([*command, "--seed", "1"]) == 2
    assert "is damaged or of another seed than 1" in capsys.readouterr().err


def test_ranks_shape_the_losses():
    found = meta_train.utilities([3.0, float("inf"), 1.0, 2.0, 9.0])
    assert found.tolist() == [0.0, -0.5, 0.5, 0.25, -0.25]


@pytest.mark.parametrize(("trained", "verdict"), [
    (1.0, "holds"), (1.4, "does not hold"), (2.5, "does not hold")])
def test_the_verdict_on_the_learned_rule(trained, verdict):
    """Below AdamW's loss of 2, below 1.2 of its start, both on the task that was held out."""
    losses = {"AdamW": (2.0, 0.01), "Muon": (1.3, 0.0), "Celo2, start": (1.2, 0.0),
              "Celo2": (trained, 0.02)}
    tree = {task: {name: {0.01: [mean - by, mean, mean + by]} for name, (mean, by) in of.items()}
            for task, of in {"grokking": {**losses, "Celo2": (0.1, 0.0)}, "cifar": losses}.items()}
    found = rows(tree, "task", "optimizer", "lr")
    assert learned_rule.judge(found).word == verdict
    assert len(learned_rule.tables(found)["losses"]) == 9
