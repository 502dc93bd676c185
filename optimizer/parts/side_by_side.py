"""Independent pieces of work, one a thread: splitting each operation over all threads of torch
keeps them less busy than that where matrices are large."""

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")


def side_by_side(function: Callable[[Piece], object], pieces: Iterable[Piece]) -> None:
    """Call `function` with every piece, without gradients; the first ones are begun first.

    The calling thread works too, with helpers that live no longer than the call (so that a fork
    never finds one gone), each with an equal share of torch's threads.
    Raises what a piece raised, when those under way have ended.
    """
    left = deque(pieces)
    threads = torch.get_num_threads()
    workers = max(1, min(threads, len(left)))

    @torch.no_grad()
    def work() -> None:
        torch.set_num_threads(threads // workers)  # of this thread alone
        try:
            while left:
                try:
                    piece = left.popleft()
                except IndexError:  # another took the last one
                    return
                function(piece)
        except BaseException:
            left.clear()
            raise

    try:
        with ThreadPoolExecutor(workers) as pool:
            helpers = [pool.submit(work) for _ in range(workers - 1)]
            work()
        for helper in helpers:
            helper.result()
    finally:
        torch.set_num_threads(threads)
