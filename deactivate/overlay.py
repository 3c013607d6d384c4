"""Edits that lie on a model in memory: base tensors kept, every state computed from them anew and rounded once."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..base.errors import InputError, NumericsError
from .parts import Rewrite, WeightsPart, check_shape, parameter, tensor_digest

if TYPE_CHECKING:
    from .edit import Edit
    from .hosts import Host


@dataclass
class Entry:
    """An edit on the model."""

    edit: "Edit"
    forced: bool = False
    """Put on another base than it was made for."""
    fired: Counter[str] = field(default_factory=Counter)
    """Hook point -> calls, for parts that act on activations."""
    everywhere: bool = False
    """In force for negative and empty prompts too."""


class Overlay:
    """The edits on one model.

    The weights are always round(base + Σ deltas), summed in float64 in the order of the edits' digests: they depend on
    which edits lie on the model, not on the order in which they came. Taking one away is the base with the others,
    never a subtraction (design: floating-point addition does not undo itself).

    Args:
        selective: The host has rows that edits must leave alone (negative prompts). Edits that act on activations are
            then selected for each row, as those behind a gate are.
    """

    def __init__(self, selective: bool = False) -> None:
        self.selective = selective
        self.base: dict[str, Tensor] = {}
        """Parameter -> its value under all edits."""
        self.entries: dict[str, Entry] = {}
        """Digest -> edit, in the order of arrival."""
        self.current: tuple[str, ...] = ()
        """Digests of the edits that are in force now."""
        self._params: dict[str, nn.Parameter] = {}
        self._marks: dict[str, tuple[torch.device, int, int]] = {}
        self._states: dict[frozenset[str], dict[str, Tensor]] = {}
        self._hooks = ExitStack()
        self._unwatch: Callable[[], None] | None = None

    @property
    def plain(self) -> tuple[str, ...]:
        """Digests of the edits that are in force whatever the prompt."""
        return tuple(d for d, e in self.entries.items() if not self._by_prompt(e))

    @property
    def gated(self) -> tuple[str, ...]:
        """Digests of the edits that are in force for some prompts alone: those behind a gate, and see `selective`."""
        return tuple(d for d, e in self.entries.items() if self._by_prompt(e))

    def _by_prompt(self, entry: Entry) -> bool:
        acts = any(not isinstance(p, WeightsPart) for p in entry.edit.parts)
        return entry.edit.gate is not None or (self.selective and acts and not entry.everywhere)

    def base_tensor(self, model: nn.Module, name: str) -> Tensor:
        """The value of a parameter under all edits."""
        canonical = self._canonical(model, name)
        return self.base[canonical] if canonical in self.base else parameter(model, name).detach()

    def add(self, host: "Host", edit: "Edit", *, force: bool = False, everywhere: bool = False) -> Entry:
        """Puts an edit on the model; everything is checked before anything is changed.

        Raises:
            InputError: It lies there already, does not fit, or was made for another base and `force` is off.
        """
        if edit.digest in self.entries:
            raise InputError(f"edit {edit.name} lies on this model already; undo it first")
        forced = self._check(host, edit, force)
        for name in {self._canonical(host.model, n) for p in edit.weights for n in p.deltas} - set(self.base):
            self._params[name] = parameter(host.model, name)
            self.base[name] = self._params[name].detach().clone()
            self._mark(name)
        self.entries[edit.digest] = entry = Entry(edit, forced, everywhere=everywhere or edit.everywhere)
        self._states.clear()
        try:
            self.use(host, self.plain)
            self._watch(host)
        except BaseException:
            self.remove(host, edit.digest)
            raise
        return entry

    def remove(self, host: "Host", digest: str) -> None:
        """Takes an edit away: the base with the others, bit for bit."""
        if digest not in self.entries:
            raise InputError(f"edit {digest[:12]} does not lie on this model")
        del self.entries[digest]
        self._states.clear()
        self.use(host, self.plain)
        kept = {self._canonical(host.model, n) for e in self.entries.values() for p in e.edit.weights for n in p.deltas}
        for name in set(self.base) - kept:
            for table in (self.base, self._params, self._marks):
                del table[name]
        self._watch(host)

    def _watch(self, host: "Host") -> None:
        """Puts the host's own router, where it has one, in front of it as long as edits lie on it."""
        router = getattr(host, "router", None)
        if self.entries and self._unwatch is None and router is not None:
            self._unwatch = router(self).install()
        elif not self.entries and self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    @torch.no_grad()
    def use(self, host: "Host", digests: Collection[str]) -> None:
        """Puts exactly these of its edits in force."""
        self._hooks.close()
        wanted = tuple(d for d in self.entries if d in digests)
        state = self._state(host, frozenset(wanted))
        for name, param in self._params.items():
            param.copy_(state.get(name, self.base[name]))
            self._mark(name)
        for entry in (self.entries[d] for d in wanted):
            for point, fn in (r for p in entry.edit.parts for r in p.rewrites_on(host)):
                self._hooks.enter_context(host.replaced(point, partial(_counted, entry.fired, point, fn)))
        self.current = wanted

    @contextmanager
    def using(self, host: "Host", digests: Collection[str]) -> Iterator[None]:
        """`use` for a block; without a change where they are in force already."""
        before = self.current
        if set(before) == set(digests):
            yield
            return
        self.check_untouched()
        self.use(host, digests)
        try:
            yield
        finally:
            self.use(host, before)

    def restore(self, model: nn.Module, base: dict[str, Tensor], entries: list[Entry]) -> None:
        """Takes over the state of a model that was saved with edits in its weights."""
        self.entries = {e.edit.digest: e for e in entries}
        self.current = tuple(self.entries)
        for name, tensor in base.items():
            self._params[name] = parameter(model, name)
            self.base[name] = tensor.to(self._params[name].device)
            self._mark(name)

    def check_untouched(self) -> None:
        """Raises where an edited parameter was written to by somebody else since."""
        for name, param in self._params.items():
            device, *mark = self._marks[name]
            if device != param.device and mark[1] == param._version:  # moved whole, as offloading does
                self._mark(name)
            elif mark != [param.data_ptr(), param._version]:
                raise InputError(f"{name} was changed (trained?) since the edits were put on; undo them or load the model again")

    def _check(self, host: "Host", edit: "Edit", force: bool) -> bool:
        self.check_untouched()
        check = getattr(host, "check_edit", None)
        if check is not None:
            check(edit)
        forced = False
        for part in edit.parts:
            if not isinstance(part, WeightsPart):
                part.bound(host)
                continue
            for name, delta in part.deltas.items():
                tensor = self.base_tensor(host.model, name)
                check_shape(name, delta.shape, tensor)
                made_for = part.base.get(name)
                if part.portability == "same-shapes" or made_for is None or made_for.sha256 == tensor_digest(name, tensor):
                    continue
                if not force:
                    raise InputError(_wrong_base(edit, name, made_for.dtype, tensor))
                forced = True
        return forced

    def _state(self, host: "Host", digests: frozenset[str]) -> dict[str, Tensor]:
        """Parameter -> value with these edits, where they change it; kept while a gate switches between states."""
        if digests in self._states:
            return self._states[digests]
        total: dict[str, Tensor] = {}
        for digest in sorted(digests):
            for part in self.entries[digest].edit.weights:
                for alias, delta in part.deltas.items():
                    name = self._canonical(host.model, alias)
                    change = delta.delta(self.base[name].device)
                    total[name] = total[name] + change if name in total else change
        state = {n: round_once(self.base[n].double() + t, self.base[n].dtype) for n, t in total.items()}
        for name, tensor in state.items():
            if not torch.isfinite(tensor).all():
                raise NumericsError(f"edited {name} is not finite in {tensor.dtype}; the change is too large")
        if self.gated:
            self._states[digests] = state
        return state

    def _canonical(self, model: nn.Module, name: str) -> str:
        """The first name of a parameter that has several (tied weights)."""
        if name in self.base:
            return name
        wanted = parameter(model, name)
        return next(n for n, p in model.named_parameters() if p is wanted)

    def _mark(self, name: str) -> None:
        param = self._params[name]
        self._marks[name] = (param.device, param.data_ptr(), param._version)


