"""Make bench.md, which ends with notes.md, and pareto_<kind>.png from the benchmarks' JSON files.

A file is <part>_<kind>.json; kind: cuda, cpu, or cpu-bf16, which has bfloat16 products in hardware.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from exp.report.canvas import curves
from exp.report.jsonfile import require_json
from exp.report.tables import Lines, page, table

INTRODUCTION = """\
Time and memory of this project's optimizers and training steps, compared with the optimizers of
torch and other libraries.

How to read: a time is the median over rounds, with quartiles in brackets. In each round the rows
of a table take turns. *Ratio to X* is the median, over rounds, of the row's time over X's time in
the same round; below 1 the row is faster. The device *cpu-bf16* is a processor with bfloat16
products in hardware. The findings are at the end of the page."""


def write(folder: Path) -> None:
    """Write the page and the figures from all JSON files in the folder."""
    parts = ["# Benchmarks", INTRODUCTION]
    files = [(path.stem.split("_", 1), require_json(path))
             for path in sorted(folder.glob("*_*.json"))]
    parts += best_peers({kind: content["results"] for (part, kind), content in files
                         if part == "steps"})
    for (part, kind), content in files:
        parts += [f"## {TITLES[part]}: {kind}", _facts(content["facts"], part),
                  *PARTS[part](content["results"])]
        if part == "polar":
            draw(folder / f"pareto_{kind}.png", content["results"])
    if (notes := folder / "notes.md").exists():
        parts.append(notes.read_text(encoding="utf-8").strip())
    (folder / "bench.md").write_text(page(*parts), encoding="utf-8")


def _facts(facts: dict, part: str) -> str:
    versions = ", ".join(f"{name} {known}" for name, known in facts["versions"].items() if known)
    absent = [name for name in PEERS if facts["versions"].get(name, "known") is None]
    left_out = f" Left out, because not installed: {', '.join(absent)}."
    return (f"Measured on {facts['device']}, {facts['processor']}; threads: {facts['threads']}; "
            f"clock: {facts['clock']}; {versions}." + left_out * (part == "steps" and bool(absent)))


def spread(row: dict, key: str, digits: str) -> str:
    """A median with its quartiles, "1.20 [1.10, 1.30]". digits: format of the numbers."""
    return f"{row[key]:{digits}} [{row[key + '_low']:{digits}}, {row[key + '_high']:{digits}}]"


def _measured(key: str, row: dict) -> str:
    return f"{row[key]:.2g}" if key in row else ""


def tables(corner: str, *columns: tuple[str, Callable[[dict], str]]
           ) -> Callable[[dict], Iterator[str]]:
    """Return a function that yields a table for each item of {title: {label: row}}.

    corner: head of the labels' column. columns: (head, function of a row that gives the cell).
    """
    def make(results: dict) -> Iterator[str]:
        for title, rows in results.items():
            yield f"### {title}"
            yield table([(corner, *(name for name, _ in columns)),
                         *((label, *(cell(row) for _, cell in columns))
                           for label, row in rows.items())])
    return make


def best_peers(devices: dict[str, dict]) -> Iterator[str]:
    """Yield the parts of a table over devices: our Muon's time over its fastest peer's."""
    lines: Lines = [("device, matrices", "fastest peer", "our Muon / that peer",
                     "our fastest variant", "our fastest / that peer")]
    for kind, results in devices.items():
        for shape, rows in results.items():
            ours, peers = ({name: row["ratio"] for name, row in rows.items()
                            if name.startswith(names)} for names in ("muon", PEERS))
            if peers:
                peer, best = (min(of, key=of.__getitem__) for of in (peers, ours))
                lines.append((f"{kind}, {shape}", peer, f"{1 / peers[peer]:.2g}", best,
                              f"{ours[best] / peers[peer]:.2g}"))
    if len(lines) > 1:
        yield "## Our Muon against the fastest peer"
        yield ("The peers are the Muons of torch.optim, pytorch_optimizer and heavyball, which "
               "orthogonalize in bfloat16. The quotients are made from the ratios under "
               "*Optimizer steps*; above 1 ours is slower.")
        yield table(lines)


# Ratios are to our Muon; memory is in units of the weights' memory.
step_tables = tables(
    "optimizer", ("ms per step", lambda row: spread(row, "ms", ".2f")),
    ("ratio to our Muon", lambda row: spread(row, "ratio", ".3g")),
    ("state / weight", lambda row: f"{row['state_per_weight']:.2f}"),
    ("transient memory / weight", lambda row: f"{row['extra_per_weight']:.2f}"))

# Ratios are to AdamW; the claim is the paper's. Memory: weights, gradients, state, activations and
# temporaries of a step, at the peak.
training_tables = tables(
    "mode", ("ms per step", lambda row: spread(row, "ms", ".1f")),
    ("ratio to AdamW", lambda row: spread(row, "ratio", ".2f")),
    ("claimed ratio", lambda row: f"{row['claim']:.2f}" if row["claim"] else "–"),
    ("evaluations per step", lambda row: f"{row['evaluations']:.2f}"),
    ("state / weight", lambda row: f"{row['state_per_weight']:.2f}"),
    ("peak memory, MB", lambda row: f"{row['memory'] / 1e6:.0f}"),
    ("memory, ratio to AdamW", lambda row: f"{row['memory_ratio']:.2f}"))

# Ratios are of a measurement to a training step of the same round.
instrument_tables = tables(
    "", ("ms", lambda row: spread(row, "ms", ".2f")),
    ("ratio to a training step", lambda row: spread(row, "ratio", ".2f")),
    ("share of training time, if used once per epoch",
     lambda row: f"{row['per_epoch']:.1%}" if "per_epoch" in row else "–"))

# A device compared with the CPU: see exp/bench/smoke.py.
smoke_tables = tables(
    "", *((title, partial(_measured, key)) for title, key in (
        ("distance", "distance"), ("distance due to rounding", "rounding"), ("loss", "loss"),
        ("host waits per step", "waits"))),
    ("remark", lambda row: row.get("problem") or row.get("left_out")
     or ", ".join(row.get("places", ()))))


def polar_tables(results: dict) -> Iterator[str]:
    """Yield one table per size; errors are relative distances from the exact polar factor."""
    size, sizes = results.get("peak_size", 1024), results["sizes"]
    # Older results, all of CPUs, have one peak, of float32, and no dtypes.
    peaks = results.get("peaks") or {"float32": results["peak_gflops"]}
    kinds = next(iter(next(iter(sizes.values())).values()))["error"]
    yield (f"Peak rate, of a {size} x {size} product: "
           + ", ".join(f"{rate:.0f} GFLOP/s in {dtype}" for dtype, rate in peaks.items())
           + ". The share is of the peak in the method's dtype; a dash: not measured. The columns "
           f"from *{next(iter(kinds))}* on are relative distances from the exact polar factor, for "
           "inputs of that kind.")

    def share(name: str, row: dict) -> str:
        peak = peaks.get(row.get("dtype", "bfloat16" if "bfloat16" in name else "float32"))
        return f"{row['gflops'] / peak:.0%}" if peak and row["gflops"] else "–"

    yield from tables(
        "method", ("ms", lambda row: spread(row, "ms", ".2f")),
        ("ratio to keller", lambda row: f"{row['ratio']:.2f}"),
        ("share of peak", lambda row: row["share"]),
        *((kind, lambda row, kind=kind: f"{row['error'][kind]:.2g}") for kind in kinds),
    )({title: {name: {**row, "share": share(name, row)} for name, row in rows.items()}
       for title, rows in sizes.items()})


def sharding_tables(results: dict) -> Iterator[str]:
    """Yield the table of shared steps and steps of one process, then the projection."""
    yield ("Optimizer steps on the hidden matrices of the published Qwen3, which the processes "
           f"share out; one thread per process, {results['cores']} cores. *Alone*: one process "
           "does all the work. *All at once*: every process does all the work at the same time. "
           "*Sharded*: every process does its share and sends the new weights to the others.")

    def megabytes(row: dict, key: str) -> str:
        return ", ".join(f"{size / 1e6:.1f}" for size in row[key])

    lines: Lines = [("optimizer, processes", "alone, ms", "all at once, ms", "sharded, ms",
                     "alone / sharded", "predicted, ms", "state per process, MB",
                     "received per process, MB (least possible)")]
    for count in filter(str.isdigit, results):
        for name, row in results[count].items():
            lines.append((
                f"{name}, {count}", *(spread(row[key], "ms", ".0f") for key in (
                    "alone", "crowded", "shared")), f"{1 / row['shared']['ratio']:.2f}",
                f"{row['predicted_ms']:.0f}", megabytes(row, "state_bytes"),
                f"{megabytes(row, 'received_bytes')} ({row['least_received_bytes'] / 1e6:.1f})"))
    yield table(lines)
    p = results["projection"]
    yield (f"Projection to {p['parameters'] / 1e9:.2f} B parameters in matrices on 128 processes, "
           "assuming 4e14 operations and 5e10 bytes per second and 20 microseconds per message. "
           f"A step takes {1e3 * p['alone_s']:.0f} ms if every process orthogonalizes all "
           f"matrices, and {1e3 * p['shared_s']:.1f} ms plus {1e3 * p['exchange_s']:.0f} ms to "
           "exchange weights if it orthogonalizes its share. Traffic per step: gradients "
           f"{p['gradient_bytes'] / 1e9:.1f} GB, weights {p['weight_bytes'] / 1e9:.1f} GB. The row "
           "statistics that a tensor-parallel NorMuon sums are "
           f"{p['normuon_row_bytes'] / 1e6:.1f} MB, {p['normuon_share']:.2%} of it. With the "
           "paper's m = 16384 and factor log2 128 they are "
           f"{p['normuon_share_as_stated']:.2%} of one exchange of the matrix. The paper's 15 to "
           "20 % does not hold.")


def draw(path: Path, results: dict) -> None:
    """Plot error over time on the Gaussian matrix, one panel per size; lower left is better."""
    curves(path, {size: {name: ([row["ms"]], [max(row["error"]["gaussian"], 1e-8)])
                         for name, row in rows.items()}
                  for size, rows in results["sizes"].items()},
           most=2, xlabel="ms per matrix", ylabel="distance from the exact polar factor",
           xscale="log", yscale="log", points=True)


PEERS = ("torch.optim.Muon", "pytorch_optimizer", "heavyball")
TITLES = {"steps": "Optimizer steps", "polar": "Orthogonalization", "training": "Training steps",
          "training-full": "Training steps, the paper's models",
          "instruments": "Instruments (`[experiment] diagnostics`)",
          "sharding": "Optimizer steps sharded over processes",
          "smoke": "A device against the CPU"}
PARTS = {"steps": step_tables, "polar": polar_tables, "training": training_tables,
         "training-full": training_tables, "instruments": instrument_tables,
         "sharding": sharding_tables, "smoke": smoke_tables}
