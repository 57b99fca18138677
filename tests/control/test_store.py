"""The store: whole policies, one change after the other, generations that count them."""

import asyncio
import threading

import pytest

from box_policy.audit.records import Entry, Outcome, PolicyRecord
from box_policy.audit.sinks import Audit
from box_policy.control.store import (
    BoxExistsError,
    InForce,
    PolicyStore,
    StaleGenerationError,
    UnknownBoxError,
)
from box_policy.policy.model import NetworkPolicy
from box_policy.policy.rules import CompiledPolicy

DENY_ALL = NetworkPolicy.parse("deny-all")
ALLOW_ALL = NetworkPolicy.parse("allow-all")


def custom(*names: str) -> NetworkPolicy:
    return NetworkPolicy.parse({"mode": "custom", "allowed_domains": names})


def huge(number: int) -> NetworkPolicy:
    """More than the loop compiles itself."""
    return custom(*(f"n{index}.x{number}.test" for index in range(1_500)))


class Gate:
    """Notes what it is told to enforce."""

    def __init__(self) -> None:
        self.enforced: list[tuple[str, NetworkPolicy, int]] = []
        self.dropped: list[str] = []
        self.compiled_in: set[threading.Thread] = set()

    def compile(self, policy: NetworkPolicy) -> CompiledPolicy:
        self.compiled_in.add(threading.current_thread())
        return CompiledPolicy(policy)

    def put_policy(self, box_id: str, policy: CompiledPolicy, generation: int) -> int:
        self.enforced.append((box_id, policy.policy, generation))
        return 3

    def drop(self, box_id: str) -> None:
        self.dropped.append(box_id)


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def records() -> list[Entry]:
    return []


@pytest.fixture
def store(gate: Gate, records: list[Entry]) -> PolicyStore:
    store = PolicyStore(gate, Audit(records.append))
    store.create("b", DENY_ALL, source="start")
    return store


class TestChanges:
    async def test_a_new_policy_is_the_next_generation(
        self, store: PolicyStore, gate: Gate, records: list[Entry]
    ) -> None:
        new = await store.put("b", ALLOW_ALL, source="control")
        assert (new.generation, new.policy, new.source) == (2, ALLOW_ALL, "control")
        assert store.get("b") is new
        assert gate.enforced == [("b", DENY_ALL, 1), ("b", ALLOW_ALL, 2)]
        last = records[-1]
        assert isinstance(last, PolicyRecord)
        assert (last.outcome, last.generation, last.detail) == (
            Outcome.ACCEPTED, 2, "allow-all, 3 connections cut",
        )  # fmt: skip

    @pytest.mark.parametrize("same", [DENY_ALL, NetworkPolicy.parse({"mode": "deny-all"})])
    async def test_the_same_policy_changes_nothing(
        self, store: PolicyStore, gate: Gate, records: list[Entry], same: NetworkPolicy
    ) -> None:
        before = store.get("b")
        assert await store.put("b", same, source="control") is before
        assert (len(gate.enforced), len(records)) == (1, 1)

    async def test_an_empty_list_is_not_an_absent_one(self, store: PolicyStore) -> None:
        await store.put(
            "b", NetworkPolicy.parse({"mode": "custom", "denied_cidrs": ["51.81.0.0/16"]}), source=""
        )
        denied = {"mode": "custom", "denied_cidrs": ["51.81.0.0/16"], "allowed_domains": []}
        assert (await store.put("b", NetworkPolicy.parse(denied), source="")).generation == 3

    async def test_another_box_stays_as_it_is(self, store: PolicyStore) -> None:
        other = store.create("other", ALLOW_ALL, source="start")
        await store.put("b", custom("x.test"), source="control")
        assert store.get("other") is other

    async def test_a_hundred_at_once_are_numbered_one_after_the_other(self, store: PolicyStore) -> None:
        told: list[InForce] = []
        store.subscribe(told.append)
        policies = [huge(number) if number % 10 == 0 else custom(f"x{number}.test") for number in range(100)]
        done = await asyncio.gather(*(store.put("b", policy, source="control") for policy in policies))
        assert [new.generation for new in told] == list(range(2, 102))
        assert {new.generation: new.policy for new in done} == {new.generation: new.policy for new in told}
        assert store.get("b") is told[-1]

    async def test_a_large_policy_is_compiled_in_a_thread(self, store: PolicyStore, gate: Gate) -> None:
        await store.put("b", custom("x.test"), source="control")
        assert gate.compiled_in == {threading.main_thread()}
        await store.put("b", huge(1), source="control")
        assert len(gate.compiled_in) == 2


