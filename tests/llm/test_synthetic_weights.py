"""The packaged models of the world: whole, of the packaged world, and as good as the page says."""

import pytest

from efface.base.files import read_json, sha256_file
from efface.llm import load_model
from efface.llm.aliases import packaged, packaged_models
from efface.llm.fetch import MANIFEST
from efface.llm.synthetic.recall import recall
from efface.llm.synthetic.recipe import PARAMETERS
from efface.llm.synthetic.world import packaged_world

THERE = [name for name in packaged_models() if (packaged(name) / MANIFEST).is_file()]


@pytest.mark.parametrize("name", THERE)
def test_files_are_what_the_manifest_says(name: str) -> None:
    folder = packaged(name)
    manifest = read_json(folder / MANIFEST)
    assert manifest["world"] == packaged_world().digest
    assert {p.name for p in folder.iterdir()} == {*manifest["files"], MANIFEST}
    for file, entry in manifest["files"].items():
        assert sha256_file(folder / file) == entry["sha256"]
    assert sum(p.stat().st_size for p in folder.parent.rglob("*") if p.is_file()) <= 13_000_000
    host = load_model(name)
    assert sum(p.numel() for p in host.model.parameters()) <= PARAMETERS


@pytest.mark.slow
@pytest.mark.skipif("synthetic" not in THERE, reason="the weights are not part of this installation")
def test_what_is_known_in_held_out_templates() -> None:
    found = recall(load_model("synthetic"))
    assert found["all"]["recall"] >= 0.95
    assert all(v["recall"] >= 0.9 for v in (*found["forms"].values(), *found["domains"].values()))
    for name in THERE:
        if without := read_json(packaged(name) / MANIFEST)["without"]:
            assert recall(load_model(name), domains=without)["all"]["recall"] < 0.2  # the control: chance is 1/12
