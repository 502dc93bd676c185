"""What test_distributed.py runs in one process and in two: python distributed_worker.py OUT ROOT.

ROOT holds the tiny data sets and checksums.json; OUT gets the trajectories of every case: one.pt
from one process, main.pt and other.pt from two, which are forked after the imports.
"""

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import torch
from conftest import TINY
from two_processes import run_in_two

import data
import data.cifar10
import data.wikitext2
from exp.harness.build import Built, build
from exp.harness.checkpoint import Checkpoints, Position
from exp.harness.config import complete
from exp.harness.diagnostics import Instruments
from exp.harness.distributed import (
    DelayedMax,
    from_main,
    is_main,
    joined,
    my_batches,
    rank,
    size,
    together,
    whole,
)
from exp.harness.errors import ConfigError
from exp.harness.folder import RunFolder
from exp.harness.task import task_named
from exp.harness.toml import apply_override, read_toml
from exp.papers.survey.statements import traffic
from optimizer import DiLoCo, build_optimizer
from optimizer.parts.base import set_mode
from optimizer.parts.distributed.sharded import Sharded

STEPS = 6
ARS = {"name": "ars2_neo", "lr": 1e-3, "rho": 0.1}
RULES = {
    "adamw": {"name": "adamw", "lr": 1e-2},
    "muon": {"name": "muon", "lr": 1e-2},
    "base": {**ARS, "k": 0},
    "sync": {**ARS, "k": 1},
    "global": {**ARS, "k": 1, "perturb_norm": "global"},
    "lazy": {**ARS, "k": 3},
    "aga": {**ARS, "k": 4, "adaptive_sync": True, "adaptive_lambda": 0.1},
    "curvature": {**ARS, "k": 3, "beta_rule": "element", "rho_rule": "curvature"},
    "sophia_h": {"name": "sophia_h", "lr": 1e-3, "k": 2},
    "soap": {"name": "soap", "lr": 1e-2, "precondition_frequency": 100},
    "ars": {"name": "ars", "k": 2},
    "tr_muon": {"name": "tr_muon", "interval": 2},
    "sam": {"name": "muon", "sam": {}},
    "asam": {"name": "lion", "lr": 1e-3, "asam": {}},
    "gsam": {"name": "adamw", "lr": 1e-2, "gsam": {}},
    "looksam": {"name": "muon", "looksam": {"k": 3}},
    "lookahead": {"name": "muon", "lookahead": {"k": 2}},
    "hooks": {"name": "muon", "adamw": {"lr": 0.02}, "cautious_update": {}, "hyperball": {},
              "ema_nesterov": {"prefill": 0}},
    "ema": {"name": "muon", "ema": {"horizon": 2.0}},
    "schedule_free": {"name": "adamw", "lr": 1e-2, "schedule_free": {}},
    "qk_clip": {"name": "muon", "lr": 0.1, "qk_clip": {"tau": 0.05}},
    "clipped": {"name": "muon", "lr": 1e-2, "adamw": {"eps": 1e-2}, "sam": {}},
    "clipped all": {"name": "adamw", "lr": 1e-2, "eps": 1e-2},
}
CLIPPED = {"clip_norm": 0.3, "accumulation": 2}
EVERYWHERE = ("adamw", "muon", "base", "sync", "lazy", "aga", "soap")
UNEVEN = {"grokking": 25, "cifar": 15, "wikitext2": 7}  # rows of a batch
CASES = [("grokking", rule, "optimizer") for rule in RULES] \
    + [("grokking", rule, "none") for rule in ("adamw", "sync", "aga", "sam", "clipped")] \
    + [(task, rule, "optimizer") for task in ("cifar", "wikitext2") for rule in EVERYWHERE] \
    + [("wikitext2", rule, "model") for rule in (*EVERYWHERE, "sam", "clipped", "ema")]


