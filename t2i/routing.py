"""Edits on an image host: each row is encoded and denoised with the edits that its prompt asks for, negative rows with none."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from ..base.errors import InputError
from ..deactivate.ledger import overlay_of
from ..deactivate.replacement import ReplacementPart
from ..deactivate.routing import ROUTER, Fired, Router, rowwise, unedited
from .clock import clock
from .states import States

if TYPE_CHECKING:
    from ..deactivate.edit import Edit
    from .host import ImageHost

_PAST = "call host.generate(prompts, …), which knows the prompt of every row"


def places_of(edit: "Edit") -> set[str]:
    """Components of the pipeline that an edit touches."""
    names = [*(n for p in edit.weights for n in p.deltas), *(point for p in edit.parts for point, _ in p.rewrites())]
    names += [p.layer.hook_point for p in edit.parts if isinstance(p, ReplacementPart)]
    return {n.partition(".")[0] for n in names}


def check_edit(host: "ImageHost", edit: "Edit") -> None:
    """Raises where an edit could not take effect.

    Raises:
        InputError: Its weights are offloaded one by one (on no device now), or the hooks it needs would lie on a compiled module.
    """
    for part in places_of(edit):
        if part not in host.model:
            continue  # binding the edit says what is missing
        module = host.model[part]
        if any(p.is_meta for p in module.parameters()):
            raise InputError(
                f"{part} has its weights offloaded one by one, where an edit cannot reach them; use enable_model_cpu_offload, or none"
            )
    by_hooks = edit.gate is not None or len(edit.weights) < len(edit.parts)
    compiled = [n for n in (*host.readers, host.family.denoiser) if is_compiled(host, n)]
    if by_hooks and compiled:
        raise InputError(
            f"{', '.join(compiled)} of {host.name}: compiled, and hooks put on a compiled module afterwards may go unseen; "
            "put the edit on the pipeline before it is compiled, or use one that changes weights and has no gate"
        )


@torch.no_grad()
def moved(host: "ImageHost", prompts: Sequence[str], batch: int = 8) -> Bool[Tensor, " n"]:
    """Prompts whose pictures the edits that lie on the host can change.

    The pictures of the others, drawn in the same batches as here, are the base's to the bit: their encoded states are, and
    no edit of another part is in force for them. An ungated change of weights is in force for all, negative rows included.

    Args:
        host: With edits on it.
        prompts: As `generate` would be given them.
        batch: Of `generate`.
    """
    overlay, router = overlay_of(host), host.__dict__.get(ROUTER)
    out = torch.full((len(prompts),), bool(overlay.plain))
    if router is None or overlay.plain:
        return out
    fired = router.decide(prompts)
    behind = router.touching(fired, [p for p in host.model if p not in host.readers])
    for start in range(0, len(prompts), batch):
        part = slice(start, start + batch)
        out[part] = torch.tensor([bool(f) for f in behind[part]])
        if any(fired[part]):
            now = host.encode(prompts[part])
            with unedited(host):
                base = host.encode(prompts[part])
            for a, b in ((now.embeds, base.embeds), (now.pooled, base.pooled)):
                out[part] |= False if a is None or b is None else (a != b).flatten(1).any(1).cpu()
    return out


def is_compiled(host: "ImageHost", part: str) -> bool:
    """Whether `torch.compile` wraps the component, or was called on it in place."""
    now = getattr(host.pipeline, part, None)
    return hasattr(now, "_orig_mod") or getattr(host.model[part], "_compiled_call_impl", None) is not None


class ImageRouter(Router):
    """Stands in front of an image host while edits lie on it.

    Edits behind a gate, and edits that act on activations, are in force for the rows whose prompt asks for them. A text
    encoder runs once for each set of edits asked for, always with all rows; so does the denoiser, at every step. Each
    row is taken from the run that it asked for: a negative or empty prompt from the one without edits.
    """

    routed = ("encode", "activations", "rows")

    def __init__(self, host: "ImageHost", overlay: Any) -> None:
        super().__init__(host, overlay)
        self._sets: list[Fired] | None = None
        """What each row of the denoiser's call asks for, where rows differ."""

    def guard(self, undo: ExitStack) -> None:
        """Guards on all modules that a pipeline calls by itself, the time of the denoiser's calls, and the selection behind it."""
        for part in (*self.host.readers, self.host.family.denoiser):
            undo.callback(self.host.model[part].register_forward_pre_hook(partial(self._guard_part, part)).remove)
        undo.enter_context(clock(self.host))
        undo.callback(self.host.denoiser.register_forward_hook(self._select, with_kwargs=True).remove)
        pipeline = self.host.pipeline
        own = pipeline.encode_prompt
        undo.callback(partial(pipeline.__dict__.pop, "encode_prompt", None))
        pipeline.__dict__["encode_prompt"] = partial(self._encode_prompt, own)

    def decide(self, rows: Sequence[str | None]) -> list[Fired]:
        """Which of the edits selected by prompt are in force for each row; none for negative (None) and empty prompts."""
        asked = [r if r and r.strip() else None for r in rows]
        self.learn([r for r in asked if r is not None], lambda gate, new: gate.score(self.host, new))
        return [frozenset() if r is None else self.fired(r) for r in asked]

    def touching(self, fired: Sequence[Fired], parts: Sequence[str]) -> list[Fired]:
        """The sets without the edits that touch none of the parts."""
        mine = {d for d in self.overlay.gated if places_of(self.overlay.entries[d].edit) & set(parts)}
        return [f & mine for f in fired]

    def _encode(self, prompts: Sequence[str], *, negative: bool = False) -> States:
        own = self._own["encode"]
        if self.inside or isinstance(prompts, str) or not prompts:
            return own(prompts, negative=negative)
        self.host.check_prompts(prompts)
        asked: list[str | None] = [None] * len(prompts) if negative else list(prompts)
        fired = self.touching(self.decide(asked), list(self.host.readers))
        results = self._read(prompts, fired, partial(own, negative=negative))
        first: States = next(iter(results.values()))
        pooled = None if first.pooled is None else rowwise({w: s.pooled for w, s in results.items()}, fired)
        return States(rowwise({w: s.embeds for w, s in results.items()}, fired), tuple(asked), pooled)

    def _activations(self, prompts: Sequence[str], hook_points: Sequence[str], **options: Any) -> dict[str, Tensor]:
        own = self._own["activations"]
        if self.inside or isinstance(prompts, str) or not prompts:
            return own(prompts, hook_points, **options)
        self.host.check_prompts(prompts)
        fired = self.touching(self.decide(prompts), list(self.host.readers))
        results = self._read(prompts, fired, partial(own, hook_points=hook_points, **options))
        return {p: rowwise({w: r[p] for w, r in results.items()}, fired) for p in hook_points}

    def _read(self, prompts: Sequence[str], fired: Sequence[Fired], read: Callable[[list[str]], Any]) -> dict[Fired, Any]:
        """`read` of the prompts under each set of edits asked for, with the words that its edits read instead."""
        results: dict[Fired, Any] = {}
        for wanted in dict.fromkeys(fired):
            texts = list(prompts)
            for digest in (*self.overlay.plain, *wanted):
                for part in self.overlay.entries[digest].edit.parts:
                    if isinstance(part, ReplacementPart):
                        texts = part.substituted(self.host, texts)
                        self.overlay.entries[digest].fired[part.layer.hook_point] += 1
            results |= self.runs([wanted], partial(read, texts))
        return results

    @contextmanager
    def _rows(self, prompts: Sequence[str | None]) -> Iterator[None]:
        fired = self.touching(self.decide(prompts), [self.host.family.denoiser])
        before = self._sets
        alike = len(set(fired)) == 1
        standing = (*self.overlay.plain, *fired[0]) if alike else self.overlay.plain
        with self._own["rows"](prompts), self.overlay.using(self.host, standing):
            self._sets = None if alike else fired
            try:
                yield
            finally:
                self._sets = before

    def _select(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Runs the denoiser again for each set of edits that some rows ask for, and takes the rows."""
        fired, self._sets = self._sets, None
        if fired is None:
            return None
        try:
            whole = isinstance(output, tuple)
            base: Tensor = output[0] if whole else output.sample
            if len(base) != len(fired):
                raise InputError(f"the denoiser ran {len(base)} rows, and {len(fired)} prompts were named for them; {_PAST}")
            results = {frozenset(): base}
            for wanted in dict.fromkeys(f for f in fired if f):
                with self.overlay.using(self.host, (*self.overlay.plain, *wanted)):
                    again = module(*args, **kwargs)
                results[wanted] = again[0] if whole else again.sample
        finally:
            self._sets = fired
        new = rowwise(results, fired)
        return (new, *output[1:]) if whole else type(output)(sample=new)

    def _guard_part(self, part: str, module: nn.Module, args: object) -> None:
        """Refuses calls that do not say which prompts they are for."""
        known = self.inside or (part == self.host.family.denoiser and self.host.prompts is not None)
        if self.overlay.gated and not known:
            raise InputError(
                f"an edit that is selected by prompt lies on {self.host.name}, and {part} called past the host's methods does not "
                f"say which prompts it reads: {_PAST}, or put an ungated edit on with everywhere=True"
            )

    def _encode_prompt(self, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        given = inspect.signature(own).bind(*args, **kwargs).arguments
        embedded = [n for n, v in given.items() if n.endswith("prompt_embeds") and not n.startswith("negative") and v is not None]
        on_text = {p for d in (*self.overlay.plain, *self.overlay.gated) for p in places_of(self.overlay.entries[d].edit)} & set(
            self.host.readers
        )
        if embedded and on_text and self.host.prompts is None:
            raise InputError(
                f"{', '.join(embedded)} go past the edit that lies on {', '.join(sorted(on_text))} of {self.host.name}: give prompts, or {_PAST}"
            )
        return own(*args, **kwargs)
