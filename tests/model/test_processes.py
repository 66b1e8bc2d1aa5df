from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from merc_model.ablation.processes import cores, outcomes
from merc_model.errors import UserError

THREADS = "__import__('torch').get_num_threads()"


def raising(error: str) -> str:
    return f"(_ for _ in ()).throw({error})"


def test_one_job_is_done_here_with_one_thread() -> None:
    before = torch.get_num_threads()
    here = "__import__('os').getpid()"
    assert list(outcomes(eval, [THREADS, here], 1)) == [(THREADS, 1), (here, os.getpid())]
    assert list(outcomes(eval, [here], 8)) == [(here, os.getpid())]
    assert torch.get_num_threads() == before
    assert cores() >= 1


def test_several_jobs_share_the_tasks_and_have_a_thread_each() -> None:
    tasks = [f"({number}, {THREADS}, __import__('os').getpid())" for number in range(5)]
    found = dict(outcomes(eval, tasks, 2))
    assert [found[task][:2] for task in tasks] == [(number, 1) for number in range(5)]
    processes = {found[task][2] for task in tasks}
    assert len(processes) <= 2
    assert os.getpid() not in processes


@pytest.mark.parametrize(
    ("task", "error", "message"),
    [
        pytest.param(
            *(raising("__import__('merc_model').UserError('no such thing')"), UserError, "^no such thing$"),
            marks=pytest.mark.full,
        ),
        ("1 / 0", RuntimeError, "ZeroDivisionError"),
        ("__import__('os')._exit(3)", UserError, r"ended with exit code 3.*the same command goes on"),
    ],
)
def test_what_goes_wrong_in_a_process_is_told_here(task: str, error: type[Exception], message: str) -> None:
    started = time.monotonic()
    with pytest.raises(error, match=message):
        list(outcomes(eval, [task, "__import__('time').sleep(600)"], 2))
    assert time.monotonic() - started < 300, "the other process is not waited for"


def test_processes_that_are_killed_leave_no_word_behind() -> None:
    bar = "[0 for _ in __import__('tqdm').tqdm([0], file=__import__('io').StringIO())]"
    program = (
        "from merc_model.ablation.processes import outcomes\n"
        f"try: list(outcomes(eval, [{bar + '[1]'!r}] * 2, 2))\n"
        "except RuntimeError: print('failed')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("failed\n", "")


@pytest.mark.skipif(sys.platform != "linux", reason="/proc shows whether a process is still there")
def test_no_process_outlives_a_killed_parent() -> None:
    here, long = "__import__('os').getpid()", "__import__('time').sleep(600)"
    program = (
        "from merc_model.ablation.processes import outcomes\n"
        f"for _, pid in outcomes(eval, [{here!r}, {long!r}, {long!r}], 2): print(pid, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert running(child)
        parent.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 120
        while running(child) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not running(child)


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False
