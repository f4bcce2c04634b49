"""Its being here puts this folder on the path, for what tests of several folders share."""

from __future__ import annotations

from pathlib import Path

import pytest

INTEGRATION = Path(__file__).parent / "integration"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that start services are one group: pytest-xdist never runs two of them at once."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        marked = any(item.get_closest_marker(name) for name in ("ray", "mlflow", "browser"))
        if marked or INTEGRATION in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("services"))
