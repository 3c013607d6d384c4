"""Features of an SAE on a denoiser, scaled by what the denoising step under way says."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..base.errors import ArtefactError, InputError, MatchedNothing, NumericsError, UnknownName
from .layer import check_features, check_width, feature_acts, reconstruction, sae_digest, sae_hook_point
from .parts import Part, Portability, Rewrite

if TYPE_CHECKING:
    from ..sae import SAE
    from .hosts import Host

COMPAT = ("none", "official")


@dataclass(frozen=True)
class StepFeatures:
    """What is done at one denoising step: feature `features[e]` times `factors[e]` where it is above `thresholds[e]`.

    Kept in order of the features; an entry that is there twice counts once. A feature may have several entries (of several concepts).
    """

    time: float
    """On the scheduler's scale, as the denoiser was told when the figures were collected."""
    features: tuple[int, ...]
    factors: tuple[float, ...]
    thresholds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.features) == len(self.factors) == len(self.thresholds):
            raise InputError(
                f"step {self.time:g}: {len(self.features)} features, {len(self.factors)} factors, {len(self.thresholds)} thresholds; one each"
            )
        rows = sorted(set(zip(self.features, self.factors, self.thresholds, strict=True)))
        for i, name in enumerate(("features", "factors", "thresholds")):
            object.__setattr__(self, name, tuple(row[i] for row in rows))

    def joined(self, others: Iterable["StepFeatures"]) -> "StepFeatures":
        """The entries of all, at this step's time: in whatever order they come, the same."""
        every = [self, *others]
        lists = ([getattr(s, n) for s in every] for n in ("features", "factors", "thresholds"))
        return StepFeatures(self.time, *(tuple(chain.from_iterable(x)) for x in lists))


