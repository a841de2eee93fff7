"""The `revln` command. Sub-commands are imported when they are called, so that `revln --help` is quick."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from revln import __version__, terminal
from revln.cli.wording import in_commands
from revln.errors import RevlnError
from revln.jobs.kinds import KINDS

__all__ = ["main"]

# The kinds that have more than the command which every kind has.
KIND_COMMANDS = {"index": "revln.cli.index:index", "search": "revln.cli.search:search"}
# name → (where it lives, what it does). The text stands here because the module is not imported for `--help`.
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Run it": {
        "up": ("revln.cli.up:up", "Run everything on this machine, with no service to install."),
        "demo": (
            "revln.cli.demo.command:demo",
            "Embed, index, search and caption sample photographs; write demo.html.",
        ),
    },
    "Ask it": {
        **{
            name: (
                KIND_COMMANDS.get(name, "revln.cli.jobs:kind_command"),
                (kind.input.__doc__ or "").splitlines()[0].replace("``", ""),
            )
            for name, kind in KINDS.items()
        },
        "job": ("revln.cli.jobs:job", "Show one job, and wait for it if asked to."),
        "jobs": ("revln.cli.jobs:jobs", "List jobs, newest first."),
        "dead": ("revln.cli.dead:dead", "List jobs with chunks that were given up, and run them again."),
        "cancel": ("revln.cli.jobs:cancel", "Stop a job; what it has finished stays readable."),
        "delete": ("revln.cli.delete:delete", "Delete jobs that are done, and what was uploaded."),
        "upload": (
            "revln.cli.upload:upload",
            "Store pictures, or folders of them, and print the names under which jobs may use them.",
        ),
        "collection": ("revln.cli.jobs:collection", "Make a collection, show it, or delete it."),
        "collections": ("revln.cli.jobs:collections", "List the collections."),
        "webhooks": (
            "revln.cli.webhooks:webhooks",
            "Show what was told of jobs, tell it again, test a receiver, look after the secret.",
        ),
        "models": ("revln.cli.models:models", "List the models, show one, load it or let go of it."),
    },
    "Run its parts one by one": {
        "api": ("revln.cli.parts:api", "Run the HTTP API."),
        "worker": ("revln.cli.parts:worker", "Run one worker: the process that holds the models."),
        "flower": ("revln.cli.parts:flower", "Run Flower, the view of the queues and workers."),
        "db": ("revln.cli.parts:db", "Look after the database."),
        "keys": ("revln.cli.keys:keys", "Make, list, rotate and revoke API keys."),
        "audit": ("revln.cli.keys:audit", "Show who did what."),
    },
    "Teach it": {
        "train": ("revln.cli.train:train", "Train a model of the revln family."),
        "average": ("revln.cli.average:average", "Make one model of several that were trained from the same start."),
        "eval": ("revln.cli.evaluate:evaluate", "Measure a model: Recall@K, BLEU, ROUGE-L, CIDEr."),
    },
}
COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


class _LazyGroup(click.Group):
    """A group that knows its commands' names and texts, and imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        found: Any = getattr(importlib.import_module(module), attribute)
        command: click.Command = found(cmd_name) if attribute == "kind_command" else found
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for title, section in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, text) for name, (_where, text) in section.items()], col_max=14)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="revln")
def cli() -> None:
    """Jobs for pictures and language: embed, index, search and caption, on whatever GPU or CPU is there.

    \b
    Two commands to begin with:
      revln up                                            run everything, data in ./revln-data
      revln embed '{"items": [{"text": "a dog"}]}'        ask it something

    Every setting is an environment variable REVLN_…; docs/settings.md lists them.
    """


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command and exit: 0 well, 1 an error that one line explains, 2 wrong usage, 130 Ctrl-C."""
    click.echo = terminal.echo  # type: ignore[assignment]  # every command's own
    terminal.mend_streams()
    try:
        code = cli.main(args=list(argv) if argv is not None else None, prog_name="revln", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except click.Abort:
        raise SystemExit(130) from None
    except RevlnError as error:
        click.echo(f"revln: {in_commands(error.message)}", err=True)
        fields = getattr(error, "errors", ())
        for field in fields if len(fields) > 1 else ():  # a single one is the message
            click.echo(f"  {field.pointer}: {in_commands(field.detail)}", err=True)
        raise SystemExit(1) from None
    except BrokenPipeError:  # `revln jobs | head`: who read is gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(1) from None
    except OSError as error:  # a file that is not there, a disk that is full
        where = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes | os.PathLike) else ""
        click.echo(f"revln: {where}{error.strerror or error}", err=True)
        raise SystemExit(1) from None
    raise SystemExit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
