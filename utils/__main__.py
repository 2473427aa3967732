"""`python -m utils`: run, fetch, doctor, summary, new, checkin, sweep, pretrain, container, bench."""

import sys

from .cli import main

sys.exit(main())
