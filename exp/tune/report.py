"""The leaderboard as Markdown, self-contained HTML and heat maps, from leaderboard.json alone."""

import html
import json
import math
from pathlib import Path

from exp.report import statistics
from exp.report.statistics import Estimate
from exp.report.tables import interval, markdown, number
from exp.tune.score import (
    default_over_best,
    fresh_costs,
    performance_profile,
    seeds_a_winner,
    share_near_best,
    tuned_score,
)

BASELINE = "adamw"
FACTORS = (1.0, 1.5, 2.0, 4.0)
COST = "gradient_evaluations"


def rows_of(task: dict) -> list[dict]:
    """One row an arm, the cheapest on fresh seeds first; those that were not re-run yet last."""
    rows = [_row(task, arm) for arm in task["arms"]]
    return sorted(rows, key=lambda row: (row["fresh"] is None,
                                         row["fresh"].value if row["fresh"] else row["tuned"],
                                         row["tuned"], row["arm"]))


def _row(task: dict, arm: str) -> dict:
    entry = task["arms"][arm]
    costs = {axis: fresh_costs(task, arm, axis) for axis in (COST, "epochs", "seconds")}
    medians = {axis: statistics.median_time(*found) if found[0] else None
               for axis, found in costs.items()}
    times = costs[COST][0]
    base, watched = fresh_costs(task, BASELINE) if BASELINE in task["arms"] else ([], [])
    ratio = statistics.speedup(base, times, watched) if times and base and arm != BASELINE else None
    return {"arm": arm, "studies": len(entry["studies"]),
            "trials": sum(len(study["trials"]) for study in entry["studies"]),
            "tuned": tuned_score(entry["studies"]), "near": share_near_best(entry["studies"]),
            "defaults": default_over_best(entry["studies"]), "fresh": medians[COST],
            "epochs": medians["epochs"], "seconds": medians["seconds"],
            "reached": f"{sum(time is not None for time in times)} of {len(times)}",
            "ratio": ratio, "config": entry["config"], "text": entry["text"],
            "runs": entry["fresh"]}


def render(board: dict) -> str:
    """leaderboard.md."""
    parts = ["# Who needs how much, after equal tuning",
             "Gradient evaluations to the target. Every arm had the same number of quasi-random "
             "trials over its own SEARCH_SPACE, in independent studies; the winner of each study "
             "was then run on seeds that the tuning never saw, and the columns *fresh* are those "
             "runs; a study in which no trial got there counts as misses of all its seeds. "
             "Medians are Kaplan-Meier, intervals 95 % over runs, of which those of one winner "
             "share its settings. *near best*: the share of the "
             "search space that needs at most twice the study's best. *defaults*: how many times "
             "the tuned cost the constructor's defaults need."]
    for name, task in board["tasks"].items():
        parts += [f"## {name}", _terms(task), _table(rows_of(task)),
                  f"![search spaces](leaderboard_{name}.png)"]
    if len(board["tasks"]) > 1:
        parts += ["## Performance profiles", _profiles(board["tasks"])]
    return "\n\n".join(parts) + "\n"


def headline(board: dict) -> str:
    """What the README shows: an arm a line, a task a column, and what the numbers rest on."""
    rows = {name: {row["arm"]: row for row in rows_of(task)}
            for name, task in board["tasks"].items()}
    arms = dict.fromkeys(arm for of_task in rows.values() for arm in of_task)
    lines = [("", *(f"{name}: {_target(task['terms'])}" for name, task in board["tasks"].items()))]
    for arm in arms:
        lines.append((arm, *(_reached(of_task[arm]) if arm in of_task else "not tuned"
                             for of_task in rows.values())))
    said = []
    for name, task in board["tasks"].items():
        studies = max(row["studies"] for row in rows[name].values())
        said.append(f"{name} {studies} x {task['terms']['budget']}, "
                    f"{studies} x {seeds_a_winner(task)}")
    devices = ", ".join(dict.fromkeys(task["device"] for task in board["tasks"].values()))
    return (f"{markdown(lines)}\n\nMedian gradient evaluations of fresh runs to the target [95 %], "
            f"and how many got there. Studies x trials, winners x fresh seeds: {'; '.join(said)}. "
            f"{devices}.")


def _target(terms: dict) -> str:
    sign = "≥" if terms["mode"] == "max" else "≤"
    return f"{terms['metric'].removeprefix('eval_')} {sign} {terms['target']:g}"


def _reached(row: dict) -> str:
    return f"{_shown(row['fresh'])}, {row['reached']}" if row["fresh"] else "–"


