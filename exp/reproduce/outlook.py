"""Missing runs of tables and their expected cost: a list for people, a JSON plan for machines."""

import importlib
import json
from collections.abc import Mapping

from exp.harness.facts import short_commit
from exp.jobs.queue import Job, state
from exp.report.forecast import forecast, total
from exp.reproduce.plan import Table
from exp.reproduce.records import hash_of
from optimizer import optimizer_class

Missing = Mapping[Job, Table]


class Outlook:
    """Predicts the cost of jobs from kept runs: seconds per epoch from runs of the same settings,
    gradient evaluations per step from runs of the same config."""

    def __init__(self, records: Mapping[str, dict]) -> None:
        runs = [run for kept in records.values() for run in kept["runs"] if run["epochs"]]
        self.runs = len(runs)
        self.paces = {run["settings"]: run["curve"]["seconds"][-1] / run["epochs"]
                      for run in runs if run["curve"].get("seconds")}
        self.evaluations = {run["config"]: run["curve"]["gradient_evaluations"][-1] / run["steps"]
                            for run in runs}

    def seconds(self, job: Job) -> float | None:
        """An upper bound, if all epochs are run; None for settings that were never timed."""
        pace = self.paces.get(hash_of(job.settings()))
        return None if pace is None else pace * job.settings()["experiment"]["epochs"]

    def units(self, job: Job) -> float:
        """Gradient evaluations in passes over the training data: epochs x evaluations per step, as
        measured, or else as declared in the optimizer's file."""
        settings = job.settings()
        name = settings["optimizer"]["name"]
        module = importlib.import_module(optimizer_class(name).__module__)
        declared = getattr(module, "COST", {}).get("gradient_evaluations", 1)
        per_step = self.evaluations.get(job.config.stem, declared)
        return round(settings["experiment"]["epochs"] * per_step, 2)

    def listing(self, missing: Missing) -> str:
        """One line per missing run and the total time."""
        return f"{self.runs} runs there\n{forecast(self._times(missing))}"

    def total(self, missing: Missing) -> str:
        """The total time alone."""
        return total(self._times(missing))

    def _times(self, missing: Missing) -> dict[str, float | None]:
        return {f"{job.name}, {state(job)}": self.seconds(job) for job in missing}

    def plan(self, missing: Missing) -> str:
        """The missing runs as JSON for a machine without git or this command. Each job: name,
        table, task, folder, argv (of python, in the project's root), units."""
        jobs = [{"name": job.name, "table": table.name, "task": job.task,
                 "folder": str(job.folder), "argv": job.command("--overwrite")[1:],
                 "units": self.units(job)} for job, table in missing.items()]
        return json.dumps({"commit": short_commit(), "jobs": jobs}, indent=1) + "\n"

