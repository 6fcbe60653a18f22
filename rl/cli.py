"""The command `uniar-rl`: one subcommand a job. Bad input prints one sentence and exits with 2."""

import atexit
import errno
import os
import re
import select
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from typing import NoReturn

from rl.parser import Parser
from uniar.errors import RunError, UserError, did_you_mean, shortened
from uniar.import_hooks import on_import

COMMANDS = {
    "train": ("rl.commands", "rl.train", "train a checkpoint as a recipe says"),
    "distill": ("rl.commands", "rl.train", "train a checkpoint towards experts, as a recipe with `distill` says"),
    "evaluate": ("rl.commands", "rl.commands.evaluate", "draw and score held-out prompts with any checkpoint"),
    "benchmark": ("rl.commands", "rl.commands.benchmark", "draw and score a public benchmark with any checkpoint"),
    "report": ("rl.commands", "rl.commands.report", "write one page of runs: verdict, warnings, curves, pictures"),
    "compare": ("rl.commands", "rl.commands.compare", "compare two evaluations sample by sample"),
    "init": ("rl.commands", "rl.commands.init", "write a recipe from five questions, checked with plan"),
    "plan": ("rl.commands", "rl.commands.plan", "say what a recipe needs, and whether it fits"),
    "export": ("rl.commands", "rl.commands.export", "turn a training checkpoint into a self-contained folder"),
    "chat": ("uniar.commands", "uniar.commands.chat", "ask about images"),
    "generate": ("uniar.commands", "uniar.commands.generate", "draw images from prompts"),
    "edit": ("uniar.commands", "uniar.commands.edit", "edit images by instruction"),
    "prompts": ("rl.tiny", "rl.tiny.prompts_command", "write prompts, questions and edits of UniAR-Tiny's world"),
    "rewards": ("rewards.commands", "rewards.commands", "list, describe, try, check and serve rewards"),
}
"""A room whose `arguments` has a function of the command's name, which says what it takes and loads no library; the
module with `run(arguments)`, imported only to be run; a summary."""

_OF_A_NAME = {errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR}
"""what the system says of names that a user gave, where no command has said it better"""

LAST_WORDS = 60.0
"""seconds for what libraries do when Python ends, after an error among several processes"""


def main(argv: Sequence[str] | None = None, *, is_program: bool | None = None) -> int:
    """Runs one subcommand and returns the exit code: 0; 1 for a run that could not go on, and for what a command of its
    own finds wanting; 2 for bad input; 130 when interrupted; 141 when nobody reads the output any more.

    is_program: whether this process is there for the command alone, which may end it then: where it has failed in a
    process group that it has joined. By default, where `argv` is not given. A group that was there before stays.
    """
    is_program = argv is None if is_program is None else is_program
    had_group = _in_group()
    try:
        status = _run(argv)
    except BaseException:
        if had_group or not is_program or not _in_group():
            raise
        sys.excepthook(*sys.exc_info())
        _end_process(1)
    if not had_group and _in_group():
        if status == 0:
            sys.modules["torch.distributed"].destroy_process_group()
        elif is_program:
            _end_process(status)
    return status


def _run(argv: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog="uniar-rl", description="RL post-training for UniAR.")
    parser.add_argument("--version", action="version", version=f"uniar-rl {_version()}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (room, _, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if arguments[:1] == [name]:
            getattr(import_module(f"{room}.arguments"), name)(subparser)
    if arguments and not arguments[0].startswith("-") and arguments[0] not in COMMANDS:
        hint = did_you_mean(arguments[0], COMMANDS) or f" Commands: {', '.join(COMMANDS)}."
        parser.error(f"no command is called {arguments[0]!r}.{hint}")
    parsed, rest = parser.parse_known_args(arguments)
    # argparse takes no further positionals after an option; overrides may stand anywhere.
    overrides = [word for word in rest if "=" in word]
    if len(overrides) < len(rest) or (rest and not hasattr(parsed, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        parsed.overrides = [*parsed.overrides, *overrides]
    try:
        command = import_module(COMMANDS[parsed.command][1])
        _quiet_libraries()
        status = command.run(parsed)
        sys.stdout.flush()
    except ModuleNotFoundError as error:
        if (extra := _extra_with(error.name or "")) is None:
            raise
        print(
            f"uniar-rl {parsed.command}: {error.name} is not installed; install it with "
            f"`pip install 'uniar-rl[{extra}]'` (in a clone: pip install -e '.[{extra}]').",
            file=sys.stderr,
        )
        return 2
    except BrokenPipeError:
        if not _reader_is_gone():
            raise  # of a socket, not of the output
        return 141
    except (UserError, RunError) as error:
        # One line, whatever a library or a key put into the sentence.
        print(f"uniar-rl {parsed.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except OSError as error:
        if error.filename is None or error.errno not in _OF_A_NAME:
            raise
        name = shortened(os.fsdecode(error.filename), 100, 40) if isinstance(error.filename, str | bytes) else "a file"
        print(f"uniar-rl {parsed.command}: '{name}' cannot be used: {error.strerror}.", file=sys.stderr)
        return 2
    except SystemExit as error:  # of a plug-in: no command ends in this way itself, least of all as if all were well
        from rewards.contract.protocol import described  # brings torch, which is loaded by now

        print(f"uniar-rl {parsed.command}: ended by something that raised {described(error)}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"uniar-rl {parsed.command}: interrupted.", file=sys.stderr)
        return 130
    return status or 0


def _version() -> str:
    try:
        return version("uniar-rl")
    except PackageNotFoundError:
        return "of a folder that is not installed"


def _extra_with(module: str) -> str | None:
    """The extra of this package that a module comes with."""
    name = {"open_clip": "open_clip_torch"}.get(module.partition(".")[0], module.partition(".")[0])
    extras: dict[str, str] = {}
    with suppress(PackageNotFoundError):
        for requirement in requires("uniar-rl") or ():
            if found := re.match(r"([\w-]+).*extra == ['\"](\w+)['\"]", requirement):
                extras.setdefault(found[1].replace("-", "_").lower(), found[2])
    return extras.get(name.lower())


def _in_group() -> bool:
    """Whether this process has joined a process group."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def _end_process(status: int) -> NoReturn:
    """Ends a process that is in a process group after an error. Python may end in the middle of what its threads do,
    and the process is aborted then; and leaving the group waits for collectives under way, in which the others may be
    for good. So only what would be done at the end is, such as sending the last metrics, and not for long."""
    _flush()
    timer = threading.Timer(LAST_WORDS, os._exit, [status])
    timer.daemon = True
    timer.start()
    with suppress(Exception):
        atexit._run_exitfuncs()
    _flush()
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


def _reader_is_gone() -> bool:
    """Whether what reads the standard output, such as `head`, has ended. Output that is left then goes nowhere."""
    try:
        output = sys.stdout.fileno()
    except OSError:  # not a file, as in a notebook
        return False
    poll = select.poll()
    poll.register(output, select.POLLOUT)
    gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    if gone:  # Python flushes once more when it ends, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return gone


def _quiet_libraries() -> None:
    """Progress bars of weight files, and warnings about names that TRL still uses, say nothing to a user."""
    on_import("transformers.utils.logging", after=lambda logging: logging.disable_progress_bar())
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)
    # Of DeepSpeed's own calls, thousands in a minute under ZeRO-3.
    warnings.filterwarnings("ignore", message="`torch.distributed.*is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*", category=UserWarning)


if __name__ == "__main__":
    sys.exit(main())
