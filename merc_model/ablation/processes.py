"""Tasks in several processes beside each other, every one with a single thread: no result depends on their number."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TypeVar, cast

import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from merc_model.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def outcomes(work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[tuple[Task, Result]]:
    """Each task with its result, as they end; ``work`` and all that goes in and out must be picklable.

    The processes end with this one, however it ends. One job alone is done in this process.

    Raises:
        UserError: raised by a task; or a process that was killed, such as for want of memory.
        RuntimeError: any other error in a task, with its traceback.
    """
    if min(jobs, len(tasks)) == 1:
        with _one_thread():
            for task in tasks:
                yield task, work(task)
        return
    context = multiprocessing.get_context("spawn")
    waiting = deque(tasks)
    running: dict[Connection, tuple[SpawnProcess, Task]] = {}
    try:
        for _ in range(min(jobs, len(tasks))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, work), daemon=True)
            process.start()
            theirs.close()
            running[ours] = (process, waiting.popleft())
            ours.send(running[ours][1])
        while running:
            for pipe in cast(list[Connection], wait(list(running))):
                process, task = running[pipe]
                try:
                    result, error, unforeseen = pipe.recv()
                except EOFError:
                    process.join()
                    raise UserError(
                        f"a process of the training ended with exit code {process.exitcode}"
                        " (killed, or out of memory?); the same command goes on, with fewer --jobs perhaps"
                    ) from None
                if unforeseen:
                    raise RuntimeError(f"in a process of its own:\n{unforeseen}")
                if error:
                    raise UserError(error)
                if waiting:
                    running[pipe] = (process, waiting.popleft())
                    pipe.send(running[pipe][1])
                else:
                    del running[pipe]
                    pipe.close()
                    process.join()
                yield task, result
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()


def _serve(pipe: Connection, work: Callable[[Task], Result]) -> None:
    """Do what comes through the pipe until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the parent ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own is a semaphore too, which outlives a process that is killed
    with _one_thread():
        while True:
            try:
                task = pipe.recv()
            except EOFError:
                return
            try:
                answer = (work(task), "", "")
            except UserError as error:
                answer = (None, str(error), "")  # type: ignore[assignment]
            except Exception:
                answer = (None, "", traceback.format_exc())  # type: ignore[assignment]
            pipe.send(answer)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    with threadpool_limits(1):  # numpy's and scikit-learn's
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(before)
