"""The states of a run folder, named alike in every queue and list."""

from typing import Literal

State = Literal["missing", "waiting", "running", "finished", "failed", "damaged", "outdated",
                "other"]
ENDS: dict[str | None, State] = {"completed": "finished", "diverged": "finished",
                                 "interrupted": "waiting"}  # status of summary.json -> state
