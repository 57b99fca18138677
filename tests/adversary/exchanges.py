"""What a box does with a gate, and what happens to it: scripts, to be repeated with a fault at each step."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from box_policy.policy.model import NetworkPolicy
from box_policy.policy.reasons import Reason
from tests.adversary.attack import CUSTOM
from tests.adversary.rig import BOX, DNS_PORT, Client, Rig
from tests.lab import plan

type Act = Callable[[Rig], Awaitable[Sequence[object]]]


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """Something that a box does, or that happens to it."""

    name: str
    act: Act
    """Returns what its clients see, a word for each step."""
    sees: Sequence[str]
    """The same, when nothing fails."""
    prepare: Callable[[Rig], Awaitable[None]] | None = None
    """What comes before any fault."""
    may_reach: frozenset[str] = frozenset()
    may_ask: frozenset[str] = frozenset()
    reasons: Sequence[Reason] = ()
    """Of the denials, when nothing fails."""
    tightens: bool = False
    """Whatever fails, all that ``prepare`` has opened has to end."""

    def __str__(self) -> str:
        return self.name


_WEBSOCKET: Final = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
_MESSAGE: Final = b"\x81\x82\0\0\0\0hi"
_REPLY: Final = b"\x81\x02hi"
_NAMED: Final = frozenset({plan.ALLOWED4, plan.ALLOWED6})
_ALLOWED: Final = frozenset({"allowed.test"})
_BULK: Final = 400_000
_DENIED: Final = CUSTOM | {"denied_cidrs": [f"{plan.ALLOWED4}/32", plan.CIDR, f"{plan.EVIL4}/32"]}

REFUSED: Final = "refused"
"""Nothing has changed, and whoever asked for it knows."""


async def _alert(client: Client) -> object:
    """An alert and the end, or the first bytes of something else."""
    seen = await client.read(7)
    if seen.kind == "alert" and seen.ended is None:
        end = await client.read()
        return seen if end.kind in ("eof", "reset") else end
    return seen if seen.ended is not None or seen.kind == "alert" else "data"


def hello(address: str, name: bytes | None, port: int = 443) -> Act:
    async def act(rig: Rig) -> list[object]:
        client = await rig.connect(address, port)
        await client.send(rig.hello(name))
        return [await _alert(client)]

    return act


def raw(address: str, port: int) -> Act:
    async def act(rig: Rig) -> list[object]:
        client = await rig.connect(address, port)
        await client.send(f"RAW {rig.nonce}\n".encode())
        return [await client.read()]

    return act


def http(address: str, *requests: str, port: int = 80, line: str = "GET / HTTP/1.1") -> Act:
    """Requests on one connection, each after the last one's response, then the end."""

    async def act(rig: Rig) -> list[object]:
        client = await rig.connect(address, port)
        seen: list[object] = []
        for host in requests:
            await client.send(rig.request(host, line=line))
            seen.append(await client.response())
            if seen[-1].kind != "http":  # type: ignore[attr-defined]
                break
        return seen

    return act


async def _http_close(rig: Rig) -> list[object]:
    client = await rig.connect(plan.EVIL4, 80)
    await client.send(rig.request("allowed.test", more="Connection: close\r\n"))
    return [await client.read()]


async def _http_body(rig: Rig) -> list[object]:
    client = await rig.connect(plan.ALLOWED4, 80)
    head = rig.request("allowed.test", line="POST /echo HTTP/1.1", more="Transfer-Encoding: chunked\r\n")
    await client.send(head + b"5\r\nhello\r\n")
    await asyncio.sleep(0)
    await client.send(b"6\r\n world\r\n0\r\n\r\n")
    return [await client.response()]


async def _http_malformed(rig: Rig) -> list[object]:
    client = await rig.connect(plan.EVIL4, 80)
    await client.send(rig.request("allowed.test").replace(b"X-Secret:", b"X-Secret :"))
    return [await client.read()]


async def _http_two_hosts(rig: Rig) -> list[object]:
    client = await rig.connect(plan.EVIL4, 80)
    await client.send(rig.request("allowed.test", more="Host: evil.test\r\n"))
    return [await client.read()]


