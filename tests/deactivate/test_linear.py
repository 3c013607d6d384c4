"""Linear erasers on hosts: guardedness where they lie, scrubbing in order, folding, dictionaries, edits that come back."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from planted import MUSIC, magic, magic_values, planted_sae, sentences
from tiny import tiny_host
from tiny_pipelines import tiny_image_host

from efface.base.errors import HookPointNotFound, InputError, MatchedNothing
from efface.cli.main import run
from efface.deactivate.concept import Concept
from efface.deactivate.edit import Edit
from efface.deactivate.erasing import erase
from efface.deactivate.linear import LeaceErasure
from efface.deactivate.linear.fold import Folding
from efface.deactivate.linear.reading import labelled, vectors
from efface.deactivate.parts import ProjectionPart
from efface.llm.evaluation.controls import random_directions
from efface.llm.host import Host
from efface.llm.models import load_model
from efface.probes import MomentsFitter, orthogonal
from efface.t2i.evaluation.controls import RandomDirections

TEXTS = ["she saw the wizard by the castle", "the piano and the old drum are in the house"]
FAST = {"probe": 0}


def gap(host: Host, point: str, concepts: Sequence[Concept], edit: Edit | None) -> float:
    """Largest distance of a class mean from another at a hook point, over the spread of the vectors, on what edits are fitted on."""
    config = LeaceErasure()
    texts = labelled(host, concepts, None, "train", config)
    if edit is None:
        x, y = vectors(host, texts, point, config)
    else:
        with edit.applied(host):
            x, y = vectors(host, texts, point, config)
    means = torch.stack([x[y == c].double().mean(0) for c in range(len(concepts) + 1)])
    return float((means - means[0]).norm(dim=1).max() / x.double().std())


@pytest.mark.parametrize("method", ["leace", "sal", "rlace"])
def test_class_means_are_equal_where_the_edit_lies(method: str) -> None:
    host, concept, point = tiny_host(), magic(), "layers.1.resid_post"
    edit = erase(method, host, concept, at=[point])
    (part,) = edit.parts
    assert isinstance(part, ProjectionPart)
    assert part.left.shape[1] == 1
    assert gap(host, point, [concept], edit) < 1e-4
    assert gap(host, point, [concept], None) > 0.02
    row = edit.evidence["points"][0]
    assert set(row["probe"]) == {"before", "after"}
    assert 0 < row["variance removed"] < 0.5
    if method == "rlace":
        assert row["game"]["rounds"] == 0


def test_inlp_removes_a_direction_a_round() -> None:
    host = tiny_host()
    edit = erase("inlp", host, magic(), at=["layers.0.mlp_out"], rounds=3, **FAST)
    assert edit.parts[0].describe()["rank"] == 3


def test_several_concepts_are_one_projection() -> None:
    host, point = tiny_host(), "layers.1.mlp_out"
    music = magic(name="music", target=sentences(MUSIC), neighbours=None)
    both = [magic(neighbours=None), music]
    edit = erase("leace", host, both, at=[point], **FAST)
    assert edit.parts[0].describe()["rank"] == 2
    assert gap(host, point, both, edit) < 1e-4
    assert gap(host, point, both, erase("leace", host, both[0], at=[point], **FAST)) > 0.02


def test_scrubbing_fits_each_layer_on_scrubbed_states() -> None:
    host, concept = tiny_host(), magic()
    edit = erase("leace", host, concept, at=["layers.*.resid_post"], **FAST)
    points = [p.hook_point for p in edit.parts]
    assert points == [f"layers.{i}.resid_post" for i in range(3)]
    for point in points:
        assert gap(host, point, [concept], edit) < 1e-4
    alone = Edit([p for q in points for p in erase("leace", host, concept, at=[q], **FAST).parts], "test")
    assert gap(host, points[-1], [concept], alone) > 1e-3  # fitted apart, the later ones no longer fit
    with edit.applied(host) as fired:
        host.loss(TEXTS)
        assert set(fired) == set(points)


@pytest.mark.parametrize(
    ("family", "at", "affine"),
    [
        ("llama", ["layers.1.mlp_hidden", "layers.1.mlp_out"], False),
        ("llama", ["layers.1.mlp_in"], False),
        ("gpt2", ["layers.1.mlp_in", "layers.1.mlp_hidden", "layers.1.mlp_out"], True),
        ("gpt_neox", ["layers.0.mlp_out", "layers.2.mlp_hidden"], True),
    ],
)
def test_folded_weights_do_what_the_projections_do(family: str, at: list[str], affine: bool) -> None:
    host, concept = tiny_host(family), magic()
    folded = erase("leace", host, concept, at=at, fold=True, **FAST)
    hooked = erase("leace", host, concept, at=at, affine=affine, **FAST)
    assert [p.kind for p in folded.parts] == ["weights"]
    ids, mask = host.encode_texts(TEXTS)
    keep = mask.bool()
    base = host.logits(ids, mask)[keep]
    with hooked.applied(host):
        wanted = host.logits(ids, mask)[keep]
    with folded.applied(host):
        found = host.logits(ids, mask)[keep]
    assert torch.allclose(found, wanted, atol=2e-5)
    assert (wanted - base).abs().max() > 1e-2
    loss = folded.evidence["fold"]
    assert loss["difference"] < 1e-5 < loss["edit"]
    before = host.digest
    folded.apply_(host)
    assert host.digest != before
    folded.undo_(host)
    assert host.digest == before


def test_what_cannot_be_folded_says_so() -> None:
    llama, gemma = tiny_host(), tiny_host("gemma2")
    for host, at in ((llama, "layers.1.resid_post"), (llama, "layers.0.resid_pre"), (gemma, "layers.1.mlp_post")):
        with pytest.raises(InputError, match="no permanent form"):
            erase("leace", host, magic(), at=[at], fold=True, **FAST)
    with pytest.raises(InputError, match="has no bias"):
        erase("leace", llama, magic(), at=["layers.1.mlp_out"], fold=True, affine=True, **FAST)
    with pytest.raises(InputError, match="no permanent form"):
        erase("leace", llama, magic(), at=["layers.1.resid_post"], **FAST).require_permanent()


def test_two_projections_of_one_matrix_are_their_product() -> None:
    host = tiny_host("gpt2")
    g = torch.Generator().manual_seed(0)
    _, weight, _ = host.down_proj(1)
    first, second = (torch.linalg.qr(torch.randn(d, 2, generator=g))[0] for d in weight.shape)
    folding = Folding(host)
    folding.add(ProjectionPart("layers.1.mlp_hidden", first, first.T.contiguous(), torch.zeros(len(first))))
    folding.add(ProjectionPart("layers.1.mlp_out", second, second.T.contiguous(), torch.zeros(len(second))))
    delta = folding.part().deltas[host.down_proj(1)[0]].delta()
    W = weight.detach().double()
    P, Q = (torch.eye(len(t)) - t @ t.T for t in (first, second))
    assert torch.allclose(W + delta, P.double() @ W @ Q.double(), atol=1e-6)
    assert not torch.allclose(delta, (P.double() - torch.eye(len(P))) @ W + W @ (Q.double() - torch.eye(len(Q))), atol=1e-3)


@pytest.mark.slow
def test_rlace_stays_among_the_features_that_it_is_given() -> None:
    host, concept = tiny_host(), magic()
    sae = planted_sae(host)
    few, free = (erase("rlace", host, concept, [sae], at=["layers.1.mlp_out"], features=n, rounds=20, **FAST) for n in (2, 0))
    row = few.evidence["points"][0]
    assert 0 in row["features"]
    rows = torch.linalg.qr(sae.W_dec.detach()[row["features"]].T)[0]
    left = few.parts[0].left
    assert torch.allclose(rows @ (rows.T @ left), left, atol=1e-5)
    assert row["game"]["loss"] < free.evidence["points"][0]["game"]["loss"] - 1e-4
    with pytest.raises(InputError, match="needs an SAE"):
        erase("rlace", host, concept, [sae], at=["layers.0.mlp_out"], features=2)


def test_text_encoders_of_pipelines() -> None:
    host, point = tiny_image_host("sd"), "text_encoder.layers.1.mlp_out"
    values = {
        "format": 1,
        "name": "dog",
        "target": {"train": ["a big dog", "a dog and a cat"]},
        "general": {"train": ["a red apple", "the blue bus", "a green tree"]},
    }
    concept = Concept.from_mapping(values)
    hooked = erase("leace", host, concept, at=[point], **FAST)
    folded = erase("leace", host, concept, at=[point], fold=True, **FAST)
    prompts = ["a big dog", "a red apple"]
    base = host.encode(prompts).embeds
    with hooked.applied(host):
        wanted = host.encode(prompts).embeds
    with folded.applied(host):
        found = host.encode(prompts).embeds
    assert torch.allclose(found, wanted, atol=1e-5)
    assert (wanted - base).abs().max() > 1e-3
    (control,) = RandomDirections(hooked).draw(0).parts
    assert isinstance(control, ProjectionPart)
    assert control.left.shape == hooked.parts[0].left.shape
    with pytest.raises(InputError, match="reads more than prompts"):
        erase("leace", host, concept, at=["unet.up_blocks.1.attentions.1.out"])


def test_edits_come_back_and_have_a_control(tmp_path: Path) -> None:
    host = tiny_host()
    edit = erase("leace", host, magic(), **FAST)
    assert edit.parts[0].hook_point == "layers.1.resid_post"
    edit.save(tmp_path / "edit")
    again = Edit.load(tmp_path / "edit")
    assert again.digest == edit.digest
    control = random_directions(host, edit, 0)
    one, other = edit.parts[0], control.parts[0]
    assert other.left.shape == one.left.shape
    assert torch.allclose(other.left.T @ other.left, torch.eye(1), atol=1e-6)
    assert abs(float(torch.nn.functional.normalize(one.left, dim=0).T @ other.left)) < 0.9


def test_an_attention_sink_is_left_as_it_is(tmp_path: Path) -> None:
    axis = torch.eye(4)[:1]
    part = ProjectionPart("layers.0.resid_post", axis.T.clone(), axis, torch.zeros(4), reach=10.0)
    x = torch.tensor([[3.0, 1, 0, 0], [300.0, 1, 0, 0]])
    assert part.project(x).tolist() == [[0.0, 1, 0, 0], [300.0, 1, 0, 0]]
    Edit([part], "sal").save(tmp_path / "edit")
    (back,) = Edit.load(tmp_path / "edit").parts
    assert isinstance(back, ProjectionPart)
    assert (back.reach, back.project(x).tolist()) == (10.0, part.project(x).tolist())
    with pytest.raises(InputError, match="reach"):
        ProjectionPart("layers.0.resid_post", axis.T.contiguous(), axis, torch.zeros(4), reach=0.0)


def test_long_vectors_are_neither_fitted_on_nor_projected() -> None:
    host, concept, point, config = tiny_host(), magic(), "layers.1.resid_post", LeaceErasure()
    assert erase("sal", host, concept, at=[point], **FAST).evidence["points"][0]["sinks"] == 0
    (word,) = host.tokenizer(" castle", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        host.model.get_input_embeddings().weight[word] *= 1e4
    x, y = vectors(host, labelled(host, [concept], None, "train", config), point, config)
    long = x.norm(dim=1) > 20 * x.norm(dim=1).median()
    assert 0 < long.sum() < len(x) / 10
    edit = erase("sal", host, concept, at=[point], **FAST)
    (part,) = edit.parts
    assert isinstance(part, ProjectionPart)
    assert edit.evidence["points"][0]["sinks"] == long.sum()
    assert part.reach == pytest.approx(20 * float(x.norm(dim=1).median()))
    with edit.applied(host):
        now, _ = vectors(host, labelled(host, [concept], None, "train", config), point, config)
    assert torch.equal(now[long], x[long])
    means = [now[~long & (y == c)].double().mean(0) for c in (0, 1)]
    assert (means[0] - means[1]).norm() < 1e-4 * now[~long].std()
    whole = orthogonal(MomentsFitter().update(x, torch.nn.functional.one_hot(y).double()).moments())
    assert abs(float(whole.left.T @ part.left.double())) < 0.5  # with the long ones it would have been theirs


def test_the_command_line_folds_and_undoes(cache, tmp_path: Path, capsys) -> None:
    host = tiny_host()
    host.model.save_pretrained(tmp_path / "model")
    host.tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "magic.json").write_text(json.dumps(magic_values()))
    line = ["erase", "leace", "--model", str(tmp_path / "model"), "--concept", str(tmp_path / "magic.json"), "--set", "probe=0", "--json"]
    folded = [*line, "--set", "at=layers.1.mlp_out", "--set", "fold=true", "--out", str(tmp_path / "edit")]
    assert run(folded) == 0
    assert json.loads(capsys.readouterr().out)["parts"][0]["kind"] == "weights"
    assert run(["apply", str(tmp_path / "edit"), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "edited")]) == 0
    assert run(["undo", "--model", str(tmp_path / "edited"), "--out", str(tmp_path / "base")]) == 0
    digests = {n: load_model(str(tmp_path / n)).digest for n in ("model", "edited", "base")}
    assert digests["base"] == digests["model"] != digests["edited"]
    capsys.readouterr()
    assert run([*line, "--set", "at=layers.1.resid_post", "--set", "fold=true", "--out", str(tmp_path / "other")]) == 2
    assert "no permanent form" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_refusals() -> None:
    host = tiny_host()
    with pytest.raises(HookPointNotFound, match="resid_post"):
        erase("leace", host, magic(), at=["layers.1.resid_pst"])
    with pytest.raises(InputError, match="no target"):
        erase("leace", host, magic(target={"test": ["the wizard"]}))
    music = magic().neighbours["train"]
    with pytest.raises(MatchedNothing, match="without the concept"):
        erase("leace", host, magic(), preserve=list(magic().target["train"]))
    assert erase("leace", host, magic(), preserve=list(music), **FAST).parts
