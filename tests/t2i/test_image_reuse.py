"""What is not drawn again: pictures that an edit cannot have changed, and the base's own; controls that are drawn by lot."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from t2i._kit import dog_gate, edit_of, layer_part, projection, sae_at, weights_part
from t2i._pictures import CONFIG, HARD, KnowingJudge, dog_edit, dogs, host_of, judges, write_pipeline

from efface.base.errors import InputError
from efface.deactivate.edit import Edit
from efface.deactivate.layer import DeactivationPart
from efface.deactivate.parts import Dense, WeightsPart
from efface.t2i.evaluation.controls import RandomDirections, RandomFeatures, random_controls
from efface.t2i.evaluation.ground import ground
from efface.t2i.evaluation.reuse import base_pictures
from efface.t2i.evaluation.suite import evaluate
from efface.t2i.host import ImageHost

LAST = "unet.up_blocks.1.attentions.1.out"
POINT = "text_encoder.layers.0.resid_pre"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("pictures") / "sd")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path) -> None:
    """Looks and pictures lie elsewhere."""


class Unaware:
    """A host that cannot say what an edit moves, so that all is drawn."""

    def __init__(self, host: ImageHost) -> None:
        self._host = host

    def __getattr__(self, name: str) -> object:
        if name == "moved":
            raise AttributeError(name)
        return getattr(self._host, name)


class Unmoved(Unaware):
    """One that says that nothing moved."""

    def __getattr__(self, name: str) -> object:
        return (lambda texts: torch.zeros(len(texts), dtype=torch.bool)) if name == "moved" else getattr(self._host, name)


def blind_copies() -> list:
    """Judges that know nothing: none is asked."""
    return [{h: KnowingJudge(h, "A") for h in ("object", "style", "flag", "mark")}]


def edits(host: ImageHost) -> dict[str, Edit]:
    return {
        "gated": dog_edit(host),
        "ungated hook": edit_of(host, layer_part(host)),
        "gated denoiser": edit_of(host, weights_part(host, "cross_attention", size=2.0), seed=1).gated(dog_gate(host)),
        "gated denoiser hook": edit_of(host, projection(host, LAST), seed=2).gated(dog_gate(host)),
        "weights": edit_of(host, weights_part(host, "text_mlp"), seed=3),
        "replaced words": dog_edit(host, form="replace"),
    }


@pytest.mark.parametrize("kind", ["gated", "ungated hook", "gated denoiser", "gated denoiser hook", "weights", "replaced words"])
def test_pictures_that_are_not_drawn_again_are_the_same_to_the_bit(folder: Path, kind: str) -> None:
    host = host_of(folder)
    shared = ground(dogs(), "validation", CONFIG, blind_copies(), None)
    base, n = shared.draw(host, "base", shared.whole)
    with edits(host)[kind].applied(host):
        spared, drawn = shared.draw(host, kind, shared.whole, base)
        whole, all_of = shared.draw(Unaware(host), kind, shared.whole, base)
        blind, none = shared.draw(Unmoved(host), kind, shared.whole, base)
        half, few = shared.draw(host, kind, shared.under(1), base)
    assert torch.equal(spared, whole)
    assert torch.equal(half, whole[shared.under(1)])
    assert not torch.equal(whole, base)
    assert torch.equal(blind, base)
    assert (all_of, none) == (n, 0)
    assert (drawn, few) == (n, n // 2) if kind in ("ungated hook", "weights") else 0 < few < drawn < n
    assert torch.equal(shared.draw(host, "base", shared.whole)[0], base)


@pytest.mark.slow
def test_an_evaluation_is_the_same_with_and_without(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host = host_of(folder)
    known, edit, config = judges(host), dog_edit(host), replace(CONFIG, reuse=False)
    spared = evaluate(host, [edit], dogs(), config=config, copies=known)
    monkeypatch.setattr(host, "moved", lambda texts: torch.ones(len(texts), dtype=torch.bool))
    whole = evaluate(host, [edit], dogs(), config=config, copies=known)
    assert spared.result.rows == whole.result.rows
    assert all(torch.equal(spared.pictures.by_row[row], images) for row, images in whole.pictures.by_row.items())
    n, (few, many) = len(spared.pictures.asks), (x.result.extra["drawn"] for x in (spared, whole))
    assert many["itd"] == many["base"] == many["random features"] == n
    assert 0 < few["itd"] < n
    assert few["random features"] == 0  # behind the same gate, and silent where it opens
    changed = spared.result.extra["changed"]
    assert 0 < changed["itd"]["pictures"] <= few["itd"]
    assert changed["random features"] == {"pictures": 0, "of": n}


def test_moved_prompts(folder: Path) -> None:
    host = host_of(folder)
    prompts = ["a red apple", "a big dog", "", "a dog and a cat"]
    assert not host.moved(prompts).any()
    with dog_edit(host).applied(host):
        assert host.moved(prompts).tolist() == [False, True, False, True]
    with edit_of(host, layer_part(host)).applied(host):
        assert host.moved(prompts).tolist() == [True, True, False, True]
    with edit_of(host, layer_part(host)).applied(host, everywhere=True):
        assert host.moved(prompts).all()
    with edit_of(host, weights_part(host, "cross_attention")).applied(host):
        assert host.moved(prompts).all()
    assert not host.moved(prompts).any()


def test_the_bases_pictures_are_kept_and_only_where_all_is_alike(folder: Path, cache: Path) -> None:
    host = host_of(folder)
    known, edit = judges(host), dog_edit(host)

    first, again = (evaluate(host, [edit], dogs(), config=replace(CONFIG, controls=()), copies=known) for _ in range(2))
    n = len(first.pictures.asks)
    assert (first.result.extra["drawn"]["base"], again.result.extra["drawn"]["base"]) == (n, 0)
    assert first.result.rows == again.result.rows
    assert first.result.card.digest == again.result.card.digest
    assert all(torch.equal(a, again.pictures.by_row[r]) for r, a in first.pictures.by_row.items())

    def drawn(host: ImageHost, **more: object) -> int:
        return base_pictures(host, ground(dogs(), "validation", replace(CONFIG, **more), known, None))[1]

    assert drawn(host) == 0
    assert drawn(host_of(folder, steps=3)) == n
    assert drawn(host, batch=4) == n
    assert drawn(host, reuse=False) == n
    with edit.applied(host):  # a base that is none: its digest does not show the hook
        assert drawn(host) == n
    for kept in (cache / "pictures").glob("*/pictures.safetensors"):
        kept.write_bytes(kept.read_bytes()[:-9])
    assert drawn(host) == n  # a damaged one is drawn again
    assert drawn(host) == 0


def test_ways_to_ask_that_the_base_does_not_draw_do_not_count(folder: Path) -> None:
    host = host_of(folder)
    known, edit = judges(host, ("test",)), dog_edit(host)
    found = evaluate(host, [edit], dogs(), "test", replace(CONFIG, controls=()), copies=known).result
    ways = found.extra["ways"]
    assert ways["seen"] == {"puppy": {"drawn by the base": 1.0, "n": 10, "counts": True}}
    assert ways["held_out"][HARD] == {"drawn by the base": 0.0, "n": 10, "counts": False}
    row = found.row("itd").metrics
    assert "UA_held_out" not in row
    assert row["UA_seen"].mean == 0  # «puppy» is not the planted word
    assert row["UA"].mean == 1
    assert any("UA_held_out" in a for a in found.extra["absent"])


def test_random_controls_of_features(folder: Path) -> None:
    host = host_of(folder)
    sae = sae_at(host, "text_encoder.layers.1.resid_post")
    layer = DeactivationPart(sae, (0, 3, 5), -6.0, "scale", keep_error=False, spare_first=True)
    edit = edit_of(host, layer).gated(dog_gate(host))
    source = RandomFeatures(host, edit, dogs())
    one, other, again = (source.draw(i) for i in (0, 1, 0))
    assert one.digest == again.digest != other.digest
    for drawn in (one, other):
        part = drawn.parts[0]
        assert drawn.gate is edit.gate
        assert len(set(part.features)) == 3
        assert not {*part.features} & {*layer.features}
        assert (part.value, part.mode, part.keep_error, part.spare_first) == (-6.0, "scale", False, True)
    dead = replace(layer, sae=silenced(sae))
    with pytest.raises(InputError, match="0 other features that fire, 3 are needed"):
        RandomFeatures(host, edit_of(host, dead), dogs())
    turned = RandomDirections(edit).draw(0).parts[0]
    rows, own = turned.directions(), layer.directions()
    torch.testing.assert_close(rows.norm(dim=1), own.norm(dim=1))
    assert torch.nn.functional.cosine_similarity(rows, own).abs().max() < 0.95
    x = host.activations(["a big dog"], [layer.hook_point])[layer.hook_point]
    assert torch.equal(turned.change(x)[1], layer.change(x)[1])
    assert torch.equal(turned.reconstruction(x), layer.reconstruction(x))
    assert not torch.allclose(turned.change(x)[0], layer.change(x)[0])


def silenced(sae):
    import copy

    out = copy.deepcopy(sae)
    with torch.no_grad():
        out.b_enc.fill_(-1e3)
    return out


def test_random_directions_of_weights_and_what_has_none(folder: Path) -> None:
    host = host_of(folder)
    low = edit_of(host, weights_part(host, "cross_attention"))
    drawn = RandomDirections(low).draw(1).parts[0]
    for name, delta in low.weights[0].deltas.items():
        torch.testing.assert_close(drawn.deltas[name].B.norm(dim=0), delta.B.norm(dim=0))
        assert torch.equal(drawn.deltas[name].A, delta.A)
        assert not torch.allclose(drawn.deltas[name].B, delta.B)
    name, delta = next(iter(low.weights[0].deltas.items()))
    dense = edit_of(host, WeightsPart({name: Dense(delta.delta().float())}))
    made, absent = random_controls(host, [dense], dogs(), CONFIG)
    assert not made
    assert [a.split(":")[0] for a in absent] == ["random features", "random directions"]
    out = edit_of(host, projection(host, LAST))
    made, absent = random_controls(host, [out], dogs(), CONFIG)
    assert [a.split(":")[0] for a in absent] == ["random features"]
    own, other = out.parts[0], made["random directions"][0][0].parts[0]
    assert other.left.shape == own.left.shape
    assert not torch.allclose(other.left @ other.right, own.left @ own.right)
    assert random_controls(host, [low], dogs(), replace(CONFIG, control_draws=0)) == ({}, ["random controls: control_draws is 0"])
    made, absent = random_controls(host, [low], dogs(), replace(CONFIG, controls=("random directions",)))
    assert [len(d) for d in made["random directions"]] == [1, 1]
    assert absent == ["random features: not asked for"]
