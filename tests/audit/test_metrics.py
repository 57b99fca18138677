"""Records counted for Prometheus, under labels that no stranger chooses."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from box_policy.audit.metrics import Metrics
from box_policy.audit.records import Event, Outcome, PolicyRecord, Protocol
from box_policy.policy.reasons import Reason
from tests.audit.test_records import record


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Every sample, by its name and the values of its labels, which are in the order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }


def test_decisions_by_protocol_verdict_and_reason() -> None:
    metrics = Metrics("1.0")
    for _ in range(3):
        metrics(record())
    metrics(record(protocol=Protocol.DNS, allowed=True, reason=Reason.NAME_ALLOWED))
    found = samples(metrics)
    assert found["box_policy_decisions_total", "tls", "name_not_allowed", "deny"] == 3
    assert found["box_policy_decisions_total", "dns", "name_allowed", "allow"] == 1


def test_ends_and_what_they_carried() -> None:
    metrics = Metrics("1.0")
    for _ in range(2):
        metrics(record(event=Event.END, reason=Reason.CLOSED, bytes_up=10, bytes_down=200))
    metrics(record(event=Event.END, reason=Reason.RESET))
    found = samples(metrics)
    assert found["box_policy_connections_ended_total", "closed"] == 2
    assert found["box_policy_connections_ended_total", "reset"] == 1
    assert found["box_policy_bytes_total", "up"] == 20
    assert found["box_policy_bytes_total", "down"] == 400
    assert not any(name == "box_policy_decisions_total" for name, *_ in found)


def test_policies_by_outcome() -> None:
    metrics = Metrics("1.0")
    metrics(PolicyRecord(box="b", generation=1, outcome=Outcome.REFUSED, source="control"))
    found = samples(metrics)
    assert found["box_policy_policy_records_total", "refused"] == 1
    assert found["box_policy_policy_records_total", "accepted"] == 0


def test_numbers_that_are_asked_for() -> None:
    metrics = Metrics("1.0")
    boxes = [2]
    metrics.gauge("boxes", "Boxes.", lambda: boxes[0])
    metrics.counter("records_lost", "Lost.", lambda: 5)
    boxes[0] = 3
    found = samples(metrics)
    assert found["box_policy_boxes",] == 3
    assert found["box_policy_records_lost_total",] == 5
    assert found["box_policy_build_info", "1.0"] == 1


@pytest.mark.parametrize("event", [Event.DECISION, Event.END])
def test_what_boxes_say_is_no_label(event: Event) -> None:
    metrics = Metrics("1.0")
    for number in range(100):
        metrics(
            record(
                event=event, connection=number, box=f"box{number}", name=f"name{number}.test",
                claimed_address=f"192.0.2.{number}", rule=f"rule{number}", detail=f"detail{number}",
            )
        )  # fmt: skip
    text = metrics.render().decode()
    for word in ("box1", "name", "192.0.2", "rule", "detail"):
        assert word not in text.replace("name_not_allowed", "").replace("box_policy", "")
    assert len(samples(metrics)) < 12


def test_two_of_them_share_nothing() -> None:
    first, second = Metrics("1.0"), Metrics("1.0")
    first(record())
    assert samples(first) != samples(second)