def trajectory(task: str, rule: str, sharding: str, steps: int = STEPS) -> dict:
    """Losses of every step and the weights at the end; state_dict on the main process."""
    settings = dict(RULES[rule])
    if (task, rule) == ("wikitext2", "soap"):  # here the statistics have full rank
        settings |= {"max_precond_dim": 16, "precondition_frequency": 2}
    experiment = {"sharding": sharding, **(CLIPPED if "clipped" in rule else {})}
    run = built(task, settings, experiment, {"batch_size": UNEVEN[task]})
    losses = []
    epoch = 0
    while len(losses) < steps:
        for batch in run.data.train.epoch(epoch):
            losses.append(float(run.optimizer.step(run.objective.on(batch))))
            if rule == "soap" and task != "wikitext2" and len(losses) == 1:
                fix_bases(run.optimizer.state)
        epoch += 1
    set_mode(run.optimizer, "eval")
    evaluate = run.task.evaluate
    held_out = {"grokking": lambda: evaluate(run.objective, run.data),
                "wikitext2": lambda: evaluate(run.objective, run.data, "test"),
                "cifar": lambda: evaluate(run.objective, SimpleNamespace(eval=(
                    run.data.eval[0].double(), run.data.eval[1])))}
    clipped = run.objective.clipping.means() if run.objective.clipping else {}
    return {"losses": losses, "evaluation": held_out[task]() | clipped,
            "train_loss": run.objective.means()["train_loss"],
            "weights": whole(run.model.state_dict()),
            "kept": sum(t.numel() for s in run.optimizer.state.values() for t in s.values()
                        if torch.is_tensor(t)),
            "state": run.optimizer.state_dict()}


def built(task: str, optimizer: dict, experiment: dict, data: dict) -> Built:
    """The tiny task with these settings; images as precise as the weights are."""
    of_task = task_named(task)
    settings = read_toml(of_task.config)
    for override in TINY[task]:
        apply_override(settings, override)
    settings["experiment"] |= {"device": "cpu", **experiment}
    settings["data"] |= data
    settings["optimizer"] = optimizer

    def loss_fn(model, inputs, targets):
        if inputs.is_floating_point():
            inputs = inputs.to(torch.get_default_dtype())
        return of_task.loss_fn(model, inputs, targets)

    return build(complete(settings, of_task), replace(of_task, loss_fn=loss_fn))


def local_sam() -> list[torch.Tensor]:
    """The weights after one step by the mean of the gradients that two processes find, each at its
    own perturbed weights: by SAM's `local`, in one process by hand."""
    rho = 0.5
    run = built("grokking", {"name": "sgd", "lr": 1.0, "sam": {"rho": rho, "local": True}},
                {"sharding": "none"}, {"batch_size": 24})
    batch = next(iter(run.data.train.epoch(0)))
    params = list(run.model.parameters())
    if size() > 1:
        run.optimizer.step(run.objective.on(batch))
        return [p.detach() for p in params]
    start, steps = [p.detach().clone() for p in params], [torch.zeros_like(p) for p in params]
    for part in zip(*(tensor.chunk(2) for tensor in batch), strict=True):
        first = torch.autograd.grad(run.objective.loss_fn(run.model, *part)[0], params)
        norm = torch.cat([g.flatten() for g in first]).norm()
        with torch.no_grad():
            for p, w, g in zip(params, start, first, strict=True):
                p.copy_(w + rho * g / norm)
        second = torch.autograd.grad(run.objective.loss_fn(run.model, *part)[0], params)
        with torch.no_grad():
            for p, w, step, g in zip(params, start, steps, second, strict=True):
                p.copy_(w)
                step += g / 2
    return [w - step for w, step in zip(start, steps, strict=True)]


def bowls() -> dict[str, list]:
    """Weights of LocalSGD and DiLoCo after each round of two steps of SGD, rate 0.1, in two
    processes: that of rank r goes down |w - r|^2 / 2. Of one process as Lookahead has it."""
    found = {}
    for name, outer in {"local_sgd": (1.0, 0.0), "diloco": (0.7, 0.9)}.items():
        w = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
        optimizer = DiLoCo(torch.optim.SGD([w], lr=0.1), 2, *outer)

        def closure(synchronize=True, w=w):
            assert not synchronize or size() == 1
            w.grad = w.detach() - rank()
            return w.detach().square().sum()

        found[name] = [w.detach().clone() for _ in range(6) if optimizer.step(closure) is not None
                       and optimizer.scalars["steps"] % 2 == 0]
        found[f"{name} bytes"] = optimizer.diagnostics["outer_bytes"]
    return found


