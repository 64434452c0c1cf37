"""Install a wheel in an environment of its own, and check there that it holds tasks and estimators.

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
from lmms_eval_emi.estimators import registered_estimators
from lmms_eval_emi.harness.task_files import task_files, tasks_folder
from lmms_eval_emi.studies.catalogue import BUILT_IN, load_study
import lmms_eval.evaluator
from lmms_eval.tasks import TaskManager

home = Path(lmms_eval_emi.__file__).resolve().parent
assert Path(sys.prefix).resolve() in home.parents, f"imported from {home}, not from the wheel"
studies = [load_study(name) for name in BUILT_IN]
names = {study.task_name(split) for study in studies for split in study.splits}
index = TaskManager().task_index
assert len(names) == 63 and all(home in Path(index[name]["yaml_path"]).resolve().parents for name in names)
missing = [path for path in task_files(studies) if not (tasks_folder() / "llavabench_shift" / path).is_file()]
assert not missing, missing
assert "club-global" in registered_estimators()
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
