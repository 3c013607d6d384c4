"""Gated edits on a host: each prompt is judged on the unedited host, then runs on the base or on the edited weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from inspect import BoundArguments, signature
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ..base.errors import InputError
from .watching import Watch

if TYPE_CHECKING:
    from .any_gate import AnyGate
    from .hosts import Host
    from .overlay import Overlay

Fired = frozenset[str]
"""Digests of the gated edits that fire for a prompt."""
ROUTED = ("logits", "activations", "generate", "token_logprobs")
ROUTER = "_efface_router"
"""Attribute of a host under which its router stands."""


class Router(ABC):
    """Stands in front of a host's methods while edits that are selected by prompt lie on it.

    A call runs once for each set of edits that some of its prompts ask for, always with all its rows, and each row's
    result is taken from the run that its prompt asked for: nothing is multiplied by zero, and a row's batch shape and
    place are those of the base's run.
    """

    routed: ClassVar[tuple[str, ...]] = ()
    """Methods of the host that it stands in front of; its own are named alike, with `_` before."""

    def __init__(self, host: Any, overlay: "Overlay") -> None:
        self.host, self.overlay, self.inside = host, overlay, False
        self._own: dict[str, Callable[..., Any]] = {name: getattr(host, name) for name in self.routed}
        self._known: dict[tuple[str, Hashable], bool] = {}

    def install(self) -> Callable[[], None]:
        """Puts itself in front; the function returned takes it away."""
        before = {name: self.host.__dict__[name] for name in self.routed if name in self.host.__dict__}
        undo = ExitStack()
        self.guard(undo)
        self.host.__dict__.update({name: getattr(self, f"_{name}") for name in self.routed}, **{ROUTER: self})

        def remove() -> None:
            undo.close()
            for name in (*self.routed, ROUTER):
                self.host.__dict__.pop(name, None)
            self.host.__dict__.update(before)

        return remove

    @abstractmethod
    def guard(self, undo: ExitStack) -> None:
        """Stands in the way of calls that go past the host's methods, until `undo` is closed."""

    @contextmanager
    def through(self) -> Iterator[None]:
        """Block in which the host's methods are its own."""
        before, self.inside = self.inside, True
        try:
            yield
        finally:
            self.inside = before

    def learn(self, keys: Sequence[Hashable], score: "Callable[[AnyGate, list[Any]], Tensor]") -> None:
        """Scores prompts that are not known yet at every edit that is selected by prompt, once while the edits lie there.

        An edit without a gate always fires.
        """
        for digest in self.overlay.gated:
            gate = self.overlay.entries[digest].edit.gate
            new = list(dict.fromkeys(k for k in keys if (digest, k) not in self._known))
            if new:
                opened = [True] * len(new) if gate is None else gate.fires(score(gate, new)).tolist()
                self._known.update({(digest, key): fires for key, fires in zip(new, opened, strict=True)})

    def fired(self, key: Hashable) -> Fired:
        """The edits that fire for a prompt that `learn` was given."""
        return frozenset(d for d in self.overlay.gated if self._known[d, key])

    def runs(self, fired: Sequence[Fired], run: Callable[[], Any]) -> dict[Fired, Any]:
        """What `run` returns under each set of edits asked for, and the edits that are in force for all."""
        results: dict[Fired, Any] = {}
        with self.through():
            for wanted in dict.fromkeys(fired):
                with self.overlay.using(self.host, (*self.overlay.plain, *wanted)):
                    results[wanted] = run()
        return results


