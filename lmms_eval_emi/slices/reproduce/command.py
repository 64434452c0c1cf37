"""``lmms-eval-emi reproduce``: the published results, computed again."""

from __future__ import annotations

import argparse
from pathlib import Path

from lmms_eval_emi.cli.options import add_overwrite, add_settings, new_parser, settings_of
from lmms_eval_emi.data.study import BUILT_IN
from lmms_eval_emi.util.printing import table

MODELS = ("llava-v1.5-13b", "llava-v1.6-vicuna-13b")


def build_parser(prog: str) -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = new_parser(
        prog,
        examples=("lmms-eval-emi reproduce --output reproduced.json",),
        description="Fetch the published responses, datasets, encoders and estimator, score both families as the paper did, and print how far EMI, EMID, index and r are from the published ones. Exits with 0 where all are within the stated tolerances, and with 1 otherwise.",
    )
    parser.add_argument("--only-model", choices=MODELS, default=MODELS[0], help="whose results (default: %(default)s)")
    parser.add_argument(
        "--study", action="append", choices=BUILT_IN, help="only this family; may be repeated (default: both)"
    )
    parser.add_argument(
        "--responses",
        type=Path,
        metavar="DIR",
        help="folder of the published responses (default: fetched once into the cache)",
    )
    parser.add_argument(
        "--against",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="compare with this JSON of the published script, as from a run of your own; may be repeated",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write the deviations as JSON")
    add_overwrite(parser)
    add_settings(parser, "device", "batch_size")
    return parser


def run(args: argparse.Namespace) -> int:
    """Score the published responses, and print the deviations from the published scores."""
    from lmms_eval_emi.scoring.join import collect_samples
    from lmms_eval_emi.scoring.pipeline import score_samples
    from lmms_eval_emi.slices.reproduce import reproduction
    from lmms_eval_emi.util.files import check_output

    settings = reproduction.settings_of_the_paper(settings_of(args))
    if args.output:
        check_output(args.output, args.against, overwrite=args.overwrite, example="reproduction.json")
    studies = reproduction.families(args.study or BUILT_IN)
    published = [reproduction.published_of(args.only_model, study.name, args.against) for study in studies]
    folder = args.responses or reproduction.fetch_responses(settings.cache)
    pinned = [reproduction.is_published(folder, study, args.only_model) for study in studies]
    entries = [
        entry for study in studies for entry in collect_samples(study, [folder], settings, models=[args.only_model])
    ]
    scored = score_samples(entries, settings)
    found = [
        reproduction.compare(scored_study.result, known, pinned=sure)
        for scored_study, known, sure in zip(scored, published, pinned, strict=True)
    ]
    if args.output:
        reproduction.ReproductionDocument(reproductions=found).write(args.output)
    rows = [
        [
            family.study,
            deviation.score,
            deviation.count,
            f"{deviation.worst:.2g}",
            f"{deviation.mean:.2g}",
            f"{deviation.tolerance:g}",
            "pass" if deviation.passes else "FAIL",
            f"{deviation.published:.4g} and {deviation.ours:.4g}"
            + (f" ({deviation.where})" if deviation.where else ""),
        ]
        for family in found
        for deviation in family.deviations.values()
    ]
    headers = ["family", "score", "n", "worst", "mean", "tolerance", "", "published and ours, where it is worst"]
    print(
        f"{args.only_model}, {'published results' if not args.against else 'results of ' + ', '.join(map(str, args.against))}\n"
    )
    print(table(rows, headers))
    for family in found:
        if family.missing:
            print(f"{family.study}: not scored: {', '.join(family.missing)}")
    print("signatures\n  " + "\n  ".join(scored_study.result.signature for scored_study in scored))
    good = all(family.passes for family in found)
    print("PASS" if good else "FAIL")
    return 0 if good else 1
