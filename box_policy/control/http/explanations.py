"""What a policy says to targets, without a connection being made."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from typing import Final

from box_policy.control.http.answers import ApiError, issues
from box_policy.control.http.bodies import Body
from box_policy.control.store import PolicyStore
from box_policy.gate.resolution import Resolution
from box_policy.policy.addresses import Address
from box_policy.policy.model import MAX_ISSUES, NetworkPolicy, PolicyError, PolicyIssue
from box_policy.policy.rules import CompiledPolicy
from box_policy.policy.targets import InvalidTarget, Target, judge_target, parse_target, verdict_fields

MAX_TARGETS: Final = 100
MAX_TARGET: Final = 2048
"""Characters of one target."""

_KEYS: Final = ("box", "policy", "targets", "resolve")


async def explain(
    body: Body, store: PolicyStore, resolve: Callable[[str], Awaitable[Resolution]]
) -> dict[str, object]:
    """The answer to a question about targets.

    Raises:
        ApiError: the question can't be read.
        UnknownBoxError: it is about a box that there is not.
    """
    question = body.value
    if not isinstance(question, dict):
        raise _invalid([PolicyIssue((), 'a mapping with "targets" and "box" or "policy" is needed')])
    found = _unknown_keys(question)
    if ("box" in question) == ("policy" in question):
        found.append(PolicyIssue((), 'either "box" or "policy" is needed'))
    elif not isinstance(question.get("box", ""), str):
        found.append(PolicyIssue(("box",), "a box's id is a string"))
    if not isinstance(question.get("resolve", False), bool):
        found.append(PolicyIssue(("resolve",), "true or false is needed"))
    targets = _targets(question.get("targets"), found)
    if found:
        raise _invalid(found)
    generation: int | None = None
    if "box" in question:
        in_force = store.get(question["box"])
        policy, generation = in_force.compiled, in_force.generation
    else:
        policy = await _compile(question["policy"], body, store)
    addresses = await _resolve(policy, targets, resolve) if question.get("resolve", False) else {}
    verdicts = [
        verdict_fields(target, judge_target(policy, target, _known(target, addresses))) for target in targets
    ]
    return {"box": question.get("box"), "generation": generation, "verdicts": verdicts}


def _unknown_keys(question: dict[str, object]) -> list[PolicyIssue]:
    count = len(question) - sum(key in question for key in _KEYS)
    unknown = islice((key for key in question if key not in _KEYS), MAX_ISSUES)
    found = [PolicyIssue((key,), f"unknown key; keys are {', '.join(_KEYS)}") for key in unknown]
    if count > MAX_ISSUES:
        found.append(PolicyIssue((), f"and {count - MAX_ISSUES} more unknown keys"))
    return found


def _targets(value: object, found: list[PolicyIssue]) -> list[Target]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_TARGETS:
        found.append(PolicyIssue(("targets",), f"a list of 1 to {MAX_TARGETS} targets is needed"))
        return []
    targets = []
    for index, text in enumerate(value):
        try:
            if not isinstance(text, str) or len(text) > MAX_TARGET:
                raise InvalidTarget(f"a target is a string of at most {MAX_TARGET} characters")
            targets.append(parse_target(text))
        except InvalidTarget as error:
            found.append(PolicyIssue(("targets", index), str(error)))
    return targets


async def _compile(value: object, body: Body, store: PolicyStore) -> CompiledPolicy:
    try:
        policy = await body.work(NetworkPolicy.parse, value)
    except PolicyError as error:
        raise _invalid(error.issues, under=("policy",)) from None
    return await store.compile(policy)


async def _resolve(
    policy: CompiledPolicy, targets: list[Target], resolve: Callable[[str], Awaitable[Resolution]]
) -> dict[str, Resolution]:
    # Only names that are allowed: what is asked of name servers leaves the house.
    names = {
        target.destination: None
        for target in targets
        if isinstance(target.destination, str) and judge_target(policy, target).allowed
    }
    found = await asyncio.gather(*(resolve(name) for name in names))
    return dict(zip(names, found, strict=True))


def _known(target: Target, found: dict[str, Resolution]) -> tuple[Address, ...] | None:
    """The addresses that a target was found to have; None if nobody looked."""
    if not isinstance(target.destination, str) or target.destination not in found:
        return None
    return found[target.destination].addresses


def _invalid(found: Iterable[PolicyIssue], *, under: tuple[str | int, ...] = ()) -> ApiError:
    return ApiError("request_invalid", "the question can't be answered", issues=issues(found, under=under))
