"""A feature store in the formats of other tools: Neuronpedia's exports, and the batches that SAEDashboard writes for it.

Neuronpedia (docs.neuronpedia.org, «Exports»): `explanations/`, `features/` and `activations/`, each of files `batch-N.jsonl.gz` with one JSON
object a line, and `model`, `release`, `source` and `sourceset.jsonl` (`neuronpedia.records`). SAEDashboard (`NeuronpediaDashboardBatch`): files
`batch-N.json` of `{model_id, layer, sae_set, features}`; there and here a context of the strongest has the bin (-1, its largest activation) and share -1.
What a store does not hold (values of promoted tokens, correlated neurons, histograms of logits) is an empty list.
"""

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from ...base.errors import InputError, UnknownName
from ...base.files import new_folder, write_bytes
from ...base.running import progress
from ..evidence.schema import Feature, StoredContext
from ..evidence.store import FeatureStore
from .neuronpedia import CREATOR, MAKER, records

Format = Literal["neuronpedia", "saedashboard"]
FORMATS: tuple[str, ...] = get_args(Format)
BATCH = 1024
"""Features a file."""
SHOWN = ("top", "quantile")
"""Contexts that are written: labels are scored on the others."""
ABSENT = (
    *("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1", "correlated_neurons_indices"),
    *("correlated_neurons_pearson", "correlated_neurons_l1", "correlated_features_indices", "correlated_features_pearson"),
    *("correlated_features_l1", "neg_values", "pos_values", "logits_hist_data_bar_heights", "logits_hist_data_bar_values"),
    *("decoder_weights_dist", "vector"),
)


def export_store(store: FeatureStore, out: Path, kind: str, model: str, source: str) -> dict[str, int]:
    """Writes every feature that fires; explanations of those whose label stands.

    Args:
        store: What is known of the features.
        out: A new folder.
        kind: `neuronpedia` or `saedashboard`.
        model: The model's id there (`gpt2-small`).
        source: The SAE's id there: the layer, a hyphen, the set (`6-res-jb`).

    Returns:
        How many features, labels and contexts were written.

    Raises:
        UnknownName: Another format.
        InputError: `out` exists, or `source` is no such id.
    """
    if kind not in FORMATS:
        raise UnknownName("format", kind, FORMATS)
    layer, hyphen, sae_set = source.partition("-")
    if not (layer.isdigit() and hyphen and sae_set):
        raise InputError(f"--source {source!r}: write the layer, a hyphen and a name for the set, such as 6-res-efface")
    alive = [int(r["id"]) for r in store.read("SELECT id FROM features WHERE fired > 0 ORDER BY id")]
    counts = {"features": 0, "labels": 0, "contexts": 0}
    with new_folder(out) as work:
        for name, record in records(model, source, store.manifest).items() if kind == "neuronpedia" else ():
            write_bytes(work / f"{name}.jsonl", _lines([record]))
        for n, first in enumerate(progress(range(0, len(alive), BATCH), desc="features written", unit="file")):
            found = [store.feature(i) for i in alive[first : first + BATCH]]
            values = [_values(f, store) for f in found]
            if kind == "saedashboard":
                head = {"model_id": model, "layer": int(layer), "sae_set": sae_set, "sae_id_suffix": None}
                write_bytes(work / f"batch-{n}.json", json.dumps({**head, "features": values}).encode())
            else:
                _write_neuronpedia(work, n, found, values, {"modelId": model, "layer": source})
            counts["features"] += len(found)
            counts["labels"] += sum(f.status == "labelled" for f in found) if kind == "neuronpedia" else 0
            counts["contexts"] += sum(len(v["activations"]) for v in values)
    return counts


