"""The ladder's preregistered statistics against numbers computed by hand, and its files."""

import json
import math
import re
import shutil
from statistics import NormalDist

import numpy as np
import pytest
import torch

from exp.harness import cli
from exp.harness.errors import ConfigError
from exp.harness.recipes import ROOT
from exp.harness.toml import read_toml
from exp.ladder import train
from exp.papers.ladder import analysis, ranking, records, speed
from exp.papers.ladder.ranking import Reference
from exp.report.rows import Row, Rows, read_rows
from exp.report.statistics import Estimate
from exp.tune import path
from exp.tune.coordinates import (
    CAP,
    Arm,
    NotTuned,
    Point,
    Trial,
    best,
    next_point,
    next_rates,
    overrides,
)
from model import build_model
from model.gpt import TINY
from optimizer import build_optimizer, optimizer_class

ADAMW, MUON, SHAMPOO = (Reference(4950, 3.2776, 10), Reference(3250, 3.2787, 10),
                        Reference(4100, 3.2776, 4))


def test_normalized_steps_by_hand():
    assert ADAMW.normalized == pytest.approx(4950 * math.exp(-0.0024 / 0.145))
    assert [round(row.normalized) for row in (ADAMW, MUON, SHAMPOO)] == [4869, 3221, 4033]
    assert Reference(1, 3.28, 1).error == pytest.approx(0.0013 / 0.145)
    assert ADAMW.error == pytest.approx(0.0013 / 0.145 / 10**0.5)


def test_track_3_separates_by_its_own_rule():
    """0.004 sqrt(1/4 + 1/10) = 0.002366 nats are 52.6 steps at equal losses."""
    row = Reference(3250, 3.28, 10)
    assert row.is_better(Reference(3303, 3.28, 4)) and not row.is_better(Reference(3302, 3.28, 4))
    assert MUON.is_better(ADAMW) and not ADAMW.is_better(MUON)


def test_spearman_with_ties_by_hand():
    """Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)."""
    assert ranking.spearman([1, 2, 2, 3], [10, 20, 30, 40]) == pytest.approx(4.5 / 22.5**0.5)
    assert ranking.spearman([3, 2, 1], [1, 2, 3]) == -1
    assert math.isnan(ranking.spearman([1, 1], [1, 2]))


def test_the_permutation_p_of_a_perfect_order_is_one_in_all_orders():
    assert ranking.permutation_p([1, 2, 3, 4], [1, 2, 3, 4]) == pytest.approx(1 / 24, rel=0.05)
    assert ranking.permutation_p([4, 3, 2, 1], [1, 2, 3, 4]) == 1


def test_the_bootstrap_moves_with_seeds_and_with_the_references_errors():
    reference = {"a": Reference(1000, 3.28, 1), "b": Reference(2000, 3.28, 1),
                 "c": Reference(3000, 3.28, 1)}
    sure = ranking.bootstrap_rho({"a": [1.0, 1.1], "b": [2.0, 2.1], "c": [3.0, 3.1]}, reference)
    assert (sure.value, sure.low, sure.high, sure.n) == (1, 1, 1, 3)
    noisy = ranking.bootstrap_rho({"a": [1.0, 3.5], "b": [2.0, 2.7], "c": [2.9, 3.2]}, reference)
    assert noisy.low < noisy.value == 1
    close = {**reference, "b": Reference(1001, 3.28, 1)}  # within an error of 0.9 % of a
    assert ranking.bootstrap_rho({"a": [1.0], "b": [2.0], "c": [3.0]}, close).low == 0.5


def test_rho_between_two_sets_of_runs_resamples_both():
    ours = {"a": [1.0, 3.5], "b": [2.0, 2.7], "c": [2.9, 3.2]}
    found = ranking.bootstrap_rho_of_runs(ours, {"a": [1.0], "b": [2.0], "c": [3.0]})
    assert found.low < found.value == 1 and found.n == 3
    assert ranking.score([1.0, 3.0]) == 2 and ranking.score([1.0, 2.0, 5.0, math.inf]) == 3.5


def test_pairs_that_are_separated_and_point_the_same_way():
    reference = {"a": Reference(1000, 3.28, 10), "b": Reference(1001, 3.28, 10),
                 "c": Reference(3000, 3.28, 10)}
    assert ranking.agreeing_pairs({"a": 1.0, "b": 3.0, "c": 2.0}, reference) == (1, 2)


