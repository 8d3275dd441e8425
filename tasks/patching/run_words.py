"""Task `patching.words`: words that features add to or remove from the answers of a study."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from tasks.context import ShardContext
from tasks.patching.spec import WordsParams
from tasks.patching.tables import TRIALS, WORDS
from tasks.patching.words import word_effects

_COLUMNS = ["prompt", "arm", "candidate", "layer", "feature", "value_name", "response"]
_ARMS = pa.array(["baseline", "feature"])


def run(ctx: ShardContext) -> None:
    """Output: table `words`, every tested word; counts `tests` and `words` (those with q <= alpha)."""
    params: WordsParams = ctx.params
    tables = [TRIALS.read(shard, _COLUMNS) for shard in ctx.inputs("trials")]
    trials = pa.concat_tables([table.filter(pc.is_in(table["arm"], _ARMS)) for table in tables])
    words = word_effects(trials, params)
    ctx.table(WORDS.name, words)
    found = pc.sum(pc.less_equal(words["q"], params.settings.alpha)).as_py() or 0
    ctx.count(tests=len(words), words=found)
