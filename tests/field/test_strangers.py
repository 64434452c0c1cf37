"""Text and files from strangers: nothing hostile reaches a terminal, and no pattern takes long."""

from __future__ import annotations

import json
import string
import sys

import pytest

from lmms_eval_emi.cli.commands import main
from lmms_eval_emi.slices.judge.prompt import read_scores
from lmms_eval_emi.util.printing import CONTROL, one_line, printable, redact

TITLE = "\x1b]0;owned\x07"


def test_control_characters_are_shown_and_not_obeyed():
    assert printable(f"a{TITLE}b\x9b2J\u202e") == "a\\x1b]0;owned\\x07b\\x9b2J\\u202e"
    assert printable("a\x1b[8mhidden\x1b[A\rb\tc\r\n") == "a\\x1b[8mhidden\\x1b[A\\rb\tc\r\n"
    assert printable(bar := "\x1b[32m5%\x1b[0m\x1b[A\r", CONTROL) == bar, "progress bars and loggers on stderr"
    assert one_line(f"a\n{TITLE}" * 100, 20) == "a \\x1b]0;owned\\x0..."


def test_a_command_prints_no_escape_sequence(tmp_path, capsys):
    path = tmp_path / f"no{TITLE}.json"
    assert main(["report", str(path)]) == 1
    told = capsys.readouterr()
    assert "\x1b]" not in told.out + told.err and "\\x1b]0;owned" in told.err


@pytest.mark.parametrize(
    "secret",
    [
        "openai_key=SECRET", "judge_key=SECRET", "?key=SECRET", "?sig=SECRET", "https://SECRET@host/x", "apiKey: SECRET",
        "gsk_SECRETSECRETSECRET123456", "github_pat_SECRETSECRET_123456789", "glpat-SECRETSECRET123456", "Bearer SECRETSECRET",
        "nvapi-SECRETSECRET12345678901", "AKIASECRETSECRET1234", "eyJhbGciOiJI.SECRETSECRET.SECRET", "--hf-token SECRET",
        "Authorization: SECRET", "apikey=SECRET", "passphrase=SECRET", "PGPASSWORD=SECRET", "Cookie: s=SECRET", "sk_live_SECRETSECRET",
        "xai-SECRETSECRETSECRET123456", "npm_SECRETSECRETSECRET123456", "r8_SECRETSECRETSECRET123456", "api_key1=SECRET",
        "api_key_openai=SECRET", "api_keys=SECRET", 'key="SECRET', "token \t =\tSECRET", "--key -SECRET", '{\\"api_key\\": \\"SECRET\\"}',
        "\\nsk-SECRETSECRETSECRET", "x" * 9000 + "-hf_SECRETSECRETSECRET1234",
    ],
)  # fmt: skip
def test_secrets_are_hidden(secret):
    assert "SECRET" not in redact(f"asked with {secret}")


@pytest.mark.parametrize(
    "plain",
    [
        "image_token=<image>",
        "max_new_tokens=5",
        "monkey=3",
        "score_key=correct",
        "a token",
        "keyboard_3=5",
        "prompt_tokens: 7",
        "author: me",
    ],
)
def test_what_only_looks_like_a_secret_stays(plain):
    assert redact(plain) == plain


@pytest.mark.parametrize("character", [*string.printable, "é", "中", "\x1b"])
def test_no_pattern_takes_more_than_linear_steps(character):
    """A bound of calls, not of time: a pattern that goes back and forth would not end within any patience."""
    from lmms_eval_emi.data.response_text import degenerate_kind, is_failed_request, without_thoughts
    from lmms_eval_emi.data.rows import Sample

    long = character * 100_000
    for text in (long, f"8 6{long}", f"8 6 {long}", f"key={long}", f"<think>{long}"):
        redact(text)
        printable(text)
        read_scores(text, "reference_first")
        is_failed_request(text)
        without_thoughts(text)
    degenerate_kind(Sample(None, long[:3900], long[:3900], "a reference", id=0))


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("8 6", (8, 6)), ("8,6", (8, 6)), ("8, 6", (8, 6)), ("8,5\n7,0", (8.5, 7)), ("8,5 7,0", (8.5, 7)), ("**8/10** 7/10", (8, 7)),
        ("[8; 6].", (8, 6)), ("8", None), ("8 6 4", None), ("0 6", None), ("8\n6", (8, 6)), ("8.5\n7.0\nBoth.", (8.5, 7)), ("<analysis>5 5</analysis>8 6", (8, 6)), ("8 6" + "*" * 3000, None), ("Score: 8 6", None),
    ],
)  # fmt: skip
def test_scores_are_read_as_they_are_meant(reply, scores):
    assert read_scores(reply, "reference_first") == scores