def _terms(task: dict) -> str:
    terms = task["terms"]
    better = "at least" if terms["mode"] == "max" else "at most"
    return (f"Target: {terms['metric']} {better} {terms['target']:g}, within {terms['cap']} "
            f"gradient evaluations. {terms['budget']} trials a study. Device {task['device']}; "
            f"torch {task['torch']}; commit {task['commit']}. `python -m exp.tune "
            f"{terms['task']}`.")


def _table(rows: list[dict]) -> str:
    lines = [("", "fresh: evaluations", "reached", "epochs", "seconds",
              f"times cheaper than {BASELINE}", "tuned: evaluations", "near best", "defaults",
              "trials", "config")]
    for row in rows:
        lines.append((row["arm"], _shown(row["fresh"]), row["reached"], _shown(row["epochs"]),
                      _shown(row["seconds"]), _at_least(row["ratio"]), number(row["tuned"]),
                      f"{100 * row['near']:.0f} %", number(row["defaults"]),
                      f"{row['trials']} in {row['studies']}",
                      f"`{row['config']}`" if row["config"] else ""))
    return markdown(lines)


def _profiles(tasks: dict[str, dict]) -> str:
    everywhere = set.intersection(*(set(task["arms"]) for task in tasks.values()))
    costs = {name: {row["arm"]: row["fresh"].value if row["fresh"] else math.inf
                    for row in rows_of(task) if row["arm"] in everywhere}
             for name, task in tasks.items()}
    lines = [("within a factor of the cheapest", *map(number, FACTORS))]
    for arm in sorted(everywhere):
        lines.append((arm, *(f"{performance_profile(costs, arm, factor):.2f}"
                             for factor in FACTORS)))
    return ("Share of the tasks that an arm does, on fresh seeds, within a factor of the cheapest "
            "one; arms that were tuned on every task.\n\n" + markdown(lines))