async def _websocket(rig: Rig) -> list[object]:
    client = await rig.connect(plan.ALLOWED4, 80)
    await client.send(rig.request("allowed.test", line="GET /ws HTTP/1.1", more=_WEBSOCKET))
    head = await client.read(until=b"\r\n\r\n")
    if head.code != 101:
        return [head]
    await client.send(_MESSAGE)
    reply = await client.read(len(_REPLY))
    return [head, reply]


async def _echo(rig: Rig) -> list[object]:
    client = await rig.connect(plan.CIDR4, plan.ECHO_PORT)
    await client.send(b"x")
    first = await client.read(1)
    if first.kind != "data":
        return [first]
    client.end()
    return [first, await client.read()]


async def _bulk(rig: Rig) -> list[object]:
    client = await rig.connect(plan.CIDR4, plan.ECHO_PORT)
    sending = asyncio.create_task(client.send(bytes(_BULK)))
    seen = await client.read(_BULK)
    await sending
    return ["all" if len(seen.data) == _BULK else seen.ended or "less"]


async def _banner(rig: Rig) -> list[object]:
    client = await rig.connect(plan.CIDR4, plan.BANNER_PORT)
    return [await client.read(7)]


async def _gone_in_a_hello(rig: Rig) -> list[object]:
    client = await rig.connect(plan.EVIL4, 443)
    await client.send(rig.hello(b"allowed.test")[:20])
    client.end()
    return [await client.read()]


async def _own_port(rig: Rig) -> list[object]:
    client = await rig.connect_own()
    await client.send(rig.hello(b"allowed.test"))
    return [await client.read()]


def asks(name: str, kind: str = "A") -> Act:
    async def act(rig: Rig) -> list[object]:
        return [await rig.ask(name, kind)]

    return act


def asks_tcp(*names: str) -> Act:
    async def act(rig: Rig) -> list[object]:
        client = await rig.connect_own(DNS_PORT)
        seen: list[object] = []
        for name in names:
            seen.append(await rig.ask_tcp(client, name))
            if seen[-1] in ("eof", "reset", "silence"):
                break
        return seen

    return act


# What is open when a policy changes.


async def _open_everything(rig: Rig, box: str = BOX) -> None:
    """A connection in every state that there is, and a question under way."""
    rig.lab.dns.set("slow.wild.test", A=[plan.WILDCARD4], delay=0.5)
    echoing = await rig.connect(plan.CIDR4, plan.ECHO_PORT)
    await echoing.send(b"x")
    await echoing.read(1)
    relayed = await rig.connect(plan.EVIL4, 443)
    await relayed.send(rig.hello(b"allowed.test"))
    await relayed.read(1)
    kept = await rig.connect(plan.EVIL4, 80)
    await kept.send(rig.request("allowed.test"))
    await kept.response()
    held = await rig.connect(plan.EVIL4, 80)
    await held.send(rig.request("allowed.test", line="GET /hold HTTP/1.1"))
    socket = await rig.connect(plan.EVIL4, 80)
    await socket.send(rig.request("allowed.test", line="GET /ws HTTP/1.1", more=_WEBSOCKET))
    await socket.read(until=b"\r\n\r\n")
    dialling = await rig.connect(plan.CIDR4, plan.SILENT_PORT)
    half = await rig.connect(plan.EVIL4, 443)
    await half.send(rig.hello(b"allowed.test")[:20])
    await rig.lab.expect_async(lambda: any(request.target == "/hold" for request in rig.lab.requests()))
    resolving = await rig.connect(plan.EVIL4, 443)
    await resolving.send(rig.hello(b"slow.wild.test"))
    asking = await rig.connect(plan.EVIL4, 80)
    await asking.send(rig.request("slow.wild.test"))
    rig.opened = [echoing, relayed, kept, held, socket, dialling, half, resolving, asking]
    gated = rig.gate.boxes[box]
    async with asyncio.timeout(5):
        while len(gated.live) < len(rig.opened) or gated.pending < 3 or len(rig.gate.resolver._asking) < 2:
            await asyncio.sleep(0.001)