def test_the_chance_of_success_is_that_of_the_protocol():
    """LADDER's simulation: at an error of 3 % the 14 arms succeed with 0.85, without one surely."""
    reference = {str(steps): Reference(steps, 3.28, 10) for steps in (
        4869, 4681, 4033, 3327, 3225, 3221, 3219, 3217, 3201, 3095, 3086, 3082, 3054, 8079)}
    median, success = ranking.chance(reference, 0.03)
    assert 0.75 < success < 0.95 and 0.8 < median < 0.95
    assert ranking.chance(reference, 1e-9, draws=10) == (pytest.approx(1), 1.0)


def test_seeds_needed_and_the_band_by_hand():
    z = NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.9)
    assert ranking.seeds_needed(0.005, 0.003) == math.ceil(2 * z**2 * 0.36) == 8
    assert ranking.seeds_needed(0, 1) == math.inf
    repeats = [1.0, 2.0, 3.0]  # deviation 1, t(2) = 4.3027
    assert ranking.noise_band(repeats, 8) == pytest.approx(4.3027 / 2, rel=1e-4)


def test_better_needs_the_interval_and_the_band():
    ours, other = {1: 1.0, 2: 2.0, 3: 3.0}, {1: 1.5, 2: 2.6, 3: 3.4}
    assert ranking.is_better(ours, other, band=0.49)
    assert not ranking.is_better(ours, other, band=0.51)  # the mean difference is 0.5
    assert not ranking.is_better(ours, {1: 1.5, 2: 2.6, 3: 2.9}, band=0.0)
    assert not ranking.is_better(other, ours, band=0.0)


def test_the_horizon_curve_finds_its_own_coefficients_and_inverts():
    steps = np.array([1250, 1750, 2500, 3500, 5000])
    curve = ranking.fit_horizons(steps, 1.5 + 40 * steps**-0.6)
    assert curve == pytest.approx((1.5, 40, 0.6), rel=1e-3)
    assert ranking.steps_equivalent(1.5 + 40 * 3333**-0.6, curve) == pytest.approx(3333, rel=1e-3)
    assert ranking.steps_equivalent(1.4, curve) == math.inf
    falling = ranking.fit_horizons(steps, 2.5 - 1e-4 * steps)  # a line: unbounded, c would be < 0
    assert min(falling) >= 0
    with pytest.raises(ValueError, match="do not fall"):
        ranking.fit_horizons(steps, 2 + 1e-4 * steps)


def test_the_preregistration_holds_the_references_of_the_protocol():
    plan = records.preregistration()
    normalized = {name: row.normalized for name, row in plan.references.items()}
    assert normalized == pytest.approx({  # computed by hand from the logs' means
        "adamw": 4869, "adamh": 4681, "shampoo": 4033, "psgdh": 3327, "normuon": 3225,
        "muon": 3221, "muonh": 3219, "muon_squared": 3217, "normuonh": 3201,
        "muon_ema_nesterov": 3095, "soaph": 3086, "kl_soaph": 3082, "muown": 3054,
        "spectral_descent": 8079}, abs=0.7)
    assert plan.digest in (ROOT / "README.md").read_text(encoding="utf-8")
    once, eight_times = zip(*plan.marin.values(), strict=True)
    assert ranking.spearman(once, eight_times) == pytest.approx(0.78, abs=0.005)


def test_every_arm_that_is_there_takes_a_step():
    plan, built = records.preregistration(), []
    assert {*plan.marin} <= {*plan.arms, *plan.secondary}
    for name, arm in {**plan.arms, **plan.secondary}.items():
        try:
            optimizer_class(arm["optimizer"]["name"])
        except ValueError:  # the rule is not there: `fallback`
            continue
        on_the_ball = "hyperball" in arm["optimizer"]
        model = build_model({"name": "gpt", **TINY, "projection_gain": float(on_the_ball)})
        settings = {**arm["optimizer"], "lr": arm["rate"], "adamw": {"lr": 0.01}}
        optimizer = build_optimizer(settings, model)
        before = model.blocks[0].up.weight.detach().clone()

        def closure(model=model):
            for p in model.parameters():
                p.grad = torch.randn_like(p)
            return torch.tensor(0.0)

        for _ in range(2):  # SOAP's first one only fills its statistics
            optimizer.step(closure)
        assert not torch.equal(before, model.blocks[0].up.weight), name
        built.append(name)
    assert len(built) == 28


