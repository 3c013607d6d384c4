import json
import math

import pytest
from evidence_kit import PLANTED, POINT, documents, word_sae
from tiny import tiny_host

from efface.base.errors import InputError
from efface.cli.main import run
from efface.deactivate.layer import sae_digest
from efface.llm import written_labels
from efface.llm.feature_stores import lens_tokens, make_stores
from efface.llm.written_labels import cleaned_label
from efface.sae import SAE, SAEConfig
from efface.sae.evidence import EvidenceConfig, FeatureStore

CONFIG = EvidenceConfig(before=4, after=3, held=8, background=300, held_out=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    host = tiny_host()
    sae = word_sae(host)
    out = tmp_path_factory.mktemp("stores") / "features"
    return host, sae, out, make_stores(host, documents(600), {out: sae}, CONFIG)


def test_planted_words_are_found_and_shuffled_labels_are_at_chance(made):
    _, sae, out, reports = made
    store = FeatureStore.open(out, sae_digest=sae_digest(sae))
    rows = [store.row(f) for f in range(len(PLANTED))]
    assert all(r.status == "labelled" and r.label.split(", ")[0] == PLANTED[r.id].casefold() for r in rows)
    assert min(r.auroc for r in rows) > 0.9
    assert all(r.auroc_low > 0.5 for r in rows)
    labels = reports[POINT]["labels"]
    assert labels["labelled"]["median"] > 0.98
    assert labels["labelled"]["n"] >= len(PLANTED)
    assert abs(labels["labelled, shuffled"]["median"] - 0.5) < 0.06
    assert labels["labelled, shuffled"]["n"] == labels["labelled"]["n"]
    assert sum(labels["status"].values()) == 24
    assert labels == store.manifest["labels"]


def test_unlabelled_features_say_why_and_are_never_above_chance_on_validation(made):
    store = FeatureStore.open(made[2])
    others = [store.row(f) for f in range(24)]
    for r in (r for r in others if r.status != "labelled"):
        assert r.label == "unlabelled"
        assert r.status in ("at chance", "too few contexts", "no word", "silent")
        assert r.status != "at chance" or r.proposal
    assert [r.id for r in store.search("wizard", limit=1)] == [0]


def test_promoted_tokens_follow_the_decoder_through_the_down_projection():
    host = tiny_host()
    U = host.unembedding()
    _, down, _ = host.down_proj(1)
    for place, width in (("mlp_out", host.d_model), ("mlp_hidden", host.d_mlp)):
        sae = SAE(SAEConfig("relu", width, 6), {"hook_point": f"layers.1.{place}"})
        found = lens_tokens(host, sae, 3)
        assert found is not None
        promoted, suppressed = found
        direction = sae.W_dec.detach() if place == "mlp_out" else sae.W_dec.detach() @ down.detach().T
        assert promoted.equal((direction @ U).topk(3).indices)
        assert suppressed.equal((direction @ U).topk(3, largest=False).indices)
    assert lens_tokens(host, SAE(SAEConfig("relu", host.d_model, 6), {"hook_point": "layers.1.mlp_in"}), 3) is None


def test_nothing_is_written_where_something_is(made, tmp_path):
    host, sae, out, _ = made
    with pytest.raises(InputError, match="exists already"):
        make_stores(host, documents(3), {out: sae}, CONFIG)
    with pytest.raises(InputError, match="another model"):
        make_stores(tiny_host(seed=1), documents(3), {tmp_path / "x": sae}, CONFIG)
    assert not list(tmp_path.iterdir())


def test_several_saes_share_one_pass(made, tmp_path, monkeypatch):
    host, sae, *_ = made
    second = SAE(SAEConfig("topk", host.d_model, 40, k=4), {"hook_point": "layers.1.mlp_out"})
    passes = []
    monkeypatch.setattr(host, "activations", lambda i, m, p: passes.append(p) or type(host).activations(host, i, m, p))
    made_both = make_stores(host, documents(40), {tmp_path / "a": sae, tmp_path / "b": second}, CONFIG)
    assert list(made_both) == [POINT, "layers.1.mlp_out"]
    assert all(p == [POINT, "layers.1.mlp_out"] for p in passes)
    assert FeatureStore.open(tmp_path / "b").d_sae == 40


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        (' "the moon".\n\nExcerpts:', "the moon"),
        ("- a, b; c", "a, b; c"),
        ("one two three four five six seven", "one two three four five"),
        (" ...\n the moon", ""),
        ("", ""),
        ("<b>bold</b> talk", "<b>bold</b> talk"),
    ],
)
def test_answers_of_the_host_are_cleaned(answer, label):
    assert cleaned_label(answer) == label


def test_the_host_writes_labels_that_are_scored_like_any_other(tmp_path, monkeypatch):
    host = tiny_host()
    sae = word_sae(host)
    seen = []

    def says(prompts, **settings):
        seen.extend(prompts)
        return [" king of wizards\n"] * len(prompts)

    monkeypatch.setattr(host, "generate", says)
    config = EvidenceConfig(**{**vars(CONFIG), "labels": "host", "written": 5})
    report = make_stores(host, documents(600), {tmp_path / "s": sae}, config)[POINT]["labels"]
    assert len(seen) == 5
    assert all(p.endswith("In common:") and p.count("Excerpts:") == 1 + len(written_labels.EXAMPLES) for p in seen)
    own = report["written by the host"]
    assert own["all scored"]["n"] <= 5
    assert own["host likelihood"]["n"] == own["host likelihood, shuffled"]["n"] == 5
    assert math.isfinite(own["host likelihood"]["median"])
    assert own["host likelihood"] == own["host likelihood, shuffled"]  # all labels are alike here
    store = FeatureStore.open(tmp_path / "s")
    assert all(store.row(f).label.split(", ")[0] == PLANTED[f].casefold() for f in range(1, len(PLANTED)))  # it does not beat their words


def test_command_line(tmp_path, monkeypatch, capsys):
    host = tiny_host()
    word_sae(host).save(tmp_path / "sae")
    (tmp_path / "texts.txt").write_text("\n\n".join(documents(60)))
    monkeypatch.setattr("efface.cli.options.load_host", lambda *a: host)
    line = ["features", "--all", "--sae", str(tmp_path / "sae"), "--corpus", str(tmp_path / "texts.txt"), "--json"]
    assert run([*line, "--documents", "50", "--set", "held_out=2", "--set", "top=3"]) == 0
    made = json.loads(capsys.readouterr().out)["stores"][POINT]
    assert made["documents"] == 50
    store = FeatureStore.open(tmp_path / "sae" / "features")
    assert store.manifest["config"]["top"] == 3
    SAE.load(tmp_path / "sae")  # a store inside does not disturb the SAE
    for wrong, says in (
        (line, "exists already"),
        (["features", "--sae", str(tmp_path / "sae")], "--all"),
        ([*line, "--concept", "baseball"], "either --concept"),
        ([*line, "--out", str(tmp_path / "o"), "--set", "topp=3"], "top"),
        ([*line, "--out", str(tmp_path / "o"), "--labels", "hots"], "host"),
        ([*line, "--out", str(tmp_path / "o"), "--documents", "0"], "limit"),
        ([*line[:4], "--corpus", str(tmp_path / "no.txt"), "--out", str(tmp_path / "o")], "no.txt"),
    ):
        assert run(wrong) == 2
        err = capsys.readouterr().err
        assert says in err
        assert "Traceback" not in err
    assert not (tmp_path / "o").exists()
