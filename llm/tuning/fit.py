"""One fit for all of them: adapters on, the one training loop, adapters off, an edit of the changes."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from ...base.errors import InputError, MatchedNothing
from ...base.files import digest, read_json, write_json
from ...deactivate.edit import Edit
from ...deactivate.parts import Dense, WeightsPart, tensor_digest
from ...deactivate.training import fit_loop
from .search import best_scale
from .trained import Deltas, Trained, matrices, training

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ...sae import SAE
    from ..host import Host
    from .config import TuningConfig


@runtime_checkable
class Task(Protocol):
    """What is minimised for one concept."""

    def __call__(self, i: int) -> tuple[Tensor, Mapping[str, float]]:
        """Loss of this concept's i-th micro-batch with a graph, and figures for the log; depends on nothing but i."""
        ...

    def evidence(self) -> dict[str, Any]:
        """What was found out about the concept, as plain values; asked for when training is over, adapters still on."""
        ...


def tuned(
    host: "Host",
    concepts: "Sequence[Concept]",
    config: "TuningConfig",
    eraser: str,
    layers: Sequence[int],
    make: "Callable[[Trained, Concept, int], Task]",
    preserve: Sequence[str] | None = None,
    saes: "Sequence[SAE]" = (),
) -> Edit:
    """Trains and returns the edit, one `weights` part; the host is left as it was.

    Args:
        host: What to train; edits that lie on it stay in force and are trained on top of.
        concepts: At least one; their micro-batches take turns.
        config: Settings.
        eraser: The method's name.
        layers: Layers whose matrices are trained.
        make: (what is trained, concept, its number) -> its task.
        preserve: Further texts that the tasks read; part of what marks a run.
        saes: SAEs that they read; likewise.

    Raises:
        InputError: A field of the config or of a concept that does not do, or `run` holds another run.
        MatchedNothing: No concept, or nothing was changed.
    """
    if not concepts:
        raise MatchedNothing("no concept given: name at least one with --concept (concepts=[…])")
    names = matrices(host, config.modules, layers)
    out, mark = _run_folder(host, concepts, config, eraser, preserve or (), saes)
    micros: list[float] = []
    with training(host, names, config.rank, config.alpha, config.dropout, config.seed) as trained:
        tasks = [make(trained, c, n) for n, c in enumerate(concepts)]

        def step_fn(step: int, micro: int) -> tuple[Tensor, Mapping[str, float]]:
            i = step * config.accumulate + micro
            loss, figures = tasks[i % len(tasks)](i // len(tasks))
            micros.append(float(loss.detach()))
            return loss, figures

        if out is not None:
            write_json(out / "run.json", mark)
        resume = out is not None and (out / "checkpoints").is_dir()
        result = fit_loop(step_fn, trained.params, config.loop, out, resume, desc=eraser)
        changes = trained.changes()
        evidence = [{"concept": c.name, "digest": c.digest, **t.evidence()} for c, t in zip(concepts, tasks, strict=True)]
    if not any(_moved(d) for d in changes.values()):
        raise MatchedNothing(f"{eraser}: training changed nothing; raise lr or steps")
    changes, found = best_scale(host, concepts, changes, config) if config.search else (changes, None)
    losses, turn = _losses(out, micros, config.accumulate), len(tasks)
    seen = {"steps": result.steps, "first loss": _mean(losses[:turn]), "last loss": _mean(losses[-turn:])}
    return Edit(
        parts=[WeightsPart(changes)],
        eraser=eraser,
        config=dataclasses.asdict(dataclasses.replace(config, run=None)),
        concepts=list(concepts),
        evidence={"concepts": evidence, "training": seen, "layers": list(layers), "search": found, "host": host.name},
        seeds={eraser: config.seed},
    )


def _moved(change: Any) -> bool:
    if isinstance(change, Dense):
        return bool(change.change.any())
    return bool(change.B.any()) and bool(change.A.any())


def _losses(out: Path | None, micros: Sequence[float], accumulate: int) -> list[float]:
    """The loss of every step: from the log where there is one, which also has the steps before a run was stopped."""
    if out is not None:
        return [json.loads(line)["loss"] for line in (out / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [_mean(micros[n : n + accumulate]) for n in range(0, len(micros), accumulate)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _run_folder(
    host: "Host", concepts: "Sequence[Concept]", config: "TuningConfig", eraser: str, preserve: Sequence[str], saes: "Sequence[SAE]"
) -> tuple[Path | None, Mapping[str, str]]:
    """The folder of checkpoints, and what marks it as this run's; nothing is written.

    Raises:
        InputError: It is marked as another's, or holds other files.
    """
    if config.run is None:
        return None, {}
    out = Path(config.run)
    free = {"run": None, "search": False, "scales": (), "min_kept": 0.0, "min_coherence": 0.0, "n_probe": 1}
    reads = {
        "config": {**dataclasses.asdict(config), **free},
        "host": host.digest,
        "concepts": [c.digest for c in concepts],
        "preserve": list(preserve),
        "saes": [[tensor_digest(n, t) for n, t in s.state_dict().items()] for s in saes],
    }
    mine = {"eraser": eraser, "digest": digest(reads)}
    mark = out / "run.json"
    if mark.is_file():
        if read_json(mark) != mine:
            raise InputError(
                f"run {out}: holds another run (method, settings, concepts, texts that stay, SAEs or host differ); choose another folder"
            )
        return out, mine
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"run {out}: is no folder of a run of {eraser}; choose a new one")
    return out, mine


__all__ = ["Deltas", "Task", "tuned"]
