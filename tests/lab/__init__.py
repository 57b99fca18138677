"""The test network: the gate's host and the origins, in namespaces with no route out.

``enter()`` moves the test process into "the gate's host". ``Lab.start()`` joins to it, by a pair of
virtual interfaces, the one other host there is: the origin, which owns every address in the world,
answers on all of them and records all that reaches it.
"""

from tests.lab.lab import Lab, LabError
from tests.lab.namespace import LabUnavailable, enter
from tests.lab.records import Connection, Packet, Question, Request

__all__ = [
    "Connection",
    "Lab",
    "LabError",
    "LabUnavailable",
    "Packet",
    "Question",
    "Request",
    "enter",
]
