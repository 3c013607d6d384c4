"""Named matrices of a host by role, and the digest of all of them."""

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..base.errors import InputError, MatchedNothing, UnknownName
from ..base.running import progress

if TYPE_CHECKING:
    from .host import Host

ROLES = ("down_proj", "up_proj", "gate_proj", "attention", "embedding", "all")
"""What `Host.weights` can be asked for."""


def weights(host: "Host", role: str) -> dict[str, nn.Parameter]:
    """Matrices of a role by full parameter name; `all` is every parameter, vectors included.

    Raises:
        UnknownName: No such role.
        MatchedNothing: The family has none (GPT-2 has no gate projection).
    """
    if role not in ROLES:
        raise UnknownName("role of weights", role, ROLES)
    named = dict(host.model.named_parameters())
    if role == "all":
        return named
    if role == "embedding":
        ends = {id(weight_of(host.model.get_input_embeddings())), id(weight_of(host.unembed()))}
        return {n: p for n, p in named.items() if id(p) in ends}
    f = host.family
    inner = {"down_proj": f.down, "up_proj": f.up, "gate_proj": f.gate, "attention": f.attention}[role]
    starts = tuple(f"{f.layers}.{i}.{inner}." for i in range(host.n_layers))
    found = {n: p for n, p in named.items() if inner is not None and n.startswith(starts) and p.ndim == 2}
    if not found:
        raise MatchedNothing(f"{host.name}: {f.name} models have no {role} weights")
    return found


def weight_of(module: nn.Module) -> nn.Parameter:
    """The weight of a linear map, norm or embedding.

    Raises:
        InputError: It has none (an adapter wraps it).
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter):
        raise InputError(f"{type(module).__name__} has no weight parameter; merge or unload adapters first")
    return weight


def parameter_digest(model: nn.Module) -> str:
    """sha256 over the sorted parameters: name, dtype, shape, little-endian bytes. Tied parameters count once."""
    total = hashlib.sha256()
    for name, p in progress(sorted(model.named_parameters()), desc="digest of the weights", unit="tensor", inner=True):
        total.update(f"{name}\0{str(p.dtype).removeprefix('torch.')}\0{list(p.shape)}\0".encode())
        total.update(p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
