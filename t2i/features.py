"""From a concept to the features of a text encoder's SAE that carry it, each with its evidence in prompts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..base.errors import InputError, MatchedNothing
from ..base.running import progress
from ..deactivate.layer import feature_acts, sae_hook_point
from ..llm.evidence import FeatureConfig, FeatureEvidence, FeatureReport
from ..llm.features import CHOOSING, Scans, contrast, detection, scan_pools, with_set
from ..llm.scanning import check_saes
from .pools import with_general

if TYPE_CHECKING:
    from ..deactivate.concept import Concept
    from ..sae import SAE
    from .host import ImageHost
    from .text import TextReader

__all__ = ["FeatureConfig", "FeatureReport", "PromptEvidence", "features", "find_features"]
POOLS = ("target", "neighbours", "general")
SHOWN = 5
"""Prompts that stand for a feature, of all that were read."""
LABELLED = 100
"""Features that get a label, the best first."""
END = "(end)"
"""How the token behind a prompt is shown: of a causal encoder the one that has read all of it."""


@dataclass(frozen=True)
class PromptEvidence(FeatureEvidence):
    """A feature of a text encoder; `promoted` and `suppressed` are empty, since an encoder promotes no tokens."""

    label: str = ""
    """Tokens at which it is strongest, the most frequent first."""
    prompts: tuple[str, ...] = ()
    """Where it is strongest, among target, neighbours and general prompts of `train`."""
    peaks: Mapping[str, float] = field(default_factory=dict)
    """Pool -> mean of its largest activation in a prompt of `train`."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """Pool -> share of the prompts of `train` in which it fires."""

    @property
    def layer(self) -> int:
        """Layer number of the hook point."""
        return int(self.hook_point.split(".")[2])


def features(
    host: "ImageHost",
    concept: "Concept",
    saes: Sequence["SAE"],
    config: FeatureConfig | None = None,
    *,
    splits: Sequence[str] = CHOOSING,
    n_set: int = 8,
    other_model: bool = False,
    general: Sequence[str] = (),
) -> FeatureReport:
    """Candidates by activation contrast on `train`, ranked by AUROC on `validation`. What is reported on `test` chose nothing.

    Args:
        host: The pipeline.
        concept: What to look for; one without general prompts gets those of the packaged pool.
        saes: At least one, of different hook points of one text encoder.
        config: Settings; those of the vocabulary do not matter here.
        splits: Which splits are read; with `test` this is a look at it, which the caller counts.
        n_set: How many of the first features are judged as a set.
        other_model: Accept SAEs trained on another text encoder.
        general: Further prompts that the concept must stay away from.

    Raises:
        MatchedNothing: No feature fires more on the concept's prompts than on others.
        InputError: SAEs of several text encoders or of another one; a prompt that is too long.
    """
    config, concept = config or FeatureConfig(), with_general(concept)
    if not saes:
        raise InputError("no SAE given: name one or more with --sae DIR (saes=[…])")
    reader = host.reader([sae_hook_point(s) for s in saes])
    places = check_saes(reader, saes, other_model=other_model)  # pyright: ignore[reportArgumentType]: it reads as a language host does
    scans = scan_pools(reader, concept, places, config, splits, general)  # pyright: ignore[reportArgumentType]
    found = [e for point, sae in places.items() for e in _candidates(point, sae, scans, config)]
    if not found:
        raise MatchedNothing(
            f"no feature carries {concept.name!r}: none fires {config.min_rho} times as strongly on its train prompts as on others; "
            "lower min_rho, add prompts, or use another SAE"
        )
    ranked = sorted(found, key=lambda e: (-e.score, -(e.delta_phi or 0), e.hook_point, e.id))
    texts = _train_prompts(concept, config, general)
    labelled = {
        (e.hook_point, e.id): e
        for point, sae in places.items()
        if (mine := [e for e in ranked[:LABELLED] if e.hook_point == point])
        for e in _labelled(reader, sae, mine, texts)
    }
    ranked = [labelled.get((e.hook_point, e.id), e) for e in ranked]
    report = FeatureReport(concept.name, host.name, tuple(ranked), ())
    return with_set(report, scans, min(n_set, len(ranked)), config)


find_features = features
"""Candidates by activation contrast on `train`, ranked by AUROC on `validation` (`features`, as the package exports it)."""


def _candidates(point: str, sae: "SAE", scans: Scans, config: FeatureConfig) -> list[PromptEvidence]:
    """Features that fire at least `min_rho` times as strongly on the concept, those with the largest surplus of firings."""
    train = {pool: s[point] for (pool, split), s in scans.items() if split == "train"}
    fired, delta, rho = contrast(train["target"], [s for pool, s in train.items() if pool != "target"])
    strong = (rho >= config.min_rho) & (delta > 0)
    order = torch.where(strong, delta, -torch.inf).topk(min(config.n_contrast, sae.cfg.d_sae))
    ids = order.indices[order.values > 0]
    if not len(ids):
        return []
    areas = detection(scans, point, ids)
    maxima = {pool: s.maxima(ids) for pool, s in train.items()}
    return [
        PromptEvidence(
            point, f, "suppress_positive", "contrast", (), (), (), int(fired[f]), float(delta[f]), float(rho[f]),
            {split: None if a is None else float(a[i]) for split, a in areas.items()},
            peaks={pool: float(m[:, i].mean()) for pool, m in maxima.items()},
            shares={pool: float((m[:, i] > 0).double().mean()) for pool, m in maxima.items()},
        )
        for i, f in enumerate(ids.tolist())
    ]  # fmt: skip


def _train_prompts(concept: "Concept", config: FeatureConfig, general: Sequence[str]) -> list[str]:
    """The prompts of `train` that were read."""
    from ..llm.pools import general_texts, pool_texts

    return [
        *pool_texts(concept, "target", "train", config.texts, config.seed),
        *pool_texts(concept, "neighbours", "train", config.texts, config.seed),
        *general_texts(concept, "train", config.texts, config.seed),
        *general,
    ]


@torch.no_grad()
def _labelled(reader: "TextReader", sae: "SAE", found: Sequence[PromptEvidence], texts: Sequence[str]) -> list[PromptEvidence]:
    """The same with the prompts and tokens at which they are strongest."""
    values, tokens = _peaks(reader, sae, tuple(e.id for e in found), texts)
    best = values.topk(min(SHOWN, len(texts)), dim=0)
    out = []
    for i, e in enumerate(found):
        at = [j for v, j in zip(best.values[:, i].tolist(), best.indices[:, i].tolist(), strict=True) if v > 0]
        spelt = Counter(_spelt(reader, int(tokens[j, i])) for j in at)
        out.append(replace(e, label=", ".join(w for w, _ in spelt.most_common(3)), prompts=tuple(texts[j] for j in at)))
    return out


def _peaks(
    reader: "TextReader", sae: "SAE", ids: tuple[int, ...], texts: Sequence[str], batch: int = 32
) -> tuple[Float[Tensor, "n f"], Int[Tensor, "n f"]]:
    """Largest activation of each feature in each prompt, and the id of the token where it is."""
    values, tokens = [], []
    for start in progress(range(0, len(texts), batch), desc="reading prompts", unit="batch", inner=True):
        rows, mask = reader.encode_texts(texts[start : start + batch])
        keep = reader.keep_mask(rows, mask)
        x = reader.activations(rows, mask, [sae_hook_point(sae)])[sae_hook_point(sae)]
        acts = feature_acts(sae, x.reshape(-1, x.shape[-1]), ids).float().cpu().reshape(*x.shape[:2], -1)
        peak = acts.masked_fill(~keep[..., None], 0).max(1)
        values.append(peak.values)
        tokens.append(rows.gather(1, peak.indices))
    return torch.cat(values), torch.cat(tokens)


def _spelt(reader: "TextReader", token: int) -> str:
    """A token as people read it."""
    if token in (reader.tokenizer.eos_token_id, reader.tokenizer.pad_token_id):
        return END
    text = str(reader.tokenizer.convert_ids_to_tokens(token))
    return text.replace("</w>", "").replace("▁", "").strip() or text
