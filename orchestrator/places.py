"""Where runs and tracking live, decided in the driver and always absolute."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from orchestrator.error_text import cause
from orchestrator.errors import UserError
from orchestrator.mlflow_client import is_http, without_password
from orchestrator.spec import Experiment
from orchestrator.storage import Folder, check_writable
from orchestrator.tracking import default_tracking_uri
from orchestrator.tracking_files import REQUEST


class Places(NamedTuple):
    """The locations of one command."""

    storage: Folder
    """Holds one folder per run."""
    storage_is_default: bool
    """Whether nobody has chosen it, so that other nodes may not reach it."""
    tracking_uri: str | None
    """None with tracking off."""
    artifact_root: str | None
    """Where MLflow's artifacts go when runs are in a database; None lets a server decide."""


class CachePlace(NamedTuple):
    """Where the teacher's answers are kept."""

    location: str
    """Folder or URI."""
    max_bytes: int | None
    """Budget; None for the default one."""


def find_places(experiment: Experiment) -> Places:
    """Storage and tracking of an experiment; see `base_folder` for the defaults."""
    tracking = experiment.tracking
    storage = storage_folder(experiment.storage.path)
    uri, artifact_root = tracking_place(tracking.uri) if tracking.enabled else (None, None)
    return Places(
        storage=storage,
        storage_is_default=experiment.storage.path is None and not os.environ.get("DCD_HOME"),
        tracking_uri=uri,
        artifact_root=artifact_root,
    )


def keep_tracking(places: Places, folder: Folder, experiment: Experiment) -> Places:
    """The same with the tracking place that an earlier session has used, when none is chosen now.

    The default one is in the working directory, which may be another now.

    Args:
        places: of this command.
        folder: of a run or a group.
        experiment: whose tracking decides.
    """
    if places.tracking_uri is None or chosen_tracking(experiment.tracking.uri) is not None:
        return places
    known = folder.read_json(REQUEST)
    if known is None:
        return places
    return places._replace(tracking_uri=known["uri"], artifact_root=known["artifact_root"])


def chosen_tracking(uri: str | None) -> str | None:
    """The tracking URI that somebody has asked for: the spec, or MLFLOW_TRACKING_URI."""
    return uri or os.environ.get("MLFLOW_TRACKING_URI") or None


def check_places(places: Places, experiment: Experiment) -> None:
    """Refuse a storage, a teacher cache or a tracking database that cannot be written.

    Raises:
        UserError: names the setting.
    """
    check_writable(places.storage, setting="storage.path")
    cache = experiment.teacher_cache
    if cache.path is not None and cache_place(experiment, one_of_many=True) is not None:
        folder = Folder(cache.path)
        try:
            holds_something = bool(folder.names())
        except OSError as error:
            raise UserError(f"teacher_cache.path: {cache.path} cannot be read: {error}") from error
        if not holds_something:  # what is there can be read, even if nothing may be added
            check_writable(folder, setting="teacher_cache.path")
    uri = places.tracking_uri
    if uri is not None and uri.startswith("sqlite:///"):
        setting = "tracking.uri" if experiment.tracking.uri else "MLFLOW_TRACKING_URI"
        path = Path(uri.removeprefix("sqlite:///"))
        if path.exists() and not os.access(path, os.W_OK):
            raise UserError(f"{setting}: {path} is not writable: name another database")
        check_writable(Folder(str(path.parent)), setting=setting)


def cache_place(experiment: Experiment, *, one_of_many: bool) -> CachePlace | None:
    """Where the teacher's answers are kept; None where they are not.

    Args:
        experiment: whose section decides.
        one_of_many: whether other runs see the same images and teacher.
    """
    spec = experiment.teacher_cache
    # It keeps logits and features only.
    if experiment.teacher is None or experiment.objective.uses_hints:
        return None
    if not spec.is_on(one_of_many=one_of_many):
        return None
    location = spec.path if spec.path is not None else str(default_cache())
    max_bytes = int(spec.max_gib * 2**30) if spec.max_gib is not None else None
    return CachePlace(location, max_bytes)


def default_cache() -> Path:
    """Where the teacher's answers are kept when no place is chosen."""
    return base_folder() / "dcd_teacher_cache"


def describe_cache(place: CachePlace) -> str:
    """One line."""
    return f"the teacher's answers are kept in {place.location}"


def storage_folder(path: str | None) -> Folder:
    """The folder of all runs."""
    return Folder(path if path is not None else str(base_folder() / "dcd_runs"))


def tracking_place(uri: str | None) -> tuple[str, str | None]:
    """Tracking URI and artifact folder: as given, MLFLOW_TRACKING_URI, or SQLite at the default."""
    source = "tracking.uri" if uri else "MLFLOW_TRACKING_URI"
    uri = chosen_tracking(uri)
    base = base_folder()
    if uri:
        check_tracking_uri(uri, setting=source)
    if uri and (is_http(uri) or uri.startswith("databricks")):
        return uri, None
    return uri or default_tracking_uri(base), str(base / "mlartifacts")


def check_tracking_uri(uri: str, *, setting: str) -> None:
    """Refuse what MLflow could never open, before a run is trained that cannot be sent.

    Raises:
        UserError: the URI is of no kind that MLflow knows, or its database's driver is missing.
    """
    shown = without_password(uri)
    if re.match(r"https?://[^/]|sqlite:///.|databricks(://|$)", uri):
        return
    scheme = uri.split(":")[0]
    if not re.match(r"(postgresql|mysql|mssql)(\+\w+)?://.", uri):
        raise UserError(
            f"{setting}: {shown!r} is no tracking URI: use http://HOST:PORT of a server, "
            "sqlite:////ABSOLUTE/PATH.db, or a postgresql://, mysql:// or mssql:// database"
        )
    from sqlalchemy.engine import make_url

    try:
        make_url(uri).get_dialect().import_dbapi()
    except Exception as error:  # a dialect or its driver is absent, or the URI malformed
        raise UserError(
            f"{setting}: {shown!r} cannot be opened ({cause(error)}): install the driver of "
            f"{scheme}, or use an http:// server"
        ) from error


def base_folder() -> Path:
    """DCD_HOME where it is set; ~/dcd inside a Ray job; else the working directory.

    A Ray job runs in an unpacked copy of the submitted folder, which is thrown away.
    """
    home = os.environ.get("DCD_HOME")
    if home:
        return Path(home).expanduser().absolute()
    return Path.home() / "dcd" if in_ray_job(os.environ) else Path.cwd()


def in_ray_job(environment: Mapping[str, str]) -> bool:
    """Whether this process is the entry point of a submitted Ray job."""
    try:
        config = json.loads(environment.get("RAY_JOB_CONFIG_JSON_ENV_VAR", ""))
    except ValueError:
        return False
    return "job_submission_id" in config.get("metadata", {})
