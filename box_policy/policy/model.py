"""A network policy: every accepted form in, one canonical form out.

The forms are those of two hosted products. Upstash Box writes ``mode`` and three lists, in snake_case
or camelCase; Vercel Sandbox writes ``allow`` and ``subnets``. Both also accept a bare mode.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from box_policy.policy.addresses import canonical_cidr
from box_policy.policy.complaints import explain
from box_policy.policy.domains import canonical_pattern
from box_policy.policy.forms import MODE_KEYS, SPELLINGS, VERCEL_KEYS
from box_policy.policy.quoting import quoted

type Mode = Literal["allow-all", "deny-all", "custom"]
type Kind = Literal["allow-all", "deny-all", "allowlist", "denylist"]

MAX_ENTRIES = 250_000
"""Most entries of one list."""
MAX_ISSUES = 1_000
"""Most issues that one error lists; a last one tells how many there are besides."""


@dataclass(frozen=True, slots=True)
class PolicyIssue:
    """One thing that is wrong with a policy."""

    location: tuple[str | int, ...]
    """The way to the entry, in the author's own keys; empty for the policy as a whole."""
    message: str

    def __str__(self) -> str:
        where = ""
        for step in self.location:
            if isinstance(step, int):
                where += f"[{step}]"
            elif not step.isidentifier():
                where += f"[{quoted(step)}]"
            else:
                where += f".{step}" if where else step
        return f"{where}: {self.message}" if where else self.message


class PolicyError(ValueError):
    """A policy that can't be accepted, with everything that is wrong with it."""

    def __init__(self, issues: Iterable[PolicyIssue]) -> None:
        self.issues = tuple(issues)
        super().__init__(self.issues)

    def __str__(self) -> str:
        return "\n".join(map(str, self.issues))


def _unique(entries: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(entries))


def _vercel_pattern(text: str) -> str:
    return text if text == "*" else canonical_pattern(text)


def _no_rules(rules: list[Any]) -> list[Any]:
    if rules:
        raise ValueError(
            "rules for a domain (transform, forwardURL, response, match) need decrypted traffic and are not "
            "supported; write [] to allow the domain"
        )
    return rules


def _list_or_map(value: object) -> str | None:
    if isinstance(value, dict):
        return "map"
    return "list" if isinstance(value, list | tuple) else None


type _Entries[Entry] = Annotated[tuple[Entry, ...], Field(max_length=MAX_ENTRIES), AfterValidator(_unique)]
type _Domain = Annotated[str, Strict(), AfterValidator(canonical_pattern)]
type _Cidr = Annotated[str, Strict(), AfterValidator(canonical_cidr)]
type _VercelDomain = Annotated[str, Strict(), AfterValidator(_vercel_pattern)]
type _VercelRules = Annotated[
    list[Any], AfterValidator(_no_rules), WithJsonSchema({"type": "array", "maxItems": 0})
]


class VercelSubnets(BaseModel):
    """``subnets`` of the Vercel form."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    allow: _Entries[_Cidr] | None = None
    """Address ranges that any TCP protocol may reach without a name."""
    deny: _Entries[_Cidr] | None = None
    """Address ranges that nothing reaches, whatever allows it."""


class VercelPolicy(BaseModel):
    """The Vercel form: always an allowlist, unless ``allow`` holds ``*``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    allow: (
        Annotated[
            Annotated[_Entries[_VercelDomain], Tag("list")]
            | Annotated[dict[_VercelDomain, _VercelRules], Field(max_length=MAX_ENTRIES), Tag("map")],
            Discriminator(_list_or_map),
        ]
        | None
    ) = None
    """Host names, ``*.`` patterns, or ``*`` for all; as a list, or as a mapping to empty lists of rules."""
    subnets: VercelSubnets | None = None
    """Address ranges to allow and to deny."""

    def as_modes(self) -> dict[str, object]:
        """The same policy in the form with ``mode``."""
        domains = tuple(self.allow or ())
        subnets = self.subnets or VercelSubnets()
        if "*" in domains:
            if subnets.deny:
                return {"mode": "custom", "denied_cidrs": subnets.deny}
            return {"mode": "allow-all"}
        return {
            "mode": "custom",
            "allowed_domains": domains,
            "allowed_cidrs": subnets.allow,
            "denied_cidrs": subnets.deny,
        }


