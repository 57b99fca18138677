"""Answers a box's DNS questions, over UDP and TCP, as far as its policy lets them be asked.

DNS is itself a way out: a question carries data to whoever runs the zone. So a question is judged
before anything is asked upstream, and asked anew rather than passed on.
"""

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Any, Final

import dns.rcode
import dns.rdatatype

from box_policy.audit.records import Event, Protocol, Record, escape_name, listed, next_connection
from box_policy.audit.sinks import Audit
from box_policy.gate.boxes import GatedBox
from box_policy.gate.claim import FAILED, failure_record, limit_record
from box_policy.gate.descriptors import Descriptors
from box_policy.gate.limits import OUT_OF_RESOURCES, Limits
from box_policy.gate.reset import reset, reset_on_close
from box_policy.gate.resolver import AAAA, A, Answer, Resolver
from box_policy.policy.domains import name_from_wire
from box_policy.policy.reasons import Reason
from box_policy.policy.rules import Verdict
from box_policy.wire.dns_message import ExtendedError, Question, Rcode, read_question, refusal, write_answer
from box_policy.wire.dns_reply import RECORD_FORMATS

log = logging.getLogger(__name__)

_MAX_QUESTION: Final = 4096
"""Bytes of a message that may be a question; with all that EDNS may add, real ones have a few hundred."""
_MAX_MESSAGE: Final = 65535
_ACCEPT_PAUSE: Final = 0.25
"""Seconds until the next try, when there are no descriptors left."""
_DATAGRAMS_A_TURN: Final = 8

_NO_QUESTION: Final = Question(0, 0, Rcode.FORMERR)
_PROHIBITED: Final = (Reason.DENY_ALL, Reason.UNKNOWN_BOX)


