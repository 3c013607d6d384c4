"""Anchor replacement: where features of a concept are active in a prompt, other words are read in their place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..base.errors import InputError
from .layer import DeactivationPart
from .parts import Part, Portability
from .routing import unedited

if TYPE_CHECKING:
    from .hosts import Host


@dataclass(frozen=True, eq=False)
class ReplacementPart(Part):
    """Image hosts: the prompt is read with `anchor` in the place of the words at which a feature is active.

    Where none of its own words has an active feature (only EOS, which has read them all), `anchor` alone is read. Detecting
    with an SAE and replacing the input, instead of editing its latents, keeps the stream on the encoder's own manifold.

    Raises:
        InputError: A token of the anchor cannot be told from nothing.
    """

    layer: DeactivationPart
    """Which features of which SAE."""
    anchor: str
    """What is read instead; "" leaves the words out."""
    portability: Portability = "same-shapes"
    kind: ClassVar[str] = "tokens"

    def tensors(self) -> dict[str, Tensor]:
        """Those of its layer."""
        return self.layer.tensors()

    def settings(self) -> dict[str, Any]:
        """Anchor and layer."""
        return {"anchor": self.anchor, "layer": self.layer.settings()}

    @classmethod
    def build(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> "ReplacementPart":
        """From its folder."""
        return cls(DeactivationPart.build(settings["layer"], tensors, folder), settings["anchor"])

    def save(self, folder: Path) -> None:
        """Its layer's tensors and SAE."""
        self.layer.save(folder)

    def describe(self) -> dict[str, Any]:
        """Anchor, place, features."""
        return {"kind": self.kind, "anchor": self.anchor, "hook_point": self.layer.hook_point, "features": list(self.layer.features)}

    def bound(self, host: "Host") -> "ReplacementPart":
        """Itself; raises where the layer does not fit, or the host reads no prompts."""
        if not getattr(host, "selective", False):
            raise InputError("a replacement of words works on image hosts alone; language models have the words in their output too")
        self.layer.bound(host)
        return self

    @torch.no_grad()
    def substituted(self, host: "Host", prompts: Sequence[str]) -> list[str]:
        """Each prompt as it is read instead; unchanged where no feature is active."""
        reader: Any = host.reader([self.layer.hook_point])  # type: ignore[union-attr]
        rows = reader.token_ids(prompts)
        ids, mask = reader.pad(rows)
        with unedited(host):
            acts = self.layer.acts(reader.activations(ids, mask, [self.layer.hook_point])[self.layer.hook_point])
        active = (acts != 0).any(-1).cpu() & reader.keep_mask(ids, mask)
        special = set(reader.tokenizer.all_special_ids)
        return [
            self._replaced(reader.tokenizer, row, on[: len(row)].tolist(), special) if bool(on.any()) else prompt
            for prompt, row, on in zip(prompts, rows, active, strict=True)
        ]

    def _replaced(self, tokenizer: Any, row: Sequence[int], on: Sequence[bool], special: set[int]) -> str:
        """Runs of active tokens as the anchor, once each; the anchor alone where only special tokens are active."""
        own = [(i, hit) for i, hit in zip(row, on, strict=True) if i not in special]
        if not any(hit for _, hit in own):
            return self.anchor
        pieces: list[str] = []
        run: list[int] = []
        before = False
        for token, hit in [*own, (-1, False)]:
            if not hit and token >= 0:
                run.append(token)
            if (hit or token < 0) and run:
                pieces.append(tokenizer.decode(run).strip())
                run = []
            if hit and not before:
                pieces.append(self.anchor)
            before = hit
        return " ".join(p for p in pieces if p)


__all__ = ["ReplacementPart"]