class NetworkPolicy(BaseModel):
    """What a box may connect to. Immutable; every accepted form validates to it."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    mode: Mode
    """``allow-all``, ``deny-all``, or ``custom`` with lists."""
    allowed_domains: _Entries[_Domain] | None = Field(
        None, validation_alias=AliasChoices(*SPELLINGS["allowed_domains"])
    )
    """Host names, and ``*.`` patterns for every name below one."""
    allowed_cidrs: _Entries[_Cidr] | None = Field(
        None, validation_alias=AliasChoices(*SPELLINGS["allowed_cidrs"])
    )
    """Address ranges that any TCP protocol may reach without a name."""
    denied_cidrs: _Entries[_Cidr] | None = Field(
        None, validation_alias=AliasChoices(*SPELLINGS["denied_cidrs"])
    )
    """Address ranges that nothing reaches, whatever allows it."""

    @model_validator(mode="before")
    @classmethod
    def _accept_every_form(cls, value: object) -> object:
        if isinstance(value, str):
            if value == "custom":
                raise ValueError('"custom" needs lists: write a mapping with "mode" and "allowed_domains"')
            return {"mode": value}
        if not isinstance(value, Mapping):
            return value
        vercel = [key for key in VERCEL_KEYS if key in value]
        if not vercel:
            return value
        if others := [key for key in MODE_KEYS if key in value]:
            raise ValueError(
                f"two forms of policy are mixed: {', '.join(map(quoted, vercel))} cannot stand beside "
                f"{', '.join(map(quoted, others))}"
            )
        return VercelPolicy.model_validate(value).as_modes()

    @field_validator("allowed_domains", "allowed_cidrs", "denied_cidrs")
    @classmethod
    def _only_custom_takes_lists(
        cls, value: tuple[str, ...] | None, info: ValidationInfo
    ) -> tuple[str, ...] | None:
        mode = info.data.get("mode", "custom")
        if value is not None and mode != "custom":
            raise ValueError(f'mode "{mode}" takes no lists; for lists write mode "custom"')
        return value

    @classmethod
    def parse(cls, value: object) -> Self:
        """The policy that ``value`` (a mapping, a mode, or a policy) stands for.

        Raises:
            PolicyError: with every issue, up to :data:`MAX_ISSUES`.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            details = error.errors(include_url=False)
        issues = [PolicyIssue(*explain(detail, value)) for detail in details[:MAX_ISSUES]]
        if len(details) > MAX_ISSUES:
            issues.append(PolicyIssue((), f"and {len(details) - MAX_ISSUES} more issues"))
        raise PolicyError(issues)

    def canonical(self) -> dict[str, object]:
        """The policy in snake_case, ready for JSON, without the keys that are absent."""
        lists = {
            "allowed_domains": self.allowed_domains,
            "allowed_cidrs": self.allowed_cidrs,
            "denied_cidrs": self.denied_cidrs,
        }
        return {"mode": self.mode} | {key: list(value) for key, value in lists.items() if value is not None}

    @property
    def kind(self) -> Kind:
        """What the policy amounts to.

        ``custom`` is an allowlist if a key that allows is present, even with an empty list; a
        denylist if it only denies; and denies everything if it says nothing. An empty
        ``denied_cidrs`` says nothing: a list that came out empty must not open everything.
        """
        if self.mode != "custom":
            return self.mode
        if self.allowed_domains is not None or self.allowed_cidrs is not None:
            return "allowlist"
        return "denylist" if self.denied_cidrs else "deny-all"
