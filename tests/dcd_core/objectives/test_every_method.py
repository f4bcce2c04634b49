"""What holds for each method: gradients, its minimum, few images, half precision, bad settings."""

from __future__ import annotations

import copy

import pytest
import torch
from method_examples import (
    STUDENT,
    TEACHER,
    TRAIN_LABELS,
    build,
    learn,
    leaves,
    lesson,
    noise,
    with_gradient,
)

from dcd_core.features import HintedOutput
from dcd_core.objectives import (
    METHODS,
    Lesson,
    NetworkSizes,
    Rows,
    Sizes,
    check_hyperparameters,
    hyperparameters,
)

NAMES = list(METHODS)
COMPARED = {
    **dict.fromkeys(["rkd", "pkt", "cc", "crd", "crd_batch", "rrd"], "features"),
    **dict.fromkeys(["sp", "at", "fitnet", "vid"], "hints"),
    "dkd": "logits",
}
"""The part of the student's output that a method compares."""


def _parts(output: HintedOutput, part: str) -> list[torch.Tensor]:
    found = getattr(output, part)
    return list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_reaches_what_it_compares_and_all_that_it_learns(name: str) -> None:
    method = build(name)
    student = with_gradient(noise(STUDENT, 5, seed=0))
    teacher = with_gradient(noise(TEACHER, 5, seed=1))
    values = method(student, lesson(teacher))
    assert values.shape == (5,)
    values.mean().backward()
    compared = {id(part) for part in _parts(student, COMPARED[name])}
    for part in leaves(student):
        has_gradient = part.grad is not None and bool(part.grad.abs().sum() > 0)
        assert has_gradient == (id(part) in compared)
    assert all(part.grad is None for part in leaves(teacher))
    for parameter_name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, parameter_name


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    method, taught = build(name), lesson(noise(TEACHER, 4, seed=1))
    student = with_gradient(noise(STUDENT, 4, seed=0))
    method(student, taught)  # Z of CRD is a constant from the second batch on

    def loss(*parts: torch.Tensor) -> torch.Tensor:
        # A fresh copy, because a bank or a queue moves each time.
        output = HintedOutput(parts[0], parts[1], parts[2:])
        value: torch.Tensor = copy.deepcopy(method)(output, taught).mean()
        return value

    assert torch.autograd.gradcheck(loss, tuple(leaves(student)), atol=1e-6)


@pytest.mark.parametrize("name", ["rkd", "sp", "pkt", "cc", "at", "dkd"])
def test_a_student_that_says_what_the_teacher_says_has_loss_and_gradient_zero(name: str) -> None:
    teacher = noise(TEACHER, 5, seed=1)
    student = with_gradient(teacher)
    loss = learn(build(name, student=TEACHER), student, teacher, labels=[0, 1, 2, 0, 1])
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    for part in _parts(student, COMPARED[name]):
        assert part.grad is not None
        torch.testing.assert_close(part.grad, torch.zeros_like(part), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ["rkd", "sp", "pkt", "cc", "at", "dkd", "crd_batch", "crd", "rrd"])
