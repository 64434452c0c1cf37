"""Install a wheel in an environment of its own, and check there that it holds tasks, estimators and the demo.

    python .ci/check_wheel.py WHEEL ENVIRONMENT

The environment takes the dependencies (gigabytes) from this one; the package itself only from the wheel.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

CHECK = """
import sys
from pathlib import Path
import lmms_eval_emi
from lmms_eval_emi.cli.report import MODELS, load_model
from lmms_eval_emi.data.responses import formats
from lmms_eval_emi.data.study import BUILT_IN, BUNDLED, load_study
from lmms_eval_emi.data.suites import load_suite, suite_names
from lmms_eval_emi.encoders import load_encoders
from lmms_eval_emi.estimators import load_estimator, registered_estimators
from lmms_eval_emi.report.page import to_html
from lmms_eval_emi.shifts.at_load import load_splits
from lmms_eval_emi.shifts.operators import operators
from lmms_eval_emi.slices.demo.command import ASSETS
import lmms_eval.evaluator
from lmms_eval.tasks import TaskManager

home = Path(lmms_eval_emi.__file__).resolve().parent
assert Path(sys.prefix).resolve() in home.parents, f"imported from {home}, not from the wheel"
studies = [load_study(name) for name in (*BUILT_IN, *BUNDLED)]
names = {study.task_name(split) for study in studies for split in study.splits}
assert sum(len(load_study(name).splits) for name in BUILT_IN) == 63
index = TaskManager().task_index
assert all(home in Path(index[name]["yaml_path"]).resolve().parents for name in names)
assert "club-global" in registered_estimators()
encoders = load_encoders(str(ASSETS / "vision_encoder"), str(ASSETS / "text_encoder"), "cpu")
assert load_estimator("demo", encoders) and (ASSETS / "model" / "model.safetensors").is_file()
assert {len(rows) for rows in load_splits(load_study("demo"), ["clean", "fog_5_synonym_7", "fresh"]).values()} == {90}
assert formats() and operators("visual") and operators("text")
assert [load_suite(name) for name in suite_names()] and [load_model(name).model_json_schema() for name in MODELS]
assert "<style>" in to_html([])
print(f"the wheel has {len(names)} tasks and the estimators {', '.join(registered_estimators())}")
"""


def missing_files(wheel: Path) -> set[str]:
    """Files of the package that git tracks and the wheel lacks; tasks and estimators are links in the package."""
    listed = subprocess.run(
        ["git", "ls-files", "lmms_eval_emi", "tasks", "estimator_ckpt"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    tracked = {
        name for name in listed.stdout.splitlines() if not (ROOT / name).is_symlink() and not name.endswith(".md")
    }
    expected = {name if name.startswith("lmms_eval_emi/") else f"lmms_eval_emi/{name}" for name in tracked}
    return expected - set(zipfile.ZipFile(wheel).namelist())


def main(wheel: Path, environment: Path) -> None:
    """Make the environment, install the wheel, run the check."""
    missing = missing_files(wheel)
    assert not missing, f"the wheel lacks {sorted(missing)}"
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", wheel], check=True)
    (packages,) = (environment / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run([python, "-c", CHECK], check=True, cwd=environment)
    subprocess.run([environment / "bin" / "lmms-eval-emi", "tasks", "path"], check=True, cwd=environment)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve())
