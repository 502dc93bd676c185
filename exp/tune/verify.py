"""Train recorded fresh runs of a board again and compare the curves with the board's, bit for bit.

Equal curves show that machine, torch and code compute what they computed for the board.
"""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from exp.harness.errors import ConfigError
from exp.harness.lock import holder
from exp.jobs.launch import Local
from exp.jobs.queue import run_jobs
from exp.tune.arms import Arm
from exp.tune.probe import Probe, probe
from exp.tune.terms import rung


def reproduced(board: dict, records: Mapping[str, tuple[dict, dict]], outputs: Path, workers: int
               ) -> dict[str, bool]:
    """Train one fresh run of each arm again. Return arm -> whether its curve equals the board's.

    records: arm -> (study, fresh run of its winner). Raises ConfigError if a run fails.
    """
    jobs = {name: _job(board, name, study, run, outputs) for name, (study, run) in records.items()}
    thread_counts = [threads_of(study) for study, _ in records.values()]
    run_jobs(list(jobs.values()), Local(workers, thread_counts[0]))
    curves = {}
    for name, job in jobs.items():
        if (runs := job.study()) is None:
            raise ConfigError(f"the run in {job.folder} failed: see its train.log")
        curves[name] = runs["winner"][0]["curve"]
    return {name: curves[name] == run["curve"] for name, (_, run) in records.items()}


def threads_of(study: dict) -> str | None:
    """Return the number of threads of a study's runs, None if it is not recorded."""
    recorded = re.search(r"(\d+) threads", study.get("machine") or "")
    return recorded and recorded[1]


def _job(board: dict, name: str, study: dict, run: dict, outputs: Path) -> Probe:
    """Return the probe of one fresh run. An earlier one is deleted, as torch may be another now."""
    terms = rung(board["terms"], name)
    folder = outputs / "tune" / terms["task"] / "verify" / name.replace(":", "_")
    if not holder(folder):
        shutil.rmtree(folder, ignore_errors=True)
    params = study["trials"][study["winner"]]["params"]
    return probe(Arm.of(name, board["arms"][name]), terms, folder, {"winner": params},
                 range(run["seed"], run["seed"] + 1))
