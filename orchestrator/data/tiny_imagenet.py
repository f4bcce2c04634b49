"""Tiny ImageNet in the folder that its archive unpacks to."""

from __future__ import annotations

from pathlib import Path

from orchestrator.data.folders import files_as_images, image_files, local_folder
from orchestrator.data.raw import RawData, RawImages
from orchestrator.errors import UserError
from orchestrator.spec import DataSpec

_FOLDER = "tiny-imagenet-200"


def read_tiny_imagenet(spec: DataSpec) -> RawData:
    """The folder as it was published, in `path` or below it: nothing has to be moved.

    Labels follow `wnids.txt`, names are those of `words.txt`. The labels of its test images were
    never published: the images in `val` are the test split.

    Raises:
        UserError: files are absent, or an annotation names an unknown class.
    """
    assert spec.path is not None
    root = local_folder(spec.path, setting="data.path", source="tiny_imagenet")
    if (root / _FOLDER).is_dir():
        root = root / _FOLDER
    for name in ("wnids.txt", "words.txt", "train", "val/images", "val/val_annotations.txt"):
        if not (root / name).exists():
            raise UserError(
                f"data.path: {root / name} does not exist: put the folder there that "
                f"{_FOLDER}.zip unpacks to"
            )
    wnids = (root / "wnids.txt").read_text().split()
    return RawData(
        train=_train_images(root / "train", wnids),
        test=_val_images(root / "val", wnids),
        class_names=_class_names(root / "words.txt", wnids),
    )


def _train_images(folder: Path, wnids: list[str]) -> RawImages:
    files: list[Path] = []
    labels: list[int] = []
    for label, wnid in enumerate(wnids):
        of_class = image_files(folder / wnid / "images")
        if not of_class:
            raise UserError(
                f"data.path: {folder / wnid / 'images'} holds no images, and wnids.txt names the "
                "class: unpack the archive again"
            )
        files += of_class
        labels += [label] * len(of_class)
    return files_as_images(files, labels)


def _val_images(folder: Path, wnids: list[str]) -> RawImages:
    """The images that `val_annotations.txt` names, one per line: file, class, box."""
    label_of = {wnid: label for label, wnid in enumerate(wnids)}
    annotations = folder / "val_annotations.txt"
    files: list[Path] = []
    labels: list[int] = []
    for number, line in enumerate(annotations.read_text().splitlines(), start=1):
        file, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in label_of:
            raise UserError(
                f"{annotations} line {number}: {wnid!r} is no class of wnids.txt: a line is a "
                "file, a class and a box, between tabs"
            )
        files.append(folder / "images" / file)
        labels.append(label_of[wnid])
    return files_as_images(files, labels)


def _class_names(words: Path, wnids: list[str]) -> tuple[str, ...]:
    """The line of each class in `words.txt`, which has those of all of WordNet."""
    pairs = (line.split("\t", 1) for line in words.read_text().splitlines() if "\t" in line)
    name_of = {wnid: name.strip() for wnid, name in pairs}
    unnamed = [wnid for wnid in wnids if wnid not in name_of]
    if unnamed:
        raise UserError(f"{words}: no line for class {unnamed[0]!r}: unpack the archive again")
    return tuple(name_of[wnid] for wnid in wnids)
