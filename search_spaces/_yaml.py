"""YAML as people mean it, for every file of the project."""

from __future__ import annotations

import functools
import re
from typing import Any

import yaml


def parse_yaml(text: str) -> Any:
    """The plain values of a YAML text.

    Unlike PyYAML's safe loader it reads ``1e-3`` as the number that YAML 1.2 sees there, and
    refuses a key that silently overrides its twin.

    Raises:
        yaml.YAMLError: the text is not valid, or a mapping has a key twice.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise yaml.YAMLError(
            f"line {line}: the character #x{error.character:02x} is not allowed"
        ) from error


def _built(loader: yaml.SafeLoader, node: yaml.ScalarNode, kind: str) -> Any:
    """What a text stands for, where PyYAML lets fail what it takes for a date or a number."""
    try:
        return getattr(yaml.SafeLoader, f"construct_yaml_{kind}")(loader, node)
    except ValueError as error:
        raise yaml.constructor.ConstructorError(
            None, None, f"{node.value!r} is no {kind} ({error})", node.start_mark
        ) from error


def yaml_fault(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML text and where, in a line."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark, context = error.problem_mark or error.context_mark, error.context
    where = f"line {mark.line + 1}, column {mark.column + 1}" if mark is not None else None
    begun = error.context_mark
    if context is not None and begun is not None and mark is not None and begun.line < mark.line:
        context += f" (line {begun.line + 1})"
    said = ", ".join(filter(None, [context, error.problem]))
    return ": ".join(filter(None, [where, said]))


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Before `<<` merges other mappings into this one, whose keys it may override.
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if (key.tag, key.value) in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"the key {key.value!r} appears twice", key.start_mark
                )
            seen.add((key.tag, key.value))
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("+-.0123456789"),
)

for _kind in ("timestamp", "int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", functools.partial(_built, kind=_kind))
