"""docs/data.md says what there is, and its examples work."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest
import yaml

from orchestrator.data import load_dataset
from orchestrator.data.sources import SOURCES
from orchestrator.spec import DataSpec
from orchestrator.spec.data import NamedSource

Write = Callable[..., Path]

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "data.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_every_source_has_a_reader_and_a_row() -> None:
    names = set(get_args(NamedSource))
    assert set(SOURCES) == names
    table = PAGE.split("## Sources")[1].split("\n\n")[1]
    first_cells = " ".join(line.split("|")[1] for line in table.splitlines())
    assert set(re.findall(r"`([\w:]+)`", first_cells)) - {"source"} == {*names, "module:function"}


def test_every_setting_of_the_data_is_on_the_page() -> None:
    elsewhere = {"normalize", "num_classes", "on_error", "seed"}  # the README and the schema
    named = set(re.findall(r"`(\w+)[`:]", PAGE))
    assert set(DataSpec.model_fields) - named <= elsewhere


def test_the_sections_of_the_page_are_valid() -> None:
    sections = [yaml.safe_load(block)["data"] for block in blocks("yaml")]
    assert {DataSpec.model_validate(section).source for section in sections} == {
        "parquet",
        "imagenet",
    }


def test_the_function_of_the_page_is_a_source(
    tmp_path: Path, write_folder: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = blocks("python")
    (tmp_path / "my_images.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_images", raising=False)
    write_folder(tmp_path / "birds" / "good", {"owl": 10, "tit": 10})
    write_folder(tmp_path / "birds" / "exam", {"owl": 3, "tit": 3})

    dataset = load_dataset(
        DataSpec(source="my_images:load", args={"root": str(tmp_path / "birds")})
    )

    assert dataset.class_names == ("owl", "tit")
    assert dataset.test is not None
    assert (len(dataset.train), len(dataset.val), len(dataset.test)) == (18, 2, 6)
    sys.modules.pop("my_images")
