"""What each part buys: outputs/paper/ablation_<task>.json from the cells' runs, the page from it.

Levels of a factor are compared in pairs of cells that agree in every other factor. A pair tells by
how many times the gradient evaluations to the target change; a cell that never got there counts
as the cap, which makes its pair a bound.
"""

import json
import math
from pathlib import Path

from exp.report import statistics
from exp.report.statistics import Estimate
from exp.report.tables import interval, markdown, number
from exp.tune.cells import Ablation, arm_name
from exp.tune.score import fresh_costs, share_near_best, tuned_score, winner


def write_ablation(paper: Path, ablation: Ablation, terms: dict, facts: dict, arms: dict) -> None:
    """ablation_<task>.json, .md and .png. arms: name -> its `studies` and `fresh` runs."""
    content = {
        "terms": terms, **facts,
        "factors": {factor: list(levels) for factor, levels in ablation.factors.items()},
        "cells": [{"levels": cell, "is": ablation.known_as(cell), "ran": ablation.run_as(cell)}
                  for cell in ablation.cells()],
        "arms": arms}
    path = paper / f"ablation_{terms['task']}.json"
    paper.mkdir(parents=True, exist_ok=True)
    path.write_text(_text(content), encoding="utf-8")
    write_page(path)


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
    found = []
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
            found.append({
                "part": f"{factor}: {level}",
                "ratio": Estimate(*map(math.exp, (mean.value, mean.low, mean.high)), mean.n),
                "ratios": ratios, "p": p, "pairs": len(ours), "missed": missed,
                "bounds": sum(bound for _, bound in ratios),
                "cheaper": sum(ours[key] < theirs[key] for key in ours)})
    return found


def draw(path: Path, content: dict) -> None:
    """What each part does to the evaluations: every pair of cells as a dot, open where one of them
    missed, and the geometric mean with its interval."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    found = effects(content)
    figure, axes = plt.subplots(figsize=(8, 0.8 + 0.55 * len(found)), layout="constrained")
    for place, effect in enumerate(found):
        for ratio, bound in effect["ratios"]:
            axes.scatter(ratio, place, s=26, edgecolors="#1f5fbf", zorder=2,
                         facecolors="none" if bound else "#1f5fbf88")
        mean = effect["ratio"]
        if effect["pairs"]:
            axes.plot([mean.value], [place + 0.28], "D", color="#c2410c", markersize=5, zorder=3)
        if effect["pairs"] > 1:
            axes.plot([mean.low, mean.high], [place + 0.28] * 2, color="#c2410c", linewidth=1.6)
    axes.axvline(1.0, color="#6b7280", linewidth=0.9)
    axes.set_yticks(range(len(found)), [effect["part"] for effect in found])
    axes.invert_yaxis()
    axes.set(xscale="log", title=f"{content['terms']['task']}: what each part costs",
             xlabel="evaluations to the target with the part over those without it\n"
                    "left of 1 the part pays; open: one of the two missed, a bound")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def pairs(content: dict, factor: str, level: str, first: str) -> list[tuple[dict, dict]]:
    """(with, without): cells that differ in the factor alone, and in what was run for it: one that
    borrows the runs of another level shows nothing of its own. The same runs are paired once."""
    by_levels = {tuple(cell["levels"].values()): cell for cell in content["cells"]}
    found = {}
    for cell in content["cells"]:
        if cell["levels"][factor] == level:
            other = by_levels[tuple({**cell["levels"], factor: first}.values())]
            if cell["ran"][factor] == level and other["ran"][factor] == first:
                found.setdefault((arm_name(cell["ran"]), arm_name(other["ran"])), (cell, other))
    return list(found.values())


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


def _text(content: dict) -> str:
    """One arm a line, one cell a line."""
    arms = ",\n".join(f"{json.dumps(arm)}: {json.dumps(entry)}"
                      for arm, entry in content["arms"].items())
    cells = ",\n".join(map(json.dumps, content["cells"]))
    rest = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}"
                      for key, value in content.items() if key not in ("arms", "cells"))
    return f'{{\n{rest},\n"cells": [\n{cells}\n],\n"arms": {{\n{arms}\n}}}}\n'
