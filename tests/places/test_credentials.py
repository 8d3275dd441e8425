"""What counts as credentials in a location, and that no message repeats them."""

from __future__ import annotations

import jsonschema
import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from tasks.errors import BadInput
from tasks.places.credentials import CREDENTIALS, carries_credentials, hidden, shown
from tasks.places.location import Location
from tasks.places.opening import open_location
from tests.places.spellings import SECRET, SPELLINGS

HARMLESS = [
    "org/name",
    "embedded:smollm2-135m-instruct",
    "/data/a:b@c",
    "runs/store::x@y",
    "runs/what?key=value",
    "s3://bucket/models/x@v2",
    "s3://bucket/a:b/c",
    "s3://arn:aws:s3:us-west-2:123456789012:accesspoint/mine/x",
    "s3://bucket/x.gguf?versionId=3HL4kqtJvjVBH40Nrjfkd3HL4kqtJvjV",
    "s3://bucket/part-?.parquet",
    "hf://org/name@refs%2Fpr%2F1/model.gguf",
    "https://host:8080/models/x@v2",
    "https://[::1]:8080/x@v2",
    "https://host/x.gguf?download=true",
    "abfs://container@account.dfs.core.windows.net/x",
    "sftp://somebody@host/x",
    "simplecache::s3://bucket/x@v2",
    "zip://inner.txt::https://host/archive@v2.zip",
    "file:///data/a:b@c",
]


@pytest.mark.parametrize("location", HARMLESS)
def test_no_credentials(location: str) -> None:
    assert not carries_credentials(location)
    assert shown(location) == location
    assert TypeAdapter(Location).validate_python(location) == location


@pytest.mark.parametrize("location", SPELLINGS)
def test_credentials_are_refused_and_not_repeated(location: str) -> None:
    class Settings(BaseModel):
        places: dict[int, Location] = {}

    with pytest.raises(ValidationError) as refused:
        Settings(places={3: location})
    problem = BadInput.from_validation(refused.value)
    assert problem.field == "params.places.3"
    for text in (str(refused.value), repr(refused.value.errors()), str(problem)):
        assert SECRET not in text
        assert "can't carry credentials" in text
    with pytest.raises(BadInput, match="can't carry credentials") as opened:
        open_location(location, "places")
    assert SECRET not in str(opened.value)


@pytest.mark.parametrize("location", SPELLINGS)
def test_a_server_refuses_them_by_the_schema(location: str) -> None:
    schema = TypeAdapter(Location).json_schema()
    assert schema["not"] == {"pattern": CREDENTIALS}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(location, schema)
    jsonschema.validate(HARMLESS[5], schema)


@pytest.mark.parametrize("location", SPELLINGS)
def test_values_and_texts_are_shown_without_them(location: str) -> None:
    for value in (location, [location], {"a": {"b": location}}, f"cannot open '{location}' (404)"):
        assert SECRET not in repr(hidden(value))
        assert SECRET not in str(BadInput("x", value, "is wrong", "correct it"))


def test_the_rest_of_a_location_is_shown() -> None:
    assert shown("s3://KEY:SEC/RET@bucket/x") == "s3://...@bucket/x"
    assert shown("https://host/x?X-Amz-Signature=abc") == "https://host/x?..."
    assert shown("s3://KEY:SE@CRET@bucket/x") == "s3://..."
    assert hidden("see https://u:p@host/x, line 3") == "see https://...@host/x, line 3"
