"""What each part of ARS2-Neo buys: the page and the figure of a published ablation_<task>.json.

Levels of a factor are compared in pairs of cells that agree in every other factor. A pair tells by
how many times the gradient evaluations to the target change; a cell that never got there counts
as the cap, which makes its pair a bound.
"""

import json
import math
from pathlib import Path

from exp.report import statistics
from exp.report.canvas import ACCENT, NEUTRAL, OURS, canvas
from exp.report.statistics import Estimate
from exp.report.tables import interval, markdown, number
from exp.tune.cells import arm_name
from exp.tune.published.scores import fresh_costs, share_near_best, tuned_score, winner


def write_page(path: Path) -> None:
    """The page and the figure of an ablation_<task>.json."""
    content = json.loads(path.read_text(encoding="utf-8"))
    path.with_suffix(".md").write_text(render(content), encoding="utf-8")
    draw(path.with_suffix(".png"), content)


def render(content: dict) -> str:
    """The page."""
    terms = content["terms"]
    better = "at least" if terms["mode"] == "max" else "at most"
    return "\n\n".join([
        f"# What each part of ARS2-Neo buys: {terms['task']}",
        f"`python -m exp.tune {terms['task']} --ablation`: gradient evaluations until "
        f"{terms['metric']} is {better} {terms['target']:g}, at most {terms['cap']}. Every cell "
        "was tuned as an arm of its own, and its winners were run on fresh seeds: studies x trials "
        f"{terms['studies']} x {terms['budget']}, winners x fresh seeds {terms['studies']} x "
        f"{terms['fresh_seeds']}. Medians are Kaplan-Meier, intervals 95 %. Only the way to the "
        "target is measured here, not where training ends. Device "
        f"{content['device']}; torch {content['torch']}; commit {content['commit']}.",
        "## Factor by factor",
        "Times the evaluations with the part over those without it, paired over all cells that "
        "agree in the rest, geometric mean; below 1 the part pays. A cell that missed the target "
        "counts as the cap. Pairs share runs: the p values are a guide.",
        markdown([("part", "evaluations, times", "cheaper in", "one missed", "both missed", "p"),
                  *(_effect_line(effect) for effect in effects(content))]),
        f"![factor by factor](ablation_{terms['task']}.png)",
        "## Cells", _same(content), _cells(content)]) + "\n"


def effects(content: dict) -> list[dict]:
    """Each level of each factor against the first: `ratio` (geometric mean), `ratios` of the pairs,
    each with whether it is a bound, `p`, `pairs`, `cheaper`, `bounds` (pairs in which one missed)
    and `missed` (left out: both did)."""
    rows = []
    for factor, (first, *levels) in content["factors"].items():
        for level in levels:
            ours, theirs, ratios, missed = {}, {}, [], 0
            for index, (with_it, without) in enumerate(pairs(content, factor, level, first)):
                costs = [cost(content, cell).value for cell in (with_it, without)]
                if all(map(math.isinf, costs)):
                    missed += 1
                    continue
                capped = [math.log(min(value, content["terms"]["cap"])) for value in costs]
                ours[index], theirs[index] = capped
                ratios.append((math.exp(capped[0] - capped[1]), any(map(math.isinf, costs))))
            mean, p = statistics.paired(ours, theirs)
            rows.append({
                "part": f"{factor}: {level}",
                "ratio": Estimate(*map(math.exp, (mean.value, mean.low, mean.high)), mean.n),
                "ratios": ratios, "p": p, "pairs": len(ours), "missed": missed,
                "bounds": sum(bound for _, bound in ratios),
                "cheaper": sum(ours[key] < theirs[key] for key in ours)})
    return rows


def draw(path: Path, content: dict) -> None:
    """The effect of each part: every pair of cells as a dot, open where one of them missed, and the
    geometric mean with its interval."""
    from matplotlib.ticker import FixedLocator, NullFormatter

    parts = effects(content)
    title = f"{content['terms']['task']}: what each part costs"
    with canvas(path, panel=(8, 0.8 + 0.55 * len(parts)), title=title, legend=False) as panels:
        axes = panels[0, 0]
        for place, effect in enumerate(parts):
            for ratio, bound in effect["ratios"]:
                axes.scatter(ratio, place, s=26, edgecolors=OURS, zorder=2,
                             facecolors="none" if bound else OURS + "88")
            mean = effect["ratio"]
            if effect["pairs"]:
                axes.plot([mean.value], [place + 0.28], "D", color=ACCENT, markersize=5, zorder=3)
            if effect["pairs"] > 1:
                axes.plot([mean.low, mean.high], [place + 0.28] * 2, color=ACCENT, linewidth=1.6)
        axes.axvline(1.0, color=NEUTRAL, linewidth=0.9)
        axes.set_yticks(range(len(parts)), [effect["part"] for effect in parts])
        axes.invert_yaxis()
        axes.set(xscale="log", xlabel="evaluations to the target with the part over those without "
                 "it\nleft of 1 the part pays; open: one of the two missed, a bound")
        axes.xaxis.set_major_locator(FixedLocator((0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())


def pairs(content: dict, factor: str, level: str, first: str) -> list[tuple[dict, dict]]:
    """(with, without): cells that differ in the factor alone, and in what was run for it: one that
    borrows the runs of another level shows nothing of its own. The same runs are paired once."""
    by_levels = {tuple(cell["levels"].values()): cell for cell in content["cells"]}
    runs = {}
    for cell in content["cells"]:
        if cell["levels"][factor] == level:
            other = by_levels[tuple({**cell["levels"], factor: first}.values())]
            if cell["ran"][factor] == level and other["ran"][factor] == first:
                runs.setdefault((arm_name(cell["ran"]), arm_name(other["ran"])), (cell, other))
    return list(runs.values())


def cost(content: dict, cell: dict) -> Estimate:
    """Median gradient evaluations of a cell's fresh runs to the target; infinite for a miss."""
    times, limits = fresh_costs(content, arm_name(cell["ran"]))
    if not times:
        return Estimate(math.inf, math.inf, math.inf, 0)
    return statistics.median_time(times, limits)


def _effect_line(effect: dict) -> tuple[str, ...]:
    return (effect["part"], interval(effect["ratio"]),
            f"{effect['cheaper']} of {effect['pairs']}", str(effect["bounds"]),
            str(effect["missed"]), number(effect["p"]))


def _same(content: dict) -> str:
    borrowed = sum(cell["levels"] != cell["ran"] for cell in content["cells"])
    return (f"{len(content['cells'])} combinations, {len(content['cells']) - borrowed} of them "
            "distinct: without orthogonalization the literal energy has nothing to scale, and "
            "with whitening the energy gives back what the step had.")


def _cells(content: dict) -> str:
    lines = [(*content["factors"], "is", "evaluations", "reached", "tuned", "near best")]
    own = [cell for cell in content["cells"] if cell["levels"] == cell["ran"]]
    for cell in sorted(own, key=lambda cell: cost(content, cell).value):
        arm = content["arms"][arm_name(cell["ran"])]
        times, _ = fresh_costs(content, arm_name(cell["ran"]))
        reached = sum(time is not None for time in times)
        lines.append((*cell["levels"].values(), cell["is"],
                      interval(cost(content, cell)) if any(map(winner, arm["studies"]))
                      else "no trial",
                      f"{reached} of {len(times)}", number(tuned_score(arm["studies"])),
                      f"{100 * share_near_best(arm['studies']):.0f} %"))
    return markdown(lines)
