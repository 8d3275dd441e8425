"""What a study asks the model: prompts, choices, parser rules and two contrast groups, as data.

A scenario is one YAML file (see `scenarios/slot_machine.yaml`); no code is needed to add one. Lists keep their
order; where a list's items have names, YAML may write it as a mapping `name: item`.

A prompt reaches the model as `text + answer_prefix`, or, with `chat`, as one user turn that holds `text`, with
`answer_prefix` as the beginning of the assistant's answer.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tasks.errors import shown
from tasks.patching import patterns, templates
from tasks.places.location import Location
from tasks.text.spec import Frame

INVALID = "invalid"
"""The outcome of a continuation that makes no valid choice; no choice may have this name."""

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=60)]


def _named_items(value: Any) -> Any:
    """`{name: item}` to `[{name: ..., **item}]`; an item that is a plain string is its `text`."""
    if not isinstance(value, dict):
        return value
    for name, item in value.items():
        if not isinstance(item, str | dict | None):
            raise ValueError(f"{name!r} is {shown(item)}, and must be a text or a mapping of fields")
    return [
        {"name": name, "text": item} if isinstance(item, str) else {"name": name, **(item or {})}
        for name, item in value.items()
    ]


def _one_or_many(value: Any) -> Any:
    return [] if value is None else value if isinstance(value, list) else [value]


Regex = Annotated[str, AfterValidator(patterns.check)]
Bound = float | Name
"""A number, or the name of a prompt field that holds one."""
Bounds = Annotated[list[Bound], BeforeValidator(_one_or_many)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Prompt(_Model):
    name: Name
    text: str = Field(min_length=1)
    fields: dict[Name, float] = Field(
        default_factory=dict, description="Numbers that amount bounds refer to, such as the balance."
    )


class Choice(_Model):
    name: Name
    description: str = ""
    first_tokens: list[str] = Field(
        min_length=1, description="Texts that count as this choice when they are the first generated token."
    )


class AmountRule(_Model):
    """An amount that a rule's pattern reads from its named group.

    The amount must lie within every bound of `min` and `max`. A bound or `default` that names a field applies to
    the prompts that have this field and is skipped for the others.
    """

    group: str = Field("amount", description="Named group of the pattern that holds the amount.")
    min: Bounds = Field(default_factory=list)
    max: Bounds = Field(default_factory=list)
    default: Bound | None = Field(None, description="Amount when none is named, for a prompt that fixes it.")
    required: bool = Field(
        False,
        description="Make a choice without an amount invalid; otherwise its amount is missing and the rule name "
        "says so.",
    )


class Rule(_Model):
    """If `pattern` matches at the start of the answer, the answer is `choice`."""

    name: Name
    pattern: Regex
    choice: Name
    amount: AmountRule | None = None

    @model_validator(mode="after")
    def _amount_group_exists(self) -> Rule:
        if self.amount and self.amount.group not in patterns.groups(self.pattern):
            raise ValueError(f"rule {self.name!r}: its pattern has no group named {self.amount.group!r}")
        return self


class Parser(_Model):
    """Ordered rules that read the first decision of a continuation (case-insensitive regular expressions)."""

    restart: list[Regex] = Field(
        default_factory=list,
        description="Where the model starts to play the scenario on its own: the answer ends before the first match.",
    )
    lead: Regex = Field(r"\s*", description="What may stand before a decision, such as 'My choice is: '.")
    rules: Annotated[list[Rule], BeforeValidator(_named_items)] = Field(min_length=1)


class Group(_Model):
    """Prompts of one side of the contrast: exactly one of `prompts`, `rows`, `file` and `generator`."""

    name: Name
    prompts: list[str] | None = Field(None, description="The prompts themselves.")
    template: Annotated[str, AfterValidator(templates.check)] | None = Field(
        None, description="Text with {field} placeholders, filled from `rows` or `file`."
    )
    rows: list[dict[str, str | int | float]] | None = Field(None, description="Field values, one row per prompt.")
    file: Location | None = Field(
        None,
        description="Path or URL, relative to the scenario: .jsonl (strings or objects with 'text', or rows for "
        "the template) or a text file with one prompt a line.",
    )
    generator: str | None = Field(None, description="Name of a built-in generator, such as slot_machine.")
    params: dict[str, str | int | float | bool] = Field(default_factory=dict, description="Arguments of the generator.")

    @model_validator(mode="after")
    def _one_source(self) -> Group:
        sources = [name for name in ("prompts", "rows", "file", "generator") if getattr(self, name) is not None]
        if len(sources) != 1:
            found = " and ".join(sources) or "none"
            raise ValueError(f"group {self.name!r}: give exactly one of prompts, rows, file, generator (found {found})")
        if self.rows is not None and self.template is None:
            raise ValueError(f"group {self.name!r}: rows need a template")
        if self.template is not None and sources[0] not in ("rows", "file"):
            raise ValueError(f"group {self.name!r}: a template is filled from rows or file, not {sources[0]}")
        if self.params and self.generator is None:
            raise ValueError(f"group {self.name!r}: params belong to a generator, and there is none")
        return self


class Contrast(_Model):
    """An ordered pair of groups: feature means over `low` and `high` are the two values that are patched in."""

    low: Group
    high: Group

    @model_validator(mode="after")
    def _different_names(self) -> Contrast:
        if self.low.name == self.high.name:
            raise ValueError(f"both groups are called {self.low.name!r}: name them apart")
        return self


class Scenario(_Model):
    name: Name
    description: str = ""
    prompts: Annotated[list[Prompt], BeforeValidator(_named_items)] = Field(min_length=1)
    choices: Annotated[list[Choice], BeforeValidator(_named_items)] = Field(min_length=1)
    parser: Parser
    contrast: Contrast
    frame: Frame = Frame()
    stop: list[str] = Field(
        default_factory=list, description="A response ends before the first of these strings, whatever the engine."
    )

    @model_validator(mode="after")
    def _consistent(self) -> Scenario:
        choices = [c.name for c in self.choices]
        for kind, names in (
            ("prompt", [p.name for p in self.prompts]),
            ("choice", choices),
            ("rule", [r.name for r in self.parser.rules]),
            ("first token", [text for c in self.choices for text in c.first_tokens]),
        ):
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"{kind} {twice[0]!r} is defined twice")
        if INVALID in choices:
            raise ValueError(f"{INVALID!r} is the outcome of unreadable answers: rename that choice")
        fields = {name for p in self.prompts for name in p.fields}
        for rule in self.parser.rules:
            if rule.choice not in (*choices, INVALID):
                raise ValueError(f"rule {rule.name!r}: unknown choice {rule.choice!r}, known: {choices}")
            if rule.amount:
                named = [*rule.amount.min, *rule.amount.max, rule.amount.default]
                unknown = sorted({b for b in named if isinstance(b, str)} - fields)
                if unknown:
                    raise ValueError(f"rule {rule.name!r}: no prompt has the field {unknown[0]!r}")
        unread = sorted(set(choices) - {r.choice for r in self.parser.rules})
        if unread:
            raise ValueError(f"choice {unread[0]!r}: no parser rule leads to it")
        return self
