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
    run.add_argument(
        "--resume",
        action="store_true",
        help="after a kill: skip the runs that are finished",
    )
    run.add_argument(
        "--at-once",
        type=int,
        metavar="N",
        help="notebooks that share the cores: by default 2 in quick, else 1",
    )

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

    new = commands.add_parser(
        "new", help="a project of your own from one of Day 15's templates"
    )
    new.add_argument("name", help="e.g. day3_speech_commands")
    new.add_argument("to", help="a folder that is new or empty")
    new.add_argument(
        "--run", action="store_true", help="and execute it there, in the quick profile"
    )

    checkin = commands.add_parser(
        "checkin", help="what a day's folder still lacks, and the git commands"
    )
    checkin.add_argument("day", type=int, metavar="N")

    sweep = commands.add_parser("sweep", help="a day's search; stop it, start it again")
    sweep.add_argument("--day", type=int, required=True, metavar="N")
    sweep.add_argument("--profile", choices=days.PROFILES, default="study")
    sweep.add_argument(
        "--workers", type=int, default=1, help="processes of this machine"
    )
    sweep.add_argument("--trials", type=int, help="per study; by default the day's own")

    pretrain = commands.add_parser(
        "pretrain",
        help="weights that Day 9, 11, 13 or 14 ships; stop it, start it again",
    )
    pretrain.add_argument("--day", type=int, default=9, metavar="N")
    pretrain.add_argument("--profile", choices=days.PROFILES, default="study")
    pretrain.add_argument("--seed", type=int, default=0)
    pretrain.add_argument(
        "--steps", type=int, help="Day 9: by default the profile's own"
    )
    pretrain.add_argument(
        "--part",
        default="",
        help="Day 9: words, words-on or sentences; Day 11: kathleen, voices, vocoder or parallel",
    )
    pretrain.add_argument("--output", default="", help="another .safetensors file")

    speak = commands.add_parser(
        "speak", help="Day 11's audio files, from text and the shipped weights"
    )
    speak.add_argument("--day", type=int, default=11, metavar="N")
    speak.add_argument("--profile", choices=days.PROFILES, default="study")

    container = commands.add_parser(
        "container", help="build the image, with the engine that is here"
    )
    container.add_argument("--engine", default="", help="by default the first found")
    container.add_argument("--base", default="", help="another base image")
    container.add_argument("--output", default="", help="image name, or the .sif file")
    container.add_argument("extra", nargs="*", help="after --: for the engine's build")

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

            return run(args.days, args.profile, args.resume, args.at_once)
        if args.command == "fetch":
            from .fetch import fetch

            return fetch(args.sets, args.day)
        if args.command == "doctor":
            from .doctor import doctor

            return doctor()
        if args.command == "summary":
            from .summary import summary

            return summary(args.check)
        if args.command == "new":
            from .new import new

            return new(args.name, args.to, args.run)
        if args.command == "checkin":
            from .checkin import checkin

            return checkin(args.day)
        if args.command == "sweep":
            from .sweep import sweep

            return sweep(args.day, args.profile, args.workers, args.trials)
        if args.command == "pretrain":
            from .pretrain import pretrain

            return pretrain(
                args.day, args.profile, args.seed, args.steps, args.output, args.part
            )
        if args.command == "speak":
            from .speak import speak

            return speak(args.day, args.profile)
        if args.command == "container":
            from .container import container

            return container(args.engine, args.base, args.output, args.extra)
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
