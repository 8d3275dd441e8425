"""The type of every parameter that names a place: a path, a URL, a Hugging Face id. Imports nothing heavy."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationError

from tasks.errors import BadInput
from tasks.places.credentials import CREDENTIALS, carries_credentials, shown

PROBLEM = "a URL can't carry credentials, since it is shown and stored"
REMEDY = "remove them and give them by the environment (AWS_ACCESS_KEY_ID and so on, HF_TOKEN, FSSPEC_*)"


def refuse_credentials(location: str, field: str) -> str:
    """``location``, unless it carries credentials. Raises: BadInput, which does not repeat them."""
    if carries_credentials(location):
        raise BadInput(field, shown(location), PROBLEM, REMEDY)
    return location


def _checked(location: str) -> str:
    if carries_credentials(location):  # pydantic would repeat the value, but for an error that has one of its own
        error = ValueError(f"{PROBLEM}; {REMEDY}")
        details = {"type": "value_error", "loc": (), "input": shown(location), "ctx": {"error": error}}
        raise ValidationError.from_exception_data("location", [details])
    return location


Location = Annotated[
    str, AfterValidator(_checked), Field(json_schema_extra={"not": {"pattern": CREDENTIALS}}), "location"
]
"""A location that carries no credentials. A Prefect server refuses others too, by the schema of a flow's parameters,
before it stores them."""
