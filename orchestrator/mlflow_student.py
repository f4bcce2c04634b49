"""The student as an MLflow model of its run.

The model takes raw uint8 images (B, C, H, W), any B, and is stored as an exported graph, without
pickle. Its ``extra_files/`` hold the package that rebuilds the nn.Module.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from orchestrator.error_text import cause
from orchestrator.mlflow_registry import MODEL_NAME
from orchestrator.student_model import SOURCE_FILE, WEIGHTS_FILE, load_student, read_package

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import Model

    from orchestrator.storage import Folder

_PACKAGE_TAG = "dcd.package"
# An example of one image would fix the exported graph's batch size to one.
_EXAMPLE_BATCH = 2


class NotExportable(Exception):
    """torch.export cannot make a graph of the student."""


def log_student(
    client: MlflowClient,
    package: Folder,
    *,
    run_id: str,
    step: int,
    params: Mapping[str, str],
    digest: str,
) -> str:
    """Log a package as an MLflow LoggedModel of a run; the same one again finds it there.

    Args:
        client: of the tracking server.
        package: the package's folder.
        run_id: the MLflow run.
        step: the run's step (epoch) it belongs to.
        params: parameters to show at the model.
        digest: tells this package from others of the run.

    Returns:
        The model's id, ``m-…``.

    Raises:
        NotExportable: torch.export fails on it.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    run = client.get_run(run_id)
    experiment_id = run.info.experiment_id
    found = client.search_logged_models(
        [experiment_id],
        f"source_run_id = '{run_id}' AND tags.`{_PACKAGE_TAG}` = '{digest}'",
        max_results=1,
    )
    if found and found[0].status == LoggedModelStatus.READY:
        return str(found[0].model_id)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        mlflow_model = _save(package, folder)
        if found:  # a crash came before the upload was done
            model = found[0]
        else:
            model = client.create_logged_model(
                experiment_id,
                name=MODEL_NAME,
                source_run_id=run_id,
                params=dict(params),
                tags={**read_package(package.location).lineage, _PACKAGE_TAG: digest},
            )
        mlflow_model.run_id = run_id
        mlflow_model.model_id = mlflow_model.model_uuid = model.model_id
        mlflow_model.artifact_path = model.artifact_location
        mlflow_model.save(str(folder / "MLmodel"))
        client.log_model_artifacts(model.model_id, str(folder))
    outputs = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in [output.model_id for output in outputs]:  # twice is an error
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=step)])
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return str(model.model_id)


def _save(package: Folder, folder: Path) -> Model:
    """Save a package as a local MLflow model."""
    # Importing MLflow's flavours warns about its own type hints, exporting about torch's insides.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _export(package, folder)


def _export(package: Folder, folder: Path) -> Model:
    import mlflow.pytorch
    import numpy as np
    import torch
    import torchvision
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    about = read_package(package.location)
    example = np.zeros((_EXAMPLE_BATCH, *about.image_shape), dtype=np.uint8)
    model = Model(model_uuid=None)
    with tempfile.TemporaryDirectory() as scratch:
        extra_files = []
        for name in (SOURCE_FILE, WEIGHTS_FILE):
            content = package.read(name)
            assert content is not None  # the package was just read
            Path(scratch, name).write_bytes(content)
            extra_files.append(str(Path(scratch, name)))
        signature = ModelSignature(
            inputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, *about.image_shape))]),
            outputs=Schema([TensorSpec(np.dtype(np.float32), (-1, about.num_classes))]),
        )
        student = load_student(package.location, with_normalization=True)
        try:
            mlflow.pytorch.save_model(
                student,
                str(folder),
                mlflow_model=model,
                signature=signature,
                input_example=example,
                extra_files=extra_files,
                pip_requirements=[_pin(torch), _pin(torchvision)],
                serialization_format="pt2",
            )
        except OSError:
            raise  # the disk's fault
        except Exception as error:  # the network may be the user's own, and so what it raises
            raise NotExportable(f"torch.export fails on the student: {cause(error)}") from error
    return model


def _pin(package: ModuleType) -> str:
    """A pip requirement of the running version, without the build (``+cpu``) that PyPI lacks."""
    return f"{package.__name__}=={package.__version__.split('+')[0]}"
