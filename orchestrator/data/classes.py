"""The classes of a source: their names, and which of them an experiment keeps.

M: images, K: classes of the source.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.data.raw import Integers, RawData, RawImages
from orchestrator.error_text import nearest
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec


def name_classes(raw: RawData, spec: DataSpec) -> tuple[str, ...]:
    """(K,) names; K is `data.num_classes`, else the named classes, else found in the labels."""
    if raw.class_names is not None:
        named = raw.class_names
        num_classes = spec.num_classes or len(named)
        return (*named, *(str(label) for label in range(len(named), num_classes)))[:num_classes]
    if spec.num_classes is not None:
        return tuple(str(label) for label in range(spec.num_classes))
    present = np.unique(raw.train.labels[raw.train.labels >= 0])
    gaps = np.flatnonzero(present != np.arange(len(present)))
    if gaps.size:
        raise UserError(
            f"{spec.path or spec.source}: labels go up to {present[-1]}, but no training image has "
            f"label {gaps[0]}: number classes 0, 1, ..., or set data.num_classes"
        )
    return tuple(str(label) for label in present)


def check_labels(raw: RawImages, class_names: Sequence[str], *, where: str) -> Integers:
    """(M,) labels as int64.

    Raises:
        UserError: there are none, or one is outside 0..K-1.
    """
    if len(raw.labels) == 0:
        raise UserError(f"{where} holds no images")
    outside = np.flatnonzero((raw.labels < 0) | (raw.labels >= len(class_names)))
    if outside.size:
        first = int(outside[0])
        raise UserError(
            f"{raw.name(first)}: label {raw.labels[first]} is outside 0..{len(class_names) - 1}: "
            "correct it or data.num_classes"
        )
    return raw.labels.astype(np.int64)


def find_classes(wanted: Sequence[str | int], class_names: Sequence[str]) -> list[int]:
    """The numbers of the classes that `data.classes` names.

    Raises:
        UserError: there is no such class, several have the name, one is named twice, or a number
            is also the name of another class.
    """
    found: list[int] = []
    for each in wanted:
        named = [number for number, name in enumerate(class_names) if name == each]
        if isinstance(each, int):
            _check_no_name(each, class_names)
            named = [each] if 0 <= each < len(class_names) else []
        if len(named) != 1:
            what = "several classes have this name" if named else "there is no such class"
            hint = "" if named or isinstance(each, int) else nearest(each, class_names)
            raise UserError(
                f"data.classes: {each!r}: {what}; give a name, or a number from 0 to "
                f"{len(class_names) - 1}{hint}"
            )
        if named[0] in found:
            raise UserError(f"data.classes: {each!r} names class {named[0]} a second time")
        found += named
    return found


def _check_no_name(number: int, class_names: Sequence[str]) -> None:
    """Refuse a number that names another class: folders 1, 10 and 2 are classes 0, 1 and 2."""
    namesakes = [place for place, name in enumerate(class_names) if name == str(number)]
    if namesakes and number not in namesakes:
        quoted = f"write '{number}', in quotes, for the class of this name (number {namesakes[0]})"
        if not 0 <= number < len(class_names):
            raise UserError(f"data.classes: {number}: there is no class of this number; {quoted}")
        raise UserError(
            f"data.classes: {number} is the number of class {class_names[number]!r} and the name "
            f"of another: {quoted}, or '{class_names[number]}'"
        )


def renumber(labels: Integers, kept: Sequence[int], *, num_classes: int) -> Integers:
    """(M,) places of the labels among the kept classes; -1 for those of other classes."""
    place = np.full(num_classes, -1, dtype=np.int64)
    place[list(kept)] = np.arange(len(kept))
    renumbered: Integers = place[labels]
    return renumbered
