"""The end of a run: scale folded in, threshold calibrated, saved, loaded again.

And the file that was saved measured on held-out vectors.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from ..base.errors import InputError, MatchedNothing
from ..base.files import read_json
from ..base.running import progress
from . import distributed
from .config import SAEConfig, TrainConfig
from .formats.native import MANIFEST, update_card
from .formats.saelens import CONFIG, WEIGHTS
from .metrics import evaluate
from .run import CHECKPOINTS, Run, settings_of
from .sae import SAE
from .sources.base import Batch, Plain
from .sources.feed import PLAIN
from .training_state import HookPair

SAMPLE = 16_384
"""Vectors behind the last step from which a threshold is calibrated.

As many again are measured where no held-out source is given.
"""
HELD_OUT = 32_768
"""Most vectors read of a held-out source."""
SAVING = ".saving."
"""How the name of a folder begins in which an SAE is being saved."""


def finish(run: Run, folders: Mapping[str, Path], held_out: Iterable[Batch | Tensor] | None) -> dict[str, SAE]:
    """Saves every SAE of a run and measures it; the run's checkpoints are removed when all are there."""
    _end(run, folders, held_out)
    run.done()
    run.trainees.clear()  # room for what is loaded
    return {name: SAE.load(folder) for name, folder in folders.items()}


def _end(run: Run, folders: Mapping[str, Path], held_out: Iterable[Batch | Tensor] | None) -> None:
    """Ends the training of every SAE; the first process saves and measures them."""
    batches = max(1, -(-SAMPLE // run.config.batch))
    ahead = run.feed.peek(batches if held_out is not None else 2 * batches)
    n = batches * run.feed.batch
    sample = {p: distributed.gather_rows(t[:n]) for p, t in ahead.items()}
    for trainee in run.trainees.values():
        trainee.trained(sample)
    if distributed.rank() == 0:
        measured, origin = _read(held_out) if held_out is not None else ([{p: t[n:] for p, t in ahead.items()}], _unseen(run))
        for name, trainee in run.trainees.items():
            trainee.sae.card.update(_card(run, name))
            _save(trainee.sae, folders[name], list(vectors(measured, run.pairs[name])), origin)


def _unseen(run: Run) -> str:
    """What the vectors behind the last step are."""
    return "vectors behind the last step" if run.feed.passes == 0 else "training vectors: the source was read more than once"


def _read(held_out: Iterable[Batch | Tensor]) -> tuple[list[Batch | Tensor], str]:
    """At most `HELD_OUT` vectors of a source to measure on, and what they are."""
    measured: list[Batch | Tensor] = []
    n = 0
    for item in held_out:
        measured.append(item)
        n += len(item if isinstance(item, Tensor) else next(iter(item.values())))
        if n >= HELD_OUT:
            break
    if not n:
        raise MatchedNothing("the held-out source yields nothing; give it texts, or leave held_out out")
    return measured, "held-out source"


def _save(sae: SAE, folder: Path, held_out: list[Tensor | tuple[Tensor, Tensor]], origin: str) -> None:
    """Saves into a folder beside, measures what was saved, and moves it in.

    `cfg.json`, by which an SAE folder is known, comes last: without it there is either nothing that loads or the whole
    of it, checked against its card.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{SAVING}*"):  # by a run that was killed here
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(dir=folder, prefix=SAVING))
    try:
        sae.save(work / "sae")
        saved = SAE.load(work / "sae")
        update_card(
            work / "sae", metrics={**evaluate(saved, progress(held_out, desc="measuring", unit="batch", inner=True)), "measured_on": origin}
        )
        for name in (WEIGHTS, MANIFEST, CONFIG):
            os.replace(work / "sae" / name, folder / name)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def finished(cfgs: Mapping[str, SAEConfig], config: TrainConfig, folders: Mapping[str, Path], out: Path) -> dict[str, SAE] | None:
    """The SAEs of a run that has ended, or None where one is missing; what a run killed at its very end left is removed.

    Raises:
        InputError: An SAE lies there that was trained otherwise.
    """
    if not all((f / name).is_file() for f in folders.values() for name in (MANIFEST, CONFIG)):
        return None
    settings = settings_of(cfgs, config)
    for name, folder in folders.items():
        card = read_json(folder / MANIFEST)
        asked = {"sae": settings["saes"][name], "config": settings["train"]}
        trained = card.get("training") or {}
        if any(trained.get(k) != v for k, v in asked.items()):
            raise InputError(f"{folder} holds an SAE that was trained with other settings; choose another out")
    if distributed.rank() == 0:
        for left in (out / CHECKPOINTS, *(p for f in folders.values() for p in f.glob(f"{SAVING}*"))):
            shutil.rmtree(left, ignore_errors=True)
    return {name: SAE.load(folder) for name, folder in folders.items()}


def vectors(batches: Iterable[Batch | Tensor], pair: HookPair) -> Iterator[Tensor | tuple[Tensor, Tensor]]:
    """Input vectors of an autoencoder, pairs (input, target) of a transcoder.

    Raises:
        InputError: The held-out source lacks a hook point.
    """
    same = pair.read == pair.write
    for item in batches:
        batch = {pair.read if same else PLAIN: item} if isinstance(item, Tensor) else item
        missing = {pair.read, pair.write} - batch.keys()
        if missing:
            raise InputError(f"the held-out source yields {', '.join(batch)}; {', '.join(sorted(missing))} is needed")
        yield batch[pair.read] if same else (batch[pair.read], batch[pair.write])


def _card(run: Run, name: str) -> Plain:
    """What `efface.json` says of the training."""
    pair, trainee = run.pairs[name], run.trainees[name]
    hooks = {} if pair.read == PLAIN else {"hook_point": pair.read, **({} if pair.read == pair.write else {"hook_point_out": pair.write})}
    training = {
        "sae": run.settings["saes"][name],
        "config": run.settings["train"],
        "steps": run.steps,
        "vectors": trainee.vectors_seen,
        "dead_window": trainee.window,
        "scale_in": trainee.scale_in,
        "scale_out": trainee.scale_out,
        "processes": distributed.world(),
        "torch": version("torch"),
    }
    return {
        **dict(getattr(run.source, "about", {})),
        **hooks,
        "token_policy": dict(getattr(run.source, "token_policy", {})),
        "training": training,
    }
