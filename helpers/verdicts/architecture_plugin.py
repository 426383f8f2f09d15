# SPDX-License-Identifier: GPL-2.0-only
"""Collect the tests of the architecture that --arch names: suites/ or suites/arm64."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.spec.architectures import ARCHITECTURES
from helpers.verdicts.session import SUITES


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out the tests of other architectures."""
    if not collection_path.is_relative_to(SUITES):
        return None
    own = ARCHITECTURES[config.option.arch]
    return None if own.has_tests_in(SUITES, collection_path) else True


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to run a file of another architecture, which would be left out silently."""
    for argument in config.args:
        path = Path(config.invocation_params.dir, argument.split("::")[0]).resolve()
        for name, other in ARCHITECTURES.items():
            own = SUITES / name
            if name != config.option.arch and own.is_dir() and path.is_relative_to(own):
                raise pytest.UsageError(f"{argument} judges {other.name}: add --arch={other.name}")
