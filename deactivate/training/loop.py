"""The one training loop for erasers.

Whole checkpoints, stop signals, bit-equal resume on CPU, a log, a progress bar, data parallel. A method brings
`step_fn`, a function from (step, micro-batch) to a loss; everything else is here.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...base.errors import ArtefactError, InputError, NumericsError
from ...base.running import Checkpoints, Interrupted, JsonlLog, StopFlag, log, progress
from .config import LoopConfig
from .state import Distributed, Stateful, own_randomness, same_settings, seed_all, stop_flag, trainable

Loss = Float[Tensor, ""]
StepFn = Callable[[int, int], Loss | tuple[Loss, Mapping[str, float]]]
"""(step from 0, micro-batch from 0) -> scalar loss with a graph, and optionally figures for the log."""
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class LoopResult:
    """What a finished loop leaves besides the parameters, which are changed in place."""

    steps: int
    """Steps done in all."""
    first_step: int
    """Step this call began at: 0, or where it resumed."""
    loss: float
    """Loss of the last step, mean over micro-batches and processes."""
    seconds: float
    """Wall time of this call."""
    averages: Mapping[str, Tensor] | None = None
    """Name -> moving average of the parameter, float32 (float64 for those), where the config asks for one."""


def lr_factor(step: int, config: LoopConfig) -> float:
    """Share of the peak learning rate at a step (from 0): linear warm-up, then the schedule; above 0 throughout."""
    if step < config.warmup:
        return (step + 1) / (config.warmup + 1)
    if config.schedule == "constant":
        return 1.0
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 1.0 - done if config.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def fit_loop(
    step_fn: StepFn,
    params: Mapping[str, nn.Parameter],
    config: LoopConfig,
    out: Path | None = None,
    resume: bool = False,
    *,
    source: Stateful | None = None,
    accelerator: Distributed | None = None,
    desc: str = "fit",
) -> LoopResult:
    """Minimises `step_fn` over `params`, in place, with AdamW.

    Half-precision parameters are stepped through float32 masters and rounded once a step. With an `accelerator`
    gradients are averaged over processes before clipping, and process 0 writes. The caller's random generators are as
    they were when it returns.

    Args:
        step_fn: (step, micro) -> loss, or (loss, {name: figure}). Its randomness must come from python's, numpy's or
            torch's global generators, from the step number, or from `source`: then a resumed run equals an unbroken
            one bit for bit on CPU.
        params: Name -> parameter; names key the checkpoint.
        config: Settings.
        out: Folder for `checkpoints/` and `log.jsonl`; none: nothing is written and an interrupt is an ordinary one.
        resume: Go on from the newest whole checkpoint under `out` (from the start where there is none yet, which is
            logged).
        source: A data source whose position belongs in the checkpoint.
        accelerator: For data parallel training; each process scores its own share in `step_fn`.
        desc: Name on the progress bar.

    Raises:
        InputError: Nothing to train, `out` holds another run, or a resumed run has other settings or parameters.
        NumericsError: A loss or gradient norm is not finite; the newest checkpoint is from before.
        Interrupted: SIGINT or SIGTERM came; a whole checkpoint was written.
    """
    run = _Run(step_fn, trainable(params), config, out, source, accelerator)
    first = run.begin(resume)
    start = time.perf_counter()
    with run, own_randomness(), stop_flag(out) as stop:
        run.go_on(first, stop, desc)
    if accelerator:
        accelerator.wait_for_everyone()  # the last checkpoint is written before anybody goes on
    return LoopResult(config.steps, first, run.loss, time.perf_counter() - start, run.averages or None)


class _Run:
    """State of one call of `fit_loop`."""

    def __init__(
        self,
        step_fn: StepFn,
        params: dict[str, nn.Parameter],
        config: LoopConfig,
        out: Path | None,
        source: Stateful | None,
        accelerator: Distributed | None,
    ) -> None:
        self.step_fn, self.params, self.config, self.out, self.source = step_fn, params, config, out, source
        self.accelerator, self.loss = accelerator, math.nan
        self.rank = accelerator.process_index if accelerator else 0
        self.main = self.rank == 0
        self.masters = {n: p if p.dtype in (torch.float32, torch.float64) else p.detach().float() for n, p in params.items()}
        fused = all(p.device.type in ("cpu", "cuda") for p in self.masters.values())
        self.optimiser = torch.optim.AdamW(
            self.masters.values(), config.lr, (config.beta1, config.beta2), config.eps, config.weight_decay, fused=fused
        )
        kept = self.masters if config.average is not None else {}
        self.averages = {n: p.detach().clone() for n, p in kept.items()}
        self.checkpoints = Checkpoints(out / "checkpoints", config.keep) if out else None
        self.log: JsonlLog | None = None

    def begin(self, resume: bool) -> int:
        """Restores where asked, opens the log; the first step to do."""
        if resume and self.checkpoints is None:
            raise InputError("resume: needs the folder of the run to go on with; give out")
        if not resume and self.checkpoints and self.checkpoints.steps():
            raise InputError(f"out {self.out}: holds checkpoints of an earlier run; resume it or choose another folder")
        newest = self.checkpoints.newest() if resume and self.checkpoints else None
        first = self.restore(*newest) if newest else 0
        if resume and not newest:
            log.info("no checkpoint under %s yet: starting at step 0", self.out)
        if self.accelerator:
            self.accelerator.wait_for_everyone()  # nobody writes before everybody has read
        if self.out and self.main:
            self.log = JsonlLog(self.out / "log.jsonl", first if newest else None)
        return first

    def go_on(self, first: int, stop: StopFlag, desc: str) -> None:
        """Step after step from `first`; a checkpoint where one is due, or the run was asked to stop."""
        last = self.config.steps
        for step in progress(range(first, last), desc=desc, unit="step", enabled=self.main):
            self.step(step)
            done, stopping = step + 1, self.agree(stop)
            if stopping or done % self.config.checkpoint_every == 0 or done == last:
                self.save(done)
            if stopping and done < last:
                raise Interrupted(f"stopped after step {done} of {last}; go on with resume")

    def step(self, step: int) -> None:
        """One optimiser step; `loss` is then its loss."""
        begun = time.perf_counter()
        seed_all(self.config.seed, step, self.rank)
        for group in self.optimiser.param_groups:
            group["lr"] = self.config.lr * lr_factor(step, self.config)
        for p in self.params.values():
            p.grad = None
        figures, total = self.backward(step)
        norm = self.collect_gradients(step)
        self.optimiser.step()
        with torch.no_grad():
            for name, p in self.params.items():
                if self.masters[name] is not p:
                    p.copy_(self.masters[name])
            for name, average in self.averages.items():
                average.lerp_(self.masters[name], 1 - min(self.config.average or 0.0, (1 + step) / (10 + step)))
        self.loss = total
        if self.log and (step % self.config.log_every == 0 or step + 1 == self.config.steps):
            lr = self.optimiser.param_groups[0]["lr"]
            self.log.write(step=step + 1, loss=total, grad_norm=norm, lr=lr, seconds=time.perf_counter() - begun, **figures)

    def backward(self, step: int) -> tuple[dict[str, float], float]:
        """Back-propagates every micro-batch; (figures, loss): means over micro-batches, the loss also over ranks."""
        n, losses, figures = self.config.accumulate, [], dict[str, float]()
        for micro in range(n):
            answer = self.step_fn(step, micro)
            loss, extra = answer if isinstance(answer, tuple) else (answer, {})
            if not loss.requires_grad:
                raise InputError("step_fn: its loss does not depend on the parameters; is something detached or under no_grad?")
            scaled = loss / n
            self.accelerator.backward(scaled) if self.accelerator else scaled.backward()
            losses.append(loss.detach().double())
            for k, v in extra.items():
                figures[k] = figures.get(k, 0.0) + float(v) / n
        mean = torch.stack(losses).mean()
        total = float(self.accelerator.reduce(mean, "mean") if self.accelerator else mean)
        if not math.isfinite(total):
            raise NumericsError(f"step {step + 1}: the loss is {total}; lower lr, or resume from the newest checkpoint with other data")
        return figures, total

    def collect_gradients(self, step: int) -> float:
        """Averages gradients over processes into the masters and clips them; the norm before clipping."""
        for name, p in self.params.items():
            grad = torch.zeros_like(p) if p.grad is None else p.grad
            if self.accelerator and self.accelerator.num_processes > 1:
                grad = self.accelerator.reduce(grad, "mean")
            self.masters[name].grad = grad.to(self.masters[name].dtype)
        limit = math.inf if self.config.clip is None else self.config.clip
        norm = float(nn.utils.clip_grad_norm_(self.masters.values(), limit))
        if not math.isfinite(norm):
            raise NumericsError(f"step {step + 1}: the gradient norm is {norm} though the loss is finite; look at step_fn")
        return norm

    def agree(self, stop: StopFlag) -> bool:
        """Whether any process was asked to stop."""
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return bool(stop)
        device = next(iter(self.params.values())).device
        return bool(self.accelerator.reduce(torch.tensor(float(bool(stop)), device=device), "sum") > 0)

    def save(self, step: int) -> None:
        """Writes a checkpoint (process 0)."""
        if self.checkpoints is None or not self.main:
            return
        tensors = {f"param/{n}": p.detach() for n, p in self.masters.items()}
        for name, p in self.masters.items():
            tensors |= {f"{m}/{name}": self.optimiser.state[p][m] for m in (*MOMENTS, "step")}
        tensors |= {f"average/{n}": a for n, a in self.averages.items()}
        values = {
            "config": dataclasses.asdict(self.config),
            "loss": self.loss,
            "source": dict(self.source.state()) if self.source else None,
        }
        self.checkpoints.save(step, tensors, values)

    def restore(self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> int:
        """Puts parameters, moments and the source where the checkpoint has them, after checking all of it; the step."""
        same_settings(values["config"], dataclasses.asdict(self.config))
        parts = ("param", *MOMENTS, *(["average"] if self.averages else []))
        wanted = {f"{m}/{n}": p for n, p in self.masters.items() for m in parts}
        wrong = [k for k, p in wanted.items() if k not in tensors or tensors[k].shape != p.shape or tensors[k].dtype != p.dtype]
        surplus = {k.partition("/")[2] for k in tensors} - set(self.masters)
        if wrong or surplus:
            raise ArtefactError(f"{self.out}: its checkpoint has other parameters ({(wrong + sorted(surplus))[0]}); use another folder")
        if (values["source"] is None) != (self.source is None):
            raise InputError("source: given now or when the checkpoint was written, but not both times; resume with the same source")
        with torch.no_grad():
            for name, p in self.masters.items():
                p.copy_(tensors[f"param/{name}"])
                self.params[name].copy_(p)
                # in the parameter's own layout: the fused step goes through memory and would pair the wrong elements of another
                moments = {m: torch.empty_like(p).copy_(tensors[f"{m}/{name}"]) for m in MOMENTS}
                self.optimiser.state[p] = {**moments, "step": tensors[f"step/{name}"].clone()}
            for name, average in self.averages.items():
                average.copy_(tensors[f"average/{name}"])
        if self.source:
            self.source.restore(values["source"])
        self.loss = values["loss"]
        return step

    def __enter__(self) -> "_Run":
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the log and drops the gradients."""
        if self.log:
            self.log.close()
        for p in self.params.values():
            p.grad = None
