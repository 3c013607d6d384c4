"""A prompt as SAEs and gates read it: the strongest features of every token at every hook point, and whether each gate fires."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ...base.errors import HookPointNotFound, InputError
from ..layer import sae_hook_point
from ..routing import unedited
from .plain import shortened

if TYPE_CHECKING:
    from ...sae import SAE
    from ..any_gate import AnyGate

LONGEST = 512
"""Tokens of a prompt, at most."""
Spell = Callable[[Any, Sequence[int]], list[str]]
"""(what reads, token ids) -> their strings, so that together they read as the prompt."""


def readers_of(host: Any, saes: "Mapping[int, SAE]") -> "list[tuple[Any, dict[int, SAE]]]":
    """What reads texts -> the SAEs that it serves: one language model, or one text encoder each; SAEs that no text reaches are left out."""
    groups: list[tuple[Any, dict[int, SAE]]] = []
    for number, sae in saes.items():
        reader = _reader(host, sae)
        group = next((g for r, g in groups if r is reader), None)
        if group is not None:
            group[number] = sae
        elif reader is not None:
            groups.append((reader, {number: sae}))
    return groups


def _reader(host: Any, sae: "SAE") -> Any:
    point = sae_hook_point(sae)
    make = getattr(host, "reader", None)
    try:
        reader = host if make is None else make([point])
        reader.resolve(point)
    except (HookPointNotFound, InputError):
        return None
    return reader


class PromptReader:
    """Reads prompts on the unedited host, one at a time, from any thread.

    Args:
        host: The model, of either kind.
        saes: Number of an SAE on the page -> the SAE. Those at hook points that no prompt reaches by itself (a denoiser's) are left out.
        gates: (name, gate).
        spell: Strings of tokens.
        label: (number of the SAE, feature) -> what the feature is called.
        top: Features kept a token.
    """

    def __init__(
        self,
        host: Any,
        saes: "Mapping[int, SAE]",
        gates: "Sequence[tuple[str, AnyGate]]" = (),
        *,
        spell: Spell,
        label: Callable[[int, int], str] = lambda sae, feature: "",
        top: int = 8,
    ) -> None:
        self.host, self.gates, self.spell, self.label, self.top = host, list(gates), spell, label, top
        self._lock = threading.Lock()
        self.groups = readers_of(host, saes)

    @torch.no_grad()
    def read(self, text: str) -> dict[str, Any]:
        """Tokens, the strongest features of each a hook point, the strongest of the whole prompt, and the gates.

        Raises:
            InputError: An empty prompt, or one that is too long.
        """
        if not text.strip():
            raise InputError("prompt: it is empty; type some words")
        with self._lock, unedited(self.host):
            layers = [layer for reader, saes in self.groups for layer in self._layers(reader, saes, text)]
            gates = [self._gate(name, gate, text) for name, gate in self.gates]
        return {"text": text, "layers": layers, "gates": gates}

    def _layers(self, reader: Any, saes: "Mapping[int, SAE]", text: str) -> list[dict[str, Any]]:
        rows = reader.token_ids([text])
        if len(rows[0]) > LONGEST:
            raise InputError(f"prompt: it has {len(rows[0])} tokens, {LONGEST} at most are read; shorten it")
        ids, mask = reader.pad(rows)
        keep = reader.keep_mask(ids, mask)[0].cpu()
        specials = torch.isin(ids[0].cpu(), torch.tensor(reader.tokenizer.all_special_ids))
        points = {n: sae_hook_point(s) for n, s in saes.items()}
        seen = reader.activations(ids, mask, list(dict.fromkeys(points.values())))
        at, shown = keep.nonzero()[:, 0], (keep | (mask[0].cpu().bool() & ~specials)).nonzero()[:, 0]
        tokens, counts = self.spell(reader, ids[0][shown].tolist()), keep[shown].tolist()
        return [
            self._layer(number, sae, seen[points[number]][0][at.to(seen[points[number]].device)], tokens, counts)
            for number, sae in saes.items()
        ]

    def _layer(self, number: int, sae: "SAE", x: torch.Tensor, tokens: list[str], counts: list[bool]) -> dict[str, Any]:
        """One SAE's reading; `active` is None at a token of the prompt that does not count."""
        place = [i for i, counted in enumerate(counts) if counted]
        sparse = sae.encode_sparse(x.to(sae.W_enc))
        by_token: list[list[tuple[float, int]]] = [[] for _ in tokens]
        peak: dict[int, tuple[float, int]] = {}
        for row, f, v in zip(sparse.rows.tolist(), sparse.indices.tolist(), sparse.values.tolist(), strict=True):
            if v <= 0:
                continue
            by_token[place[row]].append((v, f))
            if v > peak.get(f, (0.0, 0))[0]:
                peak[f] = (v, place[row])
        kept = [sorted(found, reverse=True)[: self.top] for found in by_token]
        strongest = sorted(((v, f, row) for f, (v, row) in peak.items()), reverse=True)[: 3 * self.top]
        named = {f for found in kept for _, f in found} | {f for _, f, _ in strongest}
        return {
            "sae": number,
            "hook_point": sae_hook_point(sae),
            "tokens": tokens,
            "active": [len(found) if counted else None for found, counted in zip(by_token, counts, strict=True)],
            "features": [[[f, shortened(v, 3)] for v, f in found] for found in kept],
            "strongest": [[f, shortened(v, 3), row] for v, f, row in strongest],
            "labels": {str(f): self.label(number, f) for f in sorted(named)},
        }

    def _gate(self, name: str, gate: "AnyGate", text: str) -> dict[str, Any]:
        score = gate.score(self.host, [text])
        c = gate.require_threshold()
        return {
            "name": name,
            "score": shortened(float(score[0])),
            "threshold": shortened(c.threshold),
            "fires": bool(gate.fires(score)[0]),
        }
