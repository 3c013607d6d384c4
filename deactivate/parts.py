"""Parts of an edit: what is added to weights, what rewrites activations. Values; `overlay.py` puts them on a model."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..base.blocks import raw_blocks
from ..base.errors import ArtefactError, InputError, MatchedNothing, NumericsError, UnknownName
from ..base.files import save_tensors

if TYPE_CHECKING:
    from .hosts import Host

Portability = Literal["exact", "same-shapes"]
Rewrite = Callable[[Tensor], Tensor]


def tensor_digest(name: str, t: Tensor) -> str:
    """sha256 over name, dtype, shape and little-endian bytes."""
    total = hashlib.sha256(f"{name}\0{str(t.dtype).removeprefix('torch.')}\0{list(t.shape)}\0".encode())
    for block in raw_blocks(t):
        total.update(block)
    return total.hexdigest()


@dataclass(frozen=True, eq=False)
class LowRank:
    """The change B A of one tensor, in the layout in which the host stores it."""

    B: Float[Tensor, "o r"]
    A: Float[Tensor, "r i"]

    def __post_init__(self) -> None:
        if self.B.ndim != 2 or self.A.ndim != 2 or self.B.shape[1] != self.A.shape[0]:
            raise InputError(f"LowRank: B [o r] and A [r i] expected, {list(self.B.shape)} and {list(self.A.shape)} found")

    @property
    def shape(self) -> tuple[int, ...]:
        """`(o, i)`."""
        return self.B.shape[0], self.A.shape[1]

    @property
    def rank(self) -> int:
        """Inner width r, an upper bound of the rank."""
        return self.B.shape[1]

    def delta(self, device: torch.device | str = "cpu") -> Float[Tensor, "o i"]:
        """B A in float64."""
        return self.B.detach().to(device, torch.float64) @ self.A.detach().to(device, torch.float64)

    def tensors(self) -> dict[str, Tensor]:
        """Named factors."""
        return {"B": self.B, "A": self.A}


@dataclass(frozen=True, eq=False)
class Dense:
    """The change of one tensor as it is."""

    change: Float[Tensor, "*n"]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        return tuple(self.change.shape)

    def delta(self, device: torch.device | str = "cpu") -> Float[Tensor, "*n"]:
        """The change in float64."""
        return self.change.detach().to(device, torch.float64)

    def tensors(self) -> dict[str, Tensor]:
        """The change by its name."""
        return {"delta": self.change}


@dataclass(frozen=True)
class BaseTensor:
    """What a changed tensor was when the edit was made."""

    sha256: str
    """`tensor_digest` of it."""
    dtype: str
    shape: tuple[int, ...]
    module: str
    """Class of the module that holds it: Linear, Conv1D (stored `[in out]`), Embedding, …"""


class Part(ABC):
    """One part of an edit."""

    kind: ClassVar[str]
    form: ClassVar[str] = ""
    """Which of the classes of its kind it is, where there are several; stands in `settings`, too."""
    permanent: ClassVar[bool] = False
    """Whether it can be folded into the weights."""
    everywhere: bool = False
    """Whether it was made to act on negative and empty prompts too; see `Edit.everywhere`."""
    portability: Portability

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What goes into its safetensors file."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """The rest of it, plain values."""

    @classmethod
    @abstractmethod
    def build(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> "Part":
        """Inverse of `tensors` and `settings`; `folder` is its own."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """One line's worth of facts for a person."""

    def bound(self, host: "Host") -> "Part":
        """Itself, with what it must find on a host written down; raises where it does not fit."""
        for point, _ in self.rewrites():
            host.resolve(point)
        return self

    def rewrites(self) -> list[tuple[str, Rewrite]]:
        """(hook point, function of `[b t d]`) for parts that act on activations."""
        return []

    def rewrites_on(self, host: "Host") -> list[tuple[str, Rewrite]]:
        """`rewrites` for a part that asks the host about the call under way."""
        return self.rewrites()

    def save(self, folder: Path) -> None:
        """Writes its tensors into a new folder."""
        save_tensors(folder / "tensors.safetensors", self.tensors())

    def check_finite(self) -> None:
        """Raises on NaN or infinity."""
        for name, t in self.tensors().items():
            if t.is_floating_point() and not torch.isfinite(t).all():
                raise NumericsError(f"{self.kind} part: {name} has NaN or infinity in it")


