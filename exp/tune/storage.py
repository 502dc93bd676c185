"""Where trials are kept: an Optuna storage in which a dead worker's trial is noticed."""

import contextlib
import time
import warnings
from collections.abc import Callable
from datetime import datetime

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import (
    BaseStorage,
    JournalStorage,
    RDBStorage,
    RetryHeartbeatStaleTrialCallback,
)
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from sqlalchemy import Connection, event

from exp.harness.errors import ConfigError

HEARTBEAT_SECONDS, GRACE_SECONDS = 30, 120  # after which a silent worker's trial is tried again
RETRIES = 3


def open_storage(url: str) -> BaseStorage:
    """Any Optuna storage: a database URL (sqlite:///tune.db), or a path of a journal file.

    Trials that a dead worker left are tried again. Raises ConfigError if it cannot be opened.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        if "://" in url:
            # The heartbeat is marked experimental and announces it at every start.
            with contextlib.suppress(ImportError), quiet():
                local = url.startswith("sqlite")
                storage = RDBStorage(
                    url, heartbeat_interval=HEARTBEAT_SECONDS, grace_period=GRACE_SECONDS,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(RETRIES),
                    engine_kwargs={"connect_args": {"timeout": 60}} if local else None)
                if local:
                    event.listen(storage.engine, "begin", _begin_writing)
                return storage
        return BeatingJournal(JournalFileBackend(url))
    except Exception as error:  # a database has many ways to fail
        raise ConfigError(f"cannot open the storage {url}: {error}") from error


def _begin_writing(connection: Connection) -> None:
    """SQLite has no SELECT ... FOR UPDATE, by which Optuna claims a waiting trial: two workers that
    both saw it waiting would both run it. So one transaction at a time."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")


class BeatingJournal(JournalStorage, BaseHeartbeat):
    """A journal file with the heartbeat that Optuna gives to databases only: a running trial's
    last sign of life is one of its attributes. Hosts' clocks must agree to a minute."""

    def record_heartbeat(self, trial_id: int) -> None:
        """Note that the trial is alive."""
        with contextlib.suppress(UpdateFinishedTrialError):
            self.set_trial_system_attr(trial_id, "heartbeat", time.time())

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        begun = {trial._trial_id: trial.datetime_start or datetime.now() for trial in running}
        return [trial._trial_id for trial in running if time.time() - trial.system_attrs.get(
            "heartbeat", begun[trial._trial_id].timestamp()) > GRACE_SECONDS]

    def get_heartbeat_interval(self) -> int:
        """Seconds between signs of life."""
        return HEARTBEAT_SECONDS

    def get_heartbeat_stale_trial_callback(self) -> Callable:
        """What puts a dead trial back among the waiting ones."""
        return RetryHeartbeatStaleTrialCallback(RETRIES)


@contextlib.contextmanager
def quiet():
    """Inside, Optuna announces nothing as experimental."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
