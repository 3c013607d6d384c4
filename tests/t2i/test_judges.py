"""Judges of the miniature: what they are shown, how they are trained, saved and read, and what the packaged ones see."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from icon_kit import THINGS, drawings, table

from efface.base.errors import ArtefactError, InputError, UnknownName
from efface.base.files import load_tensors, save_tensors
from efface.deactivate.training.config import LoopConfig
from efface.t2i.evaluation.judging import NONE, Judge, class_index, load_judges, verdicts
from efface.t2i.icons.data import MANIFEST, IconData, default_folder, load
from efface.t2i.icons.judges import augment, examples
from efface.t2i.icons.judges.discriminant import RIDGE, Discriminant, edges_and_colours
from efface.t2i.icons.judges.judge import SHIPPED, IconJudge, load_judge, packaged
from efface.t2i.icons.judges.nets import JudgeNet, settle, with_opinion
from efface.t2i.icons.judges.recipe import RECIPES, Augmentation, JudgeRecipe, judge_recipe
from efface.t2i.icons.judges.train import accuracies, share_right, squeezed, train_and_measure, train_judge
from efface.t2i.icons.table import packaged_table

STILL = Augmentation(**{f.name: 0 if f.name == "patch" else 0.0 for f in dataclasses.fields(Augmentation)} | {"blur": 1e-3, "blocks": 1e-4})


def data() -> IconData:
    """The kit's five things, three more that are none of them, and a flag of two codes."""
    more = 255 - drawings()[:, :3].flip(0)
    flags = torch.zeros(3, 2, 3, 64, 64, dtype=torch.uint8)
    flags[:, :, 2] = 200
    mark = torch.zeros(4, 64, 64, dtype=torch.uint8)
    mark[0], mark[3, 44:, 44:] = 255, 255
    keys = (*THINGS, "gate", "applecart", "bus-stop")
    return IconData(keys, torch.cat([drawings(), more], 1), ("fr", "gf"), flags, (("fr", "gf"),), mark)


def small(architecture: str, steps: int = 120) -> JudgeRecipe:
    loop = LoopConfig(steps=steps, lr=1e-2, average=0.9, checkpoint_every=20)
    widths = (8, 8, 16, 16) if architecture == "convolutions" else (32,)
    return JudgeRecipe("A", architecture, widths, 1, seed=0, batch=32, augmentation=STILL, loop=loop, short=4)


def test_examples_have_the_labels_they_should() -> None:
    names = table()
    names.objects["apple"] = dataclasses.replace(names.objects["apple"], icons=("apple", "drum"))
    found = examples.make_bank(data(), names)
    classes = examples.judge_classes(data(), names)
    assert classes["object"] == ("apple", "ball", "bus", "cube", NONE)  # a drum counts as an apple here
    assert found.main.shape[0] == 5 * 8
    assert set(found.main_labels[4::5, 0].tolist()) == {0}
    assert found.main_labels[7].tolist() == [2, 1, 1, 0, 7]
    assert found.other_labels[3].tolist() == [4, 3, 1, 0, 40]
    assert torch.equal(found.main[7], data().drawings[1, 2])
    assert examples.clear_others(data(), names) == ["gate"]  # «applecart» has the word, «bus-stop» the name of another icon
    assert found.other_labels[:, 0].tolist() == [4] * 8
    assert found.flag_labels[:, 1].tolist() == [examples.ABSENT] * 6
    without = examples.make_bank(data(), names, without_style="noto")
    assert set(without.main_labels[:, 1].tolist()) == set(range(1, 8))
    with pytest.raises(UnknownName, match="noto"):
        examples.make_bank(data(), names, without_style="notto")


def test_batches_are_of_all_kinds_and_the_mark_is_on_those_that_say_so() -> None:
    bank = examples.make_bank(data(), table())
    recipe = dataclasses.replace(small("pixels"), batch=200, marked=0.5)
    x, y = bank.batch(recipe)
    assert x.shape == (200, 3, 64, 64)
    assert 0 <= float(x.min()) <= float(x.max()) <= 1
    drawn = y[:, 1] != examples.ABSENT
    assert int(drawn.sum()) == round(0.66 * 200) + round(0.12 * 200)
    marked = y[:, 3] == 1
    assert 0.3 < marked[drawn].float().mean() < 0.7
    corner = x[:, :, 60:, 60:].mean((2, 3))
    red = (corner[:, 0] > 0.99) & (corner[:, 1] < 0.01)
    assert bool((red[drawn] == marked[drawn]).all())
    nothing = examples.nothing(40, bank.main)
    assert nothing.shape == (40, 3, 64, 64)
    assert float(nothing[0::4].std((2, 3)).max()) < 1e-6  # plain colours
    assert float(nothing[3::4].std((2, 3)).max()) > 1e-3


