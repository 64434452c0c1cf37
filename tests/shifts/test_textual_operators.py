"""Operators on texts: the published rates, what must stay, and texts of any script."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from lmms_eval_emi.errors import EndpointError, ShiftError
from lmms_eval_emi.shifts import RefusedError, ShiftOptions, operators, shift_text
from lmms_eval_emi.shifts.operators.textual.pieces import join, split

OPERATORS = [name for name, operator in operators("text").items() if operator.group != "sentence"]
QUESTION = "Which large animals are sleeping beside the old wooden table in the garden, and why might they be tired?"
SYNONYMS = {
    "large": ["big", "huge"],
    "animals": ["beasts"],
    "sleeping": ["dozing", "fast asleep"],
    "old": ["aged"],
    "wooden": ["timber"],
    "table": ["board", "desk"],
    "garden": ["yard"],
    "tired": ["weary", "worn out"],
}
TEXTS = {
    "Chinese": "图片中的两个手提箱是什么颜色的？它们在哪里？",
    "Japanese": "この写真には何が写っていますか",
    "Thai": "ภาพนี้แสดงอะไรบ้าง",
    "Korean": "이미지에서 두 개의 여행 가방은 무슨 색인가요?",
    "Hindi": "छवि में दो सूटकेस का रंग क्या है?",
    "Arabic": "ما لون الحقيبتين الموجودتين في الصورة؟",
    "Hebrew": "מה הצבע של המזוודות בתמונה?",
    "Greek": "Ποιο είναι το χρώμα των δύο βαλιτσών στην εικόνα;",
    "emoji": "What is the 👩‍👩‍👧‍👦 family doing near the 🏳️‍🌈 flag 🤷🏽‍♀️ today?",
    "long": "What is the colour of the suitcases? " * 3000,
    "one word": "Describe",
    "short words": "Is it an ox?",
    "lone marks": "?! ... --",
    "control": "What\x00colour\u200bis\ttheir\nhouse?\r\n",
    "accents": "Quelle est la couleur de l'été à Besançon ?",
}


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> ShiftOptions:
    path = tmp_path_factory.mktemp("synonyms") / "synonyms.json"
    path.write_text(json.dumps(SYNONYMS))
    return ShiftOptions(synonyms=path)


def edits(before: str, after: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(after) + 1))
    for i, left in enumerate(before, start=1):
        above, row[0] = row[0], i
        for j, right in enumerate(after, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (left != right))
    return row[-1]


def shares(before: list[str], after: list[str]) -> tuple[float, float]:
    """Shares of changed characters and of words that are no longer there, over all texts."""
    import difflib

    characters = sum(map(edits, before, after)) / sum(map(len, before))
    kept = sum(
        block.size
        for left, right in zip(before, after, strict=True)
        for block in difflib.SequenceMatcher(None, left.split(), right.split(), autojunk=False).get_matching_blocks()
    )
    return characters, 1 - kept / sum(len(text.split()) for text in before)


def prompts(shared: Path, split_name: str) -> list[str]:
    path = shared / "data" / "responses" / "llava-v1.5-13b" / f"{split_name}.jsonl"
    return [json.loads(line)["prompt"].rstrip() for line in path.read_text(encoding="utf-8").split("\n") if line]


def ours(texts: list[str], name: str, level: int, seed: int) -> list[str]:
    out = []
    for row, text in enumerate(texts):
        try:
            out.append(shift_text(text, name, level, seed=seed, row_id=row))
        except RefusedError:
            out.append(text)
    return out


@pytest.mark.parametrize("level", [1, 3])
def test_keyboard_changes_as_much_as_the_published_prompts(shared: Path, level: int) -> None:
    clean = prompts(shared, "llava_bench_coco")
    # nlpaug sets spaces around apostrophes, which is none of the typos
    published = [
        text.replace(" '", "'").replace("' ", "'") for text in prompts(shared, f"llava_bench_coco_KeyboardAug_{level}")
    ]
    clean = [text.replace(" '", "'").replace("' ", "'") for text in clean]
    wanted = shares(clean, published)
    for seed in range(3):
        found = shares(clean, ours(clean, "keyboard", level, seed))
        assert all(abs(one - other) < 0.1 * other for one, other in zip(found, wanted, strict=True))


@pytest.mark.parametrize("level", [4, 7])
def test_synonyms_change_as_much_as_the_published_prompts(shared: Path, level: int) -> None:
    from lmms_eval_emi.shifts.operators.textual.synonyms import synonym_source
    from lmms_eval_emi.shifts.operators.textual.word import plain

    try:
        synonym_source(None)
    except ShiftError:
        pytest.skip("needs WordNet")
    clean = [plain(text, ShiftOptions()) for text in prompts(shared, "llava_bench_coco")]
    published = [plain(text, ShiftOptions()) for text in prompts(shared, f"llava_bench_coco_sr_{level}")]
    wanted = shares(clean, published)
    for name in ("sr", "synonym"):
        found = shares(clean, ours(clean, name, level, 0))
        assert all(abs(one - other) < 0.2 * other for one, other in zip(found, wanted, strict=True))


def test_levels_of_keyboard_hit_nested_words() -> None:
    hit: set[int] = set()
    words = QUESTION.split()
    for level in range(1, 8):
        shifted = shift_text(QUESTION, "keyboard", level).split()
        now = {place for place, word in enumerate(words) if shifted[place] != word}
        assert hit <= now and len(shifted) == len(words)
        hit = now
    assert len(hit) == 8  # ceil(0.35 * 21), 19 words and 2 marks
    assert len(shift_text(QUESTION, "keyboard", 7)) == len(QUESTION)


def test_typos_are_neighbours_on_the_keyboard() -> None:
    rows = ["1234567890", "qwertyuiop", "asdfghjkl;", "zxcvbnm,./"]
    shifted_keys = dict(zip("!@#$%^&*():<>?", "1234567890;,./", strict=True))
    place = {key: (row, column) for row, keys in enumerate(rows) for column, key in enumerate(keys)}
    for row in range(40):
        typed = shift_text(QUESTION, "keyboard", 7, row_id=row)
        for was, now in zip(QUESTION, typed, strict=True):
            if was != now:
                (r, c), (u, v) = place[was.lower()], place[shifted_keys.get(now, now.lower())]
                assert abs(r - u) <= 1 and abs(c - v) <= 2


def test_characters_are_inserted_replaced_swapped_or_deleted() -> None:
    inserted, replaced, swapped, deleted = (
        shift_text("elephants", name, 1) for name in ("char_insert", "char_replace", "char_swap", "char_delete")
    )
    assert len(inserted) == 12 and [letter for letter in inserted if letter in "elephants"] != list(inserted)
    assert len(replaced) == 9 and 1 <= sum(a != b for a, b in zip("elephants", replaced, strict=True)) <= 3
    assert sorted(swapped) == sorted("elephants") and swapped != "elephants"
    assert len(deleted) == 6 and all(letter in "elephants" for letter in deleted)


def test_words_are_inserted_swapped_or_deleted(options: ShiftOptions) -> None:
    words = QUESTION.split()
    inserted = shift_text(QUESTION, "word_insert", 4, options=options).split()
    extra = {part for found in SYNONYMS.values() for synonym in found for part in synonym.split()}
    assert [word for word in inserted if word not in extra] == words and len(inserted) >= len(words) + 3
    swapped = shift_text(QUESTION, "word_swap", 4)
    assert sorted(swapped.replace(",", "").replace("?", "").split()) == sorted(
        QUESTION.replace(",", "").replace("?", "").split()
    )
    assert swapped != QUESTION
    deleted = shift_text(QUESTION, "word_delete", 7).replace(",", " ").replace("?", "").split()
    assert len(deleted) < len(words) and all(word in QUESTION for word in deleted)
    assert "  " not in shift_text(QUESTION, "word_delete", 7)
    marked = shift_text(QUESTION, "punctuation", 7)
    assert [word for word in marked.split() if word not in ".,!?;:"] == words and len(marked) > len(QUESTION)


def test_synonyms_stand_in_for_words_and_keep_the_layout(options: ShiftOptions) -> None:
    shifted = shift_text(QUESTION, "synonym", 7, options=options)
    before, after = split(QUESTION), shifted
    assert after.startswith("Which ") and after.endswith("?") and ", and why" in after
    replaced = [
        word for word, choices in SYNONYMS.items() if word not in after and any(one in after for one in choices)
    ]
    assert len(replaced) == 6  # 0.35 of 19 words
    assert join(before) == QUESTION
    assert shift_text("Large dogs", "synonym", 1, options=options) in ("Big dogs", "Huge dogs")
    plain = shift_text(QUESTION, "sr", 7, options=options)
    assert plain == plain.lower() and not set(plain) & set(",?")


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("level", [1, 4, 7])
def test_what_must_stay_stays(name: str, level: int, options: ShiftOptions) -> None:
    text = "<image> Look at <image 2>: are the 3 large animals from 1984 near 12.5 km of the Eiffel Tower, at https://x.org/old?id=7, really tired in <|image_3|>?"
    keep = ShiftOptions(keep=("Eiffel Tower", "tired"), synonyms=options.synonyms)
    kept = (
        "<image>",
        "<image 2>",
        "<|image_3|>",
        "3",
        "1984",
        "12.5",
        "https://x.org/old?id=7",
        "Eiffel Tower",
        "tired",
    )
    changed = 0
    for row in range(20):
        shifted = shift_text(text, name, level, row_id=row, options=keep)
        changed += shifted != text
        if name == "word_insert":  # which may say one of them once more
            assert all(part in shifted for part in kept if part != "Eiffel Tower")
        else:
            assert all(shifted.count(part) >= text.count(part) for part in kept), shifted
    assert changed >= (18 if name != "word_delete" else 8)  # which may well delete nothing at the lowest level


@pytest.mark.parametrize(
    ("text", "keep", "kept"),
    [
        ("这个iPhone是什么颜色的手机", ("iPhone",), ["iPhone"]),
        ("USB图片里是什么东西", ("图片",), ["图片"]),
        ("iPhone의 색깔은 무엇인가요", ("iPhone",), ["iPhone"]),
        ("New York City is large and lively", ("New York", "York City"), ["New York City"]),
        ("Is the Eiffel  Tower large enough?", ("eiffel tower",), ["Eiffel  Tower"]),
        ("Where is the cafe\u0301 with animals?", ("café",), ["cafe\u0301"]),
        ("At -5 degrees or .5 or −7 or 1,000.5 of 3/4 sheets", (), ["-5", ".5", "−7", "1,000.5", "3/4"]),
        ("Numbers like 3️⃣ today are large", (), ["3️⃣"]),
        ("Look closely at <image/> or www.example.org/x or some.one@example.org please", (), ["<image/>", "www.example.org/x", "some.one@example.org"]),
        ("这张图片里有3只猫在做什么？", (), ["3"]),
        ("A dozen animals or a trillion flowers", (), ["dozen", "trillion"]),
    ],
)  # fmt: skip
def test_what_must_stay_stays_in_odd_places(text: str, keep: tuple, kept: list[str], options: ShiftOptions) -> None:
    assert join(split(text, keep)) == text
    found = [piece.text for piece in split(text, keep) if piece.kind == "kept"]
    assert found == kept
    for name in OPERATORS:
        for row in range(12):
            try:
                shifted = shift_text(
                    text, name, 7, row_id=row, options=ShiftOptions(keep=keep, synonyms=options.synonyms)
                )
            except RefusedError:
                continue
            assert all(part in shifted for part in kept), (name, shifted)


def test_deleting_a_word_joins_no_numbers() -> None:
    for row in range(40):
        assert "3/4" not in shift_text("The ratio 3 cats/4 dogs here", "word_delete", 7, row_id=row)


def test_part_of_a_word_is_no_word_to_keep() -> None:
    assert [piece.text for piece in split("cats concatenate catalogs", ("cat",)) if piece.kind == "kept"] == []


def test_time_grows_with_the_text_and_not_with_its_square() -> None:
    """A ratio of times in one process: twenty times the text may not take four hundred times as long.

    The thread's own time, for other processes may take the core away in the midst of the longer one.
    """
    import time

    def seconds(text: str, name: str) -> float:
        begin = time.thread_time()
        with contextlib.suppress(RefusedError):
            shift_text(text, name, 7)
        return time.thread_time() - begin

    for unit in ("图", "_", "a_", "ab ", "a.b@", "What is the colour of 3 cats? ", "ما لون "):
        for name in ("char_insert", "word_delete"):
            seconds(unit * 1000, name)
            short = min(seconds(unit * 1000, name) for _ in range(3))
            assert seconds(unit * 20_000, name) < 150 * max(short, 1e-3), (unit, name)


@pytest.mark.parametrize(
    "text", ["Tell me about ㌍", "What is this ั", "\u102b", "\u0301 \u0301", "e\u0301" * 5, "\ufeff word"]
)
@pytest.mark.parametrize("name", OPERATORS)
def test_odd_characters_never_stop_a_run(text: str, name: str, options: ShiftOptions) -> None:
    for row in range(10):
        try:
            assert shift_text(text, name, 7, row_id=row, options=options)
        except RefusedError:
            continue


def test_an_operator_that_fails_costs_a_row_and_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    module = importlib.import_module("lmms_eval_emi.shifts.operators.textual.character")
    monkeypatch.setattr(module, "with_case_of", lambda *arguments: 1 / 0)
    with pytest.raises(RefusedError, match="char_swap failed: ZeroDivisionError"):
        shift_text("What is this animal?", "char_swap", 1)


def test_number_words_and_unknown_words_stay(options: ShiftOptions) -> None:
    for row in range(30):
        assert "seven" in shift_text("How are seven elephants walking?", "keyboard", 7, row_id=row)
    with pytest.raises(RefusedError, match="synonym"):
        shift_text("Zyx qwv?", "synonym", 7, options=options)


@pytest.mark.parametrize("script", TEXTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_any_script_is_shifted_or_refused(name: str, script: str, options: ShiftOptions) -> None:
    text = TEXTS[script]
    try:
        shifted = shift_text(text, name, 7, options=options)
    except RefusedError:
        assert name in {"ocr", "keyboard", "synonym", "sr", "word_insert", "word_swap", "word_delete"} or script in {
            "lone marks",
            "short words",
        }
        return
    assert shifted.encode("utf-8")
    if name.startswith("char_") or name == "keyboard":
        assert shifted != text
    if script == "emoji":
        assert all(sign in shifted for sign in ("👩‍👩‍👧‍👦", "🏳️‍🌈", "🤷🏽‍♀️"))


@pytest.mark.parametrize("script", ["Chinese", "Japanese", "Thai", "Korean", "Hindi", "Arabic", "Hebrew", "Greek"])
def test_words_of_any_script_are_swapped_and_whole(script: str) -> None:
    swapped = shift_text(TEXTS[script], "word_swap", 7)
    assert swapped != TEXTS[script] and sorted(swapped) == sorted(TEXTS[script])


def test_keyboards_of_other_scripts() -> None:
    for script in ("Arabic", "Hebrew", "Greek"):
        typed = shift_text(TEXTS[script], "keyboard", 7)
        assert typed != TEXTS[script] and len(typed) == len(TEXTS[script])
    with pytest.raises(RefusedError, match="no word"):
        shift_text(TEXTS["Chinese"], "keyboard", 7)


@pytest.mark.parametrize("name", OPERATORS)
def test_randomness_is_the_seeds_and_the_rows(name: str, options: ShiftOptions) -> None:
    def shifted(seed: int, row: object) -> str:
        return shift_text(QUESTION, name, 4, seed=seed, row_id=row, options=options)

    assert shifted(1, "a") == shifted(1, "a")
    assert len({shifted(1, row) for row in range(12)}) > 6 and len({shifted(seed, 1) for seed in range(12)}) > 6


def test_empty_and_endless_texts_are_refused() -> None:
    for text, reason in ((" \n", "empty"), ("x" * 1_000_001, "1,000,001 characters")):
        with pytest.raises(RefusedError, match=reason):
            shift_text(text, "char_swap", 1)


def test_levels_are_checked() -> None:
    for name, level, message in (("keyboard", 8, "1 to 7"), ("translation", 3, "language"), ("formal", 1, "one form")):
        with pytest.raises(ShiftError, match=message):
            shift_text("What is this?", name, level)


def test_a_file_of_synonyms_that_is_none_is_named(tmp_path: Path) -> None:
    for content in ("- a\n- b", "word: {a: b}", "{", "\x00"):
        path = tmp_path / f"{abs(hash(content))}.yaml"
        path.write_text(content)
        with pytest.raises(ShiftError, match="mapping of words to synonyms"):
            shift_text("What is this picture?", "synonym", 1, options=ShiftOptions(synonyms=path))


def test_without_wordnet_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import nltk

    from lmms_eval_emi.shifts.operators.textual import synonyms

    synonyms._wordnet.cache_clear()
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(synonyms, "DEBIAN_FOLDER", tmp_path)
    with pytest.raises(ShiftError, match="nltk.downloader wordnet"):
        shift_text("What is this picture?", "synonym", 1)
    monkeypatch.setenv("LMMS_EVAL_EMI_WORDNET", str(tmp_path))
    with pytest.raises(ShiftError, match="data.noun"):
        shift_text("What is this picture?", "synonym", 1)
    synonyms._wordnet.cache_clear()


class Endpoint(HTTPServer):
    """Answers as an OpenAI-compatible server, from a function of the request."""

    def __init__(self, reply) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply, self.requests, self.url = reply, [], f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server: Endpoint = self.server  # type: ignore[assignment]
        server.requests.append(request)
        status, text = server.reply(request)
        message = {"message": {"role": "assistant", "content": text}, "index": 0, "finish_reason": "stop"}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [message]}
        content = json.dumps(body if status == 200 else {"error": {"message": text}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Endpoint]:
    monkeypatch.setenv("LMMS_EVAL_EMI_CACHE", str(tmp_path / "cache"))
    server = Endpoint(lambda request: (200, "Welche Farbe haben die 2 Koffer?"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_sentences_are_rewritten_once_and_kept(endpoint: Endpoint, tmp_path: Path) -> None:
    options = ShiftOptions(endpoint=endpoint.url, model="m", cache=tmp_path / "cache")
    question = "What colour are the 2 suitcases?"
    for _ in range(2):
        assert shift_text(question, "translation", "German", options=options) == "Welche Farbe haben die 2 Koffer?"
    (request,) = endpoint.requests
    assert question in request["messages"][0]["content"] and "German" in request["messages"][0]["content"]
    assert request["temperature"] == 0 and request["model"] == "m"
    for name in ("formal", "casual", "passive"):
        shift_text(question, name, None, options=options)
    assert (
        len(endpoint.requests) == 4 and len({request["messages"][0]["content"] for request in endpoint.requests}) == 4
    )


def test_a_reply_that_lost_a_number_or_is_empty_is_refused(endpoint: Endpoint) -> None:
    options = ShiftOptions(endpoint=endpoint.url, model="m", keep=("Koffer",))
    with pytest.raises(RefusedError, match="lost 3"):
        shift_text("What colour are the 3 suitcases?", "translation", "German", options=options)
    for reply, question in (
        ("Welche 13 Koffer?", "Which 3?"),
        ("<IMAGE> 50 Koffer", "<image> 5?"),
        ("Ein Kofferraum", "Is it a Koffer?"),
    ):
        endpoint.reply = lambda request, reply=reply: (200, reply)
        with pytest.raises(RefusedError, match="lost"):
            shift_text(question, "translation", "German", options=options)
    endpoint.reply = lambda request: (200, "Was tun die zwei Leute? \ud800")
    assert (
        shift_text("What are the two people doing?", "translation", "German", options=options)
        == "Was tun die zwei Leute? ?"
    )
    endpoint.reply = lambda request: (200, "  ")
    with pytest.raises(RefusedError, match="empty"):
        shift_text("What colour are they?", "translation", "German", options=options)


def test_an_endpoint_that_fails_stops_the_work_and_loses_nothing(endpoint: Endpoint, tmp_path: Path) -> None:
    options = ShiftOptions(endpoint=endpoint.url, model="m", cache=tmp_path / "cache")
    shift_text("What colour are the 2 suitcases?", "translation", "German", options=options)
    endpoint.reply = lambda request: (401, "no key")
    with pytest.raises(EndpointError, match="kept in"):
        shift_text("Another question?", "translation", "German", options=options)
    assert shift_text("What colour are the 2 suitcases?", "translation", "German", options=options)
    endpoint.reply = lambda request: (400, "too long")
    with pytest.raises(RefusedError, match="refuses the request"):
        shift_text("A third question?", "translation", "German", options=options)
    with pytest.raises(EndpointError, match="--endpoint"):
        shift_text("What is this?", "formal", None, options=ShiftOptions())
