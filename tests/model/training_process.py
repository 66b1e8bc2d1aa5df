"""``merc train`` as torchrun starts it, in a process that says who it is and saves its state after every epoch."""

import os
import sys
from pathlib import Path

from merc_model import run
from merc_model.cli import main

if __name__ == "__main__":
    run._SECONDS_BETWEEN_SAVES = 0.0
    Path(os.environ["MERC_TEST_FOLDER"], f"rank-{os.environ['RANK']}").write_text(str(os.getpid()))
    sys.exit(main())