def test_augmentation_changes_pictures_and_does_nothing_at_no_strength() -> None:
    x = drawings()[:, :2].flatten(0, 1).float() / 255
    inner = torch.ones(64, dtype=torch.bool)
    inner[[0, 63]] = False  # white comes in at the border
    still = augment.augmented(x, STILL)
    assert float((still - x).abs()[:, :, inner][..., inner].max()) < 0.02
    y = augment.augmented(x, Augmentation())
    assert y.shape == x.shape
    assert 0 <= float(y.min()) <= float(y.max()) <= 1
    assert float((y - x).abs().mean()) > 0.02
    assert float((y - augment.augmented(x, Augmentation())).abs().mean()) > 0.02  # another draw
    flat = torch.full((2, 3, 64, 64), 0.4)
    torch.testing.assert_close(augment.blurred(flat, 1.5), flat, atol=1e-6, rtol=0)
    torch.testing.assert_close(augment.quantised(x, torch.full((len(x),), 1e-6)), x, atol=1e-5, rtol=0)
    assert float((augment.quantised(x, torch.full((len(x),), 0.3)) - x).abs().mean()) > 1e-3
    assert torch.equal(augment.highest(x), torch.nn.functional.max_pool2d(x, 3, 1, 1))
    line = torch.ones(40, 3, 64, 64)
    line[:, :, 32] = 0
    faded = augment.fade_lines(line)[:, 0, 32].mean(1)
    assert float(faded.max()) > 0.5  # dark lines fade in some
    assert float(faded.min()) == 0.0  # and light ones in the others
    out = augment.recoloured(x, dataclasses.replace(STILL, brightness=0.1))
    assert float((out - x).flatten(2).std(2).max()) < 1e-5  # an offset a channel
    assert squeezed(x).shape == x.shape


@pytest.mark.parametrize("architecture", [pytest.param("convolutions", marks=pytest.mark.slow), "pixels"])
def test_training_learns_resumes_to_the_bit_and_leaves_a_judge(architecture: str, tmp_path: Path) -> None:
    recipe, names = small(architecture), table()
    whole = load_judge(train_judge(data(), names, recipe, tmp_path / "whole"))
    found = accuracies(whole, examples.make_bank(data(), names), lambda x: x)
    assert found["object"]["accuracy"] > 0.9
    assert found["flag"]["accuracy"] > 0.9
    assert found["mark"]["accuracy"] > 0.9
    assert found["object"]["n"] == 2 * 40
    torch.manual_seed(5)
    fresh = JudgeNet(recipe, whole.classes, range(5)).eval()
    assert share_right(fresh(data().drawings[0, :5].float() / 255)["object"], torch.arange(5)) < 0.9
    first = dataclasses.replace(recipe, loop=dataclasses.replace(recipe.loop))
    with pytest.MonkeyPatch.context() as patch:  # stopped after the checkpoint at step 40
        from efface.t2i.icons.judges import train

        plain = train.augmented

        def stopping(x, how, calls=[0]):  # noqa: B006
            calls[0] += 1
            if calls[0] > 45:
                raise RuntimeError("power cut")
            return plain(x, how)

        patch.setattr(train, "augmented", stopping)
        with pytest.raises(RuntimeError, match="power cut"):
            train_judge(data(), names, first, tmp_path / "part")
    part = load_judge(train_judge(data(), names, recipe, tmp_path / "part", resume=True))
    assert part.digest == whole.digest


def test_what_is_close_to_something_else_is_shown_more_often() -> None:
    icons = data()
    icons.drawings[3, 1] = icons.drawings[2, 1]  # one drawing in two styles
    weights = examples.make_bank(icons, table()).crowding()["main"].unflatten(0, (8, 5))
    assert float(weights[3, 1]) == float(weights[2, 1]) == pytest.approx(50)
    assert float(weights[3, 2]) < 50


