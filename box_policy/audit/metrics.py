"""Records and live numbers, counted for Prometheus."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from box_policy.audit.records import Entry, Event, Outcome, PolicyRecord, Protocol, SuppressedRecord
from box_policy.policy.reasons import Reason

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

_PREFIX: Final = "box_policy_"


class Metrics(Collector):
    """A sink that counts. Labels come from fixed vocabularies: no box, name or address is ever one.

    The counts are plain dictionaries, made into metrics when somebody asks: a counter object of
    prometheus-client takes a lock at each step, of which a record at the end of a connection has three.
    To be used from the event loop alone.
    """

    def __init__(self, version: str) -> None:
        self._version = version
        self._decisions: defaultdict[tuple[Protocol, bool, Reason], int] = defaultdict(int)
        self._ends: defaultdict[Reason, int] = defaultdict(int)
        self._policies: dict[Outcome, int] = dict.fromkeys(Outcome, 0)
        self._suppressed = 0
        self._up = 0
        self._down = 0
        self._live: dict[str, tuple[str, bool, Callable[[], float]]] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def __call__(self, record: Entry) -> None:
        if isinstance(record, PolicyRecord):
            self._policies[record.outcome] += 1
        elif isinstance(record, SuppressedRecord):
            self._suppressed += record.records
        elif record.event is Event.DECISION:
            self._decisions[record.protocol, record.allowed, record.reason] += 1
        else:
            self._ends[record.reason] += 1
            self._up += record.bytes_up or 0
            self._down += record.bytes_down or 0

    def gauge(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Add a number that goes up and down, asked for at each scrape."""
        self._live[name] = help_text, False, value

    def counter(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Add a number that only grows, asked for at each scrape."""
        self._live[name] = help_text, True, value

    def render(self) -> bytes:
        """Everything in Prometheus's text format, of the type :data:`CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Nothing: the registry would ask for the values to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        decisions = CounterMetricFamily(
            f"{_PREFIX}decisions", "Decisions on connections, requests and questions.",
            labels=("protocol", "verdict", "reason"),
        )  # fmt: skip
        for (protocol, allowed, reason), count in self._decisions.items():
            decisions.add_metric((protocol, "allow" if allowed else "deny", reason), count)
        yield decisions
        ends = CounterMetricFamily(
            f"{_PREFIX}connections_ended", "Allowed connections that have ended.", labels=("reason",)
        )
        for reason, count in self._ends.items():
            ends.add_metric((reason,), count)
        yield ends
        carried = CounterMetricFamily(
            f"{_PREFIX}bytes",
            "Bytes carried by connections that have ended: up from boxes, down to them.",
            labels=("direction",),
        )
        carried.add_metric(("up",), self._up)
        carried.add_metric(("down",), self._down)
        yield carried
        policies = CounterMetricFamily(
            f"{_PREFIX}policy_records", "Policies that were offered.", labels=("outcome",)
        )
        for outcome, count in self._policies.items():
            policies.add_metric((outcome,), count)
        yield policies
        yield CounterMetricFamily(
            f"{_PREFIX}records_suppressed",
            "Records that were counted, and not written: there were too many of a box.",
            self._suppressed,
        )
        for name, (help_text, grows, value) in self._live.items():
            family = CounterMetricFamily if grows else GaugeMetricFamily
            yield family(_PREFIX + name, help_text, value())
        yield InfoMetricFamily(f"{_PREFIX}build", "This program.", {"version": self._version})
