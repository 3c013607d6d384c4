"""From an evaluation of a language edit to files: `result.json`, `samples.json` and `report.html`."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.files import write_json
from ..deactivate.evaluation.plots import Bar, Plot, bars, before_after
from ..deactivate.evaluation.report import FeatureEvidence, ReportData, TextSample, render_report
from ..deactivate.inspect.results import SAMPLES
from .evaluation.suite import applied

if TYPE_CHECKING:
    from ..deactivate.concept import Concept
    from ..deactivate.edit import Edit
    from ..deactivate.evaluation import Result
    from .host import Host

N_SAMPLES = 4
SHOWN = 24
"""Features in a report, at most."""
NEUTRAL_PROMPTS = ("The best way to make a cup of tea is", "On Monday morning the teacher asked the class to")


def write_evaluation(
    folder: Path,
    host: "Host",
    concept: "Concept",
    edits: "Sequence[Edit]",
    result: "Result",
    *,
    title: str = "",
    notes: Sequence[str] = (),
    undo: str = "",
    also: Sequence[ReportData] = (),
    pages: str = "",
) -> Path:
    """Writes `result.json`, continuations before | after as `samples.json`, and `report.html`, with `also` on its page and a link to `pages`, into `folder`.

    Returns:
        The report's path.
    """
    result.save(folder / "result.json")
    edited = next((r.name for r in result.rows if r.kind == "edited"), None)
    used = [feature for e in edits for feature in used_features(e.evidence)]
    shortened = (
        [f"The edit changes {len(used)} features, of which the first {SHOWN} are shown; edit.json has all."] if len(used) > SHOWN else []
    )
    shown = samples(host, concept, edits, result.card.split) if edits else ()
    if shown:
        write_json(folder / SAMPLES, [dataclasses.asdict(s) for s in shown])
    data = ReportData(
        title=title or (f"{concept.name} taken out of {host.name}" if edits else f"{concept.name} in {host.name}"),
        summary=summary(result, concept.name, edited),
        result=result,
        verdicts=verdicts(result, edited),
        plots=plots(result, edited),
        features=tuple(used[:SHOWN]),
        samples=shown,
        notes=(*notes, *fitted_on(edits, result.card.split), *shortened, *(f"Not measured: {a}" for a in result.extra.get("absent", ()))),
        undo=undo,
        also=tuple(also),
        pages=pages,
    )
    return render_report(folder / "report.html", data)


def fitted_on(edits: "Sequence[Edit]", split: str) -> tuple[str, ...]:
    """A warning where an edit was fitted on questions of the split that measures it."""
    named = [e.name for e in edits if split != "train" and isinstance(e.evidence, Mapping) and split in e.evidence.get("read", ())]
    if not named:
        return ()
    return (f"Fitted on questions of {split}, too: {', '.join(named)}. Its figures there are of what it learnt by heart; look at test.",)


def summary(result: "Result", concept: str, edited: str | None) -> str:
    """The two sentences a hurried reader needs."""
    base = result.row("base").metrics
    if edited is None:
        return f"The base model's margin on {concept} is {base['margin'].mean:.2f} nats a token, its accuracy {base['accuracy'].mean:.0%}."
    row = result.row(edited).metrics
    margin = f"margin on {concept}, by how much the right answer is likelier than the wrong ones,"
    parts = [f"The {margin} went from {base['margin'].mean:.2f} to {row['margin'].mean:.2f} nats a token"]
    if "neighbours_margin" in row:
        parts.append(f"on its neighbours from {base['neighbours_margin'].mean:.2f} to {row['neighbours_margin'].mean:.2f}")
    if "ppl_neutral" in row:
        parts.append(f"perplexity on neutral text from {base['ppl_neutral'].mean:.1f} to {row['ppl_neutral'].mean:.1f}")
    controls = [r for r in result.rows if r.name.startswith("random") and "efficacy" in r.metrics]
    beside = "; ".join(f"{r.name} took {r.metrics['efficacy'].mean:.0%} of the margin" for r in controls)
    own = f" The edit took {row['efficacy'].mean:.0%} of the margin" if "efficacy" in row else ""
    return ", ".join(parts) + "." + own + (f"; {beside}." if beside else ".")


def verdicts(result: "Result", edited: str | None) -> dict[str, bool]:
    """The claims the project's table of goals makes, each held or not on this split."""
    if edited is None:
        return {}
    base, row = result.row("base").metrics, result.row(edited).metrics
    claims: dict[str, bool] = {}
    if "efficacy_unseen" in row:
        claims["At least half of the margin is gone on items whose answer is no suppressed word"] = row["efficacy_unseen"].mean >= 0.5
    if "neighbours_margin" in row:
        kept = row["neighbours_margin"].mean / base["neighbours_margin"].mean
        claims["Neighbours keep at least 90 % of their margin"] = kept >= 0.9
    if "ppl_neutral" in row:
        claims["Perplexity on neutral text rises by at most 3 %"] = row["ppl_neutral"].mean <= 1.03 * base["ppl_neutral"].mean
    pair = result.extra.get("fall - 3 x random features, all")
    if pair:
        claims["The fall exceeds three times that under random features of equal norm (interval above 0)"] = pair["verdict"] == "higher"
    return claims


