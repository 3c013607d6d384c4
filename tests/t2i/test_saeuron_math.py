"""SAeUron's mathematics on numbers written out, and what it reads of a concept and of an SAE's card."""

from dataclasses import replace

import pytest
import torch

from efface.base.errors import InputError, MatchedNothing
from efface.deactivate import StepFeatures
from efface.deactivate.concept import Concept
from efface.t2i.drawing_config import DrawingConfig
from efface.t2i.methods.saeuron.config import SAeUronConfig
from efface.t2i.methods.saeuron.fit import rest_prompts
from efface.t2i.methods.saeuron.math import ConceptMeans, MeanActivations, above_percentile, scores

DOGS, REST = ["a big dog", "a dog and a cat"], ["a red apple", "the blue bus", "a green tree"]


def concept(**more: object) -> Concept:
    return Concept.from_mapping({"format": 1, "name": "dog", "target": {"train": DOGS}, "general": {"train": REST}, **more})


def test_the_mathematics_on_numbers() -> None:
    own, rest = torch.tensor([[6.0, 2.0, 0.0, 0.0]]).double(), torch.tensor([[2.0, 2.0, 0.0, 4.0]]).double()
    assert scores(own, rest).tolist() == [pytest.approx([0.5, 0.0, 0.0, -0.5])]
    assert above_percentile(scores(own, rest), 60.0).tolist() == [[True, False, False, False]]
    assert above_percentile(scores(own, rest), 0.0).tolist() == [[True, False, False, False]]  # never at or below 0
    assert not above_percentile(scores(own * 0, rest), 0.0).any()  # nothing fires
    ramp = torch.arange(20_480).double()[None]
    assert [int(above_percentile(ramp, p).sum()) for p in (99.99, 99.995, 99.999)] == [3, 2, 1]  # as published
    found = ConceptMeans((500.0,), own, rest)
    assert found.thresholds(4).tolist() == [[3.0, 2.0, 0.0, 3.0]]
    (step,) = found.steps(60.0, -2.0, True, 4)
    assert step == StepFeatures(500.0, (0,), (-12.0,), (3.0,))
    with pytest.raises((InputError, TypeError), match=r"same steps|rest"):
        scores(own, rest.repeat(2, 1))
    with pytest.raises(MatchedNothing):
        MeanActivations(4).mean()


def test_what_everything_else_is() -> None:
    near = [f"a {w} cat" for w in ("red", "big", "blue", "old")]
    both = concept(neighbours={"train": near})
    assert rest_prompts(both, None, SAeUronConfig()) == [*near, *REST]
    assert len(rest_prompts(both, None, SAeUronConfig(rest=4))) == 4
    assert len(set(rest_prompts(both, None, SAeUronConfig(rest=4))) & set(near)) == 2
    assert rest_prompts(both, ["a bus"], SAeUronConfig()) == ["a bus"]
    alone = Concept.from_mapping({"format": 1, "name": "dog", "target": {"train": DOGS}})
    with pytest.raises(InputError, match=r"has no general\.train"):
        rest_prompts(alone, None, SAeUronConfig())
    with pytest.raises(MatchedNothing, match="preserve"):
        rest_prompts(both, [], SAeUronConfig())


def test_how_pictures_are_drawn_comes_from_the_saes_card() -> None:
    policy = {"denoise_steps": 20, "guidance": 4.5, "size": [64, 32], "negative": "grey", "halves": "both", "collect": [1]}
    drawing = SAeUronConfig().drawing(policy)
    assert drawing == DrawingConfig(20, (), 4.5, "conditional", "grey", (64, 32))
    assert SAeUronConfig(denoise_steps=3, guidance=9.0).drawing(policy) == replace(drawing, denoise_steps=3, guidance=9.0)
    assert SAeUronConfig().drawing({}).denoise_steps == 50
