"""`python -m utils`: run, fetch, doctor, summary, bench."""

import sys

from .cli import main

sys.exit(main())
