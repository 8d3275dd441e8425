"""``python -m tasks run SPEC_URL``: run one shard, with events as JSON lines on standard output.

Exit codes: 0 finished, 2 the input can't be used, 75 a fault that may pass (or the process was told to end),
1 a bug.

``python -m tasks verify STORE``: compare all that a store holds with its checksums. Exit codes: 0 whole, or repaired;
1 damaged; 2 and 75 as above.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import traceback
from collections.abc import Mapping

from tasks.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, EXIT_TRANSIENT, shown
from tasks.fork_server import serve
from tasks.places.arguments import Parser, location
from tasks.places.credentials import hidden
from tasks.progress import EventHandler, Report, take_stdout
from tasks.termination import Terminated, end_with_parent, handle_termination, ignore_termination

EXIT_DAMAGED = EXIT_FAILED
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
SPINS = "1000"
"""How often an idle thread looks for work before it sleeps: what GNU's OpenMP takes itself where there are more threads
than processors. Its usual 300,000 burn most of a machine that has other work, too."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.command == "fork-server":
        os.environ |= thread_settings(options.threads, os.environ)
        serve(options.socket, main)
        return EXIT_OK
    if options.command == "verify":
        return _verify(options.store, repair=options.repair)
    report = take_stdout()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    ours = logging.getLogger("tomograph")
    ours.setLevel(logging.INFO)
    ours.addHandler(EventHandler(report))
    logging.getLogger("huggingface_hub").addHandler(EventHandler(report))  # says what it waits for
    os.environ |= thread_settings(options.threads, os.environ)  # before the libraries that read them are loaded
    handle_termination(EXIT_TRANSIENT)
    if options.exit_with_parent:
        end_with_parent()
    try:
        _run(options, report)
    except (Exception, Terminated, KeyboardInterrupt) as error:
        ignore_termination()
        return failure_of(error, report)
    return EXIT_OK


def thread_settings(threads: int | None, environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables for so many threads (None: as the libraries choose); how they wait is the user's to say."""
    counts = {} if threads is None else dict.fromkeys(THREAD_VARIABLES, str(threads))
    chosen = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(environment)
    return counts if chosen else counts | {"GOMP_SPINCOUNT": SPINS}


def _run(options: argparse.Namespace, report: Report) -> None:
    from tasks.artifacts.catalog import load_spec, split_spec_url
    from tasks.artifacts.store import Store
    from tasks.context import Runtime
    from tasks.runner import run_shard

    root, shard = split_spec_url(options.spec)
    store = Store(root)
    runtime = Runtime(options.device, options.batch_size, options.threads)
    run_shard(store, load_spec(store, shard), runtime, report)


def _verify(url: str, *, repair: bool) -> int:
    """Say what is damaged, in lines; EXIT_DAMAGED if anything is, and stays."""
    from tasks.artifacts import verify
    from tasks.artifacts.store import Store
    from tasks.errors import BadInput, TransientError

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    try:
        store = Store(url)
        found = verify.verify(store, say)
        for one in found:
            print(f"{one.shard}/{one.name}\t{one.problem}")
        if not found:
            say("every object is what its manifest promises")
            return EXIT_OK
        if not repair:
            say(f"{len(found)} damaged; --repair removes them, and running the study again computes them anew")
            return EXIT_DAMAGED
        verify.repair(store, found)
        say(f"{len(found)} removed; run the study again: it computes them anew, and nothing else")
        return EXIT_OK
    except BadInput as error:
        say(str(error))
        return EXIT_BAD_INPUT
    except TransientError as error:
        say(f"{error}; try again")
        return EXIT_TRANSIENT


def failure_of(error: BaseException, report: Report) -> int:
    """Report why a shard failed. Returns the exit code."""
    from tasks.artifacts.retry import is_transient
    from tasks.errors import BadInput

    if isinstance(error, BadInput):
        kind, code = "bad_input", EXIT_BAD_INPUT
    elif isinstance(error, Terminated | KeyboardInterrupt) or is_transient(error):
        kind, code = "transient", EXIT_TRANSIENT
    else:
        kind, code = "bug", EXIT_FAILED
    message = hidden(str(error)) or type(error).__name__
    trace = hidden("".join(traceback.format_exception(error)))
    field = error.field if isinstance(error, BadInput) else None
    report({"event": "failed", "kind": kind, "field": field, "message": message, "traceback": trace})
    return code


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m tasks",
        description="Run one shard, or check what a store holds.",
        epilog="Exit statuses: 0 finished; 1 a bug, or damage was found; 2 the input can't be used; 75 a fault that "
        "may pass, or it was told to end.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    verify = commands.add_parser("verify", help="read every object of a store and compare it with its checksum")
    verify.add_argument("store", metavar="STORE", type=location, help="folder or URL, as given to --store")
    verify.add_argument("--repair", action="store_true", help="remove what is damaged, so that it is computed anew")
    run = commands.add_parser("run", help="run the shard of a spec")
    run.add_argument("spec", metavar="SPEC_URL", type=location, help="STORE/shards/<task>/<hash>/spec.json")
    run.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)", type=_device)
    run.add_argument("--batch-size", type=_positive, metavar="N", help="sequences in one forward pass")
    run.add_argument("--threads", type=_positive, metavar="N", help="CPU threads")
    run.add_argument("--exit-with-parent", action="store_true", help="end when standard input is closed")
    forks = commands.add_parser("fork-server", help="fork for each shard that a flow asks for; started by flows")
    forks.add_argument("socket", type=int, help="number of an open Unix socket")
    forks.add_argument(
        "--store", metavar="STORE", type=location, help="of the shards; for those who look at the list of processes"
    )
    forks.add_argument("--threads", type=_positive, metavar="N", help="CPU threads of each shard")
    return parser


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{shown(text)} is no device; use cpu, cuda or cuda:N")
    return text


def _positive(text: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no whole number from 1 to 999,999")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
