"""The command line. Each command is imported when it is called: `doctor` must work without torch."""

from __future__ import annotations

import argparse
import sys

from .. import days


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="python -m utils", description=__doc__)
    commands = p.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="execute the notebooks of some or all days")
    run.add_argument(
        "--days", type=int, nargs="+", metavar="N", help="by default all that exist"
    )
    run.add_argument("--profile", choices=days.PROFILES, default="quick")

    fetch = commands.add_parser(
        "fetch", help="get data sets: resumes, verifies, unpacks safely"
    )
    fetch.add_argument(
        "sets", nargs="*", metavar="SET", help="names of data sets, e.g. mnist"
    )
    fetch.add_argument("--day", type=int, metavar="N", help="those that this day needs")

    commands.add_parser("doctor", help="is everything here? OK or FAIL, with the mend")

    summary = commands.add_parser(
        "summary", help="put the CSVs' figures into README and notes"
    )
    summary.add_argument(
        "--check", action="store_true", help="change nothing, fail on a difference"
    )

    bench = commands.add_parser(
        "bench", help="our way against the stock way, as ratios"
    )
    bench.add_argument("tasks", nargs="*", default=["all"], metavar="TASK")
    return p


def main(argv: list[str] | None = None) -> int:
    """Run one command; the exit status tells how it went."""
    args = parser().parse_args(argv)
    try:
        if args.command == "run":
            from .run import run

            return run(args.days, args.profile)
        if args.command == "fetch":
            from .fetch import fetch

            return fetch(args.sets, args.day)
        if args.command == "doctor":
            from .doctor import doctor

            return doctor()
        if args.command == "summary":
            from .summary import summary

            return summary(args.check)
        from ..bench import bench

        return bench(args.tasks)
    except (ValueError, RuntimeError) as e:
        print(e, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "\nStopped. What was finished is kept; the same command goes on.",
            file=sys.stderr,
        )
        return 130
