"""A run of attacks on one state of a host in a few figures: what any attack brings back, what relearning does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .registry import attack
from .suite import rates, run_attacks

if TYPE_CHECKING:
    from ...deactivate.concept import Concept
    from ...deactivate.edit import Edit
    from ...deactivate.evaluation import Result
    from ...sae import SAE
    from ..host import Host

ASKING = ("L0", "L1", "L2", "L3")
"""Levels of those who only ask: what they know of the weights they put into a prompt."""


def attacked(
    host: "Host",
    edits: "Sequence[Edit]",
    concept: "Concept",
    folder: Path,
    split: str,
    settings: Mapping[str, Mapping[str, Any]],
    state: str = "edited",
    *,
    saes: "Sequence[SAE]" = (),
    gold: "Host | None" = None,
    decoys: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Runs the attacks that `settings` names on one state, and sums them up.

    Args:
        host: Left as it was.
        edits: In force together; of the state, and what random controls are drawn for.
        concept: With questions in the split.
        folder: Where `result.json` and each attack's result go; what lies there of the same inputs is used.
        split: `validation` or `test`.
        settings: Attack -> its settings.
        state: `edited`, `identity`, `random features`, `random directions` or `gold`.
        saes: For random features.
        gold: For gold.
        decoys: Whether attacks are also aimed at wrong options.
        seed: Of everything drawn.

    Raises:
        UnknownName: No such attack or setting.
        MatchedNothing: No such state.
    """
    result = run_attacks(
        list(settings), host, edits, concept, folder / "attacks", split,
        settings=settings, saes=saes, gold=gold, decoys=decoys, states=(state,), curves=True, seed=seed,
    )  # fmt: skip
    result.save(folder)
    return summed(result)


def summed(result: "Result") -> dict[str, Any]:
    """Figures of a result's first row; None where it has none.

    `union-ASR`: of the questions that were wrong (`union-ASR questions`), the share that any attack brings back; `, asking`: that attacks
    which only ask do; `, decoys`: the same for wrong options. `answered under attack`: of all that the unedited host answers, what never
    went wrong or came back. `relearning area`: mean accuracy over the steps of the strongest fine-tuning.
    """
    row = result.rows[0]
    told = result.extra["questions"][row.name]
    hits: Mapping[str, list[bool | None]] = told["recovered"]
    n, wrong = len(told["asked"]), len(told["wrong"])
    by_asking = {a: h for a, h in hits.items() if attack(a).level in ASKING}
    union = row.metrics.get("union")
    asking = rates(by_asking, wrong, n).get("union") if wrong else None
    decoys = next((r.metrics.get("union") for r in result.rows if r.name == f"{row.name}, decoys"), None)
    back = row.metrics.get("recovered")
    curve = result.extra["attacks"].get(row.name, {}).get("relearning", {}).get("found", {}).get("best")
    values = {"union-ASR": union, "union-ASR, asking": asking, "union-ASR, decoys": decoys}
    return {
        **{k: None if v is None else v.mean for k, v in values.items()},
        "union-ASR questions": wrong,
        "answered under attack": (n - wrong) / n + (back.mean if back else 0.0) if n else None,
        "relearning area": curve["area"] if curve else None,
        "steps to half recovery": curve["half_recovery"] if curve else None,
        "attacks": {k.removeprefix("asr_"): v.mean for k, v in row.metrics.items() if k.startswith("asr_")},
        "not attacked": list(result.extra["absent"]),
        "intervals": {k: [v.low, v.high, v.n] for k, v in values.items() if v is not None},
    }
