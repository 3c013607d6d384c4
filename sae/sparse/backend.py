"""Which kernels run, how they share the threads, and the buffers they reuse.

`EFFACE_KERNELS` chooses: `auto` (default: numba where it is installed and the tensors lie on the
CPU in float32 or float64, plain torch otherwise), `torch`, `numba` or `triton` (an error where
that is missing). All give the same selections and agree in values to rounding. numba and Triton
are imported at the first use of a kernel, not before. Triton takes the sparse products alone; its
kernels are tested in its interpreter and have never run on a GPU, so they must be asked for.

The kernels are serial functions over a range of rows or latents, run on a small thread pool: no
second OpenMP runtime next to torch's, nothing to break in a forked process, and a result that
depends neither on the number of threads nor on timing.
"""

import importlib.util
import itertools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...base.errors import InputError

__all__ = ["backend", "even_bounds", "run_ranges", "use_numba", "use_triton", "workspace"]

_CHOICES = ("auto", "torch", "numba", "triton")
_local = threading.local()


@cache
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def backend() -> str:
    """`numba`, `triton` or `torch`, as `EFFACE_KERNELS` and the installation say.

    Raises:
        InputError: `EFFACE_KERNELS` holds an unknown word, or the name of a package that is not installed.
    """
    choice = os.environ.get("EFFACE_KERNELS", "auto")
    if choice not in _CHOICES:
        raise InputError(f"EFFACE_KERNELS must be one of {', '.join(_CHOICES)}; found {choice!r}")
    if choice in ("numba", "triton") and not _installed(choice):
        raise InputError(f"EFFACE_KERNELS={choice}, but {choice} is not installed: pip install {choice}")
    if choice == "auto":
        return "numba" if _installed("numba") else "torch"
    return choice


def use_numba(*tensors: Tensor) -> bool:
    """Whether numba's kernels can take these tensors: all on the CPU, all float32 or all float64."""
    return _alike(tensors) and all(tensor.device.type == "cpu" for tensor in tensors) and backend() == "numba"


def use_triton(*tensors: Tensor) -> bool:
    """Whether Triton's kernels are asked for and can take these tensors: all float32 or all float64, all on one CUDA device.

    In its interpreter (`TRITON_INTERPRET=1`) also on the CPU.
    """
    places = {tensor.device for tensor in tensors}
    kinds = {place.type for place in places}
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    return _alike(tensors) and len(places) == 1 and (kinds == {"cuda"} or interpreted) and backend() == "triton"


def _alike(tensors: Sequence[Tensor]) -> bool:
    dtypes = {tensor.dtype for tensor in tensors}
    return len(dtypes) == 1 and dtypes <= {torch.float32, torch.float64}


@cache
def _pool(pid: int, threads: int) -> ThreadPoolExecutor:
    """A pool of the process `pid`.

    A forked child does not inherit its parent's threads, so it gets its own.
    """
    return ThreadPoolExecutor(threads, thread_name_prefix="efface-kernel")


def even_bounds(n: int) -> list[int]:
    """Split `n` rows evenly over torch's thread count: `[0, …, n]`."""
    threads = max(1, min(torch.get_num_threads(), n))
    return [n * t // threads for t in range(threads + 1)]


def run_ranges(kernel: Callable[..., Any], bounds: Sequence[int], *args: Any) -> list[Any]:
    """Call `kernel(*args, lo, hi)` for each pair of neighbouring bounds, at the same time; what they return, in order.

    The last on this thread.
    """
    pairs = [(lo, hi) for lo, hi in itertools.pairwise(bounds) if lo < hi]
    if not pairs:
        return []
    waiting = []
    if len(pairs) > 1:
        pool = _pool(os.getpid(), len(pairs) - 1)
        waiting = [pool.submit(kernel, *args, lo, hi) for lo, hi in pairs[:-1]]
    try:
        last = kernel(*args, *pairs[-1])
    finally:
        found = [future.result() for future in waiting]
    return [*found, last]


def workspace(name: str, rows: int, columns: int, like: Tensor) -> Tensor:
    """An uninitialised contiguous `[rows, columns]` buffer, one a thread and name.

    Reused between calls.

    A fresh buffer of the size of the pre-activations costs the kernel a page fault for every 4 kB,
    each time. On other devices than the CPU torch's caching allocator does this already.
    """
    if like.device.type != "cpu":
        return like.new_empty(rows, columns)
    buffers = _local.__dict__.setdefault("buffers", {})
    size = rows * columns
    if name not in buffers or buffers[name].dtype != like.dtype or buffers[name].numel() < size:
        buffers[name] = torch.empty(size, dtype=like.dtype)
    return buffers[name][:size].view(rows, columns)
