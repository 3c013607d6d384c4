"""The gate: a zero-shot score of a prompt from SAE features, and a threshold. Below it an edit is not there."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..base.errors import ArtefactError, InputError, MatchedNothing, UnknownName
from ..base.files import reading
from .any_gate import MANIFEST, AnyGate, Rows, manifest_of, read_alone
from .calibration import DEAD_BAND, Calibration, calibrate
from .layer import feature_acts, sae_digest, sae_hook_point

if TYPE_CHECKING:
    from ..sae import SAE
    from .hosts import Host


@dataclass(frozen=True, eq=False)
class GateSource:
    """Features of one SAE that a gate listens to."""

    sae: "SAE"
    features: tuple[int, ...]
    weights: tuple[float, ...] = ()
    """One a feature, 1 each where not given; negative for features that speak against the concept."""
    fingerprint: str = ""
    """Digest of the SAE; computed where it is not given."""

    def __post_init__(self) -> None:
        if not self.features:
            raise MatchedNothing("gate: no features given; `efface features` finds a concept's")
        if not self.weights:
            object.__setattr__(self, "weights", (1.0,) * len(self.features))
        if len(self.weights) != len(self.features) or not any(self.weights):
            raise InputError(f"gate: one weight a feature, not all 0; found {len(self.weights)} for {len(self.features)} features")
        if not all(0 <= f < self.sae.cfg.d_sae for f in self.features):
            raise InputError(f"gate: features must lie in [0, {self.sae.cfg.d_sae}); found {list(self.features)}")
        if not self.fingerprint:
            object.__setattr__(self, "fingerprint", sae_digest(self.sae))

    @cached_property
    def hook_point(self) -> str:
        """Where its SAE was trained."""
        return sae_hook_point(self.sae)


@dataclass(frozen=True, eq=False)
class Gate(AnyGate):
    """Score of a prompt: weighted mean over features of their standardised activation, reduced over its tokens.

    score = Σ_f w_f (r_f − centre_f) / scale_f / Σ_f |w_f|, r_f = max (or mean) of feature f over the tokens that are
    neither padding nor special. The prompt runs alone, at its own length, on the host without any edit; so its score
    depends neither on a batch nor on edits.
    """

    sources: Sequence[GateSource]
    reduce: Literal["max", "mean"] = "max"
    centre: tuple[float, ...] = ()
    """Mean of each r_f on the pool; 0 before calibration."""
    scale: tuple[float, ...] = ()
    """Standard deviation of each r_f; 1 before calibration."""
    calibration: Calibration | None = None
    per: Literal["prompt", "token"] = "prompt"
    """What decides while a text is generated: the prompt alone, or each token that is written too (`watching.py`)."""

    def __post_init__(self) -> None:
        n = sum(len(s.features) for s in self.sources)
        if not n:
            raise MatchedNothing("gate: no sources given")
        if self.reduce not in ("max", "mean"):
            raise UnknownName("reduce of a gate", self.reduce, ("max", "mean"))
        if self.per not in ("prompt", "token"):
            raise UnknownName("per of a gate", self.per, ("prompt", "token"))
        if self.per == "token" and self.reduce != "max":
            raise InputError("gate: per token needs reduce='max'; a mean falls again as the text goes on")
        object.__setattr__(self, "sources", tuple(self.sources))
        object.__setattr__(self, "centre", tuple(self.centre) or (0.0,) * n)
        object.__setattr__(self, "scale", tuple(self.scale) or (1.0,) * n)
        points = [s.hook_point for s in self.sources]
        if len(set(points)) != len(points):
            raise InputError(f"gate: one source a hook point; found {', '.join(points)}")
        if not len(self.centre) == len(self.scale) == n or min(self.scale) <= 0:
            raise InputError(f"gate: {n} centres and {n} positive scales expected")

    def features_of(self, host: "Host", rows: Rows, batch: int = 1) -> Float[Tensor, "n f"]:
        """r_f of each prompt, float64. With `batch` > 1 prompts of equal length share a pass (for calibration)."""
        like = torch.zeros(len(rows), len(self.centre), dtype=torch.float64)
        return read_alone(host, rows, batch, lambda some: self._read(host, some), like)

    def score_rows(self, host: "Host", rows: Rows, batch: int = 1) -> Float[Tensor, " n"]:
        """Scores of prompts given as token ids."""
        return self.standardised(self.features_of(host, rows, batch))

    def calibrated(
        self,
        host: "Host",
        target: Sequence[str],
        pool: Sequence[str],
        neighbours: Sequence[str] = (),
        *,
        fpr: float = 0.01,
        dead_band: float = DEAD_BAND,
        batch: int = 32,
        standardise: bool = True,
    ) -> "Gate":
        """The gate with standardisation and threshold from `validation` texts; see `calibration.calibrate`.

        With `standardise` off it keeps the centre and scale that it has, as fitted weights need.

        Raises:
            MatchedNothing: No pool, or features that never fire on any of the texts.
        """
        if not pool:
            raise MatchedNothing("gate: the pool is empty; a threshold at a false-positive rate needs general texts (≥ 3,000)")
        reader = self.reader(host)
        raw = {n: self.features_of(host, reader.token_ids(t), batch) for n, t in (("t", target), ("p", pool), ("n", neighbours)) if t}
        both = torch.cat([raw["p"], raw["t"]]) if "t" in raw else raw["p"]
        scale = both.std(0, unbiased=False)
        if not scale.any():
            raise MatchedNothing("gate: none of the features fires on any target or pool text; choose others (`efface features`)")
        scale = torch.where(scale > 0, scale, scale[scale > 0].mean())
        own = {"centre": tuple(raw["p"].mean(0).tolist()), "scale": tuple(scale.tolist())} if standardise else {}
        gate = dataclasses.replace(self, **own, calibration=None)
        scores = {n: gate.standardised(r).numpy() for n, r in raw.items()}
        found = calibrate(scores.get("t", ()), scores["p"], scores.get("n", ()), fpr=fpr, dead_band=dead_band)
        return dataclasses.replace(gate, calibration=found)

    @property
    def bound(self) -> float:
        """The least score that opens it: the threshold less the dead band."""
        c = self.require_threshold()
        return c.threshold - c.dead_band

    def hook_points(self) -> list[str]:
        """Of its sources."""
        return [s.hook_point for s in self.sources]

    def summary(self) -> str:
        """One paragraph on the threshold and its rates."""
        n = len(self.centre)
        if self.calibration is None:
            return f"{n} features, not calibrated."
        return f"{n} features, {self.reduce} over tokens, decides per {self.per}; {self.rates()}"

    def _put(self, work: Path) -> None:
        for i, source in enumerate(self.sources):
            source.sae.save(work / f"sae-{i}")

    @classmethod
    def load(cls, folder: str | Path) -> "Gate":
        """Reads a gate folder.

        Raises:
            ArtefactError: Missing, altered, or of another format.
        """
        from ..sae import SAE

        folder = Path(folder)
        values = manifest_of(folder)
        with reading(folder / MANIFEST):
            sources = [
                GateSource(SAE.load(folder / f"sae-{i}"), tuple(s["features"]), tuple(s["weights"]), s["sae"])
                for i, s in enumerate(values["sources"])
            ]
            calibration = Calibration.from_dict(values["calibration"]) if values["calibration"] else None
            per = values.get("per", "prompt")
            gate = cls(sources, values["reduce"], tuple(values["centre"]), tuple(values["scale"]), calibration, per)
            if gate.digest != values["digest"]:
                raise ArtefactError(f"{folder / 'gate.json'} was altered: its digest is another")
        return gate

    def _settings(self) -> dict[str, Any]:
        rows = [
            {"hook_point": s.hook_point, "features": list(s.features), "weights": list(s.weights), "sae": s.fingerprint}
            for s in self.sources
        ]
        per = {"per": self.per} if self.per != "prompt" else {}
        return {"sources": rows, "reduce": self.reduce, "centre": list(self.centre), "scale": list(self.scale), **per}

    def standardised(self, raw: Float[Tensor, "n f"]) -> Float[Tensor, " n"]:
        """Scores from the r_f of each prompt."""
        weights, centre, scale = (
            torch.tensor(v, dtype=torch.float64) for v in ([w for s in self.sources for w in s.weights], self.centre, self.scale)
        )
        return ((raw - centre) / scale) @ weights / weights.abs().sum()

    def _read(self, host: "Host", rows: Rows) -> Float[Tensor, "b f"]:
        reader = self.reader(host)
        ids, mask = reader.pad(rows)
        seen = reader.activations(ids, mask, [s.hook_point for s in self.sources])
        keep = reader.keep_mask(ids, mask)
        columns = []
        for source in self.sources:
            x = seen[source.hook_point]
            acts = feature_acts(source.sae, x.reshape(-1, x.shape[-1]), source.features).double().cpu()
            acts = acts.reshape(*x.shape[:2], -1)
            kept = keep.cpu()[..., None]
            if self.reduce == "mean":
                columns.append((acts * kept).sum(1) / kept.sum(1).clamp(min=1))
            else:
                columns.append(acts.masked_fill(~kept, -torch.inf).amax(1).masked_fill(~kept.any(1), 0.0))
        return torch.cat(columns, 1)


__all__ = ["Calibration", "Gate", "GateSource", "calibrate"]
