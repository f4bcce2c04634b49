"""A signal ends a command once, whatever the code that it meets does with exceptions."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap

import pytest

CAUGHT = """
    def command():
        try:
            receive()
        except:
            pass
        wait()
"""
DROPPED = """
    class Dropped:
        def __del__(self):
            receive()

    def command():
        Dropped()
        wait()
"""
IN_A_CALLBACK = """
    def command():
        target = Dropped = type("Target", (), {})()
        watch = weakref.ref(target, lambda _: receive())
        del target, Dropped
        wait()
"""
SLOW_TO_END = """
    def command():
        try:
            receive()
        finally:
            try:
                time.sleep(1)
            except BaseException as error:
                print("disturbed by", error)
            print("ended in order", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("code", "said"),
    [
        (CAUGHT, "went on\n"),
        (DROPPED, "went on\n"),
        (IN_A_CALLBACK, "went on\n"),
        (SLOW_TO_END, "ended in order\n"),
    ],
    ids=["caught by a library", "dropped by Python", "in a callback", "slow to end"],
)
def test_a_signal_is_neither_lost_nor_met_twice(
    number: signal.Signals, code: str, said: str
) -> None:
    script = (
        textwrap.dedent(
            f"""
            import os, time, weakref
            from orchestrator import cli

            def receive():
                os.kill(os.getpid(), {number:d})
                time.sleep(5)

            def wait():
                print("went on", flush=True)
                time.sleep(60)
                print("for too long", flush=True)
            """
        )
        + textwrap.dedent(code)
        + "\ncli.app = command\ncli.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 128 + number, done.stderr
    assert done.stdout == said
    assert done.stderr == ""