def _values(f: Feature, store: FeatureStore) -> dict[str, Any]:
    """A feature as SAEDashboard spells it."""
    corpus, quantiles = store.manifest.get("corpus") or {}, _quantiles(f.contexts)
    return {
        "feature_index": f.id,
        **{name: [] for name in ABSENT},
        "pos_str": list(f.promoted),
        "neg_str": list(f.suppressed),
        "frac_nonzero": f.density,
        "freq_hist_data_bar_values": [low for low, _, _ in f.histogram],
        "freq_hist_data_bar_heights": [n for *_, n in f.histogram],
        "n_prompts_total": int(corpus.get("documents") or 0),
        "n_tokens_in_prompt": int((store.manifest.get("config") or {}).get("context") or 0),
        "dataset": str(corpus.get("digest") or ""),
        "activations": [_activation(c, quantiles, f.density) for c in f.contexts if c.kind in SHOWN],
    }


def _quantiles(contexts: Sequence[StoredContext]) -> dict[int | None, tuple[float, float]]:
    """Quantile -> least and largest peak of its contexts; None: of the strongest ones, whose bin has no lower end."""
    peaks: dict[int | None, list[float]] = {}
    for c in contexts:
        if c.kind in SHOWN:
            peaks.setdefault(c.quantile, []).append(c.value)
    return {q: (-1.0 if q is None else min(v), max(v)) for q, v in peaks.items()}


def _activation(c: StoredContext, quantiles: Mapping[int | None, tuple[float, float]], density: float) -> dict[str, Any]:
    """A context; its bin's share is one of all tokens, as SAEDashboard counts it."""
    low, high = quantiles[c.quantile]
    share = -1.0 if c.quantile is None else density / sum(q is not None for q in quantiles)
    return {
        "tokens": list(c.pieces), "values": list(c.activations), "bin_min": low, "bin_max": high, "bin_contains": share,
        "qualifying_token_index": c.peak,
    }  # fmt: skip


def _write_neuronpedia(folder: Path, n: int, found: list[Feature], values: list[dict[str, Any]], where: dict[str, str]) -> None:
    rows: dict[str, list[dict[str, Any]]] = {"features": [], "activations": [], "explanations": []}
    for f, v in zip(found, values, strict=True):
        own = {**where, "index": str(f.id)}
        kept = {k: x for k, x in v.items() if k not in ("feature_index", "activations", "n_prompts_total", "n_tokens_in_prompt", "dataset")}
        near = {"topkCosSimIndices": [i for i, _ in f.neighbours], "topkCosSimValues": [c for _, c in f.neighbours]}
        rows["features"].append({**own, "creatorId": CREATOR, "maxActApprox": f.max, "hasVector": False, **near, **kept})
        rows["activations"] += list(_activations(own, v["activations"]))
        if f.status == "labelled":
            rows["explanations"].append(_explanation(f, own))
    for name, lines in rows.items():
        if lines:
            write_bytes(folder / name / f"batch-{n}.jsonl.gz", gzip.compress(_lines(lines), 6, mtime=0))


def _explanation(f: Feature, own: Mapping[str, str]) -> dict[str, Any]:
    """A label; the names of type and model are left open, since only names that Neuronpedia knows are taken in."""
    notes = f"{MAKER}: from {f.source}; detection AUROC {f.auroc:.3g}" if f.auroc is not None else f"{MAKER}: from {f.source}"
    kind = {"typeName": None, "explanationModelName": None, "authorId": CREATOR, "notes": notes}
    return {"id": f"{'-'.join(own.values())}-{MAKER}", **own, "description": f.label, **kind}


def _lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _activations(own: Mapping[str, str], contexts: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for i, c in enumerate(contexts):
        values, peak = c["values"], c["qualifying_token_index"]
        yield {
            "id": f"{'-'.join(own.values())}-{i}", **own, "tokens": c["tokens"], "values": values, "maxValue": max(values),
            "maxValueTokenIndex": values.index(max(values)), "minValue": min(values), "qualifyingTokenIndex": peak,
            "binMin": c["bin_min"], "binMax": c["bin_max"], "binContains": c["bin_contains"], "dfaValues": [], "lossValues": [], "creatorId": CREATOR,
        }  # fmt: skip