def round_once(x: Float[Tensor, "*n"], dtype: torch.dtype) -> Float[Tensor, "*n"]:
    """`x` (float64) to the nearest number of `dtype`, ties to even.

    torch converts float64 to bfloat16 and float16 by way of float32, which rounds twice. Here the step to float32
    rounds to odd (truncate, then set the last bit if anything was lost), after which the second rounding is the exact
    one (Boldo & Melquiond, Emulation of FMA and correctly rounded sums, 2008).
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return x.to(dtype)
    near = x.float()
    bits = near.view(torch.int32)
    bits = torch.where(near.double().abs() > x.abs(), bits - 1, bits)
    bits = torch.where(bits.view(torch.float32).double() != x, bits | 1, bits)
    return bits.view(torch.float32).to(dtype)


def _counted(fired: Counter[str], point: str, fn: Rewrite, x: Tensor) -> Tensor:
    fired[point] += 1
    return fn(x)


def _wrong_base(edit: "Edit", name: str, dtype: str, tensor: Tensor) -> str:
    found = str(tensor.dtype).removeprefix("torch.")
    if dtype != found:
        return f"edit {edit.name} was made for {name} in {dtype}, the model holds it in {found}; use --dtype {dtype}"
    return (
        f"edit {edit.name} was made for another base: {name} differs from the tensor it was fitted on; "
        f"load {edit.host.get('name', 'that model')}, fit it anew, or pass force=True (--force)"
    )
