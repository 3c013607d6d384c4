"""State of long computations: stop signals, checkpoints that are whole, random generators, a JSON-lines log, progress bars."""

import json
import logging
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from .errors import ArtefactError
from .files import load_tensors, new_folder, read_json, save_tensors, write_json, write_text

log = logging.getLogger("efface")
T = TypeVar("T")
SHOWN_AFTER = 2.0
"""Seconds after which a bar appears."""


class Interrupted(KeyboardInterrupt):
    """The computation was asked to stop and has written its checkpoint."""


class StopFlag:
    """True once SIGINT or SIGTERM came; the loop reads it between steps and then writes a whole checkpoint."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def set(self, number: int, frame: FrameType | None = None) -> None:
        """Signal handler."""
        self.signal = number


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """Turns SIGINT and SIGTERM into a flag inside the block; earlier handlers come back at its end. Outside the main thread: never set."""
    flag = StopFlag()
    try:
        old = {s: signal.signal(s, flag.set) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        old = {}
    try:
        yield flag
    finally:
        for s, handler in old.items():
            signal.signal(s, handler)


class Checkpoints:
    """Numbered checkpoint folders `<root>/step-N`, each complete (written beside and renamed, manifest last); keeps the newest `keep`.

    A checkpoint is tensors (one safetensors file) and plain values (JSON).
    """

    def __init__(self, root: Path, keep: int = 2) -> None:
        self.root, self.keep = root, keep

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        if not self.root.is_dir():
            return []
        found = (p for p in self.root.glob("step-*") if (p / "state.json").is_file())
        return sorted(int(p.name.removeprefix("step-")) for p in found)

    def save(self, step: int, tensors: Mapping[str, Any], values: Mapping[str, Any]) -> Path:
        """Writes checkpoint `step`, then removes those older than the newest `keep`."""
        path = self.root / f"step-{step}"
        with new_folder(path, overwrite=True) as work:
            save_tensors(work / "state.safetensors", tensors)
            write_json(work / "state.json", dict(values))
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.root / f"step-{old}", ignore_errors=True)
        return path

    def newest(self) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        """(step, tensors, values) of the newest checkpoint that can be read; a damaged one is skipped with a warning."""
        for step in reversed(self.steps()):
            path = self.root / f"step-{step}"
            try:
                return step, load_tensors(path / "state.safetensors", finite=False), read_json(path / "state.json")
            except ArtefactError as e:
                log.warning("checkpoint skipped: %s", e)
        return None


def rng_state() -> dict[str, Any]:
    """State of python's, numpy's and torch's CPU generators: tensors and plain values for `Checkpoints`."""
    import numpy as np
    import torch

    version, inner, gauss = random.getstate()
    name, keys, pos, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "numpy_keys": torch.from_numpy(np.asarray(keys).astype(np.int64)),
        "values": {"python": [version, list(inner), gauss], "numpy": [name, int(pos), int(has_gauss), float(cached)]},
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Inverse of `rng_state`."""
    import numpy as np
    import torch

    version, inner, gauss = state["values"]["python"]
    random.setstate((version, tuple(inner), gauss))
    name, pos, has_gauss, cached = state["values"]["numpy"]
    np.random.set_state((name, state["numpy_keys"].numpy().astype(np.uint32), pos, has_gauss, cached))
    torch.set_rng_state(state["torch"].to(torch.uint8))


class JsonlLog:
    """Appends one JSON object a line, flushed; on resume lines past the resumed step are cut."""

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step is None:
            path.unlink(missing_ok=True)
        elif path.is_file():
            kept = [s for s in path.read_text().splitlines() if s.endswith("}") and json.loads(s).get("step", 0) <= resume_step]
            write_text(path, "".join(s + "\n" for s in kept))
        self.file = path.open("a", encoding="utf-8")

    def write(self, **values: Any) -> None:
        """One line."""
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


def progress(
    items: Iterable[T], *, total: int | None = None, desc: str = "", unit: str = "it", enabled: bool = True, inner: bool = False
) -> "Iterable[T]":
    """A bar with rate and time left on stderr where that is a terminal; else a line every 15 s or so, so that a log shows life.

    Nothing is shown of what takes less than two seconds.

    Args:
        items: What is gone through.
        total: How many, where `items` has no length.
        desc: What is done.
        unit: What one of them is.
        enabled: Whether to show anything.
        inner: One of many such loops: the bar goes away when it is done.
    """
    if not enabled:
        return items
    from tqdm.auto import tqdm

    return tqdm(items, total=total, **bar_options(desc, unit, inner=inner))


def meter(total: int, *, desc: str, unit: str, enabled: bool = True) -> "Any":
    """A bar of `progress` that is moved by hand (`update(n)`) and goes away when it is closed."""
    from tqdm.auto import tqdm

    options = bar_options(desc, unit, inner=True)
    return tqdm(total=total, **{**options, "disable": options["disable"] or not enabled})


def bar_options(desc: str, unit: str, *, inner: bool = False) -> dict[str, Any]:
    """How tqdm draws a bar of ours; see `progress`."""
    tty = sys.stderr.isatty()
    sparse: dict[str, Any] = {} if tty else {"mininterval": 15.0, "ascii": True, "ncols": 100}
    shown = {"desc": desc, "unit": unit, "delay": SHOWN_AFTER, "leave": tty and not inner}
    return {**shown, "disable": bool(os.environ.get("EFFACE_QUIET")), **sparse}


@contextmanager
def timed(what: str, report: Callable[[str], None] = log.info) -> Iterator[None]:
    """Reports how long the block took."""
    start = time.perf_counter()
    yield
    report(f"{what}: {time.perf_counter() - start:.1f} s")


@contextmanager
def quiet(library: str = "transformers") -> Iterator[None]:
    """Silences the progress bars and warnings of transformers, or of diffusers, while the block runs."""
    logging = import_module(f"{library}.utils.logging")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
