"""Messages with wrong headers, and reasons of failures that no honest rank gives."""

import pytest
import wire
from forger import buffer, refusal, workspace

HEADERS = {
    "another format": ({"form": 77}, "rank 2: it runs a version of lamport-rs with message format 77"),
    "no format": ({"form": 0}, "message format 0"),
    "the last format": ({"form": 2**32 - 1}, "message format 4294967295"),
    "another kind": ({"kind": 2}, "rank 2: its message is not one of lamport-rs"),
    "the last kind": ({"kind": 2**32 - 1}, "rank 2: its message is not one of lamport-rs"),
    "more than a message holds": ({"length": 481}, "rank 2: its message is not one of lamport-rs"),
    "more than memory holds": ({"length": 2**32 - 1}, "rank 2: its message is not one of lamport-rs"),
    "another step": ({"step": 1}, "rank 2: it is at step 1 of the rendezvous, not 0"),
    "the last step": ({"step": 2**32 - 1}, "it is at step 4294967295"),
    "another rank": ({"rank": 0}, "rank 2: it is rank 2 of the group, but was told rank=0"),
    "a negative rank": ({"rank": -1}, "was told rank=-1"),
    "the least rank": ({"rank": -(2**63)}, "was told rank=-9223372036854775808"),
    "the last rank": ({"rank": 2**63 - 1}, "was told rank=9223372036854775807"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_wrong_header_is_the_same_error_on_every_rank(name):
    changes, text = HEADERS[name]

    def lie(hello: wire.Hello) -> bytes:
        fields = {"step": 0, "rank": 2, "content": hello.encode(), **changes}
        return wire.message(fields.pop("step"), fields.pop("rank"), fields.pop("content"), **fields)

    assert text in refusal(lie)


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        (b"no memory", "rank 2: no memory"),
        (b"", "rank 2: "),
        (b"a\nrank 0: all is well\x1b[8m", r"rank 2: a\nrank 0: all is well\u{1b}[8m"),
        (b"\x1b" * 480, r"\u{1b}\u{1b}"),
        (b"\xff" * 480, "\ufffd\ufffd"),
        ("\u202e\u2028\ufeff".encode(), r"\u{202e}\u{2028}\u{feff}"),
    ],
    ids=["told", "none", "escapes", "many escapes", "no text", "writing backwards"],
)
def test_a_reason_is_told_on_one_line_and_is_no_longer_than_a_message(reason, shown):
    text = refusal(lambda hello: wire.message(0, 2, reason, kind=wire.FAILURE))
    assert shown in text
    assert len(text.encode()) <= len("rank 2: ") + 480


@pytest.mark.parametrize("length", [0, 1, 31, 32, 511, 513, 1 << 16])
@pytest.mark.parametrize("byte", [b"\0", b"\xff", b"L"])
def test_bytes_that_are_no_message_are_refused(length, byte):
    assert "rank 2: its message has" in refusal(lambda hello: byte * length)


def test_a_message_that_was_another_ranks_is_refused():
    """As a transport might that mixes up whom it got a message from."""
    seen = []

    def lie(hello: wire.Hello) -> bytes:
        seen.append(hello)
        return wire.message(0, 1, hello.encode())

    assert "rank 2: it is rank 2 of the group, but was told rank=1" in refusal(lie)
    assert seen


SECOND = {
    "another digest": (lambda digest: wire.message(1, 2, bytes(8)), "brought the ranks different messages"),
    "no digest": (lambda digest: wire.message(1, 2, b""), "rank 2 sent a payload that cannot be read"),
    "half a digest": (lambda digest: wire.message(1, 2, digest[:4]), "rank 2 sent a payload that cannot be read"),
    "a digest and more": (lambda digest: wire.message(1, 2, digest + b"\0"), "rank 2 sent a payload that cannot be"),
    "the first step again": (
        lambda digest: wire.message(0, 2, digest),
        "rank 2: it is at step 0 of the rendezvous, not 1",
    ),
    "the step after": (lambda digest: wire.message(2, 2, digest), "rank 2: it is at step 2 of the rendezvous, not 1"),
    "a failure": (lambda digest: wire.message(1, 2, b"\x1b[2J", kind=wire.FAILURE), r"rank 2: \u{1b}[2J"),
    "no message": (lambda digest: b"", "rank 2: its message has 0 bytes"),
}


@pytest.mark.parametrize("create", [workspace, buffer], ids=lambda create: create.__name__)
@pytest.mark.parametrize("name", SECOND)
def test_a_lie_in_the_second_message_is_the_same_error_on_every_rank(name, create):
    change, text = SECOND[name]
    assert text in refusal(second=lambda message: change(wire.content_of(message)), create=create)
