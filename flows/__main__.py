"""``python -m flows``: run a flow with live progress, serve all of them with Prefect's UI, or deploy them."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from flows.holders import log_file
from flows.server import (
    DEFAULT_PORT,
    NO_TELEMETRY,
    QUIET_CONSOLE,
    ServerFailed,
    answers,
    running_api_url,
    started_api,
)
from tasks.errors import EXIT_INTERRUPTED, EXITS, BadInput, shown
from tasks.places.arguments import Parser, location

if TYPE_CHECKING:
    from prefect import Flow

FLOWS = {
    "patching": "which SAE features cause a behaviour, and which words do they add or remove?",
    "outliers": "which hidden dimensions are systematic outliers, in a model or across a sweep of models?",
}
DEFAULT_STORE = "runs/store"
DEFAULT_REPORTS_PORT = 4201


def main(arguments: Sequence[str]) -> int:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    console = Console(stderr=True)
    try:
        if options.command == "serve":
            parser.parse_args(arguments)  # refuses what it doesn't know
            return _serve(console, options)
        if options.command == "deploy":
            parser.parse_args(arguments)
            return _deploy(console, options)
        if options.command == "gpus":
            parser.parse_args(arguments)
            return _gpus()
        return _run(options.command, rest, console)
    except KeyboardInterrupt:
        console.print("[yellow]interrupted[/]; finished work is kept, the same command goes on from there")
        return EXIT_INTERRUPTED
    except Exception as error:
        if (status := getattr(error, "exit_status", None)) is None:
            raise  # a bug
        _tell(console, error)
        return status


def _port(text: str) -> int:
    if not re.fullmatch("[0-9]{1,5}", text) or not 0 <= int(text) < 2**16:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no port; use a number up to 65535")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m flows", description="Run a flow here, or serve all of them.", epilog=EXITS)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, question in FLOWS.items():
        commands.add_parser(name, help=question, add_help=False)
    serving = commands.add_parser("serve", help="Prefect's UI with forms for all flows, a worker and the reports")
    serving.add_argument("--port", type=_port, default=DEFAULT_PORT, help="of the Prefect UI (default: %(default)s)")
    serving.add_argument(
        "--reports-port", type=_port, default=DEFAULT_REPORTS_PORT, help="of the report pages (default: %(default)s)"
    )
    serving.add_argument(
        "--store",
        type=location,
        default=DEFAULT_STORE,
        help="local folder whose reports are shown (default: %(default)s)",
    )
    deploying = commands.add_parser("deploy", help="make or update work pools, variables and deployments on a server")
    deploying.add_argument("--pool", action="append", default=[], help="only this work pool; may be given again")
    deploying.add_argument(
        "--name", action="append", default=[], help="only deployments of this name; may be given again"
    )
    deploying.add_argument("--image", help="image of the flows in a cluster (default: TOMOGRAPH_FLOWS_IMAGE)")
    deploying.add_argument("--store", metavar="URL", type=location, help="where deployments keep results")
    deploying.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME",
        help="environment variable, such as AWS_SECRET_ACCESS_KEY, to keep on the server for flows of the process "
        "pool; may be given again",
    )
    deploying.add_argument(
        "--prune", action="store_true", help="delete deployments of these pools that prefect.yaml no longer has"
    )
    commands.add_parser("gpus", help="the GPUs of this machine, and which flow and shard has each")
    return parser


def _tell(console: Console, error: Exception) -> None:
    """As it is: the terminal folds it, so that a path in it can be copied whole."""
    console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)


def _serve(console: Console, options: argparse.Namespace) -> int:
    from flows.serve import serve
    from tasks.places.opening import LOCAL, local_path, scheme_of

    if scheme_of(options.store) not in LOCAL:
        raise BadInput(
            "--store", options.store, "is no folder of this machine", "reports elsewhere open where they are"
        )
    serve(console, options.port, options.reports_port, Path(local_path(options.store)) / "reports")
    return 0


def _deploy(console: Console, options: argparse.Namespace) -> int:
    api_url = running_api_url()
    if api_url is None:
        raise ServerFailed("no Prefect server is known; set PREFECT_API_URL, or start one: prefect server start")
    for name, value in {**NO_TELEMETRY, **QUIET_CONSOLE}.items():
        os.environ.setdefault(name, value)
    os.environ["PREFECT_API_URL"] = api_url  # before Prefect reads it

    from flows.deploy import deploy

    chosen = {
        "image": options.image,
        "store": options.store,
        "secrets": options.secret,
        "names": options.name,
        "prune": options.prune,
    }
    asyncio.run(deploy(console, options.pool, **chosen))
    return 0


def _gpus() -> int:
    from flows.dead_runs import dead_runs
    from flows.gpus import slot_rows, terminal_table

    if dead_runs() and (api_url := running_api_url()) and answers(api_url):
        os.environ["PREFECT_API_URL"] = api_url
        from flows.dead_runs import close_dead_runs

        asyncio.run(close_dead_runs())
    if rows := slot_rows():
        Console().print(terminal_table(rows))
    else:
        Console().print("no GPU (nvidia-smi shows none), and no place on the CPU is in use")
    return 0


def _run(name: str, arguments: Sequence[str], console: Console) -> int:
    """Run a flow. The server, if one has to be started, gets ready while the flow is imported."""
    if {"-h", "--help"} & set(arguments):
        _parse(name, arguments)
    with started_api(log_file()) as server:
        from prefect.exceptions import TerminationSignal

        from flows.terminal import shown

        try:
            flow, parameters = _parse(name, arguments)
            if server:
                server.wait()
            with shown(console):
                outcome = asyncio.run(flow(**parameters))
        except TerminationSignal:  # SIGTERM, to Prefect
            raise KeyboardInterrupt from None
    outcome.print(Console())
    return 0


def _parse(name: str, arguments: Sequence[str]) -> tuple[Flow[..., Any], dict[str, Any]]:
    from flows.cli import parse

    flow = getattr(importlib.import_module(f"flows.{name}"), name)
    return flow, parse(flow, arguments, f"python -m flows {name}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
