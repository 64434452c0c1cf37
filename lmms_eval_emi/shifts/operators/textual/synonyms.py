"""Sources of synonyms: WordNet, or a file of the user. Not an operator itself."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import warnings
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import regex
import yaml
from pydantic import TypeAdapter

from lmms_eval_emi.errors import ShiftError
from lmms_eval_emi.shifts.operators import fingerprint_files
from lmms_eval_emi.util.imports import extra

DEBIAN_FOLDER = Path("/usr/share/wordnet")
# Words that carry grammar rather than meaning, which EDA does not replace.
FUNCTION_WORDS = frozenset(
    """
    i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she her hers
    herself it its itself they them their theirs themselves
    this that these those who whom which what when where why how
    a an the and but or nor if so than because as until while
    am is are was were be been being have has had having do does did doing can will just should now
    of at by for with about against between into through during before after above below to from up down in out on
    off over under again further then once here there
    all any both each few more most other some such no not only own same too very s t don
    """.split()
)


def synonym_source(file: Path | None, wordnet: Path | None = None) -> Callable[[str], tuple[str, ...]]:
    """Return a function from a lower-case word to its synonyms, sorted, the word itself not among them.

    Args:
        file: a YAML or JSON mapping of words to synonyms, or ``None`` for WordNet.
        wordnet: WordNet's ``dict`` folder; default: NLTK's, or that of the system's package.

    Raises:
        ShiftError: the file is no such mapping, or WordNet is not available locally.
    """
    if file is None:
        _wordnet(wordnet)  # now, rather than at the first word
        return partial(_wordnet_synonyms, wordnet=wordnet)
    table = _table(file.expanduser())
    return lambda word: table.get(word, ())


def synonyms_fingerprint(options: Any) -> str:
    """Return a hash of where synonyms come from: the file, or WordNet's database.

    Raises:
        ShiftError: as :func:`synonym_source`.
    """
    if options.synonyms is not None:
        synonym_source(options.synonyms)
        return fingerprint_files([options.synonyms.expanduser()])
    reader = _wordnet(options.wordnet)
    digest = hashlib.sha256()
    for part in ("noun", "verb", "adj", "adv"):
        with contextlib.closing(reader.open(f"data.{part}")) as file:
            while block := file.read(1 << 20):
                digest.update(block.encode() if isinstance(block, str) else block)
    return digest.hexdigest()


@lru_cache(maxsize=8)
def _table(file: Path) -> Mapping[str, tuple[str, ...]]:
    expected = f"{file}: expected a YAML or JSON mapping of words to synonyms, such as 'picture: [image, photo]'"
    try:
        text = file.read_text(encoding="utf-8")
        data = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
        known = TypeAdapter(dict[str, str | list[str]]).validate_python(data, strict=True)
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        raise ShiftError(f"{expected}: {error}") from error
    given = {word: [synonyms] if isinstance(synonyms, str) else synonyms for word, synonyms in known.items()}
    return {
        word.lower(): tuple(sorted({synonym for synonym in synonyms if synonym.lower() != word.lower()}))
        for word, synonyms in given.items()
    }


@lru_cache(maxsize=65536)
def _wordnet_synonyms(word: str, wordnet: Path | None) -> tuple[str, ...]:
    names = {name for synset in _wordnet(wordnet).synsets(word) for name in synset.lemma_names()}
    plain = {regex.sub(r"[^a-z ]", "", regex.sub("[_-]", " ", name.lower())).strip() for name in names}
    return tuple(sorted(plain - {"", word}))


@lru_cache(maxsize=1)
def _wordnet(given: Path | None) -> Any:
    """Return NLTK's reader of WordNet, with its database from the settings, the usual folders or the cache."""
    with extra("shifts"):
        import nltk
        from nltk.corpus.reader.wordnet import WordNetCorpusReader

    class Database(WordNetCorpusReader):  # type: ignore[misc]
        """A reader that asks for no more than the dictionary, for systems' packages hold no more."""

        def open(self, file: str) -> Any:
            if file == "lexnames":
                return io.StringIO("".join(f"{number:02d}\tfile{number}\t1\n" for number in range(45)))
            return super().open(file)

        def map_wn(self, version: str = "wordnet") -> None:
            """Do nothing: senses of other WordNet versions would need a second database."""

    def database(folder: Any) -> Database:
        if isinstance(folder, Path):
            nltk.data.path.append(str(folder))  # NLTK reads below its own folders only
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # WordNet's warning that it is English only
            return Database(str(folder) if isinstance(folder, Path) else folder, None)

    if given is not None:
        folder = given.expanduser()
        if not (folder / "data.noun").is_file():
            raise ShiftError(
                f"LMMS_EVAL_EMI_WORDNET: expected WordNet's folder of data.noun, index.noun and others, got {folder}."
            )
        return database(folder)
    for name in ("corpora/wordnet", "corpora/wordnet.zip/wordnet/"):
        try:
            return database(nltk.data.find(name))
        except LookupError:
            continue
    if (DEBIAN_FOLDER / "data.noun").is_file():
        return database(DEBIAN_FOLDER)
    raise ShiftError(
        "Synonyms come from WordNet, which is not here. Fetch it once, where there is a connection (11 MB):\n"
        "  python -m nltk.downloader wordnet\n"
        "and copy ~/nltk_data along, or install Debian's and Ubuntu's package wordnet-base, or set LMMS_EVAL_EMI_WORDNET to WordNet's dict folder. "
        "A file of your own synonyms does as well: --synonyms FILE."
    )
