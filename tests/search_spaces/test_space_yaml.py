from __future__ import annotations

from typing import Any

import pytest
import yaml

from search_spaces import parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("-1E+2", -100.0),
        (".5e1", 5.0),
        ("2.e1", 20.0),
        ("1", 1),
        ("0.5", 0.5),
        ("e1", "e1"),
        ("1e", "1e"),
        ("'1e-3'", "1e-3"),
        ("null", None),
        ("[1e1, a]", [10.0, "a"]),
    ],
)
def test_numbers_with_an_exponent_need_no_decimal_point(text: str, value: Any) -> None:
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


def test_a_key_given_twice_is_refused_with_its_line_at_any_depth() -> None:
    with pytest.raises(yaml.YAMLError, match=r"the key 'b' appears twice(.|\n)*line 3, column 3"):
        parse_yaml("a:\n  b: 1\n  b: 2\n")
    with pytest.raises(yaml.YAMLError, match="the key '1' appears twice"):
        parse_yaml("[{1: a, 1: b}]")


def test_a_number_and_a_text_are_different_keys() -> None:
    assert parse_yaml("{1: a, '1': b}") == {1: "a", "1": "b"}


def test_a_key_of_a_merged_mapping_may_be_overridden() -> None:
    text = "a: &a {x: 1, y: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b}\n"
    assert parse_yaml(text)["b"] == {"x": 2, "y": 1}