def rows_of_order(plan, reverse=False):
    """Scores at S in the reference's order, 0.01 apart, and repeats of two arms."""
    order = sorted(plan.arms, key=lambda arm: plan.references[arm].normalized, reverse=reverse)
    runs = [("scoring", arm, seed, 2 + rank / 100 + seed / 1e4) for rank, arm in enumerate(order)
            for seed in range(1, 9 if arm in ("adamw", "muon") else 5)]
    runs += [("repeats", arm, seed, value + seed / 1000)
             for arm, value in (("adamw", 2.0), ("muon", 1.9)) for seed in range(11, 19)]
    return Rows(Row(records.METRIC, seed, value, "ladder", arm,
                    {"rung": "S", "part": part, "horizon": 1.0, "steps": 2500, "seconds": 240.0})
                for part, arm, seed, value in runs)


def text_of(*arguments):
    return " ".join(analysis.render(*arguments).split())


def test_the_page_says_which_hypothesis_holds():
    plan = records.preregistration()
    text = text_of(rows_of_order(plan), {"device": ["a CPU"], "commit": ["abc+"]}, plan)
    assert re.search(r"H1: order of track 3 at S \| rho >= 0.8 \| holds: 1 \[.*on 14 arms", text)
    assert "| adamw | 2.0145 [2.0125, 2.0165]" in text and "with uncommitted changes" in text
    assert "H4: order of marin at 1x, at S | rho >= 0.7 | not tested: 2 of 10 arms so far" in text
    assert "H3: S and M agree | rho >= 0.9 | not tested: 0 of 14 arms so far" in text
    assert "Go: AdamW's s.d. 0.002449" in text and "Of all 91 pairs" in text
    assert "## Deviations from the preregistration" in text
    assert "| with lion" not in text and "Shampoo | 1 on 10 arms" in text
    assert re.search(r"raw instead of normalized steps \| 0\.9\d+ on 14 arms", text)
    assert "1,024 pieces instead of bytes, five arms | not run" in text
    last = Rows([*rows_of_order(plan), *(Row(
        records.METRIC, seed, value, "ladder", arm, {"rung": "S", "part": "scoring"})
        for arm, value in (("lion", 2.5), ("signum", 2.6)) for seed in (1, 2, 3, 4))])
    assert "| with lion and signum | 1 on 16 arms" in text_of(last, {}, plan)
    text = text_of(rows_of_order(plan, reverse=True), {}, plan)
    assert "fails: -1" in text and "fails: 0 of" in text


def test_a_hypothesis_waits_for_all_declared_arms_and_seeds():
    plan, rows = records.preregistration(), rows_of_order(records.preregistration())

    def first(rows):
        return analysis.hypotheses(rows, plan)[1][2]

    most = Rows(row for row in rows if row.optimizer != "muown")
    assert first(most) == "not tested: 13 of 14 arms so far"
    assert first(Rows(row for row in rows if (row.optimizer, row.seed) != ("muown", 4))
                 ) == first(most)
    edge = [Row(records.METRIC, 100, 2 + rate, "ladder", "muown", {
        "rung": "S", "part": "tuning", "horizon": 1.0, "rate": rate}) for rate in range(8)]
    assert "on 13 arms" in first(Rows([*most, *edge]))  # not tuned: it leaves H1
    assert first(Rows([*most, *edge[:7]])) == first(most)  # its tuning goes on
    few = text_of(rows.where(optimizer="muon"), {}, plan)
    assert "not tested: 1 of 14 arms so far" in few and "not decided" in few


def test_an_arm_that_diverged_is_scored_by_the_median_of_eight_seeds():
    plan, rows = records.preregistration(), rows_of_order(records.preregistration())
    diverged = Row(records.METRIC, 1, None, "ladder", "muown", {
        "rung": "S", "part": "scoring", "horizon": 1.0, "steps": 500})
    rows = Rows([*(row for row in rows if (row.optimizer, row.seed) != ("muown", 1)), diverged])
    assert "muown" not in records.scored(rows, "S", plan)
    more = [Row(records.METRIC, seed, 2.0, "ladder", "muown", {"rung": "S", "part": "scoring"})
            for seed in range(5, 9)]
    assert len(records.scored(Rows([*rows, *more]), "S", plan)["muown"]) == 8
    assert "2.0001 (median, 1 diverged)" in text_of(Rows([*rows, *more]), {}, plan)


