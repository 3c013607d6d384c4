"""Adversarial expansion: words are learned that bring a concept back past the edit, and the features they rouse are added.

Attack and defence take turns, as in the released code for nudity: the learned vectors stand for a word of the vocabulary (a hook on
the embedding, so that the host is left as it was), start from a normal fitted to the vocabulary, are kept inside its range, and are
trained to denoise pictures of the concept that the unedited host drew, the edit in force and no gate before it.
"""

import dataclasses
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ....base.errors import MatchedNothing
from ....base.running import log, progress
from ....deactivate.edit import Edit
from ....deactivate.layer import DeactivationPart, sae_hook_point
from ...states import Batch
from .config import ItdConfig
from .reading import read_peaks
from .selection import largest

if TYPE_CHECKING:
    from ....sae import SAE
    from ...host import ImageHost
    from .fit import Chosen


@dataclass(frozen=True)
class Placeholder:
    """A word of the vocabulary that no prompt uses."""

    word: str
    token: int


def placeholder(host: "ImageHost", part: str, prompts: Sequence[str]) -> Placeholder:
    """A single token that is a word by itself and stands in none of the prompts.

    Raises:
        MatchedNothing: The vocabulary has none.
    """
    reader = host.readers[part]
    used = {t for row in reader.token_ids(list(prompts)) for t in row}
    special = set(reader.tokenizer.all_special_ids)
    for token in reversed(range(len(reader.tokenizer))):
        word = reader.tokenizer.decode([token]).strip()
        if token in used or token in special or not word.isascii() or not word.isalnum():
            continue
        ids = [t for t in reader.token_ids([word])[0] if t not in special]
        if ids == [token]:
            return Placeholder(word, token)
    raise MatchedNothing(f"expansion: {part} has no word of one token that the prompts leave free")


@contextmanager
def spoken(embedding: nn.Module, token: int, vector: Float[Tensor, " d"]) -> Iterator[None]:
    """Block in which `token` is embedded as `vector`; gradients reach it."""

    def speak(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return torch.where((args[0] == token)[..., None], vector.to(output), output)

    handle = embedding.register_forward_hook(speak)
    try:
        yield
    finally:
        handle.remove()


def expanded(host: "ImageHost", sae: "SAE", chosen: Sequence["Chosen"], preserve: Sequence[str], config: ItdConfig) -> list["Chosen"]:
    """The concepts' features with those that learned words rouse and no retain prompt does.

    Raises:
        MatchedNothing: See `placeholder`.
    """
    from .fit import retain_prompts

    concepts = [c.concept for c in chosen]
    out = []
    for one in chosen:
        retain = retain_prompts(one.concept, concepts, preserve, config)
        others = set(largest(read_peaks(host, sae, retain, config.batch), config.k_sel).indices.tolist())
        out.append(_expand(host, sae, one, others, config))
    return out


def _expand(host: "ImageHost", sae: "SAE", one: "Chosen", others: set[int], config: ItdConfig) -> "Chosen":
    point = sae_hook_point(sae)
    reader = host.reader([point])
    prompts = random.Random(config.seed).sample(one.concept.target["train"], min(config.expand_images, len(one.concept.target["train"])))
    latents = host.latents(host.generate(prompts, seed=config.seed))
    word = placeholder(host, reader.part, [t for lines in one.concept.target.values() for t in lines])
    embedding = reader.module.get_input_embeddings()
    table = embedding.weight.detach().float()
    features, scores = list(one.found.features), list(one.found.scores)
    for round_ in progress(range(config.expand_rounds), desc=f"expansion, {one.concept.name}", unit="round"):
        draw = torch.Generator().manual_seed(config.seed + round_)
        vector = (table.mean(0).cpu() + table.std(0).cpu() * torch.randn(table.shape[1], generator=draw)).to(table.device)
        part = DeactivationPart(
            sae, tuple(features), config.expand_value, "scale", keep_error=config.keep_error_or_default, spare_first=True
        )
        vector = _learned(host, Edit([part], "itd"), embedding, word, vector, latents, config, round_)
        with spoken(embedding, word.token, vector):
            peaks = largest(read_peaks(host, sae, [word.word, f"a {word.word}"], config.batch), config.k_sel)
        best: dict[int, float] = {}
        for f, v in zip(peaks.indices.tolist(), peaks.values.tolist(), strict=True):
            if f not in others and f not in features:
                best[f] = max(v, best.get(f, 0.0))
        log.info("expansion of %s, round %d: %d features added", one.concept.name, round_ + 1, len(best))
        features += sorted(best, key=lambda f: -best[f])
        scores += sorted(best.values(), reverse=True)
    return dataclasses.replace(one, found=dataclasses.replace(one.found, features=tuple(features), scores=tuple(scores)))


def _learned(
    host: "ImageHost", edit: Edit, embedding: nn.Module, word: Placeholder, vector: Tensor, latents: Tensor, config: ItdConfig, round_: int
) -> Float[Tensor, " d"]:
    """The vector after `expand_steps` steps against the edit, inside the vocabulary's range."""
    table = embedding.weight.detach().float()  # type: ignore[union-attr]
    low, high = table.amin(0), table.amax(0)
    vector = vector.clone().requires_grad_()
    optimizer = torch.optim.AdamW([vector], lr=config.expand_lr, weight_decay=0.0)
    frozen = [p for p in host.model.parameters() if p.requires_grad]
    for p in frozen:
        p.requires_grad_(False)
    try:
        with torch.enable_grad(), edit.applied(host, everywhere=True), spoken(embedding, word.token, vector):
            for step in range(config.expand_steps):
                pick = torch.randperm(len(latents), generator=torch.Generator().manual_seed(10_000 * round_ + step))[:8]
                batch = Batch([f"a {word.word}"] * len(pick), latents=latents[pick], seed=config.seed + 8 * step)
                loss = host.loss(batch)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                with torch.no_grad():
                    vector.clamp_(low, high)
    finally:
        for p in frozen:
            p.requires_grad_(True)
    return vector.detach()
