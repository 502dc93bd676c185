"""Does Lazy mode lose anything if the tensor that it keeps between steps is kept in fewer bytes?"""

from exp.report.statistics import mean
from exp.report.tables import interval, markdown, number
from exp.theory.sweeps.grids import FACTOR, STEPS, best_of_grid, curve, percent, rest, sweep
from exp.theory.training import SMALL, built, steps
from optimizer.parts.state import state_per_weight

SAYS = "The shear force of Lazy and AGA can be kept in 8 bits"
SOURCE = ("paper 4.5 (Lazy needs less than 1 % more memory than AdamW, where its shear force is a "
          "third tensor a weight); the storage is ours")
RULE = ("loss relative to that with the full tensor, same seeds and rate. A storage costs nothing "
        "if no mode on no task has a 95 % interval wholly above 0, and that of all together ends "
        "below 0.5 %: holds if 8 bits cost nothing; holds partly if bfloat16 does; else it does "
        "not hold.")
BOUND = 0.005
STORAGES = ("full", "bf16", "8bit")
MODES = {"Lazy k=5": {"k": 5}, "AGA": {"k": 10, "adaptive_sync": True}}
TASKS = ("wikitext2", "cifar")  # modular addition does not generalize in so few steps
START = 2**-9


def table(mode: str, storage: str, lr: float) -> dict:
    """ARS2-Neo's [optimizer] table, with AdamW at the same rate for what is no hidden matrix."""
    return {"name": "ars2_neo", "lr": lr, "betas": [0.9, 0.95], "weight_decay": 0.1, **MODES[mode],
            "shear_storage": storage, "routing": "role", "adamw": rest(lr)}


def measure(seeds: list[int]) -> dict:
    """Task -> mode -> {"rate": the best with the full tensor, "loss": {storage: one a seed},
    "state": {storage: state tensors a weight}}."""
    found: dict[str, dict] = {}
    for task in TASKS:
        found[task] = {}
        for mode in MODES:
            by_rate = sweep(lambda lr, mode=mode: table(mode, "full", lr), START, seeds[:1],
                            task=task)
            rate = best_of_grid(by_rate)
            found[task][mode] = {
                "rate": rate,
                "loss": {storage: [curve(table(mode, storage, rate), seed, task)[-1]
                                   for seed in seeds] for storage in STORAGES},
                "state": {storage: state(task, table(mode, storage, rate))
                          for storage in STORAGES}}
    return found


def state(task: str, optimizer: dict) -> float:
    """Bytes of state over bytes of weights after a step that leaves a shear force behind."""
    run = built(optimizer, 1, task, **SMALL[task])
    list(steps(run, 1))
    return state_per_weight(run.optimizer)


def differences(entry: dict, storage: str) -> list[float]:
    """(loss - loss with the full tensor) / loss with the full tensor, seed by seed."""
    return [ours / full - 1 for ours, full in zip(
        entry["loss"][storage], entry["loss"]["full"], strict=True)]


def costs_nothing(found: dict, storage: str) -> bool:
    """The condition of RULE."""
    each = [differences(entry, storage) for modes in found.values() for entry in modes.values()]
    together = [value for values in each for value in values]
    return not any(mean(values).low > 0 for values in each) and mean(together).high < BOUND


def judge(found: dict) -> str:
    """The verdict of RULE."""
    if costs_nothing(found, "8bit"):
        return "holds"
    return "holds partly" if costs_nothing(found, "bf16") else "does not hold"


def figure(found: dict) -> str:
    """The mean difference in loss of each storage."""
    def together(storage: str) -> str:
        return interval(percent([value for modes in found.values() for entry in modes.values()
                                 for value in differences(entry, storage)]))

    return f"loss {together('bf16')} % higher in bf16, {together('8bit')} % in 8 bits"


def render(found: dict) -> str:
    """Loss, difference and state of every storage, task by task."""
    lines = [("task, mode", "lr", "shear in", "state / weight", "loss", "difference, %")]
    for task, modes in found.items():
        for mode, entry in modes.items():
            for storage in STORAGES:
                lines.append((
                    f"{task}, {mode}", number(entry["rate"]), storage,
                    f"{entry['state'][storage]:.2f}", interval(mean(entry["loss"][storage])),
                    "–" if storage == "full" else interval(percent(differences(entry, storage)))))
    return (f"Small models (one layer of Qwen3 on Wikitext-2, ResNet-18 of width 4 on 2500 "
            f"images), {STEPS} steps, warm-up, then linearly to zero, lr the best of a grid in "
            f"factors of {FACTOR:g} on the first seed with the full tensor; held-out loss "
            "(nats). bfloat16 rounds finer than 8 bits: where it does worse, rounding alone does "
            "not explain it. Seeds 1 to 3 alone put Lazy on CIFAR-10 higher on all three, by 1.8 % "
            "(bf16) and 2.6 % (8 bits) on average. Before the run the rule asked for the mean of "
            "all alone to be below 0.5 %, as that of 8 bits is; but what is not seen is not yet "
            "nothing, and it asks for the end of the interval now.\n\n"
            + markdown(lines))
