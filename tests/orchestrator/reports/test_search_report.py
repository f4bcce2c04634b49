"""Searches as text and Markdown, and the numbers in them."""

from __future__ import annotations

import math

import pytest
from report_examples import (
    final,
    population_search,
    realistic_search,
    search,
    student_search,
    trial,
)

from orchestrator.reports.search_facts import (
    Stage,
    best_first,
    count_states,
    final_gap,
    front,
    grouped_errors,
    lineage,
    rung_correlations,
    searched_settings,
    snapshot,
)
from orchestrator.reports.search_text import describe_search, search_markdown


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_the_winner_is_held_against_the_default_point() -> None:
    text = one_line(describe_search(search(trial(0, 90.0), trial(1, 92.5))))
    assert "Trial 1 is the best: val/top1 92.50 %." in text
    assert "The default point (trial 0) has 90.00 %; the winner differs by +2.50 points" in text
    assert "objective.dcd_weight 2 1" in text
    assert "2 trials: 2 finished; 2 min of training in all." in text


def test_a_winner_that_is_the_default_point_is_called_so() -> None:
    text = describe_search(search(trial(0, 93.0), trial(1, 92.5)))
    assert "Trial 0, the default point itself, is the best: val/top1 93.00 %." in text


def test_a_default_point_that_did_not_finish_is_not_compared() -> None:
    r = search(trial(0, 80.0, state="stopped", epochs=3), trial(1, 92.5))
    text = one_line(describe_search(r))
    assert "The default point (trial 0) was stopped early after 3 epochs." in text
    assert "differs by" not in text


@pytest.mark.parametrize(
    ("mode", "search_score", "sentence"),
    [
        ("max", 95.0, "the search score was 2.00 points too optimistic"),
        ("max", 92.0, "not optimistic, the final runs are 1.00 points better."),
        ("max", 93.0, "on average: the search score was not optimistic. The final runs"),
        ("min", 92.0, "the search score was 1.00 points too optimistic"),
    ],
)
def test_the_gap_is_search_score_minus_mean_of_the_finals(
    mode: str, search_score: float, sentence: str
) -> None:
    finals = [
        final(0, 92.0, 90.0),
        final(1, 94.0, 91.0),
        final(2, math.nan, None, state="failed", error="killed"),
    ]
    r = search(trial(0, search_score), finals=finals, higher_is_better=mode == "max")
    assert final_gap(r) == (search_score, 93.0, 2)
    text = one_line(describe_search(r))
    assert sentence in text
    assert "Seed 2 failed: killed" in text
    assert "luck" not in text  # of one trial
    assert "mean 93.00 90.50" in text
    assert "sd 1.41 0.71" in text  # half the distance of two, times sqrt(2)


def test_luck_is_named_where_the_best_of_several_was_taken() -> None:
    trials = trial(0, 95.0), trial(1, 90.0), trial(2, 40.0, state="stopped", epochs=3)
    text = one_line(describe_search(search(*trials, finals=[final(0, 92.0, 90.0)])))
    assert "the best of 2 scores is chosen for its luck" in text
    assert "the test column is what to quote" in text


def test_final_runs_that_were_trained_otherwise_are_not_called_lucky() -> None:
    differ = "for 240 epochs instead of 10 and with the step schedule instead of cosine"
    trials = trial(0, 71.0), trial(1, 70.0)
    r = search(*trials, finals=[final(0, 76.0, 75.0)], finals_differ=differ)
    text = one_line(describe_search(r))
    assert f"5.00 points better. They were trained otherwise, {differ}, so" in text
    assert "optimistic" not in text and "the best of" not in text


def test_trials_are_ranked_finished_first() -> None:
    r = search(
        trial(0, 90.0),
        trial(1, 99.0, state="stopped", epochs=3),
        trial(2, 91.0),
        trial(3, 50.0, state="stopped", epochs=9),
        trial(4, None, state="failed", epochs=0),
        trial(5, math.nan, state="failed", epochs=1),
    )
    assert [t.number for t in best_first(r)] == [2, 0, 3, 1]
    assert [t.number for t in best_first(r._replace(higher_is_better=False))] == [0, 2, 3, 1]
    assert count_states(r) == {"finished": 2, "stopped": 2, "failed": 2}


def test_rungs_are_correlated_with_the_end_over_those_that_got_there() -> None:
    # At the rung 1, 2, 3, 4; at the end ranks 2, 1, 3, 4: rho 0.8 as 1 - 6 * 2 / 60
    ends = {0: 20.0, 1: 10.0, 2: 30.0, 3: 40.0}
    trials = [trial(n, end, scores={1: float(n), 10: end}, epochs=10) for n, end in ends.items()]
    trials.append(trial(4, 99.0, scores={1: 99.0}, state="stopped", epochs=3))
    r = search(*trials, rungs=[3], scheduler="asha")
    assert rung_correlations(r) == [(3, 4, pytest.approx(0.8))]
    assert "3 4 +0.80" in one_line(describe_search(r))
    few = r._replace(trials=r.trials[2:])
    assert rung_correlations(few) == [(3, 2, None)]
    assert "fewer than three trials reached the end" in one_line(describe_search(few))


