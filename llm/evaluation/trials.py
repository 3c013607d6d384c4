"""Trials: settings of an eraser, each fitted once, and the one that does best on `validation`."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...base.errors import InputError, MatchedNothing
from ...base.files import digest, new_folder, read_json, write_json
from ...base.memory import peak_memory
from ...base.running import log
from ...deactivate.edit import Edit
from ...deactivate.parts import Part, WeightsPart
from ..tuning.search import scaled
from .validation import Validation

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ...deactivate.gate import Gate
    from ...sae import SAE
    from ..host import Host

FACTOR = "factor"
"""Setting of a trial that is no eraser's: by how much the fitted change of weights is multiplied."""


@dataclass(frozen=True)
class Cost:
    """What making an edit or a gate took."""

    made: str = ""
    """`edit` or `gate`."""
    seconds: float = 0.0
    peak: int = 0
    """Largest resident memory of the process meanwhile, bytes, the model included."""
    own: bool = True
    """Whether that was reached meanwhile (`base.memory.Peak`)."""


@dataclass(frozen=True)
class Looking:
    """What trials read of `validation`."""

    n_probe: int = 60
    """Neutral texts."""
    max_tokens: int = 48
    """Tokens read of each."""
    seed: int = 0
    """Of their choice."""


@dataclass(frozen=True)
class Chosen:
    """The edit that did best, and all that was tried."""

    edit: Edit
    seconds: float
    """Fits, gate and looks at `validation` together, each fit as long as it took when it was made."""
    longest: float
    """Seconds of the longest fit."""
    peak: Cost
    """That with the largest memory."""
    fits: int
    tried: tuple[Mapping[str, Any], ...] = ()
    """Each trial: its settings, what it did on `validation` (`Seen`), or why it has no edit."""
    best: int | None = None
    """Which of them; None: nothing was tried, the settings were taken as they are."""

    def record(self) -> dict[str, Any]:
        """Plain values, but for the edit."""
        return {
            "seconds": self.seconds, "longest": self.longest, "peak": self.peak.peak, "peak own": self.peak.own, "fits": self.fits,
            "tried": [dict(t) for t in self.tried], "best": self.best,
        }  # fmt: skip


@dataclass
class Fits:
    """Edits and gates of one host and concept, each made once and kept in a folder that several cells may share."""

    folder: Path
    host: "Host"
    concept: "Concept"
    saes: "Sequence[SAE]"
    seed: int
    reads: Mapping[str, str]
    """Digests of what is read: those of the concept and of the SAEs."""
    used: dict[str, Cost] = field(default_factory=dict)
    """Key -> cost, of all that was asked for."""

    def edit(self, method: str, settings: Mapping[str, Any]) -> Edit:
        """The edit of a method with these settings, ungated."""

        def make(out: Path) -> None:
            from ...deactivate.erasing import erase

            erase(method, self.host, [self.concept], self.saes, seed=self.seed, **settings).save(out)

        return Edit.load(self._kept({"method": method, "settings": dict(settings)}, make))

    def gate(self, fpr: float) -> "Gate":
        """The concept's gate."""
        from ...deactivate.gate import Gate
        from ..gating import concept_gate

        def make(out: Path) -> None:
            concept_gate(self.host, self.concept, self.saes, fpr=fpr, seed=self.seed).save(out)

        return Gate.load(self._kept({"gate": fpr}, make))

    def _kept(self, what: Mapping[str, Any], make: Callable[[Path], None]) -> Path:
        """Folder of what was made with these inputs, made now where it is not there."""
        inputs = {**what, "host": self.host.digest, "seed": self.seed, "reads": dict(self.reads)}
        key = digest(inputs)[:24]
        place = self.folder / key
        if not place.is_dir():
            with new_folder(place) as work:
                with peak_memory() as held:
                    begun = time.perf_counter()
                    make(work / "made")
                    seconds = time.perf_counter() - begun
                write_json(work / "cost.json", {"seconds": seconds, "peak": held.bytes, "own": held.own, "inputs": inputs})
        cost = read_json(place / "cost.json")
        self.used[key] = Cost("gate" if "gate" in what else "edit", cost["seconds"], cost["peak"], cost["own"])
        return place / "made"


