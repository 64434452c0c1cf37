"""One split as a task of lm_eval."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import datasets
from lm_eval.api.task import ConfigurableTask

from lmms_eval_emi.data.rows import with_encoded_images
from lmms_eval_emi.data.study import Study, load_study
from lmms_eval_emi.harness.common import image_of, with_suffix
from lmms_eval_emi.harness.lm_eval.run import Item, OwnTask, Run, enrol, write_results_beside
from lmms_eval_emi.shifts.at_load import load_splits

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger("lmms_eval_emi")
ROW = "emi_row"
METRICS = {"emi": True, "emid": False, "emid_bound": False}  # name: whether higher is better
# A second metric of this name takes the place of lm_eval's standard error, which custom metrics do not have.
ERRORS = {f"{name}_stderr": name for name in METRICS}
PREDICT_ONLY = "bypass"
write_results_beside()


@lru_cache(maxsize=4)
def _load(source: str) -> tuple[Study, dict[str, datasets.Dataset]]:
    """Return a study and the rows of its splits, which its tasks share."""
    study = load_study(source)
    return study, load_splits(study)


class SplitTask(ConfigurableTask):  # type: ignore[misc]
    """Asks a model for the responses of a split, and scores them with those of the study's other splits.

    Args:
        config: fields of the task's YAML file; its metadata names study and split, and has lm_eval's model arguments.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        metadata = config["metadata"]
        self.study, self._rows = _load(metadata["emi_study"])
        self.split = metadata["emi_split"]
        self.model = str(metadata.get("pretrained") or metadata.get("model") or "model")
        self.run: Run | None = None
        self._chat = False
        self._documents: datasets.Dataset | None = None
        self._images: dict[bytes, Image.Image] = {}
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **more: Any) -> None:
        """Take the rows that the study's tasks share; nothing is downloaded once for each task."""
        self.dataset = self._rows

    def test_docs(self) -> datasets.Dataset:
        """Return the rows with their numbers, and with images as they are stored."""
        if self._documents is None:
            rows = self._rows[self.split]
            rows = with_encoded_images(rows, self.study.split(self.split).dataset.columns.image)
            self._documents = rows.add_column(ROW, list(range(len(rows))))
        return self._documents

    def fewshot_docs(self) -> None:
        """Return nothing: lm_eval would decode the image of each row to choose examples from."""

    def doc_to_text(self, doc: dict[str, Any], doc_to_text: Any = None) -> str:
        """Return the prompt: the image first, then the question, with the line break that the model's template lacks."""
        spec = self.study.split(self.split)
        question = with_suffix(doc[spec.dataset.columns.question], spec.prompt_suffix or "")
        return f"<image>{'' if self._chat else chr(10)}{question}"

    def doc_to_target(self, doc: dict[str, Any], doc_to_target: Any = None) -> str:
        """Return the reference."""
        return doc[self.study.split(self.split).dataset.columns.reference]

    def doc_to_image(self, doc: dict[str, Any], doc_to_image: Any = None) -> list[Image.Image]:
        """Return the row's image; equal ones are one object, for lm_eval keeps all of them until the end."""
        image = image_of(self.study, self.split, doc)
        if image is None:
            return []
        key = hashlib.sha256(repr(image.size).encode() + image.tobytes()).digest()
        return [self._images.setdefault(key, image)]

    def build_all_requests(self, **options: Any) -> None:
        """Enrol in the run, and build the requests."""
        self._chat = bool(options.get("apply_chat_template"))
        if not self._chat and self.split == self.study.id_split:
            log.warning("without --apply_chat_template the model gets the bare question, as no model was trained for.")
        self.run = enrol(self.task_name, self.model, OwnTask(self.study, self.split, self._rows[self.split]))
        super().build_all_requests(**options)

    def process_results(self, doc: dict[str, Any], results: list[Any]) -> dict[str, Any]:
        """Return the row's value of every metric; EMID and index only where the ID split runs too."""
        if PREDICT_ONLY in self._metric_fn_list or self.run is None:
            return super().process_results(doc, results)
        self.run.answered = True
        row, response = int(doc[ROW]), str(results[0]) if results else ""
        self.run.tasks[self.task_name].responses.setdefault(row, response)
        names = ["emi", "emi_stderr"]
        if self.split != self.study.id_split and self.run.has_id_split(self.study):
            names = [*(name for metric in ("emi", "emid") for name in (metric, f"{metric}_stderr")), "emid_bound"]
        content = {"row": row, "response": response}
        return {name: Item.of(self.task_name, row, name, content if name == "emi" else {"row": row}) for name in names}

    def aggregation(self) -> dict[str, Callable[..., Any]]:
        """Return the aggregation function of each metric."""
        if PREDICT_ONLY in self._metric_fn_list or self.run is None:
            return super().aggregation()
        return {name: self._value_of(name) for name in (*METRICS, *ERRORS)}

    def _value_of(self, name: str) -> Callable[..., Any]:
        def value(items: list[Item]) -> float | str:
            scores = self.run.score(self.task_name) if self.run else None
            found = getattr(scores, name, None)
            return "N/A" if found is None else float(found)

        return value

    def higher_is_better(self) -> dict[str, bool]:
        """Return whether higher is better, by metric."""
        return super().higher_is_better() if PREDICT_ONLY in self._metric_fn_list else dict(METRICS)

    def dump_config(self) -> dict[str, Any]:
        """Return the task's configuration, with all scores of its split for lm_eval's own results file."""
        found = super().dump_config()
        scores = self.run.score(self.task_name) if self.run and self.run.answered else None
        return found | ({"emi": scores.to_data()} if scores else {})
