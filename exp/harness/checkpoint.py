"""Checkpoints: latest.pt, from which a run resumes bit-exactly, and best.pt, its best weights."""

import json
import time
from dataclasses import asdict, dataclass, field

from exp.harness.build import Built
from exp.harness.config import complete_recorded, wrappers
from exp.harness.diagnostics import Instruments
from exp.harness.distributed import (
    from_all,
    from_main,
    is_main,
    load_whole,
    rank,
    size,
    together,
    whole,
)
from exp.harness.errors import ConfigError
from exp.harness.folder import RunFolder, epochs_of
from exp.harness.objective import rng_state, set_rng_state

CHECKPOINT_SECONDS = 10.0  # minimum between two checkpoints, so that short epochs stay cheap
MAY_CHANGE_ON_RESUME = ("epochs", "device", "tensorboard", "logger", "stop_at", "max_evaluations",
                         "sharding", "test")
PERIOD = "period_epochs"  # key of [schedule]; default: the number of epochs
KINDS = {"settings": dict, "model": dict, "optimizer": dict, "objective": dict,
         "wall_seconds": float, "epoch": int, "batch": int, "step": int, "seconds": float,
         "best": dict, "milestones": dict}  # types of the entries of latest.pt and its position


@dataclass
class Position:
    """Progress of a run: what a checkpoint restores besides tensors."""

    epoch: int = 0  # finished epochs
    batch: int = 0  # finished batches of the current epoch
    step: int = 0  # finished optimizer steps
    seconds: float = 0.0  # of training, without evaluation and writing
    best: dict[str, float] = field(default_factory=dict)
    milestones: dict[str, int | None] = field(default_factory=dict)


