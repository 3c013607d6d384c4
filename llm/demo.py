"""The whole job on a small real model: train SAEs, find a concept's features, edit them out of the weights, measure, report.

What `efface demo` runs. Nothing ready-made is loaded but the model: the SAEs are trained here.
"""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..base.errors import InputError
from ..base.files import write_json

if TYPE_CHECKING:
    from ..deactivate.concept import Concept
    from ..deactivate.edit import Edit
    from ..deactivate.evaluation import ReportData
    from ..sae import SAE
    from .host import Host

log = logging.getLogger("efface.demo")
DEPTH = 30
"""Layers of SmolLM2-135M, for which the layers below were chosen."""
BUFFER = 4096
"""Vectors mixed while harvesting; training reads the store shuffled, so a small one will do."""


@dataclass(frozen=True)
class DemoConfig:
    """Size of the demonstration."""

    model: str = "smollm2"
    """Host."""
    concept: str = "baseball"
    """Packaged concept or concept file."""
    layers: tuple[int, ...] = (3, 4, 5, 6, 8)
    """Layers whose MLP output gets an SAE: facts enter early, and the forward pass ends at the last of them."""
    tokens: int = 120_000
    """Vectors harvested a layer."""
    steps: int = 500
    """Steps of each SAE; more than one pass over the vectors."""
    batch: int = 1024
    """Vectors a step."""
    d_sae: int = 4608
    """Features of each SAE."""
    k: int = 32
    """Active features a vector."""
    read: int = 150
    """Texts a pool and split that the search for features reads."""
    draws: int = 3
    """Draws of each random control."""
    texts: int = 40
    """Neutral texts read by the evaluation."""
    features: int = 240
    """Features edited, at most."""
    rounds: int = 3
    """How often their effects are read."""
    questions: int = 160
    """Questions, a pool, whose margins the effects are read of."""
    continuations: int = 8
    """Texts that the base writes on, scored before and after."""
    documents: int = 80
    """Documents that show on the pages what features fire on."""
    scales: tuple[float, ...] = (0.5, 0.7, 0.85, 1.0, 1.2)
    """Factors on the changes found that are tried on validation."""
    seed: int = 0
    """Of everything."""


QUICK = DemoConfig(
    layers=(4, 6), tokens=16_000, steps=200, batch=512, d_sae=2304, read=30, draws=1, texts=12,
    features=40, rounds=1, questions=20, scales=(1.0, 2.0), continuations=4, documents=40,
)  # fmt: skip
"""What continuous integration runs: the same job, smaller."""


def run_demo(
    out: Path,
    config: DemoConfig | None = None,
    say: Callable[[str], None] = log.info,
    beside: "Callable[[Path], Sequence[ReportData]]" = lambda out: (),
) -> Path:
    """Runs the job into the new folder `out`; returns the report's path.

    Args:
        out: New folder.
        config: How large.
        say: Is told each step.
        beside: Makes further evaluations, in folders of `out`, that stand on the same page.

    Raises:
        InputError: `out` exists, or the concept has no questions to choose and to measure by.
    """
    from ..deactivate.concept import Concept
    from ..deactivate.erasing import erase
    from ..deactivate.evaluation.report import PAGES
    from .evaluation.suite import SuiteConfig, evaluate
    from .models import load_model
    from .reporting import used_features, write_evaluation

    config, started = config or DemoConfig(), time.perf_counter()
    if out.exists():
        raise InputError(f"--out {out} exists already; choose another name")

    def step(text: str) -> None:
        say(f"[{time.perf_counter() - started:5.0f} s] {text}")

    concept = Concept.load(config.concept)
    for name, split in (("questions", "validation"), ("neighbour_questions", "validation"), ("questions", "test")):
        concept.require(name, split)
    step(f"loading {config.model}")
    host = load_model(config.model)
    config = replace(config, layers=layers_of(config.layers, host.n_layers))
    step(f"harvesting {config.tokens:,} activations at {len(config.layers)} layers, training their SAEs")
    saes = train_saes(host, concept, out, config)
    for point, sae in saes.items():
        step(f"  {point}: " + ", ".join(f"{k} {sae.card['metrics'][k]:.3g}" for k in ("l0", "fvu", "dead_share")))
    step(f"choosing features whose edits take {concept.name} out and little else, and mu, on validation")
    edit = erase(
        "pisces", host, [concept], list(saes.values()), seed=config.seed,
        preset="efface", search=True, texts=config.read, grid_mu=config.scales, n_features=config.features, effect_rounds=config.rounds,
        n_effect=config.questions, n_effect_texts=2 * config.texts, n_probe=config.texts,
    )  # fmt: skip
    edit.save(out / "edit")
    for f in used_features(edit.evidence)[:8]:
        step(f"  {f.hook_point} feature {f.index}: {' '.join(map(str.strip, f.promoted[:6]))}")
    step("measuring on test, beside its controls")
    suite = SuiteConfig(texts=config.texts, draws=config.draws, continuations=config.continuations, seed=config.seed)
    result = evaluate(host, [edit], concept, "test", saes=list(saes.values()), config=suite, commands=("efface demo",))
    also = tuple(beside(out))
    seconds = time.perf_counter() - started
    note = f"SAEs trained here on {config.tokens:,} vectors a layer in {config.steps} steps; the whole job took {seconds:.0f} s."
    report = write_evaluation(
        out / "evaluation", host, concept, [edit], result, notes=(note,), also=also, pages=PAGES,
        undo=f"efface apply {out / 'edit'} --model {config.model} --out EDITED ; efface undo --model EDITED --out BASE",
    )  # fmt: skip
    step(f"pages of the features, the edit and its figures, from {config.documents} documents")
    pages = write_pages(out, host, concept, edit, list(saes.values()), config)
    seconds = time.perf_counter() - started
    write_json(out / "demo.json", {"seconds": seconds, "config": json.loads(json.dumps(config.__dict__))})
    step(f"report: {report}, pages: {pages}")
    return report