_OPENED: Final = 9


async def _ends(rig: Rig) -> list[object]:
    """How each of them has ended."""
    ends = await asyncio.gather(*(client.read(patience=1.0) for client in rig.opened))
    return ["silence" if end.ended == "timeout" else end.ended for end in ends]


def puts(policy: object) -> Act:
    """A new policy for the box. If that fails, the one before is in force, for the store and the gate."""

    async def act(rig: Rig) -> list[object]:
        before = rig.store._boxes[BOX]
        with contextlib.suppress(Exception):
            await rig.store.put(BOX, NetworkPolicy.parse(policy), source="test")
        known = rig.store._boxes[BOX]
        if (rig.box.policy, rig.box.generation) != (known.compiled, known.generation):
            return ["torn"]
        return [REFUSED] if known is before else await _ends(rig)

    return act


async def _drop(rig: Rig) -> list[object]:
    with contextlib.suppress(Exception):
        rig.store.remove(BOX, source="test")
    if (BOX in rig.store._boxes) != (BOX in rig.gate.boxes):
        return ["torn"]
    return [REFUSED] if BOX in rig.store._boxes else await _ends(rig)


async def _leave(rig: Rig) -> list[object]:
    """A client of a box whose sockets are served no more is not let in."""
    try:
        rig.gate.leave(BOX)
    except Exception:
        return [REFUSED]
    rig.stop_listening()
    client = await rig.connect(plan.CIDR4, plan.ECHO_PORT)
    await client.send(rig.nonce.encode())
    return [await client.read(1)]


