"""Small cards and results that the tests of this folder share."""

from efface.deactivate.evaluation.cards import ProtocolCard
from efface.deactivate.evaluation.results import Metric, Result, Row
from efface.deactivate.evaluation.value import Value


def card(**changes: object) -> ProtocolCard:
    values = {
        "suite": "language", "host": "tiny", "host_digest": "a" * 64, "concept": "volcanoes",
        "prompts_digest": "b" * 64, "judge": "log-probability",
        "judge_digest": "c" * 64, "split": "validation", "n": 60, "seeds": (0, 1),
        "thresholds": {"gate": 0.5}, "versions": {"efface": "0"}, "extra": {"form": "cloze"},
    }  # fmt: skip
    return ProtocolCard(**{**values, **changes})  # type: ignore[arg-type]


def result(name: str = "pisces", margin: float = 0.2, **changes: object) -> Result:
    def value(mean: float) -> Value:
        return Value(mean, mean - 0.05, mean + 0.05, 8, "concepts", "t")

    rows = (
        Row(name, "edited", {"margin": value(margin), "perplexity": Value(12.5)}, "six layers"),
        Row("base", "base", {"margin": value(1.0), "perplexity": Value(12.0)}),
        Row("random features", "control", {"margin": value(0.95)}),
    )
    metrics = {"margin": Metric("margin", "lower", about="Right option less the mean wrong one.")}
    return Result(name, card(**changes), rows, metrics, ("efface eval --model tiny --concept volcanoes",))
