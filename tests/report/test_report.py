"""The report: every source, every format, what a browser makes of the page, and nothing that data can inject."""

from __future__ import annotations

import csv
import hashlib
import html
import importlib.util
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import GROUP, lmms_eval, only

from lmms_eval_emi.cli import main
from lmms_eval_emi.data.responses.llava import write_response_file
from lmms_eval_emi.data.study import load_study
from lmms_eval_emi.errors import ResultsError
from lmms_eval_emi.report.finding import comparability_lines, findings_of
from lmms_eval_emi.report.page import to_html
from lmms_eval_emi.report.plots import pictures_of, plot_emid_against_bound, plot_emid_ranked, severity_series
from lmms_eval_emi.report.reading import published_results, read_results
from lmms_eval_emi.report.tables import to_text
from lmms_eval_emi.scoring.result import Scale

ROWS = 5
EVIL = '<script>document.title = "owned"</script>'


@pytest.fixture(scope="module")
def results(tinyhub, tmp_path_factory):
    """Scores of two families whose answers and model name try to be markup."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tinyhub)
        patch.setenv("LMMS_EVAL_EMI_ESTIMATOR", str(tinyhub / "tiny.safetensors"))
        for family in ("natural", "synthetic"):
            study = load_study(family)
            stems = sorted({split.response_stems[-1] for split in study.splits.values()})
            for number, stem in enumerate(stems):
                rows = [(row, "", f"{EVIL} red star {row * number}") for row in range(ROWS)]
                write_response_file(folder / family / f"{stem}.jsonl", rows, f"tiny {EVIL}")
            assert (
                main(
                    [
                        "score",
                        "--study",
                        family,
                        "--responses",
                        str(folder / family),
                        "--output",
                        str(folder / f"{family}.json"),
                    ]
                )
                == 0
            )
    return folder


def test_our_results_keep_their_figures(results):
    (read,) = read_results([results / "synthetic.json"])
    content = json.loads((results / "synthetic.json").read_text())
    assert len(read.splits) == 35 and len(read.shifts()) == 34
    for name, split in read.splits.items():
        assert (split.emi, split.emid, split.emid_bound) == tuple(
            content["splits"][name].get(key) for key in ("emi", "emid", "emid_bound")
        )
    assert read.means()["Pearson r"] == content["summary"]["pearson_r"]
    assert [severity for severity, _ in severity_series(read)["frost"]] == [1, 3, 5]


@pytest.mark.parametrize("family", ["natural", "synthetic"])
@pytest.mark.parametrize("model", ["llava-v1.5-13b", "llava-v1.6-vicuna-13b"])
def test_the_published_figures_are_those_of_the_published_script(shared, family, model):
    path = shared / "data" / "published" / f"pairs-{family.upper()}-ALL-{model}-CLUB_global.json"
    (read,) = read_results([path])
    published = next(result for result in published_results(family) if result.model == model)
    assert read.means()["Pearson r"] == pytest.approx(json.loads(path.read_text())["PearsonR"], abs=1e-5)
    for name, split in read.splits.items():
        for figure in ("emi", "emid", "emid_bound"):
            own, theirs = getattr(published.splits[name], figure), getattr(split, figure)
            assert own == theirs if theirs is None else own == pytest.approx(theirs, rel=1e-4)


def test_published_correlations_without_the_reference_data():
    """0.58 to 0.88, as the paper has them."""
    values = [
        result.means()["Pearson r"] for family in ("natural", "synthetic") for result in published_results(family)
    ]
    assert len(values) == 4 and min(values) > 0.57 and max(values) < 0.89


def test_everything_from_data_is_escaped_and_nothing_is_fetched(results):
    page = to_html(read_results([results]))
    assert EVIL not in page and html.escape(EVIL, quote=False) in page.replace("&#34;", '"')
    own = page
    assert (
        not re.search(r"""src=["'](?!data:)""", own) and "@import" not in own and "url(" not in own.replace("url(#", "")
    )
    assert set(re.findall(r"""href=["'](.)""", own)) <= {
        "#",
        "h",
        "d",
    }  # sections, papers that a reader may open, and images in the page itself
    assert all(one.startswith("https://arxiv.org/") for one in re.findall(r"""href="(h[^"]*)""", own))
    assert len(page) < 2_500_000


