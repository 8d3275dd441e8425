"""Task `outliers.prepare`: everything that can be checked before a weight is loaded, and the text as tokens.

It runs at every start, and names what later shards depend on outside the store: the model's fingerprint, and the text
by its tokens. A changed file changes one of them, and so every spec that follows.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tasks.context import ShardContext
from tasks.errors import BadInput
from tasks.models.describe import describe
from tasks.models.fingerprint import fingerprint
from tasks.models.load import load_config, load_tokenizer
from tasks.models.spec import ModelInfo
from tasks.outliers.model_facts import count_parameters, quantization
from tasks.outliers.spec import PrepareParams
from tasks.text.documents import open_texts
from tasks.text.sequences import Sequence, begins_with_bos, cut, warnings
from tasks.text.spec import TextSource


def run(ctx: ShardContext) -> None:
    """Json `study`: what the flow needs to write every later spec. Table `sequences`: what the model will read."""
    p: PrepareParams = ctx.params
    info = describe(p.model)
    check_length(p.text, info)
    documents = open_texts(p.text)
    tokenizer = load_tokenizer(p.model)
    bos = begins_with_bos(tokenizer, p.text.bos)
    config = load_config(p.model)
    parameters, active_parameters = count_parameters(p.model, config)
    result = cut(documents, tokenizer, p.text, bos, lambda n: ctx.progress(n, p.text.sequences, "sequences"))
    remarks = warnings(result, p.text)
    ctx.table("sequences", _table(result.sequences))
    ctx.json(
        "study",
        {
            "model": p.model.model_dump(mode="json"),
            "model_fingerprint": fingerprint(p.model),
            "model_info": info.model_dump(mode="json"),
            "parameters": parameters,
            "active_parameters": active_parameters,
            "quantization": quantization(p.model, config),
            "bos": bos,
            "sequences": len(result.sequences),
            "tokens": result.tokens,
            "longest": result.longest,
            "documents": result.documents,
            "warnings": remarks,
        },
    )
    ctx.count(sequences=len(result.sequences), tokens=result.tokens)
    for remark in remarks:
        ctx.log(remark)


def check_length(text: TextSource, info: ModelInfo) -> None:
    if info.max_positions is not None and text.length > info.max_positions:
        raise BadInput(
            "text.length",
            text.length,
            f"the model reads at most {info.max_positions} tokens",
            f"use at most {info.max_positions}",
        )


def _table(sequences: list[Sequence]) -> pa.Table:
    """Columns `sequence`, `document`, `tokens`."""
    ends = np.cumsum([0, *(len(sequence.tokens) for sequence in sequences)], dtype=np.int32)
    tokens = pa.ListArray.from_arrays(ends, np.concatenate([sequence.tokens for sequence in sequences]))
    return pa.table(
        {
            "sequence": pa.array(range(len(sequences)), pa.int32()),
            "document": pa.array([sequence.document for sequence in sequences], pa.int64()),
            "tokens": tokens,
        }
    )
