"""Does SAM add to the accuracy of an image classifier?"""

from exp.report.statistics import mean
from exp.report.tables import interval, markdown
from exp.theory.sharpness.runs import STEPS, baseline, best_key, with_radius

SAYS = "SAM adds half a point to a point of accuracy"
SOURCE = "paper 002 (optimizer summary) 4.2 (ImageNet)"
RULE = ("held-out accuracy of SAM-AdamW at its best radius less AdamW's, mean over seeds: holds if "
        "it is at least 0.5 points at as many gradient evaluations, holds partly if at as many "
        "steps, for which SAM takes twice the evaluations; else it does not hold.")
POINTS = 0.5
TASK = "cifar"


def measure(seeds: list[int]) -> dict:
    """{"lr": AdamW's best, "AdamW": {"as many steps" or "as many gradients": values}, "SAM": {rho:
    values}}, shares, one a seed."""
    lr, plain = baseline(TASK, seeds)
    return {"lr": lr, "AdamW": plain, "SAM": with_radius(TASK, lr, "constant", seeds)}


def gains(found: dict) -> dict[str, list[float]]:
    """SAM's accuracy less AdamW's, in points, at as many steps and at as many gradients."""
    ours = found["SAM"][best_key(TASK, found["SAM"])]
    return {key: [100 * (a - b) for a, b in zip(ours, values, strict=True)]
            for key, values in found["AdamW"].items()}


def judge(found: dict) -> str:
    """The verdict of RULE."""
    means = {key: sum(values) / len(values) for key, values in gains(found).items()}
    if means["as many gradients"] >= POINTS:
        return "holds"
    return "holds partly" if means["as many steps"] >= POINTS else "does not hold"


def figure(found: dict) -> str:
    """The gains."""
    return ", ".join(f"{interval(mean(values))} points at {key}"
                     for key, values in gains(found).items())


def render(found: dict) -> str:
    """Accuracies and the difference."""
    def points(values: list[float]) -> str:
        return interval(mean([100 * value for value in values]))

    lines = [("", "accuracy, %", "SAM's best less this, points")]
    for key, values in found["AdamW"].items():
        lines.append((f"AdamW, {key}", points(values), interval(mean(gains(found)[key]))))
    lines += [(f"SAM-AdamW, rho {rho}", points(values), "–")
              for rho, values in found["SAM"].items()]
    return (f"ResNet-18 of width 4 on 2500 images of CIFAR-10, {STEPS[TASK]} steps of SAM, lr "
            f"{found['lr']:g} (AdamW's best), falling to zero; 2000 test images. The radius was "
            "chosen on these images, which favours SAM.\n\n" + markdown(lines))
