"""`python -m bench mnist speech`: measure the named tasks, or all of them."""

import sys

from .claims import bench

if __name__ == "__main__":
    try:
        sys.exit(bench(sys.argv[1:] or ["all"]))
    except ValueError as e:
        sys.exit(str(e))