def test_a_study_file_cannot_open_folders_elsewhere(tmp_path):
    from lmms_eval_emi.data.rows import image_roots
    from lmms_eval_emi.data.study import load_study

    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "rows.jsonl").write_text(json.dumps({"id": 0, "image": "a.png", "question": "q", "answer": "a"}) + "\n")
    text = "name: mine\nid_split: clean\ndataset: {path: rows.jsonl, images: %s, columns: {id: id, question: question, reference: answer, image: image}}\nsplits: {clean: {}}\n"
    (folder / "study.yaml").write_text(text % "/")
    study = load_study(str(folder / "study.yaml"))
    spec = study.split("clean").dataset
    assert image_roots(study, spec) == (folder.resolve(),)
    assert tmp_path.resolve() in image_roots(study, spec, tmp_path)


def test_a_study_of_the_package_may_find_its_dataset_behind_a_link(tmp_path, monkeypatch):
    from lmms_eval_emi.data.rows import check_place
    from lmms_eval_emi.data.study import load_study

    (tmp_path / "elsewhere" / "llavabench-shift-natural-v1").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "changdae").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "here")
    study = load_study("natural")
    spec = study.split(study.id_split).dataset
    assert check_place(study, study.local_path(spec), None).name == "llavabench-shift-natural-v1"


@pytest.mark.parametrize("what", ["dataset", "responses", "synonyms"])
def test_a_study_reads_nothing_outside_its_folder_unless_the_command_line_allows_it(
    what, tmp_path, monkeypatch, capsys
):
    """A clone belongs to the caller, and its study file is a stranger's all the same."""
    private, clone = tmp_path / "private", tmp_path / "clone"
    private.mkdir()
    clone.mkdir()
    monkeypatch.chdir(clone)
    rows = "".join(json.dumps({"id": n, "question": f"what {n}", "answer": f"a {n}"}) + "\n" for n in range(4))
    answers = "".join(json.dumps({"question_id": n, "text": f"answer {n}"}) + "\n" for n in range(4))
    for folder in (private, clone):
        (folder / "rows.jsonl").write_text(rows)
        (folder / "answers.jsonl").write_text(answers)
        (folder / "synonyms.yaml").write_text("what: [which]\n")

    def place(name: str, own: str) -> str:
        return str(private / own) if name == what else own

    (clone / "study.yaml").write_text(
        f"""name: mine
id_split: clean
dataset:
  path: {place("dataset", "rows.jsonl")}
  columns: {{id: id, question: question, reference: answer, image: null}}
  shifts_at_load: {{seed: 0, synonyms: {place("synonyms", "synonyms.yaml")}}}
splits:
  clean: {{responses: {place("responses", "answers.jsonl")}}}
  shifted: {{responses: answers.jsonl, shifts: [{{modality: text, name: synonym, severity: 7}}]}}
"""
    )
    command = ["score", "study.yaml", "--estimator", "cosine", "--text-encoder", "none/such"]
    assert main(command) == 1
    assert "lies outside its folder" in (told := capsys.readouterr().err) and f"--images {private}" in told
    assert main([*command, "--images", str(private)]) == 1
    assert "lies outside its folder" not in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="users have no numbers there")
def test_a_command_in_somebody_elses_folder_is_not_run(tmp_path, monkeypatch, capsys):
    import os

    from lmms_eval_emi.util.journal import write_manifest

    write_manifest(tmp_path, "x", {"arguments": ["--include_path", "evil"], "folder": "/evil", "settings": {}})
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert main(["run", "--recover", str(tmp_path)]) == 1
    assert "is not yours" in (told := capsys.readouterr().err) and "--include_path evil" in told


def test_a_page_holds_no_control_character(tmp_path):
    pytest.importorskip("jinja2")
    pytest.importorskip("matplotlib")
    from lmms_eval_emi.report.page import to_html
    from lmms_eval_emi.report.reading import ReportedResult
    from lmms_eval_emi.scoring.result import SplitResult, StudyResult
    from lmms_eval_emi.scoring.rows import StudyRows

    splits = {"clean": SplitResult(emi=0.0), "shifted": SplitResult(emi=-1.0, emid=1.0, modality="visual")}
    result = StudyResult(
        signature="s",
        model=f"a{TITLE}b",
        shift="mine",
        id_split="clean",
        splits=splits,
        notes={"shifted": [f"c{TITLE}"]},
    )
    page = to_html([ReportedResult.of(result, rows=StudyRows())])
    assert "\x1b" not in page and "\x07" not in page and "\\x1b]0;owned" in page