class TextRouter(Router):
    """The router of a language model, whose calls are given token ids or prompts."""

    routed = ROUTED

    def guard(self, undo: ExitStack) -> None:
        """Refuses calls of the bare model."""
        guarded: nn.Module = getattr(self.host, "base", self.host.model)
        undo.callback(guarded.register_forward_pre_hook(self._guard).remove)

    def decide(self, rows: Sequence[Sequence[int]]) -> list[Fired]:
        """Which gated edits fire for each prompt (token ids)."""
        keys = [tuple(r) for r in rows]
        self.learn(keys, lambda gate, new: gate.score_rows(self.host, new))
        return [self.fired(k) for k in keys]

    def _run(self, rows: Sequence[Sequence[int]], run: Callable[[], Any]) -> tuple[dict[Fired, Any], list[Fired]]:
        fired = self.decide(rows)
        return self.runs(fired, run), fired

    def _logits(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        own = self._own["logits"]
        if self.inside:
            return own(input_ids, attention_mask)
        return rowwise(*self._run(_unpadded(input_ids, attention_mask), lambda: own(input_ids, attention_mask)))

    def _activations(self, input_ids: Tensor, attention_mask: Tensor, hook_points: Sequence[str], **options: Any) -> dict[str, Tensor]:
        own = self._own["activations"]
        if self.inside:
            return own(input_ids, attention_mask, hook_points, **options)
        rows = _unpadded(input_ids, attention_mask)
        results, fired = self._run(rows, lambda: own(input_ids, attention_mask, hook_points, **options))
        return {p: rowwise({w: r[p] for w, r in results.items()}, fired) for p in hook_points}

    def _generate(self, prompts: Sequence[str], *args: Any, **options: Any) -> list[str]:
        own = self._own["generate"]
        if self.inside or isinstance(prompts, str) or not prompts:
            return own(prompts, *args, **options)
        running = [d for d in self.overlay.gated if getattr(self.overlay.entries[d].edit.gate, "per", "") == "token"]
        if running:
            return self._watched(prompts, running, signature(own).bind(prompts, *args, **options))
        return _itemwise(*self._run(self.host.token_ids(prompts), lambda: own(prompts, *args, **options)))

    def _watched(self, prompts: Sequence[str], running: list[str], call: BoundArguments) -> list[str]:
        """Prompt by prompt: what fires at the prompt is in force from its first token, gates of `running` go on reading."""
        own, texts = self._own["generate"], []
        call.apply_defaults()
        for i, (prompt, fired) in enumerate(zip(prompts, self.decide(self.host.token_ids(prompts)), strict=True)):
            one = {**call.arguments, "prompts": [prompt], "seed": call.arguments["seed"] + i}
            watch = Watch(self.host, self.overlay, [d for d in running if d not in fired])
            with self.through(), self.overlay.using(self.host, (*self.overlay.plain, *fired)), watch.reading():
                texts += own(**one)
        return texts

    def _token_logprobs(self, prompts: Sequence[str], continuations: Sequence[str], **options: Any) -> list[Tensor]:
        own = self._own["token_logprobs"]
        if self.inside or isinstance(prompts, str) or not prompts:
            return own(prompts, continuations, **options)
        return _itemwise(*self._run(self.host.token_ids(prompts), lambda: own(prompts, continuations, **options)))

    def _guard(self, module: nn.Module, args: object) -> None:
        if not self.inside:
            raise InputError(
                "a gated edit lies on this host, and host.model alone does not know which prompts it runs: call the "
                f"host's methods ({', '.join(ROUTED)}, loss), or put the edit on without its gate"
            )


@contextmanager
def routed(host: "Host", overlay: "Overlay") -> Iterator[None]:
    """Block in which the gated edits of `overlay` decide per prompt; nests."""
    if ROUTER in host.__dict__:
        yield
        return
    remove = TextRouter(host, overlay).install()
    try:
        yield
    finally:
        remove()


@contextmanager
def unedited(host: "Host") -> Iterator[None]:
    """Block in which the host is without any edit, and its methods are its own."""
    from .ledger import overlay_of

    router = host.__dict__.get(ROUTER)
    with overlay_of(host).using(host, ()):
        if router is None:
            yield
        else:
            with router.through():
                yield


def _unpadded(input_ids: Tensor, attention_mask: Tensor) -> list[list[int]]:
    return [ids[mask.bool()].tolist() for ids, mask in zip(input_ids, attention_mask, strict=True)]


def rowwise(results: dict[Fired, Tensor], fired: list[Fired]) -> Tensor:
    """Row i of the run that row i asked for."""
    whole = [results[w] for w in results]
    if len(whole) == 1:
        return whole[0]
    out = whole[0]
    for wanted, result in list(results.items())[1:]:
        mine = torch.tensor([f == wanted for f in fired], device=out.device).reshape(-1, *[1] * (out.ndim - 1))
        out = torch.where(mine, result, out)
    return out


def _itemwise(results: dict[Fired, Any], fired: list[Fired]) -> list[Any]:
    return [results[wanted][i] for i, wanted in enumerate(fired)]
