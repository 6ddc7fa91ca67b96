"""Introductions that lie about anything but the handle: the same error on every rank, promptly, in print."""

from dataclasses import replace

import pytest
import wire
from forger import buffer, check, outcomes, refusal, workspace

ESCAPES = b"\x1b[2J\x1b]0;owned\x07\r\nrank 0: all is well\x00\x7f\xc2\x9b1m\xe2\x80\xaeevil"
SHOWN = r"\u{1b}[2J\u{1b}]0;owned\u{7}\r\nrank 0: all is well\0\u{7f}\u{9b}1m\u{202e}evil"

LIES = {
    "another version": ({"version": b"9.9"}, "differ in version of lamport-rs: rank 0 has .*, rank 2 has 9.9"),
    "no version": ({"version": b""}, "differ in version"),
    "a version of 33 bytes": ({"version": b"9" * 33}, "rank 2 sent a payload that cannot be read"),
    "a version of 255 bytes": ({"version": b"9" * 255}, "rank 2 sent a payload that cannot be read"),
    "a version that is no text": ({"version": b"\xff\xfe"}, "rank 2 sent a payload that cannot be read"),
    "another host": ({"host": b"elsewhere"}, "differ in host: .*, rank 2 has elsewhere"),
    "another backend": ({"backend": b"cuda"}, "differ in backend: rank 0 has host, rank 1 has host, rank 2 has cuda"),
    "no backend": ({"backend": b""}, "differ in backend"),
    "another layout": (
        {"layout": 1},
        r"differ in layout of their memory: rank 0 has (\d+), rank 1 has \1, rank 2 has 1",
    ),
    "the last layout": ({"layout": 2**32 - 1}, "rank 2 has 4294967295"),
    "no group": ({"world_size": 0}, "differ in world_size"),
    "the largest group": ({"world_size": 2**64 - 1}, "rank 2 has 18446744073709551615"),
    "a negative group": ({"world_size": 2**64 - 3}, "differ in world_size"),
    "no memory": ({"comm_size": 0}, "rank 2 has 0"),
    "half of all memory": ({"comm_size": 2**63}, "rank 2 has 9223372036854775808"),
    "all memory": ({"comm_size": 2**64 - 1}, "rank 2 has 18446744073709551615"),
    "two shots from nothing on": ({"two_shot_from": 0}, "differ in two_shot_from: rank 0 has None, .*, rank 2 has 0"),
    "two shots from the end on": ({"two_shot_from": 2**64 - 2}, "rank 2 has 18446744073709551614"),
    "a device of 141 bytes": ({"device": b"x" * 141}, "rank 2 sent a payload that cannot be read"),
    "another device": (
        {"plan": (9, 0, 132, 2048, 32)},
        "cannot launch equal grids: .*, rank 2 has cpu, forged: 132 multiprocessors of sm_90 for 2048 threads and 32",
    ),
    "a narrow limit": (
        {"limits": ((7, 1000, 10),)},
        "bytes of shared memory failed: .* of rank 2 may have 1000 bytes, of which 10 are left; pass a smaller",
    ),
    "limits that overflow": ({"limits": ((2**64 - 1, 2**64 - 1, 0),) * 2}, "of which 0 are left"),
    "more limits than fit": ({"limits": ((7, 1000, 10),) * 3}, "rank 2 sent a payload that cannot be read"),
    "a nonce that looks like empty memory": ({"nonce": b"\0\0\0\x80" * 4}, "rank 2 sent a payload that cannot be"),
}


@pytest.mark.parametrize("create", [workspace, buffer], ids=lambda create: create.__name__)
@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_the_same_error_on_every_rank(name, create):
    changes, text = LIES[name]
    said = refusal(lambda hello: replace(hello, **changes), create=create)
    if create is buffer:
        text = text.replace("comm_size", "size")
    check(text, said)


@pytest.mark.parametrize("field", ["version", "host", "backend"])
def test_texts_of_a_peer_are_escaped(field):
    text = refusal(lambda hello: replace(hello, **{field: b"\x1b[2J\n\0"}))
    assert r"rank 2 has \u{1b}[2J\n\0; " in text


def test_the_device_of_a_peer_is_escaped_where_an_error_tells_it():
    text = refusal(lambda hello: replace(hello, device=ESCAPES, handle=b""))
    assert f"cannot map the memory of rank 2 ({SHOWN})" in text


@pytest.mark.parametrize(
    "change",
    [
        lambda payload: b"",
        lambda payload: payload[:-1],
        lambda payload: payload[:-4],
        lambda payload: payload + b"\0",
        lambda payload: payload + b"\0" * 100,
        lambda payload: b"\xff" + payload[1:],
        lambda payload: bytes(len(payload)),
        lambda payload: b"\xff" * len(payload),
        lambda payload: b"\x80" * 480,
    ],
    ids=["nothing", "a byte less", "a field less", "a byte more", "many more", "a long text", "zeros", "ones", "full"],
)
def test_a_payload_of_another_shape_is_refused(change):
    text = refusal(lambda hello: wire.message(0, 2, change(hello.encode())))
    assert text == "ranks 0, 1: rank 2 sent a payload that cannot be read"


def test_every_cut_of_a_payload_is_refused():
    lengths = []
    refusal(lambda hello: lengths.append(len(hello.encode())) or replace(hello, layout=0))
    for length in range(0, lengths[0], 5):
        text = refusal(lambda hello, length=length: wire.message(0, 2, hello.encode()[:length]))
        assert text == "ranks 0, 1: rank 2 sent a payload that cannot be read"


def test_a_device_may_be_called_anything_where_all_goes_well():
    for each in outcomes(lambda hello: replace(hello, device=ESCAPES)):
        assert not isinstance(each, Exception), each
