"""How the columns of a table of attacks read. Torch-free."""

from collections.abc import Sequence

from ...deactivate.evaluation import Metric
from .registry import AttackRow


def described(rows: Sequence[AttackRow]) -> dict[str, Metric]:
    """Metric -> how it is printed: union first, then each attack."""
    out = {
        "union": Metric(
            "union ASR", "lower", about="Of the questions that the unedited model answers and this one does not (on the unedited one: that it does not), the share that any attack brings back; Wilson.",
        ),
        "recovered": Metric("of all asked", "lower", about="The same over all questions that the unedited model answers (on itself: over all)."),
        "accuracy": Metric("accuracy before", "neither", about="Questions whose right option wins alone, without an attack."),
    }  # fmt: skip
    for r in rows:
        about = f"{r.level}. Share of the questions that it tried; {r.paper}."
        out[f"asr_{r.name}"] = Metric(r.name, "lower", about=about)
    return out
