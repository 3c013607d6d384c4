"""A site with something on every page, made from a tiny host; hostile text wherever people or models write."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from evidence_kit import PLANTED, POINT, documents, word_sae
from planted import magic
from result_cards import card, result
from tiny import tiny_host

from efface.deactivate.edit import Edit
from efface.deactivate.evaluation.results import Metric, Row
from efface.deactivate.evaluation.value import Value
from efface.deactivate.gate import Gate, GateSource
from efface.deactivate.inspect.moved import moved_features
from efface.deactivate.inspect.prompts import PromptReader
from efface.deactivate.inspect.results import SAMPLES, Found
from efface.deactivate.inspect.site import Site
from efface.deactivate.inspect.stores import StoreView
from efface.deactivate.layer import DeactivationPart
from efface.deactivate.parts import LowRank, WeightsPart
from efface.llm.evidence import FeatureConfig
from efface.llm.features import SPLITS, features
from efface.llm.inspecting import spell
from efface.llm.vocabulary import extreme_tokens, token_strings
from efface.sae.evidence import EvidenceConfig, FeatureStore, collect, write_store
from efface.sae.evidence.schema import LABEL_COLUMNS

EVIL = "<img src=x onerror=\"document.title='owned'\"></script><script>document.title='owned'</script>"
D_SAE = 150
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415478da63f8cfc00000030101"
    "00c9fe92ef0000000049454e44ae426082"
)
TEXTS = ["the wizard saw a castle", "the piano is red"]


def labels() -> list[dict[str, Any]]:
    """Feature 7 has a hostile label; 9 has none, though what was proposed for it would score best."""
    rows: list[dict[str, Any]] = [
        {**dict.fromkeys(LABEL_COLUMNS)} | {"label": PLANTED[i] if i < 16 else f"word {i % 5}, {i}", "status": "labelled"}
        for i in range(D_SAE)
    ]
    for i, row in enumerate(rows):
        row |= {"auroc": 0.5 + i / 300, "auroc_low": 0.4 + i / 300, "auroc_high": 0.5 + i / 299.9, "validation": 0.9, "source": "words"}
        row |= {"fuzzing": 0.45 + i / 300, "fuzzing_low": 0.4 + i / 300, "fuzzing_high": 0.5 + i / 300}
    rows[7]["label"] = EVIL
    rows[9] |= {"label": "unlabelled", "status": "at chance", "auroc": 0.9999, "proposal": EVIL}
    return rows


def dossier_of(host, sae, concept) -> dict:
    """A concept's dossier by the real ranking and a gate of the first feature, calibrated."""
    from efface.deactivate.inspect.dossiers import dossier

    report = features(host, concept, [sae], FeatureConfig(texts=None, min_rho=1.2), splits=SPLITS).to_dict()
    gate = Gate([GateSource(sae, (0, 1))])
    made = gate.calibrated(host, concept.target["validation"], concept.general["validation"], concept.neighbours["validation"], fpr=0.1)
    return dossier(
        concept,
        report,
        lambda: (made, {"split": "test", "threshold": 1.0, "fires on target": {"rate": 0.5, "low": 0.2, "high": 0.8, "n": 9}}),
    )


def edits_of(host, sae, folder: Path) -> list[tuple[Edit, Path]]:
    """One of weights, one of a layer behind a gate."""
    g = torch.Generator().manual_seed(0)
    deltas = {}
    for layer in (0, 2):
        name, weight, _ = host.down_proj(layer)
        deltas[name] = LowRank(torch.randn(weight.shape[0], 2, generator=g), torch.randn(2, weight.shape[1], generator=g))
    magic_ = {"name": "magic", "digest": "0" * 64}
    evidence = {"concepts": [{"concept": "magic", "features": [{"hook_point": POINT, "id": 0, "rho": 4.0, "auroc": {"validation": 0.9}}]}]}
    weights = Edit([WeightsPart(deltas)], "pisces", {"k": 2}, [magic_], evidence=evidence).bound(host)
    pool = [d for d in documents(40, seed=5) if PLANTED[0] not in d]
    gate = Gate([GateSource(sae, (0,))]).calibrated(host, TEXTS[:1], pool, fpr=0.1)
    layer = Edit([DeactivationPart(sae, (0, 3))], "layer", {}, [magic_]).bound(host).gated(gate)
    found = []
    for edit in (weights, layer):
        place = folder / f"edit-{edit.eraser}"
        edit.save(place)
        found.append((Edit.load(place), place))
    return found