def plots(result: "Result", edited: str | None) -> tuple[Plot, ...]:
    """Margins before and after, and the fall beside the controls."""
    if edited is None:
        return ()
    base, row = result.row("base").metrics, result.row(edited).metrics
    pairs = [("concept", "margin"), ("concept, unseen answers", "margin_unseen"), ("neighbours", "neighbours_margin")]
    there = [(label, base[m], row[m]) for label, m in pairs if m in row and m in base]
    labels, before, after = zip(*there, strict=True)
    figure = before_after(labels, before, after, "margin, nats a token", "Margin before (hollow) and after (filled) the edit.")
    falls = [Bar(r.name, r.metrics["efficacy"], r.kind) for r in result.rows if r.kind != "base" and "efficacy" in r.metrics]
    if not falls:
        return (figure,)
    return figure, bars(falls, "share of the margin taken out", "The edit beside its controls.")


def used_features(evidence: Any) -> list[FeatureEvidence]:
    """The features an edit by features used, as the report shows them."""
    plans = evidence.get("concepts", ()) if isinstance(evidence, Mapping) else ()
    return [_feature(f) for plan in plans for f in plan.get("features", ())]


def _feature(values: Mapping[str, Any]) -> FeatureEvidence:
    rho = values["rho"]
    scores = {f"AUROC ({split})": v for split, v in values["auroc"].items()}
    scores |= {"rho": None if rho is None else min(rho, 1e6), "fired": values["fired"]}
    if values.get("source") == "effect":
        scores["predicted share of the margin taken"] = -values["effects"]["margin"]
    return FeatureEvidence(
        hook_point=values["hook_point"],
        index=values["id"],
        label=", ".join(t.strip() for t in values["promoted"][:3]),
        scores={name: float(v) for name, v in scores.items() if v is not None},  # a feature that was named was not measured
        promoted=tuple(values["promoted"][:12]),
        suppressed=tuple(values["suppressed"][:12]),
    )


def samples(host: "Host", concept: "Concept", edits: "Sequence[Edit]", split: str) -> tuple[TextSample, ...]:
    """Greedy continuations before | after: two of the concept, two of its neighbours, two neutral."""
    asked = [(q.q, "target") for q in concept.questions.get(split, ())[:N_SAMPLES]]
    asked += [(q.q, "neighbour") for q in concept.neighbour_questions.get(split, ())[:N_SAMPLES]]
    asked += [(p, "neutral") for p in NEUTRAL_PROMPTS]
    prompts = [p for p, _ in asked]
    before = host.generate(prompts, seed=0, max_new_tokens=24, greedy=True)
    with applied(host, edits):
        after = host.generate(prompts, seed=0, max_new_tokens=24, greedy=True)
    return tuple(TextSample(p, b, a, about) for (p, about), b, a in zip(asked, before, after, strict=True))
