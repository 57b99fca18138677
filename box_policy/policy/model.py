"""A network policy: every accepted form in, one canonical form out.

The forms are those of two hosted products. Upstash Box writes ``mode`` and three lists, in snake_case
or camelCase; Vercel Sandbox writes ``allow`` and ``subnets``. Both also accept a bare mode.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SkipValidation,
    Tag,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails

from box_policy.policy.addresses import canonical_cidr
from box_policy.policy.complaints import explain
from box_policy.policy.domains import canonical_pattern
from box_policy.policy.forms import MODE_KEYS, SPELLINGS, VERCEL_KEYS
from box_policy.policy.quoting import quoted

type Mode = Literal["allow-all", "deny-all", "custom"]
type Kind = Literal["allow-all", "deny-all", "allowlist", "denylist"]

MAX_ENTRIES = 250_000
"""Most entries of one list."""
MAX_LENGTH = 2_048
"""Most characters of an entry that is looked at. Names end at 253; a URL pasted by mistake may be longer."""
MAX_KEYS = 20
"""Most keys of one mapping, known or not; all spellings of all forms together are fewer."""
MAX_ISSUES = 1_000
"""Most issues that one error lists. If there are more, a last one says so."""
MORE_ISSUES = "and more issues"
"""The message of that last one."""


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
            elif not step.isidentifier() or quoted(step) != f'"{step}"':  # too long, or with a joiner in it
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


def _vercel_pattern(text: str) -> str:
    return text if text == "*" else canonical_pattern(text)


def _wrong(message: str, entry: object, step: str | int) -> InitErrorDetails:
    # The message alone: an exception would keep its traceback, and all that the frames in it hold.
    return InitErrorDetails(type="value_error", loc=(step,), input=entry, ctx={"error": message})


def _unreadable(entry: object, step: str | int) -> InitErrorDetails:
    if isinstance(entry, str):
        return _wrong(f"{quoted(entry)} is longer than {MAX_LENGTH:,} characters", entry, step)
    return InitErrorDetails(type="string_type", loc=(step,), input=entry)


# Entries are judged in loops of our own: pydantic would make an error, with an exception, of every wrong one
# before anybody could say that it is enough; and only the right ones count for its bound of a list.
def _each(canonical: Callable[[str], str]) -> Callable[[tuple[object, ...]], tuple[str, ...]]:
    """A validator of lists: every entry in its canonical form, once."""

    def check(entries: tuple[object, ...]) -> tuple[str, ...]:
        kept: list[str] = []
        issues: list[InitErrorDetails] = []
        for entry in entries:
            try:
                if isinstance(entry, str) and len(entry) <= MAX_LENGTH:
                    kept.append(canonical(entry))
                    continue
                issue = _unreadable(entry, len(kept) + len(issues))
            except ValueError as error:
                issue = _wrong(str(error), entry, len(kept) + len(issues))
            issues.append(issue)
            if len(issues) > MAX_ISSUES:
                break
        if issues:
            raise ValidationError.from_exception_data("list", issues)
        return tuple(dict.fromkeys(kept))

    return check


def _without_rules(domains: dict[object, object]) -> dict[str, tuple[()]]:
    """A validator of mappings from domains to lists of rules, each of them empty."""
    kept: list[str] = []
    issues: list[InitErrorDetails] = []
    for domain, rules in domains.items():
        step = domain if isinstance(domain, str | int) else repr(domain)
        try:
            if isinstance(domain, str) and len(domain) <= MAX_LENGTH:
                kept.append(_vercel_pattern(domain))
            else:
                issues.append(_unreadable(domain, step))
        except ValueError as error:
            issues.append(_wrong(str(error), domain, step))
        if not isinstance(rules, list | tuple):
            issues.append(InitErrorDetails(type="list_type", loc=(step,), input=rules))
        elif rules:
            issues.append(_wrong(_NO_RULES, rules, step))
        if len(issues) > MAX_ISSUES:
            break
    if issues:
        raise ValidationError.from_exception_data("mapping", issues)
    return dict.fromkeys(kept, ())


def _list_or_map(value: object) -> str | None:
    if isinstance(value, dict):
        return "map"
    return "list" if isinstance(value, list | tuple) else None


_NO_RULES = (
    "rules for a domain (transform, forwardURL, response, match) need decrypted traffic and are not "
    "supported; write [] to allow the domain"
)

type _Entries[Entry] = Annotated[tuple[Entry, ...], Field(max_length=MAX_ENTRIES)]
type _Domain = Annotated[str, SkipValidation]
type _Cidr = Annotated[str, SkipValidation]
type _VercelDomain = Annotated[str, SkipValidation]
type _VercelRules = Annotated[tuple[()], SkipValidation, WithJsonSchema({"type": "array", "maxItems": 0})]

_DOMAINS = AfterValidator(_each(canonical_pattern))
_CIDRS = AfterValidator(_each(canonical_cidr))
_VERCEL_DOMAINS = AfterValidator(_each(_vercel_pattern))


def check_few_keys(value: object, most: int) -> object:
    """``value``, unless it is a mapping of more keys: each unknown one would be an issue of its own.

    Raises:
        ValueError: it is.
    """
    if isinstance(value, Mapping) and len(value) > most:
        raise ValueError(f"more than {most} keys, most of them unknown")
    return value


class _Form(BaseModel):
    """A mapping of few keys, all of them known."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, value: object) -> object:
        return check_few_keys(value, MAX_KEYS)


class VercelSubnets(_Form):
    """``subnets`` of the Vercel form."""

    allow: Annotated[_Entries[_Cidr], _CIDRS] | None = None
    """Address ranges that any TCP protocol may reach without a name."""
    deny: Annotated[_Entries[_Cidr], _CIDRS] | None = None
    """Address ranges that nothing reaches, whatever allows it."""


class VercelPolicy(_Form):
    """The Vercel form: always an allowlist, unless ``allow`` holds ``*``."""

    allow: (
        Annotated[
            Annotated[_Entries[_VercelDomain], _VERCEL_DOMAINS, Tag("list")]
            | Annotated[
                dict[_VercelDomain, _VercelRules],
                Field(max_length=MAX_ENTRIES),
                AfterValidator(_without_rules),
                Tag("map"),
            ],
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


class NetworkPolicy(_Form):
    """What a box may connect to. Immutable; every accepted form validates to it."""

    mode: Mode
    """``allow-all``, ``deny-all``, or ``custom`` with lists."""
    allowed_domains: Annotated[_Entries[_Domain], _DOMAINS] | None = Field(
        None, validation_alias=AliasChoices(*SPELLINGS["allowed_domains"])
    )
    """Host names, and ``*.`` patterns for every name below one."""
    allowed_cidrs: Annotated[_Entries[_Cidr], _CIDRS] | None = Field(
        None, validation_alias=AliasChoices(*SPELLINGS["allowed_cidrs"])
    )
    """Address ranges that any TCP protocol may reach without a name."""
    denied_cidrs: Annotated[_Entries[_Cidr], _CIDRS] | None = Field(
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
            issues.append(PolicyIssue((), MORE_ISSUES))
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
