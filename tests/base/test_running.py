import os
import random
import signal

import numpy as np
import torch

from efface.base.running import Checkpoints, JsonlLog, rng_state, set_rng_state, stop_on_signals


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_generators_come_back_exactly(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    random.gauss(0, 1)
    state = rng_state()
    first = draw()
    checkpoints.save(3, {"torch": state["torch"], "numpy_keys": state["numpy_keys"]}, state["values"])
    assert draw() != first
    newest = checkpoints.newest()
    assert newest is not None
    _, tensors, values = newest
    set_rng_state({**tensors, "values": values})
    assert draw() == first


def test_the_newest_readable_checkpoint_is_taken(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 3):
        checkpoints.save(step, {"w": torch.full((8,), float(step))}, {"step": step})
    assert checkpoints.steps() == [2, 3]
    broken = tmp_path / "step-3" / "state.safetensors"
    broken.write_bytes(broken.read_bytes()[:-4])
    newest = checkpoints.newest()
    assert newest is not None
    step, tensors, values = newest
    assert (step, values["step"], float(tensors["w"][0])) == (2, 2, 2.0)


def test_a_signal_sets_a_flag_and_the_old_handler_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with stop_on_signals() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop
        assert stop.signal == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_resumed_log_is_cut_at_the_step(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonlLog(path)
    for step in range(4):
        log.write(step=step)
    log.close()
    log = JsonlLog(path, resume_step=1)
    log.write(step=2)
    log.close()
    assert path.read_text().count("\n") == 3
