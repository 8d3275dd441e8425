"""``python -m tasks.outliers``: result files of the old layout, which stored every occurrence.

``convert OLD [NEW]`` writes one in the new layout, ``compare OLD NEW`` checks that two say the same.

Exit codes: 0 done, or the same; 1 something was lost or differs; 2 the input can't be used; 75 a fault that may pass;
130 interrupted.
"""

from __future__ import annotations

import argparse
import logging
import sys

from tasks.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_TRANSIENT, EXPLAINED, shown
from tasks.outliers.compare import SIZE_RATIO, compare
from tasks.outliers.convert import check_target, convert, default_target, write
from tasks.outliers.old.tally import Shares
from tasks.outliers.spec import Criteria
from tasks.places.arguments import Parser, location

EXIT_DIFFERS = EXIT_FAILED


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    try:
        return options.run(options)
    except EXPLAINED as error:
        _say(f"{error}; try again" if error.exit_status == EXIT_TRANSIENT else str(error))
        return error.exit_status
    except KeyboardInterrupt:
        _say("stopped; nothing was written")
        return EXIT_INTERRUPTED


def _convert(options: argparse.Namespace) -> int:
    new = options.new or default_target(options.old)
    check_target(options.old, new, force=options.force)
    document, said = convert(options.old, Shares(options.layer_share, options.position_share), _say)
    size = write(document, new)
    for heading, lines in (("lost", said.lost), ("differs", said.differing), ("note", said.notes)):
        for line in lines:
            _say(f"{heading}: {line}")
    records, batches = document["all_systematic_outliers"], document["batch_results"]
    share = size / document["converted_from"]["text_bytes"]
    print(f"{new}: {len(records)} records of {len(batches)} batches; {size} bytes, {share:.2%} of the old text")
    return EXIT_DIFFERS if said.lost or said.differing else EXIT_OK


def _compare(options: argparse.Namespace) -> int:
    comparison = compare(options.old, options.new, _say, limit=options.size_ratio)
    print("\n".join(comparison.lines()))
    return EXIT_OK if comparison.same else EXIT_DIFFERS


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m tasks.outliers",
        description="Result files (final_analysis_results.json) of the old layout, which stored every occurrence.",
        epilog="Exit codes: 0 done, or the same; 1 something was lost or differs; 2 the input can't be used; "
        "75 a fault that may pass; 130 interrupted.",
    )
    commands = parser.add_subparsers(required=True)
    converting = commands.add_parser("convert", help="write a file of the old layout in the new one")
    converting.set_defaults(run=_convert)
    converting.add_argument(
        "old", metavar="OLD", type=location, help="path or URL of the old file; may be compressed, may be damaged"
    )
    converting.add_argument(
        "new", metavar="NEW", type=location, nargs="?", help="path or URL to write (default: beside OLD)"
    )
    converting.add_argument("--force", action="store_true", help="replace NEW if it is there")
    criteria = Criteria()
    for name in ("layer", "position"):
        default = getattr(criteria, f"{name}_share")
        what = f"share of {name}s that makes a dimension systematic, which old files do not record"
        converting.add_argument(
            f"--{name}-share", type=_share, default=default, metavar="S", help=f"{what} (default: {default})"
        )
    comparing = commands.add_parser("compare", help="check that two files, of either layout, say the same")
    comparing.set_defaults(run=_compare)
    comparing.add_argument("old", metavar="OLD", type=location, help="path or URL")
    comparing.add_argument("new", metavar="NEW", type=location, help="path or URL")
    comparing.add_argument(
        "--size-ratio",
        type=_share,
        default=SIZE_RATIO,
        metavar="R",
        help=f"a file of the new layout must be smaller than R times one of the old (default: {SIZE_RATIO})",
    )
    return parser


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no number above 0, up to 1")
    return share


if __name__ == "__main__":
    sys.exit(main())
