"""Tokens of GGUF files are those of the tokenizer that the file was made from."""

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tasks.errors import BadInput
from tasks.models import gguf_weights
from tasks.models.gguf_splits import SUPPORTED, splitter
from tasks.models.load import load_tokenizer
from tasks.models.spec import ModelRef
from tests.models.gguf_files import write
from tests.models.tiny import tiny_model, tiny_tokenizer

pytestmark = pytest.mark.usefixtures("cache")

TEXT = "Don't BET  2,000\n\n1) it's 12345 chips;\n  été 中文字 <x> $100+5 (a.b)   "
_GPT2 = [
    "Don",
    "'t",
    " BET",
    " ",
    " 2",
    ",",
    "000",
    "\n",
    "\n",
    "1",
    ")",
    " it",
    "'s",
    " 12345",
    " chips",
    ";",
    "\n ",
    " été",
]
_QWEN = [
    "Don",
    "'t",
    " BET",
    " ",
    " ",
    "2",
    ",",
    "0",
    "0",
    "0",
    "\n\n",
    "1",
    ")",
    " it",
    "'s",
    " ",
    "1",
    "2",
    "3",
    "4",
    "5",
]
PIECES = {
    "gpt-2": _GPT2,
    "smollm": ["Don", "'t", " BET", "  ", "2", ",", "0", "0", "0", "\n\n", "1", ")", " it", "'s", " ", "1", "2", "3"],
    "llama-bpe": ["Don", "'t", " BET", " ", " ", "2", ",", "000", "\n\n", "1", ")", " it", "'s", " ", "123", "45"],
    "qwen2": _QWEN,
    "stablelm2": _QWEN,
    "tekken": ["Don", "'t", " BET", " ", " ", "2", ",", "0", "0", "0", "\n\n", "1", ")", " it", "'s", " ", "1", "2"],
    "gpt-4o": [
        "Don't",
        " BET",
        " ",
        " ",
        "2",
        ",",
        "000",
        "\n\n",
        "1",
        ")",
        " it's",
        " ",
        "123",
        "45",
        " chips",
        ";\n",
    ],
    "glm4": ["Don", "'t", " BET", " ", " ", "2", ",", "000", "\n\n", "1", ")", " it", "'s", " ", "123", "45"],
    "falcon": ["Don", "'", "t", " BET", " ", " 2", ",", "000", "\n", "\n", "1", ")", " it", "'", "s", " ", "123", "45"],
    "deepseek-llm": [
        "Don",
        "'",
        "t",
        " BET",
        "  ",
        "2",
        ",",
        "0",
        "0",
        "0",
        "\n",
        "\n",
        "1",
        ")",
        " it",
        "'",
        "s",
        " ",
    ],
    "deepseek-coder": [
        "Don",
        "'",
        "t",
        " BET",
        "  ",
        "2",
        ",",
        "0",
        "0",
        "0",
        "\n",
        "\n",
        "1",
        ")",
        " it",
        "'",
        "s",
        " ",
    ],
    "deepseek-v3": ["Don", "'t", " BET", "  ", "2", ",", "000", "\n\n", "1", ")", " it", "'s", " ", "123", "45"],
    "bloom": ["Don't", " BET", " ", " 2", ",", "000", "\n\n", "1", ")", " it's", " 12345", " chips;", "\n ", " été"],
    "bailingmoe": ["Don", "'t", " BET", " ", " ", "2", ",", "0", "0", "0", "\n\n", "1", ")", " it", "'s", " ", "1"],
    "seed-coder": [
        "Don",
        "'t",
        " BET",
        " ",
        " ",
        "2",
        ",",
        "0",
        "0",
        "0",
        "\n\n",
        "1",
        ")",
        " it",
        "'s",
        " ",
        "1",
        "2",
    ],
    "minicpm5": ["Don", "'t", " BET", "  ", "2", ",", "000", "\n\n", "1", ")", " it", "'s", " ", "123", "45"],
    "superbpe": ["Don't BET  ", "2", ",", "000", "\n\n", "1", ") it's ", "12", "345"],
}


@pytest.mark.parametrize("scheme", PIECES)
def test_pieces(scheme):
    pieces = [TEXT[start:end] for _, (start, end) in splitter(scheme).pre_tokenize_str(TEXT)]
    assert pieces[: len(PIECES[scheme])] == PIECES[scheme]
    assert "".join(pieces) == TEXT


@pytest.mark.parametrize("scheme", SUPPORTED)
def test_every_scheme_keeps_every_character(scheme):
    assert "".join(TEXT[a:b] for _, (a, b) in splitter(scheme).pre_tokenize_str(TEXT)) == TEXT


