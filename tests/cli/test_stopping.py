"""A command that is told to stop in the middle of writing leaves nothing new behind."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli._kit import save_model
from planted import planted_sae
from tiny import tiny_host

import efface.sae.evidence.write as write
from efface.cli.main import main


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Ours while the test runs: without one of the command's own, SIGTERM would end the tests themselves."""

    def unheard(number: int, frame: object) -> None:
        raise RuntimeError("the command does not listen to SIGTERM")

    ours = {signal.SIGTERM: unheard, signal.SIGINT: signal.default_int_handler}  # in the background the latter may be ignored
    before = {number: signal.signal(number, handler) for number, handler in ours.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, None])
def test_feature_evidence_is_whole_or_nothing_new(
    number: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pass is not resumed: what it holds is in memory until the store is written, beside its place."""
    host = tiny_host()
    save_model(host, tmp_path / "model")
    planted_sae(host).save(tmp_path / "sae")
    before = {p.name for p in (tmp_path / "sae").iterdir()}
    (tmp_path / "text.txt").write_text("\n\n".join(f"the wizard and the dog saw {i} castles by the road" for i in range(60)))
    inner, seen = write._contexts, []

    def stopped(*args: Any) -> list[dict[str, Any]]:
        seen.extend(p.name for p in (tmp_path / "sae").glob(".features.*"))
        if number is not None:
            os.kill(os.getpid(), number)
        return inner(*args)

    monkeypatch.setattr(write, "_contexts", stopped)
    line = ["features", "--all", "--sae", tmp_path / "sae", "--model", tmp_path / "model", "--corpus", tmp_path / "text.txt"]
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in line])
    err = capsys.readouterr().err
    left = {p.name for p in (tmp_path / "sae").iterdir()} - before
    assert seen  # it was being written
    if number is None:  # the control: undisturbed, a store comes
        assert (ended.value.code, left) == (0, {"features"}), err
    else:
        assert (ended.value.code, left) == (130, set()), err
        assert "interrupted" in err
        assert "Traceback" not in err
