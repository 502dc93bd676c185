"""Orthogonalization sharded over processes: time, memory and traffic, measured and projected.

Every process has one thread. Three kinds of step are interleaved in the same processes: one process
alone, the others idle ("alone"); every process its own full step at once, which shows how much the
busy cores slow each other down ("crowded"); and the sharded step ("shared").
"""

import json
import os
import socket
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.optim import Optimizer

from exp.bench.timing import CLOCKS, seconds_of, summary
from optimizer import optimizer_class
from optimizer.parts.distributed.sharded import Sharded

QWEN3 = ([(512, 512)] * 4 + [(2048, 512)] * 2 + [(512, 2048)]) * 3  # hidden, published model
PROBE = 4_000_000  # elements of the message that measures the bandwidth
CONTESTANTS = {"muon": {}, "ars2_neo": {"k": 0}}

# Qwen2.5-1.5B: hidden matrices of 28 layers (q, k, v, o, gate, up, down).
QWEN_1B5 = ([(1536, 1536), (256, 1536), (256, 1536), (1536, 1536)]
            + [(8960, 1536)] * 2 + [(1536, 8960)]) * 28
# Assumed for each of 128 processes: 40 % of an H100's dense bfloat16 peak, a network of 400 Gbit/s,
# 20 microseconds per message.
CLUSTER = {"processes": 128, "flops": 4e14, "bandwidth": 5e10, "latency": 2e-5}


def measure(rounds: int, processes: tuple[int, ...] = (2, 4)) -> dict:
    """Per number of processes and optimizer: times, state and traffic of each process, and the time
    that `predicted` gives; under "projection" the one for 1.5 B parameters."""
    results: dict = {"cores": os.cpu_count()}
    for count in processes:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_work, (count, _free_port(), rounds, folder), nprocs=count)
            parts = [json.loads((Path(folder) / f"{rank}.json").read_text())
                     for rank in range(count)]
        results[str(count)] = {name: _joined([part[name] for part in parts])
                               for name in CONTESTANTS}
    flops = sum(map(orthogonalization_flops, QWEN3))
    for count in processes:
        for row in results[str(count)].values():
            row["predicted_ms"] = predicted(
                crowded=row["crowded"]["ms"] / 1e3,
                largest_share=row["largest_share"], received=max(row["received_bytes"]),
                messages=count, bandwidth=row["bandwidth"], latency=row["latency"]) * 1e3
            row["gflops"] = flops / row["alone"]["ms"] / 1e6
    return results | {"projection": projection()}


def orthogonalization_flops(shape: tuple[int, int], steps: int = 5) -> float:
    """Operations of `steps` iterations in Gram space, m the shorter side: A = X X^T; per step a
    polynomial and two products of (m, m) matrices; X <- Q X at the end."""
    m, n = sorted(shape)
    return 4.0 * m * m * n + steps * 8.0 * m**3


def predicted(crowded: float, largest_share: float, received: float, messages: int,
              bandwidth: float, latency: float) -> float:
    """Seconds of a sharded step: the largest share of a full step, which takes `crowded` seconds
    while all processes work, then the exchange of weights.

    received: bytes; bandwidth: bytes per second; latency: seconds per message.
    """
    return crowded * largest_share + received / bandwidth + messages * latency


def projection() -> dict[str, float]:
    """Project a step of Muon to 1.5 B parameters on 128 processes that orthogonalize everything, or
    each its share of whole matrices: seconds, bytes, traffic of NorMuon's statistics."""
    world = CLUSTER["processes"]
    flops = [orthogonalization_flops(shape) for shape in QWEN_1B5]
    elements = sum(m * n for m, n in QWEN_1B5)
    gradient = 2 * 2 * elements * (1 - 1 / world)  # bfloat16, all-reduced
    weights = 2 * elements * (1 - 1 / world)
    # A tensor-parallel NorMuon would sum each row's squares over the processes, in float32. Our
    # sharding needs no such traffic, because each matrix is whole at its owner.
    rows = 4 * 2 * sum(m for m, _ in QWEN_1B5) * (1 - 1 / world)
    largest = max(max(flops), sum(flops) / world)
    return {
        "parameters": elements, "alone_s": sum(flops) / CLUSTER["flops"],
        "shared_s": largest / CLUSTER["flops"], "exchange_s": weights / CLUSTER["bandwidth"]
        + world * CLUSTER["latency"], "gradient_bytes": gradient, "weight_bytes": weights,
        "normuon_row_bytes": rows, "normuon_share": rows / (gradient + weights + rows),
        # The paper's own case: m = 16384, 128 processes, a factor log2 128 on the statistics.
        "normuon_share_as_stated": 16384 * 4 * 7 / (16384 * 16384 * 2 + 16384 * 4 * 7),
    }


