"""One run in a folder at a time, with locks of the file system and without."""

from __future__ import annotations

import errno
import json

import pytest

from lmms_eval_emi.errors import RunError
from lmms_eval_emi.util import lock as module
from lmms_eval_emi.util.journal import Journal, read_journal, read_manifest, write_manifest
from lmms_eval_emi.util.lock import Lock, LockedError, is_locked


@pytest.fixture(params=["flock", "ENOSYS", "ENOLCK"])
def locks(request, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.05)
    monkeypatch.setattr(module, "LEFT_OVER", 0.5)
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    if request.param != "flock":

        def flock(handle, operation):
            raise OSError(getattr(errno, request.param), "no locks here")

        monkeypatch.setattr(module.fcntl, "flock", flock)
    return request.param


def test_a_second_one_is_refused_and_may_follow(locks, tmp_path):
    first = Lock(tmp_path / "a.lock")
    with pytest.raises(LockedError):
        Lock(tmp_path / "a.lock")
    assert is_locked(tmp_path / "a.lock")
    first.release()
    assert not is_locked(tmp_path / "a.lock")
    Lock(tmp_path / "a.lock").release()


def test_what_a_killed_run_has_left_keeps_nobody_out(locks, tmp_path):
    (tmp_path / "a.lock").write_text("4321\nnode-17\n")
    (tmp_path / "a.lock.owner").touch()
    assert not is_locked(tmp_path / "a.lock")
    Lock(tmp_path / "a.lock").release()


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path):
    (tmp_path / "a.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        Lock(tmp_path / "a.lock")
    assert not (tmp_path / "elsewhere").exists()


def test_a_journal_that_somebody_else_writes_to_stops_the_run(tmp_path):
    journal = Journal(tmp_path)
    with journal.path.open("ab") as other:
        other.write(b"something\n")
    with pytest.raises(RunError, match="another process writes there"):
        journal.append({"kind": "block", "run": "a", "requests": []})
    journal.close()


def test_a_journal_that_is_moved_away_stops_the_run(tmp_path):
    journal = Journal(tmp_path)
    journal.path.rename(tmp_path / "moved.jsonl")
    with pytest.raises(RunError):
        journal.append({"kind": "block", "run": "a", "requests": []})
    journal.close()


def test_a_last_record_that_lost_its_newline_is_whole(tmp_path):
    journal = Journal(tmp_path)
    journal.append({"kind": "block", "run": "a", "method": "generate_until", "requests": [["mme", 1, 0, "c", "Yes"]]})
    journal.close()
    journal.path.write_bytes(journal.path.read_bytes().removesuffix(b"\n"))
    journal = Journal(tmp_path)
    journal.append({"kind": "block", "run": "a", "method": "generate_until", "requests": [["mme", 2, 0, "d", "No"]]})
    journal.close()
    assert len(read_journal(tmp_path).answers("a").by_request) == 2
    assert not journal.path.with_suffix(".torn").exists()


@pytest.mark.parametrize("name", ["run.json", "rank-00000.torn"])
def test_links_beside_a_journal_are_not_followed(tmp_path, name):
    (tmp_path / "journal").mkdir()
    (tmp_path / "mine.txt").write_text("mine")
    Journal(tmp_path).close()
    (tmp_path / "journal" / name).symlink_to(tmp_path / "mine.txt")
    if name == "run.json":
        with pytest.raises(RunError, match="got a link"):
            write_manifest(tmp_path, "x", {"arguments": []})
    else:
        path = tmp_path / "journal" / "rank-00000.jsonl"
        path.write_bytes(path.read_bytes() + b"torn")
        with pytest.raises(RunError):
            Journal(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("run", [{"settings": []}, {"folder": 5}, {"arguments": "x"}])
def test_a_manifest_of_other_types_is_refused(tmp_path, run):
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "run.json").write_text(json.dumps({"format_version": 1, "runs": {"x": run}}))
    with pytest.raises(RunError, match="expected a description of runs"):
        read_manifest(tmp_path)


def test_a_journal_that_went_through_an_editor_is_whole(tmp_path):
    journal = Journal(tmp_path)
    journal.append({"kind": "block", "run": "a", "method": "generate_until", "requests": [["mme", 1, 0, "c", "Yes"]]})
    journal.close()
    journal.path.write_bytes(journal.path.read_bytes().replace(b"\n", b"\r\n") + b"torn")
    journal = Journal(tmp_path)
    journal.append({"kind": "block", "run": "a", "method": "generate_until", "requests": [["mme", 2, 0, "d", "No"]]})
    journal.close()
    assert len(read_journal(tmp_path).answers("a").by_request) == 2 and read_journal(tmp_path).damaged == 0
    assert journal.path.with_suffix(".torn").read_bytes() == b"torn\n"
