# SPDX-License-Identifier: GPL-2.0-only
"""The HTML reports in a browser: links, filters and unfolding."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.copy_of_the_suite import Suite
from tests.html_report import BROWSER, TESTS, Report, report_of, report_on_several

COUNT = """
<script>
window.addEventListener("load", () => {
  const all = [...document.querySelectorAll("tbody.results-table-row")];
  const rows = all.filter((row) => !row.hidden);
  const unfolded = rows.filter((row) => row.querySelector(".kvm-test"));
  document.body.replaceChildren(`rows: ${rows.length}, unfolded: ${unfolded.length}`);
});
</script>
</body>
"""

COUNT_CELLS = """
<script>
window.addEventListener("load", () => {
  const rows = [...document.querySelectorAll("#kvm-matrix > tbody > tr:not(.kvm-group)")]
    .filter((row) => !row.hidden);
  const unfolded = rows.filter((row) => row.querySelector(".kvm-test"));
  const titles = unfolded.map((row) => row.querySelector("h3").textContent);
  document.body.replaceChildren(
    `rows: ${rows.length - unfolded.length}, unfolded: ${titles.join(", ") || "none"}`
  );
});
</script>
</body>
"""


def counted(report: Report, script: str, directory: Path) -> Path:
    """Return a page that replaces the report by the counts of ``script``."""
    if BROWSER is None:
        pytest.skip("no Chromium to try the links in")
    file = directory / "counted.html"
    file.write_text(report.text.replace("</body>", script))
    return file


def seen_by_browser(page: Path, fragment: str, profile: Path) -> str:
    command = [BROWSER or "", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=10000", "--dump-dom"]
    done = subprocess.run(
        [*command, page.as_uri() + fragment], capture_output=True, text=True, check=True
    )
    return done.stdout.partition("<body>")[2].partition("</body>")[0]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page that counts the rows of the report on one kernel."""
    suite = Suite(tmp_path_factory.mktemp("browser") / "suite")
    suite.add(TESTS)
    return counted(report_of(suite), COUNT, suite.path)


@pytest.mark.parametrize(
    "fragment, seen",
    [
        ("", "rows: 257, unfolded: 2"),
        ("#clause=msi.pad", "rows: 12, unfolded: 0"),
        ("#deviation=pad-not-checked", "rows: 12, unfolded: 0"),
        ("#test=7", "rows: 257, unfolded: 3"),
    ],
)
def test_links_work_from_a_file(page, tmp_path, fragment, seen):
    assert seen_by_browser(page, fragment, tmp_path) == seen


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """The report on several kernels."""
    return report_on_several(tmp_path_factory.mktemp("several"))


@pytest.mark.parametrize(
    "fragment, done, seen",
    [
        ("", "", "rows: 257, unfolded: none"),
        ("#clause=msi.pad", "", "rows: 12, unfolded: none"),
        ("#deviation=pad-not-checked", "", "rows: 12, unfolded: none"),
        ("#test=0", "", "rows: 257, unfolded: 6.12: failed"),
        ("", "differing.click()", "rows: 3, unfolded: none"),
        ("#test=0", "differing.click()", "rows: 3, unfolded: none"),
        ("", "set(outcome, 'kvm-failed')", "rows: 2, unfolded: none"),
        ("", "set(search, '[16] RETURN.count')", "rows: 1, unfolded: none"),
        (
            "",
            "cells[1].click(); cells[0].click()",
            "rows: 257, unfolded: 5.10: xfailed, 6.12: passed",
        ),
        ("", "cells[0].click(); cells[0].click()", "rows: 257, unfolded: none"),
    ],
)
def test_cells_and_filters_work_from_a_file(several, tmp_path, fragment, done, seen):
    script = f"""
<script>
window.addEventListener("load", () => {{
  const [search, outcome, differing] = ["search", "outcome", "differing"]
    .map((name) => document.getElementById(`kvm-${{name}}`));
  const cells = document.querySelectorAll("#kvm-matrix a[data-parts]");
  const set = (control, value) => {{
    control.value = value;
    control.dispatchEvent(new Event("input"));
  }};
  {done};
}});
</script>
"""
    page = counted(several, script + COUNT_CELLS, tmp_path)
    assert seen_by_browser(page, fragment, tmp_path) == seen
