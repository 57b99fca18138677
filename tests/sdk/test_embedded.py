"""The service that a process starts for itself: one, found again by nobody, gone with its process."""

import asyncio
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from box_policy import AsyncBox, Box, BoxConnectionError, BoxError
from box_policy.sdk import embedded
from box_policy.sdk.embedded import Service
from tests.sdk.conftest import Client

pytestmark = pytest.mark.usefixtures("require_lab")


@pytest.fixture(autouse=True)
def own_service() -> Iterator[None]:
    yield
    embedded.end()


def ended(pid: int, within: float = 10) -> bool:
    """Whether a process ends in time."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    try:
        return bool(poll.poll(within * 1000))
    finally:
        os.close(pidfd)


def run(code: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run some Python in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        cwd=cwd,
    )


def test_there_is_one_for_all_threads() -> None:
    found: list[Service] = []
    threads = [threading.Thread(target=lambda: found.append(embedded.current())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({service.pid for service in found}) == 1


async def test_it_is_not_found_in_the_file_system_and_takes_no_key(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOX_POLICY_API_KEY", "of-another-service")
    assert await client(client.Box.list, api_key="x", timeout=30_000) == []
    assert embedded.current().address.startswith("\0box-policy-")


async def test_when_it_has_died_the_next_box_gets_another(client: Client) -> None:
    box = await client(client.Box.create, timeout=30_000)
    first = embedded.current()
    os.kill(first.pid, signal.SIGKILL)
    assert first.has_ended(wait=10)
    for call in (box.get_status, box.refresh_network_policy, box.delete):
        with pytest.raises(BoxConnectionError, match="the service that this box lived in has ended"):
            await client(call)
    with pytest.raises(BoxConnectionError, match="has ended"):
        await client(box.exec.session, cmd="true")
    another = await client(client.Box.create, timeout=30_000)
    assert embedded.current().pid != first.pid
    assert await client(another.refresh_network_policy) == {"mode": "allow-all"}


async def test_the_end_of_a_block_is_quiet_when_the_service_has_died(client: Client) -> None:
    box = await client(client.Box.create, timeout=30_000, delete_on_exit=True)
    await client.enter(box)
    os.kill(embedded.current().pid, signal.SIGKILL)
    await asyncio.to_thread(lambda: box._transport.target.service.has_ended(wait=10))
    await client.leave(box)


async def test_it_dies_in_the_middle_of_a_request(client: Client) -> None:
    box = await client(client.Box.create, timeout=30_000)
    service = embedded.current()
    threading.Timer(0.3, os.kill, (service.pid, signal.SIGKILL)).start()
    with pytest.raises(BoxConnectionError, match="has ended"):
        await client(box.exec.command, "sleep 30")


async def test_one_that_can_t_start_says_why(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_START", "import sys; sys.exit('no such luck \\x1b')")
    with pytest.raises(BoxError, match=r"could not be started; its last words were:\nno such luck \?"):
        await client(client.Box.create)


async def test_one_that_says_nothing(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_START", "")
    with pytest.raises(BoxError, match="has said nothing"):
        await client(client.Box.create)


def test_an_interpreter_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/none/python")
    with pytest.raises(BoxError, match=r"no service can be started.*base_url"):
        Box.list()
    monkeypatch.setattr(sys, "executable", "")
    with pytest.raises(BoxError, match="base_url"):
        Box.list()


SHOW = """
from box_policy import Box
from box_policy.sdk import embedded
Box.list(timeout=30_000)
print(embedded.current().pid, flush=True)
"""


@pytest.mark.parametrize(
    "end", ["", "os._exit(0)", "os.kill(os.getpid(), 9)", "raise SystemExit(3)", "1 / 0"]
)
def test_it_ends_with_its_process(end: str) -> None:
    assert ended(int(run(f"import os\n{SHOW}\n{end}").stdout))


FORK = """
import os, sys
if os.fork() == 0:
    os.close(1)
    sys.stdin.read()
