"""What clients may ask for: the bodies of requests, checked."""

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from box_policy.control.http.answers import ApiError
from box_policy.policy.model import check_few_keys
from box_policy.policy.quoting import quoted
from box_policy.service.errors import service_error
from box_policy.service.images import InvalidImageError, check_reference

MAX_TTL: Final = 259_200
"""Seconds, as the hosted service has it: 3 days."""
MAX_TIMEOUT: Final = 24 * 3600 * 1000
"""Milliseconds that a program may be given."""
MAX_ENVIRONMENT: Final = 64 * 1024
"""Bytes of all variables together."""
MAX_LABELS: Final = 5

_MAX_KEYS: Final = 40

_NOT_OURS: Final = {
    "agent": "agents",
    "agent_api_key": "agents",
    "attach_headers": "attaching headers, which takes decrypting what boxes send",
    "browser": "browsers",
    "custom_runner": "agents",
    "git_user_email": "git settings",
    "git_user_name": "git settings",
    "github_token": "git settings",
    "init_command": "commands at the start",
    "mcp_servers": "MCP servers",
    "model": "agents",
    "skills": "skills",
}
_RESERVED: Final = ("from-snapshot", "settings", "snapshots")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _name(text: str) -> str:
    if not _NAME.fullmatch(text) or text in _RESERVED:
        raise ValueError(
            "a name has letters, digits, '.', '_' and '-', at most 64, and is none of the API's own"
        )
    return text


def _text(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character, which no argument, path or variable can")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is no character") from None
    return text


def _image(text: str) -> str:
    try:
        return check_reference(text)
    except InvalidImageError as error:
        raise ValueError(str(error)) from None


def _environment(variables: dict[str, str]) -> dict[str, str]:
    for name in variables:
        if not _VARIABLE.fullmatch(name):
            raise ValueError(f"{quoted(name)} is no variable's name: letters, digits and '_', no digit first")
    if sum(len(name.encode()) + len(value.encode()) for name, value in variables.items()) > MAX_ENVIRONMENT:
        raise ValueError(f"the variables have more than {MAX_ENVIRONMENT // 1024} KiB")
    return variables


def _distinct(labels: list[str]) -> list[str]:
    return list(dict.fromkeys(labels))


type Text = Annotated[str, AfterValidator(_text)]
type Environment = Annotated[dict[str, Text], AfterValidator(_environment)]
type Label = Annotated[str, Field(min_length=1, max_length=20, pattern=r"^[^\x00-\x1f\x7f/]+$")]
type Labels = Annotated[list[Label], Field(max_length=MAX_LABELS), AfterValidator(_distinct)]
type Timeout = Annotated[float, Field(gt=0, le=MAX_TIMEOUT, allow_inf_nan=False)]


class RequestBody(BaseModel):
    """A request's body. An unknown key is an error: what is asked for is done, or refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _few_keys(cls, value: object) -> object:
        return check_few_keys(value, _MAX_KEYS)

    @classmethod
    def parse(cls, value: object) -> Self:
        """The request in a body.

        Raises:
            ApiError: with every issue.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise _refusal(error) from None


class CreateBox(RequestBody):
    """A new box."""

    name: Annotated[str, AfterValidator(_name)] | None = None
    labels: Labels = []
    size: str | None = None
    runtime: str | None = None
    image: Annotated[str, AfterValidator(_image)] | None = None
    """A container image, in place of a runtime; one that the operator allows."""
    keep_alive: bool = False
    ephemeral: bool = False
    ttl: Annotated[int, Field(ge=1, le=MAX_TTL)] | None = None
    """Seconds after which it is deleted. An ephemeral box has :data:`MAX_TTL` if it has no other."""
    env_vars: Environment = {}
    network_policy: Any = None
    """In any of the forms; parsed elsewhere."""
    snapshot_id: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_ours(cls, value: object) -> object:
        if isinstance(value, Mapping):
            # false, "" and [] ask for nothing.
            asked = [key for key in value if isinstance(key, str) and key in _NOT_OURS and value[key]]
            if asked:
                raise _not_ours(asked)
            return {key: item for key, item in value.items() if key not in _NOT_OURS}
        return value


class Command(RequestBody):
    """A program to run."""

    command: Annotated[list[Text], Field(min_length=1, max_length=4096)]
    folder: Text | None = None
    timeout: Timeout | None = None
    """Milliseconds."""
    env: Environment = {}


class Code(RequestBody):
    """A piece of code to run."""

    code: Annotated[str, AfterValidator(_text)]
    language: Literal["js", "ts", "python"]
    folder: Text | None = None
    timeout: Timeout | None = None
    """Milliseconds."""
    env: Environment = {}


class WriteFile(RequestBody):
    """A file to write."""

    path: Annotated[Text, Field(min_length=1)]
    content: str
    encoding: Literal["utf-8", "utf8", "base64"] | None = None


class MakeDirectory(RequestBody):
    """A directory to make."""

    path: Annotated[Text, Field(min_length=1)]
    parents: bool = False


class Rename(RequestBody):
    """A file to move."""

    source: Annotated[Text, Field(min_length=1, alias="from")]
    target: Annotated[Text, Field(min_length=1, alias="to")]


class Remove(RequestBody):
    """A file to remove."""

    path: Annotated[Text, Field(min_length=1)]
    recursive: bool = False


class TakeSnapshot(RequestBody):
    """A snapshot to take."""

    name: Annotated[str, Field(min_length=1, max_length=128), AfterValidator(_text)]


class AddLabel(RequestBody):
    """A label to put on a box."""

    label: Label


class Ids(RequestBody):
    """Boxes or snapshots to delete. Never none: a list that came out empty must not mean all."""

    ids: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=10_000)]

    @property
    def distinct(self) -> list[str]:
        """Each once, in their order."""
        return list(dict.fromkeys(self.ids))


class Variable(RequestBody):
    """The value of a variable for every box to come."""

    value: Text


class Variables(RequestBody):
    """All variables for every box to come."""

    env_vars: Environment


def check_variable(name: str) -> str:
    """The name of a variable, from a path. Raises ApiError."""
    if not _VARIABLE.fullmatch(name):
        raise service_error("request_invalid", f"{quoted(name)} is no variable's name")
    return name


def _not_ours(keys: Iterable[str]) -> ApiError:
    what = ", ".join(f"{key} ({_NOT_OURS[key]})" for key in keys)
    return service_error("not_supported", f"this service does not have: {what}")


def _refusal(error: ValidationError) -> ApiError:
    issues = [
        {"location": list(detail["loc"]), "message": _message(detail["msg"])}
        for detail in error.errors(include_url=False, include_input=False)
    ]
    first = issues[0]
    where = ".".join(map(str, first["location"]))
    more = f" (and {len(issues) - 1} more)" if len(issues) > 1 else ""
    text = f"{where}: {first['message']}" if where else str(first["message"])
    return service_error("request_invalid", f"the request is not acceptable: {text}{more}", issues=issues)


def _message(text: str) -> str:
    return text.removeprefix("Value error, ").replace("Extra inputs are not permitted", "unknown key")
