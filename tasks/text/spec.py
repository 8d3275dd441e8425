"""What a study says about the text that its model reads. Imports nothing heavy."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from tasks.places.location import Location

PROSE = "embedded:prose"
"""The text that is always there: topics of Python's documentation."""


class TextSource(BaseModel):
    """Text to read, and how it becomes sequences of tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    location: Location = Field(
        PROSE,
        min_length=1,
        title="Text",
        description=(
            "File, folder or pattern, local or a URL (s3://bucket/text/*.parquet), of .jsonl, .parquet or text; may "
            f"be compressed. In a pattern, [[] is a plain [. {PROSE} is embedded: topics of Python's documentation"
        ),
    )
    format: Literal["auto", "jsonl", "parquet", "text"] = Field(
        "auto", description="Format of the files; `auto` goes by their endings. A text file is one document"
    )
    column: str = Field("text", min_length=1, description="Field of a JSON line, or column of a table, with the text")
    pack: bool = Field(
        True,
        description="Join documents and cut them into sequences of full length. Else each document is a sequence of "
        "its own, cut off at the length",
    )
    sequences: int = Field(16, ge=1, le=1_000_000, description="Sequences to read")
    length: int = Field(512, ge=8, le=1_048_576, description="Tokens of a sequence, the first (BOS) token included")
    bos: Literal["auto", "always", "never"] = Field(
        "auto", description="Begin each sequence with the BOS token: as the tokenizer does by itself, always, or never"
    )


class Chat(BaseModel):
    """A prompt as a user's message of a chat."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    system: str | None = Field(None, description="System message; none if empty.")


class Frame(BaseModel):
    """How a prompt's text becomes the model's input."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    answer_prefix: str = Field("", description="Text that the answer begins with, for example 'Choice: '.")
    chat: Chat | None = Field(None, description="Use the tokenizer's chat template.")
