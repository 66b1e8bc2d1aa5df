"""``python -m merc_model`` is the command ``merc``."""

import sys

from merc_model.cli import main

sys.exit(main())
