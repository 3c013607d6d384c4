import json
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from evidence_kit import POINT, documents, word_sae
from tiny import tiny_host

from efface.base.errors import ArtefactError, InputError, UnknownName
from efface.base.files import read_json, write_json
from efface.llm.vocabulary import extreme_tokens, token_strings
from efface.sae.evidence import EvidenceConfig, FeatureStore, collect, nearest_features, write_store
from efface.sae.evidence.schema import FILES, LABEL_COLUMNS, MANIFEST

CONFIG = EvidenceConfig(before=3, after=2, top=4, reservoir=10, held=6, background=40)
HTML = "<b>wizard</b> & \"Quotes\" 'too' <script>alert(1)</script>"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    host = tiny_host()
    sae = word_sae(host, d_sae=150)  # three row groups, the last one not full
    reading = collect(host, documents(60), {POINT: sae}, CONFIG)
    pieces = token_strings(host.tokenizer, torch.arange(host.unembedding().shape[1]))
    U = host.unembedding()
    labels = [dict.fromkeys(LABEL_COLUMNS) | {"label": f"Label {i}", "status": "labelled", "auroc": i / 150} for i in range(150)]
    labels[7]["label"] = HTML
    labels[9] |= {"label": "unlabelled", "status": "at chance", "auroc": None}
    everything = sae, reading, reading.evidence[POINT], labels, pieces, extreme_tokens(sae.W_dec.detach(), U, 4), {"sae_digest": "abc"}
    out = write_store(tmp_path_factory.mktemp("store") / "features", *everything)
    return out, everything


@pytest.fixture
def store(made):
    return FeatureStore.open(made[0])


@pytest.fixture
def copy(made, tmp_path):
    return shutil.copytree(made[0], tmp_path / "features")


def test_a_feature_comes_back_as_it_was_collected(store, made):
    sae, reading, e, _, pieces, lens, _ = made[1]
    ids, cosines = nearest_features(sae.W_dec, CONFIG.neighbours)
    for f in (0, 63, 64, 149):
        found = store.feature(f)
        assert found.fired == int(e.tallies.fired[f])
        assert found.density == pytest.approx(found.fired / int(reading.tokens[0]))
        assert found.max == pytest.approx(float(e.tallies.max[f]))
        assert found.mean * found.fired == pytest.approx(float(e.tallies.total[f]))
        assert sum(n for *_, n in found.histogram) == found.fired
        assert all(low < high for low, high, _ in found.histogram)
        assert found.promoted == tuple(pieces[t] for t in lens[0][f].tolist())
        assert found.suppressed == tuple(pieces[t] for t in lens[1][f].tolist())
        assert [n for n, _ in found.neighbours] == ids[f].tolist()
        assert [c for _, c in found.neighbours] == pytest.approx(cosines[f].tolist())
        top, drawn = store.contexts(f, "top"), store.contexts(f, "quantile")
        assert [(c.document, c.position, c.value, c.tokens, c.activations) for c in top] == [
            (c.document, c.position, c.value, c.tokens, c.activations) for c in e.top.contexts(f)
        ]
        assert [(c.quantile, c.document) for c in drawn] == [(q, c.document) for q, c in e.quantiles(f)]
        assert len(found.contexts) == sum(len(store.contexts(f, k)) for k in ("top", "quantile", "validation", "test"))
        assert all(c.pieces == tuple(pieces[t] for t in c.tokens) for c in found.contexts)


def test_labels_are_stored_verbatim(store):
    assert store.row(7).label == HTML
    assert store.feature(7).label == HTML
    assert [r.id for r in store.search("<SCRIPT>")] == [7]


def test_ranked_pages_through_all_and_puts_missing_values_last(store):
    pages = [store.ranked("auroc", limit=40, offset=o) for o in range(0, 160, 40)]
    assert [r.id for page in pages for r in page] == [i for i in range(149, -1, -1) if i != 9] + [9]
    assert store.ranked("auroc", descending=False, limit=1)[0].id == 0
    assert store.ranked("auroc", descending=False, limit=200)[-1].id == 9
    fired = [r.fired for r in store.ranked("density", limit=200)]
    assert fired == sorted(fired, reverse=True)
    plan = store._db.execute('EXPLAIN QUERY PLAN SELECT * FROM features ORDER BY "density" DESC NULLS LAST, id DESC LIMIT 5').fetchall()
    assert "by_density" in plan[0]["detail"]
    with pytest.raises(UnknownName, match="density"):
        store.ranked("densty")
    with pytest.raises(InputError, match="limit"):
        store.ranked("max", limit=-1)


