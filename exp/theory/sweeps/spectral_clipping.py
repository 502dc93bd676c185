"""Is Muon faster, or steadier, when it clips singular values and does not make them equal?"""

import math

from exp.theory.sweeps.grids import best_of_grid, muon, race, render_race, speedups

SAYS = "Clipping singular values makes Muon 10 to 15 % faster, and markedly more stable"
SOURCE = "paper 002 (optimizer summary) 4.5, as QK-Clip; optimizer/spectral_clip_muon.py"
RULE = ("steps to the loss that both reach, each rule at its best rate, and the highest rate of "
        "its grid from which no seed diverged or ended above 7 nats (that of guessing): holds if "
        "Muon needs at least 10 % more than one of the clips on the mean over seeds, and the "
        "clip's highest rate, over its best, is at least Muon's; holds partly if it needs at least "
        "2 % more; else it does not hold.")
HOLDS, PARTLY = 0.10, 0.02
CLIPS = (0.01, 0.1, 0.5)


def clipped(smin: float):
    """lr -> SpectralClipMuon with that lower bound, in the place of Muon."""
    return lambda lr: {**muon(lr), "name": "spectral_clip_muon", "smin": smin}


RULES = {"Muon": (muon, 2**-5)} | {f"clip to [{s:g}, 1]": (clipped(s), 2**-4) for s in CLIPS}
GUESS = 7.0


def measure(seeds: list[int]) -> dict:
    """The race of sweeps.race."""
    return race(RULES, seeds)


def gains(found: dict) -> dict[str, float]:
    """Clip -> how many more steps Muon needs, as a share, mean over seeds."""
    each = {name: speedups(found["Muon"]["curves"], entry["curves"])
            for name, entry in found.items() if name != "Muon"}
    return {name: sum(values) / len(values) for name, values in each.items()}


def judge(found: dict) -> str:
    """The verdict of RULE."""
    best = max(gains(found), key=gains(found).get)
    gain = gains(found)[best]
    steady = headroom(found[best]["rates"]) >= headroom(found["Muon"]["rates"])
    if gain >= HOLDS and steady:
        return "holds"
    return "holds partly" if gain >= PARTLY else "does not hold"


def headroom(by_rate: dict) -> float:
    """Doublings from the best rate of a grid to its highest that trains."""
    trains = [float(lr) for lr, values in by_rate.items()
              if None not in values and max(values) < GUESS]
    return math.log2(max(trains) / best_of_grid(by_rate))


def figure(found: dict) -> str:
    """The speed-ups."""
    return "Muon needs more steps by: " + ", ".join(
        f"{100 * gain:+.0f} % ({name})" for name, gain in gains(found).items())


def render(found: dict) -> str:
    """Rates, losses and the speed-up."""
    return render_race(found)