def _work(rank: int, count: int, port: int, rounds: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank),
                   "WORLD_SIZE": str(count)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    bandwidth, latency = _network()
    result = {}
    for name, settings in CONTESTANTS.items():
        alone = _optimizer(name, settings)
        shared = Sharded(_optimizer(name, settings))
        seconds: dict[str, list] = {"alone": [], "crowded": [], "shared": []}
        for round_ in range(-1, rounds):
            dist.barrier()
            taken = _timed(alone) if rank == 0 else 0.0
            dist.barrier()
            crowded = _timed(alone, finish=dist.barrier)
            together = _timed(shared, finish=dist.barrier)
            if round_ >= 0:
                for key, value in zip(seconds, (taken, crowded, together), strict=True):
                    seconds[key].append(value)
        sent, received = _traffic(shared)
        costs = [p.numel() * min(p.shape) for p in shared.owner]
        shares = [0.0] * count
        for owner, cost in zip(shared.owner.values(), costs, strict=True):
            shares[owner] += cost / sum(costs)
        state = [t.nbytes for entry in shared.state.values() for t in entry.values()
                 if torch.is_tensor(t)]
        result[name] = {
            "seconds": seconds, "sent": sent, "received": received, "state": sum(state),
            "weights": sum(p.nbytes for p in shared.owner), "largest_share": max(shares),
            "bandwidth": bandwidth, "latency": latency}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def _joined(parts: list[dict]) -> dict:
    """Join the measurements of all processes into one row; times are the main process's."""
    times = summary(parts[0]["seconds"], "alone")
    weights, count = parts[0]["weights"], len(parts)
    return {
        **times, "state_bytes": [part["state"] for part in parts],
        "sent_bytes": [part["sent"] for part in parts],
        "received_bytes": [part["received"] for part in parts], "weight_bytes": weights,
        "least_received_bytes": weights * (1 - 1 / count),
        "largest_share": parts[0]["largest_share"], "bandwidth": parts[0]["bandwidth"],
        "latency": parts[0]["latency"]}


def _optimizer(name: str, settings: dict) -> Optimizer:
    generator = torch.Generator().manual_seed(0)
    params = []
    for shape in QWEN3:
        p = nn.Parameter(torch.randn(shape, generator=generator))
        p.grad = torch.randn(shape, generator=generator)
        params.append(p)
    return optimizer_class(name)(params, **settings)


def _timed(optimizer: Optimizer, finish: Callable[[], object] = lambda: None) -> float:
    def step() -> None:
        optimizer.step(lambda: 0.0)
        finish()

    return seconds_of(step, CLOCKS["wall"])


def _network() -> tuple[float, float]:
    """Bandwidth (bytes per second) of a large broadcast, latency (seconds) of a small one; medians.
    """
    taken = []
    for tensor in (torch.zeros(PROBE), torch.zeros(1)):
        times = []
        for _ in range(9):
            dist.barrier()
            times.append(seconds_of(partial(dist.broadcast, tensor, 0), CLOCKS["wall"]))
        taken.append(sorted(times)[4])
    return 4 * PROBE / max(taken[0] - taken[1], 1e-9), taken[1]


def _traffic(optimizer: Sharded) -> tuple[int, int]:
    """Bytes that one step broadcasts from this process, and bytes that it receives."""
    counted = {"sent": 0, "received": 0}
    broadcast = dist.broadcast

    def counting(tensor: torch.Tensor, source: int, **options: Any) -> object:
        counted["sent" if source == dist.get_rank() else "received"] += tensor.nbytes
        return broadcast(tensor, source, **options)

    with mock.patch.object(dist, "broadcast", counting):
        optimizer.step(lambda: 0.0)
    return counted["sent"], counted["received"]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