def test_search_finds_labels_first_then_tokens(store):
    assert {r.id for r in store.search("label 1", limit=200)} >= {1, *range(10, 20), *range(100, 150)}
    by_token = [r.id for r in store.search("wiz", limit=200)]
    assert 0 in by_token
    assert len(by_token) == len(set(by_token))
    assert 9 not in [r.id for r in store.search("unlabelled")]  # no label, so no hit
    assert store.search("zzzz") == []
    with pytest.raises(InputError, match="empty"):
        store.search(" ")


def test_unknown_features_and_kinds_are_named(store):
    for f in (-1, 150):
        with pytest.raises(UnknownName, match="0 to 149"):
            store.feature(f)
    with pytest.raises(UnknownName, match="quantile"):
        store.contexts(0, "quantil")


def test_threads_read_the_same(store):
    expected = [store.feature(f) for f in range(0, 150, 7)]
    fresh = FeatureStore.open(store.folder)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(fresh.feature, [f for _ in range(4) for f in range(0, 150, 7)]))
    assert found == expected * 4


def test_the_table_is_read_only(store):
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        store._db.execute("DELETE FROM features")


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_or_missing_file_is_refused(copy, name):
    raw = bytearray((copy / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (copy / name).write_bytes(bytes(raw))
    with pytest.raises(ArtefactError, match=name):
        FeatureStore.open(copy)
    (copy / name).write_bytes(bytes(raw[:-9]))
    with pytest.raises(ArtefactError, match=name):
        FeatureStore.open(copy, verify=False)
    (copy / name).unlink()
    with pytest.raises(ArtefactError, match="missing"):
        FeatureStore.open(copy)


def test_another_format_and_another_sae_are_refused(copy, made, tmp_path):
    assert FeatureStore.open(copy, sae_digest="abc").d_sae == 150
    with pytest.raises(ArtefactError, match="another SAE"):
        FeatureStore.open(copy, sae_digest="abd")
    manifest = read_json(copy / MANIFEST)
    write_json(copy / MANIFEST, {**manifest, "format": 99})
    with pytest.raises(ArtefactError, match="format 99"):
        FeatureStore.open(copy)
    (copy / MANIFEST).write_text("{")
    with pytest.raises(ArtefactError, match="JSON"):
        FeatureStore.open(copy)
    with pytest.raises(ArtefactError, match="not a feature store"):
        FeatureStore.open(tmp_path)


def test_a_store_inside_the_folder_of_another_sae_is_refused(made, tmp_path):
    sae, *rest = made[1]
    home, other = sae.save(tmp_path / "sae"), word_sae(tiny_host(), d_sae=150, seed=1).save(tmp_path / "other")
    write_store(home / "features", sae, *rest)
    assert FeatureStore.open(home / "features").d_sae == 150
    shutil.copytree(home / "features", other / "features")
    with pytest.raises(ArtefactError, match="lies in"):
        FeatureStore.open(other / "features")


@pytest.mark.parametrize("breaks", ["nearest_features", "firing_tokens", "sha256_file", "write_json"])
def test_an_interrupted_write_leaves_nothing(made, tmp_path, monkeypatch, breaks):
    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"efface.sae.evidence.write.{breaks}", stop)
    with pytest.raises(KeyboardInterrupt):
        write_store(tmp_path / "features", *made[1])
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    assert FeatureStore.open(write_store(tmp_path / "features", *made[1])).d_sae == 150


def test_nothing_is_overwritten_and_labels_must_fit(made, tmp_path):
    (tmp_path / "features").mkdir()
    (tmp_path / "features" / "mine.txt").write_text("x")
    with pytest.raises(InputError, match="exists already"):
        write_store(tmp_path / "features", *made[1])
    assert [p.name for p in (tmp_path / "features").iterdir()] == ["mine.txt"]
    sae, reading, e, labels, *rest = made[1]
    with pytest.raises(InputError, match="149 rows for 150 features"):
        write_store(tmp_path / "other", sae, reading, e, labels[1:], *rest)


def test_the_manifest_says_what_was_read(store):
    m = store.manifest
    assert m["corpus"]["documents"] == 60
    assert sum(m["corpus"]["tokens"].values()) == 60 * 24
    assert m["hook_point"] == POINT
    assert m["config"]["top"] == 4
    assert m["token_policy"]["special_tokens"] == "dropped"
    json.dumps(m, allow_nan=False)
