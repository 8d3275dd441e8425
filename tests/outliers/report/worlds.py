"""The models of the synthetic sweep."""

from __future__ import annotations

from tests.outliers.report.synthetic import Planted, World

HOSTILE = "<img src=x onerror='window.hacked=1'></script><script>window.hacked = 1</script>"

SMALL = World(
    name="SmolLM2-135M",
    source="embedded:smollm2-135m-instruct",
    layers=10,
    d=96,
    planted=(Planted(17, 24, -1, 0.9, 0.7), Planted(63, 11, 1, 0.6, 0.3), Planted(5, 9, 1, 0.45, 0.12, mixed=0.4)),
    massive=((17, 1900.0), (40, 640.0)),
    ablation=3.7,
    sequences=8,
    length=40,
)
"""A small dense model: three systematic dimensions."""

LARGE = World(
    name="Dense-13B",
    source="example/dense-13b",
    layers=20,
    d=160,
    parameters=13_000_000_000,
    active=13_000_000_000,
    planted=tuple(Planted(11 * i + 3, 40 - 3 * i, (-1) ** i, 1.0, 0.9 - 0.08 * i) for i in range(9)),
    massive=((3, 2400.0),),
    ablation=2.1,
    seed=1,
    quantization="GGUF Q4_1",
    bos=False,
)
"""A large dense model with more of them than the functional check calls the largest."""

MOE = World(
    name="Experts-47B",
    source="example/experts",
    layers=12,
    d=128,
    parameters=46_700_000_000,
    active=12_900_000_000,
    planted=(Planted(2, 15, 1, 0.8, 0.5), Planted(99, 8, -1, 0.5, 0.2, sequences=0.5)),
    wide=0.45,
    experts=16,
    per_token=2,
    shared=True,
    ablation=0.9,
    seed=2,
)
"""A mixture of experts with shared ones, in which half of the dimensions pass the threshold."""

UNCHECKED = World(
    name="Unchecked-1B",
    source="example/unchecked",
    layers=6,
    parameters=1_100_000_000,
    active=1_100_000_000,
    planted=(Planted(8, 30, -1, 1.0, 0.9),),
    seed=3,
    sequences=3,
    asked=16,
    warnings=("The text gives 3 sequences of 32 tokens, not the 16 asked for: give more text.",),
)
"""Without a functional check, on less text than asked for."""

NONE = World(
    name="Quiet-360M", source="example/quiet", parameters=362_000_000, active=362_000_000, ablation=1.0, seed=4
)
"""No value reaches the threshold."""

BROKEN = World(
    name=HOSTILE,
    source=HOSTILE,
    layers=6,
    parameters=2_700_000_000,
    active=2_700_000_000,
    planted=(Planted(8, 30, -1, 1.0, 0.5),),
    nan=41,
    ablation=0.002,
    seed=5,
)
"""With NaN among its activations, a name that is markup, and a dimension that does nothing."""

NEAR = World(
    name="Near-1B",
    source="example/near",
    layers=20,
    planted=(Planted(7, 45, 1, 0.2, 0.8), Planted(30, 22, -1, 0.1, 0.01)),
    ablation=6.0,
    sequences=8,
    seed=6,
)
"""Two dimensions with outliers at too few points: what is set to zero are the largest ones."""

SWEEP = (SMALL, LARGE, MOE, UNCHECKED, NONE, BROKEN)
FAILURE = {
    "name": "Gated-70B",
    "source": "example/gated-70b",
    "stage": "prepare",
    "reason": f"models: 401 for example/gated-70b, accept its licence first {HOSTILE}",
}
