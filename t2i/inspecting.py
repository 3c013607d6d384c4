"""The image side of `efface inspect`: a concept's dossier, and pictures drawn with and without a feature."""

import base64
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import InputError
from ..base.files import cache_dir, digest, write_bytes
from ..deactivate.edit import Edit
from ..deactivate.layer import DeactivationPart, sae_digest, sae_hook_point
from ..llm import inspecting as _texts
from .feature_stores import spelled as spell
from .features import features
from .gating import concept_gate, judge_gate
from .pools import with_general

if TYPE_CHECKING:
    from ..deactivate.concept import Concept
    from ..sae import SAE
    from ..sae.evidence import FeatureStore
    from .host import ImageHost

__all__ = ["FeaturePictures", "concept_dossier", "example_prompts", "spell"]
PROMPTS = 3
"""Prompts drawn a feature."""
SIDE = 192
"""Pixels a side on a page, at most."""


concept_dossier = partial(_texts.concept_dossier, find=features, fit=concept_gate, judge=judge_gate)
"""`llm.inspecting.concept_dossier` by the features and gates of pipelines."""


def example_prompts(concept: "Concept", seed: int = 0) -> list[str]:
    """A few prompts of `validation`: of the concept, of its neighbours, and general ones."""
    return _texts.example_prompts(with_general(concept), seed)


class FeaturePictures:
    """Pictures of the prompts that fire a feature most, drawn with it and without it, under the same seeds.

    They are as small as a page needs them (`sheets.png`). Without: a deactivation layer that sets the feature to 0 wherever it fires, for conditional prompts alone. Each picture is drawn once and
    kept in the cache, by host, sampling, SAE, feature, prompt and seed.

    Args:
        host: Draws.
        prompts: Prompts a feature.
        seed: Of the first; the i-th prompt is drawn under seed + i.
    """

    def __init__(self, host: "ImageHost", prompts: int = PROMPTS, seed: int = 0) -> None:
        self.host, self.n, self.seed = host, prompts, seed

    def of(self, sae: "SAE", store: "FeatureStore", feature: int) -> list[dict[str, Any]]:
        """`{prompt, seed, with, without}` a prompt, pictures as addresses that hold them; empty where nothing fires the feature."""
        asked = self._prompts(sae, store, feature)
        places = [self._places(sae, feature, p, self.seed + i) for i, p in enumerate(asked)]
        missing = [i for i, pair in enumerate(places) if not all(p.is_file() for p in pair)]
        if missing:
            self._draw(sae, feature, [asked[i] for i in missing], [self.seed + i for i in missing], [places[i] for i in missing])
        return [
            {"prompt": p, "seed": self.seed + i, "with": _address(pair[0]), "without": _address(pair[1])}
            for i, (p, pair) in enumerate(zip(asked, places, strict=True))
        ]

    def _prompts(self, sae: "SAE", store: "FeatureStore", feature: int) -> list[str]:
        reader = self.host.reader([sae_hook_point(sae)])
        texts = (reader.tokenizer.decode(list(c.tokens), skip_special_tokens=True).strip() for c in store.contexts(feature, "top"))
        return [t for t in dict.fromkeys(texts) if t][: self.n]

    def _draw(self, sae: "SAE", feature: int, prompts: list[str], seeds: list[int], places: list[tuple[Path, Path]]) -> None:
        from .evaluation.sheets import png

        edit = Edit([DeactivationPart(sae, (feature,))], "one feature")
        before = self.host.generate(prompts, seeds=seeds)
        with edit.applied(self.host):
            after = self.host.generate(prompts, seeds=seeds)
        for images, side in ((before, 0), (after, 1)):
            for image, pair in zip(images, places, strict=True):
                write_bytes(pair[side], png(image, SIDE))

    def _places(self, sae: "SAE", feature: int, prompt: str, seed: int) -> tuple[Path, Path]:
        if not 0 <= feature < sae.cfg.d_sae:
            raise InputError(f"feature {feature}: this SAE has 0 to {sae.cfg.d_sae - 1}")
        drawn = [self.host.digest, dict(self.host.sampling), prompt, seed, SIDE]
        with_it, without = digest(drawn)[:32], digest([*drawn, sae_digest(sae), feature])[:32]
        folder = cache_dir() / "inspect" / "pictures"
        return folder / f"{with_it}.png", folder / f"{without}.png"


def _address(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
