"""exp.theory: the statements' formulas by hand, their verdicts, and a tiny run of each."""

import math

import pytest
import torch
from test_theory import rows, spread
from torch.nn import functional as F

from exp.harness.task import task_named
from exp.papers.ars2_neo.statements import (
    agam_paths,
    code_length,
    decorrelation,
    early_ranks,
    entropy_monitor,
    fewer_steps,
    fisher_diagonal,
    flatness,
    learning_rate_width,
    natural_gradient,
    norm_bound,
    radius_sweep,
    sign_spectrum,
    slow_sharpness,
    whitened_perturbation,
)
from exp.report.rows import read_rows
from exp.theory import __main__ as command
from exp.theory import perturbations, statement, training

DOUBLE = torch.float64
TINY = task_named("grokking").scales["tiny"]


def softmax_regression(examples=6):
    """A linear model of 3 classes and 2 features, inputs, labels, and its exact Fisher, row by
    row: the mean of (diag p - p p^T) (x) x x^T."""
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 3, bias=False, dtype=DOUBLE)
    x = torch.randn(examples, 2, dtype=DOUBLE)
    rows = []
    for row in x:
        p = (model.weight @ row).softmax(0).detach()
        rows.append(torch.kron(p.diag() - torch.outer(p, p), torch.outer(row, row)))
    return model, x, torch.arange(examples) % 3, torch.stack(rows).mean(0)


# --- learning_rate_width


@pytest.mark.parametrize(("slopes", "verdict"), [
    (spread(0.2), "holds"), (spread(-0.5), "does not hold"), (spread(0.2, 0.1), "inconclusive")])
def test_the_verdict_on_width(slopes, verdict):
    def losses(slopes, width):
        return {lr: [(math.log2(lr) - slope * math.log2(width)) ** 2 for slope in slopes]
                for lr in (2.0**n for n in range(-10, 11))}

    tree = {label: {w: losses(of_rule, w) for w in (64, 128, 256)} for label, of_rule in zip(
        ("ARS2-Neo Base, literal", "ARS2-Neo Base, rms", "Muon"),
        (slopes, spread(1.0), spread(1.0)), strict=True)}  # the others decide nothing
    assert learning_rate_width.judge(rows(tree, *learning_rate_width.KEYS)).word == verdict


# --- natural_gradient


def test_the_exact_fisher_of_softmax_regression_by_hand(monkeypatch):
    model, x, labels, exact = softmax_regression()
    monkeypatch.setattr(natural_gradient, "CHUNK", 4)  # 6 rows: the last chunk is shorter
    torch.testing.assert_close(natural_gradient.fisher(model, x), exact)
    errors = (model(x).softmax(-1) - F.one_hot(labels, 3)).detach()
    gradient = (errors.T @ x / len(x)).flatten()
    torch.testing.assert_close(natural_gradient.flat_gradient(model, x, labels), gradient)
    damping = 0.1 * exact.diagonal().mean() * torch.eye(6, dtype=DOUBLE)
    torch.testing.assert_close(natural_gradient.damped(exact, 0.1), exact + damping)


def test_operators_by_layer_and_by_matrix():
    net = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 1, bias=False))
    matrix = torch.diag(torch.tensor([1.0, 2, 4, 8, 5, 10]))
    matrix[0, 5] = matrix[5, 0] = 1.0  # between layers: dropped
    gradient = torch.tensor([3.0, 0, 0, -4, 6, 8])
    torch.testing.assert_close(natural_gradient.by_layer(gradient, matrix, net),
                               torch.tensor([3, 0, 0, -0.5, 1.2, 0.8]))
    polar = natural_gradient.by_matrix(gradient, net)  # diag(3, -4) -> diag(1, -1)
    torch.testing.assert_close(polar, torch.tensor([1.0, 0, 0, -1, 0.6, 0.8]))
    torch.testing.assert_close(natural_gradient.by_matrix(gradient, net, energy=True),
                               torch.tensor([5.0, 0, 0, -5, 6, 8]))


def test_a_shadow_steps_from_the_weights_it_is_given():
    model, x, labels, _ = softmax_regression()
    weights = {"weight": torch.zeros(3, 2, dtype=DOUBLE)}
    update = natural_gradient.shadow_update(model, torch.optim.SGD(model.parameters(), lr=0.5),
                                            weights, x, labels)
    expected = -0.5 * ((1 / 3 - F.one_hot(labels, 3).double()).T @ x / len(x)).flatten()
    torch.testing.assert_close(update, expected)


