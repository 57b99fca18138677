"""Ways past a filter that reads names, each tried from inside a real box and judged by what got out.

An attack is a short program against :class:`~tests.adversary.attacker.Attacker`, the hand inside the box.
What it came to is told by the test network alone: by the packets that left the gate's host, by what the
origins received, and by the questions that the authoritative name server was asked. The same attacks run
against another product's box: ``python -m tests.adversary --help``.
"""
