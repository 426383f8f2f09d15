# SPDX-License-Identifier: GPL-2.0-only
"""Write the clauses and deviations that tests name: ``-p tests.census --census=FILE``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--census", metavar="FILE", help="file for the ids, as JSON")


def pytest_collection_finish(session: pytest.Session) -> None:
    named = {
        table: sorted(
            {mark.args[0].id for item in session.items for mark in item.iter_markers(table)}
        )
        for table in ("clause", "deviation")
    }
    Path(session.config.option.census).write_text(json.dumps(named))
