"""What every gate is: a score of a prompt on the unedited host, and a threshold. Below it an edit is not there."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from .. import __version__
from ..base.errors import ArtefactError, InputError, NumericsError
from ..base.files import digest, inside, new_folder, read_json, reading, sha256_file, write_json
from ..base.running import progress
from .calibration import Calibration, Rate, fires
from .routing import unedited

if TYPE_CHECKING:
    from .hosts import Host

FORMAT = 1
MANIFEST = "gate.json"
Rows = Sequence[Sequence[int]]
"""Token ids of prompts, unpadded."""


class AnyGate(ABC):
    """A score and a threshold."""

    calibration: Calibration | None
    per: Literal["prompt", "token"]
    """What decides while a text is generated: the prompt alone, or each token that is written too (`watching.py`)."""

    @cached_property
    def digest(self) -> str:
        """sha256 of what decides: what the score is made of, threshold, dead band."""
        c = self.calibration
        return digest({**self._settings(), "threshold": [c.threshold, c.dead_band] if c else None})

    @abstractmethod
    def _settings(self) -> dict[str, Any]:
        """What the score is made of, plain values."""

    @abstractmethod
    def hook_points(self) -> list[str]:
        """Where it reads."""

    @abstractmethod
    def score_rows(self, host: "Host", rows: Rows, batch: int = 1) -> Float[Tensor, " n"]:
        """Scores of prompts given as token ids, each alone, float64."""

    @abstractmethod
    def summary(self) -> str:
        """One paragraph on the threshold and its rates."""

    @abstractmethod
    def _put(self, work: Path) -> None:
        """Writes what the score is made of into a folder."""

    def _manifest(self) -> dict[str, Any]:
        """What `load` needs besides."""
        return self._settings()

    def save(self, folder: str | Path) -> None:
        """Writes a folder: what the score is made of, and `gate.json` last; whole or not at all."""
        with new_folder(Path(folder)) as work:
            self._put(work)
            files = {p.relative_to(work).as_posix(): sha256_file(p) for p in sorted(work.rglob("*")) if p.is_file()}
            calibration = self.calibration.as_dict() if self.calibration else None
            values = {**self._manifest(), "calibration": calibration, "digest": self.digest, "files": files}
            write_json(work / MANIFEST, {"format": FORMAT, "efface": __version__, **values})

    def score(self, host: "Host", texts: Sequence[str], *, batch: int = 1) -> Float[Tensor, " n"]:
        """Scores of prompts, float64."""
        return self.score_rows(host, self.reader(host).token_ids(texts), batch)

    def fires(self, scores: Float[Tensor, " n"]) -> Bool[Tensor, " n"]:
        """Which scores open the gate."""
        c = self.require_threshold()
        return torch.from_numpy(fires(scores.double().numpy(), c.threshold, c.dead_band))

    def require_threshold(self) -> Calibration:
        """Its calibration.

        Raises:
            InputError: There is none yet.
        """
        if self.calibration is None:
            raise InputError("this gate has no threshold yet: gate.calibrated(host, target, pool, fpr=…)")
        return self.calibration

    def reader(self, host: "Host") -> Any:
        """What turns prompts into tokens and reads the hook points: a part of the host, or itself."""
        reader = getattr(host, "reader", None)
        return host if reader is None else reader(self.hook_points())

    def rates(self) -> str:
        """The threshold and what fires at it."""
        c = self.require_threshold()
        found = (("general pool", c.pool), ("target", c.target), ("neighbours", c.neighbours))
        text = ", ".join(f"{name} {_percent(r)}" for name, r in found if r)
        return f"fires at score ≥ {c.threshold:.4g} (asked for: {c.fpr:.2%}): {text}. {c.note}".strip()


@torch.no_grad()
def read_alone(host: "Host", rows: Rows, batch: int, read: Callable[[Rows], Tensor], like: Tensor) -> Tensor:
    """`read` of every prompt on the unedited host, in the places of `like`; with `batch` > 1 prompts of equal length share a call.

    Raises:
        NumericsError: Figures that are not finite.
    """
    order, out = sorted(range(len(rows)), key=lambda i: len(rows[i])), torch.zeros_like(like)
    groups = [
        g[i : i + batch] for _, same in groupby(order, key=lambda i: len(rows[i])) for g in [list(same)] for i in range(0, len(g), batch)
    ]
    with unedited(host):
        for group in progress(groups, desc="reading prompts", unit="batch", inner=True, enabled=len(groups) > 8):
            out[group] = read([rows[i] for i in group])
    if not torch.isfinite(out).all():
        raise NumericsError("gate: activations are not finite")
    return out


def manifest_of(folder: Path) -> dict[str, Any]:
    """A gate folder's manifest, and every file it names checked.

    Raises:
        ArtefactError: Missing, altered, or of another format.
    """
    values = read_json(folder / MANIFEST)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ArtefactError(f"{folder / MANIFEST}: not a gate of format {FORMAT}")
    with reading(folder / MANIFEST):
        for name, sha in values["files"].items():
            path = inside(folder, name)
            if not path.is_file() or sha256_file(path) != sha:
                raise ArtefactError(f"{path} is missing or was altered: its sha256 is not the manifest's")
    return values


def load_gate(folder: str | Path) -> AnyGate:
    """Reads a gate folder of any kind.

    Raises:
        ArtefactError: Missing, altered, or of another format.
    """
    from .change_gate import ChangeGate
    from .concepts_gate import ConceptsGate
    from .gate import Gate
    from .union_gate import UnionGate

    values = read_json(Path(folder) / MANIFEST)
    kind = values.get("kind") if isinstance(values, dict) else None
    kinds = {k.kind: k for k in (ChangeGate, ConceptsGate, UnionGate)}
    return kinds.get(str(kind), Gate).load(folder)


def _percent(rate: Rate) -> str:
    return f"{rate.mean:.2%} [{rate.low:.2%}, {rate.high:.2%}] of {rate.n}"
