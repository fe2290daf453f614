"""Entry point: parse, run, turn a user's mistake into one line and exit status 2."""

import contextlib
import difflib
import inspect
import io
import os
import re
import sys
import textwrap
import traceback

from stochade.errors import StochadeError, UsageError

DESCRIPTION = """Build, attack and audit classifiers whose defence is randomness or discreteness.

Start with:  stochade audit digits-gated --out runs/demo
"""


PHRASES = (  # how Python says it, and how the command line does
    (r"\b(Linf|L[012])\((?:eps=)?(?:float\('inf'\)|inf)[^()]*\)", lambda m: f"{m[1].lower()}=inf"),
    (r"\b(Linf|L[012])\((?:eps=)?([\d./e-]+)[^()]*\)", lambda m: f"{m[1].lower()}={m[2]}"),
    (r"\b(Linf|L[012])\b", lambda m: m[1].lower()),
    (r"every distance counts with (l\w+)=inf", r"write norm=\1 eps=NUMBER after its name (eps=inf: every distance)"),
    (r"\bpass threat=", "pass --threat "),
    (r"\battack with gradient=Evolution\(\)", "use the attack evolution or square"),
    (r"\buse workers=0", "use --workers 0"),
    (r"\bSigmaZero\b", "sigma-zero"),
)  # fmt: skip


def spoken(message: str) -> str:
    """An error's message in the words of the command line."""
    for pattern, replacement in PHRASES:
        message = re.sub(pattern, replacement, message)
    return message


def main(args: list[str] | None = None) -> None:
    """Run the command line; exits with 0, 2 on misuse, 130 when interrupted."""
    arguments = sys.argv[1:] if args is None else args
    try:
        command = _parse(arguments)
        command.run()
    except StochadeError as problem:
        print(f"stochade: {spoken(str(problem))}", file=sys.stderr)
        raise SystemExit(2) from None
    except OSError as problem:
        if isinstance(problem, BrokenPipeError):  # `stochade ls | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(0) from None
        print(f"stochade: expected a place that can be read and written, got {problem}", file=sys.stderr)
        raise SystemExit(2) from None
    except RuntimeError as problem:  # out of a model's own forward, after the first probe went well
        detail = str(problem).strip().splitlines()[0] if str(problem).strip() else type(problem).__name__
        hint = "does it keep state between calls? reset it at the start of forward"
        print(f"stochade: expected a model that takes any batch in any call, got: {detail}; {hint}", file=sys.stderr)
        raise SystemExit(2) from None
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as problem:
        place = _foreign(problem)
        if place is None:
            raise  # a mistake of ours: with its whole traceback
        detail = str(problem).strip().splitlines()[0] if str(problem).strip() else "no message"
        kind = type(problem).__name__
        print(f"stochade: expected a model that takes any batch, got {kind} at {place}: {detail}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stochade: interrupted; the same command with the same --out goes on from here", file=sys.stderr)
        raise SystemExit(130) from None


def _foreign(problem: BaseException) -> str | None:
    """Where an exception was raised in code that is not this library's but was called by it, such as a model's
    forward: `mine.py:12`; None where the last frame is ours."""
    frames = traceback.extract_tb(problem.__traceback__)
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    calls = [i for i, frame in enumerate(frames) if frame.name == "_call_impl" and "torch" in frame.filename]
    last = frames[-1] if frames else None
    if last is None or not calls or last.filename.startswith(ours):
        return None
    return f"{os.path.basename(last.filename)}:{last.lineno}"


def _parse(arguments: list[str]):
    """The command as a filled-in dataclass; exits with the help, or with one line and status 2."""
    import tyro

    from stochade.cli.commands import COMMANDS

    name = arguments[0] if arguments else ""
    if name in ("-h", "--help", "help"):
        print(_overview(COMMANDS))
        raise SystemExit(0)
    if name == "--version":
        from stochade import __version__

        print(__version__)
        raise SystemExit(0)
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"commands: {', '.join(COMMANDS)}; see stochade --help"
        raise UsageError("a command", repr(name) if name else "none", hint)
    about, _, examples = inspect.cleandoc(COMMANDS[name].__doc__ or "").partition("\n\nExamples:\n\n")
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            return tyro.cli(
                COMMANDS[name],
                args=arguments[1:],
                prog=f"stochade {name}",
                description=" ".join(about.split()),
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
            )
    except SystemExit as end:
        if end.code in (0, None):
            lines = [f"  {line}" for line in examples.splitlines() if line]
            print("\n".join(["examples:", *lines]))
            raise
        print(f"stochade: {_one_line(told.getvalue())}; see stochade {name} --help", file=sys.stderr)
        raise SystemExit(2) from None


def _overview(commands: dict) -> str:
    """The help of `stochade` itself."""
    lines = [
        "usage: stochade COMMAND [OPTIONS]   (stochade COMMAND --help shows options and examples)",
        "",
        DESCRIPTION,
    ]
    for name, command in commands.items():
        text = " ".join(inspect.cleandoc(command.__doc__ or "").split("\n\n")[0].split())
        lines += textwrap.wrap(text, 100, initial_indent=f"  {name:11}", subsequent_indent=" " * 13)
    return "\n".join(lines)


def _one_line(box: str) -> str:
    """tyro's boxed explanation as one line: its first part, and what it thinks was meant."""
    parts: list[list[str]] = [[]]
    for line in (raw.strip(" │╭╮╰╯─") for raw in box.splitlines()):
        if line:
            parts[-1].append(line)
        elif parts[-1]:
            parts.append([])
    parts = [part for part in parts if part] or [["these arguments do not fit"]]
    first = parts[0][1:] if len(parts[0]) > 1 else parts[0]  # without the title of the box
    text = " ".join(first)
    for part in parts[1:]:
        if part[0].startswith("Perhaps you meant") and len(part) > 1:
            text += f"; perhaps you meant {part[1].split(' {')[0]}"
    return text