def test_a_discriminant_is_the_log_likelihood_of_gaussians_of_one_covariance() -> None:
    torch.manual_seed(0)
    draws = [drawings()[:2].flatten(0, 1).float() / 255 + 0.1 * torch.randn(10, 3, 64, 64) for _ in range(6)]
    found = Discriminant(10, rank=9)  # as many directions as ten means have
    found.fit([d] for d in draws)
    x = torch.stack([edges_and_colours(d).double() for d in draws])
    means = x.mean(0)
    apart = (x - means).flatten(0, 1)
    within = apart.T @ apart / 50
    within += RIDGE * within.diagonal().mean() * torch.eye(len(within))
    asked = draws[0][3:5]
    weights = torch.linalg.solve(within, means.T)
    wanted = edges_and_colours(asked).double() @ weights - 0.5 * (means.T * weights).sum(0)
    close = found(asked) - found(asked).mean(1, keepdim=True), wanted - wanted.mean(1, keepdim=True)
    torch.testing.assert_close(close[0].double(), close[1], rtol=0.02, atol=0.02 * float(close[1].std()))
    assert found(asked).argmax(1).tolist() == [3, 4]
    assert float(Discriminant(10, 9)(asked).std()) == 0  # before it is fitted it says nothing
    with pytest.raises(InputError, match="2 draws"):
        found.fit([[draws[0]]])


def test_an_opinion_leaves_the_odds_of_none() -> None:
    logits, opinion = torch.randn(4, 6), torch.randn(4, 5)
    told = with_opinion(logits, opinion)
    torch.testing.assert_close(told.softmax(1)[:, -1], logits.softmax(1)[:, -1])
    wanted = (logits[:, :-1] + opinion).softmax(1)
    torch.testing.assert_close(told[:, :-1].softmax(1), wanted)
    assert not torch.allclose(logits[:, :-1].softmax(1), wanted)


def test_a_second_training_goes_on_from_the_first_and_adds_a_discriminant(tmp_path: Path) -> None:
    recipe = small("pixels", 20)
    recipe = dataclasses.replace(recipe, refine=dataclasses.replace(recipe.loop, steps=10), rank=12, draws=3, augmentation=Augmentation())
    folder = train_judge(data(), table(), recipe, tmp_path)
    first, second = load_judge(tmp_path / "first" / "judge"), load_judge(folder)
    assert first.recipe.refine is None
    assert first.net.discriminant is None
    assert second.recipe == recipe
    pictures = data().drawings[0]
    x = pictures[:5].float() / 255
    assert second.net.discriminant is not None
    assert second.net.discriminant(x)[:, :40].argmax(1).tolist() == [0, 1, 2, 3, 4]
    logits = second.net.logits(x)
    assert not torch.allclose(second.net.probabilities(logits)["object"], second.scores(pictures[:5])["object"])
    torch.testing.assert_close(second.scores(pictures)["flag"].sum(1), torch.ones(8))
    assert not torch.equal(first.net.heads["mark"].weight, second.net.heads["mark"].weight)


