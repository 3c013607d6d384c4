"""The image story of `efface demo`: sheets, an SAE of the text encoder, a concept taken out behind its gate, figures and controls."""

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base.errors import InputError
from .aliases import ALIASES, drawable, packaged_saes

if TYPE_CHECKING:
    from ..deactivate.concept import Concept
    from ..deactivate.edit import Edit
    from ..deactivate.evaluation import ReportData
    from ..sae import SAE
    from .evaluation.suite import ImageSuiteConfig
    from .host import ImageHost

log = logging.getLogger("efface.demo")


@dataclass(frozen=True)
class StoryConfig:
    """Size of the image story."""

    model: str = ""
    """An alias or a pipeline folder; empty: the first alias with packaged weights."""
    concept: str = "icons/dog"
    """What is taken out."""
    eraser: str = "itd"
    """Method of the registry, by features of an SAE, with a gate of its own."""
    preset: str = "efface"
    """Of the method."""
    form: str = "replace"
    """Of the method `itd`, where the concept has an anchor: that is drawn instead."""
    tokens: int = 150_000
    """Vectors that the SAE is trained on, where none is packaged; several passes over the prompts."""
    d_sae: int = 1024
    """Its features."""
    k: int = 16
    """Active features a vector."""
    batch: int = 512
    """Vectors a step."""
    target: int = 18
    """Prompts by name that are drawn."""
    ways: int = 8
    """Prompts of each other way to ask."""
    neighbours: int = 27
    """Prompts of neighbours."""
    general: int = 40
    """Other prompts."""
    draws: int = 1
    """Draws of each random control."""
    lines: int = 1000
    """Prompts that show on the pages what features fire on."""
    pictured: int = 4
    """Features that the pages show drawn with and without."""
    seed: int = 0
    """Of everything."""


QUICK = StoryConfig(tokens=60_000, d_sae=512, target=10, ways=4, neighbours=16, general=20, lines=400, pictured=2)
"""The same job, smaller."""


def image_story(out: Path, config: StoryConfig | None = None, say: Callable[[str], None] = log.info) -> "tuple[ReportData | None, str]":
    """Runs the story into the new folder `out`.

    Args:
        out: Holds `sae` (where one was trained), `edit` and `evaluation` afterwards; nothing where the story is skipped.
        config: How large.
        say: Is told each step.

    Returns:
        What stands on the report's page (None: nothing), and one sentence on what was done or why nothing was.

    Raises:
        InputError: `out` exists, or the model is no pipeline.
    """
    config, started = config or StoryConfig(), time.perf_counter()
    model = config.model or drawable()
    if model is None:
        known = " or ".join(ALIASES)
        return None, f"No pictures: this installation has no weights for {known}; efface icons train makes them."
    if out.exists():
        raise InputError(f"--out {out} exists already; choose another name")
    from ..deactivate.concept import Concept
    from ..deactivate.erasing import erase
    from ..deactivate.evaluation.report import PAGES
    from .evaluation.reporting import report, write_evaluation
    from .evaluation.suite import evaluate
    from .icons.cells import cells_of
    from .models import load_pipeline

    def step(text: str) -> None:
        say(f"[{time.perf_counter() - started:5.0f} s] {text}")

    step(f"loading {model}")
    host, concept = load_pipeline(model), Concept.load(config.concept)
    sae, made = _sae(host, model, out, config, step)
    step(f"choosing the features of {concept.name} and calibrating their gate")
    form = {"form": config.form} if config.eraser == "itd" and concept.anchor else {}
    edit = erase(config.eraser, host, [concept], [sae], seed=config.seed, preset=config.preset, **form)
    edit.save(out / "edit")
    if edit.gate is not None:
        step(f"  {edit.gate.summary()}")
    step("drawing and judging on test, beside its controls")
    cells, admitted = cells_of(model, None, host.sampling)
    command = "efface demo"
    found = evaluate(host, [edit], concept, "test", _suite(config), cells=cells, commands=(command,))
    notes = (made, admitted, f"The pictures took {time.perf_counter() - started:.0f} s.")
    write_evaluation(out / "evaluation", found, notes=notes, pages=PAGES)
    step(f"pages of the features, the edit and its figures, from {config.lines} prompts")
    write_pages(out, host, concept, edit, sae, config)
    step(f"pictures: {out / 'evaluation' / 'report.html'}")
    return report(
        found, title=f"Pictures: {concept.name} taken out of {host.name}", notes=notes
    ), f"pictures of {host.name}: {out / 'evaluation'}"