EXCHANGES: Final = (
    Exchange(
        name="a hello with a name that is not allowed", act=hello(plan.EVIL4, b"evil.test"),
        sees=("alert 49",), reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Exchange(
        name="a hello without a name", act=hello(plan.EVIL4, None),
        sees=("alert 49",), reasons=(Reason.NO_NAME,),
    ),
    Exchange(
        name="a hello with an allowed name", act=hello(plan.EVIL4, b"allowed.test"), sees=("data",),
        may_reach=_NAMED, may_ask=_ALLOWED,
    ),
    Exchange(
        name="an allowed name at a private address", act=hello(plan.EVIL4, b"a_10-66-0-1_x.rebind.test"),
        sees=("alert 49",), may_ask=frozenset({"a_10-66-0-1_x.rebind.test"}),
        reasons=(Reason.RESOLVED_SPECIAL,),
    ),
    Exchange(
        name="an allowed name that refuses", act=hello(plan.ALLOWED4, b"allowed.test", plan.REFUSED_PORT),
        sees=("alert 80",), may_reach=_NAMED, may_ask=_ALLOWED,
    ),
    Exchange(
        name="a hello that breaks off", act=_gone_in_a_hello, sees=("reset",), reasons=(Reason.CLIENT_GONE,)
    ),
    Exchange(
        name="a request with a host that is not allowed", act=http(plan.EVIL4, "evil.test"),
        sees=("http 403",), reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Exchange(
        name="a request to an allowed host", act=_http_close, sees=("http 200",), may_reach=_NAMED,
        may_ask=_ALLOWED,
    ),
    Exchange(
        name="a second request to a host that is not allowed",
        act=http(plan.EVIL4, "allowed.test", "evil.test"), sees=("http 200", "http 403"),
        may_reach=_NAMED, may_ask=_ALLOWED, reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Exchange(
        name="requests to two allowed hosts",
        act=http(plan.EVIL4, "allowed.test", "a.wild.test", "allowed.test"),
        sees=("http 200",) * 3, may_reach=_NAMED | {plan.WILDCARD4},
        may_ask=_ALLOWED | {"a.wild.test"},
    ),
    Exchange(
        name="a request with a body", act=_http_body, sees=("http 200",), may_reach=_NAMED, may_ask=_ALLOWED
    ),
    Exchange(
        name="a request that can't be read", act=_http_malformed, sees=("http 400",),
        reasons=(Reason.HTTP_INVALID,),
    ),
    Exchange(
        name="a request with two hosts", act=_http_two_hosts, sees=("http 400",),
        reasons=(Reason.HOST_MISMATCH,),
    ),
    Exchange(
        name="a request to a host that refuses",
        act=http(plan.EVIL4, f"allowed.test:{plan.REFUSED_PORT}", port=plan.REFUSED_PORT),
        sees=("http 502",), may_reach=_NAMED, may_ask=_ALLOWED,
    ),
    Exchange(
        name="a request for a name at a private address",
        act=http(plan.EVIL4, "a_10-66-0-1_x.rebind.test"), sees=("http 403",),
        may_ask=frozenset({"a_10-66-0-1_x.rebind.test"}), reasons=(Reason.RESOLVED_SPECIAL,),
    ),
    Exchange(
        name="a WebSocket", act=_websocket, sees=("http 101", "data"), may_reach=_NAMED, may_ask=_ALLOWED
    ),
    Exchange(
        name="bytes to an allowed address", act=_echo, sees=("data", "eof"),
        may_reach=frozenset({plan.CIDR4}),
    ),
    Exchange(
        name="many bytes to an allowed address", act=_bulk, sees=("all",), may_reach=frozenset({plan.CIDR4})
    ),
    Exchange(
        name="a server that speaks first", act=_banner, sees=("data",), may_reach=frozenset({plan.CIDR4})
    ),
    Exchange(
        name="an allowed address that refuses", act=raw(plan.CIDR4, plan.REFUSED_PORT), sees=("reset",),
        may_reach=frozenset({plan.CIDR4}),
    ),
    Exchange(
        name="a hello to an allowed address", act=hello(plan.CIDR4, b"a.wild.test"), sees=("data",),
        may_reach=frozenset({plan.CIDR4}), may_ask=frozenset({"a.wild.test"}),
    ),
    Exchange(
        name="bytes to a foreign address", act=raw(plan.EVIL4, plan.ECHO_PORT), sees=("reset",),
        reasons=(Reason.PROTOCOL_UNKNOWN,),
    ),
    Exchange(
        name="bytes to a private address", act=raw(plan.PRIVATE4, 80), sees=("reset",),
        reasons=(Reason.SPECIAL_ADDRESS,),
    ),
    Exchange(
        name="a connection to the listener itself", act=_own_port, sees=("reset",),
        reasons=(Reason.SPECIAL_ADDRESS,),
    ),
    Exchange(name="an allowed question", act=asks("allowed.test"), sees=("NOERROR",), may_ask=_ALLOWED),
    Exchange(
        name="a question that is not allowed", act=asks("evil.test"), sees=("REFUSED",),
        reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Exchange(
        name="a question of a hidden type", act=asks("allowed.test", "HTTPS"), sees=("NOERROR",)
    ),
    Exchange(
        name="a question for a private address", act=asks("a_10-66-0-1_x.rebind.test"), sees=("NOERROR",),
        may_ask=frozenset({"a_10-66-0-1_x.rebind.test"}), reasons=(Reason.RESOLVED_SPECIAL,),
    ),
    Exchange(
        name="questions over TCP", act=asks_tcp("allowed.test", "evil.test"), sees=("NOERROR", "REFUSED"),
        may_ask=_ALLOWED, reasons=(Reason.NAME_NOT_ALLOWED,),
    ),
    Exchange(
        name="a policy that allows nothing any more", prepare=_open_everything, act=puts("deny-all"),
        sees=("reset",) * _OPENED, tightens=True,
    ),
    Exchange(
        name="a policy that denies what is open", prepare=_open_everything, act=puts(_DENIED),
        sees=("reset",) * _OPENED, tightens=True,
    ),
    Exchange(
        name="a box that goes away", prepare=_open_everything, act=_drop, sees=("reset",) * _OPENED,
        tightens=True,
    ),
    Exchange(
        name="a box whose sockets are left", act=_leave, sees=("ConnectionRefusedError",),
    ),
)  # fmt: skip
