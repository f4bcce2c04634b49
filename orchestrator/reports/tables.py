"""Numbers as text, and tables for the terminal and for Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

NOTHING = "-"
"""In a cell that has no value."""


class Table(NamedTuple):
    """Cells as text; every row has as many as the header."""

    header: list[str]
    rows: list[list[str]]


class Section(NamedTuple):
    """A heading with sentences and perhaps a table below."""

    title: str
    sentences: list[str]
    table: Table | None = None


def text_table(table: Table) -> str:
    """Columns set apart by spaces; columns of numbers flush right."""
    lines = [table.header, *table.rows]
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    numbers = _number_columns(table)
    return "\n".join(
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(line, widths, numbers, strict=True)
        ).rstrip()
        for line in lines
    )


def markdown_table(table: Table) -> str:
    """A GitHub Markdown table; columns of numbers flush right."""
    rule = ["---:" if number else "---" for number in _number_columns(table)]
    lines = [[_escaped(cell) for cell in line] for line in (table.header, *table.rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def facts_table(facts: Mapping[str, str]) -> Table:
    """Name and value of each fact."""
    return Table(["", ""], [[name, value] for name, value in facts.items()])


def format_score(value: float | None, unit: str) -> str:
    """A score without its unit: two decimals for percent, else four digits."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{value:.2f}" if unit == "%" else f"{value:.4g}"


def format_goal(value: float | None, metric: str) -> str:
    """A value of any goal; counts in full."""
    if value is not None and value.is_integer() and abs(value) >= 1000:
        return f"{value:,.0f}"
    return format_score(value, unit_of(metric))


def format_difference(value: float | None, unit: str) -> str:
    """A difference of scores with its sign."""
    if value is None or not math.isfinite(value):
        return NOTHING
    return f"{round(value, 2) + 0.0:+.2f}" if unit == "%" else f"{value + 0.0:+.4g}"


def difference_unit(unit: str) -> str:
    """What follows a difference of scores: percentages differ by points."""
    name = "points" if unit == "%" else unit
    return f" {name}" if name else ""


def format_p(p: float | None) -> str:
    """A p-value with three decimals."""
    if p is None:
        return NOTHING
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def format_setting(value: Any) -> str:
    """The value of a setting as YAML spells it, numbers with four digits."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "null"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def setting_cell(settings: Mapping[str, Any], path: str) -> str:
    """The value of one of the settings, if it is among them."""
    return format_setting(settings[path]) if path in settings else NOTHING


def format_settings(settings: Mapping[str, Any]) -> str:
    """Settings as one line."""
    return ", ".join(f"{path} = {format_setting(value)}" for path, value in settings.items())


def shorten(text: str, width: int = 200) -> str:
    """One line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 3]}..."


def unit_of(metric: str) -> str:
    """The unit of a metric by its name: accuracies are percentages."""
    return "%" if metric.rpartition("/")[2].startswith("top") else ""


def mean(values: Sequence[float]) -> float | None:
    """None of no values."""
    return math.fsum(values) / len(values) if values else None


def deviation(values: Sequence[float]) -> float | None:
    """Standard deviation of a sample; None with fewer than two values."""
    if len(values) < 2:
        return None
    center = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - center) ** 2 for v in values) / (len(values) - 1))


def _number_columns(table: Table) -> list[bool]:
    """Which columns hold nothing but what starts like a number."""
    columns = zip(*table.rows, strict=True) if table.rows else [()] * len(table.header)
    return [
        any(cell not in ("", NOTHING) for cell in column)
        and all(cell in ("", NOTHING) or cell.lstrip("+-<")[:1].isdigit() for cell in column)
        for column in columns
    ]


def _escaped(cell: str) -> str:
    return " ".join(cell.split()).replace("|", "\\|")
