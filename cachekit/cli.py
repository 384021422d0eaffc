"""The command line: ``cachekit`` and ``python -m cachekit``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from .errors import CacheKitError
from .version import __version__

PIP_LINE = "pip install 'cachekit-strategies[bench]'"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; gives the exit code: 0, 1 when a part of it failed, 2 for bad input,
    130 after Ctrl-C.

    Bad input gets one line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if arguments == ["--version"]:
        print(f"cachekit {__version__}")
        return 0
    try:
        import rich
        import typer
    except ModuleNotFoundError as error:
        return _refuse(f"the command line needs {error.name}: {PIP_LINE}")
    del rich
    try:
        command = typer.main.get_command(_app())
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
    print("cachekit: " + " ".join(message.split()), file=sys.stderr)
    return 2


def _app() -> Any:
    import typer

    from .bench.command import HELP, bench

    app = typer.Typer(
        help="Caching strategies: measure them before you choose.",
        add_completion=False,
        no_args_is_help=True,
    )

    @app.callback(invoke_without_command=True)
    def root(version: bool = typer.Option(False, "--version", help="Show the version.")) -> None:
        if version:
            print(f"cachekit {__version__}")
            raise typer.Exit

    app.command(help=HELP)(bench)
    return app
