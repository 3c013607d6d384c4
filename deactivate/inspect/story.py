"""The pages that a demonstration ends with: its SAEs, the features of its edit, the edit itself, and what was measured of it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .dossiers import edit_dossier
from .edits import edit_features
from .moved import moved_features
from .page import write_page
from .prompts import PromptReader, Spell
from .results import Found
from .site import Pictures, Site
from .stores import StoreView

if TYPE_CHECKING:
    from ...sae import SAE
    from ..concept import Concept
    from ..edit import Edit

STORE = "features"
"""Evidence, in an SAE's folder."""


def write_story(
    path: Path,
    host: Any,
    concept: "Concept",
    edit: "tuple[Edit, Path]",
    saes: "Mapping[Path, SAE]",
    collect: "Callable[[Mapping[Path, SAE]], object]",
    *,
    result: Path,
    prompts: Sequence[str],
    spell: Spell,
    features: int = 300,
    pictures: Pictures | None = None,
    pictured: int = 0,
) -> Path:
    """Writes the pages; evidence is collected for the one SAE of which the edit uses most features, where it has none.

    Args:
        path: `.html`.
        host: What the edit was made for, left as it was.
        concept: What was taken out.
        edit: The edit and where it lies.
        saes: Folder -> SAE, of the host.
        collect: Makes stores: where each goes -> SAE.
        result: Folder of the evaluation.
        prompts: Shown as features and gates read them.
        spell: Strings of tokens.
        features: Of the SAE with evidence, at most.
        pictures: Draws with and without a feature.
        pictured: How many features are drawn.
    """
    used = Counter(point for point, *_ in edit_features(edit[0]))
    first = max(saes, key=lambda folder: used[str(saes[folder].card.get("hook_point"))])
    if not (first / STORE).exists():
        collect({first / STORE: saes[first]})
    views = [StoreView(sae, folder, _store(folder)) for folder, sae in saes.items()]
    views.sort(key=lambda v: v.folder != str(first))
    gates = [(edit[0].name, edit[0].gate)] if edit[0].gate is not None else []
    numbered = {i: v.sae for i, v in enumerate(views)}
    reader = PromptReader(host, numbered, gates, spell=spell, label=lambda number, f: views[number].label(f))
    moved = {"edit": edit[0].digest, "saes": moved_features(host, edit[0], numbered, prompts)}
    site = Site(
        f"{concept.name} taken out of {host.name}", views, [edit_dossier(concept, edit[0])], [edit], [Found.load(result)],
        [reader.read(p) for p in prompts], moved=[moved], pictures=pictures,
    )  # fmt: skip
    return write_page(path, site, features=features, pictured=pictured)


def _store(folder: Path) -> Any:
    from ...sae.evidence.store import FeatureStore

    return FeatureStore.open(folder / STORE, verify=False) if (folder / STORE).exists() else None
