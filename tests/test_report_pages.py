# SPDX-License-Identifier: GPL-2.0-only
"""The pages as a person uses them, in headless Chromium: keys, links, colours, paper, speed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.report.html import Writer
from helpers.report.run import Phase
from helpers.verdicts.reports import Verdict
from helpers.verdicts.tally import Tally
from tests.copy_of_the_suite import Suite
from tests.html_report import BROWSER, TESTS, report_of, report_on_several

axe = pytest.importorskip("axe_playwright_python.sync_playwright")
playwright = pytest.importorskip("playwright.sync_api")

WCAG = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
KERNELS, TESTS_OF_EACH = 7, 1700
DEADLINE = 2000  # milliseconds; an idle machine needs a tenth


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if BROWSER is None:
        pytest.skip("no Chromium to show the pages in")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def one(browser, tmp_path_factory) -> Path:
    """The report on one kernel."""
    del browser
    suite = Suite(tmp_path_factory.mktemp("one") / "suite")
    suite.add(TESTS)
    report_of(suite)
    return suite.path / "report.html"


@pytest.fixture(scope="module")
def several(browser, tmp_path_factory) -> Path:
    """The report on several kernels."""
    del browser
    directory = tmp_path_factory.mktemp("several")
    report_on_several(directory)
    return directory / "suite/report.html"


@pytest.fixture(params=["one", "several"])
def file(request) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def show(browser):
    """Open a file. The page must not ask for another, nor raise an error."""
    pages: list[Any] = []
    asked: list[str] = []
    errors: list[Any] = []

    def show(file: Path, fragment: str = "", **options: Any) -> Any:
        page = browser.new_page(**options)
        pages.append(page)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: errors.append(error))  # noqa: PLW0108 - no builtin
        page.goto(file.as_uri() + fragment)
        return page

    yield show
    for page in pages:
        page.close()
    assert all(url.startswith(("file:", "data:")) for url in asked)
    assert len(set(asked)) <= len(pages)
    assert errors == []


FEW_ROWS = """
[...document.querySelectorAll("tbody.results-table-row")].slice(20).forEach((row) => row.remove());
for (const body of document.querySelectorAll("tbody"))
  [...body.rows].slice(12).forEach((row) => row.remove());
"""
"""Leaves out rows that are like others: axe takes a tenth of a second for each."""


def violations(page: Any) -> list[str]:
    page.evaluate(FEW_ROWS)
    found = axe.Axe().run(page, options=WCAG).response["violations"]
    return [f"{each['id']}: {node['html'][:99]}" for each in found for node in each["nodes"]]


# --- everyone -------------------------------------------------------------------------------------


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_and_contrast_satisfy_axe(show, file, scheme):
    page = show(file, "#test=0", color_scheme=scheme)
    assert page.locator(".kvm-test").first.is_visible()
    assert violations(page) == []


def test_dark_screen_gets_a_dark_page_and_paper_a_light_one(show, file):
    page = show(file, color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(background) == "rgb(22, 24, 28)"
    page.emulate_media(media="print")
    assert page.evaluate(background) == "rgba(0, 0, 0, 0)"


def test_paper_has_the_results_and_no_controls(show, file):
    page = show(file)
    page.emulate_media(media="print")
    assert not page.locator("#kvm-search").is_visible()
    assert page.get_by_role("heading", name="Clauses").is_visible()
    assert page.pdf().startswith(b"%PDF")


# --- from a clause to its tests and back, by keys -------------------------------------------------


def focus(page: Any, selector: str) -> None:
    """Press Tab until an element has the focus."""
    for _ in range(1200):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    pytest.fail(f"no key reaches {selector}")


def test_clause_leads_to_its_tests_and_back_by_keys(show, one):
    page = show(one)
    focus(page, "a[href='#clause=msi.pad']")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('tr.collapsible:not([hidden] *)').length==12")
    focus(page, "tr.collapsible")
    page.keyboard.press("Enter")
    test = page.locator("tbody:not([hidden]) .extras-row:not(.hidden) .kvm-test")
    assert test.count() == 1
    test.locator("a[href='#clause=msi.pad']").focus()
    page.go_back()
    page.wait_for_function("document.getElementById('kvm-filter').textContent === '257 shown'")
    focus(page, "#kvm-search")
    page.keyboard.type("[16] return.count")
    assert page.locator("#kvm-filter").inner_text() == "1 shown"


def test_matrix_is_used_by_keys(show, several):
    page = show(several)
    focus(page, "#kvm-search")
    page.keyboard.type("test_passes[16]")
    assert page.locator("#kvm-filter").inner_text() == "1 shown"
    focus(page, "#kvm-matrix td.kvm-failed a")
    page.keyboard.press("Enter")
    assert page.locator(".kvm-below h3").inner_text() == "6.12: failed"
    page.keyboard.press("Enter")
    assert page.locator(".kvm-below").count() == 0


# --- a large matrix -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def large(browser, tmp_path_factory) -> Path:
    """A matrix of 7 kernels and 1,700 tests."""
    del browser
    writer = Writer()
    nodeids = [f"suites/test_it.py::test_it[{number}]" for number in range(TESTS_OF_EACH)]
    columns = [f"6.{number}" for number in range(KERNELS)]
    for number, nodeid in enumerate(nodeids):
        for column in columns:
            outcome = "failed" if number % 100 == 0 and column == "6.3" else "passed"
            verdict = Verdict("return.count", repeat=f"pytest {nodeid}")
            phase = Phase(nodeid, "call", outcome, column, verdict)
            writer.add_cell(phase, "E   it fails" * (outcome == "failed"))
    body = writer.matrix([Tally(column) for column in columns], nodeids)
    scripts = writer.resources(["report.css", "matrix.css", "parts.js", "matrix.js"])
    file = tmp_path_factory.mktemp("large") / "report.html"
    file.write_text(f"<!DOCTYPE html><title>large</title><body>{body}{scripts}")
    return file


TIMED = """
(action) => new Promise((resolve) => {
  const begun = performance.now();
  const search = document.getElementById("kvm-search");
  const set = (control, value) => {
    control.value = value;
    control.dispatchEvent(new Event("input"));
  };
  if (action === "search") set(search, "test_it[1699]");
  if (action === "outcome") set(document.getElementById("kvm-outcome"), "kvm-failed");
  if (action === "all") { set(search, ""); set(document.getElementById("kvm-outcome"), ""); }
  if (action === "unfold") document.querySelector("#kvm-matrix a[data-parts]").click();
  requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - begun)));
})
"""


def test_large_matrix_stays_responsive(show, large, record_property):
    page = show(large)
    loaded = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    taken = {"load": loaded}
    shown = {}
    for action in ("search", "all", "outcome", "unfold", "all"):
        taken[action] = page.evaluate(TIMED, action)
        shown[action] = page.locator("#kvm-filter").inner_text()
    record_property("milliseconds", {action: round(time) for action, time in taken.items()})
    print({action: round(time) for action, time in taken.items()})
    assert shown == {
        "search": "1 shown",
        "all": f"{TESTS_OF_EACH} shown",
        "outcome": "17 shown",
        "unfold": "17 shown",
    }
    assert max(time for action, time in taken.items() if action != "load") < DEADLINE
