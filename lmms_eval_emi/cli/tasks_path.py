"""``lmms-eval-emi tasks path``: the folder of the tasks, for a harness that has to be told."""

from __future__ import annotations

import argparse

from lmms_eval_emi.cli.options import add_settings, new_parser, settings_of
from lmms_eval_emi.errors import InputError


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = new_parser(
        prog,
        description="Print the folder of the task files of a harness. lmms-eval finds its tasks by itself; lm_eval is told by --include_path.",
        examples=(
            "lmms-eval-emi tasks path --harness lm-eval",
            'lm_eval --model hf-multimodal --model_args pretrained=llava-hf/llava-1.5-7b-hf --apply_chat_template --include_path "$(lmms-eval-emi tasks path --harness lm-eval)" --tasks llavabench_shift_natural',
        ),
    )
    parser.add_argument("--harness", choices=("lmms-eval", "lm-eval"), default="lmms-eval", help="default: %(default)s")
    parser.add_argument(
        "--study",
        action="append",
        default=[],
        metavar="STUDY",
        help="built-in name or study file, may be repeated, for lm-eval; default: the built-in studies",
    )
    add_settings(parser, "cache")
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the folder of a harness's task files; that of lm-eval is written first."""
    if args.harness == "lm-eval":
        from lmms_eval_emi.harness.lm_eval.write_tasks import write_task_folder

        print(write_task_folder(settings_of(args), args.study))
        return 0
    if args.study:
        raise InputError("--study: expected --harness lm-eval with it; for lmms-eval: lmms-eval-emi tasks write.")
    from lmms_eval_emi.harness.lmms_eval.compat.task_index import tasks_folder

    print(tasks_folder())
    return 0
