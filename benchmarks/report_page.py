"""How long a report takes to open and to answer in a real browser.

    python benchmarks/report_page.py RESULTS... [--repeats 5]

Writes the page of the results (JSON of ``score`` or of harness runs, with their rows) and opens it in headless
Chromium. Medians are printed of: opening (from the start of navigation until scripts have run and everything is
laid out), showing the rows of all shifts, each letter of a search over the rows (for the row that the page has
last), and hiding the shifts of one modality. Every step includes the layout that it causes.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import statistics
import subprocess
import tempfile
from pathlib import Path

from lmms_eval_emi.report.page import to_html
from lmms_eval_emi.report.reading import read_results

MEASURE = """<pre id="measured"></pre><script>
(() => {
  const laidOut = () => document.body.offsetHeight;
  const timed = work => { const start = performance.now(); work(); laidOut(); return performance.now() - start; };
  laidOut();
  const found = { opening: performance.now() };
  const folds = [...document.querySelectorAll("details[data-rows]")];
  found.rows = timed(() => folds.forEach(fold => { fold.open = true; fold.dispatchEvent(new Event("toggle")); }));
  found.count = document.querySelectorAll(".row").length;
  const search = document.querySelector("input[type=search]"), letters = [];
  for (const word of ["objects", "zzz"]) for (let n = 1; n <= word.length; n++)
    letters.push(timed(() => { search.value = word.slice(0, n); search.dispatchEvent(new Event("input")); }));
  letters.push(timed(() => { search.value = ""; search.dispatchEvent(new Event("input")); }));
  found.letter = letters.sort((a, b) => a - b)[Math.floor(letters.length / 2)];
  found.slowest = letters.at(-1);
  const box = document.querySelector("input[data-modality]");
  found.filter = timed(() => box.click());
  document.getElementById("measured").textContent = JSON.stringify(found);
})();
</script></body>"""
STEPS = {
    "opening": "open",
    "rows": "show the rows of all shifts",
    "letter": "a letter of a search",
    "slowest": "the slowest letter",
    "filter": "hide one modality",
}


def measure(chromium: str, page: Path, folder: Path) -> dict[str, float]:
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1280,2000"]
    command = [chromium, *options, f"--user-data-dir={folder / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r'<pre id="measured">(\{.*?\})</pre>', done.stdout, re.S)
    if found is None:
        raise SystemExit("the page was not measured: its script did not run to the end")
    return json.loads(html.unescape(found.group(1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        raise SystemExit("needs Chromium on the PATH")
    text = to_html(read_results(args.results))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        page = folder / "page.html"
        page.write_text(re.sub(r"<meta http-equiv=[^>]*>", "", text).replace("</body>", MEASURE), encoding="utf-8")
        runs = [measure(chromium, page, folder) for _ in range(args.repeats)]
    print(f"{len(text.encode()) / 1e6:.2f} MB, {runs[0]['count']:.0f} rows shown, median of {len(runs)} openings")
    for step, label in STEPS.items():
        print(f"{label:30} {statistics.median(run[step] for run in runs):7.0f} ms")


if __name__ == "__main__":
    main()
