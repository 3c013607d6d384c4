"""How much memory this process held at most, over a block."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """What a block held."""

    bytes: int = 0
    """Largest resident memory of the process, whatever it held before included; 0 while the block runs."""
    own: bool = True
    """Whether it was reached in the block. Where the system cannot start counting anew it is the largest since the process began."""


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measures the block; not nested (Linux counts once a process)."""
    gc.collect()  # what is not needed any more must not count
    found = Peak(own=_reset())
    try:
        yield found
    finally:
        found.bytes = _mark() if found.own else _since_start()


def _reset() -> bool:
    """Starts Linux's mark anew at what is held now."""
    try:
        RESET.write_text("5")
        return _mark() > 0
    except OSError:
        return False


def _mark() -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def _since_start() -> int:
    import resource  # not everywhere

    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024
