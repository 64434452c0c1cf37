"""What CI runs, one target each: ``nox`` runs all of them in this environment, ``nox -s tests`` one."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.options.sessions = ["lint", "types", "layers", "docs", "wheel", "tests", "oldest"]
nox.options.default_venv_backend = "none"  # an environment is 7 GB; .ci/run makes one for all targets

# The lowest end of the supported ranges, laid over the environment; encoders are tested against the newest.
OLDEST = (
    *("transformers==5.0.0", "tokenizers==0.22.1", "huggingface-hub==1.3.0", "datasets==4.0.0"),
    "pydantic-settings==2.4.0",
)
OLDEST_TESTS = ("tests/core", "tests/cli", "tests/scoring/test_compare.py", "tests/data/test_study.py")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and formatting, and the workflows by their schema."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    workflows = [str(path) for path in sorted(Path(".github/workflows").glob("*.yml"))]
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)


@nox.session
def types(session: nox.Session) -> None:
    """Check types."""
    session.run("mypy")


@nox.session
def layers(session: nox.Session) -> None:
    """Check that every package imports from lower layers only."""
    session.run("lint-imports")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the docs site; a broken link is an error."""
    with tempfile.TemporaryDirectory() as site:
        session.run("mkdocs", "build", "--strict", "--quiet", "--site-dir", site)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build the wheel, and check what an installation of it holds."""
    with tempfile.TemporaryDirectory() as folder:
        session.run("python", "-m", "build", "--wheel", "--outdir", folder, ".", silent=True)
        (built,) = Path(folder).glob("*.whl")
        session.run("python", ".ci/check_wheel.py", str(built), f"{folder}/environment")


@nox.session
def tests(session: nox.Session) -> None:
    """Run the suite."""
    session.run("pytest", "-n", "auto", "--dist", "loadfile", *session.posargs)


@nox.session
def oldest(session: nox.Session) -> None:
    """Run a part of the suite with the oldest supported transformers and datasets."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            session.run("pip", "install", "--quiet", "--no-deps", "--target", folder, *OLDEST)
        except CommandFailed:
            session.skip("they do not install here")
        session.run("pytest", "--quiet", *OLDEST_TESTS, env={"PYTHONPATH": folder})


@nox.session
def coverage(session: nox.Session) -> None:
    """Run the suite, and list the files of which less than 85 % of the lines run; not part of CI."""
    session.run("coverage", "erase")
    session.run("coverage", "run", "-m", "pytest", "-n", "auto", "--dist", "loadfile", *session.posargs)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report", "--sort=cover", "--skip-covered")
