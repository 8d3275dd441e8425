"""Documents as sequences of tokens, against what is said of them in one line each."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import BadInput
from tasks.text.sequences import Cut, Sequence, begins_with_bos, cut, in_runs, warnings
from tasks.text.spec import TextSource
from tests.models.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
BOS, EOS = TOKENIZER.bos_token_id, TOKENIZER.eos_token_id


def ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


def cut_texts(documents: list[str], bos: bool = True, tokenizer: object = TOKENIZER, **source: object) -> Cut:
    return cut((iter([text] if text else []) for text in documents), tokenizer, TextSource(**source), bos)


def as_lists(result: Cut) -> list[tuple[int, list[int]]]:
    return [(sequence.document, sequence.tokens.tolist()) for sequence in result.sequences]


class TestSequences:
    @given(
        st.lists(st.text("ab \n$é", max_size=30), max_size=8),
        st.booleans(),
        st.integers(8, 20),
        st.integers(1, 6),
    )
    def test_packed(self, documents: list[str], bos: bool, length: int, wanted: int) -> None:
        """Against the whole stream, made at once."""
        stream: list[int] = []
        owners: list[int] = []
        for number, text in enumerate(documents):
            if text:
                if stream:
                    stream.append(EOS)
                    owners.append(owners[-1])
                stream += ids(text)
                owners += [number] * len(ids(text))
        if not stream:
            with pytest.raises(BadInput, match="there is no text in it"):
                cut_texts(documents, bos, length=length, sequences=wanted)
            return
        start = [BOS] * bos
        room = length - bos
        full = [(owners[at], start + stream[at : at + room]) for at in range(0, len(stream) - room + 1, room)]
        expected = full[:wanted] or [(owners[0], start + stream)]
        assert as_lists(cut_texts(documents, bos, length=length, sequences=wanted)) == expected

    @given(st.lists(st.text("ab \n$é", max_size=30), min_size=1, max_size=8), st.booleans(), st.integers(8, 20))
    def test_one_sequence_a_document(self, documents: list[str], bos: bool, length: int) -> None:
        start = [BOS] * bos
        expected = [(n, (start + ids(text))[:length]) for n, text in enumerate(documents) if text]
        if not expected:
            return
        result = cut_texts(documents, bos, length=length, sequences=100, pack=False)
        assert as_lists(result) == expected
        assert (result.documents, result.empty) == (len(expected), len(documents) - len(expected))
        assert result.longest == max(len(tokens) for _, tokens in expected)
        assert result.tokens == sum(len(tokens) for _, tokens in expected)

    def test_a_whole_document_in_runs(self) -> None:
        assert list(in_runs([1, 2, 3, 4, 5], 2)) == [[1, 2], [3, 4], [5]]
        assert list(in_runs([], 2)) == []

    def test_without_an_eos_token_documents_touch(self) -> None:
        tokenizer = tiny_tokenizer()
        tokenizer.eos_token = None
        result = cut_texts(["ab", "cd"], False, tokenizer, length=8)
        assert as_lists(result) == [(0, ids("ab") + ids("cd"))]

    @pytest.mark.parametrize("pack", [True, False])
    def test_documents_and_pieces_beyond_the_last_token_are_not_asked_for(self, pack: bool) -> None:
        asked: list[str] = []

        def document(n: int) -> Iterator[str]:
            for piece in range(100):
                asked.append(f"{n}.{piece}")
                yield "word " * 3

        wanted = 1 if pack else 2
        cut((document(n) for n in range(100)), TOKENIZER, TextSource(length=16, sequences=wanted, pack=pack), True)
        assert 1 < len(asked) < 10

    def test_warnings(self) -> None:
        source = TextSource(length=8, sequences=3)
        enough = cut_texts(["abcdefgh" * 20], length=8, sequences=3)
        assert warnings(enough, source) == []
        [fewer, empty] = warnings(cut_texts(["", "zq" * 7], length=8, sequences=3), source)
        assert fewer.startswith("The text gives 2 sequences of 8 tokens, not the 3 asked for")
        assert empty == "1 document without text skipped."
        short = warnings(cut_texts(["ab"], length=8, sequences=1), source.model_copy(update={"sequences": 1}))
        assert short == ["The text fills no sequence of 8 tokens: there is one of 3."]
        documents = TextSource(pack=False, sequences=2)
        assert warnings(Cut([Sequence(0, np.arange(3))]), documents) == [
            "The text gives 1 sequence, not the 2 asked for: give more text, or ask for fewer sequences."
        ]

    def test_bos(self) -> None:
        adds, adds_not = tiny_tokenizer(), tiny_tokenizer()
        adds_not.backend_tokenizer.post_processor = None
        assert [begins_with_bos(adds, bos) for bos in ("auto", "always", "never")] == [True, True, False]
        assert [begins_with_bos(adds_not, bos) for bos in ("auto", "always", "never")] == [False, True, False]
        adds_not.bos_token = None
        assert not begins_with_bos(adds_not, "auto")
        with pytest.raises(BadInput, match=r"text\.bos = 'always': the model's tokenizer has no BOS token"):
            begins_with_bos(adds_not, "always")
