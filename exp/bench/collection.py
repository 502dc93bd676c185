"""Train with every optimizer of the collection, at its defaults, on two small tasks, which reveals
broken ones.

python -m exp.bench.collection [NAME ...] [--workers N] [--render | --dry-run] [--output DIR]

One seed and no tuning: the numbers show that an optimizer learns, not how well it could.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from exp.bench.options import PUBLISHED, parse_collection

if __name__ == "__main__":
    parse_collection()  # answers --help and mistyped options before torch is imported

from exp.harness.arguments import BAD_INPUT, COMPLETED, DIVERGED, FAILED, INTERRUPTED
from exp.harness.errors import ConfigError
from exp.harness.task import task_named
from exp.harness.toml import apply_override, read_toml, to_toml
from exp.jobs.finished import data_digest
from exp.jobs.launch import Local
from exp.jobs.queue import LOG, Job, Stopped, run_jobs, state
from exp.report.forecast import forecast, total
from exp.report.jsonfile import read_json, require_json, write_json
from exp.report.tables import Lines, page, table
from optimizer import available_optimizers, is_wrapper, optimizer_class

SEED = 1
TASKS = {
    "grokking": ("full", ("experiment.epochs=40",)),
    "cifar": ("mini", ("experiment.epochs=2", 'schedule.name="constant"')),
}
BESIDE = ("adamw", "sgd")  # torch.optim's, for comparison
# Settings in place of defaults that are missing or meant for batches of thousands.
STATED = {"sgd": {"lr": 0.1, "momentum": 0.9}, "lars": {"lr": 0.1}}
WRAPPED = "adamw"


def collection() -> list[str]:
    """Names of every optimizer of optimizer/ and of BESIDE."""
    ours = [name for name in available_optimizers()
            if optimizer_class(name).__module__.startswith("optimizer.")]
    return [*ours, *BESIDE]


def settings_of(name: str) -> dict:
    """The `[optimizer]` table with defaults; a wrapper is put around AdamW."""
    if is_wrapper(optimizer_class(name)):
        return {"name": WRAPPED, name: {}}
    return {"name": name, **STATED.get(name, {})}


def job(name: str, task: str, folder: Path) -> Job:
    """Return the run of one optimizer on one task, and write its config to
    <folder>/<task>/<name>.toml."""
    scale, overrides = TASKS[task]
    settings = read_toml(task_named(task).config)
    for override in (*task_named(task).scale(scale), *overrides):
        apply_override(settings, override)
    settings["optimizer"] = settings_of(name)
    path = folder / task / f"{name}.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_toml(settings), encoding="utf-8")
    return Job(task, path, SEED, folder / task / name / f"seed{SEED}")


def result(run: Job) -> dict:
    """Return the results of a run. Without a summary only {"status": "failed"}, or "refused" and a
    "reason" if the optimizer does not suit the task."""
    summary = read_json(run.folder / "summary.json")
    if summary is None:
        log = run.folder / LOG
        last = log.read_text(encoding="utf-8").strip().splitlines()[-1:] if log.exists() else []
        refused = bool(last) and last[0].startswith("error:")
        return {"status": "refused", "reason": last[0]} if refused else {"status": "failed"}
    facts, final = require_json(run.folder / "run.json"), summary["final"]
    return {"status": summary["status"], "fit": summary["milestones"].get("fit"),
            **{key: final.get(key) for key in ("train_loss", "train_accuracy", "eval_accuracy",
                                               "gradient_evaluations", "step", "seconds")},
            **{key: facts[key] for key in ("device", "threads", "commit")},
            "torch": facts["versions"]["torch"], "data": data_digest(facts)}


def render(results: dict[str, dict[str, dict]]) -> str:
    """Return the page, with one line per optimizer. results: name -> task -> result."""
    grok, cifar = (overrides for _, overrides in TASKS.values())
    lines: Lines = [("", "grokking: training loss", "accuracy", "fit, epoch",
                     "evaluations per step", "ms per step", "CIFAR-10: training loss",
                     "eval accuracy", "ms per step")]
    for name, tasks in results.items():
        first, second = tasks["grokking"], tasks["cifar"]
        lines.append((name, _shown(first, "train_loss"), _shown(first, "train_accuracy"),
                      first.get("fit"), _per_step(first, "gradient_evaluations"),
                      _per_step(first, "seconds", 1000), _shown(second, "train_loss"),
                      _shown(second, "eval_accuracy"), _per_step(second, "seconds", 1000)))
    refused = [f"{name}: {run['reason'].removeprefix('error: [optimizer] ')}"
               for name, tasks in results.items() for run in tasks.values() if "reason" in run]
    known = [run for tasks in results.values() for run in tasks.values() if "device" in run]
    facts = "; ".join(", ".join(sorted({str(run[key])[:40] for run in known}))
                      for key in ("device", "torch", "commit"))
    digests = sorted({run["data"] for run in known if run.get("data")})
    facts += f"; data {', '.join(digests)}" if digests else ""
    return page(
        "# Every optimizer on two small tasks",
        "A check that every optimizer trains, not a ranking: default settings, nothing tuned, one "
        f"seed ({SEED}). To repeat it: `python -m exp.bench.collection`.",
        f"Grokking runs with {', '.join(grok)}; mini CIFAR-10 with {', '.join(cifar)}. Wrappers "
        f"are around {WRAPPED}. Not defaults: {_stated()}. *Fit, epoch* is the first "
        "epoch with a training accuracy of 99 %; a dash means never. Milliseconds are of whole "
        "training steps, on a machine with other work on it.",
        table(lines), *refused, f"Run on {facts}.")


def _stated() -> str:
    """Return STATED as text: "`lr = 0.1` of sgd, ..."."""
    return ", ".join(f"`{key} = {value}` of {name}" for name, settings in STATED.items()
                     for key, value in settings.items())


def _shown(run: dict, key: str) -> str | float:
    return run[key] if run["status"] == "completed" else run["status"]


def _per_step(run: dict, key: str, unit: float = 1.0) -> float | None:
    return unit * run[key] / run["step"] if run.get("step") else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0, 1 if a run failed, 2 for bad arguments, 130
    after Ctrl-C."""
    options = parse_collection(arguments)
    names = options.names or collection()
    path, failed = options.output / "collection.json", False
    try:
        if not options.render:
            times = durations(names, options.outputs / "collection", options.output)
            print((forecast if options.dry_run else total)(times), flush=True)
        if options.dry_run:
            return COMPLETED
        if not options.render:
            results, failed = measure(names, options.outputs / "collection", options.workers)
            write_json(path, results, depth=1)
        results = require_json(path)
    except (ConfigError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except Stopped:
        return INTERRUPTED
    path.with_suffix(".md").write_text(render(results), encoding="utf-8")
    print(f"written to {options.output}: collection.md, collection.json")
    return FAILED if failed else COMPLETED


def durations(names: Sequence[str], folder: Path, output: Path) -> dict[str, float | None]:
    """Expected seconds of every missing run, from the results in `output` or the published ones;
    None if unknown. Raises ConfigError for a name that is not in the collection."""
    unknown = [name for name in names if name not in collection()]
    if unknown:
        raise ConfigError(f"unknown optimizer {unknown[0]!r}; available: "
                          f"{', '.join(collection())}")
    kept = read_json(output / "collection.json") or read_json(PUBLISHED / "collection.json") or {}
    return {f"{name} {task}": kept.get(name, {}).get(task, {}).get("seconds")
            for name in names for task in TASKS
            if not (folder / task / name / f"seed{SEED}" / "summary.json").exists()}


def measure(names: Sequence[str], folder: Path, workers: int) -> tuple[dict, bool]:
    """Run the jobs that are not finished. Returns {name: {task: result}} and whether one failed."""
    jobs = {name: {task: job(name, task, folder) for task in TASKS} for name in names}
    ended = run_jobs([run for runs in jobs.values() for run in runs.values()
                      if state(run) != "finished"], Local(workers))
    results = {name: {task: result(run) for task, run in runs.items()}
               for name, runs in jobs.items()}
    return results, any(code not in (COMPLETED, DIVERGED, BAD_INPUT) for code in ended.values())


if __name__ == "__main__":
    sys.exit(main())
