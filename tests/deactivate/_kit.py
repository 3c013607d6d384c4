"""What the tests of this folder share: a small SAE on a tiny host, an edit of its down-projections."""

import torch
from tiny import D_MODEL, tiny_host  # noqa: F401

from efface.deactivate.edit import Edit
from efface.deactivate.parts import Dense, LowRank, WeightsPart
from efface.llm.host import Host
from efface.sae import SAE, SAEConfig

CONCEPT = {"name": "dogs", "digest": "0" * 64}
POINT = "layers.1.resid_post"


def small_sae(d_sae: int = 16, point: str = POINT, architecture: str = "relu", seed: int = 0) -> SAE:
    """Random weights with unit decoder rows."""
    torch.manual_seed(seed)
    sae = SAE(SAEConfig(architecture, D_MODEL, d_sae, k=4), {"hook_point": point})  # type: ignore[arg-type]
    with torch.no_grad():
        sae.b_dec.normal_(0, 0.1)
    return sae


def low_rank(host: Host, layer: int, seed: int, rank: int = 2, size: float = 0.3) -> dict[str, LowRank]:
    """A random change of a layer's down-projection."""
    g = torch.Generator().manual_seed(seed)
    name, weight, _ = host.down_proj(layer)
    o, i = weight.shape
    return {name: LowRank(size * torch.randn(o, rank, generator=g), torch.randn(rank, i, generator=g))}


def weights_edit(host: Host, seed: int = 0, layers: tuple[int, ...] = (0, 1), rank: int = 2, **options: object) -> Edit:
    """Low-rank changes of some down-projections, bound to the host."""
    deltas = {k: v for n, layer in enumerate(layers) for k, v in low_rank(host, layer, 10 * seed + n, rank + n).items()}
    part = WeightsPart(deltas, **options)  # type: ignore[arg-type]
    return Edit([part], "test", {"seed": seed}, [CONCEPT]).bound(host)


def dense_edit(host: Host, name: str, seed: int = 0) -> Edit:
    """A dense change of one parameter."""
    g = torch.Generator().manual_seed(seed)
    shape = dict(host.model.named_parameters())[name].shape
    return Edit([WeightsPart({name: Dense(0.1 * torch.randn(shape, generator=g))})], "dense", {"seed": seed}, [CONCEPT]).bound(host)


def bits(host: Host) -> dict[str, torch.Tensor]:
    """Every parameter, cloned."""
    return {n: p.detach().clone() for n, p in host.model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)