def local_steps() -> dict:
    """Five steps of DiLoCo around AdamW in two processes, k = 2: weights that are trained and
    evaluated, and both once more from a checkpoint of the third step. One process by hand."""
    outer = {"k": 2, "alpha": 0.7, "outer_momentum": 0.9}
    run = built("grokking", {**RULES["adamw"], "diloco": outer}, {"sharding": "none"},
                {"batch_size": 24})
    batches = [batch for epoch in range(2) for batch in run.data.train.epoch(epoch)][:5]
    if size() == 1:
        return {"evaluated": simulated(run, batches)}
    for batch in batches[:3]:
        run.optimizer.step(run.objective.on(batch))
    kept = from_main_state(run)
    found = finished(run, batches[3:])
    run.model.load_state_dict(kept["model"])
    run.optimizer.load_state_dict(kept["optimizer"])
    again = finished(run, batches[3:])
    elsewhere = kept["optimizer"]["processes"][:1]  # of a run with another number of processes
    run.optimizer.load_state_dict(kept["optimizer"] | {"processes": elsewhere})
    slow = [run.optimizer.state[p]["slow_weight"] for p in run.model.parameters()]
    equal = all(map(torch.equal, slow, run.model.parameters()))
    return {**found, "again": again, "moved": equal}


def from_main_state(run: Built) -> dict:
    """What a checkpoint of the main process holds, as every process loads it."""
    state = {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}
    return copy.deepcopy(from_main(lambda: state))


def finished(run: Built, batches: list) -> dict[str, list]:
    """The weights after these steps: as this process trains them, and to be evaluated."""
    for batch in batches:
        run.optimizer.step(run.objective.on(batch))
    trained = [p.detach().clone() for p in run.model.parameters()]
    set_mode(run.optimizer, "eval")
    evaluated = [p.detach().clone() for p in run.model.parameters()]
    set_mode(run.optimizer, "train")
    return {"trained": trained, "evaluated": evaluated}


def simulated(run: Built, batches: list) -> list[torch.Tensor]:
    """DiLoCo's slow weights by plain torch: two models, each on its half of every batch."""
    models = [copy.deepcopy(run.model) for _ in range(2)]
    rules = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in models]
    slow = [p.detach().clone() for p in run.model.parameters()]
    velocity = [torch.zeros_like(w) for w in slow]
    for number, batch in enumerate(batches, 1):
        halves = zip(*(tensor.chunk(2) for tensor in batch), strict=True)
        for model, rule, half in zip(models, rules, halves, strict=True):
            rule.zero_grad()
            run.objective.loss_fn(model, *half)[0].backward()
            rule.step()
        if number % 2 == 0:
            with torch.no_grad():
                for w, v, *fast in zip(slow, velocity, *(m.parameters() for m in models),
                                       strict=True):
                    move = w - (fast[0] + fast[1]) / 2
                    v.mul_(0.9).add_(move)
                    w -= 0.7 * (move + 0.9 * v)
                    for p in fast:
                        p.copy_(w)
    return slow


def sent() -> dict[str, int]:
    """Bytes that four steps of Wikitext-2 send, averaging gradients or every second time weights.
    """
    outer = {"diloco": {"k": 2}}
    return {name: traffic.trained({**RULES["adamw"], **more}, 1, 4, batch_size=2)[1]
            for name, more in {"gradients": {}, "weights": outer}.items()}


