"""YAML as people mean it, for every file of the project."""

from __future__ import annotations

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
    return yaml.load(text, Loader=_Loader)


def yaml_fault(error: yaml.YAMLError) -> str:
    """What is wrong with a YAML text and where, in a line."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split()).replace(' in "<unicode string>",', " at")
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    begun = ""
    if error.context is not None:
        begun = f" {error.context}"
        if error.context_mark is not None and error.context_mark is not mark:
            begun += f" that begins in line {error.context_mark.line + 1}"
    return f"{where}{error.problem}{begun}"


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
