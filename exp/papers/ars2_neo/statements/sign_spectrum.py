"""Does sign() destroy a matrix's spectrum, as the paper states for AdaMuon?"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from exp.harness.diagnostics import spectrum
from exp.report.evidence import sample
from exp.report.judgement import judge_all, judge_below
from exp.report.rows import Row, Rows
from exp.theory.statement import Verdict, tally
from exp.theory.sweeps import average
from exp.theory.training import built, matrices, steps

# Task -> steps at which it is looked at, scale.
TASKS = {"grokking": ((1, 8, 40, 160, 400), "full"), "cifar": ((1, 8, 40, 160), "small"),
         "wikitext2": ((1, 8, 40, 160), "small")}
OPTIMIZER = {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.98], "weight_decay": 1.0}
SIZE, RANK = 128, 4
LEAST = 0.01  # smallest relevant change of the entropy
# Rule -> settings, and the key of its momentum in the optimizer's state.
AFTER = {
    "AdaMuon": ({"name": "adamuon"}, "momentum_buffer"),
    "NorMuon": ({"name": "normuon"}, "momentum_buffer"),
    "ARS (old)": ({"name": "ars"}, "exp_avg"),
}
AFTER_POINTS = (1, 40)


def measure(seeds: list[int]) -> Iterable[Row]:
    """Yield entropies before and after sign, for Gaussian and low-rank matrices and for AdamW's
    momentum on each task (means over hidden matrices), and before and after whole rules."""
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        gaussian = torch.randn(SIZE, SIZE, generator=generator)
        left, right = (torch.randn(SIZE, RANK, generator=generator) for _ in range(2))
        low = left @ right.T
        for name, matrix in {"Gaussian": gaussian, f"rank {RANK}": low,
                             f"rank {RANK} plus 10 % noise": low + 0.1 * RANK**0.5 * gaussian
                             }.items():
            yield from entropies(seed, [matrix], [matrix.sign()], matrix=name)
        for task, (points, scale) in TASKS.items():
            run = built(OPTIMIZER, seed, task, scale)
            for step in steps(run, points[-1]):
                if step in points:
                    momenta = [run.optimizer.state[p]["exp_avg"]
                               for p in matrices(run.model).values()]
                    yield from entropies(seed, momenta, [m.sign() for m in momenta],
                                         matrix=f"momentum at step {step}, {task}")
        for rule in AFTER:
            for step, (momenta, updates) in momenta_and_updates(rule, seed).items():
                yield from entropies(seed, momenta, updates, update=f"{rule}, update {step}")


def entropies(seed: int, before: list[Tensor], after: list[Tensor], **settings: str
              ) -> Iterator[Row]:
    """Yield two rows: the mean entropy of the singular values of the matrices before and after."""
    for axis, tensors in (("before", before), ("after", after)):
        yield Row(axis, seed, average([spectrum(t)["entropy"] for t in tensors]),
                  settings=settings)


def momenta_and_updates(rule: str, seed: int) -> dict[int, tuple[list[Tensor], list[Tensor]]]:
    """Map each step to the momenta and the updates (without decay) of all hidden matrices."""
    settings, key = AFTER[rule]
    run = built({**settings, "lr": 1e-3, "weight_decay": 0.0}, seed)
    hidden = list(matrices(run.model).values())
    result: dict = {}
    before = [p.detach().clone() for p in hidden]
    for step in steps(run, AFTER_POINTS[-1]):
        if step in AFTER_POINTS:
            result[step] = ([run.optimizer.state[p][key].clone() for p in hidden],
                           [p.detach() - b for p, b in zip(hidden, before, strict=True)])
        before = [p.detach().clone() for p in hidden]
    return result


def judge(rows: Rows) -> Verdict:
    """Judge by the change for real momenta."""
    changes = [sample([b - a for a, b in zip(entry["before"], entry["after"], strict=True)])
               for name, entry in rows.tree("matrix", "axis").items()
               if name.startswith("momentum")]
    parts = [judge_below(change, 0.0, LEAST) for change in changes]
    means = [change.value for change in changes]
    return Verdict(judge_all(parts), "sign changes the entropy of real momentum by "
                   f"{min(means):+.2f} to {max(means):+.2f}; {tally(parts)}")


def tables(rows: Rows) -> dict:
    """Return tables of the change by sign, and by whole rules."""
    def changes(setting, head):
        return [head, *((name, before, after, [b - a for a, b in zip(before, after, strict=True)])
                        for name, entry in rows.tree(setting, "axis").items()
                        for before, after in [(entry["before"], entry["after"])])]

    return {"signs": changes("matrix", ("matrix", "entropy", "entropy of its sign", "change")),
            "updates": changes("update", ("rule", "entropy of its momentum",
                                          "entropy of its update", "change"))}
