"""Bad values on the command line and in files of parameters: each is refused by its field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.cli import parse
from flows.outliers import outliers
from flows.patching import patching
from tests.bad_input.refusing import refused

HUGE = "1" * 5000
NAN, INF, LARGE = "nan", "inf", "1e300"

NUMBERS = {
    patching: {
        "seed": ["-1", "x", "1.5", "", str(2**63), HUGE, NAN],
        "trials.temperature": ["-1", "11", LARGE, NAN, INF, "", "x"],
        "trials.top_p": ["0", "1.1", NAN],
        "trials.trials_per_cell": ["0", "100001", "2.5", HUGE],
        "trials.baseline_trials": ["0", INF],
        "trials.max_new_tokens": ["0", "4097"],
        "contrast.prompts_per_group": ["1", HUGE],
        "contrast.top_k_per_layer": ["0", "ten"],
        "contrast.max_q": ["0", "2", NAN],
        "contrast.max_p": ["-1", INF],
        "contrast.min_abs_d": ["-1", LARGE, NAN],
        "selection.max_survivors": ["0"],
        "selection.min_effect": ["2", NAN],
        "confirm.trials_per_cell": ["1"],
        "confirm.max_features": ["0"],
        "verdict.alpha": ["0", "1", NAN],
        "verdict.min_effect": ["-0.1", INF],
        "words.alpha": ["0", LARGE],
        "words.min_responses": ["0", str(10**10)],
        "saes.train.k": ["0", str(10**6)],
        "saes.train.d_sae": ["1", str(2**25)],
        "saes.train.expansion": ["0", HUGE],
        "saes.train.tokens": ["0", LARGE],
        "saes.train.epochs": ["0", "1001"],
        "saes.train.texts_share": ["0", NAN],
        "execution.slots": ["0", str(10**12), "many"],
        "execution.threads": ["0", str(10**9)],
        "execution.batch_size": ["0", str(10**20)],
        "execution.retries": ["-1", "21"],
        "execution.timeout_minutes": ["0", LARGE, NAN],
    },
    outliers: {
        "seed": ["-1", str(2**63)],
        "batch_size": ["0", str(10**20)],
        "criteria.threshold": ["0", LARGE, NAN, INF],
        "criteria.layer_share": ["0", "1.5"],
        "criteria.position_share": ["-1", NAN],
        "criteria.relative_threshold": ["0", LARGE],
        "criteria.massive_magnitude": ["-1", LARGE],
        "criteria.massive_ratio": ["0", INF],
        "text.sequences": ["0", "1e3", HUGE],
        "text.length": ["7", str(10**8)],
        "ablation.sequences": ["0", HUGE],
        "ablation.largest": ["0", str(10**8)],
        "ablation.random_draws": ["0", "101"],
    },
}
WORDS = {
    patching: {
        "model.source": ["", "\udcff"],
        "model.dtype": ["int8", ""],
        "saes.kind": ["zip"],
        "saes.dtype": ["float64"],
        "trials.scope": ["first"],
        "trials.mode": ["both"],
        "trials.engine": ["jax"],
        "selection.candidates": ["some"],
        "verdict.test": ["t"],
        "words.text": ["none"],
        "scenario.source": [""],
        "store": [""],
        "execution.launcher": ["slurm"],
        "execution.device": ["tpu", "cuda:0"],
        "execution.container.memory": ["much", "0", "-1GiB", "9" * 400 + "GiB", "1e9GiB"],
        "execution.container.volumes": ["x", "a:b", "a:/b:rx"],
    },
    outliers: {
        "text.location": [""],
        "text.format": ["docx"],
        "text.column": [""],
        "text.bos": ["sometimes"],
    },
}
JSON = [
    (patching, "saes.layers", "[1,", "saes.layers"),
    (patching, "saes.layers", "[NaN]", "saes.layers"),
    (patching, "saes.layers", "[1e400]", "saes.layers.0"),
    (patching, "saes.layers", "[1, 1]", "saes"),
    (patching, "saes.layers", "[-1]", "saes"),
    (patching, "saes.layers", "[]", "saes.layers"),
    (patching, "saes.layers", '[{"a": 1}]', "saes.layers.0"),
    (patching, "saes.layers", "[" * 5000, "saes.layers"),
    (patching, "saes", "{oops", "saes"),
    (patching, "saes", '{"kind": "train", "kind": "train"}', "saes"),
    (patching, "saes", "[1]", "saes"),
    (patching, "model", "gpt2", "model"),
    (patching, "scenario", "slot_machine", "scenario"),
    (patching, "screen.doses", "[0, 1, 1e300]", "screen.doses.2"),
    (patching, "screen.doses", "[0, 1, NaN]", "screen.doses"),
    (patching, "screen.doses", "[0, 1, 1]", "screen"),
    (patching, "screen.doses", "[0.5, 2]", "screen"),
    (patching, "screen.doses", "[0]", "screen.doses"),
    (patching, "saes.layer_locations", '{"1": 3}', "saes.layer_locations.1"),
    (patching, "saes.layer_locations", '{"1":', "saes.layer_locations"),
    (patching, "saes.layer_locations", "[1]", "saes.layer_locations"),
    (patching, "execution.container.images", '{"torch": 1}', "execution.container.images.torch"),
    (patching, "execution.container.images", '{"torch"', "execution.container.images"),
    (patching, "execution.kubernetes.tolerations", "x", "execution.kubernetes.tolerations.0"),
    (patching, "trials", '{"temperature": "hot"}', "trials.temperature"),
    (outliers, "models", '{"source":', "models"),
    (outliers, "models", "[" * 3000, "models"),
    (outliers, "models", '{"source": "a", "source": "b"}', "models"),
    (outliers, "models", "[1]", "models.0"),
    (outliers, "models", "[]", "models"),
    (outliers, "models", "nan", "models"),
    (outliers, "models", "a,,b", "models.1.source"),
    (outliers, "models", '{"source": "a", "gpus": 0}', "models.0.gpus"),
    (outliers, "models", '{"source": "a", "gpus": 1.5}', "models.0.gpus"),
    (outliers, "models", '{"source": "a", "batch_size": 0}', "models.0.batch_size"),
    (outliers, "models", '{"source": "a", "name": ""}', "models.0.name"),
    (outliers, "models", '{"source": "a", "colour": "red"}', "models.0.colour"),
    (outliers, "sites", '["keys"]', "sites.0"),
    (outliers, "sites", '["norms"', "sites"),
    (outliers, "sites", "[]", "sites"),
]
CONFIG = [
    ("seed: 1\nseed: 2", "--config"),
    ("trials: {temperature: 1, temperature: 2}", "--config"),
    ("seed: [", "--config"),
    ("- seed", "--config"),
    ("seed", "--config"),
    ("", "--config"),
    ("1: 2", "--config"),
    ("[" * 100_000, "--config"),
    (
        "a: &a [x, x]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1 if n else ''}, x]" for n in range(1)) + "\nb: *nope",
        "--config",
    ),
    ("&a {b: *a}", "--config"),
    ("seed: " + HUGE, "--config"),
    ("seed: !!timestamp 2001-01-01", "--config"),
    ("seed: !!python/name:os.system", "--config"),
    ("\x00\x01", "--config"),
    (b"\xff\xfe\x01\x02", "--config"),
    (b"\x1f\x8b\x08\x00", "--config"),
    ("seed: 2001-01-01", "seed"),
    ("seed: .nan", "seed"),
    ("seed: [1]", "seed"),
    ("seed: null", "seed"),
    ("speed: 1", "speed"),
    ("trials: 5", "trials"),
    ("trials: [1]", "trials"),
    ("trials: {trails: 5}", "trials.trails"),
    ("trials: {temperature: .inf}", "trials.temperature"),
    ("trials: {temperature: 1e300}", "trials.temperature"),
    ("trials: {temperature: warm}", "trials.temperature"),
    ("trials: {temperature: 0}", "trials"),
    ("model: gpt2", "model"),
    ("model: {source: 5}", "model.source"),
    ("model: {source: [a]}", "model.source"),
    ("model: {revision: {a: b}}", "model.revision"),
    ("saes: {layers: 3}", "saes.layers"),
    ("saes: {layers: [x]}", "saes.layers.0"),
    ("saes: {layer_locations: {x: a}}", "saes.layer_locations.x.[key]"),
    ("saes: {kind: saelens}", "saes"),
    ("execution: {container: {images: [a]}}", "execution.container.images"),
    ("execution: {docker: {variables: {a: b}}}", "execution.docker.variables"),
    ("execution: {kubernetes: {node_selector: {a: 1}}}", "execution.kubernetes.node_selector.a"),
    ("store: {a: b}", "store"),
]


def rows(table: dict[Any, dict[str, list[str]]]) -> list[Any]:
    return [
        pytest.param(flow, field, value, id=f"{flow.name} {field}={value[:12]!a}")
        for flow, fields in table.items()
        for field, values in fields.items()
        for value in values
    ]


@pytest.mark.parametrize(("flow", "field", "value"), [*rows(NUMBERS), *rows(WORDS)])
def test_values(flow: Any, field: str, value: str) -> None:
    refused(lambda: parse(flow, [f"--{field}={value}"], "flows"), field)


@pytest.mark.parametrize(("flow", "flag", "value", "field"), JSON)
def test_json(flow: Any, flag: str, value: str, field: str) -> None:
    refused(lambda: parse(flow, [f"--{flag}={value}"], "flows"), field)


@pytest.mark.parametrize(("content", "field"), CONFIG)
def test_files_of_parameters(tmp_path: Path, content: str | bytes, field: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(lambda: parse(patching, ["--config", str(file)], "flows"), field)


@pytest.mark.parametrize("path", ["/no/such/file", "/", "/dev/zero", "\0", "x" * 5000])
def test_paths_of_files_of_parameters(path: str) -> None:
    refused(lambda: parse(patching, ["--config", path], "flows"), "--config")
