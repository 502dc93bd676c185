"""The published leaderboard as Markdown and heat maps, from leaderboard.json alone."""

import math
from pathlib import Path

from exp.report import statistics
from exp.report.canvas import NEUTRAL, canvas, display_name, grid_of
from exp.report.statistics import Estimate
from exp.report.tables import at_least, interval, markdown, number, page
from exp.tune.published.scores import (
    at_edges,
    default_over_best,
    fresh_costs,
    performance_profile,
    share_near_best,
    shown_text,
    tuned_score,
    winner,
)

BASELINE = "adamw"
FACTORS = (1.0, 1.5, 2.0, 4.0)
COST = "gradient_evaluations"
LEGEND = " ".join(Path(__file__).with_name("legend.md").read_text(encoding="utf-8").split())


def rows_of(task: dict) -> list[dict]:
    """One row an arm, the cheapest on fresh seeds first; where most runs never got there, the one
    with the most that did; those that were not re-run yet last."""
    rows = [_row(task, arm) for arm in task["arms"]]
    return sorted(rows, key=lambda row: (row["fresh"] is None,
                                         row["fresh"].value if row["fresh"] else row["tuned"],
                                         -row["arrived"], row["tuned"], row["arm"]))


def _row(task: dict, arm: str) -> dict:
    entry = task["arms"][arm]
    costs = {axis: fresh_costs(task, arm, axis) for axis in (COST, "epochs", "seconds")}
    medians = {axis: statistics.median_time(*of_axis) if of_axis[0] else None
               for axis, of_axis in costs.items()}
    times = costs[COST][0]
    arrived = sum(time is not None for time in times)
    paces = [study["pace"]["ms"] for study in entry["studies"] if study["text"]]
    base, watched = fresh_costs(task, BASELINE) if BASELINE in task["arms"] else ([], [])
    ratio = statistics.speedup(base, times, watched) if times and base and arm != BASELINE else None
    return {"arm": arm, "studies": len(entry["studies"]),
            "trials": sum(len(study["trials"]) for study in entry["studies"]),
            "won": any(map(winner, entry["studies"])),
            "tuned": tuned_score(entry["studies"]), "near": share_near_best(entry["studies"]),
            "defaults": default_over_best(entry["studies"]), "fresh": medians[COST],
            "epochs": medians["epochs"], "seconds": medians["seconds"],
            "arrived": arrived, "reached": f"{arrived} of {len(times)}",
            "ratio": ratio, "config": entry["config"],
            "paces": paces, "text": shown_text(entry["studies"]),
            "runs": entry["fresh"]}


def render(board: dict) -> str:
    """leaderboard.md."""
    parts = ["# Gradient evaluations to target after equal-budget tuning", LEGEND]
    for name, task in board["tasks"].items():
        parts += [f"## {name}", terms_line(task), _table(rows_of(task)), pace_line(task),
                  ranges_line(task), f"![search spaces](leaderboard_{name}.png)"]
    return page(*parts, "## Performance profiles", profiles(board["tasks"]))


def terms_line(task: dict) -> str:
    terms = task["terms"]
    better = "at least" if terms["mode"] == "max" else "at most"
    return (f"Target: {terms['metric']} {better} {terms['target']:g}, within {terms['cap']} "
            f"gradient evaluations. Studies x trials: {terms['studies']} x {terms['budget']}; "
            f"winners x fresh seeds: {terms['studies']} x {terms['fresh_seeds']}. Device "
            f"{task['device']}; torch {task['torch']}; commit {task['commit']}.")


def ranges_line(task: dict) -> str:
    """Which winners lie so near an end of a range that the best may lie beyond it."""
    near = [f"{arm} ({key} {value:g} of {study['space'][key][0]:g} to {study['space'][key][1]:g})"
            for arm, entry in task["arms"].items() for study in entry["studies"]
            for key, value in at_edges(study).items()]
    return ("Winners in the outermost tenth of a range, whose best may lie beyond: "
            f"{', '.join(near) or 'none'}.")


def pace_line(task: dict) -> str:
    """What seconds rest on: the winners timed side by side."""
    pace = task["pace"]
    return ("Seconds are evaluations times what one takes with the winner (ms an evaluation: "
            "of the arm's fastest to its slowest winner), all of them timed in turn in one "
            f"process: {pace['device']}, {pace['threads']} thread(s), torch {pace['torch']}.")