@pytest.fixture
def tokens_of(tmp_path):
    """Tokenizer of a GGUF file made from `backend`, with `keys` of metadata."""

    def make(backend, **keys):
        model = tiny_model("llama", vocab_size=backend.get_vocab_size(), num_hidden_layers=1)
        named = {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
        return load_tokenizer(ModelRef(source=str(write(tmp_path / "m.gguf", model, backend, named))))

    return make


def trained(pre_tokenizer):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizer, decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT] * 3 + ["\n\n1) yes\n\n2) no 123 1234 2,000 56%"] * 3, trainer)
    return backend


def own(*expressions):
    cuts = [pre_tokenizers.Split(Regex(e), behavior="isolated") for e in expressions]
    return pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


DIGITS = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)


@pytest.mark.parametrize(
    ("scheme", "original"),
    [
        ("gpt-2", pre_tokenizers.ByteLevel(add_prefix_space=False)),
        *(
            (name, DIGITS)
            for name in ("smollm", "starcoder", "refact", "command-r", "exaone", "codeshell", "minerva-7b")
        ),
        ("deepseek-coder", own(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}")),
    ],
)
def test_tokens_are_those_of_the_original(tokens_of, scheme, original):
    backend = trained(original)
    tokenizer = tokens_of(backend, pre=scheme)
    for text in (TEXT, "Choose:\n\n1) Bet\n\n2) Stop", "You have 1234 chips; 56% of 7890."):
        assert tokenizer(text).input_ids == backend.encode(text).ids
        assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.parametrize(
    ("keys", "begin", "end"),
    [
        ({"pre": "gpt-2"}, [], []),
        ({"pre": "llama-bpe"}, [1], []),
        ({"pre": "llama-bpe", "add_bos_token": False}, [], []),
        ({"pre": "gpt-2", "add_bos_token": True, "add_eos_token": True}, [1], [2]),
        ({"pre": "llama-bpe", "bos_token_id": None}, [], []),
    ],
)
def test_beginning_and_end_of_text(tokens_of, keys, begin, end):
    tokenizer = tokens_of(tiny_tokenizer().backend_tokenizer, **keys)
    inside = tokenizer("Bet", add_special_tokens=False).input_ids
    assert tokenizer("Bet").input_ids == [*begin, *inside, *end]


@pytest.mark.parametrize("scheme", ["llama-bpe", "qwen2"])
def test_a_word_that_is_a_token_needs_no_merges_where_the_scheme_says_so(tokens_of, scheme):
    backend = trained(own(r"\s+"))
    vocab = backend.get_vocab()
    whole = max(vocab, key=lambda token: token.isascii() * token.isalpha() * len(token))
    backend.model = models.BPE(vocab | {"zq": len(vocab)}, [("z", "q")])  # merges that lead to no word of the text
    tokens = tokens_of(backend, pre=scheme).tokenize(whole)
    assert (tokens == [whole]) == (scheme == "llama-bpe")


def sentencepiece_like():
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    backend.train_from_iterator(["the player bets ten and the player stops and wins"] * 5, trainer)
    return backend


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_vocabulary(tokens_of, prefix):
    """Merges follow from the scores there; the space before a text is as the file says."""
    backend = sentencepiece_like()
    scores = [-float(i) for i in range(backend.get_vocab_size())]
    keys = {"model": "llama", "pre": None, "merges": None, "scores": scores, "add_space_prefix": prefix}
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3}
    vocab = backend.get_vocab()
    keys["token_type"] = [kinds.get(t, 6 if t.startswith("<0x") else 1) for t in sorted(vocab, key=vocab.get)]
    tokenizer = tokens_of(backend, bos_token_id=1, eos_token_id=2, unknown_token_id=0, **keys)
    if not prefix:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    for text in ("the player wins", "ten  é"):
        ids = tokenizer(text).input_ids
        assert ids == [1, *backend.encode(text, add_special_tokens=False).ids]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"pre": "no-such"}, r"tokenizer\.ggml\.pre = 'no-such': .* known are .*llama-bpe, .*; use the model in trans"),
        ({"pre": "default"}, r"tokenizer\.ggml\.pre = 'default'"),
        ({"pre": None}, r"tokenizer\.ggml\.pre = None: .*; convert the model again with a current llama\.cpp"),
        ({"model": "bert"}, r"tokenizer\.ggml\.model = 'bert'"),
        ({"add_bos_token": True, "bos_token_id": None}, r"tokenizer\.ggml\.bos_token_id is missing"),
    ],
)
def test_tokenizers_of_unknown_ways_are_refused_before_weights_are_read(tokens_of, keys, message, monkeypatch):
    monkeypatch.setattr(gguf_weights, "dequantize", lambda *args: pytest.fail("the weights were read"))
    with pytest.raises(BadInput, match=message):
        tokens_of(tiny_tokenizer().backend_tokenizer, **keys)
