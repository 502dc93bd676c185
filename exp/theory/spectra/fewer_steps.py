"""Does a whitened momentum need fewer Newton-Schulz steps than a plain one?"""

import torch
from torch import Tensor

from exp.grokking.train import evaluate
from exp.report.statistics import mean
from exp.report.tables import interval, markdown
from exp.theory.training import built, matrices, steps
from optimizer.parts.polar import as_matrices, exact_polar, newton_schulz

SAYS = "Whitening saves Newton-Schulz steps (Muon²: 40 % fewer)"
SOURCE = "arXiv 2604.09967, abstract; the paper whitens likewise (paper 2.2)"
RULE = ("with the distance from the exact polar factor, mean over matrices: holds if the whitened "
        "momentum after 3 steps is at least as near as the plain one after 5, at every point of "
        "training and mean over seeds; holds partly if after 4; else it does not hold. (Written "
        "after a first look at one seed.)")
OPTIMIZER = {"name": "ars2_neo", "k": 0, "lr": 1e-3, "betas": [0.95, 0.98], "weight_decay": 1.0}
POINTS = (10, 40, 160)
STEPS = (2, 3, 4, 5)
COEFFICIENTS = "keller"
RUN_STEPS = 160
RULES = {"ARS2-Neo Base": {**OPTIMIZER, "betas": [0.9, 0.98]},
         "Muon": {"name": "muon", "weight_decay": 0.05}}


def distance(tensor: Tensor, count: int) -> float:
    """||O - msign(X)||_F / ||msign(X)||_F after `count` steps, mean over a stack; float64."""
    stack = as_matrices(tensor).double()
    stack = stack.mT if stack.shape[-2] > stack.shape[-1] else stack
    exact = exact_polar(stack)
    off = (newton_schulz(stack, count, COEFFICIENTS) - exact).norm(dim=(-2, -1))
    return float((off / exact.norm(dim=(-2, -1))).mean())


def measure(seeds: list[int]) -> dict:
    """{"distance": {point: {kind: {steps: [value a seed]}}},
    "runs": {rule: {steps: {measure: [value a seed]}}}}."""
    found: dict = {"distance": {}, "runs": {}}
    for seed in seeds:
        run = built(OPTIMIZER, seed)
        for done in steps(run, max(POINTS)):
            if done not in POINTS:
                continue
            entry = found["distance"].setdefault(f"step {done}", {})
            for kind, tensors in momenta(run.optimizer, matrices(run.model)).items():
                for count in STEPS:
                    mean_distance = sum(distance(t, count) for t in tensors) / len(tensors)
                    entry.setdefault(kind, {}).setdefault(str(count), []).append(mean_distance)
        for rule, settings in RULES.items():
            for count in STEPS:
                entry = found["runs"].setdefault(rule, {}).setdefault(str(count), {})
                for key, value in short_run({**settings, "ns_steps": count}, seed).items():
                    entry.setdefault(key, []).append(value)
    return found


def momenta(optimizer: torch.optim.Optimizer, params: dict[str, Tensor]
            ) -> dict[str, list[Tensor]]:
    """The momentum of each matrix, plain and whitened, as Adam keeps them."""
    entries = [optimizer.state[p] for p in params.values()]
    return {"plain": [entry["exp_avg"] for entry in entries],
            "whitened": [entry["exp_avg"] / (entry["exp_avg_sq"].sqrt() + OPTIMIZER.get(
                "eps", 1e-8)) for entry in entries]}


def short_run(optimizer: dict, seed: int) -> dict[str, float]:
    """Losses over all training and held-out pairs at the end."""
    run = built(optimizer, seed)
    for _ in steps(run, RUN_STEPS):
        pass
    return {"training loss": evaluate(run.objective, *run.data.train.tensors)["eval_loss"],
            "held-out loss": evaluate(run.objective, *run.data.eval)["eval_loss"]}


def judge(found: dict) -> str:
    """The verdict of RULE."""
    def is_nearer(count: int) -> bool:
        return all(sum(entry["whitened"][str(count)]) <= sum(entry["plain"]["5"])
                   for entry in found["distance"].values())

    return "holds" if is_nearer(3) else "holds partly" if is_nearer(4) else "does not hold"


def figure(found: dict) -> str:
    """Distances at the last point."""
    point, entry = list(found["distance"].items())[-1]
    return (f"{point}: whitened {mean(entry['whitened']['4']).value:.2g} from its polar factor "
            f"after 4 steps, plain {mean(entry['plain']['5']).value:.2g} after 5")


def render(found: dict) -> str:
    """Distances, then what fewer steps do to training, as tables."""
    lines = [("after steps", "momentum", *map(str, STEPS))]
    for point, entry in found["distance"].items():
        for kind, by_count in entry.items():
            lines.append((point, kind, *(interval(mean(by_count[str(n)])) for n in STEPS)))
    keys = ("training loss", "held-out loss")
    runs = [("rule", "ns_steps", *keys)]
    for rule, by_count in found["runs"].items():
        for count, entry in by_count.items():
            runs.append((rule, count, *(interval(mean(entry[key])) for key in keys)))
    return (
        "Relative distance from the exact polar factor, mean over the hidden matrices of the "
        "grokking model on the way of ARS2-Neo Base (lr 0.001, betas 0.95 and 0.98, decay 1), "
        "Keller's coefficients, which settle near 0.2 and come no nearer.\n\n" + markdown(lines)
        + f"\n\nWhat that does to training: {RUN_STEPS} steps, lr 0.001 (Base) and 0.02 (Muon), "
        "nothing tuned.\n\n" + markdown(runs))
