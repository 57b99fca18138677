"""The lab's name server: UDP and TCP port 53 of every address."""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any, Final

from dnslib import EDNS0, QTYPE, DNSRecord

from tests.lab import plan
from tests.lab.origin.journal import Journal, endpoint
from tests.lab.origin.streams import Stream
from tests.lab.origin.zone import Entry, Zone
from tests.lab.records import Question

_PACKET_INFO: Final = struct.Struct("16si")  # in6_pktinfo, RFC 3542 section 6
_IPV6_FREEBIND: Final = 78
_SMALLEST_LIMIT: Final = 512  # RFC 1035 section 4.2.1


class NameServer:
    """Answers from a zone, and notes every message, sound or not."""

    def __init__(self, journal: Journal, zone: Zone) -> None:
        self._journal = journal
        self._zone = zone
        self._pending: set[asyncio.Task[None]] = set()
        self._socket = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # An answer must come from the address that was asked, which no interface has.
        self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_FREEBIND, 1)
        self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        self._socket.bind(("::", plan.DNS_PORT))
        self._socket.setblocking(False)
        asyncio.get_running_loop().add_reader(self._socket, self._readable)

    def reset(self) -> None:
        """Drop what is still to be answered."""
        for task in self._pending:
            task.cancel()

    async def serve(self, stream: Stream) -> None:
        """The service of TCP port 53: messages with their length before them."""
        buffer = b""
        while data := await stream.read():
            buffer += data
            while len(buffer) >= 2 and len(buffer) >= 2 + (length := int.from_bytes(buffer[:2])):
                message, buffer = buffer[2 : 2 + length], buffer[2 + length :]
                entry, answers = self._answers(
                    message, "tcp", stream.connection.address, stream.connection.peer
                )
                await asyncio.sleep(entry.delay)
                for answer in answers:
                    await stream.write(len(answer).to_bytes(2) + answer)

    def _readable(self) -> None:
        while True:
            try:
                message, info, _, peer = self._socket.recvmsg(65535, socket.CMSG_SPACE(_PACKET_INFO.size))
            except BlockingIOError:
                return
            address = _PACKET_INFO.unpack(info[0][2])[0]
            name = socket.inet_ntop(socket.AF_INET6, address).removeprefix("::ffff:")
            entry, answers = self._answers(message, "udp", name, endpoint(peer))

            def send(address: bytes = address, peer: Any = peer, answers: list[bytes] = answers) -> None:
                control = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PACKET_INFO.pack(address, 0))
                for answer in answers:
                    self._socket.sendmsg([answer], [control], 0, peer)

            if entry.delay:
                self._later(entry.delay, send)
            else:
                send()

    def _later(self, delay: float, send: Callable[[], None]) -> None:
        async def wait() -> None:
            await asyncio.sleep(delay)
            send()

        task = asyncio.get_running_loop().create_task(wait())
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)

    def _answers(
        self, message: bytes, transport: str, address: str, peer: tuple[str, int]
    ) -> tuple[Entry, list[bytes]]:
        """The messages to send back, and the entry that says when."""
        try:
            query = DNSRecord.parse(message)
            name = str(query.q.qname).removesuffix(".")
            number = query.q.qtype
            kind = QTYPE.forward.get(number, f"TYPE{number}")  # RFC 3597 section 5
        except Exception:
            # dnslib raises many things on hostile bytes; that something came is worth a record all the same.
            self._journal.asked(Question("", "", transport, address, peer, message))
            return Entry(), []
        self._journal.asked(Question(name, kind, transport, address, peer, message))
        entry = self._zone.find(name) or Entry()
        if entry.silent:
            return entry, []
        if entry.raw is not None:
            return entry, [message[:2] + entry.raw[2:]]
        reply = self._zone.answer(query, name, kind)
        limit = 65535
        if transport == "udp":
            limit = _SMALLEST_LIMIT
        if any(record.rtype == QTYPE.OPT for record in query.ar):
            limit = max(limit, *(record.edns_len for record in query.ar if record.rtype == QTYPE.OPT))
            reply.add_ar(EDNS0(udp_len=4096))
        packed = bytes(reply.pack())
        if transport == "udp" and (entry.truncate or len(packed) > limit):
            empty = query.reply(ra=1, aa=0)
            empty.header.tc = 1
            packed = bytes(empty.pack())
        answers = [packed]
        if entry.wrong_question_first:
            forged = DNSRecord.parse(packed)
            forged.questions[0].qname = "not-what-was-asked.test"
            answers.insert(0, bytes(forged.pack()))
        if entry.wrong_id_first:
            answers.insert(0, bytes((packed[0] ^ 0xFF, packed[1])) + packed[2:])
        return entry, answers
