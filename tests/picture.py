# SPDX-License-Identifier: GPL-2.0-only
"""Make reports/example.png again, the picture in the README: ``tox -e picture``.

The picture is this machine's report with --strict, shortened to some clauses and one failed test.
Needs Chromium.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from tests.html_report import BROWSER

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "reports/example.png"
SIZE = "1100,2380"

SHORTEN = """
<script>
window.addEventListener("load", () => {
  const remove = (selector, kept) => {
    [...document.querySelectorAll(selector)].slice(kept).forEach((element) => element.remove());
  };
  remove(".kvm-failures li", 2);
  remove(".kvm-failures + p", 0);
  remove("#clauses ~ .kvm-clauses tbody tr", 5);
  remove("#backports, #backports ~ .kvm-hint, #backports ~ .kvm-clauses", 0);
  const tests = [...document.querySelectorAll("tbody.results-table-row")];
  const shown = tests.find((test) => test.textContent.includes("padding_is_rejected[byte0]"));
  tests.filter((test) => test !== shown).forEach((test) => test.remove());
});
</script>
</body>
"""


def main() -> None:
    """Run the suite and take the picture."""
    if BROWSER is None:
        sys.exit("no Chromium in PATH: install chromium")
    with TemporaryDirectory() as directory:
        page = Path(directory, "report.html")
        run = [sys.executable, "-m", "pytest", "suites/", "--strict", f"--html={page}"]
        # Known deviations fail this run.
        subprocess.run(run, cwd=ROOT, check=False)
        # Show the name of the report without its temporary directory.
        text = page.read_text().replace(str(page), page.name)
        page.write_text(text.replace("</body>", SHORTEN))
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += [f"--user-data-dir={directory}/profile", "--virtual-time-budget=10000"]
        options += [f"--window-size={SIZE}", f"--screenshot={PICTURE}"]
        subprocess.run([BROWSER, *options, page.as_uri()], check=True)
    # A palette makes the file a third of the size.
    picture = Image.open(PICTURE).quantize(200, method=Image.Quantize.MAXCOVERAGE)
    picture.save(PICTURE, optimize=True)


if __name__ == "__main__":
    main()
