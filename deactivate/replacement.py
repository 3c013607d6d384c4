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


SHARE = 0.3
"""Chosen on `validation` of the miniature's dog."""


@dataclass(frozen=True, eq=False)
class ReplacementPart(Part):
    """Image hosts: the prompt is read with `anchor` in the place of the words that carry the features.

    A word carries them where the sum of their activations over a token of it is at least `share` of the prompt's largest: later
    words of a causal encoder, and words beside the concept's (its style), have a little of them too.
    Where none of its own words has an active feature (only EOS, which has read them all), `anchor` alone is read. Detecting
    with an SAE and replacing the input, instead of editing its latents, keeps the stream on the encoder's own manifold.

    Raises:
        InputError: A token of the anchor cannot be told from nothing.
    """

    layer: DeactivationPart
    """Which features of which SAE."""
    anchor: str
    """What is read instead; "" leaves the words out."""
    share: float = SHARE
    """Of the largest sum of activations over a prompt's words; 0: any activation counts."""
    portability: Portability = "same-shapes"
    kind: ClassVar[str] = "tokens"

    def tensors(self) -> dict[str, Tensor]:
        """Those of its layer."""
        return self.layer.tensors()

    def settings(self) -> dict[str, Any]:
        """Anchor and layer."""
        return {"anchor": self.anchor, "share": self.share, "layer": self.layer.settings()}

    @classmethod
    def build(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> "ReplacementPart":
        """From its folder."""
        return cls(DeactivationPart.build(settings["layer"], tensors, folder), settings["anchor"], settings.get("share", 0.0))

    def save(self, folder: Path) -> None:
        """Its layer's tensors and SAE."""
        self.layer.save(folder)

    def describe(self) -> dict[str, Any]:
        """Anchor, place, features."""
        return {
            "kind": self.kind,
            "anchor": self.anchor,
            "share": self.share,
            "hook_point": self.layer.hook_point,
            "features": list(self.layer.features),
        }

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
        strength = acts.abs().sum(-1).cpu().where(reader.keep_mask(ids, mask), 0.0)
        return [
            self._replaced(prompt, words_of(reader.tokenizer, prompt, row), some[: len(row)].tolist()) if some.any() else prompt
            for prompt, row, some in zip(prompts, rows, strength, strict=True)
        ]

    def _replaced(self, prompt: str, words: Sequence["Word"], strength: Sequence[float]) -> str:
        """Runs of active words as the anchor, once each; the anchor alone where only special tokens are active."""
        strongest = [max(strength[i] for i in w.tokens) for w in words]
        most = max(strongest, default=0.0)
        if not most:
            return self.anchor
        pieces, end, before = list[str](), 0, False
        for word, much in zip(words, strongest, strict=True):
            gap, on = prompt[end : word.start], much > 0 and much >= self.share * most
            if not (on and before):
                pieces += [gap, self.anchor if on else prompt[word.start : word.end]]
            elif gap.strip():  # «dog, dog» is two runs
                pieces += [gap, self.anchor]
            end, before = word.end, on
        return " ".join("".join([*pieces, prompt[end:]]).split())


@dataclass(frozen=True)
class Word:
    """A word of a prompt: `prompt[start:end]`, and which of the prompt's tokens are its pieces."""

    start: int
    end: int
    tokens: tuple[int, ...]


def words_of(tokenizer: Any, prompt: str, row: Sequence[int]) -> list[Word]:
    """The words of a prompt, without special tokens.

    Raises:
        InputError: The tokenizer cannot say where its tokens lie in the text.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("form=replace needs a fast tokenizer, which knows where its tokens lie in the prompt")
    read = tokenizer(prompt, return_offsets_mapping=True, verbose=False)
    if list(read["input_ids"]) != list(row):
        raise InputError(f"form=replace: the tokenizer reads {prompt!r} in two ways")
    found: dict[int, list[int]] = {}
    for i, word in enumerate(read.word_ids()):
        if word is not None:
            found.setdefault(word, []).append(i)
    spans = read["offset_mapping"]
    return [Word(spans[at[0]][0], spans[at[-1]][1], tuple(at)) for at in found.values()]


__all__ = ["ReplacementPart"]
