"""curves.png: the learning curves of one run, drawn from its metrics.jsonl."""

from pathlib import Path

LABELS = {"eval_accuracy": "accuracy", "eval_perplexity": "perplexity"}
TRAIN, EVAL, MARK = "#8a8f98", "#1f5fbf", "#c2410c"


def plot_curves(
    path: Path, lines: list[dict], metric: str, milestones: dict[str, int | None], title: str
) -> None:
    """Loss on the left, the metric on the right, milestones as dashed lines; a PNG at `path`.

    lines: the objects of metrics.jsonl; null entries (not finite) leave a gap.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    epochs = [line["epoch"] for line in lines]
    style = {"linewidth": 1.8, "marker": "o" if len(lines) <= 25 else "", "markersize": 3.5}
    _curve(left, epochs, lines, "train_loss", "train", TRAIN, style)
    _curve(left, epochs, lines, "eval_loss", "evaluation", EVAL, style)
    left.set(ylabel="loss (nats)", yscale="log")
    _curve(right, epochs, lines, metric.replace("eval", "train"), "train", TRAIN, style)
    _curve(right, epochs, lines, metric, "evaluation", EVAL, style)
    right.set_ylabel(LABELS.get(metric, metric))
    if metric == "eval_accuracy":
        right.set_ylim(-0.02, 1.02)
    else:
        right.set_yscale("log")
    for name, epoch in milestones.items():
        if epoch is not None:
            right.axvline(epoch, color=MARK, linestyle="--", linewidth=1)
            right.annotate(f"{name} {epoch}", (epoch, 0.5), xycoords=("data", "axes fraction"),
                           rotation=90, ha="right", va="center", fontsize=8, color=MARK)
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.grid(color="#e3e5e8", linewidth=0.8)
        axes.spines[["top", "right"]].set_visible(False)
        if axes.lines:
            axes.legend(frameon=False)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _curve(axes, epochs: list[int], lines: list[dict], key: str, label: str, color: str,
           style: dict) -> None:
    values = [line.get(key) for line in lines]
    if any(value is not None for value in values):
        numbers = [float("nan") if value is None else value for value in values]
        axes.plot(epochs, numbers, label=label, color=color, **style)