def test_no_student_has_a_loss_below_zero(name: str) -> None:
    for seed in range(5):
        student, teacher = noise(STUDENT, 5, seed=seed), noise(TEACHER, 5, seed=seed + 10)
        assert (build(name)(student, lesson(teacher)) >= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_one_image_alone_has_a_finite_loss_and_finite_gradients(name: str) -> None:
    method = build(name)
    student = with_gradient(noise(STUDENT, 1, seed=0))
    loss = method(student, lesson(noise(TEACHER, 1, seed=1))).mean()
    loss.backward()
    assert loss.isfinite()
    if name in ("rkd", "sp", "pkt", "cc", "crd_batch"):  # there is nothing to compare it with
        assert loss.item() == pytest.approx(0, abs=1e-12)
    for part in [*leaves(student), *method.parameters()]:
        assert part.grad is None or part.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_collapsed_student_gets_finite_gradients(name: str) -> None:
    """All its images look the same, or like nothing at all."""
    for scale in (0.0, 1.0):
        student = noise(STUDENT, 4, seed=0)
        parts = [scale * part[:1].expand_as(part) for part in leaves(student)]
        student = with_gradient(HintedOutput(parts[0], parts[1], tuple(parts[2:])))
        loss = build(name)(student, lesson(noise(TEACHER, 4, seed=1))).mean()
        loss.backward()
        assert loss.isfinite()
        for part in leaves(student):
            assert part.grad is None or part.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_method_that_rests_gives_zeros_that_reach_its_parameters(name: str) -> None:
    method = build(name)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    values = method(noise(STUDENT, 3, seed=0), None)
    assert values.tolist() == [0, 0, 0]
    for parameter in (p for p in method.parameters() if p.requires_grad):
        (gradient,) = torch.autograd.grad(values.sum(), parameter, retain_graph=True)
        assert gradient.abs().sum() == 0
    for key, value in method.state_dict().items():
        torch.testing.assert_close(value, before[key], equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_lifted_to_float32_and_gives_about_the_same(name: str) -> None:
    student, teacher = noise(STUDENT, 5, seed=0), noise(TEACHER, 5, seed=1)
    exact = build(name)(student, lesson(teacher)).detach()
    half = [
        HintedOutput(
            *(part.bfloat16() for part in output[:2]), tuple(h.bfloat16() for h in output.hints)
        )
        for output in (student, teacher)
    ]
    with torch.autocast("cpu", torch.bfloat16):
        values = build(name).float()(half[0], lesson(half[1]))
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), exact, rtol=0.1, atol=0.1 * float(exact.max()))


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_gives_equation_weight_citation_and_what_ranks_do(name: str) -> None:
    module = __import__(METHODS[name].__module__, fromlist=["__doc__"])
    text = module.__doc__ or ""
    assert "arXiv" in text
    assert " = " in text
    assert f"weight {METHODS[name].weight:g}" in text.lower()
    assert "Over ranks:" in text


@pytest.mark.parametrize("name", [name for name in NAMES if METHODS[name].hints != "none"])
def test_as_many_layers_are_needed_of_both_networks(name: str) -> None:
    fewer = NetworkSizes(5, TEACHER.hints[:1])
    with pytest.raises(ValueError, match="gives 2 intermediate features and the teacher 1"):
        METHODS[name](Sizes(STUDENT, fewer))
    with pytest.raises(ValueError, match="compares intermediate features: name them"):
        METHODS[name](Sizes(NetworkSizes(5), NetworkSizes(5)))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rkd", {"angle_weight": -1.0}, "angle_weight must be a number 0 or more, not -1.0"),
        ("rkd", {"angle_weight": 0, "distance_weight": 0}, "both 0: nothing to compare"),
        ("cc", {"gamma": 0}, "gamma must be a number above 0, not 0"),
        ("cc", {"order": 1.5}, "order must be an integer, 1 or more, not 1.5"),
        ("crd", {"momentum": 1.0}, "momentum must be below 1, not 1.0"),
        ("crd", {"num_negatives": 0}, "num_negatives must be an integer, 1 or more, not 0"),
        ("crd_batch", {"negatives": "none"}, "'other_class' or 'all', not 'none'"),
        ("dkd", {"temperature": float("inf")}, "temperature must be a number above 0, not inf"),
        ("dkd", {"others_weight": True}, "others_weight must be a number 0 or more, not True"),
        ("rrd", {"teacher_temperature": "x"}, "teacher_temperature must be a number above 0"),
        ("vid", {"init_variance": 0}, "init_variance must be a number above 1e-05, not 0"),
    ],
)
def test_a_hyperparameter_out_of_range_is_refused(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **options)


def test_a_misspelt_hyperparameter_gets_the_nearest_name() -> None:
    assert hyperparameters(METHODS["cc"]) == {"gamma": 0.4, "order": 2}
    check_hyperparameters(METHODS["cc"], ["order"])
    with pytest.raises(
        ValueError, match=r"CC has no hyperparameter 'gama': did you mean 'gamma'\?"
    ):
        check_hyperparameters(METHODS["cc"], ["gama"])
    with pytest.raises(ValueError, match="SP has no hyperparameter 'gamma': it takes none"):
        check_hyperparameters(METHODS["sp"], ["gamma"])


def test_crd_says_what_it_needs() -> None:
    with pytest.raises(ValueError, match="CRD needs the classes of the training images"):
        METHODS["crd"](Sizes(STUDENT, TEACHER))
    teacher = noise(TEACHER, 3, seed=1)
    taught = Lesson(teacher, TRAIN_LABELS[:3], Rows([3]))
    with pytest.raises(ValueError, match="needs the positions of the images"):
        build("crd")(noise(STUDENT, 3, seed=0), taught)