@pytest.mark.parametrize(("ours", "verdict"), [
    ((0.95, 0.93), "holds"), ((0.95, 0.6), "does not hold"), ((0.95, 0.9), "inconclusive")])
def test_the_verdict_on_the_natural_gradient(ours, verdict):
    def entry(values):
        return {n: {0.1: spread(value)} for n, value in enumerate(values)}

    rules = {"SGD": entry((0.1, 0.2)), "Adam": entry((0.4, 0.4)), "AdaRMSuon": entry(ours)}
    assert natural_gradient.judge(rows(rules, "name", "step", "damping", axis="cosine",
                                       kind="rules")).word == verdict


# --- slow_sharpness


def test_the_autocorrelation_of_a_series_that_turns():
    angles = 0.3 * torch.arange(12, dtype=DOUBLE)
    series = torch.stack([angles.cos(), angles.sin()], 1) * torch.arange(1, 13).unsqueeze(1)
    found = slow_sharpness.autocorrelation(series, (1, 5))
    assert found == pytest.approx([math.cos(0.3), math.cos(1.5)])


@pytest.mark.parametrize("k", [1, 2])
def test_the_shear_force_is_the_one_that_ars2_neo_stores(k):
    run = training.built({"name": "ars2_neo", "k": 2, "lr": 1e-2}, 1, scale="tiny")
    for _ in training.steps(run, 2 * k):
        pass
    params = list(run.model.parameters())
    weights = [p.detach().clone() for p in params]
    batch = next(training.batches(run))
    gradient, shear = perturbations.gradient_and_shear(run, batch, params)
    assert all(torch.equal(p, w) for p, w in zip(params, weights, strict=True))
    run.optimizer.step(run.objective.on(batch))  # steps 3 and 5: with k = 2 sync steps
    stored = torch.cat([run.optimizer.state[p]["shear_force"].flatten() for p in params])
    torch.testing.assert_close(shear, stored, rtol=1e-3, atol=1e-6)
    assert abs(float(gradient @ shear)) < 1e-3 * float(gradient.norm() * shear.norm())


@pytest.mark.parametrize(("shear", "verdict"), [
    ((0.9, 0.5), "holds"), ((0.9, 0.1), "does not hold"), ((0.9, 0.31), "inconclusive")])
def test_the_verdict_on_slow_sharpness(shear, verdict):
    def entry(values):
        return {lag: spread(value) for lag, value in zip((1, 5), values, strict=True)}

    gradient = {1: [0.3] * 3, 5: [0.3] * 3}
    window = {"training batches": {"gradient": gradient, "shear force": entry(shear)}}
    found = slow_sharpness.judge(rows(
        {"a": window}, "window", "batches", "kind", "lag", task="x", axis="cosine"))
    assert found.word == verdict and found.numbers.startswith(
        f"cosine 5 steps apart: gradient 0.30 to 0.30, shear force {shear[1]:.2f} to")


# --- whitened_perturbation


def test_rise_and_divergence_by_hand():
    before = torch.tensor([[0.5, 0.5], [0.9, 0.1]], dtype=DOUBLE).log()
    after = torch.tensor([[0.25, 0.75], [0.1, 0.9]], dtype=DOUBLE).log()
    loss, divergence = whitened_perturbation.rise(before, after, torch.tensor([0, -100]))
    assert loss == pytest.approx(math.log(2))
    assert divergence == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75))


def test_per_divergence_is_slope_over_fisher_length_and_the_natural_gradient_has_most():
    model, x, labels, exact = softmax_regression(40)
    gradient = natural_gradient.flat_gradient(model, x, labels)
    natural = torch.linalg.pinv(exact, hermitian=True) @ gradient
    before = model(x).detach().log_softmax(-1)
    found = []
    for direction in (natural, gradient, torch.randn(6, dtype=DOUBLE)):
        step = 1e-5 * direction / direction.norm()
        after = F.linear(x, model.weight.detach() + step.view(3, 2)).log_softmax(-1)
        values = whitened_perturbation.rise(before, after, labels)
        entry = dict(zip(("rise", "divergence"), ([value] for value in values), strict=True))
        found += whitened_perturbation.per_divergence(entry)
        slope = float(gradient @ direction / (direction @ exact @ direction).sqrt())
        assert found[-1] == pytest.approx(slope, rel=1e-3)
    assert found[0] == max(found)