def write_pages(out: Path, host: "Host", concept: "Concept", edit: "Edit", saes: "Sequence[SAE]", config: DemoConfig) -> Path:
    """The pages that `efface inspect` would write, beside the report; what features fire on is read from a few documents."""
    from ..deactivate.evaluation.report import PAGES
    from ..deactivate.inspect.story import write_story
    from ..sae.evidence.config import EvidenceConfig
    from .corpus.choose import documents
    from .feature_stores import make_stores
    from .inspecting import example_prompts, spell

    sizes = EvidenceConfig(top=8, reservoir=10, held=8, background=400, seed=config.seed)
    folders = {out / "saes" / str(s.card["hook_point"]): s for s in saes}
    return write_story(
        out / "evaluation" / PAGES, host, concept, (edit, out / "edit"), folders,
        lambda missing: make_stores(host, documents(concept, config.seed)[: config.documents], missing, sizes),
        result=out / "evaluation", prompts=example_prompts(concept, config.seed), spell=spell,
    )  # fmt: skip


def layers_of(layers: Sequence[int], n_layers: int) -> tuple[int, ...]:
    """The layers, or, where the host ends before the last of them, those at the same share of its depth as of SmolLM2's 30."""
    return tuple(layers) if max(layers) < n_layers else tuple(dict.fromkeys(n * n_layers // DEPTH for n in layers))


def train_saes(host: "Host", concept: "Concept", out: Path, config: DemoConfig) -> "dict[str, SAE]":
    """Harvests once into a store on disk, then trains one TopK SAE a layer on several passes over it."""
    from ..sae.config import SAEConfig, TrainConfig
    from ..sae.sources import ActivationStore, HostSource
    from ..sae.trainer import train_many
    from .corpus.choose import documents

    points = [f"layers.{n}.mlp_out" for n in config.layers]
    texts = documents(concept, config.seed)
    held_out = max(config.tokens // 20, 2048)
    parts: tuple[tuple[Literal["train", "held_out"], int], ...] = (("train", config.tokens), ("held_out", held_out))
    for part, n in parts:
        source = HostSource(host, texts, points, batch=config.batch, seed=config.seed, part=part, buffer=BUFFER)
        ActivationStore.write(out / "activations" / part, source, n)
    stores = {part: ActivationStore(out / "activations" / part, config.batch, config.seed) for part in ("train", "held_out")}
    training = TrainConfig(
        steps=config.steps, batch=config.batch, lr=1e-3, warmup=min(50, config.steps // 5), seed=config.seed, checkpoint_every=0
    )
    sae = {p: SAEConfig("topk", d_in=host.d_model, d_sae=config.d_sae, k=config.k) for p in points}
    return train_many(sae, stores["train"], training, out=out / "saes", held_out=stores["held_out"])
