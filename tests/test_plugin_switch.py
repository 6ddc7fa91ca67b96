"""The environment variable of a plugin, and what ranks with different values agree on."""

import re

import pytest
from lamport_rs import LamportError
from lamport_rs.plugin_switch import PluginSwitch

SWITCH = PluginSwitch("SOME_PLUGIN", ("one", "two", "three"))


@pytest.mark.parametrize(
    ("text", "named", "chosen"),
    [
        (None, None, {"one", "two", "three"}),
        ("", None, {"one", "two", "three"}),
        ("0", (), set()),
        (" 0 ", (), set()),
        ("two", ("two",), {"two"}),
        (" three , one", ("three", "one"), {"one", "three"}),
    ],
)
def test_the_environment_chooses(monkeypatch, text, named, chosen):
    monkeypatch.delenv(SWITCH.variable, raising=False)
    if text is not None:
        monkeypatch.setenv(SWITCH.variable, text)
    assert SWITCH.named() == named
    assert SWITCH.chosen() == chosen


@pytest.mark.parametrize("text", ["1", "off", "one;two", "one,", "0,two", "ONE"])
def test_what_is_no_part_is_an_error(monkeypatch, text):
    monkeypatch.setenv(SWITCH.variable, text)
    expected = f"SOME_PLUGIN is {text!r}, but must be 0, or a list of one, two, three, separated by commas; "
    with pytest.raises(LamportError, match=re.escape(expected)):
        SWITCH.chosen()


@pytest.mark.parametrize(
    ("mine", "others", "common", "with_more"),
    [
        ({"one", "two"}, [{"one", "two"}], {"one", "two"}, []),
        ({"one", "two"}, [{"two", "three"}, {"two"}], {"two"}, [0, 1]),
        ({"one"}, [set()], set(), [0]),
        (set(), [{"one", "two", "three"}], set(), [1]),
    ],
)
def test_ranks_agree_on_what_all_of_them_have_chosen(mine, others, common, with_more):
    def message_of(chosen: set[str]) -> bytes:
        sent: list[bytes] = []
        SWITCH.chosen_by_all(frozenset(chosen), lambda message: sent.append(message) or [message])
        return sent[0]

    def all_gather(message: bytes) -> list[bytes]:
        return [message, *map(message_of, others)]

    assert SWITCH.chosen_by_all(frozenset(mine), all_gather) == (common, with_more)
