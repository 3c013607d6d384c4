"""A map of features: two coordinates each, near where their decoder rows are alike; and groups of labels to colour it by."""

import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

LANDMARKS = 1500
"""Features that t-SNE places; the others are put beside the landmarks that they are most like."""
NEAREST = 3
GROUPS = 7
"""Colours of the map besides those of all other labels and of no label."""
OTHER, NONE = "other labels", "unlabelled"


def feature_map(rows: Float[Tensor, "n d"], *, landmarks: int = LANDMARKS, seed: int = 0) -> Float[np.ndarray, "n 2"]:
    """Coordinates in [0, 1], the same for the same rows and seed.

    t-SNE (van der Maaten and Hinton, Visualizing data using t-SNE, 2008) of the unit rows, started from their principal components. With more
    rows than `landmarks` a seeded choice of them is placed so, and every other row goes to the mean, weighted by cosine, of the
    places of the landmarks nearest to it: neighbourhoods stay, distances between far groups mean little (as in t-SNE itself).
    """
    unit = torch.nn.functional.normalize(rows.detach().float().cpu(), dim=1)
    n = len(unit)
    if n < 5:
        return np.stack([np.linspace(0, 1, n), np.full(n, 0.5)], 1)
    chosen = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:landmarks].sort().values
    placed = _tsne(unit[chosen].numpy(), seed)
    out = np.zeros((n, 2))
    out[chosen.numpy()] = placed
    if n > landmarks:
        rest = torch.ones(n, dtype=torch.bool)
        rest[chosen] = False
        out[rest.numpy()] = _beside(unit[rest], unit[chosen], placed, seed)
    low, high = out.min(0), out.max(0)
    return (out - low) / np.where(high > low, high - low, 1)


def _tsne(unit: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    centred = unit - unit.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    components = (u * s)[:, :50]
    start = np.zeros((len(unit), 2))
    start[:, : min(2, components.shape[1])] = components[:, :2] / max(float(components[:, 0].std()), 1e-12) * 1e-4
    perplexity = min(30.0, (len(unit) - 1) / 3)
    with (
        warnings.catch_warnings(),
        threadpool_limits(1),
    ):  # threads that wait for each other at each of a thousand steps cost more than they bring
        warnings.simplefilter("ignore", FutureWarning)
        made: Any = TSNE(2, perplexity=perplexity, init=start.astype(np.float32), random_state=seed)  # pyright: ignore[reportArgumentType]: an array is taken too
        return made.fit_transform(components)


def _beside(rows: Tensor, landmarks: Tensor, placed: np.ndarray, seed: int) -> np.ndarray:
    """Places of `rows` by their nearest landmarks, with a little noise, so that those of one landmark do not hide each other."""
    found = []
    for some in rows.split(4096):
        near = (some @ landmarks.T).topk(min(NEAREST, len(landmarks)), dim=1)
        weight = near.values.clamp_min(1e-6).numpy()[..., None]
        found.append((placed[near.indices.numpy()] * weight).sum(1) / weight.sum(1))
    spread = 0.004 * (placed.max(0) - placed.min(0))
    return np.concatenate(found) + np.random.default_rng(seed).normal(size=(len(rows), 2)) * spread


def label_groups(labels: Sequence[str], statuses: Sequence[str]) -> tuple[list[str], list[int]]:
    """(names of the groups, the group of each feature): the first words that most labels share, other labels, no label."""
    heads = [label.split(",")[0].strip().casefold() if status == "labelled" else "" for label, status in zip(labels, statuses, strict=True)]
    often = [word for word, n in Counter(h for h in heads if h).most_common(GROUPS) if n > 1]
    names = [*often, OTHER, NONE]
    at = {word: i for i, word in enumerate(often)}
    return names, [len(often) + 1 if not h else at.get(h, len(often)) for h in heads]
