"""Handles of status pages that are lies: as those of blocks, they are claims."""

from dataclasses import replace

import lamport_rs
import pytest
import wire
from forger import (
    buffer,
    check,
    handle_of,
    have_all,
    memory_file,
    need_another_round,
    outcomes,
    refusal,
    truth,
    workspace,
)


@pytest.mark.parametrize("size", [0, 16, 1 << 20])
def test_a_page_of_another_size_is_refused(size):
    with memory_file(size) as file:
        check(
            r"cannot map the status page of rank 2 .*: the peer gives it \d+ bytes, but \d+ were agreed on",
            refusal(lambda hello: replace(hello, page=handle_of(file))),
        )


def test_a_page_that_can_shrink_is_refused():
    def lie(hello: wire.Hello) -> wire.Hello:
        return replace(hello, page=handle_of(file, size=wire.HostHandle.decode(hello.page).size))

    with memory_file(4096, seals=0) as file:
        check("cannot map the status page of rank 2 .*size can change in use", refusal(lie))


def test_a_file_of_a_stranger_is_refused(tmp_path):
    path = tmp_path / "letter"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file:
        check("no block of lamport-rs", refusal(lambda hello: replace(hello, page=handle_of(file.fileno()))))
    assert path.read_bytes() == bytes(4096)


@pytest.mark.parametrize("page", [b"", b"x" * 31, b"x" * 33], ids=["none", "a short one", "a long one"])
def test_what_is_no_handle_of_a_page_is_refused(page):
    check("cannot be read", refusal(lambda hello: replace(hello, page=page)))


def test_another_ranks_page_is_refused():
    heard: list[wire.Hello] = []
    text = refusal(lambda hello: replace(hello, page=heard[1].page), heard=heard)
    check("rank 1 and rank 2 sent handles of the same memory", text)


def test_a_page_without_the_mark_is_refused():
    with memory_file(4096, mark=b"another sixteen!") as file:
        check("verifying the shared memory", refusal(lambda hello: replace(truth(hello), page=handle_of(file))))


@pytest.mark.parametrize("create", [workspace, buffer], ids=lambda create: create.__name__)
@pytest.mark.parametrize("tell", [have_all, need_another_round], ids=lambda tell: tell.__name__)
def test_a_page_that_tells_the_truth_is_believed(tell, create):
    made = outcomes(tell=tell, create=create)
    assert [type(each) for each in made] == [
        {workspace: lamport_rs.LamportWorkspace, buffer: lamport_rs.IpcBuffer}[create]
    ] * 2


TOLD = {
    "another digest": wire.built(wire.WHOLE, [b"other messages"]),
    "no such state": wire.built(7, []),
    "bits": b"\xff" * 12,
}


@pytest.mark.parametrize("told", TOLD.values(), ids=TOLD)
def test_a_page_that_tells_anything_else_leads_to_another_round(told):
    made = outcomes(tell=lambda _gathered: told)
    assert [type(each) for each in made] == [lamport_rs.LamportWorkspace] * 2
    text = refusal(second=lambda _message: b"", tell=lambda _gathered: told)
    check("rank 2: its message has 0 bytes", text)


def test_a_page_that_tells_nothing_is_waited_for_as_long_as_the_timeout_says():
    errors = [str(error) for error in outcomes(tell=lambda _gathered: b"")]
    # Whichever gives up first tells the other.
    assert all("waited 2.0 s for rank 2 to map all memory" in text for text in errors), errors
