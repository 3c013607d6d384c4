"""What pages are made of: rows, features, maps, edits, results, prompts as plain values; one file that asks for nothing."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from evidence_kit import POINT, dense
from site_kit import D_SAE, EVIL, TEXTS, make_site

from efface.base.errors import ArtefactError, InputError, MatchedNothing, UnknownName
from efface.deactivate.concept import Concept
from efface.deactivate.inspect.edits import delta_norm, edit_values
from efface.deactivate.inspect.maps import feature_map, label_groups
from efface.deactivate.inspect.moved import moved_features
from efface.deactivate.inspect.page import json_text, render_page, write_page
from efface.deactivate.inspect.results import SAMPLES, Found, result_values
from efface.deactivate.inspect.site import Site
from efface.deactivate.inspect.stores import COLUMNS, row_values
from efface.deactivate.parts import Dense, LowRank
from efface.sae.evidence.query import Query, containing, query


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EFFACE_CACHE", str(tmp_path_factory.mktemp("cache")))
        folder = tmp_path_factory.mktemp("site")
        yield (*make_site(folder), folder)


@pytest.fixture(scope="module")
def whole(made):
    return made[0].whole(60)


def test_a_query_filters_sorts_counts_and_pages(made) -> None:
    store = made[0].saes[0].store
    every = [store.row(i) for i in range(D_SAE)]
    for asked, keeps in (
        (Query(where={"auroc": (0.6, 0.8), "fired": (1.0, None)}, column="auroc"), lambda r: r.status == "labelled" and 0.6 <= r.auroc <= 0.8 and r.fired >= 1),
        (Query(status="labelled", column="density", descending=False), lambda r: r.status == "labelled"),
        (Query(text="WORD 3", column="id", descending=False), lambda r: "word 3" in r.label),
    ):  # fmt: skip
        total, rows = query(store, asked)
        wanted = [r for r in every if keeps(r)]
        assert total == len(wanted) > 0
        key = [getattr(r, asked.column) for r in rows]
        assert key == sorted((getattr(r, asked.column) for r in wanted), reverse=asked.descending)[:50]
        second = query(store, Query(**{**vars(asked), "limit": 3, "offset": 2}))[1]
        assert second == rows[2:5]
    assert query(store, Query(text="zzz")) == (0, [])
    assert store.row(9).auroc == max(r.auroc for r in every)
    for descending in (True, False):
        rows = query(store, Query(column="auroc", descending=descending, limit=1000))[1]
        assert rows[-1].id == 9  # a label that does not stand has no score: last either way
    assert row_values(store.row(9))[COLUMNS.index("auroc")] is None
    assert 9 not in made[0].saes[0].chosen([], D_SAE - 1)
    with pytest.raises(UnknownName, match="auroc"):
        Query(where={"aurok": (0.0, 1.0)})
    with pytest.raises(UnknownName, match="density"):
        Query(column="densty")
    with pytest.raises(InputError, match="limit"):
        Query(limit=100000)


def test_contexts_are_searched_as_they_read(made) -> None:
    store = made[0].saes[0].store
    c = store.contexts(0, "top")[0]
    words = "".join(c.pieces[max(0, c.peak - 1) : c.peak + 1]).strip().upper()
    found, looked = containing(store, words, seconds=60.0)  # a busy machine looks through fewer in two
    assert 0 in found
    assert looked == D_SAE or len(found) == 50
    joined = {i: ["".join(x.pieces).casefold() for x in store.contexts(i) if x.kind in ("top", "quantile")] for i in found}
    assert all(any(words.casefold() in t for t in texts) for texts in joined.values())
    assert containing(store, "no such text at all", seconds=60.0) == ([], D_SAE)


def test_a_file_holds_what_the_store_holds_and_no_held_out_context(made, whole) -> None:
    store, about = made[0].saes[0].store, whole["saes"][0]
    ids = [r[0] for r in about["rows"]]
    assert len(ids) == 60
    assert about["rows"][0] == row_values(store.row(ids[0]))
    for i in (0, ids[-1]):
        f, kept = store.feature(i), about["details"][str(i)]
        shown = [c for c in f.contexts if c.kind in ("top", "quantile")]
        assert {c[0] for c in kept["contexts"]} <= {"top", "quantile"}
        first = kept["contexts"][0]
        assert [whole["words"][w] for w in first[6]] == list(shown[0].pieces)
        assert dict(map(tuple, first[7])) == {j: pytest.approx(a, rel=5e-3) for j, a in enumerate(shown[0].activations) if a > 0}
        assert [whole["words"][w] for w in kept["promoted"]] == list(f.promoted)
    assert about["store"]["total"] == D_SAE
    assert sum(about["store"]["density"]["counts"]) + about["store"]["density"]["silent"] == D_SAE


def test_features_that_something_names_come_first(made, whole) -> None:
    site = made[0]
    named = site.wanted(POINT)
    assert {0, 3} <= set(named)
    assert [r[0] for r in whole["saes"][0]["rows"]][: len(named)] == named[:60]
    assert site.wanted("layers.9.mlp_out") == []
    small = site.whole(2)["saes"][0]
    assert [r[0] for r in small["rows"]] == named[:2]
    with pytest.raises(InputError, match="negative"):
        site.whole(-1)


def test_data_cannot_leave_their_block(whole) -> None:
    page = render_page(whole)
    start = page.index('<script type="application/json" id="data">') + len('<script type="application/json" id="data">')
    block = page[start : page.index("</script>", start)]
    assert json.loads(block) == json.loads(json.dumps(whole))
    assert "<" not in block
    assert page.count("<script") == 2
    assert "<img" not in page.replace(block, "")
    assert json_text("\u2028</script>&") == '"\\u2028\\u003c/script\\u003e\\u0026"'
    assert "</script>" in json.dumps(EVIL)  # what a page without the escape would hold


def test_the_page_names_no_outside_address_and_a_strict_policy(whole) -> None:
    page = render_page(whole)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    assert "unsafe" not in policy
    bare = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|@import|url\(|[\"'(=]//", bare.replace(json_text(whole), ""))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", page)
    served = render_page({**whole, "live": {"prompts": True}})
    assert "connect-src 'self'" in served


def test_a_map_puts_like_beside_like_and_is_the_same_each_time() -> None:
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 20, generator=g)
    rows = torch.cat([c + 0.1 * torch.randn(30, 20, generator=g) for c in centres])
    group = np.repeat(np.arange(4), 30)
    for landmarks in (1000, 60):  # all by t-SNE, and half of them beside landmarks
        xy = feature_map(rows, landmarks=landmarks)
        assert xy.shape == (120, 2)
        assert xy.min() >= 0
        assert xy.max() <= 1
        assert np.array_equal(xy, feature_map(rows, landmarks=landmarks))
        gaps = ((xy[:, None] - xy[None]) ** 2).sum(-1) + 9 * np.eye(120)
        assert (group[gaps.argmin(1)] == group).mean() > 0.95
    mixed = rows[torch.randperm(120, generator=g)]
    gaps = ((feature_map(mixed)[:, None] - feature_map(mixed)[None]) ** 2).sum(-1) + 9 * np.eye(120)
    assert (group[gaps.argmin(1)] == group).mean() < 0.6  # the control: rows that are not of their group
    assert feature_map(rows[:2]).shape == (2, 2)


def test_groups_are_the_first_words_that_labels_share() -> None:
    names, groups = label_groups(["dog, cat", "Dog", "bus", "x"], ["labelled", "labelled", "labelled", "at chance"])
    assert [names[g] for g in groups] == ["dog", "dog", "other labels", "unlabelled"]


def test_norms_of_changes_are_those_of_the_dense_matrix(whole) -> None:
    g = torch.Generator().manual_seed(0)
    delta = LowRank(torch.randn(7, 3, generator=g), torch.randn(3, 5, generator=g))
    assert delta_norm(delta) == pytest.approx(float(delta.delta().norm()))
    assert delta_norm(Dense(delta.delta().float())) == pytest.approx(delta_norm(delta), rel=1e-6)
    weights = whole["edits"][0]
    assert [c["layer"] for c in weights["changes"]] == [0, 2]
    assert weights["undo"].startswith("efface undo ")
    assert "no file" in whole["edits"][1]["undo"]
    assert whole["edits"][1]["gate"]["calibration"]["roc"]
    assert {f["id"] for f in whole["edits"][1]["features"]} == {0, 3}


def test_tables_hold_one_protocol_each(made, whole) -> None:
    assert [t["results"] for t in whole["tables"]] == [[0, 1], [2]]
    first = whole["tables"][0]
    assert {r["result"] for r in first["rows"] if r["kind"] == "edited"} == {"pisces", "rmu"}
    edited = next(r for r in first["rows"] if r["result"] == "pisces" and r["kind"] == "edited")
    assert edited["metrics"]["kept"]["low"] == pytest.approx(0.85)
    assert whole["results"][0]["samples"][0]["after"] == EVIL
    assert whole["results"][0]["sheets"][0]["before"].startswith("data:image/png;base64,iVBOR")
    assert whole["results"][1]["sheets"] == []
    place = made[2] / "eval-rmu"
    (place / SAMPLES).write_text('[{"prompt": 3}]')
    try:
        with pytest.raises(ArtefactError, match="prompt, before"):
            result_values(Found.load(place))
    finally:
        (place / SAMPLES).unlink()


def test_a_prompt_is_read_as_the_sae_encodes_it(made) -> None:
    site, reader, _ = made
    sae, host = site.saes[0].sae, reader.host
    got = reader.read(TEXTS[0])
    acts = dense(host, sae, TEXTS[0])
    layer = got["layers"][0]
    assert "".join(layer["tokens"]).strip() == TEXTS[0]
    assert layer["active"] == (acts > 0).sum(1).tolist()
    for i, found in enumerate(layer["features"]):
        best = acts[i].topk(min(8, int((acts[i] > 0).sum())))
        assert [f for f, _ in found] == best.indices.tolist()
        assert [v for _, v in found] == pytest.approx(best.values.tolist(), rel=5e-3)
    assert layer["strongest"][0][0] == int(acts.amax(0).argmax())
    gates = {t: reader.read(t)["gates"][0]["fires"] for t in TEXTS}
    assert gates == {TEXTS[0]: True, TEXTS[1]: False}
    for text, words in ((" ", "empty"), ("the " * 600, "512 at most")):
        with pytest.raises(InputError, match=words):
            reader.read(text)


def test_a_token_that_does_not_count_is_shown_and_not_read(made, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = made[1]
    whole = reader.read(TEXTS[0])["layers"][0]
    real = reader.host.keep_mask
    monkeypatch.setattr(reader.host, "keep_mask", lambda ids, mask: real(ids, mask) & (real(ids, mask).cumsum(1) > 1))
    got = reader.read(TEXTS[0])["layers"][0]
    assert got["tokens"] == whole["tokens"]
    assert (got["active"][0], got["features"][0]) == (None, [])
    assert got["active"][1:] == whole["active"][1:]
    assert got["features"][1:] == whole["features"][1:]
    assert all(row > 0 for *_, row in got["strongest"])


def test_what_an_edit_moves_is_what_the_sae_reads_with_it_and_without(made) -> None:
    site, reader, _ = made
    sae, host = site.saes[0].sae, reader.host
    weights, layer = (site.edits[i][0] for i in (0, 1))
    deep = type(sae)(sae.cfg, {**sae.card, "hook_point": "layers.1.resid_post"})
    deep.load_state_dict(sae.state_dict())
    with torch.no_grad():
        deep.b_enc.fill_(0.0)
    at_start, behind = moved_features(host, weights, {0: sae, 1: deep}, TEXTS)
    assert at_start["features"] == []  # nothing changes in front of the weights
    assert at_start["unmoved"] == D_SAE
    assert behind["features"]
    ids, mask = host.encode_texts(TEXTS[:1])
    keep = host.keep_mask(ids, mask)

    def peak(f: int) -> float:
        return float(deep.encode(host.activations(ids, mask, ["layers.1.resid_post"])["layers.1.resid_post"][keep])[:, f].max().detach())

    f, before, after = moved_features(host, weights, {1: deep}, TEXTS[:1])[0]["features"][0]
    assert peak(f) == pytest.approx(before, rel=2e-3, abs=1e-4)
    with weights.applied(host):
        assert peak(f) == pytest.approx(after, rel=2e-3, abs=1e-4)
    assert abs(after - before) > 0
    shut = moved_features(host, layer, {1: deep}, TEXTS[1:])[0]
    assert shut["features"] == []  # its gate stays shut there
    assert moved_features(host, layer, {1: deep}, TEXTS[:1])[0]["features"]


def test_a_page_is_named_html_and_shows_something(made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"FILE\.html"):
        write_page(tmp_path / "page.txt", made[0])
    with pytest.raises(MatchedNothing, match="--sae"):
        Site("nothing")
    assert list(tmp_path.iterdir()) == []
    assert len(COLUMNS) == len(row_values(made[0].saes[0].store.row(0)))


def test_the_command_that_measures_an_edit_names_a_concept_that_there_is(made) -> None:
    edit = made[0].edits[0][0]
    assert edit.concept_names == ["magic"]
    assert "--concept FILE.yaml --out" in edit_values(edit, "e")["measure"]  # of a file that this package has not
    named = dataclasses.replace(edit, concepts=[Concept.load("icons/dog"), {"name": "Dog", "digest": "0" * 64}])
    assert "--edit e --concept icons/dog --concept FILE.yaml --out" in edit_values(named, "e")["measure"]
