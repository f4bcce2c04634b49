"""Signals and absent clusters while Ray starts, and what is left when it has ended."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from pathlib import Path

import digits
import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0.3, 1.5])
def test_a_signal_while_ray_starts_ends_the_command_and_all_that_was_started(
    workplace: Path, teacher: Path, number: signal.Signals, delay: float
) -> None:
    spec = digits.write(workplace / "run.yaml", digits.experiment(teacher, {"scaling.workers": 1}))
    driver = digits.start(workplace, "distill", str(spec))
    digits.wait_until((workplace / "dcd_runs" / "run" / "lock").exists, what="lock")
    time.sleep(delay)  # Ray's start takes some seconds
    below = digits.descendants(driver.pid)
    driver.send_signal(number)
    assert driver.wait(15) == 128 + number, (workplace / "output.txt").read_text()
    digits.wait_until_gone(below, timeout=10)
    output = (workplace / "output.txt").read_text()
    assert "stopped; go on with: dcd distill --resume run" in output
    assert "Traceback" not in output


def test_a_process_of_ray_that_does_not_end_by_itself_is_ended() -> None:
    # In a process of its own: the tests' own Ray is joined by a session, not ended.
    script = """
import atexit, os, time, ray
from orchestrator.ray_session import ray_session

@ray.remote
class Stuck:
    def pid(self):
        atexit.register(time.sleep, 1000)
        return os.getpid()

with ray_session():
    actor = Stuck.remote()
    stuck = ray.get(actor.pid.remote())
    actor.__ray_terminate__.remote()  # its raylet has done with it, and it hangs while it exits
print(stuck)
"""
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    with contextlib.suppress(psutil.NoSuchProcess):
        stuck = psutil.Process(int(run.stdout.split()[-1]))
        try:
            digits.wait_until_gone([stuck], timeout=2)
        finally:
            stuck.kill()


def test_an_absent_cluster_is_told_in_a_sentence(workplace: Path, teacher: Path) -> None:
    spec = digits.write(workplace / "run.yaml", digits.experiment(teacher, {"scaling.workers": 1}))
    driver = digits.start(workplace, "distill", str(spec), RAY_ADDRESS="127.0.0.1:9")
    try:
        assert driver.wait(60) == 1
    finally:
        driver.kill()
        driver.wait()
    output = (workplace / "output.txt").read_text()
    assert "RAY_ADDRESS: no Ray cluster answers at 127.0.0.1:9" in output
    assert "Traceback" not in output
