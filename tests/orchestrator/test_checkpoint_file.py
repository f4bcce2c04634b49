"""Reading weights that someone else saved, and fitting them to a network."""

from __future__ import annotations

import argparse
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from orchestrator.checkpoint_file import load_weights, read_state_dict
from orchestrator.errors import UserError

FOREIGN = Path(__file__).resolve().parents[3] / "shared" / "cifar10" / "teacher_resnet56.th"


class Net(nn.Module):
    """A convolution, BatchNorm and a classifier."""

    def __init__(self, num_classes: int = 5, channels: int = 3, width: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, width, 3)
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, K)."""
        logits: Tensor = self.fc(self.bn(self.conv(images)).mean(dim=(2, 3)))
        return logits


class Evil:
    """A pickle of this makes a file when it is loaded without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (open, (str(self.marker), "w"))


def saved(content: Any, folder: Path, **options: Any) -> str:
    path = folder / "checkpoint.pt"
    torch.save(content, path, **options)
    return str(path)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("nest", ["model", "state_dict", "net", "model_state_dict"])
@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "_orig_mod.",
        "student.",
        "module.student.",
        "student.model.",
        "_orig_mod.module.",
        "module._orig_mod.student._orig_mod.model.",
    ],
)
def test_nested_weights_with_the_prefixes_of_wrappers_are_found(
    tmp_path: Path, nest: str, prefix: str
) -> None:
    state = Net().state_dict()
    content = {"epoch": 3, nest: {prefix + name: tensor for name, tensor in state.items()}}
    assert_same(read_state_dict(saved(content, tmp_path)), state)


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_the_whole_file_may_be_the_state_dict(tmp_path: Path, prefix: str) -> None:
    state = Net().state_dict()
    content = {prefix + name: tensor for name, tensor in state.items()}
    assert_same(read_state_dict(saved(content, tmp_path)), state)


def test_plain_values_beside_the_weights_are_left_out(tmp_path: Path) -> None:
    state = Net().state_dict()
    content = {**state, "epoch": np.int64(3), "args": argparse.Namespace(lr=0.1), "arch": "net"}
    assert_same(read_state_dict(saved(content, tmp_path)), state)


def test_of_several_nested_state_dicts_the_one_named_model_wins(tmp_path: Path) -> None:
    model, other = Net().state_dict(), Net().state_dict()
    content = {"net": other, "state_dict": other, "model": model}
    assert_same(read_state_dict(saved(content, tmp_path)), model)


def test_a_model_entry_that_is_only_a_name_is_passed_over(tmp_path: Path) -> None:
    state = Net().state_dict()
    content = {"model": "resnet20", "state_dict": state}
    assert_same(read_state_dict(saved(content, tmp_path)), state)


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_of_a_training_checkpoint_only_the_student_is_kept(tmp_path: Path, wrapper: str) -> None:
    state = Net().state_dict()
    learned = {f"{wrapper}student.model.{name}": tensor for name, tensor in state.items()}
    for name in ("student_head.weight", "teacher_head.bias", "log_temperature", "bias"):
        learned[wrapper + name] = torch.ones(2)
    content = {"epoch": 2, "state": {"distiller": learned, "optimizer": {"param_groups": []}}}
    assert_same(read_state_dict(saved(content, tmp_path)), state)


def test_a_prefix_that_not_all_names_share_stays(tmp_path: Path) -> None:
    state = {"module.weight": torch.ones(2), "fc.weight": torch.ones(3)}
    assert_same(read_state_dict(saved(state, tmp_path)), state)


@pytest.mark.parametrize(
    "value",
    [
        argparse.Namespace(lr=0.1, milestones=[150, 180]),
        np.float64(71.5),
        np.float32(71.5),
        np.int64(9),
        np.uint8(9),
        np.bool_(True),
        np.str_("resnet"),
    ],
)
def test_argparse_namespaces_and_numpy_scalars_may_lie_beside_the_weights(
    tmp_path: Path, value: Any
) -> None:
    state = Net().state_dict()
    assert_same(read_state_dict(saved({"opt": value, "model": state}, tmp_path)), state)


