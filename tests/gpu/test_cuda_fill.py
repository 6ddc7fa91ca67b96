"""The fill with the sentinel: exactly the bytes it was asked for, and the driver's errors by name."""

import lamport_rs
import pytest
import torch
from lamport_rs import LamportError
from ranks import Rank
from reference import SENTINEL

GUARD = 7
WORDS = [0, 1, 2, 3, 4, 5, 7, 8, 31, 100, 255, 257, 1023, 4096, 100_003, (1 << 20) + 1, (1 << 24) + 3]
OFFSETS = [0, 1, 2, 3, 4, 5, 63]


def fill_parts(me: Rank) -> None:
    memory = torch.empty(max(WORDS) + 128, dtype=torch.int32, device=me.device)
    side = torch.cuda.Stream()
    for words in WORDS:
        for offset in OFFSETS:
            with torch.cuda.stream(side if words % 2 else torch.cuda.current_stream()):
                memory.fill_(GUARD)
                lamport_rs.lamport_fill_neg_zero(memory.data_ptr() + 4 * offset, 4 * words)
                what = f"{words} words at {offset}"
                assert bool((memory[:offset] == GUARD).all()), f"{what}: written before the beginning"
                assert bool((memory[offset : offset + words] == SENTINEL).all()), f"{what}: not all is filled"
                assert bool((memory[offset + words :] == GUARD).all()), f"{what}: written behind the end"
            side.synchronize()


@pytest.mark.gpu(1)
def test_the_fill_writes_what_it_is_asked_for_and_nothing_else(ranks_of):
    ranks_of(1).run(fill_parts)


def fill_badly(me: Rank) -> None:
    memory = torch.full((64,), GUARD, dtype=torch.int32, device=me.device)
    address = memory.data_ptr()
    for pointer, size in [(address, 3), (address, -4), (address + 2, 4), (address + 1, 4), (address, 10)]:
        with pytest.raises(LamportError, match="must be multiples of 4, and not negative"):
            lamport_rs.lamport_fill_neg_zero(pointer, size)
    assert bool((memory == GUARD).all())
    lamport_rs.lamport_fill_neg_zero(address, 256)
    assert bool((memory == SENTINEL).all())


@pytest.mark.gpu(1)
def test_a_fill_that_is_not_of_whole_words_is_refused(ranks_of):
    ranks_of(1).run(fill_badly)


def fill_what_is_not_there(me: Rank) -> str:
    torch.zeros(1, device=me.device)
    with pytest.raises(LamportError) as caught:
        lamport_rs.lamport_fill_neg_zero(16, 64)
    return str(caught.value)


@pytest.mark.gpu(1)
def test_an_error_of_the_driver_carries_the_call_its_name_and_its_text(new_gpu_ranks):
    """In a process of its own, as its context is of no use any more."""
    (text,) = new_gpu_ranks(1).run(fill_what_is_not_there)
    assert "cuStreamSynchronize failed: CUDA_ERROR_ILLEGAL_ADDRESS (" in text
    assert "illegal memory access" in text
