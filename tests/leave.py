"""Run a script as its own program, and leave at once when it has ended: python leave.py SCRIPT.

A model in DDP keeps gloo's threads after destroy_process_group (PyTorch 2.13); one that frees a tensor while Python is
ending aborts the process, as happens on a busy machine.
"""

import os
import runpy
import sys

runpy.run_path(sys.argv[1], run_name="__main__")
sys.stdout.flush()
os._exit(0)