def test_whitening_divides_by_the_root_of_the_second_moment():
    p = torch.nn.Parameter(torch.tensor([1.0, 1.0], dtype=DOUBLE))
    optimizer = torch.optim.AdamW([p], lr=0.0, betas=(0.9, 0.5))
    for gradient in ([1.0, 2.0], [3.0, 2.0]):
        p.grad = torch.tensor(gradient, dtype=DOUBLE)
        optimizer.step()
    # v = (0.5 * 0.5 * [1, 4] + 0.5 * [9, 4]) / 0.75 = [19/3, 4]
    found = perturbations.whitened(optimizer, [p], [torch.tensor([1.0, 1.0], dtype=DOUBLE)])
    torch.testing.assert_close(found[0], torch.tensor([(3 / 19) ** 0.5, 0.5], dtype=DOUBLE))


@pytest.mark.parametrize(("rises", "verdict"), [
    ((2.0, 2.0), "holds"), ((2.0, 0.5), "does not hold"), ((2.0, 1.0), "inconclusive")])
def test_the_verdict_on_whitened_perturbations(rises, verdict):
    tree = {n: {name: {"rise": values, "divergence": [1.0] * 3} for name, values in (
        ("whitened", spread(rise)), ("gradient", [1.0] * 3))} for n, rise in enumerate(rises)}
    assert whitened_perturbation.judge(rows(
        tree, "step", "direction", "axis", task="x", norm="global", length=0.1)).word == verdict


# --- flatness


@pytest.mark.parametrize(("order", "verdict"), [
    ((1, 1, 1), "holds"), ((1, -1, 1), "does not hold"), ((1, 0, 1), "inconclusive")])
def test_the_verdict_on_flatness(order, verdict):
    # The places of six optimizers by curvature, seed by seed; by gap they are in order. One
    # exchange of neighbours is 1 - 6 * 2 / (6 * 35) = 0.943, two are 0.886.
    places = {1: (123456, 213456, 213465), 0: (123456, 654321, 213465),
              -1: (654321, 653421, 563421)}
    ranks = {1: [1.0, 0.943, 0.886], 0: [1.0, -1.0, 0.886], -1: [-1.0, -0.943, -0.886]}
    by_rule = {str(n): {"gap": [n + 1.0] * 3,
                        **{key: [float(str(seed)[n]) ** 3 for seed in places[sign]]
                           for key, sign in zip(flatness.MEASURES, order, strict=True)}}
               for n in range(6)}
    assert flatness.correlations(by_rule, "trace") == pytest.approx(ranks[order[1]], abs=1e-3)
    assert flatness.judge(rows({"task": by_rule}, *flatness.KEYS)).word == verdict
    for entry in by_rule.values():
        entry["trace"] = [7.0] * 3
    assert flatness.correlations(by_rule, "trace") == [0.0] * 3


# --- the paper's open statements


@pytest.mark.parametrize(("end", "verdict"), [
    ({"A": 9.0, "B": 8.0, "C": 7.0}, "holds"), ({"A": 7.0, "B": 8.0, "C": 9.0}, "does not hold")])
def test_the_verdict_on_early_ranks(end, verdict):
    early = {"A": [0.3] * 5, "B": [0.2] * 5, "C": [0.1] * 5}
    tree = {name: {"early": early[name], "end": [end[name]] * 5} for name in early}
    cifar = rows(tree, "optimizer", "axis", task="cifar")
    assert early_ranks.judge(cifar).word == verdict
    # On modular addition the end is epochs, fewer are better; never is worst, and all equal is 0.
    grokking = rows({"A": {"early": [0.3], "end": [40]}, "B": {"early": [0.2], "end": [90]},
                     "C": {"early": [0.1], "end": [None]}}, "optimizer", "axis", task="grokking")
    assert early_ranks.goodness(grokking, "grokking")[1] == [-40, -90, -math.inf]
    assert early_ranks.correlations(grokking)["grokking"].value == pytest.approx(1.0)
    assert early_ranks.correlation([1.0, 1.0], [1.0, 2.0]) == 0.0


