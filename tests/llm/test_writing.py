"""What a host writes about a concept, and what a reader makes of it."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from planted import magic, trained_host
from tiny import tiny_host

from efface.base.errors import InputError
from efface.deactivate.edit import Edit
from efface.deactivate.evaluation import require_comparable
from efface.deactivate.parts import Dense, WeightsPart
from efface.llm.evaluation.suite import SuiteConfig, evaluate, unedited
from efface.llm.evaluation.writing import NEW_TOKENS, Written, beginnings, distinct, read, write
from efface.llm.host import Host

CONFIG = SuiteConfig(texts=4, continuations=0, draws=2, controls=("random directions",), written=6)


def broken(host: Host, size: float) -> Edit:
    """A strong change of one matrix at random."""
    name, weight, _ = host.down_proj(1)
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    return Edit([WeightsPart({name: Dense(size * noise)})], "noise")


def test_a_reader_is_asked_for_what_was_written_behind_its_beginning() -> None:
    host, reader, concept = trained_host(), tiny_host(seed=3), magic()
    starts = beginnings(host, concept, "test", 5)
    assert len(starts) == 5
    assert all(any(t.startswith(s) for t in concept.target["test"]) for s in starts)
    done = read(reader, write(host, starts, seed=2))
    assert done.texts == tuple(host.generate(starts, 2, NEW_TOKENS))
    pairs = [(p, t) for p, t in zip(starts, done.texts, strict=True) if t.strip()]
    scores = [reader.token_logprobs([p], [t])[0] for p, t in pairs]
    assert done.nll == pytest.approx([-float(s.sum()) for s in scores], rel=1e-4)
    assert done.perplexity == pytest.approx(math.exp(-float(torch.cat(scores).mean())), rel=1e-4)
    assert read(host, done).nll != done.nll


def test_loops_are_seen() -> None:
    assert distinct([1, 2, 3, 4, 5]) == 1.0
    assert distinct([7] * 10) == pytest.approx(1 / 8)
    assert distinct([1, 2, 3, 1, 2, 3, 1, 2]) == pytest.approx(3 / 6)
    assert distinct([1]) == distinct([]) == 1.0


def test_a_host_that_ends_at_once_has_nothing_to_read() -> None:
    silent = Written(("the wand", "the broom"), ("", "  "))
    assert read(tiny_host(), silent) == silent
    half = read(tiny_host(), Written(("the wand", "the broom"), ("", " is old")))
    assert (len(half.nll), len(half.tokens), len(half.distinct)) == (1, 1, 1)


def test_the_unedited_host_reads_what_every_state_wrote(cache) -> None:
    host, concept = trained_host(), magic()
    result = evaluate(host, [broken(host, 3.0)], concept, "test", CONFIG)
    base, edited = (result.row(n).metrics for n in ("base", "noise"))
    assert edited["ppl_written"].mean > 2 * base["ppl_written"].mean  # noise writes what the host would not
    low, high = base["ppl_written"].interval
    assert low < base["ppl_written"].mean < high
    assert 0 < edited["distinct_written"].mean <= 1
    assert result.row("random directions").metrics["ppl_written"].unit == "draws"
    assert "ppl_written" not in result.row("string filter").metrics
    (kept,) = result.extra["written"]["noise"]
    again = read(host, Written(tuple(kept["prompts"]), tuple(kept["texts"])))
    assert list(again.nll) == pytest.approx(list(kept["nll"]))
    with broken(host, 3.0).applied(host):
        assert write(host, kept["prompts"]).texts == tuple(kept["texts"])
        assert read(host, again).nll != pytest.approx(again.nll, rel=1e-2)
    known = evaluate(host, [], concept, "test", CONFIG, base=unedited(host, concept, "test", CONFIG))
    assert known.row("base").metrics == base


def test_another_model_reads_and_the_cards_say_so(cache, tmp_path: Path) -> None:
    host, other, concept = trained_host(), tiny_host(seed=3), magic()
    other.model.save_pretrained(tmp_path / "other")
    other.tokenizer.save_pretrained(tmp_path / "other")
    config = dataclasses.replace(CONFIG, reader=str(tmp_path / "other"))
    own, read_by = (evaluate(host, [], concept, "test", c) for c in (CONFIG, config))
    written = [r.extra["written"]["base"][0] for r in (own, read_by)]
    assert written[0]["texts"] == written[1]["texts"]
    assert written[1]["nll"] == pytest.approx(list(read(other, Written(written[1]["prompts"], written[1]["texts"])).nll))
    with pytest.raises(InputError, match="reader"):
        require_comparable([own.card, read_by.card])
    plain = evaluate(host, [], concept, "test", dataclasses.replace(CONFIG, written=0))
    assert "ppl_written" not in plain.row("base").metrics
    assert not {"written", "reader"} & set(plain.card.extra)


def test_what_does_not_do_is_named(cache) -> None:
    with pytest.raises(InputError, match="reader=smollm2 has nothing to read"):
        SuiteConfig(reader="smollm2")
    with pytest.raises(InputError, match="written must be at least 0"):
        SuiteConfig(written=-1)
    lacking = magic(target={"train": ["the wand is old"]})
    with pytest.raises(InputError, match=r"no texts in target.test"):
        evaluate(tiny_host(), [], lacking, "test", CONFIG)
