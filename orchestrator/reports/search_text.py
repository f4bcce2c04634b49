"""A search for the terminal and as a Markdown page."""

from __future__ import annotations

import textwrap

from orchestrator.reports.method_sections import (
    pareto_sections,
    rungs_section,
    schedule_section,
    settings_section,
)
from orchestrator.reports.search import SearchRecord
from orchestrator.reports.search_facts import count_states, figure_names
from orchestrator.reports.search_sections import (
    failures_section,
    finals_section,
    trials_section,
    winner_section,
)
from orchestrator.reports.tables import Section, facts_table, markdown_table, text_table

_WIDTH = 100

_FIGURES = {
    "history": "Score of each trial in the order of their start, and the best so far.",
    "curves": "Best score so far by epoch, a line for each trial.",
    "settings": "Score against each searched setting.",
    "pareto": "Trials by their goals; those on the line are beaten by no other in both.",
    "schedule": "Weights by epoch of the winner's student.",
}


def describe_search(r: SearchRecord) -> str:
    """The search for the terminal; the Markdown page says more."""
    lines = [*textwrap.wrap(_headline(r), _WIDTH), _states(r)]
    sections = [
        winner_section(r),
        *pareto_sections(r),
        schedule_section(r),
        finals_section(r),
        rungs_section(r),
        failures_section(r),
    ]
    for section in sections:
        if section is not None:
            lines += ["", section.title]
            lines += [line for text in section.sentences for line in _indented(text)]
            if section.table is not None:
                lines += ["", textwrap.indent(text_table(section.table), "  ")]
    if r.notes:
        lines += ["", "Notes", *(line for note in r.notes for line in _indented(note))]
    return "\n".join(lines)


def search_markdown(r: SearchRecord, *, figures: str | None = "figures") -> str:
    """The search as a Markdown page.

    Args:
        r: the search.
        figures: folder of the PNG files of `search_figures`, relative to the page; None for none.
    """
    parts = [f"# {r.name}", _headline(r), _states(r)]
    if r.notes:
        parts.append("\n".join(f"- {note}" for note in r.notes))
    sections = [
        (winner_section(r), None),
        (finals_section(r), None),
        (trials_section(r), "history"),
        *((section, None) for section in pareto_sections(r)),
        (None, "pareto"),
        (schedule_section(r), "schedule"),
        (rungs_section(r), "curves"),
        (settings_section(r), "settings"),
        (failures_section(r), None),
    ]
    drawn = figure_names(r) if figures is not None else []
    for section, figure in sections:
        parts += _markdown(section) if section is not None else []
        if figure in drawn:
            parts.append(f"![{_FIGURES[figure]}]({figures}/{figure}.png)")
    if r.facts:
        parts += ["## The runs", markdown_table(facts_table(r.facts))]
    return "\n\n".join(parts) + "\n"


def _headline(r: SearchRecord) -> str:
    goals = " and ".join(f"{metric} ({mode})" for metric, mode in r.goals)
    return (
        f"{r.name}: {r.title} (space {r.space}). Goal: {goals}. Searcher {r.searcher}, scheduler "
        f"{r.scheduler}, {r.epochs} epoch{'' if r.epochs == 1 else 's'} for a trial."
    )


def _states(r: SearchRecord) -> str:
    counts = count_states(r)
    names = {"stopped": "stopped early"}
    n = len(r.trials)
    text = f"{n} trial{'' if n == 1 else 's'}"
    listing = ", ".join(f"{count} {names.get(state, state)}" for state, count in counts.items())
    seconds = [trial.seconds for trial in r.trials if trial.seconds is not None]
    time = f"; {_duration(sum(seconds))} of training in all" if seconds else ""
    return f"{text}: {listing}{time}." if listing else f"{text}."


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="  ", subsequent_indent="  ")


def _markdown(section: Section) -> list[str]:
    parts = [f"## {section.title}", " ".join(section.sentences)]
    return parts if section.table is None else [*parts, markdown_table(section.table)]