def choose(
    fits: Fits,
    method: str,
    settings: Mapping[str, Any],
    trials: Sequence[Mapping[str, Any]] = (),
    *,
    asked: "Concept | None" = None,
    fpr: float | None = None,
    looking: Looking | None = None,
) -> Chosen:
    """The edit of the trial with the largest harmonic mean of fall, neighbours kept and coherence on `validation`; of equal ones the first.

    Args:
        fits: What makes edits.
        method: A name of `efface methods`.
        settings: Of all trials.
        trials: Settings of each, laid over those; `factor` multiplies the change of weights after the fit, so trials that differ in it
            alone share a fit. None: one edit, `settings` as they are, and no look at `validation`.
        asked: The concept whose questions judge; None: that of the fits.
        fpr: The edit stands behind the concept's gate at this false-positive rate, in the trials too; None: no gate.
        looking: What trials read.

    Raises:
        InputError: Settings that do not do; a `search` of the method's own beside trials, which would be further looks.
        MatchedNothing: No trial has an edit.
    """
    if trials and any(t.get("search") for t in (settings, *trials)):
        raise InputError("trials: search=true looks at validation by itself, once for each of its scales; leave one of them out")
    gate = None if fpr is None else fits.gate(fpr)
    if trials:
        edit, tried, best, looks = _best(fits, method, settings, trials, asked or fits.concept, gate, looking or Looking())
    else:
        edit, tried, best, looks = _made(fits, method, settings, gate), [], None, 0.0
    costs = list(fits.used.values())
    edits = [c.seconds for c in costs if c.made == "edit"]
    total = sum(c.seconds for c in costs) + looks
    return Chosen(edit, total, max(edits), max(costs, key=lambda c: c.peak), len(edits), tuple(tried), best)


def _best(
    fits: Fits, method: str, settings: Mapping[str, Any], trials: Sequence[Mapping[str, Any]], asked: "Concept", gate: "Gate | None",
    looking: Looking,
) -> tuple[Edit, list[dict[str, Any]], int, float]:  # fmt: skip
    """The best edit, what was tried, its place there, and the seconds of looking at `validation`."""
    begun = time.perf_counter()
    judge = Validation(fits.host, asked, looking, looking.max_tokens)
    looks = time.perf_counter() - begun
    tried: list[dict[str, Any]] = []
    found: list[tuple[float, int, Edit]] = []
    for n, trial in enumerate(trials):
        try:
            edit = _made(fits, method, {**settings, **trial}, gate)
        except MatchedNothing as e:
            log.warning("trial %d of %s has no edit: %s", n + 1, method, e)
            tried.append({"trial": dict(trial), "failed": str(e)})
            continue
        begun = time.perf_counter()
        with edit.applied(fits.host):
            seen = judge.seen()
        looks += time.perf_counter() - begun
        tried.append({"trial": dict(trial), **dataclasses.asdict(seen)})
        found.append((seen.objective, n, edit))
    if not found:
        raise MatchedNothing(f"{method}: none of {len(trials)} trials has an edit; the last said: {tried[-1]['failed']}")
    _, n, edit = max(found, key=lambda f: (f[0], -f[1]))
    return edit, tried, n, looks


def _made(fits: Fits, method: str, settings: Mapping[str, Any], gate: "Gate | None") -> Edit:
    own = dict(settings)
    factor = float(own.pop(FACTOR, 1.0))
    edit = multiplied(fits.edit(method, own), factor)
    return edit if gate is None else edit.gated(gate)


def multiplied(edit: Edit, factor: float) -> Edit:
    """The edit with its changes of weights times a factor.

    Raises:
        InputError: It has other parts.
    """
    if factor == 1.0:
        return edit
    parts: list[Part] = []
    for part in edit.parts:
        if not isinstance(part, WeightsPart):
            raise InputError(f"factor={factor:g}: {edit.eraser} made a part of kind {part.kind}; only changes of weights are multiplied")
        parts.append(dataclasses.replace(part, deltas=scaled(dict(part.deltas), factor)))
    return dataclasses.replace(edit, parts=parts)
