"""The command line: ``cachekit`` and ``python -m cachekit``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import CacheKitError, ConfigurationError
from .version import __version__

if TYPE_CHECKING:
    import typer

PIP_LINE = "pip install 'cachekit-strategies[{}]'"
_LOG = "Where the log is: sqlite:///orders.log or redis://host:6379/0."
_APP = "The application's cache, module:attribute, in place of --log."
_NAMESPACE = "The cache's namespace, with --log. Default: none; of a SQLite file, all there are."
_QUEUE = "A write-back strategy's name."
_VERSION = "A dead letter's version; repeat for more."


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit code: 0, 1 when a part of it failed, 2 for bad input,
    130 after Ctrl-C.

    Bad input gets one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if arguments == ["--version"]:
        print(f"cachekit {__version__}")
        return 0
    write_back = arguments[0] in ("dlq", "worker")
    try:
        import rich
        import typer
    except ModuleNotFoundError as error:
        extra = "cli" if write_back else "bench"
        return _refuse(f"the command line needs {error.name}: {PIP_LINE.format(extra)}")
    del rich
    try:
        # A worker lives long: it does without what only a benchmark needs.
        command = typer.main.get_command(_app(with_bench=not write_back))
        code = command.main(arguments, prog_name="cachekit", standalone_mode=False, obj=arguments)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except CacheKitError as error:
        return _refuse(str(error))
    except Exception as error:
        # Usage errors of click, or of typer's own copy of it: they have no other common name.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        return _refuse(message().replace("Value error, ", ""))
    return code if isinstance(code, int) else 0


def _refuse(message: str) -> int:
    from .commands.text import safe, say

    say("cachekit: " + safe(" ".join(message.split())), to=sys.stderr)
    return 2


def _app(*, with_bench: bool) -> typer.Typer:
    import typer

    app = typer.Typer(
        help="Caching strategies: measure them before you choose; write-back's dead letters and "
        "workers.",
        add_completion=False,
        no_args_is_help=True,
    )

    @app.callback(invoke_without_command=True)
    def root(version: bool = typer.Option(False, "--version", help="Show the version.")) -> None:
        if version:
            print(f"cachekit {__version__}")
            raise typer.Exit

    if with_bench:
        from .bench.command import HELP, bench

        app.command(help=HELP)(bench)
    app.add_typer(_dead_letters(), name="dlq")
    _add_worker(app)
    return app


def _dead_letters() -> typer.Typer:
    import typer

    from .commands import dlq
    from .commands.desks import Where

    app = typer.Typer(help="Dead letters: writes that the source refused for good.")

    @app.command("list", help="All dead letters of a queue, or of all queues of the place.")
    def list_(
        log: str | None = typer.Option(None, help=_LOG),
        app: str | None = typer.Option(None, help=_APP),
        namespace: str | None = typer.Option(None, help=_NAMESPACE),
        queue: str | None = typer.Option(None, help=_QUEUE + " Default: all there are."),
        json: bool = typer.Option(False, "--json", help="As a JSON array."),
        limit: int = typer.Option(100, min=1, help="Letters to show at most."),
    ) -> int:
        where = Where(log, app, namespace, queue)
        return dlq.list_letters(where, as_json=json, limit=limit)

    @app.command(help="One dead letter: its whole error, sizes, and what it would write.")
    def show(
        log: str | None = typer.Option(None, help=_LOG),
        app: str | None = typer.Option(None, help=_APP),
        namespace: str | None = typer.Option(None, help=_NAMESPACE),
        queue: str | None = typer.Option(None, help=_QUEUE),
        version: int = typer.Option(..., min=1, help="The dead letter's version."),
        values: bool = typer.Option(False, "--values", help="Show the value too."),
        json: bool = typer.Option(False, "--json", help="As JSON."),
    ) -> int:
        where = Where(log, app, namespace, queue)
        return dlq.show(where, version, values=values, as_json=json)

    @app.command(
        help="Give dead letters to the worker again, as new writes. One that is outdated, or whose "
        "key has a newer write in the log, is refused; code 1 then."
    )
    def replay(
        log: str | None = typer.Option(None, help=_LOG),
        app: str | None = typer.Option(None, help=_APP),
        namespace: str | None = typer.Option(None, help=_NAMESPACE),
        queue: str | None = typer.Option(None, help=_QUEUE),
        version: list[int] = typer.Option([], min=1, help=_VERSION),  # noqa: B008  # only read
        all_: bool = typer.Option(False, "--all", help="All of the queue."),
        force: bool = typer.Option(False, "--force", help="Also over what was written since."),
    ) -> int:
        where = Where(log, app, namespace, queue)
        return dlq.replay(where, version, every=all_, force=force)

    @app.command(help="Forget dead letters for good: what they would write is lost.")
    def drop(
        log: str | None = typer.Option(None, help=_LOG),
        app: str | None = typer.Option(None, help=_APP),
        namespace: str | None = typer.Option(None, help=_NAMESPACE),
        queue: str | None = typer.Option(None, help=_QUEUE),
        version: list[int] = typer.Option([], min=1, help=_VERSION),  # noqa: B008  # only read
        all_: bool = typer.Option(False, "--all", help="All of the queue."),
        yes: bool = typer.Option(False, "--yes", help="Do not ask."),
    ) -> int:
        where = Where(log, app, namespace, queue)
        return dlq.drop(where, version, every=all_, yes=yes)

    return app


def _add_worker(app: typer.Typer) -> None:
    import typer

    @app.command(
        help="Write the batches of an application's write-back strategies, whatever their worker= "
        "says, until SIGTERM or Ctrl-C: then the batch under way is finished; a second one ends at "
        "once. Code 1: a batch did not end in time, or --once left something."
    )
    def worker(
        app: str = typer.Option(..., help="The application's cache, module:attribute."),
        queue: list[str] = typer.Option(  # noqa: B008  # only read
            [], help=_QUEUE + " Repeat for more. Default: all."
        ),
        status: str | None = typer.Option(None, help="Say how it goes this often, e.g. 10s."),
        grace: str = typer.Option("30s", help="For the batches under way at the end."),
        once: bool = typer.Option(False, "--once", help="Write what is there, and end."),
        timeout: str | None = typer.Option(None, help="With --once: give up after, e.g. 5m."),
    ) -> int:
        from .commands.text import duration
        from .commands.worker import work

        if timeout is not None and not once:
            raise ConfigurationError("--timeout goes with --once")
        return work(
            app,
            queue,
            status=None if status is None else max(0.1, duration(status, "--status")),
            grace=duration(grace, "--grace"),
            once=once,
            timeout=None if timeout is None else duration(timeout, "--timeout"),
        )
