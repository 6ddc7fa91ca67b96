"""Handles of device memory that are not what was agreed on: refused on every rank, with the same error.

The last rank forges: it speaks the wire format by itself (`wire`), over memory that it got from the driver. The others
show it what they send before it answers.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import driver
import lamport_rs
import pytest
import torch
import torch.distributed as dist
import wire
from lamport_rs import LamportError, LamportWorkspace
from lamport_rs.rendezvous import all_gather_over
from ranks import Rank, errors_of
from worlds import WORLD_SIZES

MIB = 1 << 20
SIZE = 5 * MIB
"""Bytes of a buffer."""
AGREED = 6 * MIB
"""Bytes of its allocation: in whole 2 MiB."""
UUID_BYTES, HANDLE_BYTES = 16, 64


@contextmanager
def allocation(size: int) -> Iterator[bytes]:
    """The driver's handle of device memory of this process."""
    torch.cuda.synchronize()  # Also makes the device's context this thread's.
    address, handle = ctypes.c_uint64(), (ctypes.c_ubyte * HANDLE_BYTES)()
    driver.call("cuMemAlloc_v2", ctypes.byref(address), size)
    try:
        driver.call("cuIpcGetMemHandle", handle, address)
        yield bytes(handle)
    finally:
        driver.call("cuMemFree_v2", address)


def uuid_of(device: torch.device) -> bytes:
    handle, uuid = ctypes.c_int(), (ctypes.c_ubyte * UUID_BYTES)()
    driver.call("cuDeviceGet", ctypes.byref(handle), device.index)
    driver.call("cuDeviceGetUuid", uuid, handle)
    return bytes(uuid)


def freed() -> bytes:
    with allocation(AGREED) as handle:
        return handle


@dataclass(frozen=True)
class Attack:
    """What the forger sends, and what becomes of it."""

    text: str
    """What the honest ranks' error says."""
    handle: Callable[[bytes, list[wire.Hello]], bytes] = lambda handle, honest: handle
    """The driver's handle that it sends, by its own and what the others sent."""
    size: int = AGREED
    """Bytes that it allocates."""
    length: int | None = None
    """Bytes of device UUID and handle that it sends; None for as many as there are."""
    same_device: bool = False
    """Whether it says that it is on the first rank's device."""
    layout: int | None = None


ATTACKS = {
    "an allocation that is too small": Attack(
        f"it is {2 * MIB} bytes of device memory, mapped from byte 0 on, but {AGREED} bytes", size=2 * MIB
    ),
    "an allocation that is a little too small": Attack(f"it is {4 * MIB} bytes of device memory", size=4 * MIB),
    "an allocation that is too large": Attack(f"it is {8 * MIB} bytes of device memory", size=8 * MIB),
    "bytes that are no handle": Attack("cuIpcOpenMemHandle failed", lambda *_: os.urandom(HANDLE_BYTES)),
    "a handle of zeros": Attack("cuIpcOpenMemHandle failed", lambda *_: bytes(HANDLE_BYTES)),
    "a handle of ones": Attack("cuIpcOpenMemHandle failed", lambda *_: b"\xff" * HANDLE_BYTES),
    "a handle of memory that is gone": Attack("cuIpcOpenMemHandle failed", lambda *_: freed()),
    "no handle": Attack("its handle cannot be read", length=0),
    "half a device": Attack("its handle cannot be read", length=UUID_BYTES - 1),
    "a device without a handle": Attack("its handle cannot be read", length=UUID_BYTES),
    "a truncated handle": Attack("its handle cannot be read", length=UUID_BYTES + HANDLE_BYTES - 1),
    "a handle and a byte": Attack("sent a payload that cannot be read", length=UUID_BYTES + HANDLE_BYTES + 1),
    "the first rank's handle": Attack(
        "rank 0 and rank .* sent handles of the same memory", lambda _, honest: honest[0].handle[UUID_BYTES:]
    ),
    "another layout": Attack("the ranks differ in layout of their memory: rank 0 has", layout=1),
}

SAME_DEVICE = Attack("it is on the same GPU as this rank", same_device=True)


