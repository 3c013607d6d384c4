"""Training of one SAE, or of several in one pass over the host."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ..base.errors import InputError
from ..base.files import inside
from ..base.running import Interrupted, StopFlag, progress, stop_on_signals
from . import distributed
from .config import SAEConfig, TrainConfig
from .finish import finish, finished
from .run import Run
from .sae import SAE
from .schedules import learning_rate
from .sources.base import Batch
from .sources.feed import PLAIN
from .training_state import HookPair

Source = Iterable[Batch | Tensor]


def train(
    sae_config: SAEConfig,
    source: Source,
    train_config: TrainConfig,
    *,
    out: Path | str,
    resume: bool = False,
    held_out: Source | None = None,
) -> SAE:
    """Trains an SAE and leaves it in `out`, with its metrics on held-out vectors measured on the saved file.

    A source of bare tensors or of one hook point gives an autoencoder; one of two hook points a transcoder from the
    first to the second. SIGINT and SIGTERM write a checkpoint and raise `Interrupted`; with `resume` the run goes on
    and ends, on a CPU, with the very bits of a run that was never interrupted. Under `torchrun` or `accelerate launch`
    every process calls this with its own share of the vectors.

    Args:
        sae_config: What to train.
        source: Yields `[n, d]` tensors or `{hook point: [n, d]}`; see `Feed` for what resuming asks of it.
        train_config: How.
        out: Folder: `cfg.json`, `sae_weights.safetensors`, `efface.json`, `train.jsonl`, and `checkpoints/` while it
            runs.
        resume: Go on from the newest checkpoint, where there is one; a finished `out` is loaded.
        held_out: Like `source`: what the saved SAE is measured on (at most 32,768 vectors). Without it: the vectors of
            `source` behind the last step.

    Returns:
        The SAE as loaded from `out`.

    Raises:
        InputError: Config, source and `out` do not fit together.
        NumericsError: NaN or infinity in activations or loss; the batch was saved in `out`.
        Interrupted: A stop signal came; the checkpoint is written.
    """
    out = Path(out)
    return _train({PLAIN: sae_config}, None, source, train_config, {PLAIN: out}, out, resume, held_out)[PLAIN]


def train_many(
    sae_configs: Mapping[str, SAEConfig],
    source: Source,
    train_config: TrainConfig,
    *,
    out: Path | str,
    resume: bool = False,
    held_out: Source | None = None,
) -> dict[str, SAE]:
    """Trains one autoencoder a hook point, all on the same pass over the source; each lies in `out/<hook point>`.

    Args:
        sae_configs: Hook point -> what to train there.
        source: Yields `{hook point: [n, d]}` with at least these hook points.
        train_config: How; the same for all.
        out: Folder of the run.
        resume: As in `train`.
        held_out: As in `train`.

    Raises:
        InputError: As in `train`, and for no hook point at all.
    """
    if not sae_configs:
        raise InputError("train_many needs at least one hook point with its SAEConfig")
    out = Path(out)
    folders = {name: inside(out, name) for name in sae_configs}
    pairs = {name: HookPair(name, name) for name in sae_configs}
    return _train(sae_configs, pairs, source, train_config, folders, out, resume, held_out)


def _train(
    cfgs: Mapping[str, SAEConfig],
    pairs: Mapping[str, HookPair] | None,
    source: Source,
    config: TrainConfig,
    folders: Mapping[str, Path],
    out: Path,
    resume: bool,
    held_out: Source | None,
) -> dict[str, SAE]:
    distributed.begin()
    if resume and (done := finished(cfgs, config, folders, out)):
        return done
    run = Run(cfgs, pairs, source, config, out, resume)
    with stop_on_signals() as stop:
        try:
            _loop(run, stop)
            return finish(run, folders, held_out)
        finally:
            run.log.close()


def _loop(run: Run, stop: StopFlag) -> None:
    """Step after step: a batch, one update of every SAE, a line in the log, a checkpoint where one is due."""
    config = run.config
    steps = range(run.step, run.steps)
    for step in progress(steps, desc="training", unit="step", enabled=distributed.rank() == 0):
        batch = run.feed.next()
        run.check(batch)
        lr = learning_rate(step, run.steps, config.lr, config.warmup, config.decay_fraction)
        for name, trainee in run.trainees.items():
            with run.keeping(batch):
                figures = trainee.step(batch, step, lr, log=(step + 1) % config.log_every == 0 or step + 1 == run.steps)
            if figures:
                run.log.write(step + 1, name, figures)
        run.step = step + 1
        stopping = run.stopping(stop)
        due = config.checkpoint_every and run.step % config.checkpoint_every == 0
        if stopping or due or run.step == run.steps:
            run.save()
        if stopping:
            raise Interrupted(f"stopped after step {run.step} of {run.steps}; go on with resume")
