"""What is shown while trials run."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from orchestrator.progress import Display
from orchestrator.trials.board import Board
from orchestrator.trials.trial import settings_text


def board(stream: io.StringIO, *, terminal: bool = False, **changes: Any) -> Board:
    console = Console(file=stream, force_terminal=terminal, width=100, soft_wrap=not terminal)
    settings = {"0001": {"objective.kd_weight": 0.5}, "0002": {"objective.kd_weight": 2.0}}
    options: dict[str, Any] = {
        "what": "trials",
        "total": 3,
        "epochs": 4,
        "settings_of": lambda name: settings.get(name, {}),
        "higher_is_better": True,
        "ended": {},
    }
    return Board(Display(console), **(options | changes))


def run(of: Board) -> None:
    with of:
        of.started("0001")
        of.reported("0001", 4, 60.0)
        of.ended("0001", "finished", 60.0, None)
        of.started("0002")
        of.reported("0002", 1, 20.0)
        of.ended("0002", "stopped", 20.0, None)
        of.started("0003")
        of.ended("0003", "failed", None, "ValueError: no")


def test_without_a_terminal_each_trial_gets_plain_lines() -> None:
    stream = io.StringIO()
    run(board(stream))
    text = stream.getvalue()
    assert "0001 finished after epoch 4, 60.00  kd_weight 0.5" in text
    assert "0002 stopped early after epoch 1, 20.00  kd_weight 2" in text
    assert "0003 failed after epoch 0: ValueError: no" in text
    last = text.strip().splitlines()[-1].strip()
    assert last == (
        "3/3 trials, 1 finished, 1 stopped early, 1 failed, 0 running, best 60.00 (0001)"
    )
    assert "\x1b" not in text


def test_a_terminal_shows_the_best_with_its_settings_and_who_runs() -> None:
    stream = io.StringIO()
    of = board(stream, terminal=True)
    with of:
        of.started("0001")
        of.reported("0001", 4, 60.0)
        of.ended("0001", "finished", 60.0, None)
        of.started("0002")
        of.reported("0002", 1, 20.0)
    text = stream.getvalue()
    assert "best: kd_weight 0.5" in text
    assert "0002  epoch 1/4  20.00" in text
    assert "left" in text


def test_trials_of_earlier_sessions_count_and_the_best_of_them_stays() -> None:
    stream, heard = io.StringIO(), []
    ended = {"0001": ("finished", 60.0), "0002": ("failed", None)}
    of = board(stream, ended=ended, on_change=lambda n, best: heard.append((n, best)))
    with of:
        of.started("0003")
        of.reported("0003", 1, 50.0)
        of.ended("0003", "stopped", 50.0, None)
    assert heard == [(3, 60.0)]
    assert "best 60.00 (0001)" in stream.getvalue()


def test_a_small_score_can_be_the_best() -> None:
    stream = io.StringIO()
    run(board(stream, higher_is_better=False))
    assert "best 20.00 (0002)" in stream.getvalue()


def test_where_no_best_is_looked_for_none_is_shown() -> None:
    stream = io.StringIO()
    run(board(stream, higher_is_better=None))
    assert "best" not in stream.getvalue()


def test_settings_are_short() -> None:
    assert settings_text({"a.lr": 0.123456, "b.c": "x", "d": None, "e.f": True}) == (
        "lr 0.1235, c x, d null, f true"
    )