def test_the_rows_that_lost_most_are_shown(results):
    (read,) = read_results([results / "natural.json"])
    assert set(read.lost_rows) == set(load_study("natural").shifts())
    rows = read.lost_rows["llava_bench_coco_German"]
    assert [row.cosine_loss for row in rows] == sorted((row.cosine_loss for row in rows), reverse=True)
    assert rows[0].image.startswith("data:image/jpeg;base64,") and "red star" in rows[0].response
    page = to_html([read])
    data = page_data(page)
    shown = data["results"][0]["rows"]
    assert set(shown) == set(read.lost_rows) and all(len(own) == 5 for own in shown.values())
    first = shown["llava_bench_coco_German"][0]
    assert first["clean"]["reference"] == first["reference"] and first["clean"]["question"] != first["question"]
    assert first["loss"] == pytest.approx(first["clean"]["value"] - first["value"])
    assert data["images"][first["image"]].startswith("data:image/jpeg;base64,")
    order = [json.loads(html.unescape(one))[1] for one in re.findall(r'data-rows="([^"]*)"', page)]
    emids = [read.splits[name].emid for name in order]
    assert emids == sorted(emids, reverse=True)


def page_data(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def test_tables(results):
    read = read_results([results / "natural.json"])
    rows = list(csv.DictReader(io.StringIO(to_text(read, "csv"))))
    assert len(rows) == 28 and rows[0]["EMID"] == ""
    assert float(rows[1]["EMI"]) == read[0].splits[rows[1]["shift"]].emi
    assert to_text(read, "md").count("\n") == 30 and "\\toprule" in to_text(read, "latex")


def test_the_table_for_a_paper_has_a_line_a_group_and_the_best_in_bold(results, tmp_path):
    content = json.loads((results / "synthetic.json").read_text())
    better = json.loads(json.dumps(content))
    for split in better["splits"].values():
        if "emid" in split:
            split["emid"] -= 0.5
    (tmp_path / "r.json").write_text(json.dumps({**better, "model": "best_model & {x}\n%"}))
    read = read_results([results / "synthetic.json", tmp_path / "r.json"])
    text = to_text(read, "latex")
    lines = [line for line in text.splitlines() if line.startswith("frost &")]
    assert len(lines) == 1 and lines[0].count("\\textbf") == 1 and " & 3 & " in lines[0]
    mean = sum(read[1].splits[f"llava_bench_coco_frost_{level}"].emid for level in (1, 3, 5)) / 3
    assert f"\\textbf{{$-${abs(mean):.3f}}}" in lines[0] or f"\\textbf{{$-${abs(mean):.4f}}}" in lines[0]
    assert (
        "best\\_model \\&" in text
        and "\\input" not in text.replace("\\textbackslash{}input", "").split("\\begin", 1)[1]
    )
    assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == 1
    assert len(to_text(read, "latex", full=True).splitlines()) > 70


def test_the_mean_of_a_group_has_the_interval_of_its_images(results):
    (read,) = read_results([results / "natural.json"])
    own = next(one for one in read.groups if one.label == "joint")
    names = [name for name, split in read.shifts().items() if split.modality == "joint"]
    assert own.splits == len(names) == 18
    assert own.emid == pytest.approx(sum(read.splits[name].emid for name in names) / 18)
    assert set(read.emid_jackknives) == set(read.shifts())


def test_what_was_found_is_said_in_sentences(results):
    (read,) = read_results([results / "synthetic.json"])
    splits = {}
    for number, (name, split) in enumerate(read.splits.items()):
        verdict = "lost" if name.endswith("frost_5") else "gained" if number == 1 else "held"
        value = 2.0 if name.endswith("frost_5") else -1.0 if number == 1 else 0.001
        splits[name] = (
            split.model_copy(
                update={
                    "emid": value,
                    "emid_corrected": value,
                    "emid_ci95": [value - 0.25, value + 0.25],
                    "verdict": verdict,
                }
            )
            if split.emid is not None
            else split
        )
    read = read.model_copy(update={"scale": None})
    lines = findings_of(read.model_copy(update={"splits": splits, "model": "org/some-model"}))
    assert lines[0] == "Frost 5 costs some-model most: EMID 2.00 [1.75, 2.25]."
    assert "1 of 34 shifts cost it a loss that differs from 0." in lines
    assert (
        any(line.startswith("some-model gains under") for line in lines)
        and "A loss is first significant for frost from severity 5." in lines
    )

    def with_verdict(verdict):
        made = {
            name: one.model_copy(update={"verdict": verdict if one.verdict else None}) for name, one in splits.items()
        }
        return findings_of(read.model_copy(update={"splits": made}))

    assert with_verdict("held")[0].startswith("No shift costs")
    assert "gains under all 34 shifts" in with_verdict("gained")[0]
    undecided = {
        name: one.model_copy(update={"verdict": "lost" if number == 3 else one.verdict and "undecided"})
        for number, (name, one) in enumerate(splits.items())
    }
    lines = findings_of(read.model_copy(update={"splits": undecided}))
    assert "Larger, but with an interval that includes 0: frost 5 (2.00)." in lines
    gone = read.model_copy(update={"splits": splits, "scale": Scale(value=0.0, stderr=0.1, distinguishable=False)})
    assert "nothing to lose" in findings_of(gone)[0] and not any("costs" in line for line in findings_of(gone)[1:])
    only_text = next(name for name, one in splits.items() if one.modality == "text")
    moved = splits[only_text].model_copy(
        update={
            "verdict": "lost",
            "emid_corrected": 9.0,
            "emid_inputs": 0.25,
            "emid_responses": 0.75,
            "emid_translation": 4.0,
        }
    )
    about = findings_of(read.model_copy(update={"splits": {**splits, only_text: moved}}))
    assert any(line.startswith("Of it, 0.25 come from the changed questions alone") for line in about)
    assert any(
        "in its language lose 4.00, which is the encoder's part; 5.00 of the loss is left" in line for line in about
    )
    loops = splits[next(name for name in splits if name.endswith("frost_5"))].model_copy(
        update={"degenerate": {"repetition": 66}, "n": 90, "emid_without_degenerate": 0.5}
    )
    named = read.model_copy(update={"splits": {**splits, loops.name: loops}})
    assert (
        "Frost 5: 73% of the responses are degenerate, most of them repetition loops; without them EMID 2.00 becomes 0.50."
        in findings_of(named)
    )


def test_models_of_one_short_name_are_told_apart_and_each_has_its_finding(results, tmp_path):
    content = json.loads((results / "natural.json").read_text())
    entries = []
    for organization in ("one", "two"):
        entries.append({**content, "model": f"{organization}/tiny"})
        entries[-1].pop("rows", None)
    (tmp_path / "r.json").write_text(json.dumps({"results": entries}))
    page = to_html(read_results([tmp_path / "r.json"]), compare=False)
    assert "<title>one:tiny, two:tiny under natural shifts</title>" in page
    found = re.findall(r'<p class="finding">(.*?)</p>', page)
    assert len(found) == 2 and "one:tiny" in found[0] and "two:tiny" in found[1]
    assert len(re.findall("Measured: (one|two):tiny", page)) == 2


def test_results_are_comparable_or_why_not_is_said(results):
    (first,) = read_results([results / "natural.json"])
    other = {**first.settings, "encoders": first.settings["encoders"].replace("xlm-roberta-base", "mean:other")}
    second = first.model_copy(update={"label": "second", "settings": other})
    assert comparability_lines([first]) == []
    assert comparability_lines([first, first.model_copy(update={"label": "again"})])[0].startswith("Comparable: ")
    (line,) = comparability_lines([first, second])
    assert "Not comparable: second" in line and "the text encoder differs (xlm-roberta-base and mean:other)" in line
    page = to_html([first, second], compare=False)
    assert page.count('<svg class="wide"') == page.count('<svg class="narrow"') == 2  # axes of their own
    assert "Not comparable" in page


def test_a_table_cannot_carry_a_formula(results, tmp_path):
    content = json.loads((results / "natural.json").read_text())
    (tmp_path / "r.json").write_text(json.dumps({**content, "model": "=HYPERLINK(1)"}))
    assert "'=HYPERLINK" in to_text(read_results([tmp_path / "r.json"]), "csv")


def test_pictures_are_drawn_on_given_axes(results, tmp_path):
    from matplotlib.figure import Figure

    (read,) = read_results([results / "synthetic.json"])
    ax = Figure().add_subplot()
    assert plot_emid_against_bound(read, ax=ax) is ax
    assert set(pictures_of(read)) == {*("emid-ranked", "emid-against-bound", "emi-heat-map", "severity", "divergences")}
    assert main(["report", str(results / "synthetic.json"), "--format", "png", "--output", str(tmp_path / "p")]) == 0
    assert len(list((tmp_path / "p").glob("*.png"))) == 5


def test_the_same_results_give_the_same_page(results):
    read = read_results([results / "synthetic.json"])
    assert to_html(read) == to_html(read)


def test_several_results_and_what_is_none(results, tmp_path, capsys):
    again = tmp_path / "again.json"
    shutil.copy(results / "natural.json", again)
    labels = [result.label for result in read_results([results / "natural.json", again])]
    assert len(set(labels)) == 2
    (tmp_path / "other.json").write_text('{"results": {"a": 1}}')
    for path, message in (
        (tmp_path / "other.json", "got JSON of another form"),
        (tmp_path / "no.json", "expected a JSON file with results"),
        (tmp_path / "empty", "expected a folder with"),
    ):
        if path.name == "empty":
            path.mkdir()
        with pytest.raises(ResultsError, match=message):
            read_results([path])
    assert main(["report", str(tmp_path / "no.json")]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_results_that_are_damaged(results, tmp_path, caplog):
    content = json.loads((results / "natural.json").read_text())
    for name, damaged in (
        ("model", {key: value for key, value in content.items() if key != "model"}),
        ("emi", {**content, "splits": {"a": {"emi": None}}}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(damaged))
        with pytest.raises(ResultsError, match=f"{name}.json: expected results .* damaged content"):
            read_results([tmp_path / f"{name}.json"])
    for rows in ("{bad", "[1]", "\xff", (results / "synthetic.rows.json").read_text("utf-8")):
        (tmp_path / "r.json").write_text(json.dumps({**content, "rows": {**content["rows"], "file": "r.rows.json"}}))
        (tmp_path / "r.rows.json").write_text(rows, "utf-8")
        (read,) = read_results([tmp_path / "r.json"])
        assert read.lost_rows == {}
    assert "under natural shifts" in to_html([read])
    assert caplog.text.count("r.rows.json: not the rows of these results") == 4


def test_a_result_of_a_newer_version_says_so(results, tmp_path):
    content = json.loads((results / "natural.json").read_text())
    (tmp_path / "r.json").write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(ResultsError, match="format_version is 99, .* Update it"):
        read_results([tmp_path / "r.json"])
    (tmp_path / "old.json").write_text(
        json.dumps({key: value for key, value in content.items() if key not in ("format_version", "rows")})
    )
    assert len(read_results([tmp_path / "old.json"])[0].shifts()) == 27


def test_a_third_built_in_family_needs_no_published_results(monkeypatch):
    import lmms_eval_emi.report.reading as module

    monkeypatch.setattr(module, "BUILT_IN", ("natural", "synthetic", "third"))
    assert published_results("third") == []


def test_names_that_are_no_plain_text(results, tmp_path):
    """Mathematics, hidden labels and long names in the pictures; a shift that one model alone has."""
    content = json.loads((results / "synthetic.json").read_text())
    extra = {
        **content["splits"],
        "mine": {
            **content["splits"]["llava_bench_coco_frost_1"],
            "shifts": [{"modality": "visual", "name": "fog $x_", "severity": 1}],
        },
    }
    paths = []
    for number, model in enumerate((r"m$\frac{$", "_hidden", "long" * 60)):
        paths.append(tmp_path / f"{number}.json")
        paths[-1].write_text(json.dumps({**content, "model": model, "splits": extra if number else content["splits"]}))
    read = read_results(paths)
    ax = plot_emid_ranked(read)
    assert "mine" in [label.get_text() for label in ax.get_yticklabels()]
    assert len(ax.figure.legends[0].get_texts()) == 3
    assert "(published)" not in to_html(read), "a study of that name with other splits is another study"


def test_estimators_tell_results_of_one_model_apart(results, tmp_path):
    content = json.loads((results / "natural.json").read_text())
    other = {**content, "settings": {**content["settings"], "estimator": "other@1"}}
    (tmp_path / "r.json").write_text(json.dumps({"results": [content, other]}))
    labels = [result.label for result in read_results([tmp_path / "r.json"])]
    assert labels[1].endswith(", other@1") and labels[0] != labels[1]


def test_a_report_does_not_replace_its_results(results, capsys):
    path = str(results / "natural.json")
    assert main(["report", path, "--output", path]) == 1
    assert "is one of the files that this command reads" in capsys.readouterr().err


def test_a_study_without_shifts_has_a_page(results, tmp_path):
    content = json.loads((results / "natural.json").read_text())
    id_split = content["id_split"]
    (tmp_path / "r.json").write_text(json.dumps({**content, "splits": {id_split: content["splits"][id_split]}}))
    assert "No shift of" in to_html(read_results([tmp_path / "r.json"]), compare=False)


# A window is no narrower than 500 pixels, so the page is looked at in a frame.
FRAME = """<!DOCTYPE html><body><iframe src="page.html" style="border: 0" width="{width}" height="2000"></iframe><script>
addEventListener("message", event => {{ document.body.innerHTML = "<pre id=measured></pre>"; document.getElementById("measured").textContent = event.data; }});
</script>"""
MEASURE = r"""
<script>
addEventListener("load", () => setTimeout(async () => {
  const seen = e => e.checkVisibility() && e.getBoundingClientRect().width > 0;
  const touch = (p, q) => p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 1 && q.top < p.bottom - 1;
  document.querySelectorAll("details").forEach(e => { e.open = true; });
  document.querySelectorAll("details[data-rows]").forEach(e => e.dispatchEvent(new Event("toggle")));
  await new Promise(done => setTimeout(done, 300));
  const boxes = [...document.querySelectorAll("h1, h2, h3, p, li, .scroll, figure, .row, .controls, .copy, summary")].filter(seen);
  const overlaps = [];
  boxes.forEach((a, i) => boxes.slice(i + 1).forEach(b => {
    if (!a.contains(b) && !b.contains(a) && touch(a.getBoundingClientRect(), b.getBoundingClientRect())) overlaps.push(`${a.tagName} ${a.textContent.slice(0, 30)} / ${b.tagName} ${b.textContent.slice(0, 30)}`);
  }));
  const labels = [];
  const small = [...document.querySelectorAll(".chart text")].filter(seen).filter(e => Math.max(e.getBoundingClientRect().height, e.getBoundingClientRect().width) < 8).map(e => e.textContent);
  // A name may break at an underscore, a hyphen or a blank, and nowhere else.
  const broken = [...document.querySelectorAll("th[scope=row] button, th[scope=row]:not(:has(button))")].filter(seen).filter(e => {
    const range = document.createRange(); range.selectNodeContents(e);
    return new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > e.textContent.trim().split(/[-_ ]/).length;
  }).map(e => e.textContent);
  document.querySelectorAll("svg.wide, svg.narrow").forEach(svg => {
    const own = [...svg.querySelectorAll("text")].filter(seen), frame = svg.getBoundingClientRect();
    own.forEach((a, i) => {
      const p = a.getBoundingClientRect();
      if (p.left < frame.left - 2 || p.right > frame.right + 2) labels.push(`outside: ${a.textContent}`);
      own.slice(i + 1).forEach(b => { if (touch(p, b.getBoundingClientRect())) labels.push(`${a.textContent} / ${b.textContent}`); });
    });
  });
  // Text that is wider than what holds it, where nothing scrolls.
  const clipped = [...document.querySelectorAll("h1, h2, h3, p, li, summary, button, label, dd, dt")].filter(seen)
    .filter(e => e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline").map(e => e.textContent.slice(0, 40));
  const table = document.querySelector("tr[data-split]").closest("table"), header = [...table.querySelectorAll("thead th")].findIndex(e => e.textContent.trim() === "EMI");
  const numbers = [...table.tBodies[0].rows].every(row => { const first = row.cells[0].getBoundingClientRect(); row.closest(".scroll").scrollLeft = 9999; const now = row.cells[0].getBoundingClientRect(); row.closest(".scroll").scrollLeft = 0; return Math.abs(first.left - now.left) < 2; });
  table.querySelectorAll("thead th")[header].querySelector("button").click();
  const sorted = [...table.tBodies[0].rows].map(row => Number(row.cells[header].dataset.value));
  const marks = () => [...document.querySelectorAll("tr[data-split]")].filter(seen).length, before = marks();
  document.querySelector("input[data-modality=text]").click();
  const filtered = marks();
  document.querySelector("input[data-modality=text]").click();
  const mark = [...document.querySelectorAll("g.mark")].filter(seen)[2], told = mark.querySelector("title").textContent;
  mark.dispatchEvent(new KeyboardEvent("keydown", { key: "Enter" }));
  await new Promise(done => setTimeout(done, 300));
  const chosen = document.querySelectorAll("tr.chosen").length;
  const opened = [...document.querySelectorAll("details[data-split]")].filter(e => e.open);
  const landed = opened.length > 0 && opened.every(e => e.dataset.split === mark.dataset.split) && Math.abs(opened[0].getBoundingClientRect().top) < 200;
  const search = document.querySelector("input[type=search]");
  search.value = "nothing has this"; search.dispatchEvent(new Event("input"));
  const left = [...document.querySelectorAll("details[data-rows]")].filter(seen).length;
  search.value = "red star"; search.dispatchEvent(new Event("input"));
  const rows = document.querySelectorAll(".row").length;
  const problems = globalThis.axe ? (await axe.run(document, { resultTypes: ["violations"] })).violations.filter(v => ["serious", "critical"].includes(v.impact)).map(v => `${v.id}: ${v.nodes[0].html.slice(0, 90)} (${v.nodes.length})`) : null;
  const report = { overlaps, labels, clipped, small, broken, landed, sticky: numbers, sorted: sorted.every((x, i) => !i || sorted[i - 1] <= x), rows: sorted.length,
    before, filtered, told, chosen, left, found: rows, problems, title: document.title, charts: document.querySelectorAll(".chart svg").length,
    wide: document.body.scrollWidth > document.documentElement.clientWidth + 1, requests: performance.getEntriesByType("resource").map(e => e.name).filter(n => !n.startsWith("data:")),
    dark: getComputedStyle(document.body).backgroundColor, inner: innerWidth };
  parent.postMessage(JSON.stringify(report), "*");
}, 200));
</script>
"""


def in_chromium(chromium: str, page: Path, folder: Path, *more: str) -> subprocess.CompletedProcess:
    options = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
        *("--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}", *more),
    ]
    command = [chromium, *options, "--virtual-time-budget=10000", "--dump-dom", page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True)


HOSTILE = (
    '<script>document.title = "owned"</script>',
    '</script><script>document.title = "owned"</script>',
    "<img src=x onerror=\"document.title='owned'\">",
    "<svg onload=\"document.title='owned'\"></svg>",
    '"><iframe srcdoc="<script>parent.document.title=1</script>"></iframe>',
    '<a href="javascript:document.title=1">x</a><base href="http://evil/">',
    "\u202e\u2066<\u0000script>document.title=1</script>",
    "{{ 7 * 7 }}{% raw %}",
    "]]><!--<script>document.title=1//--></script>",
)


@pytest.mark.parametrize("escaped", [True, False])
def test_hostile_responses_run_nothing_in_a_browser(results, tmp_path, escaped, monkeypatch):
    """Because everything is escaped; and, were something not, because the page lets no other script run."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs Chromium")
    content = json.loads((results / "natural.json").read_text())
    rows = json.loads((results / "natural.rows.json").read_text())
    for number, row in enumerate(rows["results"][0]["lost"]["llava_bench_coco_German"]):
        row |= dict.fromkeys(("question", "response", "reference", "id"), "".join(HOSTILE[number::3]))
        row["image"] = "http://127.0.0.1:9/x.png"
    text = json.dumps(rows)
    (tmp_path / "r.rows.json").write_text(text)
    described = {"file": "r.rows.json", "sha256": hashlib.sha256(text.encode()).hexdigest(), "entry": 0}
    (tmp_path / "r.json").write_text(json.dumps({**content, "model": "".join(HOSTILE), "rows": described}))
    page = to_html(read_results([tmp_path / "r.json"]))
    if not escaped:
        page = page.replace("<h1>", "<h1>" + "".join(HOSTILE), 1)
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    done = in_chromium(chromium, tmp_path / "page.html", tmp_path)
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.S).group(1)
    assert title.endswith("under natural shifts") and "49" not in title
    assert "127.0.0.1" not in page


@pytest.fixture(scope="module")
def browser_page(results):
    """The page of two families with errors on every score, without its policy, and with axe-core."""
    entries = []
    for family in ("natural", "synthetic"):
        content = json.loads((results / f"{family}.json").read_text())
        for number, split in enumerate(content["splits"].values()):
            if "emid" in split:
                split |= {"emid_ci95": [split["emid"] - 0.02, split["emid"] + 0.02], "emid_p_adjusted": 0.01 * number}
                split["verdict"] = ("lost", "held", "undecided", "gained")[number % 4]
        (results / f"errors-{family}.json").write_text(json.dumps(content))
        entries.append(results / f"errors-{family}.json")
    text = re.sub(r"<meta http-equiv=[^>]*>", "", to_html(read_results(entries)))
    found = importlib.util.find_spec("axe_core_python")
    axe = Path(found.submodule_search_locations[0], "axe.min.js").read_text() if found else ""
    return text.replace("</head>", f"<script>{axe}</script></head>") + MEASURE


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [400, 768, 1280, 1920])
def test_the_page_in_a_browser(browser_page, tmp_path, width, dark):
    """Nothing lies over anything else or is cut off, everything answers, and axe-core finds nothing serious."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs Chromium")
    # What axe-core looks at differs between phone and desk; the other widths are for boxes alone.
    content = browser_page if width in (400, 1280) else browser_page.replace("globalThis.axe ?", "false ?")
    (tmp_path / "page.html").write_text(content, encoding="utf-8")
    page = tmp_path / "frame.html"
    page.write_text(FRAME.format(width=width), encoding="utf-8")
    more = [f"--window-size={width + 100},2100", *(["--blink-settings=preferredColorScheme=0"] if dark else [])]
    done = in_chromium(chromium, page, tmp_path, *more)
    measured = json.loads(html.unescape(re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.S).group(1)))
    assert measured["inner"] == width
    assert measured["overlaps"] == [] and measured["labels"] == [] and measured["clipped"] == []
    assert measured["small"] == [] and measured["broken"] == []
    assert not measured["wide"] and measured["sticky"] and measured["sorted"] and measured["rows"] == 28
    assert measured["before"] > measured["filtered"] > 0
    assert "EMID" in measured["told"] and measured["chosen"] >= 1 and measured["landed"]
    assert measured["left"] == 0 and measured["found"] == 5 * (27 + 34)
    assert not measured["problems"], measured["problems"]
    assert measured["requests"] == [] and measured["charts"] > 10 and "owned" not in measured["title"]
    assert (measured["dark"] == "rgb(22, 24, 27)") == dark


