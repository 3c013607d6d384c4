"""Labels from files and to other tools' formats."""

import gzip
import json
from dataclasses import replace

import pytest
from evidence_kit import PLANTED, POINT, documents, word_sae
from tiny import tiny_host

from efface.base.errors import InputError, MatchedNothing, UnknownName
from efface.cli.main import run
from efface.llm.feature_stores import make_stores
from efface.sae.evidence import EvidenceConfig, FeatureStore
from efface.sae.labels.exchange import export_store
from efface.sae.labels.files import read_labels

CONFIG = EvidenceConfig(before=4, after=3, held=8, background=300, held_out=2)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store whose labels are a file's: features 0 to 2 rightly, 3 and 4 with each other's word."""
    host = tiny_host()
    sae = word_sae(host)
    folder = tmp_path_factory.mktemp("given") / "sae"
    sae.save(folder)
    given = {0: f"the {PLANTED[0]}", 1: PLANTED[1], 2: PLANTED[2], 3: PLANTED[4], 4: PLANTED[3]}
    report = make_stores(host, documents(600), {folder / "features": sae}, CONFIG, given=given)[POINT]["labels"]
    return host, sae, folder, given, report


def test_a_files_labels_are_scored_like_any_other(made):
    _, _, folder, given, report = made
    store = FeatureStore.open(folder / "features")
    rows = [store.row(f) for f in range(len(PLANTED))]
    assert [r.label for r in rows[:3]] == [given[0], given[1], given[2]]
    assert {r.source for r in rows[:5]} == {"file"}
    assert all(r.auroc > 0.9 and r.fuzzing > 0.9 for r in rows[:3])
    for r in rows[3:5]:  # the control: another feature's word
        assert (r.status, r.label, r.proposal) == ("at chance", "unlabelled", given[r.id])
    assert all(r.source.startswith("tokens") and r.status == "labelled" for r in rows[5:])
    assert report["from the file"]["labelled"]["n"] == 3
    assert report["fuzzing"]["median"] > 0.9 > 0.65 > report["fuzzing, shuffled"]["median"]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("own.json", json.dumps({"3": "moon", "5": " two  words "})),
        ("own.csv", "feature,label\n3,moon\n5,two words\n"),
        ("own.tsv", "index\tdescription\n3\tmoon\n5\ttwo words\n3\tsecond\n"),
        (
            "own.jsonl",
            '{"index": "3", "description": "moon", "layer": "6-x"}\n\n{"index": 5, "description": "two words", "layer": "6-x"}\n',
        ),
    ],
)
def test_files_of_labels(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_labels(tmp_path / name, 6) == {3: "moon", 5: "two words"}
    assert read_labels(tmp_path, 6) == {3: "moon", 5: "two words"}
    (tmp_path / f"z{name}.jsonl.gz").write_bytes(gzip.compress(b'{"index": "1", "description": "sun"}\n'))
    assert read_labels(tmp_path, 6)[1] == "sun"


@pytest.mark.parametrize(
    ("name", "text", "error", "says"),
    [
        ("a.csv", "feature,label\n9,moon\n", InputError, "0 to 5"),
        ("a.csv", "feature,label\nx,moon\n", InputError, "whole number"),
        ("a.csv", "number,label\n1,moon\n", InputError, "feature or index"),
        ("a.csv", "feature,name\n1,moon\n", InputError, "label or description"),
        ("a.csv", "feature,label\n", MatchedNothing, "no label"),
        ("a.json", "{", InputError, "cannot be read"),
        ("a.json", "[1]", InputError, "cannot be read"),
        ("a.json", '{"1": 2}', InputError, "must be text"),
        ("a.jsonl.gz", "no gzip", InputError, "cannot be read"),
        ("a.txt", "1 moon", InputError, "rename it"),
        (
            "a.jsonl",
            '{"index": 1, "description": "a", "layer": "6-x"}\n{"index": 1, "description": "a", "layer": "7-x"}',
            InputError,
            "2 SAEs",
        ),
    ],
)
def test_bad_files_of_labels_say_what_is_wrong(tmp_path, name, text, error, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(error, match=says):
        read_labels(tmp_path / name, 6)
    with pytest.raises(InputError, match="no such file"):
        read_labels(tmp_path / "none.csv", 6)


NEURONPEDIA = {
    "release": ("name", "description", "creatorName", "creatorId"),
    "model": ("id", "creatorId", "layers", "neuronsPerLayer", "owner"),
    "sourceset": ("modelId", "name", "description", "creatorName", "creatorId"),
    "source": ("id", "modelId", "setName", "creatorId"),
    "features": ("modelId", "layer", "index"),
    "activations": ("id", "index", "layer", "modelId", "maxValue", "maxValueTokenIndex", "minValue", "creatorId"),
    "explanations": ("id", "modelId", "layer", "index", "description", "authorId"),
}
"""Columns without a default in the tables that Neuronpedia reads its exports into."""


def lines(path):
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_an_export_for_neuronpedia_reads_back(made, tmp_path):
    store = FeatureStore.open(made[2] / "features")
    counts = export_store(store, tmp_path / "np", "neuronpedia", "tiny", "0-words")
    kept = read_labels(tmp_path / "np" / "explanations", store.d_sae)
    assert kept == {r.id: r.label for r in store.ranked("id", limit=99) if r.status == "labelled"}
    assert 3 not in kept
    assert counts["labels"] == len(kept)
    rows = {int(r["index"]): r for r in lines(tmp_path / "np" / "features" / "batch-0.jsonl.gz")}
    f = store.feature(0)
    assert (rows[0]["layer"], rows[0]["modelId"], rows[0]["pos_str"]) == ("0-words", "tiny", list(f.promoted))
    assert rows[0]["frac_nonzero"] == pytest.approx(f.density)
    acts = [a for a in lines(tmp_path / "np" / "activations" / "batch-0.jsonl.gz") if a["index"] == "0"]
    assert len(acts) == sum(c.kind in ("top", "quantile") for c in f.contexts) < len(f.contexts)  # held-out ones stay here
    for part, wanted in NEURONPEDIA.items():
        (place,) = (tmp_path / "np").glob(f"{part}.jsonl" if (tmp_path / "np" / f"{part}.jsonl").is_file() else f"{part}/batch-0.jsonl.gz")
        every = lines(place) if place.suffix == ".gz" else [json.loads(line) for line in place.read_text().splitlines()]
        assert every
        assert all(row.get(name) is not None for row in every for name in wanted), part
    assert all(
        a["values"][a["maxValueTokenIndex"]] == max(a["values"]) == a["maxValue"] and len(a["tokens"]) == len(a["values"]) for a in acts
    )


def test_an_export_without_labels_has_no_empty_file(made, tmp_path, monkeypatch):
    store = FeatureStore.open(made[2] / "features")
    bare = store.feature
    monkeypatch.setattr(store, "feature", lambda i: replace(bare(i), status="at chance"))
    export_store(store, tmp_path / "np", "neuronpedia", "tiny", "0-words")
    assert not (tmp_path / "np" / "explanations").exists()  # an empty file has no first line to read columns from
    assert (tmp_path / "np" / "features" / "batch-0.jsonl.gz").is_file()


def test_an_export_as_saedashboard_writes_it(made, tmp_path):
    store = FeatureStore.open(made[2] / "features")
    export_store(store, tmp_path / "sd", "saedashboard", "tiny", "0-words")
    batch = json.loads((tmp_path / "sd" / "batch-0.json").read_text())
    assert (batch["model_id"], batch["layer"], batch["sae_set"]) == ("tiny", 0, "words")
    one = batch["features"][0]
    assert one["feature_index"] == 0
    assert set(one["activations"][0]) == {"tokens", "values", "bin_min", "bin_max", "bin_contains", "qualifying_token_index"}
    top = [a for a in one["activations"] if a["bin_contains"] == -1]
    assert {(a["bin_min"], a["bin_max"]) for a in top} == {(-1, max(store.feature(0).contexts, key=lambda c: c.value).value)}
    drawn = [c.quantile for c in store.feature(0).contexts if c.kind == "quantile"]
    shares = [a["bin_contains"] for a in one["activations"] if a["bin_contains"] > 0]
    assert len(shares) == len(drawn)
    assert shares == pytest.approx([one["frac_nonzero"] / len(set(drawn))] * len(drawn))
    for wrong, error, says in (
        (("neuronpidia", "0-x"), UnknownName, "neuronpedia"),
        (("neuronpedia", "words"), InputError, "6-res-efface"),
    ):
        with pytest.raises(error, match=says):
            export_store(store, tmp_path / "no", wrong[0], "tiny", wrong[1])
    assert not (tmp_path / "no").exists()


def test_the_command_prints_both_medians_and_exports(made, tmp_path, capsys, monkeypatch):
    host, _, folder, *_ = made
    assert run(["labels", "--sae", str(folder), "--format", "neuronpedia", "--out", str(tmp_path / "np")]) == 0
    out = capsys.readouterr().out
    assert "shuffled" in out
    assert "fuzzing" in out
    assert (tmp_path / "np" / "explanations" / "batch-0.jsonl.gz").is_file()
    assert lines(tmp_path / "np" / "features" / "batch-0.jsonl.gz")[0]["layer"] == "0-efface"
    monkeypatch.setattr("efface.cli.options.load_host", lambda *a: host)
    (tmp_path / "texts.txt").write_text("\n\n".join(documents(60)))
    again = ["features", "--all", "--sae", str(folder), "--corpus", str(tmp_path / "texts.txt"), "--out", str(tmp_path / "again")]
    assert run([*again, "--labels", str(tmp_path / "np" / "explanations"), "--set", "held_out=2"]) == 0
    assert FeatureStore.open(tmp_path / "again").row(1).source == "file"
    for line, says in (
        (["labels", "--sae", str(folder), "--format", "neuronpedia"], "go together"),
        (["labels", "--sae", str(folder), "--format", "neuronpidia", "--out", str(tmp_path / "x")], "nearest: neuronpedia"),
        (["features", "--all", "--sae", str(folder), "--out", str(tmp_path / "x"), "--labels", str(tmp_path / "none.csv")], "no such file"),
    ):
        capsys.readouterr()
        assert run(line) == 2
        assert says in capsys.readouterr().err
