"""`efface features --all`: the evidence of every feature, written as feature stores."""

from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.config import from_mapping, parse_assignments
from ..base.errors import InputError
from . import options as o

if TYPE_CHECKING:
    from ..sae import SAE

LISTED = 5000
"""Documents that are read into memory at once, so that the time left is known."""
FOLDER = "features"
"""Name of the store inside an SAE's folder."""


def store_folders(saes: list[Path], out: Path | None) -> list[Path]:
    """Where each SAE's store goes: inside its folder, or under `out` (one SAE: `out` itself).

    Raises:
        InputError: Something is there already, or two SAEs would share a folder.
    """
    names = [p.resolve().name for p in saes]
    if out is not None and len(set(names)) < len(names):
        raise InputError(f"--sae: two folders are named alike ({', '.join(sorted(names))}); leave out --out, or collect them one by one")
    places = [p / FOLDER for p in saes]
    if out is not None:
        places = [out] if len(saes) == 1 else [out / n for n in names]
    for place in places if out is None else [out]:
        if place.exists():
            raise InputError(f"--out: {place} exists already; choose another --out or remove it")
    return places


def texts_of(corpus: str, documents: int | None, model: str) -> "Iterable[str]":
    """The first documents of a corpus; `embedded` is the packaged corpus of texts, or a pipeline's packaged prompts."""
    from ..sae.corpora import read_corpus
    from ..t2i.aliases import embedded_prompts, is_pipeline

    if corpus == "embedded" and is_pipeline(model):
        found: Iterable[str] = islice(embedded_prompts(model), documents)
    else:
        found = read_corpus(corpus, limit=documents)
    return list(found) if documents is not None and documents <= LISTED else found


def collect_all(
    sae: list[Path],
    out: Path | None,
    corpus: str,
    documents: int | None,
    labels: str,
    settings: list[str],
    model: str | None,
    seed: int,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    """Reads the corpus once and writes a store for each SAE; prints what the labels are worth."""
    from ..sae.evidence.config import EvidenceConfig

    folders = o.sae_folders(sae)
    places = store_folders(folders, out)
    kind, source = (labels, None) if "." not in labels and "/" not in labels else ("words", Path(labels))
    config = from_mapping(EvidenceConfig, {"labels": kind, "seed": seed, **parse_assignments(settings)}, where="--set")
    from ..t2i.aliases import is_pipeline
    from .features import named_saes

    named, saes = named_saes(folders, model)
    given = _given(source, saes)
    texts = texts_of(corpus, documents, named)
    other = model is not None
    stores = dict(zip(places, saes, strict=True))
    if is_pipeline(named):
        from ..t2i.feature_stores import make_stores as of_prompts

        made = of_prompts(o.load_any_host(named, dtype, device), texts, stores, config, other_model=other, given=given)  # pyright: ignore[reportArgumentType]: a pipeline
    else:
        from ..llm.feature_stores import make_stores

        made = make_stores(o.load_host(named, dtype, device), texts, stores, config, other_model=other, given=given)
    headers = ["hook point", "features", "labelled", "detection (median AUROC)", "shuffled", "fuzzing", "shuffled", "store"]
    o.emit({"stores": made}, o.table(headers, [_row(point, r) for point, r in made.items()]), as_json)


def _given(path: Path | None, saes: "Sequence[SAE]") -> dict[int, str] | None:
    """Labels of a file, checked before anything is read."""
    if path is None:
        return None
    from ..sae.labels.files import read_labels

    if len(saes) != 1:
        raise InputError(f"--labels {path}: a file belongs to one SAE, and {len(saes)} are given; collect them one by one")
    return read_labels(path, saes[0].cfg.d_sae)


def _row(point: str, report: dict[str, Any]) -> list[str]:
    labels = report["labels"]
    medians = [labels[name]["median"] for name in ("labelled", "labelled, shuffled", "fuzzing", "fuzzing, shuffled")]
    figures = ["-" if m is None else f"{m:.3f}" for m in medians]
    return [point, str(sum(labels["status"].values())), str(labels["labelled"]["n"]), *figures, report["out"]]