# Beside a harness run.


def test_a_harness_run_writes_its_report(tinyhub, tmp_path):
    done = lmms_eval(tinyhub, GROUP, "--output_path", str(tmp_path / "on"))
    assert done.returncode == 0
    page = only(tmp_path / "on", "*_emi_report_natural.html")
    assert "tiny-llava" in page.read_text() and str(page) in done.stdout
    (read,) = read_results([tmp_path / "on"])
    assert len(read.shifts()) == 6 and read.lost_rows


def test_the_report_can_be_turned_off(tinyhub, tmp_path):
    done = lmms_eval(
        tinyhub, "llavabench_shift_natural_coco_english", "--output_path", str(tmp_path), LMMS_EVAL_EMI_REPORT="0"
    )
    assert done.returncode == 0 and not list(tmp_path.rglob("*.html"))
    assert only(tmp_path, "*_emi_natural.json")


def test_wandb_gets_the_scores_of_a_run_that_logs_there(monkeypatch):
    import sys
    from types import SimpleNamespace

    from lmms_eval_emi.harness.common import COLUMNS, log_result

    logged = {}
    fake = SimpleNamespace(
        run=SimpleNamespace(log=logged.update), Table=lambda columns, data: {"columns": columns, "data": data}
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    summary = SimpleNamespace(n_shifts=1, mean_emi=None, mean_bound=None, mean_emid=0.25, pearson_r=None)
    result = SimpleNamespace(
        shift="natural",
        splits={"a": SimpleNamespace(**{**dict.fromkeys(COLUMNS), "n": 3, "emi": 0.5})},
        summary=summary,
    )
    log_result(result)
    assert logged["emi/natural/mean_emid"] == 0.25 and "emi/natural/pearson_r" not in logged
    assert logged["emi/natural/figures"]["data"][0][:3] == ["a", 3, 0.5]
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(run=None))
    log_result(result)


def test_a_control_is_shown_and_is_in_no_mean(results, tmp_path):
    """Nor in the cell of the ID split, whose shifts it shares: none."""
    content = json.loads((results / "natural.json").read_text())
    german = content["splits"]["llava_bench_coco_German"]
    control = {**german, "modality": "control", "shifts": [], "emi": 99.0, "emid": -99.0}
    (tmp_path / "r.json").write_text(json.dumps({**content, "splits": {**content["splits"], "fresh": control}}))
    (read,) = read_results([tmp_path / "r.json"])
    (before,) = read_results([results / "natural.json"])
    assert read.means() == before.means() and [one.name for one in read.controls] == ["fresh"]
    assert "fresh" in to_html([read]) and pictures_of(read)["emi-heat-map"].images[0].get_array().max() < 99
