"""SAeUron on a tiny pipeline with a direction planted at one denoising step, and its mathematics on numbers written out."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from t2i._kit import (
    DOGS,
    LAST,
    MIXED,
    ON,
    REST,
    Unmoved,
    bits,
    changed,
    dog_gate,
    draw,
    edit_of,
    layer_part,
    sae_at,
    same,
    tiny_image_host,
    weights_part,
)  # fmt: skip

from efface.base.errors import HookPointNotFound, InputError, MatchedNothing
from efface.deactivate import Edit, StepwisePart
from efface.deactivate.concept import Concept
from efface.deactivate.erasing import erase
from efface.deactivate.ledger import overlay_of
from efface.sae import SAE
from efface.t2i.clock import clock
from efface.t2i.drawing_config import DrawingConfig
from efface.t2i.evaluation.controls import RandomDirections, RandomFeatures, random_controls
from efface.t2i.evaluation.suite import ImageSuiteConfig
from efface.t2i.host import ImageHost
from efface.t2i.methods import searching
from efface.t2i.methods.saeuron.config import SAeUronConfig
from efface.t2i.methods.saeuron.fit import fit, means
from efface.t2i.saes import part_digest

POINT = LAST["sd"]
TIMES = (667.0, 334.0, 1.0)
V = torch.nn.functional.normalize(torch.tensor([-0.1468, 0.7861, 0.9468, -1.1143, 1.6908, -0.8948, -0.3556, 1.2324]), dim=0)
SIZE = 50.0
SMALL = {"denoise_steps": 3, "size": (32, 32), "guidance": 7.5}


def concept(name: str = "dog", target: list[str] = DOGS, **more: object) -> Concept:
    return Concept.from_mapping({"format": 1, "name": name, "target": {"train": target}, "general": {"train": REST}, **more})


def planted_sae(host: ImageHost) -> SAE:
    """Random features, of which 0 reads and writes V where there is a lot of it."""
    sae = sae_at(host, POINT)
    with torch.no_grad():
        sae.b_dec.zero_()
        sae.W_enc[:, 0] = V
        sae.W_dec[0] = V
        sae.b_enc[0] = -SIZE / 2
    return sae


@contextmanager
def planted(host: ImageHost, time: float, word: str = "dog") -> Iterator[None]:
    """At one time, half of the patches of the rows whose prompt has the word carry V."""

    def put(x: torch.Tensor) -> torch.Tensor:
        if host.timestep is None or abs(float(host.timestep[0]) - time) > 1:
            return x
        rows = torch.tensor([bool(p) and word in str(p) for p in host.prompts or ()])
        some = torch.arange(x.shape[1]) < x.shape[1] // 2
        return x + SIZE * V * (rows[:, None] & some)[..., None]

    with clock(host), host.replaced(POINT, put):
        yield


def part_of(edit: Edit) -> StepwisePart:
    (part,) = edit.parts
    assert isinstance(part, StepwisePart)
    return part


def strong(host: ImageHost, **options: object) -> Edit:
    """An edit that does a lot at every step, by many features."""
    settings = {"preset": "efface", "percentile": 40.0, "gamma": -6.0, **SMALL, **options}
    return erase("saeuron", host, concept(), [sae_at(host, POINT)], **settings)


@pytest.mark.parametrize("when", [0, 1, 2])
def test_a_planted_direction_is_found_at_its_step_and_taken_out(when: int) -> None:
    host, time = tiny_image_host("sd"), TIMES[when]
    sae, seen = planted_sae(host), list[torch.Tensor]()
    with planted(host, time):
        edit = erase("saeuron", host, concept(), [sae], preset="efface", percentile=99.0, gamma=0.0, **SMALL)
        steps = part_of(edit).steps
        assert [round(s.time) for s in steps] == [round(t) for t in TIMES]
        assert [0 in s.features for s in steps] == [i == when for i in range(3)]
        assert steps[when].features == (0,)
        assert 0 < steps[when].thresholds[0] < SIZE / 4
        narrow = Edit([replace(part_of(edit), between=(time - 1, time + 1))], "saeuron")

        def keep(x: torch.Tensor) -> torch.Tensor:
            if abs(float(host.timestep[0]) - time) < 1:  # type: ignore[index]
                seen.append(sae.encode(x)[..., 0].detach())
            return x

        with host.replaced(POINT, keep):
            base = draw(host, steps=3)
        with narrow.applied(host, everywhere=True), host.replaced(POINT, keep):
            draw(host, steps=3)
        with narrow.applied(host):
            drawn = draw(host, steps=3)
    before, after = (x[4:].amax(1) for x in seen)  # rows of prompts
    assert (before[ON] > SIZE / 3).all()
    assert (after[ON] < 3).all()  # what is left is the bias: f = v.x - 25, and f d is taken out
    assert (before[~ON] == 0).all()
    assert changed(drawn, base).tolist() == ON.tolist()
    unplanted = erase("saeuron", host, concept(), [sae], preset="efface", percentile=99.0, **SMALL)
    assert not any(0 in s.features for s in part_of(unplanted).steps)


def test_published_factors_and_thresholds() -> None:
    host = tiny_image_host("sd")
    with planted(host, TIMES[1]):
        found = {
            p: part_of(erase("saeuron", host, concept(), [planted_sae(host)], preset=p, gamma=-5.0, **SMALL)) for p in ("paper", "efface")
        }
        own = means(host, planted_sae(host), DOGS, 0, SAeUronConfig(**SMALL).drawing({}), "")
    mu = float(own.mean()[1, 0])
    assert mu == pytest.approx(SIZE / 4, rel=0.1)  # f is 25 on half of the patches
    paper, ours = (p.steps[1] for p in found.values())
    assert paper.features == ours.features == (0,)
    assert paper.factors == pytest.approx((-5.0 * mu,))
    assert ours.factors == (-5.0,)
    assert paper.thresholds == pytest.approx((mu / 20,))
    assert (found["paper"].everywhere, found["efface"].everywhere) == (True, False)


def test_means_stream() -> None:
    host = tiny_image_host("sd")
    sae, prompts = sae_at(host, POINT), [*DOGS, *REST]
    whole = means(host, sae, prompts, 0, DrawingConfig(2, size=(32, 32), halves="conditional"), "")
    each = means(host, sae, prompts, 0, DrawingConfig(2, size=(32, 32), halves="conditional", pictures=1), "")
    assert whole.times == each.times == [501.0, 1.0]
    assert set(whole.counts.values()) == {5 * 16}
    assert torch.allclose(whole.mean(), each.mean(), atol=1e-5)
    assert not torch.allclose(whole.mean()[0], whole.mean()[1], atol=1e-3)


def test_negative_rows_are_left_alone_unless_published() -> None:
    host = tiny_image_host("sd")
    states, away = host.encode(MIXED), host.encode([""] * 4, negative=True)
    latents, both = torch.randn(8, 4, 4, 4), torch.cat([away.embeds, states.embeds])
    edits = {rows: strong(host, rows=rows) for rows in ("conditional", "all")}
    with torch.no_grad():
        base = host.denoiser(latents, 500, both, return_dict=False)[0]
        found = {}
        for rows, edit in edits.items():
            with edit.applied(host), host.rows([None] * 4 + MIXED):
                found[rows] = changed(host.denoiser(latents, 500, both, return_dict=False)[0], base).tolist()
        with edits["all"].gated(dog_gate(host)).applied(host), host.rows([None] * 4 + MIXED):
            found["gated"] = changed(host.denoiser(latents, 500, both, return_dict=False)[0], base).tolist()
    assert found == {"conditional": [False] * 4 + [True] * 4, "all": [True] * 8, "gated": [False] * 4 + ON.tolist()}
    with edits["all"].applied(host):  # no row is selected, so the pipeline may be called by itself
        host.pipeline(DOGS, num_inference_steps=1, height=32, width=32, output_type="latent")


def test_one_drawing_after_the_other_is_the_same_and_the_released_count_runs_out() -> None:
    host = tiny_image_host("sd")
    base = draw(host, steps=3)
    edit = strong(host)
    with edit.applied(host):
        first = draw(host, steps=3)
        draw(host, steps=5)
        assert torch.equal(draw(host, steps=3), first)
    assert changed(first, base).all()
    official = strong(host, rows="all", compat="official")
    with official.applied(host):
        assert changed(draw(host, steps=3), base).all()
        with pytest.raises(InputError, match="never begins anew"):
            draw(host, steps=3)
    assert torch.equal(draw(host, steps=3), base)


def test_several_concepts_are_their_lists_in_any_order() -> None:
    host = tiny_image_host("sd")
    dog, sea = concept(), concept("sea", ["an old house by the sea"])
    sae, options = [sae_at(host, POINT)], {"preset": "efface", "percentile": 80.0, **SMALL}
    alone = [part_of(erase("saeuron", host, c, sae, **options)).steps for c in (dog, sea)]
    both, turned = (part_of(erase("saeuron", host, c, sae, **options)) for c in ([dog, sea], [sea, dog]))
    assert both.steps == turned.steps == tuple(a.joined([b]) for a, b in zip(*alone, strict=True))
    assert both.steps != alone[0]
    assert both.tensors().keys() == turned.tensors().keys()
    with Edit([both], "saeuron").applied(host):
        drawn = draw(host)
    with Edit([turned], "saeuron").applied(host):
        assert torch.equal(draw(host), drawn)


def test_beside_other_edits_saved_and_taken_off(tmp_path: Path) -> None:
    host = tiny_image_host("sd")
    before, base = bits(host), draw(host)
    hooks = {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in host.model.named_modules()}
    own, text, weights = (
        strong(host),
        edit_of(host, layer_part(host)),
        edit_of(host, weights_part(host, "cross_attention", size=2.0), seed=2),
    )
    own.save(tmp_path / "own")
    loaded = Edit.load(tmp_path / "own")
    assert loaded.digest == own.digest
    with own.applied(host):
        alone = draw(host)
    with loaded.applied(host) as fired:
        assert torch.equal(draw(host), alone)
        assert fired[POINT] == 2
    with own.applied(host), text.applied(host), weights.applied(host):
        all_three = draw(host)
    with weights.applied(host), text.applied(host), loaded.applied(host):
        assert torch.equal(draw(host), all_three)
    with text.applied(host), weights.applied(host):
        without = draw(host)
    assert changed(all_three, without).all()
    assert changed(all_three, alone).all()
    with pytest.raises(RuntimeError), own.applied(host), host.replaced(POINT, _fails):
        draw(host)
    assert host.timestep is None
    assert same(bits(host), before)
    assert torch.equal(draw(host), base)
    assert {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in host.model.named_modules()} == hooks
    two = ImageHost(host.pipeline, "again")
    with own.applied(two):
        assert torch.equal(draw(two), alone)
    with pytest.raises(InputError, match="no permanent form"):
        own.apply_(host)


def _fails(x: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("within the denoiser")


def test_rows_at_different_times_are_edited_by_their_own_step() -> None:
    host = tiny_image_host("sd")
    states, latents = host.encode(DOGS), torch.randn(2, 4, 4, 4)
    with torch.no_grad(), strong(host).applied(host):
        mixed = host.predict(latents, torch.tensor([650, 20]), states)
        early, late = (host.predict(latents, t, states) for t in (650, 20))
    assert torch.allclose(mixed[0], early[0], atol=1e-5)
    assert torch.allclose(mixed[1], late[1], atol=1e-5)
    assert not torch.allclose(mixed[0], late[0], atol=1e-3)


def test_refuses() -> None:
    host, text = tiny_image_host("sd"), "text_encoder.layers.1.resid_post"
    sae = sae_at(host, POINT)
    silent = sae_at(host, POINT)
    with torch.no_grad():
        silent.b_enc.fill_(-1e6)
    settings = SAeUronConfig(percentile=90.0, **SMALL)
    other = sae_at(host, POINT)
    other.card["model_digest"] = part_digest(host, POINT)
    host.check_sae(other)
    with torch.no_grad():
        host.denoiser.conv_in.bias.add_(1)
    lost = sae_at(host, POINT)
    lost.card["hook_point"] = "unet.up_blocks.7.attentions.1.out"
    for saes, options, error, message in (
        ([], settings, InputError, "takes one SAE"),
        ([sae, sae], settings, InputError, "found 2"),
        ([sae_at(host, text)], settings, InputError, "not in the unet"),
        ([other], settings, InputError, "another unet"),
        ([lost], settings, HookPointNotFound, "nearest"),
        ([silent], settings, MatchedNothing, "no feature is above"),
        ([sae], replace(settings, between=(400.0, 600.0)), InputError, "none of the times"),
        ([sae], replace(settings, percentile=90.0, prompts=1), None, ""),
    ):
        if error is None:
            assert part_of(fit(host, [concept()], None, options, saes)).features
            continue
        with pytest.raises(error, match=message):
            fit(host, [concept()], None, options, saes)
    with pytest.raises(MatchedNothing, match="no concept"):
        fit(host, [], None, settings, [sae])
    for field, value in (("percentile", 100.0), ("gamma", float("nan")), ("n_concepts", 1), ("between", (9.0, 1.0)), ("denoise_steps", -1)):
        with pytest.raises(InputError, match=field):
            replace(SAeUronConfig(), **{field: value})
    assert not overlay_of(host).entries


def test_random_features_and_directions_of_a_stepwise_edit() -> None:
    host = tiny_image_host("sd")
    edit, judged = strong(host, percentile=90.0), concept()
    part = part_of(edit)
    source = RandomFeatures(host, edit, judged)
    drawn, again, other = (part_of(source.draw(i)) for i in (0, 0, 1))
    assert drawn.steps == again.steps != other.steps
    assert not set(drawn.features) & set(part.features)
    for mine, theirs in zip(part.steps, drawn.steps, strict=True):
        assert len(mine.features) == len(theirs.features)
        assert sorted(mine.factors) == sorted(theirs.factors)
        assert min(theirs.thresholds, default=1.0) > 0
    turned = part_of(RandomDirections(edit).draw(0))
    own, new = part.written(part.features), turned.written(part.features)
    torch.testing.assert_close(new.norm(dim=1), own.norm(dim=1))
    assert torch.nn.functional.cosine_similarity(new, own).abs().max() < 1 - 1e-3
    x, times = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([part.steps[0].time])
    before, after = ((p.rewrite(x, times) - x).detach() for p in (part, turned))
    assert torch.equal(before.abs().amax(-1) > 0, after.abs().amax(-1) > 0)
    assert not torch.allclose(before, after, atol=1e-3)
    config = ImageSuiteConfig(control_draws=1)
    made, absent = random_controls(host, [edit], judged, config)
    assert (sorted(made), absent) == (["random directions", "random features"], [])
    whole = Edit(
        [
            replace(
                part, steps=tuple(replace(s, features=tuple(range(24)), factors=(0.0,) * 24, thresholds=(0.0,) * 24) for s in part.steps)
            )
        ],
        "saeuron",
    )
    with pytest.raises(MatchedNothing, match="other features that fire"):
        RandomFeatures(host, whole, judged)


def test_the_search_takes_the_first_pair_that_is_enough() -> None:
    host = tiny_image_host("sd")
    options = {"steps": 3, "size": (32, 32)}
    drawn = partial(host.generate, **options)
    base = drawn(["a big dog"], seed=0)

    target = {"train": ["the dog"], "validation": [{"text": "a big dog", "labels": {"object": "dog"}}]}
    asked = Concept.from_mapping({"format": 1, "name": "dog", "target": target, "general": {"train": REST}, "judge": "icons/object"})
    settings = {"preset": "efface", "search": True, "grid_percentile": (90.0, 40.0), "grid_gamma": (1.0, -6.0), **SMALL}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "load_judges", lambda name: [Unmoved(base)])
        patch.setitem(host.__dict__, "generate", drawn)
        found = erase("saeuron", host, asked, [sae_at(host, POINT)], **settings)
    assert (found.config["percentile"], found.config["gamma"]) == (90.0, -6.0)
    pairs = [{"percentile": 90.0, "gamma": g, "gone": gone} for g, gone in ((1.0, 0.0), (-6.0, 1.0))]
    assert found.evidence["search"] == pairs
    plain = erase("saeuron", host, asked, [sae_at(host, POINT)], preset="efface", percentile=90.0, gamma=-6.0, **SMALL)
    assert part_of(found).steps == part_of(plain).steps
    with pytest.raises(MatchedNothing, match="grid"):
        erase("saeuron", host, asked, [sae_at(host, POINT)], preserve=["the dog"], **settings)
    with pytest.raises(InputError, match="grid_gamma"):
        SAeUronConfig(search=True, grid_gamma=())
    with pytest.raises(InputError, match="official"):
        SAeUronConfig(search=True, compat="official")