@dataclass(frozen=True, eq=False)
class WeightsPart(Part):
    """Additive changes of named parameters (names and layout of `host.model.named_parameters()`).

    Raises:
        MatchedNothing: No changes.
        NumericsError: A change that is not finite.
    """

    deltas: Mapping[str, LowRank | Dense]
    base: Mapping[str, BaseTensor] = field(default_factory=dict)
    """Name -> what it was made for; filled in by `bound`."""
    portability: Portability = "exact"
    """`exact`: only for those base tensors; `same-shapes`: for any of the same shapes."""
    kind: ClassVar[str] = "weights"
    permanent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.deltas:
            raise MatchedNothing("weights part: no tensor is changed; the eraser found nothing to edit")
        if self.portability not in ("exact", "same-shapes"):
            raise UnknownName("portability", self.portability, ("exact", "same-shapes"))
        self.check_finite()

    def tensors(self) -> dict[str, Tensor]:
        """`<parameter>.B`, `.A` or `.delta`."""
        return {f"{n}.{k}": t for n, d in self.deltas.items() for k, t in d.tensors().items()}

    def settings(self) -> dict[str, Any]:
        """Shape and form of each change."""
        return {"deltas": {n: {"form": type(d).__name__, "shape": list(d.shape)} for n, d in self.deltas.items()}}

    @classmethod
    def build(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> "WeightsPart":
        """From its file; shapes and forms must be those of the manifest."""
        deltas: dict[str, LowRank | Dense] = {}
        for name, entry in settings["deltas"].items():
            needed = {"LowRank": ("B", "A"), "Dense": ("delta",)}.get(entry["form"])
            if needed is None or any(f"{name}.{k}" not in tensors for k in needed):
                raise ArtefactError(f"{folder}: the change of {name!r} is incomplete or of an unknown form {entry['form']!r}")
            found = [tensors[f"{name}.{k}"] for k in needed]
            deltas[name] = LowRank(*found) if entry["form"] == "LowRank" else Dense(*found)
            if list(deltas[name].shape) != list(entry["shape"]):
                raise ArtefactError(f"{folder}: {name} is {list(deltas[name].shape)}, the manifest says {entry['shape']}")
        return cls(deltas)

    def describe(self) -> dict[str, Any]:
        """Tensors, their ranks, the norm of the change."""
        ranks = {n: d.rank if isinstance(d, LowRank) else None for n, d in self.deltas.items()}
        norm = sum(float(d.delta().square().sum()) for d in self.deltas.values()) ** 0.5
        return {"kind": self.kind, "portability": self.portability, "tensors": ranks, "norm": norm}

    def bound(self, host: "Host") -> "WeightsPart":
        """Itself with `base` filled from the host (the base below other edits, where there are any).

        Raises:
            UnknownName: The host has no such parameter.
            InputError: Another shape.
        """
        from .ledger import overlay_of

        overlay = overlay_of(host)
        owners = {f"{path}.{n}" if path else n: m for path, m in host.model.named_modules() for n, _ in m.named_parameters(recurse=False)}
        base = {}
        for name in self.deltas:
            tensor = overlay.base_tensor(host.model, name)
            check_shape(name, self.deltas[name].shape, tensor)
            dtype = str(tensor.dtype).removeprefix("torch.")
            base[name] = BaseTensor(tensor_digest(name, tensor), dtype, tuple(tensor.shape), type(owners.get(name, host.model)).__name__)
        return replace(self, base=base)


@dataclass(frozen=True, eq=False)
class ProjectionPart(Part):
    """An affine eraser at a hook point: x' = x − L R (x − b), in float32 or better.

    LEACE: Perfect linear concept erasure in closed form (Belrose et al., 2023), Theorem 4.3, and every projection I − P
    with P = L R.
    """

    hook_point: str
    left: Float[Tensor, "d r"]
    right: Float[Tensor, "r d"]
    bias: Float[Tensor, "d"]
    portability: Portability = "same-shapes"
    reach: float | None = None
    """Vectors longer than this are left as they are: attention sinks, which hold nothing of a text, and which a model cannot do without.
    None: all are projected.
    """
    kind: ClassVar[str] = "projection"

    def __post_init__(self) -> None:
        d, r = self.left.shape
        if tuple(self.right.shape) != (r, d) or tuple(self.bias.shape) != (d,) or not r:
            raise InputError("projection part: left [d r], right [r d] and bias [d] with r ≥ 1 expected")
        if self.reach is not None and not self.reach > 0:
            raise InputError(f"projection part: reach must be above 0, {self.reach} found")
        self.check_finite()

    def tensors(self) -> dict[str, Tensor]:
        """left, right, bias."""
        return {"left": self.left, "right": self.right, "bias": self.bias}

    def settings(self) -> dict[str, Any]:
        """Its place, and its reach where there is one."""
        return {"hook_point": self.hook_point} | ({} if self.reach is None else {"reach": self.reach})

    @classmethod
    def build(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> "ProjectionPart":
        """From its file."""
        return cls(settings["hook_point"], tensors["left"], tensors["right"], tensors["bias"], reach=settings.get("reach"))

    def describe(self) -> dict[str, Any]:
        """Place and rank."""
        return {"kind": self.kind, "hook_point": self.hook_point, "rank": self.left.shape[1]}

    def rewrites(self) -> list[tuple[str, Rewrite]]:
        """The projection at its hook point."""
        return [(self.hook_point, self.project)]

    def project(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """The projection of `x`, in the dtype of `x`."""
        wide = torch.promote_types(x.dtype, torch.float32)
        left, right, bias = (t.to(x.device, wide) for t in (self.left, self.right, self.bias))
        out = (x.to(wide) - (x.to(wide) - bias) @ right.T @ left.T).to(x.dtype)
        return out if self.reach is None else torch.where(x.to(wide).norm(dim=-1, keepdim=True) > self.reach, x, out)


def check_shape(name: str, shape: tuple[int, ...], tensor: Tensor) -> None:
    """Raises unless the change of `name` has the tensor's shape."""
    if tuple(tensor.shape) != tuple(shape):
        raise InputError(f"edit changes {name} of shape {list(shape)}, the model's is {list(tensor.shape)}: made for another model")


def parameter(model: nn.Module, name: str) -> nn.Parameter:
    """The parameter `name`, tied names included; under a LoRA of peft's that of the layer it wraps.

    Raises:
        UnknownName: Names the nearest.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    module, _, leaf = name.rpartition(".")
    if name not in named and (wrapped := f"{module}.base_layer.{leaf}") in named:
        return named[wrapped]
    if name not in named:
        raise UnknownName("parameter", name, named, "The edit was made for another model")
    return named[name]
