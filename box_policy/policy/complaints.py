"""What pydantic finds wrong with a policy, in words that lead its author to the right one."""

import difflib
from collections.abc import Mapping

from pydantic_core import ErrorDetails

from box_policy.policy.forms import MODE_KEYS, MODES, SPELLINGS, SUBNETS_KEYS, VERCEL_KEYS
from box_policy.policy.quoting import quoted

# Old names of modes, and words that other products use.
_OTHER_MODES = {
    "default-allow": "allow-all",
    "allow": "allow-all",
    "default-deny": "custom",
    "deny": "deny-all",
    "none": "deny-all",
    "allowlist": "custom",
    "denylist": "custom",
}
# Keys of the Vercel service for what can only be done to decrypted traffic.
_NEED_DECRYPTION = frozenset({"injectionRules", "forwardRules", "forwardingRules", "responseRules"})
# difflib is slow on long strings, and a key this long resembles none.
_LONGEST_RESEMBLANCE = 40


def explain(detail: ErrorDetails, value: object) -> tuple[tuple[str | int, ...], str]:
    """The location in the author's own keys, and the message. ``value`` is the whole policy."""
    location = _location(detail["loc"], value)
    found = detail["input"]
    match detail["type"]:
        case "value_error":
            return location, str(detail["ctx"]["error"])
        case "missing":
            return location[:-1], f'"{location[-1]}" is missing; write {_one_of(MODES)}'
        case "literal_error":
            return location, _wrong_mode(found)
        case "extra_forbidden":
            return location, _unknown_key(location, value)
        case "tuple_type" | "union_tag_not_found":
            if isinstance(found, str):
                return location, f"a list is needed, not a string: write [{quoted(found)}]"
            return location, f"a list of strings is needed, not {_kind_of(found)}"
        case "string_unicode":
            return location, f"{_kind_of(found)} is not valid Unicode"
        case "string_type":
            if isinstance(found, bool | int | float):
                return location, f"{_kind_of(found)}, not a string: put it in quotes"
            return location, f"{_kind_of(found)}, not a string"
        case "too_long":
            return location, f"more than {detail['ctx']['max_length']:,} entries"
        case "list_type":
            return location, f"a list is needed, not {_kind_of(found)}: write [] to allow the domain"
        case "model_type" | "dict_type" if location:
            return location, f"a mapping with {_one_of(SUBNETS_KEYS)} is needed, not {_kind_of(found)}"
        case "model_type" | "dict_type" | "model_attributes_type":
            return location, (
                f'a policy is a mapping with "mode", or "allow-all" or "deny-all"; this is {_kind_of(found)}'
            )
        case "invalid_key":
            return location, "keys are strings"
    return location, detail["msg"]


def _location(steps: tuple[str | int, ...], value: object) -> tuple[str | int, ...]:
    if not isinstance(value, Mapping):
        return ()
    if len(steps) >= 2 and steps[0] == "allow" and steps[1] in ("list", "map"):
        # pydantic's own steps: which of the two forms "allow" has, and that a key is meant.
        return steps[:1] + (steps[2:3] if steps[1] == "map" else steps[2:])
    return steps


def _wrong_mode(found: object) -> str:
    if not isinstance(found, str):
        return f"mode is one of {_one_of(MODES)}, not {_kind_of(found)}"
    meant = _OTHER_MODES.get(found.lower()) or _nearest(found.lower().replace("_", "-"), MODES)
    if meant is not None:
        return f'{quoted(found)} is not a mode; "{meant}" was meant?'
    return f"{quoted(found)} is not a mode; modes are {_one_of(MODES)}"


def _unknown_key(location: tuple[str | int, ...], value: object) -> str:
    key = str(location[-1])
    for spellings in SPELLINGS.values():
        if key in spellings and isinstance(value, Mapping):
            twins = [other for other in spellings if other != key and other in value]
            if twins:
                return f'given twice: "{twins[0]}" and "{key}" are the same key'
    if key in _NEED_DECRYPTION:
        return "not supported: it needs decrypted traffic"
    known = SUBNETS_KEYS if location[0] == "subnets" else (*MODE_KEYS, *VERCEL_KEYS)
    meant = _nearest(key, known)
    if meant is not None:
        return f'unknown key; "{meant}" was meant?'
    return f"unknown key; keys are {_one_of(known)}"


def _nearest(word: str, known: tuple[str, ...]) -> str | None:
    if len(word) > _LONGEST_RESEMBLANCE:
        return None
    return next(iter(difflib.get_close_matches(word, known, n=1)), None)


def _one_of(words: tuple[str, ...]) -> str:
    shown = [f'"{word}"' for word in words]
    return f"{', '.join(shown[:-1])} or {shown[-1]}"


def _kind_of(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"the number {str(value)[:40]}"
        case str():
            return f"the string {quoted(value)}"
        case Mapping():
            return "a mapping"
        case list() | tuple():
            return "a list"
    return f"a {type(value).__name__}"
