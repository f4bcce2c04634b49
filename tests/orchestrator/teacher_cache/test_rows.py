"""The files of the cache: what is read is what was written, or nothing."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch

from orchestrator.teacher_cache.rows import Damaged, Rows, decode, encode

ABOUT = {b"dcd.key": b"this one"}


def some_rows(dtype: torch.dtype = torch.float32, *, num_rows: int = 5) -> Rows:
    generator = torch.Generator().manual_seed(0)
    return Rows(
        torch.randperm(100, generator=generator)[:num_rows],
        torch.randn(num_rows, 10, generator=generator).to(dtype),
        torch.randn(num_rows, 7, generator=generator).to(dtype),
    )


def written(folder: Path, rows: Rows) -> Path:
    path = folder / "piece.arrow"
    path.write_bytes(encode(rows, ABOUT))
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("num_rows", [0, 1, 5])
def test_every_bit_comes_back(tmp_path: Path, dtype: torch.dtype, num_rows: int) -> None:
    rows = some_rows(dtype, num_rows=num_rows)
    path = written(tmp_path, rows)
    for source in (path, path.read_bytes()):
        found = decode(source, ABOUT)
        for own, other in zip(rows, found, strict=True):
            assert own.dtype == other.dtype
            assert torch.equal(own, other)


def test_other_tools_can_read_a_file(tmp_path: Path) -> None:
    rows = some_rows()
    table = pa.ipc.open_file(str(written(tmp_path, rows))).read_all()
    assert table.column_names == ["positions", "logits", "features"]
    assert table["positions"].to_pylist() == rows.positions.tolist()
    assert table["logits"].to_pylist() == rows.logits.tolist()


def test_rows_outlive_their_file(tmp_path: Path) -> None:
    path = written(tmp_path, some_rows())
    found = decode(path, ABOUT)
    path.unlink()
    assert torch.equal(found.features, some_rows().features)


def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, some_rows())
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(Damaged):
            decode(path, ABOUT)


@pytest.mark.parametrize("bit", [1, 128])
def test_a_change_of_any_byte_is_refused(tmp_path: Path, bit: int) -> None:
    """Of values and of what says how they lie, which Arrow would take at its word."""
    content = encode(some_rows(torch.bfloat16), ABOUT)
    for place in range(len(content)):
        altered = bytearray(content)
        altered[place] ^= bit
        with pytest.raises(Damaged, match="checksum"):
            decode(bytes(altered), ABOUT)
    assert decode(content, ABOUT).logits.shape == (5, 10)


def test_other_arrow_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "piece.arrow"
    table = pa.table({"positions": [1, 2]})
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(Damaged):
        decode(path, ABOUT)


def test_a_file_about_something_else_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, some_rows())
    with pytest.raises(Damaged, match="something else"):
        decode(path, {b"dcd.key": b"another"})


def test_a_file_that_is_not_there_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "absent.arrow", ABOUT)
