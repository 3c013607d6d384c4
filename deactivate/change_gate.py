"""Gates that ask how far a deactivation layer would move a prompt: Interpret-then-Deactivate's zero-shot classifier, and ours."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..base.errors import ArtefactError, MatchedNothing, UnknownName
from ..base.files import load_tensors, reading
from .any_gate import MANIFEST, AnyGate, Rows, manifest_of, read_alone
from .calibration import DEAD_BAND, Calibration, Rate, calibrate
from .layer import DeactivationPart

if TYPE_CHECKING:
    from .hosts import Host

Measure = Literal["energy", "reconstruction"]
PUBLISHED_SHARE = 0.99
"""The published threshold over the smallest score of a target prompt."""


@dataclass(frozen=True, eq=False)
class ChangeGate(AnyGate):
    """Score of a prompt: how far the layer moves its activations, the prompt alone at the length at which it is drawn.

    `energy`: max over its own tokens of |e_t|^2 / d, e_t the layer's change without the SAE's error: 0 where no feature fires,
    and the same at any padding. `reconstruction`: mean over all positions and channels of (x' - x)^2, x' the decoded, edited
    activations: the published score (Sparse Autoencoder as a Zero-Shot Classifier for Concept Erasing, arXiv:2503.09446), which
    the SAE's error raises.
    """

    layer: DeactivationPart
    measure: Measure = "energy"
    calibration: Calibration | None = None
    per: Literal["prompt", "token"] = field(default="prompt", init=False)
    kind: ClassVar[str] = "change"

    def __post_init__(self) -> None:
        if self.measure not in ("energy", "reconstruction"):
            raise UnknownName("measure of a gate", self.measure, ("energy", "reconstruction"))

    def hook_points(self) -> list[str]:
        """Of its layer."""
        return [self.layer.hook_point]

    def score_rows(self, host: "Host", rows: Rows, batch: int = 1) -> Float[Tensor, " n"]:
        """Scores of prompts given as token ids, float64. With `batch` > 1 prompts of equal length share a pass."""
        return read_alone(host, rows, batch, lambda some: self._read(host, some), torch.zeros(len(rows), dtype=torch.float64))

    def _read(self, host: "Host", rows: Rows) -> Float[Tensor, " b"]:
        reader = self.reader(host)
        ids, mask = reader.pad(rows)
        x = reader.activations(ids, mask, self.hook_points())[self.layer.hook_point]
        change, _ = self.layer.change(x)
        if self.measure == "reconstruction":
            return (self.layer.reconstruction(x) + change - x).double().square().mean((1, 2)).cpu()
        energy = change.double().square().mean(-1)
        return energy.masked_fill(~reader.keep_mask(ids, mask).to(energy.device), 0).amax(1).cpu()

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
    ) -> "ChangeGate":
        """The gate with its threshold from `validation` prompts of the pool; see `calibration.calibrate`.

        The dead band is `dead_band` times the largest score of the pool, since scores have the activations' units.

        Raises:
            MatchedNothing: No pool, or no prompt that the layer moves.
        """
        if not pool:
            raise MatchedNothing("gate: the pool is empty; a threshold at a false-positive rate needs general texts (≥ 3,000)")
        scores = {n: self.score(host, t, batch=batch).numpy() for n, t in (("t", target), ("p", pool), ("n", neighbours)) if t}
        largest = max(float(s.max()) for s in scores.values())
        if not largest > 0:
            raise MatchedNothing("gate: the layer moves none of the target or pool prompts; choose other features (`efface features`)")
        band = dead_band * largest
        return dataclasses.replace(
            self, calibration=calibrate(scores.get("t", ()), scores["p"], scores.get("n", ()), fpr=fpr, dead_band=band)
        )

    def as_published(self, host: "Host", target: Sequence[str], *, batch: int = 32) -> "ChangeGate":
        """The gate with the published threshold: 0.99 times the smallest score of the target prompts.

        No other prompts take part: false triggers are not controlled, and none are stated.

        Raises:
            MatchedNothing: No target prompts, or one that the layer does not move.
        """
        if not target:
            raise MatchedNothing("gate: the published threshold needs target prompts")
        scores = self.score(host, target, batch=batch)
        if not float(scores.min()) > 0:
            raise MatchedNothing(f"gate: the layer does not move {target[int(scores.argmin())]!r}; the published threshold would be 0")
        threshold = PUBLISHED_SHARE * float(scores.min())
        note = "Threshold from the target prompts alone, as published: the rate of false triggers is unknown."
        own = Rate(1.0, 0.0, 1.0, len(target))
        return dataclasses.replace(self, calibration=Calibration(threshold, 0.0, 1.0, Rate(1.0, 0.0, 1.0, 0), own, note=note))

    def summary(self) -> str:
        """One paragraph on the threshold and its rates."""
        what = f"{self.measure} of the change of {len(self.layer.features)} features"
        return f"{what}, not calibrated." if self.calibration is None else f"{what}; {self.rates()}"

    def _put(self, work: Path) -> None:
        (work / "layer").mkdir()
        self.layer.save(work / "layer")

    def _manifest(self) -> dict[str, Any]:
        return {"kind": self.kind, **self._settings()}

    @classmethod
    def load(cls, folder: str | Path) -> "ChangeGate":
        """Reads a gate folder.

        Raises:
            ArtefactError: Missing, altered, or of another format.
        """
        folder = Path(folder)
        values = manifest_of(folder)
        with reading(folder / MANIFEST):
            layer = DeactivationPart.build(values["layer"], load_tensors(folder / "layer" / "tensors.safetensors"), folder / "layer")
            calibration = Calibration.from_dict(values["calibration"]) if values["calibration"] else None
            gate = cls(layer, values["measure"], calibration)
            if gate.digest != values["digest"]:
                raise ArtefactError(f"{folder / MANIFEST} was altered: its digest is another")
        return gate

    def _settings(self) -> dict[str, Any]:
        return {"layer": {**self.layer.settings(), "features": list(self.layer.features)}, "measure": self.measure}


__all__ = ["ChangeGate", "Measure"]
