"""The command line: arguments -> configuration -> one run; exit codes as others rely on them (SPEC section 10).

0 done; 1 the work failed or nothing usable was there; 2 usage; 3 published, but suspect or with holes; 78 the
configuration or the state cannot be used.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from zemosaicd import __version__
from zemosaicd import config as configuration
from zemosaicd.checks import ConfigError
from zemosaicd.model import Fatal, ZemosaicdError
from zemosaicd.settings import Config

if TYPE_CHECKING:  # what is imported here is waited for before the workers' template can begin
    from zemosaicd.core.lifecycle import SessionState
    from zemosaicd.shell.template import Template

DONE, FAILED, USAGE, FLAWED, CONFIGURATION = 0, 1, 2, 3, 78
DEFAULT_FILE = "zemosaicd.toml"


class Interrupted(ZemosaicdError):
    """`process` was stopped by a signal before its sessions had ended."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except (ConfigError, Fatal) as error:
        _say(f"zemosaicd: {error}", to_stderr=True)
        return CONFIGURATION
    except ZemosaicdError as error:
        _say(f"zemosaicd: {error}", to_stderr=True)
        return FAILED
    except KeyboardInterrupt:
        return FAILED
    except BrokenPipeError:  # the reader of our output has gone, e.g. `zemosaicd sessions | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE


