"""From a typed function to a command: flags, help, exit codes and one-line errors.

    def main(config: TrainConfig) -> None:
        "Train GPT-2 on a text."

    if __name__ == "__main__":
        cli.run(main)

The dataclass `TrainConfig` becomes flags through tyro: `n_layer` is `--n-layer`, the string under
the field is its help, and the fields of a nested dataclass keep their own names, without a prefix.
A mapping `{"list": list_all, "fetch": fetch}` in place of `main` makes one command with verbs.

A user's mistake is one line on stderr and an exit code; `--debug`, anywhere, adds the traceback.

| code | meaning                                                     |
|------|-------------------------------------------------------------|
| 0    | done, or help was asked for                                 |
| 1    | a defect of ours: the traceback is shown                    |
| 2    | a flag, value or path that cannot work                      |
| 3-7  | the `exit_code` of the error that was raised (`errors.py`)  |
| 5    | also: the memory or the disk is full                        |
| 130  | Ctrl-C                                                      |
| 141  | the reader of our output has gone (`| head`), said silently |
"""

import argparse
import contextlib
import difflib
import errno
import inspect
import io
import os
import re
import select
import sys
import traceback
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shared.errors import UsageError

Config = TypeVar("Config")
Verb = Callable[..., None]
"""A function of one config dataclass, or of nothing."""
Defaults = Callable[[Sequence[str]], Any]
"""From the words of a command line to the config that they change, or None."""

# Full disk, full quota, read-only file system: nothing that another flag value would mend.
_RESOURCE_ERRNOS = {errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}
# How PyTorch words a failed allocation where it raises a bare RuntimeError (CPU, cuBLAS, NCCL).
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|out of memory|ALLOC_FAILED", re.IGNORECASE)
_DEBUG_HELP = "Add --debug anywhere to see the traceback of an error."
# What tyro calls the values it expects, in words.
_KINDS = {"INT": "a whole number", "FLOAT": "a number", "STR": "a text", "PATH": "a path"}


def run(
    function: Verb | Mapping[str, Verb],
    args: Sequence[str] | None = None,
    prog: str | None = None,
    defaults: Defaults | None = None,
) -> NoReturn:
    """Do what the command line says and exit: `if __name__ == "__main__": cli.run(main)`.

    See `execute` for the arguments.
    """
    sys.exit(execute(function, args, prog, defaults))


def execute(
    function: Verb | Mapping[str, Verb],
    args: Sequence[str] | None = None,
    prog: str | None = None,
    defaults: Defaults | None = None,
) -> int:
    """Do what the command line says and return the exit code.

    Args:
        function: takes one annotated config dataclass or nothing, and returns nothing; or a
            mapping from verbs to such functions.
        args: the words after the program's name; those of this process when None.
        prog: the command's name in help and errors, such as `python -m gpt2.train`; found out
            when None.
        defaults: returns the config whose values hold where the words say nothing, or None for
            those in the dataclass; it gets the words, so that `--resume` can take a saved config.
    """
    words = list(sys.argv[1:] if args is None else args)
    debug = _take_debug(words)
    try:
        _dispatch(function, words, prog or _program(), defaults)
        sys.stdout.flush()  # a reader that has gone shows here, not in the interpreter's shutdown
    except SystemExit as error:
        return _exit_status(error)
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and _drop_dead_streams():
            return 141  # 128 + SIGPIPE, what a shell reports of any program that `head` cut off
        return report(error, debug)
    return 0


def report(error: BaseException, debug: bool = False) -> int:
    """Print an error on stderr as its kind deserves and return its exit code.

    One line for what a user can mend, the whole traceback for anything else or with `debug`.
    """
    known = explain(error)
    if known is None or debug:
        traceback.print_exception(error)
    if known is None:
        return 1
    message, code = known
    with contextlib.suppress(BrokenPipeError):
        print(f"error: {one_line(message)}", file=sys.stderr)
    return code