def test_settings_are_looked_at_where_enough_trials_got() -> None:
    long = [trial(n, 50.0 + n) for n in range(3)]
    short = [
        trial(n, 40.0 + n, scores={1: 40.0 + n}, state="stopped", epochs=3) for n in range(3, 9)
    ]
    found = snapshot(search(*long, *short, rungs=[3], scheduler="asha"))
    # At epoch 3 the long ones had score - 10 + 3.
    assert found.epoch == 3
    assert found.scores == {0: 43.0, 1: 44.0, 2: 45.0, **{n: 40.0 + n for n in range(3, 9)}}
    assert snapshot(search(*long, rungs=[3])).epoch == 3
    assert snapshot(search()).scores == {}


def test_the_effect_of_settings_is_rank_correlation_or_mean_by_value() -> None:
    trials = [
        trial(
            n,
            80.0 + n,
            settings={
                "optimizer.lr": 1.0 / (n + 1),
                "objective.contrast": "softmax" if n < 4 else "sigmoid",
                "train.batch_size": 64,
                **({"objective.init_bias": float(n)} if n > 3 else {}),
            },
        )
        for n in range(8)
    ]
    page = search_markdown(search(*trials))
    assert "| optimizer.lr | 8 | -1.00 | ±0.74 |  |" in page  # 1.96 / sqrt(7)
    means = "softmax 81.50 (n = 4), sigmoid 85.50 (n = 4)"
    assert f"| objective.contrast | 8 | - | - | {means} |" in page
    assert "| objective.init_bias | 4 | - | - |  |" in page
    assert "Over the 8 trials that reached epoch 10" in page
    assert "train.batch_size" not in searched_settings(search(*trials))
    assert "Too few trials to say: 7 have a score" in search_markdown(search(*trials[1:]))


def test_the_fronts_are_by_parameters_and_by_latency() -> None:
    r = student_search()
    goals = r.goals
    known, best = front(r, goals[0], goals[1])
    assert len(known) == 7
    assert [t.number for t in best] == [0, 1, 2, 3, 5, 6]  # resnet56 is larger and worse
    _, fast = front(r, goals[0], ("latency_ms", "min"))
    assert [t.number for t in fast] == [0, 5, 6]
    text = describe_search(r)
    assert "Pareto front: val/top1 and student/parameters" in text
    assert "Pareto front: val/top1 and latency_ms" in text
    assert "7,433,818" in text
    unmeasured = r._replace(trials=[t._replace(extra={"parameters": 1.0}) for t in r.trials])
    assert "latency_ms" not in describe_search(unmeasured)


def test_a_student_of_a_population_has_its_history_through_its_donors() -> None:
    r = population_search()
    dcd, kd = "objective.dcd_weight", "objective.kd_weight"
    assert lineage(r, 1) == [
        Stage(1, 2, {dcd: 0.5, kd: 4.0}),
        Stage(4, 0, {dcd: 0.6, kd: 4.8}),
        Stage(7, 1, {dcd: 0.6, kd: 40.0}),  # what trial 0 took over after epoch 6 is not in it
    ]
    assert lineage(r, 2) == [Stage(1, 2, {dcd: 0.5, kd: 4.0})]
    assert "Which settings mattered" not in search_markdown(r)  # none keeps what it started with
    text = one_line(describe_search(r))
    assert "took over a better one's student and changed its weights 3 times" in text
    assert "from epoch in trial dcd_weight kd_weight 1 2 0.5 4 4 0 0.6 4.8 7 1 0.6 40" in text


def test_failed_trials_are_grouped_by_error() -> None:
    trials = [
        trial(n, None, state="failed", error=error, epochs=0)
        for n, error in enumerate(["no space", "out of\nmemory", "out of memory", None])
    ]
    r = search(*trials, trial(4, 90.0))
    assert grouped_errors(r) == [
        ("out of memory", [1, 2]), ("no space", [0]), ("no error was recorded", [3])
    ]  # fmt: skip
    assert "4 of 5 trials failed." in describe_search(r)


def test_a_search_of_failures_only_says_the_common_error() -> None:
    r = search(*(trial(n, None, state="failed", error="no GPU", epochs=0) for n in range(3)))
    text = describe_search(r)
    assert "No trial finished, so there is no winner." in text
    assert "All 3 trials failed with the same error." in text
    assert "no GPU" in text
    assert "no winner" in search_markdown(r)


def test_a_search_without_trials_is_described() -> None:
    assert "0 trials." in describe_search(search())
    assert search_markdown(search()).startswith("# digits-search\n")


def test_the_page_has_all_sections_and_the_figures_that_apply() -> None:
    page = search_markdown(realistic_search())
    for heading in ("Winner", "Final runs", "Best trials", "Early stopping", "Failed trials"):
        assert f"\n## {heading}\n" in page
    for figure in ("history", "curves", "settings"):
        assert f"](figures/{figure}.png)" in page
    assert "pareto.png" not in page
    assert "- 1 trial was retried from its checkpoint." in page
    assert "| teacher | resnet32x4 |" in page
    assert "](../here/history.png)" in search_markdown(realistic_search(), figures="../here")
    assert "![" not in search_markdown(realistic_search(), figures=None)
