"""How many cores a test may use: the workers of pytest-xdist share them."""

import os

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


def of_a_worker() -> int:
    """Those of one worker; all of them without workers."""
    return max(1, (os.cpu_count() or 1) // WORKERS)
