"""Every place that prints a feature copes with one that was named by hand: nothing of it was measured but its tokens."""

import json
import re
from dataclasses import replace

import pytest
from planted import magic, planted_sae
from tiny import tiny_host

from efface.base.errors import InputError
from efface.cli.features import listing
from efface.deactivate.edit import Edit
from efface.deactivate.evaluation.report import PAGES
from efface.llm.demo import QUICK, write_pages
from efface.llm.evaluation.suite import SuiteConfig, evaluate
from efface.llm.evidence import FeatureEvidence
from efface.llm.features import SPLITS, FeatureConfig, features
from efface.llm.methods.pisces import PiscesConfig
from efface.llm.methods.pisces.fit import fit
from efface.llm.reporting import SHOWN, used_features, write_evaluation


@pytest.fixture
def host():
    return tiny_host()


@pytest.fixture
def given(host):
    """An edit by features that the config names."""
    config = PiscesConfig(features=("1:0:+", "1:3:-"), filters=False, tau=0.4, mu=4.0)
    return fit(host, [magic()], config=config, saes=[planted_sae(host)])


def evidence(edit):
    """The evidence in an edit as objects."""
    return [
        FeatureEvidence(**{k: tuple(v) if isinstance(v, list) else v for k, v in f.items()})
        for plan in edit.evidence["concepts"]
        for f in plan["features"]
    ]


def test_a_given_feature_is_printed_with_what_is_known_of_it(host, given):
    found = evidence(given)
    assert [(f.source, f.fired, f.delta_phi, f.rho) for f in found] == [("given", None, None, None)] * 2
    assert {a for f in found for a in f.auroc.values()} == {None}
    lines = listing(found).splitlines()[2:]
    assert [line.split()[1:7] for line in lines] == [["0", "positive", "-", "-", "-", "-"], ["3", "negative", "-", "-", "-", "-"]]
    assert [f.scores for f in used_features(given.evidence)] == [{}, {}]
    # The control: a feature that was searched for has its figures in both places.
    measured = features(host, magic(), [planted_sae(host)], FeatureConfig(min_rho=1.0), splits=SPLITS).features[0]
    assert "-" not in listing([measured]).splitlines()[2].split()[3:7]
    plan = {"features": [json.loads(json.dumps(vars(measured)))]}
    assert {"rho", "fired", "AUROC (test)"} <= set(used_features({"concepts": [plan]})[0].scores)


def test_its_report_is_written(cache, host, given, tmp_path):
    concept = magic(neighbour_questions=None)
    result = evaluate(host, [given], concept, config=SuiteConfig(texts=2, continuations=0, draws=0))
    text = write_evaluation(tmp_path, host, concept, [given], result).read_text(encoding="utf-8")
    assert "layers.1.mlp_out" in text
    assert "None" not in text
    assert "Fitted on questions" not in text
    learnt = replace(given, evidence={**given.evidence, "read": ["train", "validation"]})
    noted = write_evaluation(tmp_path / "learnt", host, concept, [learnt], result).read_text(encoding="utf-8")
    assert "Fitted on questions of validation, too" in noted
    kept = json.loads((tmp_path / "samples.json").read_text(encoding="utf-8"))
    assert len(kept) == text.count("<small>before</small>")
    asked = [q.q for q in concept.questions["validation"]]
    assert all(s["before"] for s in kept)
    assert {s["prompt"] for s in kept if s["about"] == "target"} <= set(asked)
    assert not (write_evaluation(tmp_path / "base", host, concept, [], result).parent / "samples.json").exists()


def test_of_many_features_the_first_are_shown_and_the_report_says_so(cache, host, tmp_path):
    concept = magic()
    saes = [planted_sae(host, n, d_sae=32) for n in (0, 1)]
    refs = tuple(f"{layer}:{f}:+" for layer in (0, 1) for f in range(15))
    many = fit(host, [concept], config=PiscesConfig(features=refs, tau=0.4, mu=1.0), saes=saes)
    result = evaluate(host, [many], concept, config=SuiteConfig(texts=2, continuations=0, draws=0))
    text = write_evaluation(tmp_path / "many", host, concept, [many], result).read_text(encoding="utf-8")
    assert f"30 features, of which the first {SHOWN} are shown" in text
    few = fit(host, [concept], config=PiscesConfig(features=refs[:SHOWN], tau=0.4, mu=1.0), saes=saes)
    whole = write_evaluation(tmp_path / "few", host, concept, [few], result).read_text(encoding="utf-8")
    assert "are shown" not in whole
    assert text.count("layers.1.mlp_out") == whole.count("layers.1.mlp_out") == SHOWN - 15


def test_a_demonstration_ends_with_pages_that_its_report_links(cache, host, given, tmp_path):
    concept, saes, given = magic(), [planted_sae(host)], given.bound(host)
    result = evaluate(host, [given], concept, config=SuiteConfig(texts=2, continuations=0, draws=0), saes=saes)
    for s in saes:
        s.save(tmp_path / "saes" / s.card["hook_point"])
    given.save(tmp_path / "edit")
    report = write_evaluation(tmp_path / "evaluation", host, concept, [given], result, pages=PAGES)
    pages = write_pages(tmp_path, host, concept, given, saes, replace(QUICK, documents=12))
    assert re.search(r'href="([^"]+)"', report.read_text(encoding="utf-8")).group(1) == pages.relative_to(report.parent).as_posix()
    data = json.loads(re.search(r'id="data">(.*?)</script>', pages.read_text(encoding="utf-8"), re.S).group(1))
    assert data["edits"][0]["digest"] == Edit.load(tmp_path / "edit").digest == given.digest
    assert data["results"][0]["edits"] == [given.digest]
    assert [f["id"] for f in data["concepts"][0]["report"]["features"]] == [0, 3]
    assert {"0", "3"} <= set(data["saes"][0]["details"])
    assert data["edits"][0]["moved"][0]["features"]
    assert not re.search(r"https?://(?!www\.w3\.org)", pages.read_text(encoding="utf-8"))
    # the control: a report without pages links nothing, and pages lie beside a report or nowhere
    assert "href" not in write_evaluation(tmp_path / "plain", host, concept, [given], result).read_text(encoding="utf-8")
    for wrong in ("https://example.org/pages.html", "/etc/pages.html", "javascript:x.html"):
        with pytest.raises(InputError, match="pages"):
            write_evaluation(tmp_path / "no", host, concept, [given], result, pages=wrong)