def explain(error: BaseException) -> tuple[str, int] | None:
    """Return the message and the exit code of an error a user can act on; None for a defect."""
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return str(error) or type(error).__name__, code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", 130
    if _is_out_of_memory(error):
        reason = str(error) or "an allocation failed"
        return f"out of memory; try a smaller --batch-size ({reason})", 5
    if isinstance(error, OSError):
        name, reason = error.filename, error.strerror or str(error)
        if error.errno in _RESOURCE_ERRNOS:
            return f"{name}: {reason}" if name else reason, 5
        wrong_path = FileNotFoundError | IsADirectoryError | NotADirectoryError | PermissionError
        if name and isinstance(error, wrong_path):
            return f"{os.fsdecode(name) if isinstance(name, bytes) else name}: {reason}", 2
    return None


def one_line(message: str) -> str:
    r"""Fold a message into one printable line: `"a\n  b\x1b"` -> `"a b\\x1b"`."""
    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def given(flag: str, words: Sequence[str], default: str) -> str | None:
    """Return what a command line has for `flag` (with its dashes), before it is parsed as a whole.

    For defaults that depend on another flag. None where the flag lacks its value, which parsing
    will explain.

    >>> given("--preset", ["--preset", "large", "--seed", "1"], "small")
    'large'
    """
    asked = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    asked.add_argument(flag, default=default, dest="value")
    with contextlib.suppress(argparse.ArgumentError):
        value: str = asked.parse_known_args(list(words))[0].value
        return value
    return None