def test_a_size_with_noisy_repeats_has_no_tables():
    plan, rows = records.preregistration(), rows_of_order(records.preregistration())
    noisy = Rows(Row(row.axis, row.seed, row.value + row.seed / 50 * (
        row["part"] == "repeats" and row.optimizer == "adamw"), row.task, row.optimizer,
        row.settings) for row in rows)
    text = text_of(noisy, {}, plan)
    assert "### Scores" not in text and "excludes tables of such a size" in text
    assert "not tested: 0 of 14 arms so far" in text


def test_runs_of_older_code_are_marked(monkeypatch):
    plan = records.preregistration()
    rows = Rows([Row(records.METRIC, 1, 2.0, "ladder", "muon", {
        "rung": "S", "part": "repeats", "recipes": {"model.gpt": 0, "exp.ladder.train": 1}})])
    assert "(RECIPE numbers): repeats of muon: model.gpt 0 -> 1." in text_of(rows, {}, plan)


def with_horizons(rows, muon=2200.0):
    """Rows at S with AdamW's curve 1.5 + 40 steps^-0.6, and Muon as good as it at `muon` steps."""
    def loss(steps):
        return 1.5 + 40 * steps**-0.6

    values = {("adamw", "scoring", 2500): loss(2500), ("muon", "scoring", 2500): loss(muon)}
    values |= {("adamw", "horizons", steps): loss(steps) for steps in (1250, 1750, 3500, 5000)}
    return Rows([*rows.where(part="repeats"), *(
        Row(records.METRIC, seed, value + seed / 1e4, "ladder", arm, {
            "rung": "S", "part": part, "steps": steps, "horizon": steps / 2500,
            "parameters": 182_720, "seconds": 1.0, "bytes": 2**20})
        for (arm, part, steps), value in values.items() for seed in (1, 2))])


def test_speed_ups_are_read_off_the_curve_of_adamws_horizons(tmp_path):
    rows = with_horizons(rows_of_order(records.preregistration()), muon=3750.0)
    horizons = speed.Horizons.of(rows)
    assert (horizons.steps, horizons.least, horizons.most) == (2500, 1250, 5000)
    text, muon = analysis.speed_ups(rows, "S")["muon"]
    assert muon.value == pytest.approx(1.5, rel=0.01) and text.startswith("1.5")
    # Seed 2 ahead of AdamW by 0.02 bits, seed 1 by 0.01: 0.015 -+ 12.706 * 0.005 bits.
    adamw, base = {1: 2.0, 2: 2.0}, 1.5 + 40 * 2500**-0.6 + 1.5e-4
    found = horizons.speed_up({1: 1.99, 2: 1.98}, adamw)
    at = [ranking.steps_equivalent(base - 0.015 + half, horizons.curve) / 2500
          for half in (0.0, 12.7062 * 0.005, -12.7062 * 0.005)]
    assert (found.value, found.low, found.high) == pytest.approx(at, rel=1e-4)
    assert horizons.ratio({1: 1.99, 2: 1.98}, adamw, adamw) == found
    assert horizons.speed_up(adamw, adamw).value == pytest.approx(1)
    halves = [horizons.speed_up({1: 2.0 - d, 2: 2.0 - d}, adamw).value for d in (0.04, 0.01)]
    pair = horizons.ratio({1: 1.96, 2: 1.96}, {1: 1.99, 2: 1.99}, adamw)
    assert pair.value == pytest.approx(halves[0] / halves[1])
    assert "extrapolated" in horizons.in_words(horizons.speed_up({1: 1.7}, {1: 2.0}))
    assert speed.Horizons.of(rows.where(part="scoring")) is None
    assert analysis.speed_ups(rows.where(part="scoring"), "S") == {}
    text = text_of(rows, {}, records.preregistration())
    assert "speed-up over AdamW at every size | in [1.3, 1.8] | not tested: 0 of 3 sizes" in text
    assert "| adamw, muon |" not in text and "| muon, adamw |" in text
    rows += [Row(records.METRIC, 100, 2.2 + rate, "ladder", "muon", {
        "rung": "S", "part": "tuning", "horizon": 1.0, "rate": rate}) for rate in (0.01, 0.02)]
    analysis.write_page(tmp_path, rows, {})
    assert {file.name for file in tmp_path.iterdir()} == {"ladder.md", "rates.png", "speed_ups.png"}