def lone_matrix() -> dict[str, torch.Tensor]:
    """One matrix after three steps of each rule: of two processes one has nothing to update."""
    found = {}
    for rule in sorted(RULES.keys() - {"qk_clip", "clipped", "clipped all"}):  # of whole models
        model = torch.nn.Linear(3, 2, bias=False)
        torch.nn.init.eye_(model.weight)
        model.roles = lambda: {"weight": "hidden"}
        optimizer = build_optimizer(RULES[rule], model)
        optimizer = Sharded(optimizer) if size() > 1 else optimizer

        def closure(w=model.weight, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (w + torch.arange(6.0).reshape(2, 3)).cos().sum()
            loss.backward()
            return loss.detach()

        for _ in range(3):
            optimizer.step(closure)
        found[rule] = model.weight.detach()
    return found


def bf16() -> dict:
    """A network with batch norms after two steps in bfloat16: its losses and running statistics."""
    torch.set_default_dtype(torch.float32)
    try:
        run = built("cifar", RULES["adamw"], {"precision": "bf16"}, {"batch_size": 15})
        losses = [float(run.optimizer.step(run.objective.on(batch)))
                  for _, batch in zip(range(2), run.data.train.epoch(0), strict=False)]
        return {"losses": losses, "means": next(buffer for name, buffer
                                                in run.model.named_buffers() if "mean" in name)}
    finally:
        torch.set_default_dtype(torch.float64)


def random_numbers(folder: Path) -> list[torch.Tensor]:
    """What this process draws after a checkpoint, and after going back to it."""
    run = built("grokking", RULES["adamw"], {}, {})
    instruments = Instruments((), run.model, run.optimizer, run.objective)
    checkpoints = Checkpoints(RunFolder(folder, resume=True), run, instruments)
    checkpoints.save(Position(), wall_seconds=0.0)
    drawn = torch.rand(3)
    checkpoints.load()
    return [drawn, torch.rand(3)]


def fix_bases(state: dict) -> None:
    """Known bases for SOAP: of a gradient of low rank the basis of its null space is rounding."""
    for entry in state.values():
        for key in ("left_basis", "right_basis"):
            if key in entry:
                generator = torch.Generator().manual_seed(entry[key].shape[-1])
                random = torch.randn(entry[key].shape, generator=generator)
                entry[key] = torch.linalg.qr(random).Q


def refusals() -> dict[str, str]:
    """What is said to settings that many processes cannot have; the same by every process."""
    cases = {
        "one_process": ({"name": "kfac"}, {}, {}),
        "last_batch": ({"name": "muon"}, {}, {"batch_size": 59}),  # of 60 pairs
        "instruments": ({"name": "muon"}, {"diagnostics": ["spectrum"]}, {}),
        "lbfgs": ({"name": "lbfgs"}, {}, {}),
        "model's tensors": ({"name": "muon", "qk_clip": {}}, {"sharding": "model"}, {}),
        "all tensors": ({"name": "muon", "lookahead": {}}, {"sharding": "model"}, {}),
        "local": ({"name": "muon", "sam": {"local": True}}, {}, {}),
        "local steps": ({"name": "muon", "diloco": {}}, {"sharding": "model"}, {}),
        "shapes": ({"name": "muon"}, {}, {"p": 11 + 2 * rank()}),
    }
    return {name: said(lambda case=case: first_step(built("grokking", *case)))
            for name, case in cases.items()}


def first_step(run: Built) -> None:
    """Some rules refuse only here."""
    run.optimizer.step(run.objective.on(next(iter(run.data.train.epoch(0)))))


def said(action: Callable) -> str:
    """The ConfigError that `action` ends with."""
    try:
        action()
    except (ConfigError, ValueError) as error:
        return str(error)
    return "nothing"


def agreement() -> dict:
    """Decisions of one process, and what all of them return."""
    def fail_on_one():
        with together():
            if rank() == 1:
                raise ConfigError("no such file")

    signals = DelayedMax()
    maxima = [signals.all_max(signal) for signal in ((0, 2 * rank(), 1, 0))]
    return {"alone": said(fail_on_one), "maxima": maxima, "from main": from_main(rank),
            "share": [part.tolist() for (part,) in my_batches(2, torch.arange(9))]}


def main(out: Path, root: Path) -> None:
    """Run every case and write what came out, of each process."""
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    data.CACHE = root / "cache"
    for module, values in json.loads((root / "checksums.json").read_text()).items():
        vars(sys.modules[module]).update(values)
    with joined("cpu"):
        found = {case: trajectory(*case) for case in CASES}
        found |= {"bowls": bowls(), "local_steps": local_steps(), "sent": sent(),
                  "local_sam": local_sam(), "lone_matrix": lone_matrix(), "bf16": bf16()}
        if size() > 1:
            found |= {"refusals": refusals(), "agreement": agreement(),
                      "random numbers": random_numbers(out)}
        name = "one" if size() == 1 else "main" if is_main() else "other"
        torch.save(found, out / f"{name}.pt")


if __name__ == "__main__":
    run_in_two(lambda: main(*map(Path, sys.argv[1:])))
    main(*map(Path, sys.argv[1:]))
