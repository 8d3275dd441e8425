"""The command line of a flow."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import FLOWS, main
from flows.cli import BadParameters, parse
from flows.outliers import outliers
from flows.outliers_plan import SweepModel
from flows.patching import DEFAULTS, EXECUTION, patching
from flows.server import free_port
from tasks.errors import EXIT_BAD_INPUT, BadInput
from tasks.patching.spec import TrialSettings
from tests.flows.fake_gpus import write_nvidia_smi
from tests.flows.processes import with_environment

REPOSITORY = Path(__file__).parents[2]


def parameters(*arguments: str) -> dict[str, object]:
    return parse(patching, arguments, "python -m flows patching")


def test_defaults_are_the_flows_own() -> None:
    given = parameters()
    assert given["trials"] == DEFAULTS.trials
    assert given["execution"] == EXECUTION
    assert given["store"] == "runs/store"


def test_a_flag_changes_one_field_of_its_group() -> None:
    given = parameters("--trials.trials_per_cell", "7", "--saes.layers", "[1, 2]", "--no-confirm.enabled")
    assert given["trials"] == DEFAULTS.trials.model_copy(update={"trials_per_cell": 7})
    assert given["saes"].layers == [1, 2]  # type: ignore[attr-defined]
    assert given["confirm"] == DEFAULTS.confirm.model_copy(update={"enabled": False})


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("trials: {trials_per_cell: 5, temperature: 0.5}\nseed: 3\n")
    given = parameters("--config", str(file), "--trials.trials_per_cell", "6")
    assert given["trials"] == TrialSettings.model_validate(
        DEFAULTS.trials.model_dump() | {"trials_per_cell": 6, "temperature": 0.5}
    )
    assert given["seed"] == 3


def test_a_mapping_in_the_file_replaces_a_mapping(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("saes: {kind: saelens, layers: [3], layer_locations: {3: a}}\n")
    assert parameters("--config", str(file))["saes"].layer_locations == {3: "a"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--trials.trials_per_cell", "0"],
            "trials.trials_per_cell = '0': can't be used; input should be greater than or equal to 1",
        ),
        (["--saes.kind", "saelens"], "saes: can't be used; kind saelens needs a location"),
        (
            ["--execution.device", "tpu"],
            "execution.device = 'tpu': can't be used; input should be 'auto', 'cpu' or 'cuda'",
        ),
        (["--seed", "x", "--verdict.alpha", "2"], "seed = 'x'"),
        (["--seed", "x", "--verdict.alpha", "2"], "verdict.alpha = '2'"),
    ],
)
def test_bad_values_name_their_field(arguments: list[str], says: str) -> None:
    with pytest.raises(BadParameters) as refused:
        parameters(*arguments)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [(None, "No such file"), ("- a\n", "holds no parameters"), ("a: [", "this is no YAML")],
)
def test_a_bad_file_is_named(tmp_path: Path, content: str | None, says: str) -> None:
    file = tmp_path / "study.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(BadInput, match=says):
        parameters("--config", str(file))


def test_unknown_names_in_the_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("trials: {trails_per_cell: 5}\n")
    with pytest.raises(BadParameters, match=r"trials.trails_per_cell = 5: there is no such field; remove it"):
        parameters("--config", str(file))


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows", *arguments],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )


def models(*arguments: str) -> object:
    return parse(outliers, arguments, "python -m flows outliers")["models"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--models", "org/a", "--models", "s3://bucket/b"],
        ["--models", "org/a,s3://bucket/b"],
        ["--models", '["org/a", {"source": "s3://bucket/b"}]'],
    ],
)
def test_models_of_a_sweep_are_sources_or_objects(arguments: list[str]) -> None:
    assert models(*arguments) == [SweepModel(source="org/a"), SweepModel(source="s3://bucket/b")]
    more = models("--models", "org/a", "--models", '{"source": "b", "gpus": 2, "dtype": "bfloat16"}')
    assert more == [SweepModel(source="org/a"), SweepModel(source="b", gpus=2, dtype="bfloat16")]


def test_a_file_lists_models_and_a_flag_replaces_them(tmp_path: Path) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text("models: [org/a, {source: b, name: B}]\n")
    assert models("--config", str(file)) == [SweepModel(source="org/a"), SweepModel(source="b", name="B")]
    assert models("--config", str(file), "--models", "c") == [SweepModel(source="c")]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--models", '{"source": "a", "gpus": 0}'],
            "models.0.gpus = 0: can't be used; input should be greater than or equal to 1",
        ),
        (["--models", "a", "--models", '{"sauce": "b"}'], "models.1.sauce = 'b': there is no such field; remove it"),
        (["--models", "[]"], "models = []: can't be used; list should have at least 1 item"),
        (["--sites", "keys"], "sites.0 = 'keys': can't be used; input should be 'norms' or 'residual'"),
    ],
)
def test_bad_models_are_named_by_their_place(arguments: list[str], says: str) -> None:
    with pytest.raises(BadParameters) as refused:
        models(*arguments)
    assert says in str(refused.value)


def test_help_shows_every_group_without_starting_anything() -> None:
    done = run("patching", "--help")
    assert done.returncode == 0
    for flag in ("--config FILE", "--model.source", "--trials.engine", "--execution.slots", "--store"):
        assert flag in done.stdout


@pytest.mark.parametrize("name", FLOWS)
def test_every_flow_has_its_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert "--config FILE" in capsys.readouterr().out


def test_unknown_flags_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parameters("--trials.trails", "3")
    assert end.value.code == EXIT_BAD_INPUT
    assert "unrecognized arguments: --trials.trails 3" in capsys.readouterr().err


def test_a_bad_parameter_ends_before_anything_starts(prefect_server: str, tmp_path: Path) -> None:
    done = run("patching", "--trials.trials_per_cell", "0", "--store", str(tmp_path / "store"))
    assert done.returncode == 2
    assert (
        done.stderr.strip() == "trials.trials_per_cell = '0': can't be used; input should be greater than or equal to 1"
    )
    assert not (tmp_path / "store").exists()


def test_settings_that_are_wrong_together_are_refused_before_any_shard(prefect_server: str, tmp_path: Path) -> None:
    greedy = ["--trials.temperature", "0", "--trials.trials_per_cell", "1", "--trials.baseline_trials", "1"]
    done = run("patching", *greedy, "--store", str(tmp_path / "store"))
    assert done.returncode == 2
    assert "confirm.enabled=true with trials.temperature=0" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()


def refused(flow: Any, arguments: Sequence[str]) -> str:
    """What a flow, run in this process, says to arguments that it refuses."""
    with pytest.raises((BadInput, BadParameters)) as error:
        asyncio.run(flow(**parse(flow, arguments, "python -m flows")))
    assert error.value.exit_status == EXIT_BAD_INPUT
    return str(error.value)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--models", "org/a,org/a"], "models.1.source = 'org/a': is the same model as models.0; remove one"),
        (["--execution.batch_size", "4"], "execution.batch_size = 4: a batch decides the last bits of a result here"),
        (["--seed", str(2**63)], "seed = '9223372036854775808': can't be used; input should be less"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_before_any_shard(
    prefect_server: str, tmp_path: Path, arguments: list[str], says: str
) -> None:
    assert says in refused(outliers, [*arguments, "--store", str(tmp_path / "store")])
    assert not (tmp_path / "store").exists()


def test_more_gpus_than_the_machine_has_are_refused_before_any_shard(
    prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nvidia_smi(tmp_path, monkeypatch, "0, GPU-aaaa\n1, GPU-bbbb")
    wide = ["--models", "org/a", "--models", '{"source": "org/b", "gpus": 3}', "--store", str(tmp_path / "store")]
    assert "models.1.gpus = 3: there are 2 GPUs to run shards on" in refused(outliers, wide)
    assert not (tmp_path / "store").exists()


def test_an_engine_that_is_not_there_is_refused_before_any_shard(
    prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = str(tmp_path / "bin" / "python")
    monkeypatch.setenv("TOMOGRAPH_VLLM_PYTHON", nowhere)
    arguments = ["--trials.engine", "vllm", "--execution.device", "cpu", "--store", str(tmp_path / "store")]
    said = f"trials.engine = 'vllm': TOMOGRAPH_VLLM_PYTHON names {nowhere}, which is no program"
    assert said in refused(patching, arguments)
    assert not (tmp_path / "store").exists()


def test_a_dead_server_is_named_in_one_message() -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    done = run("outliers", PREFECT_API_URL=url)
    assert done.returncode == 1
    assert done.stderr.startswith(f"PREFECT_API_URL = '{url}': no Prefect server answers there (")
    assert len(done.stderr.splitlines()) == 1


def test_a_gpu_that_is_not_there_is_refused_before_any_shard(
    prefect_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nvidia_smi(tmp_path, monkeypatch, "0, GPU-aaaa")
    done = run("outliers", "--store", str(tmp_path / "store"), CUDA_VISIBLE_DEVICES="0,7")
    assert done.returncode == 2
    assert "CUDA_VISIBLE_DEVICES = '0,7': nvidia-smi shows no GPU 7 on this machine" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_without_a_server_a_temporary_one_is_started_and_ended(tmp_path: Path) -> None:
    """To the first shard, which refuses the model: proof that a flow ran."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "flows",
            "patching",
            "--model.source",
            str(tmp_path),
            "--store",
            str(tmp_path / "store"),
        ],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**environment, "PREFECT_HOME": str(tmp_path / "prefect")},
        timeout=180,
        check=False,
    )
    assert done.returncode == 2, "as if it had been refused before anything ran"
    assert "identify 1/1" in done.stderr
    assert "refused its input" in done.stderr
    assert "Traceback" not in done.stderr
    assert not with_environment("PREFECT_HOME", str(tmp_path / "prefect"))