def test_a_scalar_that_numpy_1_wrote_is_read(tmp_path: Path) -> None:
    state = {"weight": torch.ones(2)}
    path = tmp_path / "old.pt"
    torch.save({"best": np.float64(1), "model": state}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    renamed = content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert renamed != content
    path.write_bytes(renamed)
    assert_same(read_state_dict(str(path)), state)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_by_name_and_not_run(tmp_path: Path, zipped: bool) -> None:
    marker = tmp_path / "marker"
    content = {"model": Net().state_dict(), "extra": Evil(marker)}
    location = saved(content, tmp_path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"refused, and nothing in it was run.*\bio\.open\b"):
        read_state_dict(location)
    assert not marker.exists()


def test_a_bare_pickle_with_code_is_refused_by_name_and_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "teacher.pkl"
    path.write_bytes(pickle.dumps(Evil(marker), protocol=2))
    with pytest.raises(UserError, match=r"\bio\.open\b"):
        read_state_dict(str(path))
    assert not marker.exists()
    # The marker is no empty promise: an ordinary unpickler does run the code.
    pickle.loads(path.read_bytes()).close()
    assert marker.exists()


def test_a_whole_pickled_module_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"test_checkpoint_file\.Net.*save model\.state_dict\(\)"):
        read_state_dict(saved({"model": Net()}, tmp_path))


def test_numpy_arrays_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"_reconstruct"):
        read_state_dict(saved({"w": torch.ones(1), "history": np.ones(3)}, tmp_path))


def test_reading_leaves_torchs_list_of_safe_globals_as_it_was(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    read_state_dict(saved(Net().state_dict(), tmp_path))
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_torn_file_is_named(tmp_path: Path, share: float, zipped: bool) -> None:
    path = Path(saved(Net().state_dict(), tmp_path, _use_new_zipfile_serialization=zipped))
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"checkpoint\.pt: damaged, or not a checkpoint"):
        read_state_dict(str(path))


