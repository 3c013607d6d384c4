"""A training run: its SAEs, source, folder, log and checkpoints. The loop over it is in `trainer`."""

import dataclasses
import importlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ..base.errors import ArtefactError, InputError, NumericsError
from ..base.files import inside, load_tensors, read_json, save_tensors
from ..base.running import Checkpoints, JsonlLog, StopFlag, rng_state, set_rng_state
from . import distributed
from .config import SAEConfig, TrainConfig
from .sources.base import Batch, Plain, SourceState, check_same
from .sources.feed import PLAIN, Feed
from .training_state import HookPair, Trainee

log = logging.getLogger("efface")
CHECKPOINTS = "checkpoints"
"""Folder under `out` while a run is under way."""
FREE = ("checkpoint_every", "keep_checkpoints", "log_every", "log")
"""Fields of `TrainConfig` that may change between a checkpoint and its resumption."""


class Log:
    """`train.jsonl`, and wandb where the config asks for it; silent in all processes but the first."""

    def __init__(self, path: Path, resume_step: int | None, config: TrainConfig, settings: Mapping) -> None:
        self.file = self.wandb = None
        if distributed.rank() > 0:
            return
        self.file = JsonlLog(path, resume_step)
        if config.log == "wandb":
            self.wandb = _wandb().init(project="efface", name=path.parent.name, config=settings)

    def write(self, step: int, name: str, values: Mapping[str, float]) -> None:
        """One line of the SAE `name`."""
        if self.file:
            self.file.write(step=step, **({} if name == PLAIN else {"hook_point": name}), **values)
        if self.wandb:
            prefix = "" if name == PLAIN else f"{name}/"
            self.wandb.log({prefix + k: v for k, v in values.items()}, step=step)

    def close(self) -> None:
        """Closes both."""
        if self.file:
            self.file.close()
        if self.wandb:
            self.wandb.finish()


