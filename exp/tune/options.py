"""The options of exp.tune, which are read before torch is imported, and the usual budget."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from exp.harness.arguments import add_dry_run, positive
from exp.jobs.slurm import add_launcher_options

OUTPUTS = Path("outputs")
BASELINE, NOISE_ARM = "adamw", "adamw_again"
LADDER = {"adamw_half": 0.5, "adamw_double": 2.0}  # AdamW with other budgets, shares of the horizon
DEFAULT_ARMS = (BASELINE, "muon", "ars2_neo_base", "ars2_neo_aga")
AMOUNTS = {"studies": 6, "trials": 12, "fresh_seeds": 2}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options. Ends the process for --help and for wrong ones."""
    parser = argparse.ArgumentParser(
        prog="python -m exp.tune", description="Search every optimizer with the same budget.")
    parser.add_argument("task", metavar="TASK", nargs="?", help="a folder of exp/ with [tuning]")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--optimizers", default=",".join(DEFAULT_ARMS), metavar="A,B",
                       help=f"names, arms of exp/tune/arms.toml ({NOISE_ARM}: the noise floor), or "
                            f"all (default: {','.join(DEFAULT_ARMS)})")
    which.add_argument("--ablation", action="store_true",
                       help="one arm for every combination of ARS2-Neo's parts, on its own board")
    which.add_argument("--pace", action="store_true",
                       help="search nothing: time the winners of the task's board side by side")
    which.add_argument("--check", action="store_true",
                       help="search nothing: recompute every number of every board")
    which.add_argument("--render", action="store_true",
                       help="search nothing: write the pages of every board from its JSON")
    which.add_argument("--sensitivity", action="store_true",
                       help="seven learning rates around each arm's median winner")
    which.add_argument("--best-known", action="store_true",
                       help="each arm's best setting, hand-set ones of arms.toml among them")
    which.add_argument("--transfer", metavar="FROM",
                       help="the winners of that task's board on this one")
    which.add_argument("--recommend", action="store_true",
                       help="what the boards recommend for a task they do not know, and its regret")
    add_dry_run(parser)
    parser.add_argument("--arms", type=Path, metavar="FILE",
                        help="a TOML file with arms of your own, [arms.NAME] as in arms.toml, for "
                             "--optimizers; search = { eps = [1e-12, 1e-6] } states an axis")
    _add_budget(parser)
    parser.add_argument("--minutes", type=float, metavar="N",
                        help="a challenge, one optimizer that the task's board does not have, ends "
                             "after so long; the same command continues it")
    parser.add_argument("--replace", action="store_true",
                        help="drop a board that stands on other terms")
    parser.add_argument("--workers", type=positive, default=1, metavar="N",
                        help="chains (one arm in one study) at a time")
    add_launcher_options(parser)
    parser.add_argument("--target", type=float, help="another target than task.toml's")
    parser.add_argument("--cap", type=positive, metavar="N",
                        help="another cap on a run's gradient evaluations")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE",
                        help="change the task for every optimizer alike; repeatable")
    parser.add_argument("--outputs", type=Path, default=OUTPUTS, metavar="FOLDER",
                        help="where results are and go to; studies that its paper/ holds are not "
                             "run again (default: outputs)")
    options = parser.parse_args(arguments)
    if options.task is None and not (options.render or options.check or options.recommend):
        parser.error("name a TASK")
    others = (options.pace, options.check, options.render, options.sensitivity, options.best_known,
              options.transfer, options.recommend)
    if options.dry_run and any(others):
        parser.error("--dry-run lists what a search would run, and goes with no other mode")
    return options


def _add_budget(parser: argparse.ArgumentParser) -> None:
    amounts = parser.add_argument_group(
        "budget of every arm", "default: that of the task's board, or of a new one")
    amounts.add_argument("--studies", type=positive, metavar="N",
                         help=f"independent studies ({AMOUNTS['studies']})")
    amounts.add_argument("--trials", type=positive, metavar="N",
                         help=f"trials of a study ({AMOUNTS['trials']})")
    amounts.add_argument("--fresh-seeds", type=positive, metavar="N",
                         help=f"fresh seeds of a study's winner ({AMOUNTS['fresh_seeds']})")


def parse_path(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of exp.tune.path. Ends the process for --help and for wrong ones."""
    parser = argparse.ArgumentParser(
        prog="python -m exp.tune.path",
        description="Tune and score arms of the language-model ladder as preregistered.")
    parser.add_argument("arms", nargs="+", metavar="ARM", help="of the preregistration")
    parser.add_argument("--scale", default="S", help="the size to run at (default: S)")
    parser.add_argument("--from", dest="below", metavar="SCALE",
                        help="the size at which the arm was tuned, or is now")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--repeats", action="store_true", help="the noise of these arms")
    modes.add_argument("--auxiliary", action="store_true",
                       help="tune the rates that all arms share, by these arms")
    modes.add_argument("--horizons", action="store_true",
                       help="the winner at other numbers of steps too (AdamW, Muon)")
    parser.add_argument("--folder", type=Path, default=Path("outputs/ladder"),
                        help="of the runs (default: outputs/ladder)")
    parser.add_argument("--tie", type=float, default=0.0, metavar="BITS",
                        help="s.d. of the repeats: scores this close are equal")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE",
                        help="change the task for all runs alike; repeatable")
    add_dry_run(parser)
    return parser.parse_args(arguments)
