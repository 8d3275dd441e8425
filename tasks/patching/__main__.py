"""``python -m tasks.patching try SCENARIO``: a scenario on a model, in seconds and without SAEs.

Exit codes: 0 a study would take the scenario; 2 it would refuse it, or the input can't be used; 75 a fault that may
pass.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import get_args

from pydantic import ValidationError

from tasks.errors import BadInput, TransientError
from tasks.models.spec import Dtype, ModelRef
from tasks.patching.spec import ScenarioRef, StudySettings, TrialSettings
from tasks.places.arguments import Parser, location

EXIT_OK, EXIT_BAD_INPUT, EXIT_TRANSIENT, EXIT_INTERRUPTED = 0, 2, os.EX_TEMPFAIL, 130


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        settings = _settings(options)
        from transformers.utils import logging

        from tasks.patching.try_scenario import try_scenario

        logging.disable_progress_bar()  # of the weights: they are there in a second
        try_scenario(settings, options.device, lambda line: print(line, flush=True))
    except BadInput as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    except TransientError as error:
        print(f"{error}; try again", file=sys.stderr)
        return EXIT_TRANSIENT
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    print("a study would take this scenario")
    return EXIT_OK


def _settings(options: argparse.Namespace) -> StudySettings:
    """What a study of the same flags would go by. BadInput naming what is wrong."""
    given = {
        "model": {name: getattr(options, name) for name in ("revision", "adapter", "dtype")}
        | {"source": options.model},
        "scenario": {"source": options.scenario, "min_choice_mass": options.min_choice_mass},
        "trials": {name: getattr(options, name) for name in ("temperature", "top_p", "max_new_tokens")}
        | {"trials_per_cell": 1, "baseline_trials": 1},
        "confirm": {"enabled": False},
        "seed": options.seed,
    }
    try:
        return StudySettings.model_validate(given)
    except ValidationError as error:
        raise BadInput.from_validation(error, "study") from error


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m tasks.patching", description="Patching studies, without a flow.")
    trying = parser.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "try",
        help="a scenario on a model, in seconds",
        description="For each prompt: the text and tokens that the model reads, the most probable next tokens, the "
        "mass of the choices, and sampled answers as the parser reads them, the same that a study's baseline begins "
        "with.",
        epilog="Exit codes: 0 a study would take the scenario; 2 it would refuse it, or the input can't be used; 75 a "
        "fault that may pass.",
    )
    model, scenario, trials = ModelRef(), ScenarioRef(), TrialSettings()
    trying.add_argument(
        "scenario", metavar="SCENARIO", type=location, help="built-in scenario, or path or URL of a YAML file"
    )
    trying.add_argument(
        "--model",
        type=location,
        default=model.source,
        help="Hugging Face id, folder, URL or .gguf file (default: %(default)s)",
    )
    trying.add_argument("--revision", help="branch, tag or commit of a Hugging Face id")
    trying.add_argument("--adapter", type=location, help="LoRA adapter to merge into the model")
    trying.add_argument("--dtype", choices=get_args(Dtype), default=model.dtype, help="(default: %(default)s)")
    trying.add_argument("--temperature", type=float, default=trials.temperature, help="(default: %(default)s)")
    trying.add_argument("--top-p", type=float, default=trials.top_p, help="(default: %(default)s)")
    trying.add_argument(
        "--max-new-tokens", type=int, default=trials.max_new_tokens, help="of an answer (default: %(default)s)"
    )
    trying.add_argument(
        "--min-choice-mass",
        type=float,
        default=scenario.min_choice_mass,
        help="below this mass of its choices a scenario is refused; 0 lets every one through (default: %(default)s)",
    )
    trying.add_argument("--seed", type=int, default=0, help="run seed of the answers (default: %(default)s)")
    trying.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
