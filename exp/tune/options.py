"""The command-line options of exp.tune, parsed before torch is imported, and the default budget."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from exp.harness.arguments import add_dry_run, duration, positive
from exp.jobs.slurm import add_launcher_options

OUTPUTS = Path("outputs")
BASELINE, NOISE_ARM = "adamw", "adamw_again"
LADDER = {"adamw_half": 0.5, "adamw_double": 2.0}  # AdamW at other budgets, in horizons
DEFAULT_ARMS = (BASELINE, "muon", "ars2_neo_base", "ars2_neo_aga")
AMOUNTS = {"studies": 6, "trials": 12, "fresh_seeds": 2}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options of exp.tune. Exits for --help and for invalid options."""
    parser = argparse.ArgumentParser(
        prog="python -m exp.tune", description="Compare optimizers tuned with equal budgets.")
    parser.add_argument("task", metavar="TASK", nargs="?",
                        help="a folder of exp/ whose task.toml has [tuning]")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--optimizers", default=",".join(DEFAULT_ARMS), metavar="A,B",
                       help=f"optimizers or arms of exp/tune/arms.toml ({NOISE_ARM} is the noise "
                            f"floor), or all (default: {','.join(DEFAULT_ARMS)}). A single one "
                            "that the task's board does not have is a challenge: it is compared "
                            f"with the board. {BASELINE},NAME adds NAME to the board")
    which.add_argument("--ablation", action="store_true",
                       help="tune every combination of ARS2-Neo's parts, on a separate board")
    which.add_argument("--pace", action="store_true",
                       help="do not search; time the winners of the task's board in turn")
    which.add_argument("--check", action="store_true",
                       help="do not search; recompute every number of every board")
    which.add_argument("--verify", action="store_true",
                       help="do not search; train a random fresh run of every arm of the task's "
                            "board again, and compare the curves bit for bit")
    which.add_argument("--render", action="store_true",
                       help="do not search; write the page of every board from its JSON")
    which.add_argument("--sensitivity", action="store_true",
                       help="run seven learning rates around each arm's median winner")
    which.add_argument("--best-known", action="store_true",
                       help="compare the best settings of all arms and hand-set ones of arms.toml")
    which.add_argument("--transfer", metavar="FROM",
                       help="run the winners of the board of task FROM on this task")
    which.add_argument("--recommend", action="store_true",
                       help="write the arm and setting that the boards recommend for each "
                            "held-out task, and its regret")
    add_dry_run(parser)
    parser.add_argument("--arms", type=Path, metavar="FILE",
                        help="a TOML file with your own arms, [arms.NAME] as in arms.toml, for "
                             "--optimizers; search = { eps = [1e-12, 1e-6] } declares an axis")
    _add_budget(parser)
    parser.add_argument("--minutes", type=duration, metavar="N",
                        help="stop a challenge after N minutes; the same command continues it")
    parser.add_argument("--replace", action="store_true",
                        help="discard a board with different terms")
    parser.add_argument("--workers", type=positive, default=1, metavar="N",
                        help="number of parallel chains (one arm in one study)")
    add_launcher_options(parser)
    parser.add_argument("--target", type=float, help="override the target of task.toml")
    parser.add_argument("--cap", type=positive, metavar="N",
                        help="override the cap on gradient evaluations per run")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE",
                        help="override a setting of the task for all optimizers; repeatable")
    parser.add_argument("--outputs", type=Path, default=OUTPUTS, metavar="FOLDER",
                        help="folder of all results; studies stored in its paper/ are not run "
                             "again (default: outputs)")
    options = parser.parse_args(arguments)
    if options.task is None and not (options.render or options.check or options.recommend):
        parser.error("TASK is required")
    others = (options.pace, options.check, options.verify, options.render, options.sensitivity,
              options.best_known, options.transfer, options.recommend)
    if options.dry_run and any(others):
        parser.error("--dry-run lists the runs of a search: it cannot be combined with other modes")
    return options


def _add_budget(parser: argparse.ArgumentParser) -> None:
    amounts = parser.add_argument_group(
        "budget per arm", "defaults: those of the task's board, else the numbers in parentheses")
    amounts.add_argument("--studies", type=positive, metavar="N",
                         help=f"independent studies ({AMOUNTS['studies']})")
    amounts.add_argument("--trials", type=positive, metavar="N",
                         help=f"trials per study ({AMOUNTS['trials']})")
    amounts.add_argument("--fresh-seeds", type=positive, metavar="N",
                         help=f"fresh seeds per study's winner ({AMOUNTS['fresh_seeds']})")


def parse_path(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the options of exp.tune.path. Exits for --help and for invalid options."""
    parser = argparse.ArgumentParser(
        prog="python -m exp.tune.path",
        description="Tune and score arms of the language-model ladder as preregistered.")
    parser.add_argument("arms", nargs="+", metavar="ARM", help="arms of the preregistration")
    parser.add_argument("--scale", default="S", help="the size to run at (default: S)")
    parser.add_argument("--from", dest="below", metavar="SCALE",
                        help="tune at this size (unless done) and run the winner at --scale")
    modes = parser.add_mutually_exclusive_group()
    modes.add_argument("--repeats", action="store_true",
                       help="measure the noise: one setting per arm on eight seeds")
    modes.add_argument("--auxiliary", action="store_true",
                       help="tune the embedding, head and vector rates that all arms share")
    modes.add_argument("--horizons", action="store_true",
                       help="also run the winner for other numbers of steps (AdamW, Muon)")
    parser.add_argument("--folder", type=Path, default=Path("outputs/ladder"),
                        help="folder of the runs (default: outputs/ladder)")
    parser.add_argument("--tie", type=float, metavar="BITS",
                        help="treat scores this close as equal (default: one s.d. of the repeats "
                             "in the folder)")
    parser.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE",
                        help="override a setting of the task for all runs; repeatable")
    add_dry_run(parser)
    return parser.parse_args(arguments)
