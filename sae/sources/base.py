"""What a source of activations is, and the state by which it is resumed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from ...base.errors import InputError

Batch = dict[str, Tensor]
"""Hook point -> activations `[n, d]`; row i of every tensor is the same token."""

Plain = dict[str, object]


@dataclass(frozen=True)
class SourceState:
    """Where a source stands: tensors (buffered activations, generators) and JSON values (positions)."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    values: Plain = field(default_factory=dict)

    def nested(self, prefix: str) -> "SourceState":
        """The same state with `prefix.` before the tensors' names."""
        return SourceState({f"{prefix}.{k}": v for k, v in self.tensors.items()}, self.values)

    def inner(self, prefix: str, values: Mapping[str, object]) -> "SourceState":
        """The tensors under `prefix.`, without it, beside `values`."""
        cut = len(prefix) + 1
        return SourceState({k[cut:]: v for k, v in self.tensors.items() if k.startswith(f"{prefix}.")}, dict(values))


@runtime_checkable
class ActivationSource(Protocol):
    """A source that knows where it stands. Iterating goes on from there, to the end of one pass.

    Iterating again starts the next pass.
    """

    token_policy: Plain
    """Which tokens are kept, and how texts are cut: written into the SAE."""

    def __iter__(self) -> Iterator[Batch]:
        """Batches of the current pass."""
        ...

    def state(self) -> SourceState:
        """What `restore` needs to go on behind the last batch handed out."""
        ...

    def restore(self, state: SourceState) -> None:
        """Goes to a saved place."""
        ...


def check_same(kind: str, saved: Mapping[str, object], here: Mapping[str, object]) -> None:
    """Refuses a state of a source that was set up otherwise.

    Raises:
        InputError: Names the first setting that differs.
    """
    for key, value in here.items():
        if saved.get(key) != value:
            raise InputError(
                f"{kind}: {key} was {saved.get(key)!r} when the checkpoint was written and is {value!r} now; "
                "use the old value or start anew"
            )