def test_the_verdicts_on_the_bound_and_on_decorrelation():
    for norms, verdict in (((0.8, 0.9), "holds"), ((0.8, 1.2), "does not hold")):
        tree = dict(zip(norm_bound.JUDGED, map(spread, norms), strict=True))
        assert norm_bound.judge(rows(tree, "optimizer", axis="lambda ||W||")).word == verdict
    stack = torch.stack([torch.diag(torch.tensor([3.0, 4.0])), torch.eye(2)])
    assert norm_bound.largest(stack) == pytest.approx(4.0)
    for less, verdict in ((0.1, "holds"), (-0.1, "does not hold")):
        ends = {"AdamW": [0.3] * 3, **dict.fromkeys(("Muon", "RMSuon"), spread(0.3 - less))}
        found = decorrelation.judge(rows(ends, "optimizer", axis="at the end"))
        assert found.word == verdict
    # Rows (1, 0), (1, 1), (0, 1): cosines 0.7071, 0, 0.7071.
    assert decorrelation.likeness(torch.tensor([[1.0, 0], [1, 1], [0, 1]])) == pytest.approx(
        2 * 0.5**0.5 / 3)


def test_the_verdicts_on_code_length_and_entropy():
    def entry(sharp, code):
        return {code_length.SHARP: spread(sharp), code_length.CODE: spread(code)}

    for codes, verdict in (((1, 2, 3), "holds"), ((3, 2, 1), "does not hold")):
        tree = {str(n): entry(n, code) for n, code in enumerate(codes)}
        assert code_length.judge(rows({"x": tree}, "task", "optimizer", "axis")).word in (
            verdict, "inconclusive")  # three equal correlations: their spread is unknown
        values = code_length.agreement(rows({"x": tree}, "task", "optimizer", "axis"))["x"]
        assert values.value == pytest.approx(2.0 * (verdict == "holds") - 1)
    order = {"weights": (1, 2, 3, 4), "loss": (2, 1, 4, 3), "end": (4, 3, 2, 1)}
    tree = {str(n): {entropy_monitor.WEIGHTS: [order["weights"][n]] * 5,
                     entropy_monitor.LOSS: [order["loss"][n]] * 5,
                     entropy_monitor.END: [order["end"][n]] * 5} for n in range(4)}
    measured = rows(tree, "optimizer", "axis")
    assert entropy_monitor.strengths(measured, entropy_monitor.WEIGHTS) == pytest.approx([1.0] * 5)
    # 1 - 6 * 4 / (4 * 15) = 0.6 in size
    assert entropy_monitor.gain(measured).value == pytest.approx(0.4)


# --- sign_spectrum


def test_the_old_ars_orthogonalizes_the_sign_of_its_first_gradient(monkeypatch):
    monkeypatch.setattr(sign_spectrum, "AFTER_POINTS", (1,))
    momenta, updates = sign_spectrum.momenta_and_updates("ARS (old)", 1)[1]
    for m, update in list(zip(momenta, updates, strict=True))[2:]:  # signs of W_Q, W_K: singular
        signs = m.sign()
        left, values, right = torch.linalg.svd(signs, full_matrices=False)
        polar = left @ right
        # lr E msign(sign(g)), E = ||sign(g)||_F; five Newton-Schulz steps are not exact.
        energy = torch.linalg.matrix_norm(signs, keepdim=True)
        error = torch.linalg.matrix_norm(update.view_as(signs) / (-1e-3 * energy) - polar)
        assert float((error / torch.linalg.matrix_norm(polar)).max()) < 0.5
        assert float(values.min()) > 1e-3  # of full rank: msign is unique


# --- tiny runs


