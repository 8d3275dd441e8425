"""The tokenizer that a GGUF file describes."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.integrations.gguf import convert_gguf_tokenizer, get_gguf_tokenizer

from tasks.models.gguf_header import GgufFile
from tasks.models.gguf_splits import BEGINS_TEXT, SUPPORTED, WHOLE_WORDS, splitter
from tasks.models.sources import Source

_KINDS = ("gpt2", "llama")
_OTHER_FORMAT = "use the model in transformers format"
_SPACE = "\u2581"


def check(source: Source, file: GgufFile) -> None:
    """Raises BadInput for a tokenizer that can't be read as it was trained."""
    kind, scheme = file.get("tokenizer.ggml.model"), file.get("tokenizer.ggml.pre")
    if kind not in _KINDS:
        raise source.bad(f"tokenizer.ggml.model = {kind!r}: only {' and '.join(_KINDS)} are read", _OTHER_FORMAT)
    if kind == "gpt2" and scheme not in SUPPORTED:
        raise source.bad(
            f"tokenizer.ggml.pre = {scheme!r}: how this tokenizer cuts text before merging is not known; known are "
            f"{', '.join(SUPPORTED)}",
            _OTHER_FORMAT if scheme else f"convert the model again with a current llama.cpp, or {_OTHER_FORMAT}",
        )
    if file.architecture.startswith("gemma") and file.get("tokenizer.ggml.add_space_prefix", False):
        raise source.bad("tokenizer.ggml.add_space_prefix = True is not of a Gemma model", _OTHER_FORMAT)


def build(source: Source, file: GgufFile) -> PreTrainedTokenizerBase:
    """transformers reads vocabulary, merges and special tokens; cutting and beginning of text are as llama.cpp's."""
    check(source, file)
    architecture, described, settings = get_gguf_tokenizer(str(file.paths[0]))
    backend, _ = convert_gguf_tokenizer(architecture, described)
    if file.get("tokenizer.ggml.model") == "gpt2":
        scheme = file.get("tokenizer.ggml.pre")
        backend.pre_tokenizer = splitter(scheme)
        backend.model.ignore_merges = scheme in WHOLE_WORDS
        begins = scheme in BEGINS_TEXT and settings["bos_token"] is not None
    else:
        begins = settings["bos_token"] is not None
        if not file.get("tokenizer.ggml.add_space_prefix", True) and not architecture.startswith("gemma"):
            _without_space_before(backend)
    around = {
        "bos": file.get("tokenizer.ggml.add_bos_token", begins),
        "eos": file.get("tokenizer.ggml.add_eos_token", False),
    }
    _put_around(source, backend, {name: settings[f"{name}_token"] for name, added in around.items() if added})
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        **settings,
    )


def _without_space_before(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.Replace(" ", _SPACE)
    backend.pre_tokenizer = None
    backend.decoder = decoders.Sequence([decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()])


def _put_around(source: Source, backend: Tokenizer, tokens: dict[str, str | None]) -> None:
    """Tokens "bos" and "eos" that each text begins and ends with, where given."""
    for name, token in tokens.items():
        if token is None:
            raise source.bad(
                f"its texts have a {name} token, and tokenizer.ggml.{name}_token_id is missing", _OTHER_FORMAT
            )
    before, after = ([tokens[name]] if name in tokens else [] for name in ("bos", "eos"))
    backend.post_processor = TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *(f"{token}:1" for token in before), "$B:1", *(f"{token}:1" for token in after)],
        special_tokens=[(token, backend.token_to_id(token)) for token in tokens.values()],
    )
