"""`efface features | gate`: which features carry a concept, the evidence of all, and a calibrated detector."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..base.errors import InputError
from ..base.files import new_folder, write_json
from . import completion as complete
from . import options as o

if TYPE_CHECKING:
    from ..deactivate.concept import Concept
    from ..llm.evidence import FeatureEvidence
    from ..llm.host import Host
    from ..sae import SAE
    from ..t2i.features import PromptEvidence
    from ..t2i.host import ImageHost


SPLITS = ("train", "validation", "test")


def any_host_and_saes(sae: list[Path], model: str | None, dtype: str, device: str) -> "tuple[Host | ImageHost, list[SAE], bool]":
    """The SAEs, the host that is written in them (or `model`), and whether it is a pipeline."""
    from ..t2i.aliases import is_pipeline

    named, saes = named_saes(sae, model)
    return o.load_any_host(named, dtype, device), saes, is_pipeline(named)


def named_saes(sae: list[Path], model: str | None) -> "tuple[str, list[SAE]]":
    """The model that the SAEs name, or `model`; the SAEs."""
    from ..sae import SAE

    saes = [SAE.load(p) for p in o.sae_folders(sae)]
    named = {s.card.get("model") for s in saes}
    if model is None and (len(named) != 1 or None in named):
        raise InputError(f"--sae: the SAEs name {sorted(map(str, named))} as their model; say which with --model")
    return model or str(named.pop()), saes


def features(
    sae: o.Saes,
    concept: Annotated[
        str | None, typer.Option("--concept", "-c", help="A packaged concept or a concept file.", autocompletion=complete.concepts)
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Evidence and labels of every feature, written as a store, instead.")] = False,
    top: Annotated[int, typer.Option("--top", help="How many to print.", min=1)] = 20,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="--all: where the store goes; left out: features/ of the SAE.")] = None,
    corpus: Annotated[
        str, typer.Option("--corpus", help="--all: embedded, a file, a folder, or hub:NAME.", autocompletion=complete.one_of("embedded"))
    ] = "embedded",
    documents: Annotated[int | None, typer.Option("--documents", help="--all: read at most so many documents.")] = None,
    labels: Annotated[
        str,
        typer.Option(
            "--labels",
            help="--all: words, host (the model writes some too), or a file of labels (.csv, .json, Neuronpedia's .jsonl.gz).",
            autocompletion=complete.one_of("words", "host"),
        ),
    ] = "words",
    settings: o.Settings = [],  # noqa: B006
    split: o.Shown = "validation",
    model: o.OptionalModel = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "float32",
    as_json: o.Json = False,
) -> None:
    """Ranked features of a concept (evidence, held-out scores, false triggers), or with --all a store of every feature."""
    o.check_split(split)
    if every == (concept is not None):
        raise InputError("features: give either --concept C, for the features of a concept, or --all, for the evidence of every feature")
    if every or concept is None:
        from .evidence import collect_all

        return collect_all(sae, out, corpus, documents, labels, settings, model, seed, device, dtype, as_json)
    if out is not None or documents is not None or settings:
        raise InputError("features: --out, --documents and --set belong to --all; leave them out, or give --all instead of --concept")
    o.sae_folders(sae)
    return _of_concept(sae, concept, top, split, model, seed, device, dtype, as_json)


def _of_concept(
    sae: list[Path], concept: str, top: int, split: str, model: str | None, seed: int, device: str, dtype: str, as_json: bool
) -> None:
    from ..deactivate.concept import Concept
    from ..llm.features import FeatureConfig
    from ..llm.inspecting import splits_to

    wanted, splits = Concept.load(concept), splits_to(split)
    host, saes, drawing = any_host_and_saes(sae, model, dtype, device)
    if drawing:
        from ..t2i.features import features as find
    else:
        from ..llm.features import features as find
    looks = counted(wanted, split)
    report = find(host, wanted, saes, FeatureConfig(seed=seed), splits=splits, other_model=model is not None)  # pyright: ignore[reportArgumentType]: of its kind
    text = (prompt_listing if drawing else listing)(report.features[:top], splits)  # pyright: ignore[reportArgumentType]
    text += f"\nthe first {report.n_set} as one detector, AUROC: " + ", ".join(
        f"{k} {_figure(v.get('all'))}" for k, v in report.set_auroc.items()
    )
    text += "\nand it fires on test: " + ", ".join(f"{k} {v:.1%}" for k, v in report.triggers.items()) if report.triggers else ""
    text += f"\nlooks at test so far: {looks}" if looks else ""
    o.emit({**report.to_dict(), "features": report.to_dict()["features"][:top], "looks": looks}, text, as_json)


def counted(concept: "Concept", split: str) -> int:
    """Looks at `test` so far, this one included where `split` is `test`; 0 elsewhere."""
    from ..base.files import cache_dir
    from ..deactivate.evaluation.cards import count_look

    return count_look(cache_dir() / "looks", concept.digest, split)


def listing(found: "Sequence[FeatureEvidence]", splits: Sequence[str] = SPLITS) -> str:
    """Features as a table, scores of the splits that were read; «-» where something was not measured."""
    rows = [
        [
            f.hook_point,
            str(f.id),
            f.direction.removeprefix("suppress_"),
            *(_figure(f.auroc.get(s)) for s in splits),
            _figure(f.rho, 1),
            " ".join(f.promoted[:6]),
        ]
        for f in found
    ]
    return o.table(["hook point", "feature", "end", *(s.replace("idation", "") for s in splits), "rho", "promotes"], rows)


def prompt_listing(found: "Sequence[PromptEvidence]", splits: Sequence[str] = SPLITS) -> str:
    """Features of a text encoder as a table: how strongly they fire on target | general, on how many prompts, how they detect, on what."""
    rows = [
        [
            f.hook_point,
            str(f.id),
            f.label,
            " | ".join(_figure(f.peaks.get(p), 2) for p in ("target", "general")),
            " | ".join(f"{f.shares[p]:.0%}" if p in f.shares else "-" for p in ("target", "neighbours", "general")),
            *(_figure(f.auroc.get(s)) for s in splits),
            f.prompts[0] if f.prompts else "",
        ]
        for f in found
    ]
    shares = "fires on target | neighbours | general"
    scores = [s.replace("idation", "") for s in splits]
    return o.table(["hook point", "feature", "at", "peak target | general", shares, *scores, "strongest on"], rows)


def _figure(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _shown(value: "str | int | float | Mapping[str, float]") -> str:
    """A line of a gate's judgement: a rate or an AUROC with its interval, or what it is."""
    if isinstance(value, Mapping):
        scale, unit = (100, " %") if "rate" in value else (1, "")
        mean, low, high = (scale * v for k, v in value.items() if k != "n")
        return f"{mean:.3g}{unit} [{low:.3g}, {high:.3g}]" + (f" of {value['n']}" if "n" in value else "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def gate(
    sae: o.Saes,
    concept: o.OneConcept,
    out: o.Out,
    fpr: Annotated[float, typer.Option("--fpr", help="False-positive rate on the general pool.")] = 0.01,
    weights: Annotated[
        str,
        typer.Option(
            "--weights", help="fitted (logistic regression on train) or equal.", autocompletion=complete.one_of("fitted", "equal")
        ),
    ] = "fitted",
    per: Annotated[
        str,
        typer.Option("--per", help="prompt, or token: go on reading what is generated.", autocompletion=complete.one_of("prompt", "token")),
    ] = "prompt",
    split: o.Shown = "validation",
    model: o.OptionalModel = None,
    seed: o.Seed = 0,
    device: o.Device = "auto",
    dtype: o.Dtype = "float32",
    as_json: o.Json = False,
) -> None:
    """Calibrates a gate alone: ROC on validation, threshold, intervals; with --split test what it does there, too."""
    o.check_split(split)
    if out.exists():
        raise InputError(f"--out {out} exists already; choose another name")
    o.sae_folders(sae)
    from ..deactivate.concept import Concept

    wanted = Concept.load(concept)
    host, saes, drawing = any_host_and_saes(sae, model, dtype, device)
    if drawing:
        from ..t2i.gating import concept_gate, judge_gate
    else:
        from ..llm.gating import concept_gate, judge_gate
    options = {"fpr": fpr, "weights": weights, "per": per, "seed": seed, "other_model": model is not None}
    made = concept_gate(host, wanted, saes, **options)  # pyright: ignore[reportArgumentType]: of its kind
    looks = counted(wanted, split)
    report = judge_gate(host, made, wanted, split, seed=seed)  # pyright: ignore[reportArgumentType]
    report |= {"looks": looks} if looks else {}
    with new_folder(out) as work:
        made.save(work)
        write_json(work / f"{split}.json", report)
    curve = [list(point) for point in made.require_threshold().roc]
    text = "\n".join([*(f"{k:34}{_shown(v)}" for k, v in report.items()), f"on validation: {made.summary()}"])
    o.emit({"out": str(out), **report, "roc": curve}, text, as_json)
