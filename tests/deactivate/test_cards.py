import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from result_cards import card

from efface.base.errors import InputError, MatchedNothing, UnknownName
from efface.deactivate.evaluation.cards import ProtocolCard, count_look, differences, looks, require_comparable

DIGEST = "0123456789abcdef"


def test_equal_protocols_have_equal_digests_and_looks_are_not_protocol() -> None:
    assert card().digest == card().digest == card(looks=7).digest
    assert hash(card()) == hash(card(looks=7))
    require_comparable([card(), card(looks=7)])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"host_digest": "d" * 64}, "host_digest"),
        ({"split": "test", "looks": 1}, "split"),
        ({"n": 61}, "n"),
        ({"seeds": (0,)}, "seeds"),
        ({"thresholds": {"gate": 0.6}}, "thresholds.gate"),
        ({"extra": {"form": "question"}}, "extra.form"),
        ({"extra": {"form": "cloze", "steps": 50}}, "extra.steps"),
        ({"versions": {"efface": "1"}}, "versions.efface"),
        ({"chat_template": "x"}, "chat_template"),
    ],
)
def test_a_difference_is_refused_by_name(change: dict[str, object], name: str) -> None:
    other = card(**change)
    assert other.digest != card().digest
    assert list(differences(card(), other)) == [name]
    with pytest.raises(InputError, match=f"results 1 and 3 .*: {name} is"):
        require_comparable([card(), card(), other])
    require_comparable([card(), other], ignore=[name.split(".")[0]])
    require_comparable([card(), other], ignore=[name])


def test_nothing_to_compare_and_unknown_fields_are_errors() -> None:
    with pytest.raises(MatchedNothing):
        require_comparable([])
    with pytest.raises(UnknownName, match="versions"):
        require_comparable([card()], ignore=["version"])


def test_json_round_trip_refuses_unknown_and_wrong() -> None:
    plain = json.loads(json.dumps(card(extra={"a": [1, {"b": None}]}).to_json()))
    assert ProtocolCard.from_json(plain) == card(extra={"a": [1, {"b": None}]})
    with pytest.raises(UnknownName, match="host"):
        ProtocolCard.from_json({**plain, "hots": 1})
    with pytest.raises(InputError, match="n: int expected"):
        ProtocolCard.from_json({**plain, "n": "many"})
    with pytest.raises(InputError, match="thresholds"):
        ProtocolCard.from_json({**plain, "thresholds": 3})


def test_a_card_of_test_needs_its_look_counted() -> None:
    with pytest.raises(InputError, match="count_look"):
        card(split="test")
    with pytest.raises(ValueError, match=r"NaN|JSON|float"):
        card(thresholds={"gate": float("nan")})
    with pytest.raises(InputError, match="n is 0"):
        card(n=0)


def test_every_look_at_test_is_counted_and_no_other(tmp_path: Path) -> None:
    assert count_look(tmp_path, DIGEST, "validation") == 0
    assert [count_look(tmp_path, DIGEST, "test") for _ in range(3)] == [1, 2, 3]
    assert looks(tmp_path, DIGEST, "test") == looks(tmp_path, DIGEST, "test") == 3
    assert count_look(tmp_path, "f" * 64, "test") == 1
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: count_look(tmp_path, DIGEST, "test"), range(50)))
    assert looks(tmp_path, DIGEST, "test") == 53


def test_looks_refuse_a_path_and_an_unknown_split(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="hexadecimal"):
        count_look(tmp_path, "../../escape", "test")
    with pytest.raises(UnknownName, match="validation"):
        count_look(tmp_path, DIGEST, "valid")
    assert not list(tmp_path.iterdir())