class Run:
    """What a training loop works on.

    Args:
        cfgs: Name of each SAE (its folder under `out`; `PLAIN` for a single one, in `out` itself) -> config.
        hooks: Name -> where it reads and writes; `None`: decided by what the source yields.
        source: See `Feed`.
        config: The run.
        out: Folder of the run.
        resume: Go on from the newest checkpoint in `out`, where there is one.

    Raises:
        InputError: `out` is in use, or the checkpoint belongs to another run; nothing was written.
    """

    def __init__(
        self,
        cfgs: Mapping[str, SAEConfig],
        hooks: Mapping[str, HookPair] | None,
        source: Iterable[Batch | Tensor],
        config: TrainConfig,
        out: Path,
        resume: bool,
    ) -> None:
        if out.exists() and not resume and (out.is_file() or any(out.iterdir())):
            raise InputError(f"output {out} exists already; resume it, choose another --out or remove it")
        if config.batch % distributed.world():
            raise InputError(f"batch {config.batch} cannot be shared out evenly to {distributed.world()} processes")
        self.config, self.out, self.step = config, out, 0
        self.steps = config.n_steps
        self.source = source
        self.feed = Feed(source, config.batch // distributed.world())
        self.settings = settings_of(cfgs, config)
        if config.log == "wandb":
            _wandb()
        root = out / CHECKPOINTS
        self.checkpoints = Checkpoints(root if distributed.world() == 1 else root / f"rank-{distributed.rank()}", config.keep_checkpoints)
        saved = self._saved() if resume else None
        if saved is None:
            self._refuse_foreign(cfgs)
        if saved:
            self.feed.restore(_feed_state(saved))
        pairs = hooks or {PLAIN: pair_of(self.feed.peek(1))}
        self.pairs = {n: pairs[n] for n in cfgs}
        self.trainees = {n: self._trainee(n, c) for n, c in cfgs.items()}
        if saved:
            self._restore(*saved)
        else:
            sample = self.feed.peek(min(self.steps, -(-config.normalize_vectors // config.batch)))
            self.check(sample)
            for trainee in self.trainees.values():
                trainee.start(sample)
        self.log = Log(out / "train.jsonl", self.step if saved else None, config, self.settings)

    def _refuse_foreign(self, cfgs: Mapping[str, SAEConfig]) -> None:
        """A folder without a checkpoint that holds what no run leaves there is somebody else's."""
        own = {Path(name).parts[0] for name in cfgs if name} | {"train.jsonl", CHECKPOINTS}
        names = (p.name for p in self.out.iterdir()) if self.out.is_dir() else ()
        if foreign := sorted(n for n in names if n not in own and not n.startswith((".", "bad-batch-"))):
            raise InputError(f"output {self.out} holds no checkpoint to resume, but {', '.join(foreign[:3])}; choose another --out")

    def _trainee(self, name: str, cfg: SAEConfig) -> Trainee:
        batch, pair = self.feed.peek(1), self.pairs[name]
        if (pair.read != pair.write) != cfg.transcoder:
            raise InputError(
                f"SAE {name}: d_out is {cfg.d_out}, and the source yields {', '.join(batch)}; a transcoder needs two hook points and d_out"
            )
        for role, point, width in (("d_in", pair.read, cfg.d_in), ("d_out", pair.write, cfg.width_out)):
            if point not in batch:
                raise InputError(f"hook point {point!r} is not among those of the source: {', '.join(batch)}")
            if batch[point].shape[1] != width:
                raise InputError(
                    f"SAE {name}: {role} is {width}, but the activations at {point!r} have {batch[point].shape[1]} dimensions; set {role}"
                )
        return Trainee(cfg, self.config, pair, batch[pair.read].device)

    def check(self, batch: Batch) -> None:
        """Refuses NaN and infinity: the batch is written beside the run's log, and every process stops.

        Raises:
            NumericsError: Names the hook point and the first vector concerned.
        """
        bad = next((p for p, t in batch.items() if not torch.isfinite(t.sum(dtype=torch.float64))), None)
        if bad is not None:
            row = int((~torch.isfinite(batch[bad]).all(1)).nonzero()[0])
            raise NumericsError(
                f"NaN or infinity in the activations at {bad!r}, vector {row} of step {self.step}; "
                f"the batch was saved as {self.keep(batch)}"
            )

    def keep(self, batch: Batch) -> Path:
        """Saves a batch that led to an error."""
        path = self.out / f"bad-batch-step-{self.step}-rank-{distributed.rank()}.safetensors"
        save_tensors(path, batch)
        return path

    @contextmanager
    def keeping(self, batch: Batch) -> Iterator[None]:
        """Saves the batch where the numbers of a step break, and says where."""
        try:
            yield
        except NumericsError as e:
            raise NumericsError(f"step {self.step}: {e}; the batch was saved as {self.keep(batch)}") from e

    def stopping(self, flag: StopFlag) -> bool:
        """Whether any process was told to stop."""
        return bool(distributed.all_max([int(bool(flag))])[0])

    def save(self) -> Path:
        """Writes a checkpoint."""
        random = rng_state()
        feed = self.feed.state()
        tensors = {"rng.torch": random["torch"], "rng.numpy_keys": random["numpy_keys"], **feed.nested("feed").tensors}
        values: Plain = {
            "settings": self.settings,
            "rng": random["values"],
            "feed": feed.values,
            "saes": {},
            "world": distributed.world(),
        }
        for name, trainee in self.trainees.items():
            own, plain = trainee.state()
            tensors |= {f"sae.{name}.{k}": t for k, t in own.items()}
            values["saes"][name] = plain  # pyright: ignore[reportIndexIssue]: the dict made above
        return self.checkpoints.save(self.step, tensors, values)

    def _saved(self) -> tuple[int, dict[str, Tensor], Plain] | None:
        """The newest checkpoint that all processes have."""
        newest = self.checkpoints.newest()
        found = -1 if newest is None else newest[0]
        least = -distributed.all_max([-found])[0]
        if least < 0 or newest is None:
            if found >= 0:
                raise ArtefactError(f"{self.out}: some of the processes have no checkpoint; start anew")
            return None
        if least < found:
            path = inside(self.checkpoints.root, f"step-{least}")
            newest = least, load_tensors(path / "state.safetensors", finite=False), read_json(path / "state.json")
        self._check_same_run(newest[2])
        return newest

    def _check_same_run(self, values: Mapping) -> None:
        check_same("training", values, {"world": distributed.world()})
        saved = values["settings"]
        check_same("training", {"SAEs": sorted(saved["saes"])}, {"SAEs": sorted(self.settings["saes"])})
        check_same("training config", saved["train"], self.settings["train"])
        for name, cfg in self.settings["saes"].items():
            check_same(f"SAE {name}", saved["saes"][name], cfg)

    def _restore(self, step: int, tensors: Mapping[str, Tensor], values: Mapping) -> None:
        self.step = step
        for name, trainee in self.trainees.items():
            cut = f"sae.{name}."
            trainee.restore({k.removeprefix(cut): t for k, t in tensors.items() if k.startswith(cut)}, values["saes"][name])
        set_rng_state({"torch": tensors["rng.torch"], "numpy_keys": tensors["rng.numpy_keys"], "values": values["rng"]})
        log.info("resumed %s at step %d", self.out, step)

    def done(self) -> None:
        """Removes the checkpoints of a finished run."""
        distributed.barrier()
        if distributed.rank() == 0:
            shutil.rmtree(self.out / CHECKPOINTS, ignore_errors=True)


def pair_of(batch: Batch) -> HookPair:
    """Where a single SAE reads and writes: the only hook point, or the first and the second (a transcoder).

    Raises:
        InputError: More than two.
    """
    points = list(batch)
    if len(points) > 2:
        raise InputError(
            f"the source yields {len(points)} hook points ({', '.join(points)}); one SAE takes one, or two as a transcoder; use train_many"
        )
    return HookPair(points[0], points[-1])


def settings_of(cfgs: Mapping[str, SAEConfig], config: TrainConfig) -> dict[str, dict]:
    """What must not change between a checkpoint and its resumption, as JSON gives it back."""
    train = {k: v for k, v in dataclasses.asdict(config).items() if k not in FREE}
    return json.loads(json.dumps({"saes": {n: c.to_dict() for n, c in cfgs.items()}, "train": train}))


def _wandb() -> ModuleType:
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise InputError("log='wandb' needs the package wandb: pip install 'efface[wandb]', or use log='jsonl'") from None


def _feed_state(saved: tuple[int, dict[str, Tensor], Plain]) -> SourceState:
    return SourceState(saved[1], {}).inner("feed", saved[2]["feed"])  # pyright: ignore[reportArgumentType]: written by `save`
