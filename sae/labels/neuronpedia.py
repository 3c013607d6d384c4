"""What stands beside the features in one of Neuronpedia's exports: who made it, of which model, source and set of sources.

Names of fields are those of Neuronpedia's tables (its `schema.prisma`): a row is taken in only with every column that has no default.
"""

from collections.abc import Mapping
from typing import Any

CREATOR = "clkht01d40000jv08hvalcvly"
"""Id of the user that a new Neuronpedia has, whom its own converter of SAEDashboard's files names as well."""
MAKER = "efface"


def records(model: str, source: str, manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name of a file -> its one line.

    Args:
        model: The model's id there.
        source: The SAE's id there, layer, hyphen, set.
        manifest: Of the feature store.
    """
    sae_set = source.partition("-")[2]
    corpus, config = manifest.get("corpus") or {}, manifest.get("config") or {}
    own = {"creatorId": CREATOR, "visibility": "PUBLIC"}
    words = f"{manifest.get('hook_point') or source}, {manifest['d_sae']} features"
    read = {
        "dataset": str(corpus.get("digest") or ""),
        "num_prompts": int(corpus.get("documents") or 0),
        "num_tokens_in_prompt": int(config.get("context") or 0),
    }
    return {
        "release": {**own, "name": sae_set, "description": words, "creatorName": MAKER, "urls": []},
        "model": {**own, "id": model, "displayName": model, "displayNameShort": model, "owner": "", "layers": 0, "neuronsPerLayer": 0},
        "sourceset": {
            **own, "modelId": model, "name": sae_set, "description": words, "creatorName": MAKER, "releaseName": sae_set, "urls": [],
        },
        "source": {**own, "id": source, "modelId": model, "setName": sae_set, "hasDashboards": True, **read},
    }  # fmt: skip
