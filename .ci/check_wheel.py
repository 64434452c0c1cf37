"""Install a wheel in an environment of its own, and check there that it holds tasks, estimators and the demo.

    python .ci/check_wheel.py WHEEL ENVIRONMENT

The environment takes the dependencies (gigabytes) from this one; the package itself only from the wheel.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

CHECK = """
import sys
from pathlib import Path
import lmms_eval_emi
from lmms_eval_emi.cli.demo import ASSETS
from lmms_eval_emi.encoders import load_encoders
from lmms_eval_emi.estimators import load_estimator, registered_estimators
from lmms_eval_emi.harness.lmms_eval.compat import tasks_folder
from lmms_eval_emi.harness.lmms_eval.write_tasks import package_task_files
from lmms_eval_emi.data.responses import formats
from lmms_eval_emi.shifts import operators
from lmms_eval_emi.data.study import BUILT_IN, BUNDLED, load_study
from lmms_eval_emi.data.rows import load_splits
from lmms_eval_emi.report.page import to_html
from lmms_eval_emi.schemas import load_schema, schema_names
from lmms_eval_emi.data.suites import load_suite, suite_names
import lmms_eval.evaluator
from lmms_eval.tasks import TaskManager

home = Path(lmms_eval_emi.__file__).resolve().parent
assert Path(sys.prefix).resolve() in home.parents, f"imported from {home}, not from the wheel"
studies = [load_study(name) for name in (*BUILT_IN, *BUNDLED)]
names = {study.task_name(split) for study in studies for split in study.splits}
index = TaskManager().task_index
assert len(names) == 63 + 13 and all(home in Path(index[name]["yaml_path"]).resolve().parents for name in names)
missing = [path for path in package_task_files() if not (tasks_folder() / "llavabench_shift" / path).is_file()]
assert not missing, missing
assert "club-global" in registered_estimators()
encoders = load_encoders(str(ASSETS / "vision_encoder"), str(ASSETS / "text_encoder"), "cpu")
assert load_estimator("demo", encoders) and (ASSETS / "model" / "model.safetensors").is_file()
assert len(load_splits(load_study("demo"), ["clean", "fog_5_synonym_7"])["fog_5_synonym_7"]) == 90
assert len(load_splits(load_study("demo"), ["fresh"])["fresh"]) == 90
assert len(formats()) == 2
assert len(operators("visual")) == 21 and len(operators("text")) == 16
assert len([load_suite(name) for name in suite_names()]) == 10 and len([load_schema(name) for name in schema_names()]) == 9
page = to_html([])
assert "<style>" in page and page.count("<script") == 3
print(f"the wheel has {len(names)} tasks and the estimators {', '.join(registered_estimators())}")
"""


def main(wheel: Path, environment: Path) -> None:
    """Make the environment, install the wheel, run the check."""
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    (packages,) = (environment / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([python, "-c", CHECK], check=True, cwd=environment)
    subprocess.run([environment / "bin" / "lmms-eval-emi", "tasks", "--path"], check=True, cwd=environment)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
