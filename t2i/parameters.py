"""Named matrices of an image host by role."""

import re
from typing import TYPE_CHECKING

from torch import nn

from ..base.errors import MatchedNothing, UnknownName

if TYPE_CHECKING:
    from .host import ImageHost

ROLES = ("cross_attention", "text_mlp", "down_proj", "text_attention", "text_embedding", "denoiser", "all")
"""What `ImageHost.weights` can be asked for."""


def weights(host: "ImageHost", role: str) -> dict[str, nn.Parameter]:
    """Matrices of a role by full parameter name, the part first.

    `cross_attention`: keys and values that the denoiser makes of the text (joint attention: those of the text's stream);
    `text_mlp`: the MLPs' matrices of all text encoders; `down_proj`: their down-projections; `text_attention`;
    `text_embedding`: tokens' embeddings; `denoiser` and `all`: every parameter, vectors included.

    Raises:
        UnknownName: No such role.
        MatchedNothing: This pipeline has none.
    """
    if role not in ROLES:
        raise UnknownName("role of weights", role, ROLES)
    named = dict(host.model.named_parameters())
    denoiser = f"{host.family.denoiser}."
    if role == "all":
        return named
    if role == "denoiser":
        return {n: p for n, p in named.items() if n.startswith(denoiser)}
    if role == "cross_attention":
        found = {n: p for n, p in named.items() if n.startswith(denoiser) and re.search(host.family.cross, n.removeprefix(denoiser))}
    elif role == "text_embedding":
        tables = {id(r.module.get_input_embeddings().weight) for r in host.readers.values()}
        found = {n: p for n, p in named.items() if id(p) in tables}
    else:
        found = _of_layers(host, role, named)
    if not found:
        raise MatchedNothing(f"{host.name}: this {host.family.name} pipeline has no {role} weights")
    return found


def _of_layers(host: "ImageHost", role: str, named: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    starts: list[str] = []
    for part, reader in host.readers.items():
        f = reader.family
        inner = {"text_mlp": f.mlp, "down_proj": f.down, "text_attention": f.attention}[role]
        starts += [f"{part}.{reader.path}.{i}.{inner}." for i in range(len(reader.layers))]
    return {n: p for n, p in named.items() if n.startswith(tuple(starts)) and p.ndim == 2}