def suggest(word: str, choices: Collection[str]) -> str:
    """Return the end of an error message about an unknown word.

    The nearest choice where one is near, else all of them while they are few:
    `("max-stepz", ["max-steps"]) -> "; did you mean max-steps?"`.
    """
    near = difflib.get_close_matches(word, choices, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; choose from {', '.join(choices)}" if 0 < len(choices) <= 12 else ""


def print_settings(console: Console, title: str, settings: Mapping[str, object]) -> None:
    """Print what a run was set to, one name and value a line under the title.

    Every run begins with this, so that its log says how to repeat it.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim" if console.is_terminal else "", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in settings.items():
        table.add_row(f"  {name}", Text(str(value)))  # a Text: brackets are no markup
    console.print(title, style="bold" if console.is_terminal else "", markup=False)
    console.print(table)


def _dispatch(
    function: Verb | Mapping[str, Verb], words: list[str], prog: str, defaults: Defaults | None
) -> None:
    """Find the function meant, parse its flags and call it."""
    if isinstance(function, Mapping):
        verb = _choose(function, words, prog)
        function, words, prog = function[verb], words[1:], f"{prog} {verb}"
    config_type = _config_type(function)
    if config_type is None:
        parse(_NoFlags, words, prog, inspect.getdoc(function))
        function()
    else:
        default = defaults(words) if defaults is not None else None
        function(parse(config_type, words, prog, inspect.getdoc(function), default))


@dataclass
class _NoFlags:
    """The config of a verb that takes none."""


def _choose(verbs: Mapping[str, Verb], words: Sequence[str], prog: str) -> str:
    """Return the verb that the first word names; print the list when asked for help."""
    if words and words[0] in verbs:
        return words[0]
    if words and words[0] in ("-h", "--help"):
        print(f"usage: {prog} VERB [OPTIONS]\n")
        width = max(map(len, verbs))
        for verb, function in verbs.items():
            summary = (inspect.getdoc(function) or "").partition("\n")[0]
            print(f"  {verb:{width}}  {summary}")
        print(f"\nEach verb explains its flags: {prog} VERB --help\n{_DEBUG_HELP}")
        raise SystemExit(0)
    if words:
        raise UsageError(f"unknown verb {words[0]}{suggest(words[0], verbs)}")
    raise UsageError(f"say what to do: {prog} {'|'.join(verbs)}")


def _config_type(function: Verb) -> Any:
    """Return the type of the function's one parameter, or None if it takes none."""
    names = list(inspect.signature(function).parameters)
    if not names:
        return None
    return typing.get_type_hints(function)[names[0]]


def parse(
    config_type: type[Config],
    words: Sequence[str],
    prog: str | None = None,
    description: str | None = None,
    default: Any = None,
) -> Config:
    """Build a config from the words of a command line, and from `default` where they are silent.

    Raises `UsageError` with one line that names the flag, what was given and what is expected, or
    whatever error with an exit code the config's own `__post_init__` raised. `--help` prints and
    raises `SystemExit(0)`.
    """
    prog = prog or _program()
    about = f"{description or inspect.getdoc(config_type) or ''}\n\n{_DEBUG_HELP}".strip()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            config, unknown = tyro.cli(
                config_type,
                prog=prog,
                description=about,
                args=list(words),
                default=default,
                return_unknown_args=True,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as end:
        if end.code in (0, None):
            raise
        own = _own_error(end, printed.getvalue())
        if own is None:
            message = _usage_message(printed.getvalue(), words, _flags(config_type))
            raise UsageError(f"{message} (flags: {prog} --help)") from end
        if hasattr(own, "exit_code"):
            raise own from None
        raise UsageError(str(own)) from own
    if unknown:
        message = _unknown_message(unknown[0], words, _flags(config_type))
        raise UsageError(f"{message} (flags: {prog} --help)")
    parsed: Config = config
    return parsed


def _own_error(end: SystemExit, printed: str) -> ValueError | None:
    """Return the `ValueError` of a config's `__post_init__` behind tyro's exit, if that was it.

    tyro reports it like a value that did not parse, but then names a flag.
    """
    if re.search(r"Error parsing -", printed):
        return None
    error: BaseException | None = end
    while error is not None:
        error = error.__cause__ or error.__context__
        if isinstance(error, ValueError) and not type(error).__module__.startswith("tyro"):
            return error
    return None


def _usage_message(printed: str, words: Sequence[str], flags: Mapping[str, str]) -> str:
    """Reduce tyro's box of several lines to one that names flag, value and what is expected."""
    unknown = [w for w in words if w.startswith("--") and _flag(w) not in flags and len(w) > 2]
    if unknown and flags:  # tyro complains first of what is missing, which the typo explains
        return _unknown_message(unknown[0], words, flags)
    # A title, then paragraphs between rules, drawn as dashes where the stream has no box
    # characters; the first paragraph is the message.
    plain = [line.strip("│╭╮╰╯| ") for line in printed.splitlines()][1:]
    paragraphs = re.split(r"^[─-]+$", "\n".join(plain), flags=re.MULTILINE)
    text = one_line(next((part for part in paragraphs if part.strip()), ""))
    if bad := re.search(r"(?:Error parsing |argument ')(--[\w-]+)", text):
        flag = bad[1]
        given = " ".join(_values(flag, words))
        expected = f"expected {_in_words(flags[flag])}" if flag in flags else text
        return f"{flag} {given}: {expected}" if given else f"{flag}: missing value, {expected}"
    if text.startswith("Missing from"):
        needed = [f for f in re.findall(r"--[\w-]+", text) if f in flags]
        return f"{needed[0]} is required ({_in_words(flags[needed[0]])})" if needed else text
    return text or "the command line cannot be read"


def _unknown_message(word: str, words: Sequence[str], flags: Mapping[str, str]) -> str:
    """Say what is wrong with a word that no flag wants."""
    if word.startswith("-"):
        flag = _flag(word)
        near = difflib.get_close_matches(flag, flags, n=1)
        return f"unknown flag {word.partition('=')[0]}" + (
            f"; did you mean {near[0]}?" if near else ""
        )
    before = _flag(words[list(words).index(word) - 1]) if words[0] != word else ""
    if before and flags.get(before) == "":
        return f"{before} takes no value, got {word!r}"
    return f"unexpected argument {word!r}"


def _flags(config_type: type) -> dict[str, str]:
    """Return each flag of a config and what it takes, read off the help: `{"--seed": "INT"}`."""
    printed = io.StringIO()
    redirected = contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO())
    with _columns(1000), redirected[0], redirected[1], contextlib.suppress(SystemExit):
        tyro.cli(config_type, args=["--help"], prog="", config=(tyro.conf.OmitArgPrefixes,))
    flags = {}
    # A flag and its help, and the groups of flags that long helps have beside each other, lie two
    # spaces or more apart.
    for cell in re.split(r"\n|\s{2,}|│+", printed.getvalue()):
        left = cell.strip("| ")
        names = re.findall(r"(?<![\w-])--[\w-]+", left)
        if left.startswith("-"):
            takes = re.sub(r"^(?:-\w, )?--[\w-]+(?:, --[\w-]+)*\s*", "", left)
            flags.update(dict.fromkeys(names, takes))
    return flags


@contextlib.contextmanager
def _columns(width: int) -> Iterator[None]:
    """Pretend that the terminal is this wide, so that nothing wraps."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _flag(word: str) -> str:
    """Return the flag in a word as help shows it: `--n_layer=3` -> `--n-layer`; "" if none."""
    return word.partition("=")[0].replace("_", "-") if word.startswith("-") else ""


def _values(flag: str, words: Sequence[str]) -> list[str]:
    """Return what the command line gave a flag, the last time it did."""
    at = max((i for i, word in enumerate(words) if _flag(word) == flag), default=None)
    if at is None:
        return []
    if "=" in words[at]:
        return [words[at].partition("=")[2]]
    rest = words[at + 1 :]
    end = next((i for i, word in enumerate(rest) if word.startswith("--")), len(rest))
    return list(rest[:end])


def _in_words(takes: str) -> str:
    """Put tyro's name of a value in words: `{None}|INT` -> `None or a whole number`."""
    values = []
    for value in takes.split():
        kinds = [kind for part in value.split("|") for kind in part.strip("{}").split(",")]
        values.append(" or ".join(_KINDS.get(kind, kind) for kind in kinds))
    return " and ".join(values)


def _take_debug(words: list[str]) -> bool:
    """Remove each `--debug` in front of a bare `--` and say whether there was one."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--debug"]
    found = len(kept) < end
    words[:end] = kept
    return found


def _program() -> str:
    """Return how this process was started, as one would type it."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None:
        return f"python -m {spec.name.removesuffix('.__main__')}"
    return os.path.basename(sys.argv[0])  # noqa: PTH119 - argv[0] may be no path at all


def _exit_status(end: SystemExit) -> int:
    """Return the status that the interpreter would make of a SystemExit."""
    if end.code is None or isinstance(end.code, int):
        return end.code or 0
    print(end.code, file=sys.stderr)
    return 1


def _is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an allocation failed, without importing torch to ask it."""
    if isinstance(error, MemoryError):
        return True
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return named or (isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error))))


def _drop_dead_streams() -> bool:
    """Point each output stream whose reader has gone to nowhere; say whether there was one.

    Without this the interpreter complains once more when it flushes at exit. A broken pipe that
    is not ours, say to a worker process, leaves both streams alone and stays an error.
    """
    dropped = False
    for stream in (sys.stdout, sys.stderr):
        try:
            number = stream.fileno()
        except (AttributeError, OSError, ValueError):
            continue
        if _reader_has_gone(number):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
            dropped = True
    return dropped


def _reader_has_gone(number: int) -> bool:
    """Tell whether the other end of an output descriptor is closed (POLLERR on its pipe)."""
    if not hasattr(select, "poll"):  # Windows; there the exception itself is all we know
        return True
    poll = select.poll()
    poll.register(number, 0)
    return any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))