def results_of(folder: Path, digest: str) -> list[Found]:
    """Two of one protocol, the first with samples and sheets of the edit `digest`; one of attacks, of another protocol."""
    found = []
    for i, name in enumerate(("pisces", "rmu")):
        one = result(name, 0.2 + i / 5, concept="magic")
        kept = Value(0.9 - i / 10, 0.85 - i / 10, 0.95 - i / 10, 8, "concepts", "t")
        own = {"base": {"kept": Value(1.0)}, "edited": {"kept": kept}, "control": {}}
        rows = tuple(replace(r, metrics={**r.metrics, **own[r.kind]}, note=EVIL) for r in one.rows)
        metrics = {**one.metrics, "kept": Metric("kept", "higher", unit="%", scale=100.0, digits=1, about=EVIL)}
        place = folder / f"eval-{name}"
        replace(one, rows=rows, metrics=metrics, extra={"edits": [digest] if i == 0 else ["0"], "absent": ["gold"]}).save(
            place / "result.json"
        )
        found.append(place)
    (found[0] / SAMPLES).write_text(json.dumps([{"prompt": EVIL, "before": "a wizard", "after": EVIL, "about": "target"}]))
    (found[0] / "sheets").mkdir()
    for side in ("base", "edited"):
        (found[0] / "sheets" / f"target-{side}.png").write_bytes(PIXEL)
    attacked = result("attacked", 0.4, concept="magic", suite="attacks", extra={"budget": 3})
    rows = (Row("pisces", "edited", {"asr_gcg": Value(0.25, 0.1, 0.5, 8, "items", "Wilson")}), *attacked.rows[1:])
    place = folder / "attacked"
    replace(attacked, rows=rows, metrics={"asr_gcg": Metric("GCG", "lower")}, extra={"edits": [digest]}).save(place / "result.json")
    return [Found.load(p) for p in (*found, place)]


def make_site(folder: Path, *, live: bool = False) -> tuple[Site, PromptReader]:
    """The site, and what reads prompts for it."""
    host = tiny_host()
    sae = word_sae(host, d_sae=D_SAE)
    sae.save(folder / "sae")
    reading = collect(host, documents(60), {POINT: sae}, EvidenceConfig(before=6, after=4, top=6, reservoir=20, held=6, background=40))
    U = host.unembedding()
    pieces = token_strings(host.tokenizer, torch.arange(U.shape[1]))
    medians = {"labelled": 0.8, "labelled, shuffled": 0.51, "fuzzing": 0.77, "fuzzing, shuffled": 0.52}
    about = {"labels": {"status": {"labelled": 149, "at chance": 1}, **{k: {"n": 149, "median": m} for k, m in medians.items()}}}
    out = folder / "sae" / "features"
    write_store(out, sae, reading, reading.evidence[POINT], labels(), pieces, extreme_tokens(sae.W_dec.detach(), U, 8), about)
    view = StoreView(sae, folder / "sae", FeatureStore.open(out))
    edits = edits_of(host, sae, folder)
    gates = [(e.name, e.gate) for e, _ in edits if e.gate is not None]
    reader = PromptReader(host, {0: sae}, gates, spell=spell, label=lambda _, f: view.label(f))
    concepts = [dossier_of(host, sae, c) for c in (magic(), magic(name=EVIL, tokens=None))]
    site = Site(
        f"Tiny {EVIL}", [view], concepts, edits, results_of(folder, edits[0][0].digest),
        [] if live else [reader.read(t) for t in TEXTS],
        moved=[{"edit": e.digest, "saes": moved_features(host, e, {0: sae}, TEXTS)} for e, _ in edits],
    )  # fmt: skip
    return site, reader


__all__ = ["D_SAE", "EVIL", "PIXEL", "TEXTS", "card", "make_site"]