@pytest.mark.parametrize("content", [b"hello, I am a text file\n", b"\x89PNG\r\n\x1a\n", b"PK\3\4"])
def test_a_file_that_is_no_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"picture\.png: damaged, or not a checkpoint"):
        read_state_dict(str(path))


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ({"epoch": 3, "ema": {"w": torch.ones(1)}}, "a dict with the keys epoch, ema"),
        ({"best": torch.ones(1), "ema": {"w": torch.ones(1)}}, "a dict with the keys best, ema"),
        ({}, r"a dict with the keys \(none\)"),
        (torch.ones(3), "a Tensor"),
        ([1, 2], "a list"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(
    tmp_path: Path, content: Any, found: str
) -> None:
    with pytest.raises(UserError, match=f"holds {found}, and no state dict.*model, state_dict"):
        read_state_dict(saved(content, tmp_path))


@pytest.mark.parametrize("location", ["{}/absent.pt", "file://{}/absent.pt"])
def test_a_missing_file_is_named(tmp_path: Path, location: str) -> None:
    with pytest.raises(UserError, match=r"absent\.pt: there is no such checkpoint file"):
        read_state_dict(location.format(tmp_path))


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot be read: Is a directory"):
        read_state_dict(str(tmp_path))


def test_an_unknown_kind_of_uri_is_named() -> None:
    with pytest.raises(UserError, match=r"ftps://x/y\.pt: not a URI that pyarrow opens"):
        read_state_dict("ftps://x/y.pt")


def test_a_uri_is_read(tmp_path: Path) -> None:
    state = Net().state_dict()
    assert_same(read_state_dict(f"file://{saved(state, tmp_path)}"), state)


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_safetensors_are_read(tmp_path: Path, scheme: str) -> None:
    state = Net().state_dict()
    path = tmp_path / "teacher.safetensors"
    save_file({f"module.{name}": tensor for name, tensor in state.items()}, path)
    found = read_state_dict(f"{scheme}{path}")
    assert_same(dict(sorted(found.items())), dict(sorted(state.items())))


def test_torn_safetensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_file(Net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match=r"teacher\.safetensors: damaged, or not a safetensors"):
        read_state_dict(str(path))


@pytest.mark.skipif(not FOREIGN.exists(), reason=f"needs the foreign checkpoint {FOREIGN}")
def test_an_old_file_with_cuda_storages_loads_on_the_cpu() -> None:
    state = read_state_dict(str(FOREIGN))
    assert state["conv1.weight"].shape == (16, 3, 3, 3)
    assert state["linear.weight"].device.type == "cpu"
    assert all(not name.startswith("module.") for name in state)


def test_loaded_weights_are_the_states_own() -> None:
    source, target = Net(), Net()
    source.get_buffer("bn.running_mean").add_(3)
    load_weights(target, source.state_dict(), where="x")
    assert_same(target.state_dict(), source.state_dict())


def test_half_precision_weights_load_into_a_full_precision_network() -> None:
    target = Net()
    load_weights(target, Net().half().state_dict(), where="x")
    assert target.fc.weight.dtype == torch.float32


def test_a_checkpoint_older_than_num_batches_tracked_loads() -> None:
    source, target = Net(), Net()
    state = source.state_dict()
    del state["bn.num_batches_tracked"]
    load_weights(target, state, where="x")
    assert torch.equal(target.conv.weight, source.conv.weight)


def test_a_network_whose_own_names_begin_like_a_wrappers_gets_them_back(tmp_path: Path) -> None:
    source, target = (nn.ModuleDict({"model": nn.ModuleDict({"module": Net()})}) for _ in "ab")
    load_weights(target, read_state_dict(saved(source.state_dict(), tmp_path)), where="x")
    assert_same(target.state_dict(), source.state_dict())


def test_every_missing_unexpected_and_misshapen_tensor_is_named() -> None:
    state = Net(width=6).state_dict()
    del state["fc.bias"]
    state["head.weight"] = torch.ones(2)
    with pytest.raises(UserError) as caught:
        load_weights(Net(), state, where="teacher.checkpoint: t.pt")
    message = str(caught.value)
    assert message.startswith("teacher.checkpoint: t.pt: the weights are not of this network")
    assert "missing fc.bias;" in message
    assert "unexpected head.weight;" in message
    for name in ("conv.weight (6, 3, 3, 3) instead of (4, 3, 3, 3)", "bn.running_var", "fc.weight"):
        assert name in message


def test_the_checkpoint_of_another_architecture_is_told_with_some_names_and_a_count() -> None:
    state = {f"features.{index}.weight": torch.ones(1) for index in range(30)}
    with pytest.raises(UserError, match=r"unexpected features\.0\.weight.* and 22 more") as caught:
        load_weights(Net(), state, where="x")
    assert "missing conv.weight, conv.bias" in str(caught.value)
    assert "features.8.weight" not in str(caught.value)


def test_a_checkpoint_of_other_classes_is_told_as_such() -> None:
    with pytest.raises(UserError, match=r"checkpoint has 100 classes and the data 5.*num_classes"):
        load_weights(Net(5), Net(100).state_dict(), where="x")


def test_a_checkpoint_for_other_channels_is_told_as_such() -> None:
    with pytest.raises(UserError, match=r"of 3 channels and these have 1: set data\.grey_to_rgb"):
        load_weights(Net(channels=1), Net(channels=3).state_dict(), where="x")
    with pytest.raises(UserError, match=r"of 1 channels and these have 3: use other images"):
        load_weights(Net(channels=3), Net(channels=1).state_dict(), where="x")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    state = Net().state_dict()
    state["bn.running_var"][1] = value
    with pytest.raises(UserError, match=r"NaN or infinity in bn\.running_var: the run"):
        load_weights(Net(), state, where="x")


def test_a_refused_state_changes_nothing() -> None:
    target = Net()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    state = Net().state_dict()
    state["fc.bias"][0] = float("nan")
    with pytest.raises(UserError):
        load_weights(target, state, where="x")
    assert_same(target.state_dict(), before)
