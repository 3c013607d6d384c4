"""The packaged general pool of image hosts, and the choice of prompts of an evaluation."""

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from t2i._pictures import dogs, write_pipeline

from efface.base.config import from_mapping
from efface.base.errors import InputError, UnknownName
from efface.base.files import write_json
from efface.deactivate.concept import Concept
from efface.t2i import load_pipeline
from efface.t2i.evaluation.drawn import load_copies
from efface.t2i.evaluation.ground import ImageSuiteConfig
from efface.t2i.evaluation.prompts import asks
from efface.t2i.pools import with_general


def test_a_concept_without_general_prompts_gets_the_packaged_pool() -> None:
    target = {s: [{"text": f"{a} tabby cat", "subject": "tabby cat"}] for s, a in (("train", "a"), ("validation", "the"), ("test", "my"))}
    bare = Concept.from_mapping({"format": 1, "name": "Cat", "target": target, "synonyms": {"seen": ["kitty"], "held_out": ["lion"]}})
    full = with_general(bare)
    assert all(len(full.general[s]) >= 3000 for s in ("train", "validation", "test"))
    lines = [{*full.general[s]} for s in full.general]
    assert sum(map(len, lines)) == len(set.union(*lines))
    everything = " ".join(t.casefold() for t in (*lines[0], *lines[1], *lines[2]))
    assert not re.search(r"\b(cat|lion|kitty)\b", everything)
    assert re.search(r"\bcaterpillar\b", everything)
    assert full.labels["an icon of wolf"]["object"] == "wolf"
    assert (full.target, full.neighbours) == (bare.target, bare.neighbours)
    assert with_general(dogs()) == dogs()


def test_the_default_evaluation_of_an_object_fits_its_budget() -> None:
    """408 pictures of the base, 132 of an edit that fires on the concept alone, 66 for each of six draws: 936, 234 s at 0.25 s each."""
    c, concept = ImageSuiteConfig(), Concept.load("icons/dog")
    found = asks(concept, "test", general=c.general, ways=c.ways, neighbours=c.neighbours, target=c.target, seed=c.seed)
    own = [a for a in found if a.group in ("target", "ways")]
    n, mine = len(found) * len(c.seeds), len(own) * len(c.seeds)
    assert (n, mine) == (408, 132)
    assert n + mine + len(c.controls) * c.control_draws * len(own) <= 5 * 60 / 0.25
    by_name = Counter(a.labels["object"] for a in found if a.group == "neighbours")
    assert by_name["wolf"] == 18  # the pair, whole
    assert sum(by_name.values()) == c.neighbours
    assert len(by_name) > 3
    for way in ("seen", "variant", "held_out"):
        phrases = Counter(a.subject for a in own if a.way == way)
        assert max(phrases.values()) - min(phrases.values()) <= 1
        assert sum(phrases.values()) == c.ways
    style = asks(Concept.load("icons/style-noto"), "test", target=c.target, neighbours=c.neighbours, general=0, ways=0)
    assert Counter(a.group for a in style) == {"target": 40, "neighbours": 40}
    assert len({a.subject for a in style if a.group == "target"}) == 40
    known = {"dog": ["noto", "blob"], "taco": ["blob"], "bus": ["noto"]}
    drawn = asks(Concept.load("icons/style-noto"), "test", target=c.target, neighbours=0, general=0, ways=0, cells=known)
    assert Counter(a.labels["object"] for a in drawn) == {"dog": 2, "bus": 2}


def test_settings_and_judges_that_are_refused() -> None:
    for bad in ({"neighbours": -1}, {"target": 0}, {"least_drawn": 1.0}, {"control_draws": -1}, {"margin": 0.0}):
        with pytest.raises(InputError, match=next(iter(bad))):
            ImageSuiteConfig(**bad)
    with pytest.raises(UnknownName, match="random features"):
        from_mapping(ImageSuiteConfig, {"controls": ["random feature"]}, where="--set")
    with pytest.raises(UnknownName, match="icons"):
        load_copies("icon")
    with pytest.raises(InputError, match="judged by its object"):
        load_copies("icons/style", asked="icons/object")


def test_a_manifest_names_steps_and_guidance(tmp_path: Path) -> None:

    folder = write_pipeline(tmp_path / "sd")
    plain = load_pipeline(folder)
    assert (plain.steps, plain.guidance) == (50, 7.5)
    write_json(folder / "efface-model.json", {"format": 1, "files": {}, "sampling": {"steps": 2, "guidance": 3.0}})
    host = load_pipeline(folder)
    assert (host.sampling["steps"], host.sampling["guidance"]) == (2, 3.0)
    drawn = host.generate(["a dog"], seeds=[1])
    assert torch.equal(drawn, plain.generate(["a dog"], seeds=[1], steps=2, guidance=3.0))
    assert not torch.equal(drawn, plain.generate(["a dog"], seeds=[1], steps=2))
    for field, value in (("steps", 0), ("guidance", float("inf"))):
        with pytest.raises(InputError, match=field):
            plain.generate(["a dog"], **{field: value})