os._exit(0)
"""


def test_a_child_that_lives_on_does_not_keep_it() -> None:
    command = [sys.executable, "-c", SHOW + FORK]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert ended(int(process.stdout.readline()))


def test_a_forked_child_starts_its_own() -> None:
    child = "\nimport os\nif os.fork():\n    os.wait()\n"  # both go on
    found = run(SHOW + child + SHOW).stdout.split()
    mine, its, mine_again = map(int, found)
    assert (mine_again, its != mine) == (mine, True)
    assert ended(its)


CHILD = """
import os
from box_policy import Box
with Box.create(network_policy="deny-all", timeout=30_000, delete_on_exit=True) as box:
    assert box.network_policy == {"mode": "deny-all"}
    child = os.fork()
    for _ in range(30):
        assert box.network_policy == {"mode": "deny-all"}
    if child == 0:
        os._exit(7)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_forked_child_may_use_its_parent_s_boxes() -> None:
    done = run(CHILD)
    assert (done.stdout, done.stderr) == ("7\n", "")


def test_it_starts_where_the_standard_streams_are_closed() -> None:
    code = f"import os\nos.close(0); os.close(2)\n{SHOW}"
    assert ended(int(run(code).stdout))


def test_nothing_of_the_caller_s_hides_a_module(tmp_path: Path) -> None:
    for place, names in (
        ("current", ["box_policy", "json", "typer", "asyncio"]),
        ("script", ["typer"]),
        ("variable", ["starlette", "typer"]),
    ):
        (tmp_path / place).mkdir()
        for name in names:
            (tmp_path / place / f"{name}.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "script/main.py").write_text(SHOW)
    done = subprocess.run(
        [sys.executable, tmp_path / "script/main.py"],
        cwd=tmp_path / "current",
        env={**os.environ, "PYTHONPATH": str(tmp_path / "variable")},
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_it_is_the_package_that_was_imported(tmp_path: Path) -> None:
    package = Path(embedded.__file__).parents[1]
    shutil.copytree(package, tmp_path / "box_policy", ignore=shutil.ignore_patterns("__pycache__"))
    main = tmp_path / "box_policy/__main__.py"
    main.write_text("def main(): raise SystemExit('this very package')")
    done = run(f"import sys; sys.path.insert(0, {str(tmp_path)!r}){SHOW}")
    assert "its last words were:\nthis very package" in done.stderr


async def test_several_loops_and_threads_use_one_box() -> None:
    box = await AsyncBox.create(network_policy="deny-all", timeout=30_000)
    plain = Box.get(box.id, timeout=30_000)

    def elsewhere() -> object:
        async def ask() -> object:
            return [await box.refresh_network_policy() for _ in range(5)]

        return asyncio.run(ask())

    def sync() -> object:
        return [plain.network_policy for _ in range(5)]

    results = await asyncio.gather(
        *(asyncio.to_thread(elsewhere) for _ in range(4)),
        *(asyncio.to_thread(sync) for _ in range(4)),
        *(box.refresh_network_policy() for _ in range(4)),
    )
    assert results == [[{"mode": "deny-all"}] * 5] * 8 + [{"mode": "deny-all"}] * 4
    await box.delete()


def test_its_address_is_closed_to_what_comes_after_it() -> None:
    service = embedded.current()
    Box.list(timeout=30_000)
    embedded.end()
    assert service.has_ended(wait=10)
    with socket.socket(socket.AF_UNIX) as late, pytest.raises(ConnectionRefusedError):
        late.connect(service.address)


async def test_nobody_takes_over_the_address_of_a_dead_one(client: Client) -> None:
    box = await client(client.Box.create, timeout=30_000)
    service = embedded.current()
    embedded.end()
    with socket.socket(socket.AF_UNIX) as impostor:
        impostor.bind(service.address)
        impostor.listen()
        impostor.setblocking(False)
        with pytest.raises(BoxConnectionError, match="has ended"):
            await client(box.update_network_policy, "deny-all")
        with pytest.raises(BoxConnectionError, match="has ended"):
            await client(box.exec.session, cmd="true")
        with pytest.raises(BlockingIOError):
            impostor.accept()
