"""The same search budget for every optimizer, and a leaderboard: `python -m exp.tune`."""