def command() -> NoReturn:
    """The program: one command, and out. What was imported is not taken apart first, which takes 65 ms."""
    code = main()
    gc.freeze()
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zemosaicd", description="Turns nightly FITS frames into a clean mosaic, unattended."
    )
    parser.add_argument("--version", action="version", version=f"zemosaicd {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    def verb(name: str, command: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = verbs.add_parser(name, help=text, description=text)
        made.set_defaults(command=command)
        made.add_argument("--config", metavar="F", help=f"configuration (default: ./{DEFAULT_FILE} if it is there)")
        made.add_argument(
            "--set", action="append", default=[], metavar="TABLE.KEY=VALUE", help="override one key; may be repeated"
        )
        return made

    verb("run", _run, "Watch the incoming folders until stopped.")
    process = verb("process", _process, "Make one mosaic of all that a folder holds.")
    process.add_argument("folder", metavar="DIR")
    process.add_argument("--output", required=True, metavar="DIR")
    process.add_argument("--split", action="store_true", help="by night and target, as the daemon would")
    status = verb("status", _status, "What the daemon does, and what each session waits for.")
    status.add_argument("--json", action="store_true")
    sessions = verb("sessions", _sessions, "All sessions, with their outcome.")
    sessions.add_argument("--json", action="store_true")
    close = verb("close", _close, "Close a session now.")
    close.add_argument("session")
    verb("check", _check, "Check the configuration, the folders and the star catalogue.")
    settings = verb("config", _config, "Show or change one key of the configuration file.")
    settings.add_argument("action", choices=("get", "set"))
    settings.add_argument("key", metavar="TABLE.KEY")
    settings.add_argument("value", nargs="?")
    simulate = verb("simulate", _simulate, "Write a simulated night of raw frames of a real patch of sky.")
    simulate.add_argument("folder", metavar="DIR")
    simulate.add_argument("--panels", type=_count, default=2, metavar="N", help="panels side by side (default 2)")
    simulate.add_argument("--frames", type=_count, default=6, metavar="N", help="frames a panel (default 6)")
    demo = verb("demo", _demo, "A simulated night becomes a mosaic, before your eyes.")
    demo.add_argument("--folder", default="demo", metavar="DIR")
    return parser


def _count(text: str) -> int:
    """A number of 1 or more."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def _load(options: argparse.Namespace, extra: Sequence[str] = ()) -> Config:
    path = options.config
    if path is None and Path(DEFAULT_FILE).is_file():
        path = DEFAULT_FILE
    return configuration.load(path, [*extra, *options.set])


def _say(text: str, *, to_stderr: bool = False) -> None:
    stream = sys.stderr if to_stderr else sys.stdout
    stream.write(text.encode(stream.encoding or "utf-8", "backslashreplace").decode(stream.encoding or "utf-8") + "\n")
    stream.flush()


# --- run and process -----------------------------------------------------------------------------------------------


@contextmanager
def _logging(config: Config, descriptor: int = 1) -> Iterator[Any]:
    """An open log. A state folder that cannot be made is a configuration error, said in one line."""
    from zemosaicd.shell.log import open_log

    try:
        Path(config.paths.state).mkdir(mode=0o700, parents=True, exist_ok=True)
        with open_log(config, descriptor) as log:
            yield log
    except (PermissionError, FileExistsError, NotADirectoryError, FileNotFoundError) as error:
        message = f"paths.state or log.file cannot be used: {error.filename}: {error.strerror}"
        raise ConfigError(_reason("state_not_writable", message)) from error


def _reason(rule: str, message: str) -> Any:
    from zemosaicd.model import Reason

    return Reason(rule=rule, message=message)


def _begun(config: Config) -> Template | None:
    """What workers are forked from, begun: it warms up while the rest of the daemon is imported."""
    from zemosaicd.shell.template import template_of

    template = template_of(config)
    if template is not None:
        with suppress(OSError):  # no room, or no process, for now: the pool tries again, and tells
            template.start()
    return template


def _run(options: argparse.Namespace) -> int:
    config = _load(options)
    template = _begun(config)
    with _logging(config) as log:
        import asyncio

        from zemosaicd.shell.daemon import Daemon

        async def live() -> None:
            await Daemon(config, log, reload=lambda: _load(options), template=template).run()

        asyncio.run(live())
    return DONE


def _process(options: argparse.Namespace) -> int:
    folder = Path(options.folder).resolve()
    if not folder.is_dir():
        _say(f"zemosaicd: {options.folder} is not a folder", to_stderr=True)
        return USAGE
    paths = (f"paths.incoming={json.dumps([str(folder)])}", f"paths.output={options.output}")
    config = _load(options, paths)
    template = _begun(config)
    with _logging(config, descriptor=2) as log:
        import asyncio

        states = asyncio.run(_process_folder(config, log, template, str(folder), split=options.split))
    return _tell_outcomes(states, str(folder))


async def _process_folder(
    config: Config, log: Any, template: Template | None, folder: str, *, split: bool
) -> dict[str, SessionState]:
    from zemosaicd.shell.daemon import Daemon, Once

    daemon = Daemon(config, log, once=Once(folder=folder, split=split), template=template)
    await daemon.run()
    if daemon.interrupted:
        raise Interrupted(_reason("interrupted", "interrupted; call it again, and it goes on where it was"))
    return daemon.outcomes


def _tell_outcomes(states: dict[str, SessionState], folder: str) -> int:
    """Says what came of each session, and returns the exit code: the worst of them."""
    from zemosaicd.core.report import GOOD

    if not states:
        _say(f"no usable frame in {folder}", to_stderr=True)
        return FAILED
    code = DONE
    for name, state in states.items():
        published = state.last_published if state.outcome in ("done", "unchanged") else {}
        if not published:
            reason = state.ended.reason if state.ended else None
            why = (reason.message or reason.rule) if reason else state.outcome or "interrupted"
            _say(f"{name}: no mosaic: {why}", to_stderr=True)
            code = max(code, FAILED) if code != FLAWED else FAILED
        for mosaic in published.values():
            note = " (unchanged)" if state.outcome == "unchanged" else ""
            _say(f"{mosaic.path}  {mosaic.verdict}{note}")
            if mosaic.verdict != GOOD and code == DONE:
                code = FLAWED
    return code


# --- asking --------------------------------------------------------------------------------------------------------


def _status(options: argparse.Namespace) -> int:
    from zemosaicd import codec
    from zemosaicd.shell.language import load_catalogue
    from zemosaicd.shell.layout import Layout
    from zemosaicd.shell.supervisor import read_status

    config = _load(options)
    labels = load_catalogue(config.log.language)
    layout = Layout(state=Path(config.paths.state), output=Path(config.paths.output))
    status = read_status(layout.status)
    if status is None:
        _say(f"no daemon has run in {layout.state}", to_stderr=True)
        return FAILED
    alive = status.state != "stopped" and _alive(status.pid)
    if options.json:
        _say(json.dumps(codec.plain(status) | {"alive": alive}, indent=1))
        return DONE
    who = f"pid {status.pid}" if alive else "not running"
    _say(f"zemosaicd {status.version}, {who}: {status.line or status.state}")
    for root in status.roots:
        _say(f"  folder {root.path}: {root.away or root.polling or 'watched'}")
    for session in status.sessions:
        until = (
            f" until {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(session.until_s))}" if session.until_s else ""
        )
        waits = f", waits for {session.waits_for}{until}" if session.waits_for else ""
        phase = labels.sentence(f"phase_label_{session.phase.replace('.', '_')}", {}) if session.phase else "-"
        _say(f"  session {session.id}: {phase}, {session.done} of {session.total}{waits}"
             f" ({session.frames} frames, {session.rejected} rejected)")  # fmt: skip
    for held in status.held:
        _say(f"  waiting {held.path}: {held.reason}")
    return DONE


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sessions(options: argparse.Namespace) -> int:
    from zemosaicd.shell.journal import Journal
    from zemosaicd.shell.layout import Layout

    config = _load(options)
    layout = Layout(state=Path(config.paths.state), output=Path(config.paths.output))
    if not layout.journal.is_file():
        _say(f"no sessions in {layout.state}", to_stderr=True)
        return DONE
    reader = Journal.open_readonly(layout.journal)
    try:
        rows = reader.all_sessions()
    finally:
        reader.close()
    if options.json:
        _say(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
        return DONE
    for row in rows:
        mosaics = ", ".join(m["path"] for m in row.summary.get("mosaics", {}).values())
        state = "open" if row.open else row.summary.get("outcome") or "closed"
        _say(f"{row.session}  {state}  {row.frames} frames, {row.rejected} rejected  {mosaics}".rstrip())
    return DONE


def _close(options: argparse.Namespace) -> int:
    from zemosaicd.shell import requests
    from zemosaicd.shell.journal import Journal
    from zemosaicd.shell.layout import Layout

    config = _load(options)
    layout = Layout(state=Path(config.paths.state), output=Path(config.paths.output))
    reader = Journal.open_readonly(layout.journal)
    try:
        names = [row.session for row in reader.all_sessions()]
    finally:
        reader.close()
    if options.session not in names:
        _say(f"no session {options.session}; there are: {', '.join(names) or 'none'}", to_stderr=True)
        return USAGE
    requests.ask(layout.requests, requests.Request(verb="close", session=options.session))
    _say(f"{options.session}: will be closed")
    return DONE


def _check(options: argparse.Namespace) -> int:
    from zemosaicd.shell import check

    config = _load(options)
    findings = check.findings(config)
    for finding in findings:
        _say(f"{'ok  ' if finding.ok else 'BAD '} {finding.what}: {finding.text}")
    return DONE if all(f.ok for f in findings) else CONFIGURATION


def _config(options: argparse.Namespace) -> int:
    from zemosaicd import codec

    if options.action == "get":
        _say(json.dumps(codec.plain(configuration.get_value(_load(options), options.key))))
        return DONE
    if options.value is None:
        _say("zemosaicd config set needs a value", to_stderr=True)
        return USAGE
    configuration.set_value(Path(options.config or DEFAULT_FILE), options.key, options.value)
    return DONE


# --- simulated nights ----------------------------------------------------------------------------------------------


def _simulate(options: argparse.Namespace) -> int:
    from zemosaicd import demo

    frames = demo.make_night(Path(options.folder), options.panels, options.frames, _progress("simulating"))
    _say(f"\n{len(frames)} frames in {options.folder}")
    return DONE


def _demo(options: argparse.Namespace) -> int:
    from zemosaicd import demo

    return demo.run(Path(options.folder), options.set, _say, _progress)


def _progress(what: str) -> Callable[[int, int], None]:
    def show(done: int, total: int) -> None:
        end = "\n" if done == total and not sys.stdout.isatty() else ""
        if sys.stdout.isatty() or done == total:
            sys.stdout.write(f"\r{what}: {done} of {total}{end}")
            sys.stdout.flush()

    return show
