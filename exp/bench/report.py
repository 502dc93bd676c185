"""bench.md and pareto.png, generated from the JSON files beside them."""

import json
from pathlib import Path


def write(folder: Path) -> None:
    """Tables of every <part>_<kind>.json in `folder`, and time against error as a plot; kind: cuda,
    cpu, or cpu-bf16, which has bfloat16 products in hardware."""
    text = ["# Benchmarks", "",
            "Medians over interleaved rounds, quartiles in brackets; a ratio is the median over "
            "rounds of this / reference in the same round."]
    for path in sorted(folder.glob("*_*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        part, kind = path.stem.split("_", 1)
        text += ["", f"## {TITLES[part]}", "", _facts(content["facts"]), ""]
        text += TABLES[part](content["results"])
        if part == "polar":
            plot(folder / f"pareto_{kind}.png", content["results"])
    notes = folder / "notes.md"
    if notes.exists():
        text += ["", notes.read_text(encoding="utf-8").strip()]
    (folder / "bench.md").write_text("\n".join(text) + "\n", encoding="utf-8")


def _facts(facts: dict) -> str:
    versions = ", ".join(f"{name} {found}" for name, found in facts["versions"].items() if found)
    return (f"{facts['device']}, {facts['processor']}, {facts['threads']} thread(s), clock: "
            f"{facts['clock']}; {versions}.")


def _spread(row: dict, key: str, digits: str) -> str:
    return (f"{row[key]:{digits}} [{row[key + '_low']:{digits}}, {row[key + '_high']:{digits}}]")


def step_tables(results: dict) -> list[str]:
    """One table a set of shapes; the ratio is to our Muon, memory beside the weights' own."""
    lines = []
    for name, rows in results.items():
        lines += [f"### {name}", "", "| optimizer | ms a step | / our Muon | state / weight | "
                  "needed for a while / weight |", "|---|---|---|---|---|"]
        lines += [f"| {key} | {_spread(row, 'ms', '.2f')} | {_spread(row, 'ratio', '.3g')} | "
                  f"{row['state_per_weight']:.2f} | {row['extra_per_weight']:.2f} |"
                  for key, row in rows.items()]
        lines.append("")
    return lines


def polar_tables(results: dict) -> list[str]:
    """One table a size; errors are relative distances from the exact polar factor."""
    size, best = results.get("peak_size", 1024), results["peak_gflops"]
    wide = results.get("float32_peak_gflops", best)
    lines = [f"Peak of a {size} x {size} product: {best:.0f} GFLOP/s"
             + (f", in float32 {wide:.0f}." if wide != best else "."), ""]
    for size, rows in results["sizes"].items():
        kinds = list(next(iter(rows.values()))["error"])
        lines += [f"### {size}", "",
                  f"| method | ms | / keller | share of peak | {' | '.join(kinds)} |",
                  "|---|---|---|---|" + "---|" * len(kinds)]
        for key, row in rows.items():
            errors = " | ".join(f"{row['error'][kind]:.2g}" for kind in kinds)
            share = f"{row['share_of_peak']:.0%}" if row["gflops"] else "-"
            lines.append(f"| {key} | {_spread(row, 'ms', '.2f')} | {row['ratio']:.2f} | {share} | "
                         f"{errors} |")
        lines.append("")
    return lines


def training_tables(results: dict) -> list[str]:
    """One table a configuration; ratios are to AdamW, the claim the paper's. Memory: weights,
    gradients, state, activations and what a step needs for a while, at the worst moment."""
    lines = []
    for name, rows in results.items():
        lines += [f"### {name}", "", "| mode | ms a step | / AdamW | claim | evaluations a step |"
                  " state / weight | peak memory, MB | / AdamW |",
                  "|---|---|---|---|---|---|---|---|"]
        for key, row in rows.items():
            claim = f"{row['claim']:.2f}" if row["claim"] else "-"
            lines.append(f"| {key} | {_spread(row, 'ms', '.1f')} | {_spread(row, 'ratio', '.2f')} |"
                         f" {claim} | {row['evaluations']:.2f} | {row['state_per_weight']:.2f} | "
                         f"{row['memory'] / 1e6:.0f} | {row['memory_ratio']:.2f} |")
        lines.append("")
    return lines


def sharding_tables(results: dict) -> list[str]:
    """Shared steps beside those of one process, then the projection."""
    lines = ["Hidden matrices of the published Qwen3, one thread a process, "
             f"{results['cores']} cores; a larger number of processes shares them.", "",
             "| optimizer, processes | alone, ms | all at once, ms | shared, ms | alone / shared | "
             "predicted, ms | state of each, MB | received by each, MB (least) |",
             "|---|---|---|---|---|---|---|---|"]
    for count, rows in results.items():
        if not count.isdigit():
            continue
        for name, row in rows.items():
            state, received = (", ".join(f"{size / 1e6:.1f}" for size in row[key])
                               for key in ("state_bytes", "received_bytes"))
            lines.append(
                f"| {name}, {count} | {_spread(row['alone'], 'ms', '.0f')} | "
                f"{_spread(row['crowded'], 'ms', '.0f')} | "
                f"{_spread(row['shared'], 'ms', '.0f')} | {1 / row['shared']['ratio']:.2f} | "
                f"{row['predicted_ms']:.0f} | {state} | {received} "
                f"({row['least_received_bytes'] / 1e6:.1f}) |")
    p = results["projection"]
    return [*lines, "", f"Projected to {p['parameters'] / 1e9:.2f} B parameters in matrices on 128 "
            "processes (4e14 operations, 5e10 bytes a second and 20 microseconds a message "
            f"assumed): every process orthogonalizing all of them {1e3 * p['alone_s']:.0f} ms a "
            f"step, its share {1e3 * p['shared_s']:.1f} ms and {1e3 * p['exchange_s']:.0f} ms to "
            "exchange weights. Traffic a "
            f"step: gradients {p['gradient_bytes'] / 1e9:.1f} GB, weights "
            f"{p['weight_bytes'] / 1e9:.1f} GB. Row statistics as a tensor-parallel NorMuon would "
            f"sum them: {p['normuon_row_bytes'] / 1e6:.1f} MB, {p['normuon_share']:.2%} of it; for "
            "the paper's own m = 16384 and factor log2 128, against one exchange of the matrix, "
            f"{p['normuon_share_as_stated']:.2%}. The paper says 15 to 20 %: does not hold.", ""]


def instrument_tables(results: dict) -> list[str]:
    """One table a configuration; a measurement over a training step of the same round."""
    lines = []
    for name, rows in results.items():
        lines += [f"### {name}", "", "| | ms | / a step | of the training time, once an epoch |",
                  "|---|---|---|---|"]
        for key, row in rows.items():
            share = f"{row['per_epoch']:.1%}" if "per_epoch" in row else "-"
            lines.append(f"| {key} | {_spread(row, 'ms', '.2f')} | {_spread(row, 'ratio', '.2f')} |"
                         f" {share} |")
        lines.append("")
    return lines


def plot(path: Path, results: dict) -> None:
    """Time against error on the Gaussian matrix, one panel a size; lower left is better."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(results["sizes"]), figsize=(4 * len(results["sizes"]), 4),
                                layout="constrained")
    for panel, (size, rows) in zip(axes, results["sizes"].items(), strict=True):
        for name, row in rows.items():
            error = max(row["error"]["gaussian"], 1e-8)
            color = "#1f5fbf" if name.startswith("ours") else "#c2410c"
            panel.plot(row["ms"], error, "o", color=color)
            panel.annotate(name.removeprefix("ours, "), (row["ms"], error), fontsize=7,
                           xytext=(3, 3), textcoords="offset points")
        panel.set(title=size, xscale="log", yscale="log", xlabel="ms")
        panel.grid(color="#e3e5e8", linewidth=0.8)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("distance from the exact polar factor")
    figure.savefig(path, dpi=130)
    plt.close(figure)


TITLES = {"steps": "Optimizer steps", "polar": "Orthogonalization", "training": "Training steps",
          "training-full": "Training steps, the paper's models",
          "instruments": "Instruments (`[experiment] diagnostics`)",
          "sharding": "Steps shared out over processes"}
TABLES = {"steps": step_tables, "polar": polar_tables, "training": training_tables,
          "training-full": training_tables, "instruments": instrument_tables,
          "sharding": sharding_tables}
