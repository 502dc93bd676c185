"""Does a whitened momentum need fewer Newton-Schulz steps than a plain one?"""

from collections.abc import Iterable

from torch import Tensor
from torch.optim import Optimizer

from exp.report.evidence import sample
from exp.report.judgement import judge_all, judge_below
from exp.report.rows import Row, Rows
from exp.report.tables import interval
from exp.theory.statement import Verdict
from exp.theory.sweeps import average
from exp.theory.training import built, evaluate, matrices, steps
from optimizer.parts.polar import as_matrices, exact_polar, newton_schulz

OPTIMIZER = {"name": "ars2_neo", "k": 0, "lr": 1e-3, "betas": [0.95, 0.98], "weight_decay": 1.0}
POINTS = (10, 40, 160)
STEPS, FEW = (2, 3, 4, 5), 3
COEFFICIENTS = "keller"
RUN_STEPS = 160
RULES = {"ARS2-Neo Base": {**OPTIMIZER, "betas": [0.9, 0.98]},
         "Muon": {"name": "muon", "weight_decay": 0.05}}


def distance(tensor: Tensor, count: int) -> float:
    """Return ||O - msign(X)||_F / ||msign(X)||_F after `count` steps in float64, the mean over a
    stack."""
    stack = as_matrices(tensor).double()
    stack = stack.mT if stack.shape[-2] > stack.shape[-1] else stack
    exact = exact_polar(stack)
    off = (newton_schulz(stack, count, COEFFICIENTS) - exact).norm(dim=(-2, -1))
    return float((off / exact.norm(dim=(-2, -1))).mean())


def measure(seeds: list[int]) -> Iterable[Row]:
    """Yield distances from the polar factor during training (axis "distance"), then final losses of
    short runs."""
    for seed in seeds:
        run = built(OPTIMIZER, seed)
        for step in steps(run, max(POINTS)):
            if step in POINTS:
                for kind, tensors in momenta(run.optimizer, matrices(run.model)).items():
                    for count in STEPS:
                        yield Row("distance", seed, average([distance(t, count) for t in tensors]),
                                  settings={"step": step, "momentum": kind, "ns_steps": count})
        for name, settings in RULES.items():
            for count in STEPS:
                for axis, value in short_run({**settings, "ns_steps": count}, seed).items():
                    yield Row(axis, seed, value, optimizer=name, settings={"ns_steps": count})


def momenta(optimizer: Optimizer, params: dict[str, Tensor]) -> dict[str, list[Tensor]]:
    """Return the momentum of each matrix from Adam's state, plain and whitened."""
    entries = [optimizer.state[p] for p in params.values()]
    return {"plain": [entry["exp_avg"] for entry in entries],
            "whitened": [entry["exp_avg"] / (entry["exp_avg_sq"].sqrt() + OPTIMIZER.get(
                "eps", 1e-8)) for entry in entries]}


def short_run(optimizer: dict, seed: int) -> dict[str, float]:
    """Return the final losses over all training and all held-out pairs."""
    run = built(optimizer, seed)
    for _ in steps(run, RUN_STEPS):
        pass
    return {"training loss": evaluate(run, *run.data.train.tensors)["eval_loss"],
            "held-out loss": evaluate(run, *run.data.eval)["eval_loss"]}


def judge(rows: Rows) -> Verdict:
    """Judge by the ratio of distances at every point."""
    ratios = {step: sample([ours / plain for ours, plain in zip(
        kinds["whitened"][FEW], kinds["plain"][STEPS[-1]], strict=True)], log=True)
        for step, kinds in rows.tree("step", "momentum", "ns_steps").items()}
    return Verdict(
        judge_all([judge_below(ratio, 1.0) for ratio in ratios.values()]),
        f"distance of the whitened momentum after {FEW} steps, divided by that of the plain "
        f"momentum after {STEPS[-1]}: " + ", ".join(f"{interval(ratio.estimate)} at step {step}"
                                     for step, ratio in ratios.items()))


def tables(rows: Rows) -> dict:
    """Return tables of distances, and of the losses with fewer steps."""
    near = rows.where(axis="distance").pivot(("step", "momentum"), "ns_steps",
                                             ("after steps", "momentum"))
    runs = Rows(row for row in rows if row.optimizer)
    return {"distances": [near[0], *((f"step {step}", *cells) for step, *cells in near[1:])],
            "runs": runs.pivot(("optimizer", "ns_steps"), "axis", ("rule", "ns_steps"))}
