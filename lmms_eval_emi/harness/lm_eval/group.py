"""A group of shifts in lm_eval, with our means and their errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lm_eval.api.group import Group
from lm_eval.config.group import AggMetricConfig
from lm_eval.tasks import TaskManager

from lmms_eval_emi.harness.common import group_scores
from lmms_eval_emi.harness.lm_eval.run import current_run

METRICS = ("emi", "emid", "emid_bound")


class StudyGroup(Group):  # type: ignore[misc]
    """Shows means over its shifts. lm_eval's own would take the shifts, which share the ID split, for independent.

    Args:
        config: fields of the group's YAML file; its metadata names members, studies and modality.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        metadata = dict(config["metadata"])
        super().__init__(
            name=config["task"],
            metadata=metadata,
            aggregate_metric_list=[AggMetricConfig(metric) for metric in METRICS],
        )
        fields = ("emi_members", "emi_studies", "emi_modality", "version", "config_source")
        given = {key: value for key, value in metadata.items() if key not in fields}
        folder = str(Path(metadata["config_source"]).parent)
        manager = TaskManager(include_path=folder, include_defaults=False, metadata=given)
        for task in manager.load(list(metadata["emi_members"]))["tasks"].values():
            self.add(task)

    def aggregate(self, task_metrics: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Return the group's row of the table, from the results of our run.

        Args:
            task_metrics: metrics of all tasks by name, after every one was aggregated.
        """
        for name in self.child_names:  # an error of the error, which lm_eval adds
            for key in [key for key in task_metrics.get(name, {}) if "_stderr_stderr," in key]:
                del task_metrics[name][key]
        run, metadata = current_run(), self.metadata or {}
        results = [(run.results or {}).get(study) for study in metadata["emi_studies"]] if run else []
        scores = group_scores([result for result in results if result], metadata["emi_modality"])
        rows = sum(int(task_metrics.get(name, {}).get("sample_len", 0)) for name in self.child_names)
        found: dict[str, Any] = {"alias": self.name, "name": self.name, "sample_len": rows}
        for name, value in scores.items():
            if name.removesuffix("_stderr") in METRICS:
                found[f"{name},none"] = "N/A" if value is None else float(value)
        return found
