"""A short part of the attacks of tests/chaos.py, and that a trial notices what fails."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests import chaos
from tests.chaos import ATTACKS, MUTATIONS, Failed, attempts, mutant, outcome, table

EACH = 23  # configs of each of the nine kinds of mutation


@pytest.mark.parametrize("kind", MUTATIONS)
def test_mutated_configs_are_refused_readably_or_train(kind, tiny_data, tmp_path):
    failures = []
    for seed in range(EACH):
        place = tmp_path / str(seed)
        place.mkdir()
        with chaos.limited_memory():
            why = outcome(ATTACKS[kind], seed, place)
        failures += [f"--seed {seed} --tries 1 {kind}: {why}"] if why else []
    assert not failures, "\n".join(failures)


def test_runs_survive_damage_kills_a_full_disk_and_a_second_writer():
    names = ("runs", "neighbours", "checkpoints", "cache", "writers", "kills", "disk")
    process = subprocess.run([sys.executable, "-m", "tests.chaos", "--tries", "3", *names],
                             capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    rows = [line.split() for line in process.stdout.splitlines()]
    assert rows[-len(names):] == [[name, "3", "3"] for name in names]


def test_a_seed_makes_the_same_config_again():
    for kind in MUTATIONS:
        assert mutant(kind, 7) == mutant(kind, 7)
        assert len({mutant(kind, seed).text for seed in range(8)} |
                   {mutant(kind, seed).overrides for seed in range(8)}) > 4


def refuses(seed, place):
    raise Failed("an attack: a reason")


def raises(seed, place):
    raise KeyError("spam")


def dies(seed, place):
    if seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def hangs(seed, place):
    if seed == 1:
        time.sleep(60)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize(("attack", "failed", "why"), [
    (refuses, [0, 1, 2], "an attack: a reason"), (raises, [0, 1, 2], "KeyError: 'spam'"),
    (dies, [1], "the process died with status -9"), (hangs, [1], "hangs")])
def test_a_failure_is_counted_however_it_fails(attack, failed, why, tmp_path, monkeypatch):
    monkeypatch.setitem(ATTACKS, "spam", attack)
    monkeypatch.setattr(chaos, "PATIENCE", 1)
    tries = list(attempts("spam", iter(range(3)), tmp_path))
    assert [seed for seed, reason in tries if reason] == failed
    assert why in tries[failed[0]][1]
    row = table({"spam": tries}).splitlines()[1]
    assert row.split()[:3] == ["spam", "3", str(3 - len(failed))]
    assert f"--seed {failed[0]} --tries 1 spam: {why}" in row
