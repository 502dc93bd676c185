"""Two processes of one group, forked after the imports: one import instead of torchrun's three.

python tests/two_processes.py OPTIONS: a training run of modular addition in two processes.
"""

import os
import socket
import sys
import traceback
from collections.abc import Callable


def run_in_two(main: Callable[[], object]) -> None:
    """Run `main` in two processes, with the variables that torchrun sets, and wait for both. Exits
    with status 1 if one fails: raises, or returns other than 0 or None. There must have been no
    backward pass: a fork loses its threads."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    forked = [fork(main, {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2",
                          "MASTER_ADDR": "localhost", "MASTER_PORT": port}) for rank in "01"]
    statuses = [os.waitpid(process, 0)[1] for process in forked]
    if any(statuses):
        sys.exit(1)


def fork(main: Callable[[], object], variables: dict[str, str]) -> int:
    """Fork a process that runs `main` with these variables; return its id."""
    if process := os.fork():
        return process
    os.environ.update(variables)
    failed = True
    try:
        failed = bool(main())
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(failed)


if __name__ == "__main__":
    from exp.grokking import train
    from exp.harness import cli

    run_in_two(lambda: cli.launch(train.TASK, train.train, sys.argv[1:]))