class TestExpectedGeneration:
    async def test_the_one_in_force(self, store: PolicyStore) -> None:
        assert (await store.put("b", ALLOW_ALL, source="control", expected={1})).generation == 2
        assert (await store.put("b", DENY_ALL, source="control", expected={7, 2})).generation == 3

    @pytest.mark.parametrize("expected", [{0}, {2}, set()])
    async def test_another(self, store: PolicyStore, gate: Gate, expected: set[int]) -> None:
        with pytest.raises(StaleGenerationError) as error:
            await store.put("b", ALLOW_ALL, source="control", expected=expected)
        assert error.value.current == 1
        assert (store.get("b").policy, len(gate.enforced)) == (DENY_ALL, 1)

    async def test_of_two_that_expect_the_same_one_comes_too_late(self, store: PolicyStore) -> None:
        results = await asyncio.gather(
            *(store.put("b", huge(number), source="control", expected={1}) for number in range(2)),
            return_exceptions=True,
        )
        assert sorted(type(result).__name__ for result in results) == ["InForce", "StaleGenerationError"]
        assert store.get("b").generation == 2


class TestBoxes:
    async def test_unknown(self, store: PolicyStore, gate: Gate) -> None:
        with pytest.raises(UnknownBoxError, match="no box 'x'"):
            await store.put("x", ALLOW_ALL, source="control")
        with pytest.raises(UnknownBoxError):
            store.get("x")
        with pytest.raises(UnknownBoxError):
            store.remove("x", source="test")
        assert len(gate.enforced) == 1

    def test_known_already(self, store: PolicyStore, gate: Gate) -> None:
        with pytest.raises(BoxExistsError):
            store.create("b", ALLOW_ALL, source="start")
        assert len(gate.enforced) == 1

    async def test_removed(self, store: PolicyStore, gate: Gate) -> None:
        store.remove("b", source="test")
        assert ("b" in store, len(store), list(store), gate.dropped) == (False, 0, [], ["b"])

    async def test_removed_while_its_policy_is_compiled(self, store: PolicyStore, gate: Gate) -> None:
        putting = asyncio.create_task(store.put("b", huge(1), source="control"))
        await asyncio.sleep(0)
        store.remove("b", source="test")
        with pytest.raises(UnknownBoxError):
            await putting
        assert len(gate.enforced) == 1

    async def test_are_listed_by_name(self, store: PolicyStore) -> None:
        store.create("a", ALLOW_ALL, source="start")
        assert [box.box for box in store] == ["a", "b"]


class TestSubscribers:
    async def test_are_told_until_they_leave(self, store: PolicyStore) -> None:
        told: list[InForce] = []
        leave = store.subscribe(told.append)
        await store.put("b", ALLOW_ALL, source="control")
        leave()
        await store.put("b", DENY_ALL, source="control")
        assert [new.generation for new in told] == [2]

    async def test_one_that_fails_undoes_nothing_and_hides_nothing(self, store: PolicyStore) -> None:
        def broken(_: InForce) -> None:
            raise RuntimeError("a bug")

        told: list[InForce] = []
        store.subscribe(broken)
        store.subscribe(told.append)
        assert (await store.put("b", ALLOW_ALL, source="control")).generation == 2
        assert len(told) == 1
