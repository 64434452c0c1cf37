"""The README and the pages of docs/ as a reader meets them: pictures that show, links that lead somewhere, commands that exist."""

import html
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from lmms_eval_emi.cli.commands import COMMANDS, command_in, parser_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

SHOW = """<!doctype html><body>%s<pre id="measured"></pre><script>
addEventListener("load", () => {
  const images = [...document.images].map(one => [one.getAttribute("src"), one.complete ? one.naturalWidth : 0]);
  const texts = [...document.querySelectorAll("svg text")].map(one => {
    const svg = one.ownerSVGElement.getBoundingClientRect(), box = one.getBoundingClientRect();
    return {text: one.textContent, shown: one.getNumberOfChars(),
            inside: box.left >= svg.left && box.right <= svg.right && box.top >= svg.top && box.bottom <= svg.bottom};
  });
  document.getElementById("measured").textContent = JSON.stringify({images, texts});
});
</script></body>"""


def pictures() -> list[Path]:
    found = [
        page.parent / name
        for page in PAGES
        for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text(encoding="utf-8"))
    ]
    return list(dict.fromkeys(found))


def headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_pictures_of_the_documents_show_in_a_browser(tmp_path):
    """Texts of drawings keep their blanks (tables are aligned by them) and lie within the drawing."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not chromium:
        pytest.skip("needs Chromium")
    shown = pictures()
    assert len(shown) > 4
    parts = [f'<img src="{path.as_uri()}">' for path in shown]
    parts += [re.sub(r"<\?.*?\?>|<!DOCTYPE.*?>", "", p.read_text(), flags=re.S) for p in shown if p.suffix == ".svg"]
    page = tmp_path / "pictures.html"
    page.write_text(SHOW % "\n".join(parts), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    options += ["--window-size=1600,3000", "--virtual-time-budget=10000"]
    done = subprocess.run(
        [chromium, *options, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
    )
    measured = json.loads(html.unescape(re.search(r'<pre id="measured">(.*?)</pre>', done.stdout, re.S).group(1)))
    assert len(measured["images"]) == len(shown) and all(width > 100 for _, width in measured["images"])
    assert len(measured["texts"]) > 10
    for text in measured["texts"]:
        assert text["shown"] == len(text["text"]) and text["inside"], text


def test_links_between_the_documents_lead_somewhere():
    broken = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" in target:
                continue
            name, _, anchor = target.partition("#")
            to = (page.parent / name).resolve() if name else page
            if not to.exists() or (anchor and anchor not in headings(to)):
                broken.append(f"{page.name}: {target}")
    assert not broken


def test_commands_of_the_documents_exist_with_their_options():
    """A command that was renamed, or an option that went away, would otherwise stay in the README."""
    commands = {name: parser_of(name) for name in COMMANDS}
    seen, wrong = set(), []
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").replace("\\\n", " ").splitlines():
            if not line.startswith("    "):
                continue
            words = shlex.split(line, comments=True)
            starts = [n for n, word in enumerate(words) if word in ("lmms-eval-emi", "lmms_eval_emi")]
            if not starts or len(words) == starts[0] + 1:
                continue
            given = words[starts[0] + 1 :]
            if given[0].startswith(("-", "$")) or "(" in given[0]:
                continue
            name = command_in(given)
            rest = given[len((name or "").split()) :]
            if name is None:
                wrong.append(line.strip())
                continue
            seen.add(name)
            known = {option for action in commands[name]._actions for option in action.option_strings}
            asked = [word.split("=")[0] for word in rest if word.startswith("--")]
            if name != "run":  # which hands what it does not know to lmms-eval
                wrong += [f"{line.strip()}: {option}" for option in asked if option not in known]
    assert not wrong and len(seen) > 14
