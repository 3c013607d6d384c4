"""Admission of cells: real drawings get in, other drawings do not, and one judge's doubt is enough."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from icon_kit import PastingEdit, PastingHost, copies, table

from efface.base.errors import ArtefactError, InputError, MatchedNothing
from efface.t2i.icons import cells
from efface.t2i.icons.cells import AdmissionConfig, Cell, admit, admitted_cells, object_cells

CONFIG = AdmissionConfig()


def judges(never: tuple[str, ...] = ()) -> dict:
    found = copies(never)
    return {head: [c[head] for c in found] for head in found[0]}


def test_drawings_are_admitted_and_others_are_not() -> None:
    host = PastingHost()
    found, pictures = admit(host.generate, object_cells(table()), judges(), CONFIG)
    assert len(found) == 16
    assert all(a.admitted for a in found)
    assert pictures.shape == (16, 3, 64, 64)
    assert host.drawn == 16 * 30
    value = found[0].judges["icons/object/A"]
    assert value["n"] == 30
    assert value["low"] < value["rate"] == value["high"] == 1
    with PastingEdit(("apple",)).applied(host):  # draws a cube instead
        wrong = admit(host.generate, object_cells(table()), judges(), CONFIG)[0]
    assert {a.name for a in wrong if a.admitted} == {"ball"}
    with PastingEdit(("apple",), style_lost=True).applied(host):
        assert not any(a.admitted for a in admit(host.generate, object_cells(table())[:8], judges(), CONFIG)[0])


def test_both_judges_must_see_it() -> None:
    found = admit(PastingHost().generate, object_cells(table()), judges(never=("ball",)), CONFIG)[0]
    assert {a.name for a in found if a.admitted} == {"apple"}
    ball = next(a for a in found if a.name == "ball")
    assert (ball.judges["icons/object/A"]["rate"], ball.judges["icons/object/B"]["rate"]) == (1, 0)


def now_and_then(missing: int):
    """Draws nothing for `missing` of thirty seeds."""

    def draw(prompts, *, seeds):
        host, blank = PastingHost(), torch.full((3, 64, 64), 255, dtype=torch.uint8)
        return torch.stack([blank if s % 30 < missing else host.draw(p, s) for p, s in zip(prompts, seeds, strict=True)])

    return draw


@pytest.mark.parametrize(("missing", "admitted"), [(3, True), (4, False)])
def test_nine_in_ten_is_the_line(missing: int, admitted: bool) -> None:
    assert admit(now_and_then(missing), object_cells(table())[:1], judges(), CONFIG)[0][0].admitted is admitted


def test_seeds_are_those_of_admission_alone() -> None:
    seen: list[int] = []

    def draw(prompts, *, seeds):
        seen.extend(seeds)
        return PastingHost().generate(prompts, seeds=seeds)

    admit(draw, object_cells(table())[:1], judges(), CONFIG)
    assert seen == list(range(cells.FIRST_SEED, cells.FIRST_SEED + 30))
    with pytest.raises(InputError, match="at least 30"):
        AdmissionConfig(images=10)
    with pytest.raises(MatchedNothing):
        admit(draw, [], judges(), CONFIG)
    with pytest.raises(InputError, match="'aple'"):
        admit(draw, [Cell("aple", "noto", ("aple",))], judges(), CONFIG)


def test_check_writes_what_evaluations_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = judges()
    monkeypatch.setattr(cells, "load_judges", lambda name: tuple(found[name.split("/")[1]]))
    host = PastingHost(erased={"ball"})
    said = cells.check(host.generate, tmp_path, {"host": "pasting"}, CONFIG, table(), with_flags=False)
    assert said["admitted"] == {"cells": 8, "flags": 0}
    read = admitted_cells(tmp_path / "cells.json")
    assert (len(read["apple"]), read["ball"]) == (8, [])
    assert (tmp_path / "cells.png").read_bytes().startswith(b"\x89PNG")
    values = json.loads((tmp_path / "cells.json").read_text())
    values["cells"][0]["admitted"] = False
    (tmp_path / "cells.json").write_text(json.dumps(values))
    with pytest.raises(ArtefactError, match="changed by hand"):
        admitted_cells(tmp_path / "cells.json")


def test_an_interrupted_check_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, drawn = judges(), list[str]()
    monkeypatch.setattr(cells, "load_judges", lambda name: tuple(found[name.split("/")[1]]))
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))

    def draw(prompts, *, seeds, until=3):
        if len(drawn) == until:
            raise KeyboardInterrupt
        drawn.append(prompts[0])
        return PastingHost().generate(prompts, seeds=seeds)

    with pytest.raises(KeyboardInterrupt):
        cells.check(draw, tmp_path / "a", {"host": "pasting"}, CONFIG, table(), with_flags=False)
    (tmp_path / "a").mkdir()
    said = cells.check(partial(draw, until=99), tmp_path / "a", {"host": "pasting"}, CONFIG, table(), with_flags=False)
    assert len(drawn) == len(set(drawn)) == len(said["cells"]) == 16
    assert not any((tmp_path / "cache" / "admission").iterdir())
    whole = tmp_path / "b"
    whole.mkdir()
    again = cells.check(partial(draw, until=99), whole, {"host": "pasting"}, CONFIG, table(), with_flags=False)
    assert (len(drawn), again) == (32, said)
    assert (whole / "cells.png").read_bytes() == (tmp_path / "a" / "cells.png").read_bytes()
