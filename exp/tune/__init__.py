"""Equal-budget hyperparameter search for every optimizer, and a leaderboard: `python -m exp.tune`.

    arm     an optimizer with its search space
    trial   a training run at one setting of an arm
    study   an independent search: the trials of an arm, then fresh-seed runs of the best one
    chain   the process that runs the trials of one arm in one study, one after another
    board   a JSON file: terms, studies of all arms on a task, and results computed from them
    race    a task measured by gradient evaluations to a target, at a constant learning rate
    anneal  a task measured by its metric after a fixed horizon, the rate decayed to zero
    ladder  the baseline tuned for half and twice the horizon; each budget is a rung
"""
