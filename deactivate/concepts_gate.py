"""One gate for several concepts: each has its own features and its own threshold, and one of them is enough to open it."""

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
from ..base.files import load_tensors, reading
from .any_gate import MANIFEST, AnyGate, Rows, manifest_of, read_alone
from .calibration import DEAD_BAND, Calibration, calibrate
from .layer import DeactivationPart

if TYPE_CHECKING:
    from .hosts import Host


@dataclass(frozen=True)
class Group:
    """What speaks for one concept."""

    name: str
    features: tuple[int, ...]
    """Of the layer."""
    threshold: float = 1.0
    """Energy of the change of these features at which the concept is there: > 0."""
    calibration: Mapping[str, Any] | None = None
    """Rates and curves of this concept alone (`Calibration.as_dict`)."""


@dataclass(frozen=True, eq=False)
class ConceptsGate(AnyGate):
    """Score of a prompt: the largest, over concepts c, of s_c / threshold_c; s_c = max over tokens of |e_t|^2 / d.

    e_t is what the deactivation layer adds through the features of c alone, so the SAE's error is not in it, and a concept none
    of whose features fires scores 0. Reads the host once for all concepts. Fires at 1.
    """

    layer: DeactivationPart
    groups: tuple[Group, ...]
    calibration: Calibration | None = None
    per: Literal["prompt", "token"] = field(default="prompt", init=False)
    kind: ClassVar[str] = "concepts"

    def __post_init__(self) -> None:
        if not self.groups:
            raise MatchedNothing("gate: no concept given")
        known = set(self.layer.features)
        for g in self.groups:
            if not g.features or not set(g.features) <= known:
                raise InputError(f"gate of {g.name!r}: features of the layer expected, found {list(g.features)}")
            if not g.threshold > 0:
                raise InputError(f"gate of {g.name!r}: a threshold above 0 expected, {g.threshold} found")

    def hook_points(self) -> list[str]:
        """Of its layer."""
        return [self.layer.hook_point]

    def score_rows(self, host: "Host", rows: Rows, batch: int = 1) -> Float[Tensor, " n"]:
        """Scores of prompts given as token ids, float64."""
        limits = torch.tensor([g.threshold for g in self.groups], dtype=torch.float64)
        return (self.energies(host, rows, batch) / limits).amax(1)

    def energies(self, host: "Host", rows: Rows, batch: int = 1) -> Float[Tensor, "n c"]:
        """s_c of each prompt, each alone, float64. With `batch` > 1 prompts of equal length share a pass."""
        like = torch.zeros(len(rows), len(self.groups), dtype=torch.float64)
        return read_alone(host, rows, batch, lambda some: self._read(host, some), like)

    @cached_property
    def _places(self) -> list[list[int]]:
        at = {f: i for i, f in enumerate(self.layer.features)}
        return [[at[f] for f in g.features] for g in self.groups]

    def _read(self, host: "Host", rows: Rows) -> Float[Tensor, "b c"]:
        reader = self.reader(host)
        ids, mask = reader.pad(rows)
        acts = self.layer.acts(reader.activations(ids, mask, self.hook_points())[self.layer.hook_point])
        keep = reader.keep_mask(ids, mask).to(acts.device)
        columns = [self.layer.moved(acts, places).double().square().mean(-1).masked_fill(~keep, 0).amax(1) for places in self._places]
        return torch.stack(columns, 1).cpu()

    def calibrated(
        self, host: "Host", targets: Sequence[Sequence[str]], pools: Sequence[Sequence[str]], neighbours: Sequence[Sequence[str]] = (), *,
        fpr: float = 0.01, dead_band: float = DEAD_BAND, batch: int = 32,
    ) -> "ConceptsGate":  # fmt: skip
        """Each concept's threshold from `validation` prompts (`calibration.calibrate` with neighbours in it), then the rates of all.

        Args:
            host: Read without edits.
            targets: Of each concept.
            pools: General prompts of each concept.
            neighbours: Of each concept; none: thresholds from the pools alone.
            fpr: Share of a concept's pool that may open it.
            dead_band: Over the largest score.
            batch: Prompts of equal length at a time.

        Raises:
            MatchedNothing: No pool, or features that none of the prompts moves.
        """
        near = list(neighbours) or [()] * len(self.groups)
        if not len(targets) == len(pools) == len(near) == len(self.groups) or not all(pools):
            raise MatchedNothing(f"gate: targets and a pool for each of the {len(self.groups)} concepts expected")
        texts = list(dict.fromkeys(t for lines in (*targets, *pools, *near) for t in lines))
        at = {t: i for i, t in enumerate(texts)}
        energies = self.energies(host, self.reader(host).token_ids(texts), batch).numpy()
        groups = []
        for c, (group, *lines) in enumerate(zip(self.groups, targets, pools, near, strict=True)):
            own, pool, close = (energies[[at[t] for t in some], c] for some in lines)
            largest = max(float(s.max()) for s in (own, pool, close) if len(s))
            if not largest > 0:
                raise MatchedNothing(f"gate of {group.name!r}: its features move none of the prompts; choose others (`efface features`)")
            found = calibrate(own, pool, close, fpr=fpr, dead_band=dead_band * largest, apart=True)
            groups.append(dataclasses.replace(group, threshold=found.threshold - found.dead_band, calibration=found.as_dict()))
        made = dataclasses.replace(self, groups=tuple(groups), calibration=None)
        scores = (energies / [g.threshold for g in groups]).max(1)
        erased = {t for lines in targets for t in lines}
        sides = (erased, {t for lines in pools for t in lines} - erased, {t for lines in near for t in lines} - erased)
        return dataclasses.replace(made, calibration=_at_one(*([scores[at[t]] for t in sorted(side)] for side in sides), fpr=fpr))

    def summary(self) -> str:
        """One paragraph on the thresholds and their rates."""
        what = f"{len(self.groups)} concepts, each with a threshold of its own, {len(self.layer.features)} features in all"
        return f"{what}, not calibrated." if self.calibration is None else f"{what}; {self.rates()}"

    def _put(self, work: Path) -> None:
        (work / "layer").mkdir()
        self.layer.save(work / "layer")

    def _manifest(self) -> dict[str, Any]:
        return {"kind": self.kind, "layer": self._layer(), "groups": [dataclasses.asdict(g) for g in self.groups]}

    @classmethod
    def load(cls, folder: str | Path) -> "ConceptsGate":
        """Reads a gate folder.

        Raises:
            ArtefactError: Missing, altered, or of another format.
        """
        folder = Path(folder)
        values = manifest_of(folder)
        with reading(folder / MANIFEST):
            layer = DeactivationPart.build(values["layer"], load_tensors(folder / "layer" / "tensors.safetensors"), folder / "layer")
            groups = tuple(Group(**{**g, "features": tuple(g["features"])}) for g in values["groups"])
            gate = cls(layer, groups, Calibration.from_dict(values["calibration"]) if values["calibration"] else None)
            if gate.digest != values["digest"]:
                raise ArtefactError(f"{folder / MANIFEST} was altered: its digest is another")
        return gate

    def _layer(self) -> dict[str, Any]:
        return {**self.layer.settings(), "features": list(self.layer.features)}

    def _settings(self) -> dict[str, Any]:
        return {"layer": self._layer(), "groups": [[g.name, list(g.features), g.threshold] for g in self.groups]}


def _at_one(target: Sequence[float], pool: Sequence[float], near: Sequence[float], fpr: float) -> Calibration:
    """Rates and curves of scores that are thresholds' multiples: the threshold is 1, whatever the pool says."""
    found = calibrate(target, pool, near, fpr=fpr, at=1.0)
    return dataclasses.replace(found, note="Each concept's own threshold is in the gate's groups.")


__all__ = ["ConceptsGate", "Group"]
