"""Reads answers that others have asked for, in a process beside the measurement's own.

That process runs when nobody else wants its core (SCHED_IDLE, sched(7)), so that what the measurement
times isn't the reading of others.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe
from typing import Any


def read_request(completion_id: str, position: int = 0) -> bytes:
    """The HTTP request for an answer's chunks after this position, and whatever comes then."""
    path = f"/v1/chat/completions/{completion_id}?stream=true&starting_after={position}"
    return f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()


@contextmanager
def beside(run: Callable[..., None], *arguments: Any) -> Iterator[Pipe]:
    """The pipe to a process that runs `run(pipe, *arguments)`; it is waited for at the end."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_run, args=(run, theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
        process.join()
    finally:
        process.kill()
        ours.close()


def _run(run: Callable[..., None], pipe: Pipe, *arguments: Any) -> None:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    run(pipe, *arguments)