def forge(me: Rank, attack: Attack) -> None:
    """The forger's part of one construction."""
    group = all_gather_over(me.group)
    heard = group(bytes(wire.MESSAGE_BYTES))
    honest = [wire.Hello.decode(wire.content_of(message)) for message in heard[:-1]]
    with allocation(attack.size) as mine:
        device = honest[0].handle[:UUID_BYTES] if attack.same_device else uuid_of(me.device)
        handle = device + attack.handle(mine, honest)
        if attack.length is not None:
            handle = handle.ljust(attack.length, b"\0")[: attack.length]
        layout = honest[0].layout if attack.layout is None else attack.layout
        # Without a status page, which is shared memory: `test_attacks.py` forges those.
        changes = {"device": b"forged", "nonce": b"sixteen bytes!!!", "handle": handle, "page": b"", "layout": layout}
        forged = replace(honest[0], **changes)
        gathered = group(wire.message(0, me.rank, forged.encode()))
        group(bytes(wire.MESSAGE_BYTES))
        group(wire.message(1, me.rank, wire.transcript(gathered)))
        dist.barrier()


def construct(me: Rank, name: str, attack: Attack, create: str) -> None:
    """One construction, in which the last rank forges."""
    if me.rank == me.world_size - 1:
        forge(me, attack)
        return
    group = all_gather_over(me.group)

    def all_gather(message: bytes) -> list[bytes]:
        group(message)  # For the forger to hear.
        return group(message)

    try:
        if create == "buffer":
            made = lamport_rs.IpcBuffer(me.rank, me.world_size, SIZE, all_gather, device=me.device)
        else:
            made = LamportWorkspace(me.rank, me.world_size, SIZE, all_gather, device=me.device)
        pointers = getattr(made, "peer_ptrs", [])
        assert len(set(pointers)) == me.world_size
        del made
    finally:
        dist.barrier()


def construct_named(me: Rank, name: str, create: str) -> None:
    construct(me, name, ATTACKS[name], create)


def construct_on_the_same_device(me: Rank, create: str) -> None:
    construct(me, "same device", SAME_DEVICE, create)


def construct_honestly(me: Rank) -> None:
    construct(me, "nothing", Attack(""), "buffer")


def use(me: Rank) -> None:
    """The ranks are none the worse for it."""
    with me.workspace(MIB) as workspace:
        total = lamport_rs.all_reduce(torch.full((64,), 1.0 + me.rank, device=me.device), workspace)
        assert total.tolist() == [me.world_size * (me.world_size + 1) / 2] * 64
        torch.cuda.synchronize()
        dist.barrier()


def check_refused(ranks, text: str, function, *arguments) -> None:
    outcomes = ranks.try_run(function, *arguments)
    errors = errors_of(outcomes[:-1])
    assert outcomes[-1] is None, str(outcomes[-1])
    assert {type(error) for error in errors} == {LamportError}, errors
    assert {str(error) for error in errors} == {str(errors[0])}
    with pytest.raises(LamportError, match=text):
        raise errors[0]
    ranks.run(use)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_forger_that_does_not_lie_is_a_rank_like_any_other(ranks_of, world_size):
    """Else the refusals below would be those of a bad forger. A workspace would notice that it pushes nothing."""
    ranks_of(world_size).run(construct_honestly)


@pytest.mark.parametrize("create", ["buffer", "workspace"])
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_forged_handle_is_the_same_error_on_every_rank(ranks_of, world_size, name, create):
    attack = ATTACKS[name]
    # A workspace's allocation is larger than a buffer's, by what the layout says.
    text = attack.text if create == "buffer" else attack.text.split(", but ")[0]
    check_refused(ranks_of(world_size), text, construct_named, name, create)


@pytest.mark.own_gpus
@pytest.mark.parametrize("create", ["buffer", "workspace"])
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_a_forged_device_is_the_same_error_on_every_rank(ranks_of, world_size, create):
    check_refused(ranks_of(world_size), SAME_DEVICE.text, construct_on_the_same_device, create)
