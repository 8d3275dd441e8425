"""What a spec of `sae.train` says about its precision."""

from __future__ import annotations

import pytest

from tasks.models.spec import ModelRef
from tasks.sae.spec import SaeTrainParams, TrainSettings


def precision(dtype: str, chosen: str | None) -> str:
    model, settings = ModelRef(dtype=dtype), TrainSettings(precision=chosen)
    return SaeTrainParams(
        model=model, model_fingerprint="", layers=[0], settings=settings, corpus_fingerprint=""
    ).precision


@pytest.mark.parametrize(
    ("dtype", "followed"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "bfloat16")]
)
def test_precision_follows_the_model_unless_it_is_chosen(dtype: str, followed: str) -> None:
    assert precision(dtype, None) == followed
    assert precision(dtype, "float32") == "float32"
    assert precision(dtype, "bfloat16") == "bfloat16"