@dataclass(frozen=True, eq=False)
class StepwisePart(Part):
    """At the step nearest to the one under way: x' = x + Σ_i (c_i − 1) f_i d_i over its features that are above their thresholds.

    The step is the time that the denoiser is told in the call itself, one or one a row. c_i is the smallest factor of the feature's
    entries whose thresholds it is above. The SAE's error is kept, and a vector in which no feature is above its threshold passes
    unchanged, to the bit. SAeUron (Cywiński & Deja, ICML 2025).

    `compat="official"` does as the authors' released code: it adds `reconstruction − x` to the edited reconstruction, in the place of
    `x − reconstruction`, so that every vector is changed; and it takes the n-th call for the n-th step, whatever the denoiser is told,
    and never begins anew, so that a second drawing runs off the list.

    Raises:
        MatchedNothing: No features at any step.
        InputError: Times that are not in falling order, a feature that the SAE lacks, a transcoder, or an empty range.
        NumericsError: A factor or threshold that is not finite.
    """

    sae: "SAE"
    steps: tuple[StepFeatures, ...]
    """Noisiest first."""
    between: tuple[float, float] | None = None
    """Only in calls whose time lies in this range, ends included; None: in all."""
    everywhere: bool = False
    """Whether the rows of negative and empty prompts are edited too."""
    compat: Literal["none", "official"] = "none"
    fingerprint: str = ""
    """Digest of the SAE's tensors; computed where it is not given."""
    portability: Portability = "same-shapes"
    calls: list[int] = field(default_factory=lambda: [0], init=False, repr=False)
    """Calls so far (`official`)."""
    kind: ClassVar[str] = "hook"
    form: ClassVar[str] = "stepwise"

    def __post_init__(self) -> None:
        if self.compat not in COMPAT:
            raise UnknownName("compat of a stepwise part", self.compat, COMPAT)
        if not self.features:
            raise MatchedNothing("stepwise part: no features at any step")
        times = [s.time for s in self.steps]
        if any(a <= b for a, b in pairwise(times)):
            raise InputError(f"stepwise part: times must fall from step to step; found {times}")
        if self.between is not None and not self.between[0] <= self.between[1]:
            raise InputError(f"between: the lower time first; found {list(self.between)}")
        check_features(self.sae, self.features)
        self.check_finite()
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", sae_digest(self.sae))

    @cached_property
    def features(self) -> tuple[int, ...]:
        """Of all steps."""
        return tuple(sorted({f for s in self.steps for f in s.features}))

    @cached_property
    def hook_point(self) -> str:
        """Where the SAE was trained."""
        return sae_hook_point(self.sae)

    def tensors(self) -> dict[str, Tensor]:
        """Times `[s]`, and one row an entry: step, feature, factor, threshold; the SAE is saved beside them."""
        lists = {n: [v for s in self.steps for v in getattr(s, f"{n}s")] for n in ("factor", "threshold")}
        return {
            "time": torch.tensor([s.time for s in self.steps], dtype=torch.float64),
            "step": torch.tensor([i for i, s in enumerate(self.steps) for _ in s.features], dtype=torch.int64),
            "feature": torch.tensor([f for s in self.steps for f in s.features], dtype=torch.int64),
            **{n: torch.tensor(values, dtype=torch.float64) for n, values in lists.items()},
        }

    def written(self, ids: Sequence[int]) -> Float[Tensor, "f d"]:
        """What one unit of each of these features writes: decoder rows."""
        return self.sae.W_dec[list(ids)]

    def settings(self) -> dict[str, Any]:
        """Place, range and which SAE."""
        own = {"between": None if self.between is None else list(self.between), "everywhere": self.everywhere, "compat": self.compat}
        return {"form": self.form, "hook_point": self.hook_point, "sae": self.fingerprint, **own}

    @classmethod
    def build(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> "StepwisePart":
        """From its folder."""
        from ..sae import SAE

        rows = [tensors[n].tolist() for n in ("step", "feature", "factor", "threshold")]
        times = tensors["time"].tolist()
        if len({len(r) for r in rows}) > 1 or not all(0 <= i < len(times) for i in rows[0]):
            raise ArtefactError(f"{folder}: the entries of a stepwise part do not fit together")
        found = [[row for row in zip(*rows, strict=True) if row[0] == i] for i in range(len(times))]
        steps = tuple(StepFeatures(t, *(tuple(r[j] for r in own) for j in (1, 2, 3))) for t, own in zip(times, found, strict=True))
        between = None if settings["between"] is None else (float(settings["between"][0]), float(settings["between"][1]))
        return cls(SAE.load(folder / "sae"), steps, between, settings["everywhere"], settings["compat"], settings["sae"])

    def save(self, folder: Path) -> None:
        """Its tensors and its SAE."""
        super().save(folder)
        self.sae.save(folder / "sae")

    def describe(self) -> dict[str, Any]:
        """Place, steps and features."""
        own = {"between": list(self.between)} if self.between else {}
        rows = "all" if self.everywhere else "conditional"
        head = {"kind": self.kind, "form": self.form, "hook_point": self.hook_point, "steps": len(self.steps)}
        return {**head, "features": list(self.features), "rows": rows, **own, "compat": self.compat}

    def check_finite(self) -> None:
        """Raises on NaN or infinity."""
        for name in ("time", "factor", "threshold"):
            if not torch.isfinite(self.tensors()[name]).all():
                raise NumericsError(f"stepwise part: {name} has NaN or infinity in it")

    def bound(self, host: "Host") -> "StepwisePart":
        """Itself; raises where hook point or width do not fit, or the host does not denoise."""
        if not hasattr(host, "timestep"):
            raise InputError(f"stepwise part: {host.name} has no denoising steps; it is for image pipelines")
        check_width(self.sae, host)
        return self

    def rewrites(self) -> list[tuple[str, Rewrite]]:
        """Its hook point; a step is known on a host alone."""
        return [(self.hook_point, partial(self.rewrite, times=None))]

    def rewrites_on(self, host: "Host") -> list[tuple[str, Rewrite]]:
        """The edit of the step that the host's denoiser computes."""
        return [(self.hook_point, lambda x: self.rewrite(x, getattr(host, "timestep", None)))]

    def places(self, times: Sequence[float]) -> list[int]:
        """The nearest step of each time (of two as near the noisier), or -1 outside `between`."""
        low, high = self.between or (-torch.inf, torch.inf)
        near = {t: min(range(len(self.steps)), key=lambda i, t=t: abs(self.steps[i].time - t)) for t in dict.fromkeys(times)}
        return [near[t] if low <= t <= high else -1 for t in times]

    def rewrite(self, x: Float[Tensor, "b n d"], times: Float[Tensor, " s"] | None) -> Float[Tensor, "b n d"]:
        """`x` edited for the times of its rows, one for all or one each, in the dtype of `x`.

        Raises:
            InputError: No denoising step is under way, or times that are not one a row; `official`: more calls than steps.
        """
        if self.compat == "official":
            return self._at(x, self.steps[self._next_call()])
        if times is None or len(times) not in (1, len(x)):
            found = "no step is under way" if times is None else f"{len(times)} times for {len(x)} rows"
            raise InputError(f"stepwise part at {self.hook_point}: {found}; it acts inside a denoiser, in a call of the host's")
        places, out = self.places(times.tolist()), x
        for place in dict.fromkeys(p for p in places if p >= 0):
            mine = torch.tensor([p == place for p in places], device=x.device).reshape(-1, *[1] * (x.ndim - 1))
            out = torch.where(mine, self._at(x, self.steps[place]), out)
        return out

    def _next_call(self) -> int:
        self.calls[0] += 1
        if self.calls[0] > len(self.steps):
            raise InputError(
                f"compat=official: call {self.calls[0]} of a list of {len(self.steps)} steps; as in the authors' code the count never "
                "begins anew, so load the edit again for each drawing, and draw with as many steps as it was fitted with"
            )
        return self.calls[0] - 1

    def _at(self, x: Tensor, step: StepFeatures) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        change, fires = self._change(x, step) if step.features else (torch.zeros_like(wide), torch.zeros_like(x[..., 0], dtype=torch.bool))
        if self.compat == "official":
            made = reconstruction(self.sae, x)
            return (made + change + (made - wide)).to(x.dtype)
        return torch.where(fires[..., None], (wide + change).to(x.dtype), x)

    def _change(self, x: Float[Tensor, "*n d"], step: StepFeatures) -> tuple[Float[Tensor, "*n d"], Bool[Tensor, "*n"]]:
        """Σ_i (c_i − 1) f_i d_i in float32 or better, and where any feature is above its threshold."""
        flat, like = x.reshape(-1, x.shape[-1]), {"device": x.device, "dtype": torch.promote_types(x.dtype, torch.float32)}
        ids = tuple(dict.fromkeys(step.features))
        column = torch.tensor([ids.index(f) for f in step.features], device=x.device)
        acts = feature_acts(self.sae, flat, ids).to(**like)
        above = acts[:, column] > torch.tensor(step.thresholds, **like)
        factors = torch.where(above, torch.tensor(step.factors, **like), torch.inf)
        least = torch.full_like(acts, torch.inf).scatter_reduce(1, column.expand_as(factors), factors, "amin")
        change = (torch.where(least.isinf(), 1, least) - 1) * acts @ self.written(ids).to(**like)
        return change.reshape(x.shape), above.any(-1).reshape(x.shape[:-1])
