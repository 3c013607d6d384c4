"""Interleaved timing: every contestant once a round.

So that a busy machine slows all of them alike.
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch


def interleaved(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, after two rounds that are not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 2):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if turn >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    lower, middle, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, middle, upper


def ratio(a: list[float], b: list[float]) -> tuple[float, float, float]:
    """Quartiles of `a / b` round by round."""
    return quartiles([x / y for x, y in zip(a, b, strict=True)])


def machine() -> dict[str, object]:
    """What a number needs beside it to be read: processor, threads, versions."""
    names = ("torch", "numba", "numpy", "sae-lens", "eai-sparsify", "dictionary-learning")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "versions": versions,
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


def store(path: Path | None, results: dict[str, object]) -> None:
    """Write results and machine as JSON if a path was given."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), **results}, indent=1) + "\n")
