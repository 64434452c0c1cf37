"""EMI and EMID of a model while it is trained: a callback of transformers' Trainer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from lmms_eval_emi.data.images import open_image, to_rgb
from lmms_eval_emi.data.rows import Sample, image_roots, to_samples
from lmms_eval_emi.data.study import Study, load_study
from lmms_eval_emi.errors import InputError
from lmms_eval_emi.scoring.join import StudySamples, add_rows, chosen_splits
from lmms_eval_emi.scoring.pipeline import score_samples
from lmms_eval_emi.settings import Settings, load_settings
from lmms_eval_emi.shifts.at_load import load_splits

if TYPE_CHECKING:
    from PIL import Image
    from transformers import Trainer

log = logging.getLogger("lmms_eval_emi")

Respond = Callable[[torch.nn.Module, "Image.Image | None", str], str]


class EMICallback(TrainerCallback):  # type: ignore[misc]
    """Callback of transformers' Trainer that scores the model in training on a study, at intervals and without a second copy.

    Scores are logged where the trainer logs, as ``emi/{split}`` and ``emid/{split}`` (with the estimator's name behind a
    further stroke if there are several). Encoders run where the settings say; on the GPU of the training they share its
    memory. Ranks other than 0 wait.

    Args:
        study: a name, a study file, or a study.
        respond: function that returns the model's response to an image (RGB, or ``None``) and a question; it is called in evaluation
            mode and without gradients.
        every: steps between two scores.
        splits: splits to score in addition to the ID split; default: all.
        rows: rows of each split, the first ones; default: all.
        estimators: names or files.
        settings: default: those of the environment, without permutation tests.

    Raises:
        InputError: ``every`` or ``rows`` is below 1.
        StudyError: the study or one of its datasets is not there.

    >>> callback = EMICallback("natural", respond, every=500)  # doctest: +SKIP
    >>> callback.attach(trainer)  # doctest: +SKIP
    """

    def __init__(
        self,
        study: str | Study,
        respond: Respond,
        *,
        every: int,
        splits: Sequence[str] = (),
        rows: int | None = None,
        estimators: Sequence[str] = ("reference-r2", "cosine"),
        settings: Settings | None = None,
    ) -> None:
        for name, value in (("every", every), ("rows", rows)):
            if value is not None and value < 1:
                raise InputError(f"{name}: expected at least 1, got {value}.")
        self.study = study if isinstance(study, Study) else load_study(study)
        self.respond, self.every, self.rows = respond, every, rows
        self.estimators = tuple(estimators)
        self.settings = settings or load_settings(resamples=0)
        names = chosen_splits(self.study, splits)
        loaded = load_splits(self.study, names, self.settings)
        self._rows = {name: split.select(range(min(len(split), rows or len(split)))) for name, split in loaded.items()}
        self._trainer: Trainer | None = None

    def attach(self, trainer: Trainer) -> None:
        """Add the callback to a trainer, whose log gets the scores."""
        self._trainer = trainer
        trainer.add_callback(self)

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Score the model if this step is one of those."""
        if model is None or state.global_step % self.every:
            return
        if state.is_world_process_zero:
            found = self.score(model)
            log.info(
                "step %d: %s", state.global_step, ", ".join(f"{name} {value:.4g}" for name, value in found.items())
            )
            if self._trainer is not None:
                self._trainer.log(found)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.barrier()

    def score(self, model: torch.nn.Module) -> Mapping[str, float]:
        """Return the scores of a model by the names under which they are logged; its weights and mode are unchanged."""
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                entry = StudySamples(self.study, type(model).__name__)
                for name, rows in self._rows.items():
                    by_row = {sample.row or 0: self._response(model, sample) for sample in self._asked(name)}
                    add_rows(entry, name, rows, by_row, self.settings)
        finally:
            model.train(training)
        found: dict[str, float] = {}
        for scored in score_samples([entry], self.settings, estimators=self.estimators, allow_missing=True):
            behind = f"/{scored.result.estimator.partition('@')[0]}" if len(self.estimators) > 1 else ""
            for name, split in scored.result.splits.items():
                found[f"emi/{name}{behind}"] = split.emi
                if split.emid is not None:
                    found[f"emid/{name}{behind}"] = split.emid
        return found

    def _asked(self, name: str) -> list[Sample]:
        """Return the rows of a split with their images and questions, and no response yet."""
        rows, spec = self._rows[name], self.study.split(name).dataset
        roots = image_roots(self.study, spec, self.settings.images)
        return to_samples(rows, spec.columns, dict.fromkeys(range(len(rows)), ""), roots, {})

    def _response(self, model: torch.nn.Module, sample: Sample) -> str:
        image = to_rgb(open_image(sample.image)) if sample.image is not None else None
        return self.respond(model, image, sample.question)
