"""Run a function in a group of processes on this machine, for statements on communication."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from exp.harness.distributed import is_main, joined


def in_processes(count: int, function: Callable, *arguments: Any) -> Any:
    """Run function(*arguments) in `count` processes on the CPU with gloo; return the result of
    process 0. With count = 1 this process runs it. Raises RuntimeError if a process fails."""
    if count == 1:
        return function(*arguments)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    processes = [context.Process(target=_member, args=(rank, count, port, sender, function,
                                                       arguments)) for rank in range(count)]
    for process in processes:
        process.start()
    sender.close()  # so that `recv` raises EOFError once all processes have ended
    try:
        return receiver.recv()
    except EOFError as error:
        raise RuntimeError(f"{function.__name__} failed in one of {count} processes") from error
    finally:
        for process in processes:
            process.join()


def _member(rank: int, count: int, port: int, sender: Connection, function: Callable,
            arguments: tuple) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count),
                      MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with joined("cpu"):
        result = function(*arguments)
        if is_main():
            sender.send(result)
