"""A message whose words arrive one by one, on GPUs: lanes of a warp find theirs at other times, and meet again."""

import driver
import pytest
import test_arrival
from ranks import Rank
from reductions import NormedReduction, QuantisedSum

OPERATIONS = {
    **test_arrival.OPERATIONS,
    "norm in two shots": lambda me: NormedReduction.random(me, 4, 128, "two_shot"),
    "quantised sum in two shots": lambda me: QuantisedSum.random(me, 4, 128, "two_shot"),
}


def by_name(me: Rank, name: str, left_out: bool) -> str:
    return test_arrival.receive_word_by_word(me, OPERATIONS[name], left_out, driver.read_words, driver.write_words)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.gpu(2)
def test_words_may_arrive_in_any_order_and_at_any_time(ranks_of, name):
    assert ranks_of(2).run(by_name, name, False) == ["right", "sent"]


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.gpu(2)
def test_a_message_is_not_taken_before_its_last_word(ranks_of, name):
    """The planted defect: one word in the middle of a vector never comes."""
    assert ranks_of(2).run(by_name, name, True) == ["missed (1,)", "sent"]
