"""The deactivation layer: chosen features of an SAE are clamped at its hook point, the rest stays as it is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..base.errors import HookPointNotFound, InputError, MatchedNothing, UnknownName
from ..base.files import digest
from .parts import Part, Portability, Rewrite, tensor_digest

if TYPE_CHECKING:
    from ..sae import SAE
    from .hosts import Host


@dataclass(frozen=True, eq=False)
class DeactivationPart(Part):
    """Where a chosen feature fires: x' = x + Σ_f (a'_f − a_f) d_f, a'_f = value (`clamp`) or value · a_f (`scale`).

    The SAE's reconstruction error is kept, and a vector in which none of the features fires passes unchanged, to the bit.
    Without `keep_error`, x' = decode(a') at every position, but the first where the SAE was not trained on it. Interpret-then-deactivate (arXiv:2503.09446) is `scale` without the
    error, its first position reconstructed but not edited.

    Raises:
        MatchedNothing: No features.
        InputError: A feature that the SAE lacks, one named twice, or a transcoder.
    """

    sae: "SAE"
    features: tuple[int, ...]
    value: float = 0.0
    mode: Literal["clamp", "scale"] = "clamp"
    fingerprint: str = ""
    """Digest of the SAE's tensors; computed where it is not given."""
    keep_error: bool = True
    """Whether what the SAE does not reconstruct stays."""
    spare_first: bool = False
    """Whether the features of the first position (BOS, the same in every prompt) are left alone."""
    portability: Portability = "same-shapes"
    kind: ClassVar[str] = "hook"

    def __post_init__(self) -> None:
        if not self.features:
            raise MatchedNothing("deactivation layer: no features given")
        if self.mode not in ("clamp", "scale"):
            raise UnknownName("mode of a deactivation layer", self.mode, ("clamp", "scale"))
        check_features(self.sae, self.features)
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", sae_digest(self.sae))

    @cached_property
    def hook_point(self) -> str:
        """Where the SAE was trained."""
        return sae_hook_point(self.sae)

    def tensors(self) -> dict[str, Tensor]:
        """The features' ids; the SAE is saved beside them."""
        return {"features": torch.tensor(self.features, dtype=torch.int64)}

    def settings(self) -> dict[str, Any]:
        """Value, mode, place and which SAE."""
        options = {k: True for k, on in (("drop_error", not self.keep_error), ("spare_first", self.spare_first)) if on}
        return {"hook_point": self.hook_point, "value": self.value, "mode": self.mode, "sae": self.fingerprint, **options}

    @classmethod
    def build(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> "DeactivationPart":
        """From its folder."""
        from ..sae import SAE

        ids = tuple(tensors["features"].tolist())
        form = {"keep_error": not settings.get("drop_error", False), "spare_first": settings.get("spare_first", False)}
        return cls(SAE.load(folder / "sae"), ids, settings["value"], settings["mode"], settings["sae"], **form)

    def save(self, folder: Path) -> None:
        """Its tensors and its SAE."""
        super().save(folder)
        self.sae.save(folder / "sae")

    def describe(self) -> dict[str, Any]:
        """Place and features."""
        return {
            "kind": self.kind,
            "hook_point": self.hook_point,
            "features": list(self.features),
            self.mode: self.value,
        }

    def bound(self, host: "Host") -> "DeactivationPart":
        """Itself; raises where hook point or width do not fit."""
        check_width(self.sae, host)
        return self

    def rewrites(self) -> list[tuple[str, Rewrite]]:
        """The layer at its hook point."""
        return [(self.hook_point, self.deactivate)]

    def deactivate(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """`x` with the features clamped, in the dtype of `x`."""
        change, fires = self.change(x)
        if not self.keep_error:
            whole = reconstruction(self.sae, x)
            if x.ndim >= 3 and self.sae.card.get("token_policy", {}).get("first_token") == "dropped":
                whole = torch.where((torch.arange(x.shape[-2], device=x.device) == 0)[:, None], x.to(whole.dtype), whole)
            return (whole + change).to(x.dtype)
        return torch.where(fires[..., None], (x.to(change.dtype) + change).to(x.dtype), x)

    def change(self, x: Float[Tensor, "*n d"]) -> tuple[Float[Tensor, "*n d"], Bool[Tensor, "*n"]]:
        """Σ_f (a'_f − a_f) d_f in float32 or better, and where any of the features fires."""
        acts = self.acts(x)
        return self.moved(acts), (acts != 0).any(-1)

    def acts(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n f"]:
        """Activations of its features, in float32 or better; 0 at the first position where that is spared."""
        wide = torch.promote_types(x.dtype, torch.float32)
        acts = feature_acts(self.sae, x.reshape(-1, x.shape[-1]), self.features).to(x.device, wide).reshape(*x.shape[:-1], -1)
        if not self.spare_first:
            return acts
        if x.ndim < 3:
            raise InputError(f"deactivation layer at {self.hook_point}: spare_first needs [batch position width], {list(x.shape)} found")
        return torch.where((torch.arange(x.shape[-2], device=x.device) == 0)[:, None], 0, acts)

    def moved(self, acts: Float[Tensor, "*n f"], some: Sequence[int] | None = None) -> Float[Tensor, "*n d"]:
        """Σ_f (a'_f − a_f) d_f of activations of its features, over `some` of them by their places (None: all)."""
        places = list(range(len(self.features)) if some is None else some)
        old = acts[..., places]
        new = old * self.value if self.mode == "scale" else torch.full_like(old, self.value)
        rows = self.directions()[places].to(acts)
        return torch.where(old != 0, new - old, 0) @ rows

    def directions(self) -> Float[Tensor, "f d"]:
        """What each feature writes: its decoder row."""
        return self.sae.W_dec[list(self.features)]

    def reconstruction(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        """What the SAE makes of `x`, in float32 or better."""
        return reconstruction(self.sae, x)


def check_features(sae: "SAE", features: Sequence[int]) -> None:
    """Raises unless they are different features of an SAE that reconstructs what it reads."""
    d_sae, out = sae.cfg.d_sae, sae.card.get("hook_point_out")
    if len(set(features)) != len(features) or not all(0 <= f < d_sae for f in features):
        raise InputError(f"deactivation layer: features must be different and lie in [0, {d_sae}); found {list(features)}")
    if out and out != sae.card.get("hook_point"):
        raise InputError("deactivation layer: a transcoder does not reconstruct what it reads; give an SAE")


def check_width(sae: "SAE", host: "Host") -> None:
    """Raises where the SAE's hook point is not there, or of another width."""
    point = sae_hook_point(sae)
    d = host.resolve(point).d
    if d != sae.cfg.d_in:
        raise InputError(f"deactivation layer at {point}: the SAE's width is {sae.cfg.d_in}, the host's {d}")


def reconstruction(sae: "SAE", x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """What the SAE makes of `x`, in float32 or better."""
    weight = sae.W_dec
    out = sae(x.reshape(-1, x.shape[-1]).to(weight.device, weight.dtype))
    return out.to(x.device, torch.promote_types(x.dtype, torch.float32)).reshape(x.shape)


def feature_acts(sae: "SAE", x: Float[Tensor, "n d"], features: tuple[int, ...]) -> Float[Tensor, "n f"]:
    """Activations of some features, `x` brought to the SAE's device and dtype."""
    weight = sae.W_dec
    return sae.encode_features(x.to(weight.device, weight.dtype), features)


def width_at(host: "Host", sae: "SAE", point: str) -> int:
    """The width of the place that an SAE reads.

    Raises:
        HookPointNotFound: There is none; says which model the SAE is of.
    """
    try:
        return host.resolve(point).d
    except HookPointNotFound:
        of = sae.card.get("model", "an unnamed model")
        hint = f"Is the SAE one of another model than {host.name}?"
        raise HookPointNotFound(f"hook point of the SAE of {of} (--sae)", point, host.hook_points(), hint) from None


def sae_hook_point(sae: "SAE") -> str:
    """The hook point in its card.

    Raises:
        InputError: The card names none.
    """
    point = sae.card.get("hook_point")
    if not isinstance(point, str) or not point:
        raise InputError("this SAE does not say where it was trained: set sae.card['hook_point']")
    return point


def sae_digest(sae: "SAE") -> str:
    """sha256 over the SAE's tensors."""
    return digest(sorted(tensor_digest(n, t) for n, t in sae.state_dict().items()))