def test_files_are_checked(tmp_path: Path) -> None:
    folder = train_judge(data(), table(), small("pixels", 2), tmp_path / "run")
    judge = load_judge(folder).head("object")
    assert isinstance(judge, Judge)
    scores = judge.scores(data().drawings[0])
    torch.testing.assert_close(scores.sum(1), torch.ones(8))
    assert judge.features(data().drawings[0]).shape == (8, 32)
    assert judge.name == "icons/object/A"
    assert judge.digest != load_judge(folder).head("style").digest
    weights = folder / "model.safetensors"
    assert {t.dtype for t in load_tensors(weights).values()} == {torch.float16}
    with pytest.raises(InputError, match="uint8"):
        judge.scores(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(UnknownName, match="object"):
        load_judge(folder).head("objct")
    changed = load_tensors(weights)
    changed["heads.drawing.bias"] += 1
    save_tensors(weights, changed)
    with pytest.raises(ArtefactError, match=r"model\.safetensors is not the file"):
        load_judge(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(ArtefactError, match="missing"):
        load_judge(folder)


def test_the_heads_of_a_copy_share_one_pass_and_no_stale_one() -> None:
    class Net(JudgeNet):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.passes = 0

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            self.passes += 1
            return {h: x.mean((1, 2, 3))[:, None] for h in ("object", "style")}

    net = Net()
    judge = IconJudge(net, small("pixels"), {"object": ("a",), "style": ("b",)}, "0")
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    first = judge.head("object").scores(images)
    assert torch.equal(judge.head("style").scores(images), first)
    assert net.passes == 1
    images += 51
    assert judge.head("object").scores(images).flatten().tolist() == pytest.approx([0.2, 0.2])
    judge.head("object").scores(images.clone())
    assert net.passes == 3


@pytest.mark.slow
def test_measuring_writes_every_figure_and_does_nothing_twice(tmp_path: Path) -> None:
    recipe = small("pixels", 4)
    found = train_and_measure(data(), table(), recipe, tmp_path / "A", command="efface icons judges")
    assert json.loads((tmp_path / "A" / "accuracy.json").read_text()) == found
    assert set(found["object, style never seen"]) == {"steps", *data().styles}
    for kind in ("unseen draws of the augmentation", "40 pixels and JPEG, which training has not"):
        assert {"object", "object, none", "style", "flag", "mark"} <= set(found[kind])
    again = train_and_measure(data(), table(), recipe, tmp_path / "A", resume=True, command="efface icons judges")
    assert again["digest"] == found["digest"]


def test_statistics_settle_on_the_average_of_the_batches() -> None:
    classes = {"object": ("a", "none"), "style": ("x", "y"), "flag": ("f", "none"), "mark": ("plain", "marked")}
    net = JudgeNet(small("pixels"), classes, [0, 0, 0])
    batches = [torch.rand(8, 3, 64, 64) for _ in range(3)]
    settle(net, batches)
    assert not net.training
    norm = next(m for m in net.modules() if isinstance(m, torch.nn.BatchNorm1d))
    first = net.trunk.body[0]
    wanted = torch.stack([first(torch.nn.functional.avg_pool2d(2 * x - 1, 2).flatten(1)).mean(0) for x in batches]).mean(0)
    torch.testing.assert_close(norm.running_mean, wanted, atol=1e-5, rtol=1e-4)
    with pytest.raises(UnknownName, match="'C'"):
        judge_recipe("C")


no_weights = pytest.mark.skipif(not all((SHIPPED / c).is_dir() for c in RECIPES), reason="the judges are not trained yet")


@no_weights
def test_packaged_judges_agree_on_names_and_are_small() -> None:
    table_names = set(examples.object_names(packaged_table()).values())
    copies = load_judges("icons/object")
    assert [j.name for j in copies] == [f"icons/object/{c}" for c in RECIPES]
    assert load_judges("icons/object/B")[0].digest == copies[1].digest != copies[0].digest
    for judge in copies:
        assert set(judge.classes) == {*table_names, NONE}
        assert set(packaged_table().objects) <= set(judge.classes)
    architectures = {packaged(c).recipe.architecture for c in RECIPES}
    assert len(architectures) == 2
    folder = Path(examples.__file__).resolve().parent.parent / "weights" / "judges"
    assert sum(f.stat().st_size for f in folder.rglob("*.safetensors")) <= 8 * 2**20
    blank = torch.full((1, 3, 64, 64), 255, dtype=torch.uint8)
    assert all(verdicts(j, j.scores(blank)).tolist() == [-1] for j in copies)


@no_weights
@pytest.mark.skipif(not (default_folder() / MANIFEST).is_file(), reason="drawings are not built (efface icons build)")
def test_packaged_judges_see_every_drawing_and_no_other_for_it() -> None:
    icons, names = load(), packaged_table()
    keys = [o.icons[0] for o in names.objects.values()]
    at = [icons.keys.index(k) for k in keys]
    for judge in load_judges("icons/object"):
        asked = torch.tensor([class_index(judge, n) for n in names.objects])
        said = torch.stack([verdicts(judge, judge.scores(icons.drawings[s, at])) for s in range(len(icons.styles))])
        assert float((said == asked).float().mean()) >= 0.98
        others = [icons.keys.index(k) for k in examples.clear_others(icons, names)][::7]
        wrong = verdicts(judge, judge.scores(icons.drawings[0, others]))
        assert float(np.isin(wrong, asked).mean()) < 0.05
    for judge in load_judges("icons/mark"):
        pictures = icons.drawings[0, at]
        under = icons.marked(pictures.float()).round().to(torch.uint8)
        assert verdicts(judge, judge.scores(under)).tolist() == [1] * len(at)
        assert verdicts(judge, judge.scores(pictures)).tolist() == [0] * len(at)