class Checkpoints:
    """Saves and loads the checkpoints of one run. Every process calls each method; the main one
    writes. With `[experiment] checkpoints = false` nothing is written, and the best weights stay
    in memory."""

    def __init__(self, folder: RunFolder, built: Built, instruments: Instruments) -> None:
        self.folder, self.task, self.settings = folder, built.task, built.settings
        self.model, self.optimizer, self.objective = built.model, built.optimizer, built.objective
        self.instruments, self.device = instruments, built.device
        self.saved_at = time.perf_counter()
        self.wanted = built.settings["experiment"]["checkpoints"]
        self.best_weights: dict | None = None  # by name, while best.pt does not hold them

    def is_due(self) -> bool:
        """Whether the last save is over CHECKPOINT_SECONDS ago; the same on every process."""
        return self.wanted and from_main(
            lambda: time.perf_counter() - self.saved_at > CHECKPOINT_SECONDS)

    def keep_best(self) -> None:
        """Copy the current weights as the best ones; the next `save` writes them."""
        self.best_weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}

    def best(self) -> dict:
        """The best weights, unsharded."""
        if self.best_weights is not None:
            return whole(self.best_weights)
        return from_main(lambda: self.folder.load_checkpoint("best.pt")["model"])

    def save(self, at: Position, wall_seconds: float) -> None:
        """Write latest.pt, and best.pt if the best weights have changed since the last save."""
        if not self.wanted:
            return
        self.save_best(at)
        state = {
            "settings": self.settings, "position": asdict(at),
            "model": whole(self.model.state_dict()), "optimizer": self.optimizer.state_dict(),
            "objective": self.objective.state_dict(), "measured": self.instruments.values,
            "rng": from_all(rng_state(self.device)), "wall_seconds": wall_seconds,
            "record": self.folder.record,
        }
        if is_main():
            self.folder.save_checkpoint("latest.pt", state)
        self.saved_at = time.perf_counter()

    def save_best(self, at: Position) -> None:
        """Write only best.pt, if the best weights have changed since the last save."""
        if self.wanted and self.best_weights is not None:
            best = whole(self.best_weights)
            if is_main():
                self.folder.save_checkpoint("best.pt", {"model": best, **at.best})
            self.best_weights = None

    def load(self) -> tuple[Position, float, str] | None:
        """Restore model, optimizer, objective, instruments and random state from latest.pt, without
        writing to the folder. Return (position, wall seconds, text of metrics.jsonl) at the
        checkpoint, or None if there is no checkpoint to resume from.

        Raises ConfigError for a damaged checkpoint, one of another configuration, a damaged best.pt
        or metrics.jsonl that latest.pt cannot replace, and on resuming with checkpoints = false.
        """
        with together():
            begun = self.folder.resume and (self.folder.path / "config.toml").exists()
            if begun and not self.wanted and is_main():
                raise ConfigError("[experiment] checkpoints = false: such a run cannot be resumed; "
                                  "--overwrite starts it anew")
        with together():
            state = self.folder.checkpoint() if is_main() else None
        state = from_main(lambda: state)
        if state is None:
            return None
        with together():
            try:
                at = self._restored(state)
            except ConfigError:
                raise
            except Exception as error:  # an entry is missing or of another type
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                raise ConfigError(f"cannot restore {self.folder.path / 'latest.pt'} "
                                  f"({reason}): it is damaged. --overwrite starts the run anew"
                                  ) from error
        with together():
            record, best = self._record(state, at), self._best(state, at)
        record, best = from_main(lambda: (record, best))
        if best is None:
            self.keep_best()  # the last epoch's: those of latest.pt
        else:
            at.best = best
        return at, state["wall_seconds"], record

    def _restored(self, state: dict) -> Position:
        older = ("held", "arrived")  # keys that only older checkpoints have
        at = Position(**{k: v for k, v in state["position"].items() if k not in older})
        for name, kind in KINDS.items():
            value = {**state, **state["position"]}[name]
            if not isinstance(value, kind):
                raise TypeError(f"{name} is of type {type(value).__name__}")
        try:
            settings = complete_recorded(state["settings"], self.task)
        except ConfigError as error:
            raise ValueError(f"settings: {error}") from error
        self._require_same(settings)
        load_whole(self.model, state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.objective.load_state_dict(state["objective"])
        self.instruments.values = state.get("measured", {})
        self._set_rng(state["rng"])
        return at

    def _record(self, state: dict, at: Position) -> str:
        """Return the text of metrics.jsonl up to the checkpoint. Raises ConfigError if it lacks
        epochs."""
        path, lines = self.folder.path / "metrics.jsonl", epochs_of(state.get("record", ""))
        if len(lines) < at.epoch:  # older checkpoints have no "record"
            lines = self.folder.metrics()
        if is_main() and len(lines) < at.epoch:
            raise ConfigError(f"{path} is damaged: it has {len(lines)} valid epochs, latest.pt "
                              f"has {at.epoch}. --overwrite starts the run anew")
        return "".join(json.dumps(line) + "\n" for line in lines[:at.epoch])

    def _best(self, state: dict, at: Position) -> dict | None:
        """Return epoch and metric of best.pt, None if its weights are those of latest.pt. A process
        that was killed between the two files leaves a best.pt of a later epoch than latest.pt.

        Raises ConfigError if best.pt is damaged or older and latest.pt does not have the best
        weights either, or if it is of an epoch that this run will not reach.
        """
        if not is_main() or not at.best:
            return at.best
        path, epochs = self.folder.path / "best.pt", self.settings["experiment"]["epochs"]
        try:
            best = self.folder.load_checkpoint("best.pt")
            fits = (_shapes(best.pop("model")) == _shapes(state["model"])
                    and best.keys() == at.best.keys() and best["epoch"] >= at.best["epoch"])
        except (ConfigError, AttributeError, TypeError):
            fits = False
        if fits and best["epoch"] > epochs:
            raise ConfigError(f"{path} is of epoch {best['epoch']}, but the run would end with "
                              f"{epochs}: raise [experiment] epochs, or --overwrite starts the run "
                              "anew")
        if not fits and (at.best["epoch"], 0) != (at.epoch, at.batch):
            raise ConfigError(f"{path} is missing or damaged, and latest.pt does not have the best "
                              "weights: --overwrite starts the run anew")
        return best if fits else None

    def _set_rng(self, states: list[dict] | dict) -> None:
        """Restore each process's generators; if the number of processes has changed, only the main
        one's."""
        if isinstance(states, dict):  # older checkpoints have only the main process's
            states = [states]
        if len(states) == size() or is_main():
            set_rng_state(states[rank()], self.device)

    def _require_same(self, settings: dict) -> None:
        changed = [f"[{table}] {key}: {was.get(key)!r} -> {now.get(key)!r}"
                   for table, now in self.settings.items() for was in [settings[table]]
                   for key in {**was, **now}
                   if was.get(key) != now.get(key) and key not in (*MAY_CHANGE_ON_RESUME, PERIOD)]
        before, now = (wrappers(of["optimizer"]) for of in (settings, self.settings))
        if sorted(before) == sorted(now) and before != now:
            changed.append(f"[optimizer] wrappers, innermost first: {before} -> {now}")
        if not changed and (old := _period(settings)) != (new := _period(self.settings)):
            changed.append(f"[schedule] {PERIOD}: {old} -> {new} (it equals the epochs unless it "
                           f"is set: --set schedule.{PERIOD}={old} keeps the schedule)")
        if changed:
            raise ConfigError("--resume: the checkpoint was made with other settings:\n"
                              + "\n".join(changed))


def _period(settings: dict) -> float | None:
    """Return the schedule's period in epochs, None if rate and weight decay are constant."""
    schedule = settings["schedule"]
    if schedule["name"] == schedule["weight_decay"] == "constant":
        return None
    return schedule.get(PERIOD, settings["experiment"]["epochs"])


def _shapes(weights: dict) -> dict:
    return {name: tensor.shape for name, tensor in weights.items()}