def _table(rows: list[dict]) -> str:
    lines = [("", "fresh: evaluations", "reached", "epochs", "ms an evaluation", "seconds",
              f"times cheaper than {BASELINE}", "tuned: evaluations", "near best", "defaults",
              "trials", "config")]
    for row in rows:
        lines.append((row["arm"], evaluations(row), row["reached"], shown(row["epochs"]),
                      took(row["paces"]), shown(row["seconds"]), at_least(row["ratio"]),
                      number(row["tuned"]), f"{100 * row['near']:.0f} %", bounded(row["defaults"]),
                      f"{row['trials']} in {row['studies']}",
                      f"`{row['config']}`" if row["config"] else ""))
    return markdown(lines)


def profiles(tasks: dict[str, dict]) -> str:
    """The table of performance profiles over the tasks, from fresh runs."""
    everywhere = set.intersection(*(set(task["arms"]) for task in tasks.values()))
    costs = {name: {row["arm"]: row["fresh"].value if row["fresh"] else math.inf
                    for row in rows_of(task) if row["arm"] in everywhere}
             for name, task in tasks.items()}
    seen = min((task["terms"]["cap"] / min(costs[name].values()) for name, task in tasks.items()
                if math.isfinite(min(costs[name].values()))), default=1.0)
    factors = [factor for factor in FACTORS if factor <= seen]
    lines = [("within a factor of the cheapest", *map(number, factors))]
    for arm in sorted(everywhere):
        lines.append((arm, *(f"{performance_profile(costs, arm, factor):.2f}"
                             for factor in factors)))
    return ("Share of the tasks that an arm does, on fresh seeds, within a factor of the cheapest "
            f"one; arms that were tuned on every task, up to {number(seen)}, as far as all of them "
            "were watched.\n\n" + markdown(lines))


def draw(path: Path, task: dict) -> None:
    """Every trial in the plane of its learning rate and weight decay, coloured by its cost."""
    from matplotlib.colors import LogNorm

    arms = [row["arm"] for row in rows_of(task)]
    trials = {arm: [trial for study in task["arms"][arm]["studies"] for trial in study["trials"]]
              for arm in arms}
    values = [trial["value"] for of_arm in trials.values() for trial in of_arm if trial["value"]]
    norm = LogNorm(min(values, default=1), max([*values, min(values, default=1) * 1.01]))
    with canvas(path, **grid_of(len(arms), most=4), panel=(4, 3.2), legend=False) as panels:
        for arm, panel in zip(arms, panels.flat, strict=False):
            dots = _scatter(panel, arm, trials[arm], norm)
        panels[0, 0].figure.colorbar(dots, ax=panels,
                                     label="gradient evaluations to the target; x: missed")


def _scatter(panel, arm: str, trials: list[dict], norm):
    """One arm's trials; what the colour bar is made from."""
    second = next((key for key in ("weight_decay", "rho", "momentum")
                   if trials and key in trials[0]["settings"]), None)

    def place(hits: bool) -> tuple[list, list, list]:
        chosen = [trial for trial in trials if (trial["value"] is not None) == hits]
        return ([trial["settings"]["lr"] for trial in chosen],
                [trial["settings"][second] if second else 1.0 for trial in chosen],
                [trial["value"] for trial in chosen])

    x, y, _ = place(hits=False)
    panel.scatter(x, y, marker="x", color=NEUTRAL, s=24)
    x, y, value = place(hits=True)
    dots = panel.scatter(x, y, c=value, norm=norm, cmap="viridis_r", s=42, zorder=3)
    panel.set(xscale="log", title=display_name(arm), xlabel="lr", ylabel=second or "")
    if trials:
        panel.set_xlim(_decades([trial["settings"]["lr"] for trial in trials]))
    if second in ("weight_decay", "rho"):
        panel.set(yscale="log", ylim=_decades([trial["settings"][second] for trial in trials]))
    return dots


def _decades(values: list[float]) -> tuple[float, float]:
    """The powers of ten around positive values."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return 10.0**low, 10.0 ** max(high, low + 1)


def evaluations(row: dict) -> str:
    """The median of the fresh runs, or that there was nothing to run."""
    return shown(row["fresh"]) if row["won"] else "no trial"


def took(paces: list[float]) -> str:
    """What an evaluation takes, from the fastest to the slowest winner; "" without any."""
    ends = dict.fromkeys(map(number, (min(paces), max(paces)))) if paces else []
    return " to ".join(ends)


def bounded(ratio: tuple[float, bool]) -> str:
    """A number, "> " before one that is only known to be larger; 0 is only known to be small."""
    if ratio[0] == 0:
        return "< 1"
    return f"{'> ' * ratio[1]}{number(ratio[0])}"


def shown(estimate: Estimate | None) -> str:
    return "" if estimate is None else interval(estimate)