def test_the_curve_needs_completed_runs_on_equal_seeds():
    rows = with_horizons(rows_of_order(records.preregistration()))
    diverged = Row(records.METRIC, 3, None, "ladder", "adamw", {
        "rung": "S", "part": "scoring", "horizon": 1.0, "steps": 500})
    third = Row(records.METRIC, 3, 9.0, "ladder", "adamw", {
        "rung": "S", "part": "scoring", "horizon": 1.0, "steps": 2500})
    curve = speed.Horizons.of(rows)
    assert speed.Horizons.of(Rows([*rows, diverged])) == curve
    assert speed.Horizons.of(Rows([*rows, third])) == curve  # no horizon has the seed
    horizons = rows.where(part="horizons", optimizer="adamw")
    assert len(horizons.levels("steps")) == 4 and speed.Horizons.of(horizons) is None
    rising = Rows(Row(row.axis, row.seed, 4 - row.value, row.task, row.optimizer, row.settings)
                  for row in rows if row.optimizer == "adamw")
    assert speed.Horizons.of(rising) is None


def test_rates_are_drawn_at_the_steps_of_the_scoring_runs_only(tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(speed, "curves", lambda _, panels, **__: drawn.update(panels))
    assert speed.draw_rates(tmp_path / "rates.png", Rows(
        Row(records.METRIC, 100, value, "ladder", "muon", {
            "rung": "S", "part": "tuning", "horizon": horizon, "rate": 0.01})
        for value, horizon in ((2.0, 1.0), (1.9, 2.0), (2.1, 0.5))))
    assert drawn == {"S": {"muon": ([0.01], [2.0])}}


def test_muons_speed_up_has_to_lie_in_its_range_and_to_fall():
    def lines(*values):
        return [line[2].split(":")[0] for line in speed.muons_speed({
            str(place): Estimate(value, value, value, 4) for place, value in enumerate(values)}, 2)]

    assert lines(1.6, 1.4) == ["holds", "holds"] and lines(1.4, 1.9) == ["fails", "fails"]
    assert lines() == lines(1.5) == ["not tested", "not tested"]


def test_no_go_where_the_repeats_spread():
    adamw = {seed: 2 + 0.009 * (-1) ** seed for seed in range(8)}
    assert analysis.go({"adamw": adamw, "muon": adamw}).startswith("No go: AdamW's s.d. 0.0096")
    narrow = {seed: 2 + 0.001 * (-1) ** seed for seed in range(7)}
    assert analysis.go({"adamw": narrow, "muon": narrow}).startswith("Go, on fewer than the eight")
    assert analysis.go({"adamw": narrow, "muon": {k: v / 9 for k, v in narrow.items()}}
                       ).startswith("No go")
    assert analysis.go({"adamw": narrow, "muon": {**narrow, 1: math.inf}}) == (
        "No go: a repeat diverged.")


def test_the_noise_floor_of_each_arm_that_has_repeats():
    repeats = {"adamw": {1: 1.0, 2: 2.0, 3: 3.0}, "muon": {1: 2.0}}  # deviation 1, t(2) = 4.3027
    text = analysis.noise_floor(repeats, n=8, difference=0.5)
    assert "| adamw | 2.1513 " in " ".join(text.split()) and "muon" not in text
    assert " 85 |" in " ".join(text.split())  # 2 (1.96 + 1.2816)^2 / 0.25, rounded up
    assert analysis.noise_floor({"muon": {1: 2.0, 2: math.inf}}) == ""


def test_runs_are_collected_and_the_page_is_made_again(tiny_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(records, "RUNGS", ("S", "tiny"))
    parts = tmp_path / "runs" / "tiny" / "repeats" / "adamw"
    folder = parts / "seed11"
    overrides = [word for override in train.TASK.scale("tiny") for word in ("--set", override)]
    assert cli.launch(train.TASK, train.train, [
        "--config", str(train.TASK.config), "--seed", "11", "--device", "cpu",
        "--output", str(folder), *overrides]) == 0
    shutil.copytree(folder, parts / "seed11.other1")  # set aside: not counted
    shutil.copytree(parts, tmp_path / "runs" / "S" / "repeats" / "adamw")  # not the settings of S
    diverged = parts / "seed12"
    shutil.copytree(folder, diverged)  # in the first epoch
    (diverged / "metrics.jsonl").write_text("")
    (diverged / "summary.json").write_text(json.dumps({
        "status": "diverged", "epochs": 0, "milestones": {}, "best": {}, "wall_seconds": 1.0}))
    text = (diverged / "config.toml").read_text()
    (diverged / "config.toml").write_text(text.replace("seed = 11", "seed = 12"))
    output = ["--output", str(tmp_path / "page")]
    assert analysis.main([*output, "--collect", str(tmp_path / "runs")]) == 0
    assert "seed11 has other settings than size S" in capsys.readouterr().err
    (row, other), provenance = read_rows(tmp_path / "page" / "rows.json")
    assert (row.optimizer, row.seed, row["steps"], row["rung"]) == ("adamw", 11, 10, "tiny")
    assert row.value == row["curve"][-1] and len(row["curve"]) == 5 and provenance["device"]
    assert row["bytes"] is None and row["horizon"] == 1 and row["recipes"]["model.gpt"] == 1
    assert (other.seed, other.value, other["curve"]) == (12, None, [])
    page = tmp_path / "page" / "ladder.md"
    written = page.read_text()
    page.unlink()
    assert analysis.main(output) == 0 and page.read_text() == written
    assert analysis.main(["--output", str(tmp_path / "empty")]) == 2
    assert capsys.readouterr().err.count("\n") >= 1


# --- the tuning path

ARM = Arm("muon", {"name": "muon"}, 0.01, "optimizer.momentum", (0.9, 0.98))


def walked(arm, score, tie=0.0):
    """The trials of a path whose scores are a function of the point."""
    trials = []
    while (point := next_point(arm, trials, tie)) is not None:
        trials.append(Trial(point, score(point)))
        assert next_point(arm, trials[:-1], tie) == point  # a pure function of the records
    return trials


def bowl(rate, decay, constant=None):
    """Least at a rate, a decay and a constant."""
    def score(point):
        return (math.log(point.rate / rate)**2 + 0.01 * math.log(point.decay / decay)**2
                - 0.001 * (point.constant == constant))
    return score


def test_the_path_takes_eleven_runs_in_the_declared_order():
    trials = walked(ARM, bowl(0.0125, 3.3, 0.98))
    points = [(t.point.rate, t.point.decay, t.point.constant) for t in trials]
    assert points == [
        *((rate, 3, None) for rate in (0.0025, 0.005, 0.01, 0.02, 0.04)),
        (0.01, 1, None), (0.01, 8, None), (0.0141421, 3, None), (0.00707107, 3, None),
        (0.0141421, 3, 0.9), (0.0141421, 3, 0.98)]
    assert best(trials).point == trials[-1].point


def test_edges_are_followed_at_most_three_times():
    trials = walked(ARM, bowl(0.2, 3))
    assert [t.point.rate for t in trials[5:7]] == [0.08, 0.16] and trials[7].point.rate == 0.32
    assert len(trials) == 14 == CAP
    with pytest.raises(NotTuned, match="after 8 rates"):
        walked(ARM, bowl(5.0, 3))
    with pytest.raises(NotTuned):
        walked(ARM, lambda point: -point.rate)
    trials = walked(ARM, bowl(0.01, 30))
    assert [t.point.decay for t in trials[5:8]] == [1, 8, 20] and len(trials) == 12


def test_diverged_runs_lose_and_ties_go_to_the_smaller_rate():
    trials = walked(ARM, lambda point: math.inf if point.rate > 0.006 else -point.rate)
    assert best(trials).point.rate == 0.005
    trials = [Trial(Point(rate, 3.0), score) for rate, score in (
        (0.01, 1.0), (0.02, 0.9), (0.005, 1.2))]
    assert best(trials).point.rate == 0.02 and best(trials, 0.1).point.rate == 0.01


def test_arms_on_the_ball_tune_the_gain_of_the_weights_instead_of_the_decay():
    arm = Arm("muonh", {"name": "muon", "hyperball": {}}, 0.018, "optimizer.momentum", (0.9,))
    trials = walked(arm, bowl(0.018, 1.5))
    assert [t.point.decay for t in trials] == [1, 1, 1, 1, 1, 1.5, 1.5, 1.5, 1.5]
    assert overrides(arm, trials[-1].point, 2500) == (
        "optimizer.lr=0.018", "model.projection_gain=1.0", "model.hidden_gain=1.5",
        "optimizer.momentum=0.9")
    assert overrides(ARM, Point(0.01, 3.0), 2500) == (
        "optimizer.lr=0.01", "optimizer.weight_decay=0.12")


def test_shared_rates_are_tuned_by_the_neighbours_of_the_best():
    def cost(rates):
        return sum(math.log(rate / best)**2 for rate, best in zip(
            rates, (0.02, 0.01, 0.005), strict=True))

    scores = {}
    while (rates := next_rates((0.01, 0.01, 0.01), scores)) is not None:
        scores[rates] = cost(rates)
    tried = list(scores)
    assert tried[:4] == [(0.01, 0.01, 0.01), (0.02, 0.01, 0.01), (0.04, 0.01, 0.01),
                         (0.02, 0.02, 0.01)]  # upwards while it helps, then the next one
    assert min(scores, key=scores.get) == (0.02, 0.01, 0.005) and len(tried) <= 12
    assert next_rates((0.01,), {(0.01,): 0.0, (0.02,): 1.0, (0.005,): 1.0}) is None


def test_an_arm_is_moved_up_and_run_at_other_horizons(tmp_path, monkeypatch):
    scored = []

    def score(self, part, name, point, seed, horizon=1.0, changes=()):
        scored.append((part, name, seed))
        return abs(math.log(point.rate / 0.005))

    monkeypatch.setattr(path.Runs, "score", score)
    words = ["adamw", "muon", "--folder", str(tmp_path)]
    assert path.main(words) == 2  # no repeats
    words += ["--tie", "0"]
    assert path.main([*words, "--scale", "M", "--from", "S"]) == 0
    adamw = [name for part, name, _ in scored[:16] if part == "tuning"]
    assert adamw[-3:] == ["x1_rate0.00125", "x1_rate0.0025", "x1_rate0.005"]  # half the width
    assert [seed for part, _, seed in scored if part == "scoring"] == [1, 2, 1, 2]
    scored.clear()
    assert path.main([*words[:1], *words[2:], "--horizons"]) == 0
    assert [name for part, name, _ in scored if part == "horizons"] == [
        f"seed{seed}_x{share}" for share in (0.5, 0.7, 1.4, 2) for seed in (1, 2)]
    assert [name for _, name, _ in scored if name.startswith("x")] == [
        f"x{share}_rate{rate}" for share in (0.5, 2) for rate in (0.0025, 0.005, 0.01)]
    scored.clear()
    assert path.main([*words, "--scale", "L", "--from", "M"]) == 0  # tuned at two thirds its width
    assert "x1_rate0.00333333" in [name for _, name, _ in scored]
    scored.clear()
    assert path.main([*words, "--repeats"]) == 0 == path.main([*words, "--auxiliary"])
    assert scored[:8] == [("repeats", f"seed{seed}", seed) for seed in range(11, 19)]
    assert scored[16:18] == [("tuning", "auxiliary_0.01_0.01_0.01", 100)] * 2


def test_runs_of_a_path_share_a_process_and_are_read_when_they_are_there(tiny_data, tmp_path):
    plan = read_toml(path.PLAN)
    runs = path.Runs(path.arm_named("adamh", plan), "tiny", tmp_path, plan,
                     ["experiment.epochs=2", "experiment.device='cpu'"])
    point = Point(0.02, 1.5, (0.9, 0.98))
    score = runs.score("tuning", "trial0", point, 100)
    folder = tmp_path / "tiny" / "tuning" / "adamh" / "trial0"
    settings = read_toml(folder / "config.toml")
    assert settings["optimizer"]["betas"] == [0.9, 0.98] and "hyperball" in settings["optimizer"]
    assert settings["optimizer"]["adamw"]["head"]["lr"] == 0.04  # at a quarter of the width
    assert settings["model"]["hidden_gain"] == 1.5
    (folder / "train.log").unlink()
    assert runs.score("tuning", "trial0", point, 100) == score  # not trained again
    assert not (folder / "train.log").exists()
    assert path.main(["unknown"]) == 2


def test_the_warm_up_is_two_percent_of_the_steps_at_every_size():
    for rung in records.RUNGS:
        scale = train.TASK.scales[rung]
        steps = scale["experiment"]["epochs"] * scale["data"]["steps"]
        assert scale["schedule"]["warmup_steps"] == 0.02 * steps


def test_ties_are_one_deviation_of_the_repeats_and_recorded(tmp_path, monkeypatch):
    plan = read_toml(path.PLAN)

    def runs(name):
        return path.Runs(path.arm_named(name, plan), "S", tmp_path, plan)

    with pytest.raises(ConfigError, match="repeats of muon at this size, of which 8 of 8"):
        runs("soaph").tie()
    scores = {("adamw", seed): 2.0 + seed % 2 for seed in range(11, 19)}
    monkeypatch.setattr(path.Job, "outcome", lambda job: 0 if job.config.stem == "adamw" else None)
    monkeypatch.setattr(path.Runs, "result", lambda self, job: scores[self.arm.name, job.seed])
    deviation = (8 * 0.25 / 7) ** 0.5
    assert runs("lion").tie() == pytest.approx(deviation)  # Adam-like: AdamW's
    scores.clear()
    assert runs("lion").tie() == pytest.approx(deviation)  # as recorded
    with pytest.raises(ConfigError, match="lion is being tuned with ties of 0.53"):
        runs("lion").tie(0.1)


def test_a_run_that_fails_stops_its_arm_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(path, "run_jobs", lambda jobs, _: {jobs[0]: int(
        "adamw" in str(jobs[0].folder))})
    monkeypatch.setattr(path.Runs, "result", lambda self, job: 2.0)
    monkeypatch.setattr(path.Runs, "tune", lambda self, _: Trial(
        Point(0.01, 3.0), self.score("tuning", "trial0", Point(0.01, 3.0), 100)))
    words = ["adamw", "muon", "--folder", str(tmp_path), "--tie", "1"]
    assert path.main([*words, "--repeats"]) == 1
    assert "muon: 2.0000" in capsys.readouterr().out
    assert path.main(words) == 1
    shown = capsys.readouterr()
    assert "error, so adamw is not scored: the run in" in shown.err and "muon: Point" in shown.out
    monkeypatch.setattr(path, "run_jobs", lambda jobs, _: {jobs[0]: 2})
    assert path.main([*words, "--repeats"]) == 2


def test_an_arm_whose_scoring_diverges_runs_on_eight_seeds(tmp_path, monkeypatch):
    plan, seeds = read_toml(path.PLAN), []
    monkeypatch.setattr(path.Runs, "score", lambda self, part, name, point, seed: (
        seeds.append(seed) or (math.inf if seed == 2 else 2.0)))
    runs = path.Runs(path.arm_named("soaph", plan), "S", tmp_path, plan)
    assert runs.scoring(Point(0.02, 1.0)) == [2.0, math.inf, *[2.0] * 6]
    assert seeds == [*range(1, 9)]


def test_a_dry_run_counts_what_is_finished(tmp_path, capsys):
    def finish(name, text='{"status": "completed", "wall_seconds": 60.0}'):
        folder = tmp_path / "S" / name
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(text)

    def shown():
        assert path.main(["soaph", "--folder", str(tmp_path), "--dry-run"]) == 0
        return capsys.readouterr().out

    finish("tuning/soaph/trial0")
    finish("tuning/soaph/trial0.other1")
    finish("tuning/soaph/trial1", '{"status": "completed"}')  # damaged
    assert "soaph S tuning trial*, at most 13 runs: 13.0 min" in shown()
    finish("scoring/soaph/seed1")
    assert "trial" not in shown() and "seed1" not in shown() and "seed2: 1.0 min" in shown()


def test_the_loss_of_a_large_vocabulary_is_computed_in_chunks(monkeypatch):
    model = build_model({"name": "gpt", **TINY}).double()
    torch.nn.init.normal_(model.head.weight)
    inputs, targets = torch.randint(20, (2, 3, 7))
    results = []
    for limit in (train.LOGITS, 4 * 20 * 5):  # 21 positions in chunks of at most 5
        monkeypatch.setattr(train, "LOGITS", limit)
        loss, _ = train.loss_fn(model, inputs, targets)
        results.append([loss, *torch.autograd.grad(loss, list(model.parameters()))])
    for whole, chunked in zip(*results, strict=True):
        torch.testing.assert_close(chunked, whole, rtol=1e-12, atol=1e-12)


def test_an_evaluation_batch_is_bounded_by_its_logits():
    assert train.eval_rows("cuda", 50304, 1024) == 2  # 412 MB
    assert train.eval_rows("cuda", 256, 512) == 512 and train.eval_rows("cpu", 256, 128) == 32
    assert train.eval_rows("cpu", 50304, 2**14) == 1
