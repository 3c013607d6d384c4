"""What the training loop stands on: two protocols, checks of its arguments, its random generators, its stop signals."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ...base.errors import InputError, MatchedNothing
from ...base.running import StopFlag, rng_state, set_rng_state, stop_on_signals


@runtime_checkable
class Stateful(Protocol):
    """A data source that knows where it is; `HostSource` and `ActivationStore` are."""

    def state(self) -> Mapping[str, Any]:
        """Position as plain values."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to a position."""
        ...


@runtime_checkable
class Distributed(Protocol):
    """What the loop needs of `accelerate.Accelerator`."""

    @property
    def num_processes(self) -> int:
        """Number of processes."""
        ...

    @property
    def process_index(self) -> int:
        """This process."""
        ...

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        """Back-propagates."""
        ...

    def reduce(self, tensor: Tensor, reduction: str = "mean") -> Tensor:
        """Combines a tensor over processes."""
        ...

    def wait_for_everyone(self) -> None:
        """A barrier."""
        ...


def trainable(params: Mapping[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """`params` sorted by name, after checking that there is something to train, once each."""
    if not params:
        raise MatchedNothing("params: nothing to train; the method's selection of weights matched no parameter")
    frozen = [n for n, p in params.items() if not p.requires_grad]
    if frozen:
        raise InputError(f"params: {frozen[0]} does not require gradients; call requires_grad_(True) on it or leave it out")
    if len({id(p) for p in params.values()}) < len(params):
        raise InputError("params: one parameter stands under two names (tied weights); give it once")
    return dict(sorted(params.items()))


def same_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuses to resume under settings that would compute something else; names the first."""
    free = {"checkpoint_every", "keep", "log_every"}  # these change what is written, not what is computed
    for name in sorted(set(then) | set(now)):
        if name not in free and then.get(name) != now.get(name):
            raise InputError(f"{name}: the run to resume has {then.get(name)!r}, not {now.get(name)!r}; resume with the same")


def seed_all(*parts: int) -> None:
    """Seeds the three global generators from a mix of whole numbers."""
    words = np.random.SeedSequence([p % 2**64 for p in parts]).generate_state(4)
    torch.manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)
    random.seed(int(words[2]))
    np.random.seed(int(words[3]))


@contextmanager
def own_randomness() -> Iterator[None]:
    """The caller's generators come back as they were."""
    before = rng_state()
    try:
        yield
    finally:
        set_rng_state(before)


@contextmanager
def stop_flag(out: Path | None) -> Iterator[StopFlag]:
    """Signals become a flag only where there is a folder to leave a checkpoint in."""
    if out is None:
        yield StopFlag()
        return
    with stop_on_signals() as flag:
        yield flag