def draw(path: Path, task: dict) -> None:
    """Every trial in the plane of its learning rate and weight decay, coloured by its cost."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.colors import LogNorm

    arms = [row["arm"] for row in rows_of(task)]
    columns = min(4, len(arms))
    lines = math.ceil(len(arms) / columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4 * columns, 3.2 * lines), squeeze=False,
                                layout="constrained")
    values = [trial["value"] for entry in task["arms"].values() for study in entry["studies"]
              for trial in study["trials"] if trial["value"]]
    norm = LogNorm(min(values, default=1), max([*values, min(values, default=1) * 1.01]))
    dots = None
    for panel in axes.flat[len(arms):]:
        panel.axis("off")
    for arm, panel in zip(arms, axes.flat, strict=False):
        trials = [trial for study in task["arms"][arm]["studies"] for trial in study["trials"]]
        second = next((key for key in ("weight_decay", "rho", "momentum")
                       if trials and key in trials[0]["settings"]), None)
        for hit in (False, True):
            chosen = [trial for trial in trials if (trial["value"] is not None) == hit]
            x = [trial["settings"]["lr"] for trial in chosen]
            y = [trial["settings"][second] if second else 1.0 for trial in chosen]
            if hit:
                dots = panel.scatter(x, y, c=[trial["value"] for trial in chosen], norm=norm,
                                     cmap="viridis_r", s=42, zorder=3) if x else dots
            else:
                panel.scatter(x, y, marker="x", color="#b0b5bd", s=24)
        panel.set(xscale="log", title=arm, xlabel="lr", ylabel=second or "")
        if second in ("weight_decay", "rho"):
            panel.set_yscale("log")
        panel.spines[["top", "right"]].set_visible(False)
    if dots is not None:
        figure.colorbar(dots, ax=axes, label="gradient evaluations to the target; x: missed")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def render_html(board: dict) -> str:
    """leaderboard.html: sortable tables, behind each row its curves and its config; one file."""
    sections = []
    for name, task in board["tasks"].items():
        body = "".join(_html_row(row, task["terms"]) for row in rows_of(task))
        head = "".join(f"<th>{html.escape(title)}</th>" for title in HEAD)
        sections.append(f"<h2>{html.escape(name)}</h2><p>{html.escape(_terms(task))}</p>"
                        f"<table><thead><tr>{head}</tr></thead>{body}</table>")
    return PAGE.replace("SECTIONS", "\n".join(sections))


def _html_row(row: dict, terms: dict) -> str:
    cells = [(row["arm"], row["arm"]),
             (_shown(row["fresh"]), _key(row["fresh"] and row["fresh"].value)),
             (row["reached"], row["reached"]),
             (_shown(row["epochs"]), _key(row["epochs"] and row["epochs"].value)),
             (_shown(row["seconds"]), _key(row["seconds"] and row["seconds"].value)),
             (_at_least(row["ratio"]), _key(row["ratio"] and row["ratio"].low)),
             (number(row["tuned"]), _key(row["tuned"])),
             (f"{100 * row['near']:.0f} %", _key(row["near"])),
             (number(row["defaults"]), _key(row["defaults"]))]
    line = "".join(f'<td data-key="{html.escape(str(key))}">{html.escape(text)}</td>'
                   for text, key in cells)
    return (f'<tbody><tr class="row">{line}</tr><tr class="more" hidden><td colspan="{len(cells)}">'
            f"{_svg(row['runs'], terms)}<pre>{html.escape(row['text'])}</pre></td></tr></tbody>")


def _svg(runs: list[dict], terms: dict) -> str:
    """The metric over gradient evaluations, one line a fresh run, and the target."""
    width, height = 640, 220
    curves = [[(x, y) for x, y in zip(run["curve"][COST], run["curve"][terms["metric"]],
                                      strict=True) if y is not None] for run in runs]
    points = [point for curve in curves for point in curve]
    if not points:
        return "<p>no fresh run: no trial reached the target</p>"
    right = max(x for x, _ in points)
    low, high = (end(*(y for _, y in points), terms["target"]) for end in (min, max))

    def at(x: float, y: float) -> str:
        return f"{width * x / right:.1f},{height * (high - y) / ((high - low) or 1):.1f}"

    lines = "".join(f'<polyline points="{" ".join(at(x, y) for x, y in curve)}"/>'
                    for curve in curves)
    return (f'<svg viewBox="-4 -4 {width + 8} {height + 8}" role="img"><title>{terms["metric"]} '
            f'over gradient evaluations</title>{lines}<polyline class="target" '
            f'points="{at(0, terms["target"])} {at(right, terms["target"])}"/></svg>')


def _shown(found: Estimate | None) -> str:
    return "" if found is None else interval(found)


def _at_least(ratio: Estimate | None) -> str:
    if ratio is None:
        return ""
    return f"> {number(ratio.low)}" if math.isinf(ratio.value) else interval(ratio)


def _key(value: float | None) -> float:
    """What a column sorts by."""
    return 1e300 if value is None or not math.isfinite(value) else value


def board_text(board: dict) -> str:
    """leaderboard.json: one arm a line."""
    tasks = []
    for name, task in board["tasks"].items():
        arms = ",\n".join(f"{json.dumps(arm)}: {json.dumps(entry)}"
                          for arm, entry in task["arms"].items())
        rest = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}"
                          for key, value in task.items() if key != "arms")
        tasks.append(f'{json.dumps(name)}: {{\n{rest},\n"arms": {{\n{arms}\n}}}}')
    return '{"tasks": {\n' + ",\n".join(tasks) + "\n}}\n"


HEAD = ("optimizer", "fresh: evaluations", "reached", "epochs", "seconds",
        f"times cheaper than {BASELINE}", "tuned: evaluations", "near best", "defaults")
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>ARS leaderboard</title>
<meta name="viewport" content="width=device-width">
<style>
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
       color: #1f2937 }
table { border-collapse: collapse; width: 100% }
th, td { padding: .35rem .6rem; text-align: left; border-bottom: 1px solid #e3e5e8 }
th { cursor: pointer; white-space: nowrap } th[data-order]::after { content: " \\2193" }
th[data-order="-1"]::after { content: " \\2191" }
.row { cursor: pointer } .row:hover { background: #f3f4f6 }
svg { width: 640px; max-width: 100%; background: #fafafa }
polyline { fill: none; stroke: #1f5fbf; stroke-width: 1.4; opacity: .7 }
.target { stroke: #c2410c; stroke-dasharray: 5 4 } pre { overflow: auto; font-size: 12px }
</style></head><body>
<h1>Who needs how much, after equal tuning</h1>
<p>Click a heading to sort, a row for its learning curves and the config that reproduces it.</p>
SECTIONS
<script>
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.querySelectorAll("th")];
  heads.forEach((head, column) => head.addEventListener("click", () => {
    const order = head.dataset.order === "1" ? -1 : 1;
    heads.forEach(other => delete other.dataset.order);
    head.dataset.order = order;
    const key = body => body.querySelectorAll(".row td")[column].dataset.key;
    const number = text => text.trim() !== "" && isFinite(text) ? Number(text) : null;
    const bodies = [...table.tBodies].sort((a, b) => {
      const [x, y] = [number(key(a)), number(key(b))];
      return order * (x !== null && y !== null ? x - y : key(a).localeCompare(key(b)));
    });
    table.append(...bodies);
  }));
  for (const row of table.querySelectorAll(".row"))
    row.addEventListener("click", () => { row.nextElementSibling.hidden ^= true; });
}
</script></body></html>
"""
