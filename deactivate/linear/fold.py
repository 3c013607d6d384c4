"""A projection at a hook point as a change of the weights around it, where a linear map stands there."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ...base.errors import InputError
from ..edit import Edit
from ..parts import Dense, LowRank, ProjectionPart, WeightsPart
from .reading import reader_of

if TYPE_CHECKING:
    from ..hosts import Host

FOLDABLE = ("mlp_in", "mlp_hidden", "mlp_out")


def linear_maps(host: "Host", point: str) -> list[tuple[str, Any, bool]]:
    """(module path, linear map, whether the hook point is its output) of all maps that a projection there is folded into.

    Raises:
        InputError: The hook point has no permanent form.
    """
    place = point.rpartition(".")[2]
    if place not in FOLDABLE:
        raise InputError(
            f"fold: {point} has no permanent form. What passes resid_* is carried on past every norm by the skip connections, mlp_post lies "
            f"behind a norm, and blocks of a denoiser are no linear maps; name one of {', '.join(FOLDABLE)}, or leave fold off"
        )
    site = host.resolve(point)
    if place != "mlp_in":
        return [(site.path, _linear(site.module, point), place == "mlp_out")]
    down = host.resolve(point.removesuffix("mlp_in") + "mlp_hidden").module
    inner = [(f"{site.path}.{n}", m) for n, m in site.module.named_modules() if m is not down and getattr(m, "weight", None) is not None]
    return [(path, _linear(m, point), False) for path, m in inner]


def _linear(module: nn.Module, point: str) -> nn.Module:
    if not isinstance(module, nn.Linear) and type(module).__name__ != "Conv1D":
        raise InputError(f"fold: {point} lies at a {type(module).__name__}, which is no plain linear map; leave fold off")
    return module


def holds_mean(host: "Host", point: str) -> bool:
    """Whether every linear map there has a bias, so that an affine eraser can be folded.

    Raises:
        InputError: See `linear_maps`.
    """
    return all(m.bias is not None for _, m, _ in linear_maps(host, point))


class Folding:
    """Projections folded one after another; several may meet in one matrix, which then holds their product.

    W' = W (I - L R) and c' = c + W L R b at the input of a linear map y = W x + c; W' = (I - L R) W and c' = c - L R (c - b) at its output.
    The changes are of low rank; algebra is in float64.
    """

    def __init__(self, host: "Host") -> None:
        self.host = host
        self.factors: dict[str, list[tuple[Tensor, Tensor]]] = {}
        self.biases: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, part: ProjectionPart) -> None:
        """Folds a projection in.

        Raises:
            InputError: No permanent form, or an affine eraser at a map without a bias.
        """
        L, R, b = (t.double().cpu() for t in (part.left, part.right, part.bias))
        for path, module, output in linear_maps(self.host, part.hook_point):
            if module.bias is None and (L @ (R @ b)).abs().max() > 1e-9 * max(1.0, float(b.abs().max())):
                raise InputError(f"fold: {path} has no bias, which an eraser that keeps the mean needs; fit with affine=false")
            turned = not isinstance(module, nn.Linear)
            weight = self._weight(path, module, turned)
            B, A = (-L, R @ weight) if output else (-(weight @ L), R)
            self.factors.setdefault(f"{path}.weight", []).append((A.T, B.T) if turned else (B, A))
            if module.bias is not None:
                name = f"{path}.bias"
                old = module.bias.detach().double().cpu() + self.biases.get(name, 0)
                change = -(L @ (R @ (old - b))) if output else weight @ (L @ (R @ b))
                self.biases[name] = self.biases.get(name, 0) + change

    def _weight(self, path: str, module: Any, turned: bool) -> Tensor:
        """[out in], with what was folded in before."""
        weight = module.weight.detach().double().cpu()
        for B, A in self.factors.get(f"{path}.weight", []):
            weight = weight + B @ A
        return weight.T if turned else weight

    def part(self) -> WeightsPart:
        """All of it as one part, factors in float32."""
        low = {n: LowRank(torch.cat([B for B, _ in f], 1).float().contiguous(), torch.cat([A for _, A in f]).float().contiguous())
               for n, f in self.factors.items()}  # fmt: skip
        return WeightsPart({**low, **{n: Dense(c.float()) for n, c in self.biases.items() if c.any()}})


@torch.no_grad()
def fold_loss(host: "Host", projections: Sequence[ProjectionPart], folded: WeightsPart, texts: Sequence[str]) -> dict[str, float]:
    """How far the folded host is from the projected one, in the last states that are read off its texts, beside how far that is from the base.

    Returns:
        `difference`: |folded - projected| / |projected|; `edit`: |projected - base| / |projected|; Frobenius norms over all tokens that count.
    """
    reader = reader_of(host, projections[0].hook_point)
    last = [p for p in reader.hook_points() if p.endswith(".resid_post")][-1]
    ids, mask = reader.encode_texts(list(texts))
    keep = reader.keep_mask(ids, mask).cpu()

    def states() -> Tensor:
        return reader.activations(ids, mask, [last])[last].double().cpu()[keep]

    base = states()
    with _projected(host, projections):
        hooked = states()
    with Edit([folded], "fold").bound(host).applied(host):
        baked = states()
    size = float(hooked.norm())
    return {"difference": float((baked - hooked).norm()) / size, "edit": float((hooked - base).norm()) / size}


@contextmanager
def _projected(host: "Host", parts: Sequence[ProjectionPart]) -> Iterator[None]:
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(host.replaced(part.hook_point, part.project))
        yield
