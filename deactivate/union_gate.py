"""One gate for several concepts, made of a gate for each: one of them is enough to open it, and the host is read once for all."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..base.errors import ArtefactError, InputError, MatchedNothing
from ..base.files import reading
from .any_gate import MANIFEST, AnyGate, Rows, manifest_of
from .calibration import Calibration, calibrate
from .gate import Gate, GateSource

if TYPE_CHECKING:
    from .hosts import Host


@dataclass(frozen=True, eq=False)
class UnionGate(AnyGate):
    """Score of a prompt: by how much it passes a concept's bound, for the concept for which that is most. Fires at 0.

    A concept's gate decides in it as it does alone: neither order nor company change anything.
    """

    gates: Mapping[str, Gate]
    """Name of the concept -> its gate, calibrated; each name once."""
    calibration: Calibration | None = None
    per: Literal["prompt", "token"] = field(default="prompt", init=False)
    kind: ClassVar[str] = "union"

    def __post_init__(self) -> None:
        if not self.gates:
            raise MatchedNothing("gate: no concept given")
        object.__setattr__(self, "gates", dict(self.gates))
        for name, gate in self.gates.items():
            if gate.calibration is None or gate.per != "prompt":
                raise InputError(f"gate of {name!r}: a calibrated gate per prompt expected, to be one of several")
        if len({g.reduce for g in self.gates.values()}) > 1:
            raise InputError("gates: all must reduce over tokens alike (max or mean)")

    def rated(
        self, host: "Host", targets: Sequence[str], pool: Sequence[str], neighbours: Sequence[str] = (), *, fpr: float, batch: int = 32
    ) -> "UnionGate":
        """The same gate with the rates of all concepts together on texts of `validation`, without which it opens for nothing; bounds stay.

        Raises:
            MatchedNothing: No pool.
        """
        target, general, near = (self.score(host, t, batch=batch).numpy() if t else () for t in (targets, pool, neighbours))
        found = calibrate(target, general, near, fpr=fpr, at=0.0)
        return dataclasses.replace(self, calibration=dataclasses.replace(found, note="Each concept's own bound is in the gate's manifest."))

    @cached_property
    def joint(self) -> Gate:
        """All features of all concepts, one source an SAE; for reading alone."""
        features: dict[str, dict[int, None]] = {}
        by_digest: dict[str, GateSource] = {}
        for gate in self.gates.values():
            for s in gate.sources:
                by_digest.setdefault(s.fingerprint, s)
                features.setdefault(s.fingerprint, {}).update(dict.fromkeys(s.features))
        sources = [GateSource(s.sae, tuple(features[d]), (), d) for d, s in by_digest.items()]
        return Gate(sources, reduce=next(iter(self.gates.values())).reduce)

    @cached_property
    def _columns(self) -> dict[str, Tensor]:
        at = {(s.fingerprint, f): i for i, (s, f) in enumerate((s, f) for s in self.joint.sources for f in s.features)}
        return {n: torch.tensor([at[s.fingerprint, f] for s in g.sources for f in s.features]) for n, g in self.gates.items()}

    def score_rows(self, host: "Host", rows: Rows, batch: int = 1) -> Float[Tensor, " n"]:
        """Scores of prompts given as token ids, float64."""
        return self.margins(host, rows, batch).amax(1)

    def margins(self, host: "Host", rows: Rows, batch: int = 1) -> Float[Tensor, "n c"]:
        """By how much each prompt passes each concept's bound; negative where it does not."""
        raw = self.joint.features_of(host, rows, batch)
        columns = []
        for name, gate in self.gates.items():
            columns.append(gate.standardised(raw[:, self._columns[name]]) - gate.bound)
        return torch.stack(columns, 1)

    def hook_points(self) -> list[str]:
        """Of all its gates."""
        return self.joint.hook_points()

    def summary(self) -> str:
        """One paragraph on its concepts and their rates."""
        n = sum(len(s.features) for s in self.joint.sources)
        what = f"{len(self.gates)} concepts, each with weights and a bound of its own, {n} features in all"
        return f"{what}, without rates." if self.calibration is None else f"{what}; {self.rates()}"

    def _put(self, work: Path) -> None:
        for i, source in enumerate(self.joint.sources):
            source.sae.save(work / f"sae-{i}")

    def _manifest(self) -> dict[str, Any]:
        heads = [
            {"name": n, **g._settings(), "calibration": g.require_threshold().as_dict()}  # pyright: ignore[reportPrivateUsage]
            for n, g in self.gates.items()
        ]
        return {"kind": self.kind, "saes": [s.fingerprint for s in self.joint.sources], "gates": heads}

    @classmethod
    def load(cls, folder: str | Path) -> "UnionGate":
        """Reads a gate folder.

        Raises:
            ArtefactError: Missing, altered, or of another format.
        """
        from ..sae import SAE

        folder = Path(folder)
        values = manifest_of(folder)
        with reading(folder / MANIFEST):
            saes = {d: SAE.load(folder / f"sae-{i}") for i, d in enumerate(values["saes"])}
            gates = {h["name"]: _head(h, saes) for h in values["gates"]}
            calibration = Calibration.from_dict(values["calibration"]) if values["calibration"] else None
            gate = cls(gates, calibration)
            if len(gates) != len(values["gates"]) or gate.digest != values["digest"]:
                raise ArtefactError(f"{folder / MANIFEST} was altered: its digest is another")
        return gate

    def _settings(self) -> dict[str, Any]:
        return {"kind": self.kind, "gates": [[n, g.digest] for n, g in self.gates.items()]}


def _head(values: Mapping[str, Any], saes: Mapping[str, Any]) -> Gate:
    sources = [GateSource(saes[s["sae"]], tuple(s["features"]), tuple(s["weights"]), s["sae"]) for s in values["sources"]]
    centre, scale = tuple(values["centre"]), tuple(values["scale"])
    return Gate(sources, values["reduce"], centre, scale, Calibration.from_dict(values["calibration"]))


__all__ = ["UnionGate"]
