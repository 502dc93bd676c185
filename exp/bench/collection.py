"""Every optimizer of the collection, with its defaults, on two small tasks: a broken one shows.

python -m exp.bench.collection [NAME ...] [--workers N]

One seed and nothing tuned: the numbers say that a rule learns, not how well it could.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from exp.harness.arguments import BAD_INPUT, COMPLETED, DIVERGED, FAILED, INTERRUPTED
from exp.harness.errors import ConfigError
from exp.harness.task import task_named
from exp.harness.toml import apply_override, read_toml, to_toml
from exp.jobs.launch import Local
from exp.jobs.queue import LOG, Job, Stopped, run_jobs, state
from exp.report.tables import markdown, number
from optimizer import available_optimizers, is_wrapper, optimizer_class

OUTPUTS = Path("outputs")
SEED = 1
TASKS = {
    "grokking": ("full", ("experiment.epochs=40",)),
    "cifar": ("mini", ("experiment.epochs=2", 'schedule.name="constant"')),
}
BESIDE = ("adamw", "sgd")  # torch.optim's own, to compare with
# Where there is no default, or one for batches of thousands.
STATED = {"sgd": {"lr": 0.1, "momentum": 0.9}, "lars": {"lr": 0.1}}
WRAPPED = "adamw"


def collection() -> list[str]:
    """Every file of optimizer/, and two of torch.optim's."""
    own = [name for name in available_optimizers()
           if optimizer_class(name).__module__.startswith("optimizer.")]
    return [*own, *BESIDE]


def settings_of(name: str) -> dict:
    """The `[optimizer]` table: defaults, a wrapper around AdamW's."""
    if is_wrapper(optimizer_class(name)):
        return {"name": WRAPPED, name: {}}
    return {"name": name, **STATED.get(name, {})}


def job(name: str, task: str, folder: Path) -> Job:
    """The run of one optimizer on one task; its config is written to `folder`/<task>/<name>.toml.
    """
    scale, overrides = TASKS[task]
    settings = read_toml(task_named(task).config)
    for override in (*task_named(task).scale(scale), *overrides):
        apply_override(settings, override)
    settings["optimizer"] = settings_of(name)
    path = folder / task / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_toml(settings), encoding="utf-8")
    return Job(task, path, SEED, folder / task / name / f"seed{SEED}")


def result(made: Job) -> dict:
    """What a run has to say; only "status" if it wrote no summary: "refused" with the reason where
    the rule does not go with the task, else "failed"."""
    path = made.folder / "summary.json"
    if not path.exists():
        log = made.folder / LOG
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:] if log.exists() else []
        refused = bool(last) and last[0].startswith("error:")
        return {"status": "refused", "reason": last[0]} if refused else {"status": "failed"}
    summary = json.loads(path.read_text(encoding="utf-8"))
    facts = json.loads((made.folder / "run.json").read_text(encoding="utf-8"))
    final = summary["final"]
    return {"status": summary["status"], "fit": summary["milestones"].get("fit"),
            **{key: final.get(key) for key in ("train_loss", "train_accuracy", "eval_accuracy",
                                               "gradient_evaluations", "step", "seconds")},
            **{key: facts[key] for key in ("device", "threads", "commit")},
            "torch": facts["versions"]["torch"]}


def render(results: dict[str, dict[str, dict]]) -> str:
    """The page: one line an optimizer."""
    grok, cifar = (overrides for _, overrides in TASKS.values())
    lines = [("", "grokking: training loss", "accuracy", "fit, epoch", "evaluations a step",
              "ms a step", "CIFAR-10: training loss", "eval accuracy", "ms a step")]
    for name, tasks in results.items():
        first, second = tasks["grokking"], tasks["cifar"]
        lines.append((name, _shown(first, "train_loss"), _shown(first, "train_accuracy"),
                      "–" if first.get("fit") is None else str(first["fit"]),
                      number(first["gradient_evaluations"] / first["step"])
                      if first.get("step") else "–", _pace(first),
                      _shown(second, "train_loss"), _shown(second, "eval_accuracy"),
                      _pace(second)))
    refused = [f"{name}: {run['reason'].removeprefix('error: [optimizer] ')}"
               for name, tasks in results.items() for run in tasks.values() if "reason" in run]
    known = [run for tasks in results.values() for run in tasks.values() if "device" in run]
    facts = "; ".join(", ".join(sorted({str(run[key])[:40] for run in known}))
                      for key in ("device", "torch", "commit"))
    return "\n\n".join([
        "# The collection on two small tasks",
        f"`python -m exp.bench.collection`: defaults, one seed ({SEED}), nothing tuned, wrappers "
        f"around {WRAPPED}; {STATED}. Grokking with {', '.join(grok)}; mini CIFAR-10 with "
        f"{', '.join(cifar)}. {facts}. Milliseconds are of whole training steps on a machine with "
        "other work on it.", markdown(lines), *refused]) + "\n"


def _shown(run: dict, key: str) -> str:
    if run["status"] != "completed":
        return run["status"]
    return number(run[key])


def _pace(run: dict) -> str:
    return number(1000 * run["seconds"] / run["step"]) if run.get("step") else "–"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0, 2 bad arguments, 1 a run failed, 130 Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m exp.bench.collection",
                                     description="Train with every optimizer for a short while.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: the whole collection")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time")
    parser.add_argument("--outputs", type=Path, default=OUTPUTS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    names = options.names or collection()
    try:
        unknown = [name for name in names if name not in collection()]
        if unknown:
            raise ConfigError(f"no optimizer {unknown[0]!r}; the collection: "
                              f"{', '.join(collection())}")
        jobs = {(name, task): job(name, task, options.outputs / "collection")
                for name in names for task in TASKS}
        ended = run_jobs([made for made in jobs.values() if state(made) != "finished"],
                         Local(options.workers))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except Stopped:
        return INTERRUPTED
    results = {name: {task: result(jobs[name, task]) for task in TASKS} for name in names}
    paper = options.outputs / "paper" / "bench"
    paper.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(tasks)}"
                       for name, tasks in results.items())
    (paper / "collection.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    (paper / "collection.md").write_text(render(results), encoding="utf-8")
    print(f"written to {paper}: collection.md, collection.json")
    failed = any(code not in (COMPLETED, DIVERGED, BAD_INPUT) for code in ended.values())
    return FAILED if failed else COMPLETED


if __name__ == "__main__":
    sys.exit(main())
