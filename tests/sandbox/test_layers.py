"""What still holds in a box when an upper layer has been taken away: no defence stands alone."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from box_policy.sandbox.namespaces import NamespaceLauncher
from box_policy.sandbox.namespaces import launcher as launcher_module
from box_policy.sandbox.namespaces.box import NamespaceBox
from tests.sandbox.boxes import new_box, shell
from tests.sandbox.test_isolation import attempt

pytestmark = pytest.mark.asyncio(loop_scope="module")

# A box whose programs have no filter and every capability over U2.
BARE = """
import sys; sys.path.append(sys.argv[1])
from box_policy.sandbox.namespaces import seccomp, workload, zygote
seccomp.init_rules = seccomp.box_rules = lambda: []
workload.CAPABILITIES = frozenset(range(40))
zygote.main()
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bare_box() -> AsyncIterator[NamespaceBox]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launcher_module, "_ZYGOTE_CODE", BARE)
        launcher = NamespaceLauncher()
        async with new_box(launcher) as box:
            yield box
        await launcher.close()


async def test_the_layers_are_gone(bare_box: NamespaceBox) -> None:
    status = (await shell(bare_box, "grep CapEff /proc/self/status")).output
    assert int(status.split()[1], 16) == (1 << 40) - 1
    assert await attempt(bare_box, "os.open('/tmp/set-uid', os.O_CREAT | os.O_WRONLY, 0o4755)") == "done"


@pytest.mark.parametrize(
    "flag", [0x10000000, 0x40000000, 0x20000, 0x20000000, 0x8000000, 0x4000000, 0x2000000]
)
async def test_no_namespace_can_be_made(bare_box: NamespaceBox, flag: int) -> None:
    assert await attempt(bare_box, f"call(272 if x86 else 97, {flag})") == "ENOSPC"


@pytest.mark.parametrize(
    "code",
    [
        "call(165 if x86 else 40, b'none', b'/tmp', b'tmpfs', 0, 0)",
        "call(165 if x86 else 40, b'none', b'/usr', 0, 0x1020, 0)",
        "call(166 if x86 else 39, b'/proc/sys', 2)",
        "call(428, -100, b'/', 1)",
        "os.mknod('/tmp/device', 0o20666, os.makedev(1, 1))",
        "socket.sethostname('x')",
        "socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
        "call(101 if x86 else 117, 16, 1, 0, 0)",
    ],
)
async def test_the_boxs_mounts_network_and_first_process_belong_to_another(
    bare_box: NamespaceBox, code: str
) -> None:
    assert await attempt(bare_box, code) == "EPERM"


async def test_the_rules_cannot_be_touched(bare_box: NamespaceBox) -> None:
    # NFT_MSG_DELTABLE for everything, in a batch: what `nft flush ruleset` sends.
    flush = """
    import struct
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as sock:
        begin = struct.pack("=IHHIIBBH", 20, 16, 1, 1, 0, 0, 0, socket.htons(10))
        delete = struct.pack("=IHHIIBBH", 20, 0xA02, 5, 2, 0, 0, 0, 0)
        end = struct.pack("=IHHIIBBH", 20, 17, 1, 3, 0, 0, 0, socket.htons(10))
        sock.send(begin + delete + end)
        code, = struct.unpack_from("=i", sock.recv(4096), 16)
        if code:
            raise OSError(-code, "refused")
    """
    assert await attempt(bare_box, flush.strip()) == "EPERM"


async def test_kernel_settings_stay_read_only(bare_box: NamespaceBox) -> None:
    assert await attempt(bare_box, "open('/proc/sys/net/ipv4/ip_forward', 'w')") == "EROFS"
