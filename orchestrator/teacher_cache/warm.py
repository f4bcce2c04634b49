"""Computing the teacher's answers ahead of the runs that read them."""

from __future__ import annotations

from orchestrator.build import num_views
from orchestrator.distillation import build_work, device_of, ready_teacher, session
from orchestrator.errors import RunFailed, UserError
from orchestrator.inputs import read_inputs
from orchestrator.places import check_places, describe_cache, find_places
from orchestrator.progress import Display
from orchestrator.reporter import Ranks
from orchestrator.spec import Experiment
from orchestrator.teacher_work import fill_cache


def warm(experiment: Experiment, *, epochs: int | None, display: Display | None = None) -> str:
    """Compute the answers for the first epochs; says what there is then.

    Args:
        experiment: as a search or a comparison would get it.
        epochs: how many; by default those that differ.
        display: where progress is shown.

    Raises:
        UserError: there is no teacher, or the cache is off.
        RunFailed: there is no room for all of it.
    """
    display = display or Display()
    if experiment.teacher is None:
        raise UserError("teacher: there is none, so there is nothing to compute")
    if experiment.teacher_cache.mode == "off":
        raise UserError("teacher_cache: it is off, so nothing would be kept: drop that")
    if experiment.objective.uses_hints:
        raise UserError(
            f"objective.method: {experiment.objective.method!r} compares intermediate features, "
            "which the cache does not keep: nothing could be read from it"
        )
    places = find_places(experiment)
    check_places(places, experiment)
    with display.step(f"{experiment.name}: reading images and networks"):
        inputs = read_inputs(experiment)
    if inputs.dataset.is_streamed:
        raise UserError("data.streaming: the answers to images that are streamed are not kept")
    if inputs.fit is not None:
        with session(experiment.scaling):
            teacher = ready_teacher(inputs, places, display=display)
    else:
        teacher = inputs.teacher
    work, shared = build_work(inputs, teacher, places.storage, one_of_many=True)
    assert work.cache is not None
    display.say(f"{experiment.name}: {describe_cache(work.cache)}")
    total = min(epochs or experiment.train.epochs, num_views(experiment) or 2**31)
    ranks = Ranks(device=device_of(experiment.scaling))
    for epoch, reason in enumerate(fill_cache(work, shared, ranks, epochs=total), 1):
        if reason is not None:
            raise RunFailed(
                f"the answers of {epoch - 1} of {total} epochs are in {work.cache.location}; the "
                f"next could not be kept: {reason}"
            )
        display.say(f"epoch {epoch}/{total}")
    what = "1 epoch" if total == 1 else f"{total} epochs"
    same = " (all epochs are alike without augmentation)" if num_views(experiment) == 1 else ""
    return f"the answers of {what} are in {work.cache.location}{same}"