class DnsServer:
    """Serves any number of boxes' DNS sockets on the running loop."""

    def __init__(
        self,
        resolver: Resolver,
        audit: Audit,
        limits: Limits,
        descriptors: Descriptors,
        search_domains: Sequence[str] = (),
    ) -> None:
        """``search_domains``: a denied name below one of these does not exist. Who looks for a name there
        first is to go on: musl doesn't after REFUSED, and never comes to the name itself."""
        self._resolver = resolver
        self._audit = audit
        self._limits = limits
        self._descriptors = descriptors
        self._searched = tuple(f".{domain}" for domain in search_domains)
        self._tasks: set[asyncio.Task[None]] = set()

    def serve_udp(self, sock: socket.socket, box: GatedBox) -> None:
        """Answer on a bound socket. The caller keeps owning it."""
        sock.setblocking(False)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._read_datagrams, sock, box)

    def serve_tcp(self, sock: socket.socket, box: GatedBox) -> None:
        """Answer on a listening socket. The caller keeps owning it."""
        sock.setblocking(False)
        asyncio.get_running_loop().add_reader(sock.fileno(), self._accept, sock, box)

    def forget(self, sock: socket.socket) -> None:
        """Stop serving a socket; to be called before it is closed."""
        asyncio.get_running_loop().remove_reader(sock.fileno())

    async def close(self) -> None:
        """Give up every question and connection under way."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # UDP

    def _read_datagrams(self, sock: socket.socket, box: GatedBox) -> None:
        for _ in range(_DATAGRAMS_A_TURN):
            try:
                message, sender = sock.recvfrom(_MAX_QUESTION)
            except OSError:
                return
            try:
                self._take_datagram(sock, box, message, sender)
            except Exception:
                log.exception("a question failed in the gate and is refused")
                self._audit.note(lambda: failure_record(box, Protocol.DNS))
                if (answer := refusal(message)) is not None:
                    _send(sock, answer, sender)

    def _take_datagram(self, sock: socket.socket, box: GatedBox, message: bytes, sender: Any) -> None:
        question = read_question(message)
        if question is None:
            self._record(box, _NO_QUESTION, Verdict.denied(Reason.QUESTION_INVALID))
        elif self._admit(box):
            task = self._spawn(box, self._answer_datagram(sock, box, question, sender))
            box.questions += 1
            task.add_done_callback(partial(_answered, box))
        else:
            error = (ExtendedError.OTHER, Reason.LIMIT)
            _send(sock, write_answer(question, Rcode.REFUSED, error=error), sender)

    async def _answer_datagram(
        self, sock: socket.socket, box: GatedBox, question: Question, sender: Any
    ) -> None:
        _send(sock, await self._answer(box, question, max_size=question.udp_size), sender)

    # TCP

    def _accept(self, sock: socket.socket, box: GatedBox) -> None:
        try:
            connection, _ = sock.accept()
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno in OUT_OF_RESOURCES:
                self._record_limit(box, "descriptors")
                loop = asyncio.get_running_loop()
                loop.remove_reader(sock.fileno())
                loop.call_later(_ACCEPT_PAUSE, self._accept_again, sock, box)
            elif error.errno == errno.EINVAL:
                self.forget(sock)  # it listens no more, and would be ready for ever: see the lane's Listener
            return
        try:
            if box.dns_connections >= self._limits.dns_connections or not self._descriptors.admit(
                connection.fileno(), len(box.live)
            ):
                reset(connection)
                self._record_limit(box, "connections")
                return
            connection.setblocking(False)
            visit = _Visit(box, connection)
            visit.task = self._spawn(box, self._serve_connection(connection, box))
        except Exception:
            log.exception("a connection failed in the gate and is closed")
            reset(connection)
            self._audit.note(lambda: failure_record(box, Protocol.DNS))
            return
        box.dns_connections += 1
        box.live.add(visit)
        visit.task.add_done_callback(visit.leave)

    def _accept_again(self, sock: socket.socket, box: GatedBox) -> None:
        if sock.fileno() >= 0:
            asyncio.get_running_loop().add_reader(sock.fileno(), self._accept, sock, box)

    async def _serve_connection(self, sock: socket.socket, box: GatedBox) -> None:
        """Questions one after the other, each behind its length (RFC 1035 section 4.2.2)."""
        writer = None
        try:
            reader, writer = await asyncio.open_connection(sock=sock)
            while True:
                async with asyncio.timeout(self._limits.dns_idle_timeout):
                    size = int.from_bytes(await reader.readexactly(2))
                    # What says that it is longer than any question is none: TLS or HTTP, say. Who speaks
                    # these waits for an answer, so the rest isn't waited for.
                    message = await reader.readexactly(size) if size <= _MAX_QUESTION else b""
                question = read_question(message)
                if question is None:
                    self._record(box, _NO_QUESTION, Verdict.denied(Reason.QUESTION_INVALID))
                if question is None or not self._admit(box):
                    reset_on_close(sock)
                    return
                box.questions += 1
                try:
                    answer = await self._answer(box, question, max_size=_MAX_MESSAGE)
                finally:
                    box.questions -= 1
                writer.write(len(answer).to_bytes(2) + answer)
                async with asyncio.timeout(self._limits.dns_idle_timeout):
                    await writer.drain()
                # Nothing above needs to wait, as long as there are more questions: others have their turn.
                await asyncio.sleep(0)
        except (OSError, EOFError, TimeoutError):
            pass
        finally:
            if writer is not None:
                # Not close(): that waits for a client that may never read what is buffered for it.
                writer.transport.abort()
            else:
                sock.close()

    # Both

    def _admit(self, box: GatedBox) -> bool:
        """May the box have one more question under way?"""
        if box.questions >= self._limits.dns_pending:
            self._record_limit(box, "questions")
            return False
        if not box.new_questions.take(time.monotonic()):
            self._record_limit(box, "new questions")
            return False
        return True

    async def _answer(self, box: GatedBox, question: Question, *, max_size: int) -> bytes:
        """The answer to an admitted question. Whatever goes wrong, a refusal."""
        try:
            return await self._judge_and_ask(box, question, max_size)
        except Exception:
            log.exception("a question failed in the gate and is refused")
            self._audit.note(lambda: _record_of(box, question, FAILED))
            return write_answer(question, Rcode.REFUSED, error=(ExtendedError.OTHER, FAILED.reason))

    async def _judge_and_ask(self, box: GatedBox, question: Question, max_size: int) -> bytes:
        if question.fault is not Rcode.NOERROR:
            self._record(box, question, Verdict.denied(Reason.QUESTION_INVALID), detail=question.fault.name)
            return write_answer(
                question, question.fault, error=(ExtendedError.NOT_SUPPORTED, Reason.QUESTION_INVALID)
            )
        name = name_from_wire(question.name)
        if name is None:
            return self._refuse(box, question, Verdict.denied(Reason.NAME_INVALID))
        verdict = box.policy.judge_question(name, question.type)
        if not verdict.allowed:
            return self._refuse(box, question, verdict)
        if question.type not in RECORD_FORMATS:
            self._record(box, question, verdict, detail="answered as empty")
            return write_answer(question, Rcode.NOERROR)

        answer = await self._ask(box, name, question.type)
        # The policy may have changed while the answer was awaited.
        verdict = box.policy.judge_question(name, question.type)
        if answer is None:
            verdict = Verdict.denied(Reason.POLICY_CHANGED, "" if verdict.allowed else verdict.rule)
        if not verdict.allowed or answer is None:
            return self._refuse(box, question, verdict)
        if answer.error:
            self._record(box, question, Verdict.denied(Reason.RESOLUTION_FAILED), detail=answer.error)
            # Not the error itself: it tells which name servers the host uses.
            error = (ExtendedError.NETWORK_ERROR, Reason.RESOLUTION_FAILED)
            return write_answer(question, Rcode.SERVFAIL, error=error)
        if question.type in (A, AAAA) and answer.records:
            return self._answer_addresses(box, question, name, answer, max_size)
        self._record(box, question, verdict)
        rcode = Rcode.NXDOMAIN if answer.rcode == dns.rcode.NXDOMAIN else Rcode.NOERROR
        return write_answer(question, rcode, records=answer.records, ttl=answer.ttl, max_size=max_size)

    async def _ask(self, box: GatedBox, name: str, kind: int) -> Answer | None:
        """Ask upstream. None if a new policy of the box's ends the wait."""
        try:
            async with asyncio.timeout(None) as wait:
                asked = _Asked(box, name, kind, wait)
                box.asking.add(asked)
                try:
                    return await self._resolver.ask(name, kind, asked.is_wanted, box.id)
                finally:
                    box.asking.discard(asked)
        except TimeoutError:
            return None

    def _answer_addresses(
        self, box: GatedBox, question: Question, name: str, answer: Answer, max_size: int
    ) -> bytes:
        addresses = answer.addresses()
        verdict = box.policy.judge_answer(name, addresses)
        self._record(box, question, verdict, resolved=listed(addresses))
        if not verdict.allowed:
            # An empty answer rather than a refusal: the name's other address family may be fine.
            return write_answer(question, Rcode.NOERROR, error=(ExtendedError.BLOCKED, verdict.reason))
        records = tuple((question.type, address.packed) for address in verdict.addresses)
        return write_answer(question, Rcode.NOERROR, records=records, ttl=answer.ttl, max_size=max_size)

    def _refuse(self, box: GatedBox, question: Question, verdict: Verdict) -> bytes:
        code = ExtendedError.PROHIBITED if verdict.reason in _PROHIBITED else ExtendedError.FILTERED
        rcode = Rcode.REFUSED
        if self._searched and (name_from_wire(question.name) or "").endswith(self._searched):
            rcode = Rcode.NXDOMAIN
        answer = write_answer(question, rcode, error=(code, verdict.reason))
        self._record(box, question, verdict)
        return answer

    def _record(
        self,
        box: GatedBox,
        question: Question,
        verdict: Verdict,
        *,
        resolved: tuple[str, ...] = (),
        detail: str = "",
    ) -> None:
        self._audit(_record_of(box, question, verdict, resolved=resolved, detail=detail))

    def _record_limit(self, box: GatedBox, what: str) -> None:
        if box.may_record_limit(time.monotonic(), f"DNS {what}"):
            self._audit.note(lambda: limit_record(box, Protocol.DNS, what))

    def _spawn(self, box: GatedBox, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(partial(self._ended, box))
        return task

    def _ended(self, box: GatedBox, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a question failed in the gate and is not answered", exc_info=error)
            self._audit.note(lambda: failure_record(box, Protocol.DNS))


class _Visit:
    """A DNS connection over TCP, on the box's list of live ones."""

    task: asyncio.Task[None]

    def __init__(self, box: GatedBox, sock: socket.socket) -> None:
        self._box = box
        self._sock = sock

    def cut(self, reason: Reason) -> None:
        self.task.cancel(reason)

    def failed(self, error: Exception) -> None:
        self.cut(Reason.INTERNAL_ERROR)

    def judge_again(self) -> bool:
        return False  # each question on it is judged by itself

    def buffered(self) -> int:
        return 0  # a question at a time

    def leave(self, _: asyncio.Task[None]) -> None:
        self._box.live.discard(self)
        self._box.dns_connections -= 1
        self._sock.close()  # the task may have ended before it could begin


class _Asked:
    """A question that upstream has been asked."""

    def __init__(self, box: GatedBox, name: str, kind: int, wait: asyncio.Timeout) -> None:
        self._box = box
        self._name = name
        self._kind = kind
        self._wait = wait
        self._over = False

    def is_wanted(self) -> bool:
        return not self._over and self._box.policy.judge_question(self._name, self._kind).allowed

    def buffered(self) -> int:
        return 0

    def cut(self, reason: Reason) -> None:
        if not self._over:
            self._over = True
            self._wait.reschedule(asyncio.get_running_loop().time())

    def failed(self, error: Exception) -> None:
        self.cut(Reason.INTERNAL_ERROR)

    def judge_again(self) -> bool:
        if self._over or self.is_wanted():
            return False
        self.cut(Reason.POLICY_CHANGED)
        return True


def _answered(box: GatedBox, _: asyncio.Task[None]) -> None:
    box.questions -= 1


def _record_of(
    box: GatedBox, question: Question, verdict: Verdict, *, resolved: tuple[str, ...] = (), detail: str = ""
) -> Record:
    kind = dns.rdatatype.to_text(dns.rdatatype.RdataType.make(question.type)) if question.section else ""
    return Record(
        event=Event.DECISION,
        connection=next_connection(),
        box=box.id,
        generation=box.generation,
        protocol=Protocol.DNS,
        allowed=verdict.allowed,
        reason=verdict.reason,
        rule=verdict.rule,
        name=escape_name(question.name) if question.section else None,
        resolved=resolved,
        detail=f"{kind} {detail}".strip(),
    )


def _send(sock: socket.socket, message: bytes, receiver: Any) -> None:
    try:
        sock.sendto(message, receiver)
    except OSError:
        pass  # as with any lost datagram, the client asks again
