"""Gates that run per token: the base writes while a running score is read off; once it fires, the edit stays in force."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..llm.host import Host
    from .gate import Gate, GateSource
    from .overlay import Overlay


class Watch:
    """Reads one text's tokens as a model writes them, and puts the edits in force whose gates fire.

    score_t = the gate's score with r_f = max of feature f over the tokens up to t that are neither padding nor special.
    A firing holds for all later tokens; the cache of earlier ones stays as the base wrote it. Gates that have not fired
    when another has read what the host computes with that other's edit.
    """

    def __init__(self, host: "Host", overlay: "Overlay", digests: Collection[str]) -> None:
        self.host, self.overlay = host, overlay
        self.fired: set[str] = set()
        from .gate import Gate

        found = {d: overlay.entries[d].edit.gate for d in digests}
        self._gates = {d: g for d, g in found.items() if isinstance(g, Gate)}
        self._seen: dict[str, Tensor] = {}
        self._peaks: dict[str, Tensor] = {}
        self._ids = torch.zeros(1, 0, dtype=torch.int64)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Block in which forward passes of the host's model are one text's, in order; the overlay is as before afterwards."""
        from ..llm.hooks import attach

        before = self.overlay.current
        points = {s.hook_point for g in self._gates.values() for s in g.sources}
        with ExitStack() as undo:
            undo.callback(lambda: self.overlay.use(self.host, before))
            for point in points:
                undo.callback(attach(self.host.resolve(point), lambda x, point=point: self._keep(point, x)).remove)
            undo.callback(self.host.model.register_forward_hook(self._after, with_kwargs=True).remove)
            yield

    def _keep(self, point: str, x: Tensor) -> None:
        self._seen[point] = x.detach()

    def _after(self, module: nn.Module, args: object, kwargs: dict[str, Any], output: object) -> None:
        new = kwargs["input_ids"].cpu()
        self._ids = torch.cat([self._ids, new], 1)
        kept = self.host.keep_mask(self._ids, torch.ones_like(self._ids))[0, -new.shape[1] :]
        for digest, gate in self._gates.items():
            if digest not in self.fired and self._opens(digest, gate, kept):
                self.fired.add(digest)
        self._seen.clear()
        if not self.fired <= {*self.overlay.current}:
            self.overlay.use(self.host, (*self.overlay.current, *self.fired))

    def _opens(self, digest: str, gate: "Gate", kept: Tensor) -> bool:
        peaks = torch.cat([self._peak(s, kept) for s in gate.sources])
        self._peaks[digest] = torch.maximum(self._peaks.get(digest, peaks), peaks)
        peaks = self._peaks[digest]
        return bool(gate.fires(gate.standardised(torch.where(peaks.isfinite(), peaks, 0)[None]))[0])

    def _peak(self, source: "GateSource", kept: Tensor) -> Tensor:
        from .layer import feature_acts

        acts = feature_acts(source.sae, self._seen[source.hook_point][0], source.features).double().cpu()
        return acts.masked_fill(~kept[:, None], -torch.inf).amax(0)