def test_a_tiny_run_of_each_is_written_and_reads_back(tiny_data, tmp_path, monkeypatch, capsys):
    def small(module, **values):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)

    ars = [name for name in learning_rate_width.RULES if "ARS2" in name]
    small(learning_rate_width, STEPS=4, GRID={"optimizer": ars, "width": (8, 16)})
    small(natural_gradient, POINTS=(2, 3), EXAMPLES=40, DAMPINGS=(0.01, 0.1))
    small(slow_sharpness, LAGS=(1, 2), PERIODS=(0, 2), RUN_STEPS=2, WINDOWS={
        "grokking": ((0,), 3, "tiny"), "wikitext2": ((0, 2), 3, "small")})
    small(whitened_perturbation, TASKS={"grokking": (1, 2)}, GRID={"task": ("grokking",)},
          LENGTHS=(0.1, 1.0))
    small(flatness, TASKS={"grokking": TINY, "cifar": {}}, MAX_EPOCHS=1,
          EXAMPLES=8, HELD_OUT=20,
          GRID={"task": ("grokking", "cifar"), "optimizer": ("AdamW", "SAM-AdamW", "Muon")})
    small(fisher_diagonal, TASKS={
        "grokking": ((1,), 8, "tiny"), "cifar": ((1, 2), 4, "small"),
        "wikitext2": ((1,), 4, "small")})
    small(agam_paths, STEPS=3)
    small(norm_bound, STEPS=2, GRID={"optimizer": norm_bound.JUDGED})
    small(decorrelation, GRID={"optimizer": ("AdamW", "Muon")})
    small(code_length, PARTS=(2, 1), EXAMPLES=8,
          GRID={"task": ("grokking",), "optimizer": ("AdamW", "Muon")})
    small(entropy_monitor, EARLY=1, LATE=1, HELD_OUT=20,
          GRID={"optimizer": ("AdamW", "Muon"), "factor": (1.0,)})
    names = ["learning_rate_width", "natural_gradient", "slow_sharpness", "whitened_perturbation",
             "flatness", "fisher_diagonal", "norm_bound", "decorrelation", "code_length",
             "entropy_monitor", "early_ranks", "agam_paths"]
    assert command.main([*names, "--seeds", "2", "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("written to") == len(names)
    check_pages(names, tmp_path)


def check_pages(names, folder):
    """The pages of these statements are what their JSON says, and their figures are there."""
    for name in names:
        measured, provenance = read_rows(folder / f"{name}.json")
        assert (folder / f"{name}.md").read_text() == statement.page_of(name, measured, provenance)
        assert provenance["commit"]
        numbers = statement.statement(name).judge(measured).numbers
        assert numbers and not set("|\n") & set(numbers)
        if hasattr(statement.statement(name), "figure"):
            assert (folder / f"{name}.png").stat().st_size > 1000


def test_no_cell_of_a_table_holds_a_bare_pipe():
    for path in command.PUBLISHED.glob("*.md"):
        tables = [line.replace("\\|", "") for line in path.read_text(encoding="utf-8").splitlines()
                  if line.startswith("|")]
        for above, below in zip(tables, tables[1:], strict=False):
            if below.startswith("|-"):
                assert above.count("|") == below.count("|"), path


def test_committed_plots_are_there():
    for name in statement.statement_files():
        if hasattr(statement.statement(name), "figure"):
            assert (command.PUBLISHED / f"{name}.png").exists()


@pytest.mark.parametrize(("three", "verdict"), [
    (0.3, "holds"), (0.5, "does not hold"), (0.4, "inconclusive")])
def test_the_verdict_on_fewer_steps(three, verdict):
    whitened = {2: spread(1.0), 3: spread(three), 4: spread(0.2), 5: spread(0.2)}
    tree = {"plain": dict.fromkeys((2, 3, 4, 5), [0.4] * 3), "whitened": whitened}
    assert fewer_steps.judge(rows({1: tree}, "step", "momentum", "ns_steps",
                                  axis="distance")).word == verdict


def test_the_distance_is_zero_where_an_iteration_is_exact(monkeypatch):
    monkeypatch.setattr(fewer_steps, "COEFFICIENTS", "cubic")
    x = torch.diag(torch.tensor([3.0, 1.0])).repeat(2, 1, 1)
    # X / ||X|| = diag(0.9487, 0.3162); one cubic step 1.5 s - 0.5 s^3 gives 0.9961, 0.4585.
    expected = ((0.9961 - 1) ** 2 + (0.4585 - 1) ** 2) ** 0.5 / 2**0.5
    assert fewer_steps.distance(x, 1) == pytest.approx(expected, abs=1e-3)
    assert fewer_steps.distance(x, 30) < 1e-12


@pytest.mark.parametrize(("seeds", "second", "verdict"), [
    (8, "helped", "holds"), (8, "plain", "does not hold"), (8, "worse", "does not hold"),
    (3, "helped", "inconclusive")])  # of numbers that are all equal only the sign is known
def test_the_verdict_on_the_radius(seeds, second, verdict):
    flat, steep = ({rate: [loss] * seeds for rate, loss in ((1, 1.0), (2, middle), (3, None))}
                   for middle in (1.05, 1.2))
    assert radius_sweep.near_best(flat) == [2] * seeds
    assert radius_sweep.near_best(steep) == [1] * seeds
    rules = dict.fromkeys(radius_sweep.RULES, steep)
    trees = {"helped": {**rules, "TR-Muon ratio": flat}, "plain": rules,
             "worse": {**rules, "TR-Muon ratio": dict.fromkeys((1, 2, 3), [1.06] * seeds)}}
    found = radius_sweep.judge(rows({"a": trees["helped"], "b": trees[second]},
                                    *radius_sweep.KEYS))
    assert (found.word, found.judgement.needed) == (verdict, 5 if seeds == 3 else None)
