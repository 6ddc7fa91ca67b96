"""all_reduce in two shots on the host: the bits of one-shot, wherever the shards end."""

import lamport_rs
import pytest
import torch
from foreign_kernel import Table
from ranks import Rank
from reference import DTYPES, check_same_bits, random_tensor

LINE_BYTES = 64


def sizes(world_size: int, dtype: torch.dtype) -> list[int]:
    """Around the ends of shards, which are whole lines, and fewer vectors than ranks."""
    line = LINE_BYTES // dtype.itemsize
    around = [shards * lines * line for shards in (1, world_size - 1, world_size) for lines in (1, 3)]
    return [0, 1, *(size + off for size in around for off in (-1, 0, 1)), 70_001, 1, 300_000]


def compare_algorithms(me: Rank, dtype: torch.dtype) -> None:
    largest = max(sizes(me.world_size, dtype)) * dtype.itemsize
    workspace = me.workspace(lamport_rs.LamportWorkspace.compute_comm_size_for_all_reduce(largest, me.world_size))
    for index, size in enumerate(sizes(me.world_size, dtype)):
        tensor = random_tensor((size,), dtype, index, me.rank)
        one_shot = lamport_rs.all_reduce(tensor, workspace, algorithm="one_shot")
        what = f"{size} elements of {dtype} on {me.world_size} ranks"
        out = torch.full_like(tensor, torch.nan)
        lamport_rs.all_reduce(tensor, workspace, out=out, algorithm="two_shot")
        check_same_bits(out, one_shot, what)
        lamport_rs.all_reduce(tensor, workspace, out=tensor, algorithm="two_shot")
        check_same_bits(tensor, one_shot, f"{what}, in place")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("world_size", [2, 3, 4, 8])
def test_two_shot_gives_the_bits_of_one_shot(ranks_of, world_size, dtype):
    ranks_of(world_size).run(compare_algorithms, dtype)


def normalise_in_two_shots(me: Rank) -> str:
    tensor = torch.ones(2, 8)
    with pytest.raises(lamport_rs.LamportError) as error:
        lamport_rs.all_reduce_rms_norm(tensor, tensor, tensor[0], me.workspace(), algorithm="two_shot")
    return str(error.value)


def test_the_norm_of_the_sum_is_refused_in_two_shots(ranks_of):
    for text in ranks_of(2).run(normalise_in_two_shots):
        assert "one-shot only" in text


def choose_what_fits(me: Rank) -> None:
    """Three ranks and more: slots of twice the tensor are enough for two-shot, and too small for one-shot."""
    tensor = random_tensor((64 * me.world_size,), torch.float32, me.rank)
    with me.workspace(2 * tensor.nbytes) as small, me.workspace(me.world_size * tensor.nbytes) as large:
        total = lamport_rs.all_reduce(tensor, small)
        cleared = Table(small.workspace, me.world_size).extents.tolist()[0]
        assert cleared == 2 * tensor.nbytes, "not in one segment of two shots"
        check_same_bits(total, lamport_rs.all_reduce(tensor, large, algorithm="one_shot"), "auto")


@pytest.mark.parametrize("world_size", [3, 4, 8])
def test_where_only_two_shot_fits_it_is_chosen(ranks_of, world_size):
    ranks_of(world_size).run(choose_what_fits)


def choose_from(me: Rank, elements: int, two_shot_from: int | None) -> int:
    """The extent that the operation leaves to clear: four ranks use half as much of a slot by two-shot."""
    tensor = random_tensor((elements,), torch.float32, me.rank)
    workspace = me.workspace(me.world_size * tensor.nbytes, two_shot_from=two_shot_from)
    total = lamport_rs.all_reduce(tensor, workspace)
    chosen = Table(workspace.workspace, me.world_size).extents.tolist()[0]
    check_same_bits(total, lamport_rs.all_reduce(tensor, workspace, algorithm="one_shot"), "auto")
    return chosen


@pytest.mark.parametrize(("two_shot_from", "factor"), [(None, 4), (0, 2), (65_536, 2), (65_537, 4), (1 << 40, 4)])
def test_the_caller_can_say_from_which_size_tensors_are_summed_in_two_shots(ranks_of, two_shot_from, factor):
    assert ranks_of(4).run(choose_from, 16_384, two_shot_from) == [factor * 65_536] * 4


def compare_automatic(me: Rank) -> None:
    tensor = random_tensor((16_384,), torch.float32, me.rank)
    with me.workspace(me.world_size * tensor.nbytes) as workspace:
        check_same_bits(
            lamport_rs.all_reduce(tensor, workspace), lamport_rs.all_reduce(tensor, workspace, algorithm="one_shot"), ""
        )


@pytest.mark.parametrize("world_size", [2, 8])
def test_the_automatic_choice_gives_the_same_bits(ranks_of, world_size):
    ranks_of(world_size).run(compare_automatic)
