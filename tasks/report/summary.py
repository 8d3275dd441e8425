"""What every report says in short: the json `summary`, from which terminal, artifacts and outcome are made."""

from __future__ import annotations

from pydantic import Field

from tasks.report.records import Caution, Record


class Failure(Record):
    """A part of the study that could not be done: what it was about, the stage that failed, and why."""

    name: str
    stage: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} ({self.stage}): {self.reason}"


class SummaryTable(Record):
    """The findings as a table of texts; `key` names it in the UI."""

    key: str
    rows: list[dict[str, str]]


class ResultFile(Record):
    """A file of results that lies beside the page, at `path` below its folder: output `output` of the shard `shard`.

    `shard` is the shard's folder in the store.
    """

    path: str
    shard: str
    output: str


class Summary(Record):
    """A report in short. `findings` come strongest first."""

    headline: str
    findings: list[str]
    cautions: list[Caution]
    failures: list[Failure] = Field(default_factory=list)
    table: SummaryTable
    files: list[ResultFile] = Field(default_factory=list)
