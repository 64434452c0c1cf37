"""The journal: what was acknowledged is read again, whatever was done to the rest of its file."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmms_eval_emi.errors import RunError
from lmms_eval_emi.util.journal import (
    Journal,
    Request,
    from_line,
    is_running,
    read_journal,
    read_manifest,
    to_line,
    write_manifest,
)

BLOCK = {"kind": "block", "run": "r", "requests": [["mme", 3, 0, "abc", "Yes"]]}


def write(folder, *records, rank=0):
    journal = Journal(folder, rank)
    for record in records:
        journal.append(record)
    journal.close()
    return journal.path


def responses(folder):
    return read_journal(folder).answers("r").by_request


def test_what_is_written_is_read_by_whichever_rank(tmp_path):
    write(tmp_path, BLOCK, rank=0)
    write(tmp_path, {**BLOCK, "requests": [["mme", 4, 0, "x", {"value": 0.1}]]}, rank=5)
    assert responses(tmp_path) == {Request("mme", 3, 0, "abc"): "Yes", Request("mme", 4, 0, "x"): {"value": 0.1}}
    again = Journal(tmp_path, 0)
    assert again.contents.answers("r").by_content == {"abc": "Yes", "x": {"value": 0.1}}
    assert again.contents.answers("another").by_request == {}
    again.close()


def test_a_torn_end_is_cut_at_every_place(tmp_path):
    """A kill may leave any part of the last record; the ones before it stay, and later ones are read."""
    path = write(tmp_path, BLOCK)
    whole = path.read_bytes()
    torn = to_line({**BLOCK, "requests": [["mme", 9, 0, "torn", "No"]]})
    for length in range(1, len(torn) - 1):  # without its newline alone, a record is whole
        path.write_bytes(whole + torn[:length])
        assert list(responses(tmp_path).values()) == ["Yes"]
        write(tmp_path, {**BLOCK, "requests": [["mme", 5, 0, "later", "No"]]})
        assert list(responses(tmp_path).values()) == ["Yes", "No"] and read_journal(tmp_path).damaged == 0


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 10_000), byte=st.integers(1, 255))
def test_a_changed_byte_costs_its_record_alone(tmp_path_factory, place, byte):
    folder = tmp_path_factory.mktemp("journal")
    records = [{**BLOCK, "requests": [["mme", row, 0, f"c{row}", f"response {row}"]]} for row in range(5)]
    path = write(folder, *records)
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= byte
    path.write_bytes(content)
    found = responses(folder)
    assert len(found) >= 3  # a changed newline joins two lines
    assert all(response == f"response {request.document}" for request, response in found.items())


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_line_of_other_bytes_is_a_record(line):
    found = from_line(line)
    assert found is None or to_line(found) == line + b"\n"


def test_texts_of_any_kind_come_back_as_they_were(tmp_path):
    texts = ["", "\ud800 lone", "\u2028 \x00 \x1b[31m", "😀" * 1000, "a\nb\r\nc", "x" * 1_000_000]
    requests = [["t", row, 0, str(row), text] for row, text in enumerate(texts)]
    write(tmp_path, {**BLOCK, "requests": requests})
    assert list(responses(tmp_path).values()) == texts


def test_only_one_process_writes(tmp_path):
    journal = Journal(tmp_path)
    assert is_running(tmp_path)
    with pytest.raises(RunError, match="another run is writing there"):
        Journal(tmp_path)
    journal.close()
    assert not is_running(tmp_path)
    Journal(tmp_path).close()


def test_a_failed_write_is_not_acknowledged(tmp_path, monkeypatch):
    import lmms_eval_emi.util.journal as module

    journal = Journal(tmp_path)
    journal.append(BLOCK)

    def half(handle, data, write=module.os.write):
        write(handle, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "write", half)
    with pytest.raises(RunError, match=r"No space left.*make room and start again"):
        journal.append({**BLOCK, "requests": [["mme", 8, 0, "lost", "No"]]})
    monkeypatch.undo()
    journal.append({**BLOCK, "requests": [["mme", 8, 0, "kept", "No"]]})
    journal.close()
    assert [request.content for request in responses(tmp_path)] == ["abc", "kept"]
    assert read_journal(tmp_path).damaged == 0


def test_a_journal_of_a_newer_version_is_refused(tmp_path):
    path = write(tmp_path, BLOCK)
    path.write_bytes(to_line({"kind": "journal", "format_version": 2}) + path.read_bytes())
    for read in (read_journal, Journal):
        with pytest.raises(RunError, match="pip install --upgrade"):
            read(tmp_path)
    journal_folder = tmp_path / "journal"
    (journal_folder / "run.json").write_text(json.dumps({"format_version": 2, "runs": {}}))
    with pytest.raises(RunError, match="pip install --upgrade"):
        read_manifest(tmp_path)


def test_a_journal_of_the_first_version_is_read(tmp_path):
    """As version 0.1 of this package wrote it, byte for byte."""
    folder = tmp_path / "journal"
    folder.mkdir()
    (folder / "rank-00000.jsonl").write_bytes(
        b'6ebb677f4bfc5931 {"kind":"journal","format_version":1}\n'
        b'3d034607cd0f7413 {"kind":"block","run":"r","requests":[["mme",3,0,"abc","Yes"]]}\n'
    )
    assert responses(tmp_path) == {Request("mme", 3, 0, "abc"): "Yes"}


@pytest.mark.parametrize("text", ["", "null", "[]", '{"runs": []}', '{"runs": {"a": 1}}', "{" * 5000, "\udcff"])
def test_a_damaged_manifest_says_what_to_do(tmp_path, text):
    write_manifest(tmp_path, "r", {"model": "m"})
    (tmp_path / "journal" / "run.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match=r"run\.json: expected .*Remove it"):
        read_manifest(tmp_path)


def test_the_latest_run_is_the_last_of_the_manifest(tmp_path):
    for name in ("a", "b", "a"):
        write_manifest(tmp_path, name, {"model": name})
    assert list(read_manifest(tmp_path)) == ["b", "a"]
