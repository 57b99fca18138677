"""A box that has been deleted, and one that somebody wants to copy."""

import copy
import pickle

import pytest

from box_policy import BoxNotFoundError
from tests.sdk.conftest import Client
from tests.sdk.stub import Stub


@pytest.mark.parametrize("kind", ["Box", "EphemeralBox"])
async def test_after_its_deletion_every_call_says_so(client: Client, stub: Stub, kind: str) -> None:
    box = await client(getattr(client, kind).create)
    await client(box.delete)
    assert stub.boxes == {}
    sent = len(stub.asked)
    for call, arguments, options in (
        (box.delete, [], {}),
        (box.get_status, [], {}),
        (box.refresh_network_policy, [], {}),
        (box.update_network_policy, ["deny-all"], {}),
        (box.cd, ["x"], {}),
        (box.snapshot, [], {"name": "s"}),
        (box.exec.command, ["true"], {}),
        (box.exec.stream, ["true"], {}),
        (box.exec.session, [], {"cmd": "true"}),
        (box.files.read, ["x"], {}),
    ):
        with pytest.raises(BoxNotFoundError, match=r"^this box was deleted$"):
            await client(call, *arguments, **options)
    with pytest.raises(BoxNotFoundError, match="this box was deleted"):
        _ = box.network_policy
    for manager in (box, box.temporary_network_policy("deny-all")):
        with pytest.raises(BoxNotFoundError, match="this box was deleted"):
            await client.enter(manager)
    await client.close(box)
    assert len(stub.asked) == sent


async def test_a_kept_alive_box_is_deleted_before_it_is_kept_alive(client: Client, stub: Stub) -> None:
    box = await client(client.Box.create, keep_alive=True)
    await client(box.delete)
    with pytest.raises(BoxNotFoundError, match="this box was deleted"):
        await client(box.pause)


async def test_the_end_of_its_block_deletes_it_for_good(client: Client, stub: Stub) -> None:
    box = await client(client.Box.create, delete_on_exit=True)
    await client.enter(box)
    await client.leave(box)
    with pytest.raises(BoxNotFoundError, match="this box was deleted"):
        await client(box.get_status)


async def test_a_deletion_inside_its_block_is_no_error(client: Client, stub: Stub) -> None:
    box = await client(client.Box.create, delete_on_exit=True)
    await client.enter(box)
    await client(box.delete)
    await client.leave(box)
    assert len(stub.paths("DELETE")) == 1


@pytest.mark.parametrize("by_itself", [True, False])
async def test_no_policy_is_restored_of_a_box_that_is_gone(
    client: Client, stub: Stub, by_itself: bool
) -> None:
    box = await client(client.Box.create)
    manager = box.temporary_network_policy("deny-all")
    await client.enter(manager)
    if by_itself:
        await client(box.delete)
    else:
        await client(client.Box.delete_boxes, box_ids=box.id)
    await client.leave(manager)
    assert len(stub.paths("PUT")) == (1 if by_itself else 2)


@pytest.mark.parametrize("take", [pickle.dumps, copy.copy, copy.deepcopy])
async def test_a_box_stays_in_its_process(client: Client, stub: Stub, take: object) -> None:
    assert callable(take)
    for kind in (client.Box, client.EphemeralBox):
        box = await client(kind.create)
        with pytest.raises(TypeError, match=r"send its id, and use Box\.get\(id, base_url=\.\.\.\) there"):
            take(box)