def write_pages(out: Path, host: "ImageHost", concept: "Concept", edit: "Edit", sae: "SAE", config: StoryConfig) -> Path:
    """The pages that `efface inspect` would write, beside the report, features drawn with and without among them."""
    from ..deactivate.evaluation.report import PAGES
    from ..deactivate.inspect.story import write_story
    from ..sae.evidence.config import EvidenceConfig
    from ..sae.evidence.store import FeatureStore
    from .feature_stores import make_stores
    from .inspecting import FeaturePictures, example_prompts, spell

    folder = out / "sae" / str(sae.card["hook_point"])
    sizes = EvidenceConfig(top=8, reservoir=10, held=8, background=400, seed=config.seed)
    lines = prompts()
    lines = random.Random(config.seed).sample(lines, min(config.lines, len(lines)))

    def drawn(number: int, feature: int) -> list[dict[str, Any]]:
        return FeaturePictures(host, prompts=2, seed=config.seed).of(sae, FeatureStore.open(folder / "features", verify=False), feature)

    return write_story(
        out / "evaluation" / PAGES, host, concept, (edit, out / "edit"), {folder: sae}, lambda missing: make_stores(host, lines, missing, sizes),
        result=out / "evaluation", prompts=example_prompts(concept, config.seed), spell=spell, pictures=drawn, pictured=config.pictured,
    )  # fmt: skip


def _suite(config: StoryConfig) -> "ImageSuiteConfig":
    from .evaluation.suite import ImageSuiteConfig

    return ImageSuiteConfig(
        seeds=(config.seed,), target=config.target, ways=config.ways, neighbours=config.neighbours, general=config.general,
        control_draws=config.draws, seed=config.seed,
    )  # fmt: skip


def _sae(host: "ImageHost", model: str, out: Path, config: StoryConfig, step: Callable[[str], None]) -> "tuple[SAE, str]":
    """(the packaged SAE or a new one, a sentence on it)."""
    from ..sae import SAE
    from ..sae.config import TrainConfig
    from ..sae.recipes import train_on_host

    if ready := packaged_saes(model) if model in ALIASES else []:
        return SAE.load(ready[0]), f"The SAE is the packaged one at {ready[0].name}."
    reader = next(iter(host.readers.values()))
    point = f"{reader.part}.layers.{2 * len(reader.layers) // 3}.resid_post"
    step(f"training an SAE at {point} on {config.tokens:,} vectors")
    training = TrainConfig(tokens=config.tokens, batch=config.batch, lr=1e-3, warmup=20, seed=config.seed, checkpoint_every=0)
    sae = train_on_host(host, prompts(), [point], out / "sae", d_sae=config.d_sae, k=config.k, config=training)[point]
    step("  " + ", ".join(f"{k} {sae.card['metrics'][k]:.3g}" for k in ("l0", "fvu", "dead_share")))
    return sae, f"The SAE at {point} was trained here on {config.tokens:,} vectors."


def prompts() -> list[str]:
    """What the SAE is trained on: the miniature's things and flags, and the known other ways to ask for its objects, in templates of `train`."""
    from .icons.concepts import everything, object_concept
    from .icons.table import packaged_table

    table = packaged_table()
    asked = (line.text for name in table.objects for line in object_concept(name, table)["target"]["train"])
    return list(dict.fromkeys([*(line.text for line in everything("train", table)), *asked]))
