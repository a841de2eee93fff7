"""`revln models`: list the models, show one, load it in every worker, let go of it."""

from __future__ import annotations

import json
import time
from typing import Any, Literal

import click

from revln.cli.jobs import as_json_option, connect, url_option
from revln.cli.numbers import Number
from revln.cli.output import print_json
from revln.client import RevlnClient
from revln.terminal import visible

__all__ = ["models"]

_POLL_S = 0.3


@click.group(invoke_without_command=True)
@url_option
@as_json_option
@click.pass_context
def models(context: click.Context, url: str | None, as_json: bool) -> None:
    """List the models, show one, load it or let go of it.

    The operator names the models in REVLN_MODELS (docs/models.md); jobs and collections are given one of those names.

    \b
    Examples:
      revln models                     list them
      revln models show my-clip        one of them, worker by worker
      revln models load my-clip        have it warm before its first job
    """
    if context.invoked_subcommand is None:
        context.invoke(list_models, url=url, as_json=as_json)


@models.command("list")
@url_option
@as_json_option
def list_models(url: str | None, as_json: bool) -> None:
    """List the models and where they run."""
    with connect(url) as client:
        found = client.models()
    if as_json:
        print_json(found)
        return
    for model in found:
        _print(model)


@models.command(short_help="Show one model and its state in each worker.")
@click.argument("name", metavar="NAME")
@url_option
@as_json_option
def show(name: str, url: str | None, as_json: bool) -> None:
    """Show one model: what it is, its fingerprints, and its state in each worker."""
    with connect(url) as client:
        found = client.model(name)
    if as_json:
        print_json(found)
        return
    _print(found)
    if "error" not in found:
        click.echo(f"  fingerprint: {found['fingerprint']}, of its vectors: {found['joint_fingerprint']}")
        if found.get("max_tokens"):
            click.echo(f"  reads texts of at most {found['max_tokens']:,} tokens")
        if prompts := found.get("prompts"):
            click.echo(f"  prompts: {json.dumps(prompts, ensure_ascii=False)}")
        for worker in found["workers"]:
            click.echo(f"  {_in_worker(worker)}")


@models.command()
@click.argument("name", metavar="NAME")
@click.option("--timeout", type=Number(min=0), default=300.0, show_default=True, help="Seconds; 0: do not wait.")
@url_option
@as_json_option
def load(name: str, timeout: float, url: str | None, as_json: bool) -> int:
    """Load a model in every worker, and wait until it is there.

    Its first job would do that too. It stays until its memory is needed for another one (REVLN_MODEL_MEMORY_BYTES).
    """
    return _order(name, "load", timeout, url, as_json)


@models.command(short_help="Have every worker let go of a model.")
@click.argument("name", metavar="NAME")
@click.option("--timeout", type=Number(min=0), default=60.0, show_default=True, help="Seconds; 0: do not wait.")
@url_option
@as_json_option
def unload(name: str, timeout: float, url: str | None, as_json: bool) -> int:
    """Have every worker let go of a model as soon as no running chunk uses it.

    The next job that names it loads it again.
    """
    return _order(name, "unload", timeout, url, as_json)


def _order(name: str, wanted: Literal["load", "unload"], timeout: float, url: str | None, as_json: bool) -> int:
    """The exit status: 0 done in every worker (or not waited for), 1 failed or not done in time in one of them."""
    with connect(url) as client:
        error = client.model(name).get("error") if wanted == "load" else None
        if error and not error["retryable"]:
            # Known before any worker is asked, which would find out no more.
            click.echo(f"model {name} cannot be loaded: {error['detail']}", err=True)
            return 1
        order = client.order_model(name, wanted)
        if not timeout:
            shown, done = client.model(name), True
        else:
            shown, done = _wait(client, order, time.monotonic() + timeout)
    asked = [worker for worker in shown.get("workers", ()) if worker["worker"] in order["workers"]]
    # A job may have loaded it again at once; an order to unload it was carried out all the same.
    failed = [worker for worker in asked if wanted == "load" and worker["state"] == "failed"]
    if as_json:
        print_json(shown)
    else:
        for worker in asked:
            click.echo(_in_worker(worker))
        if not done:
            click.echo(
                f"not every worker was done within {timeout:g} s; it goes on: revln models show {name}", err=True
            )
    return 0 if done and not failed else 1


def _wait(client: RevlnClient, order: dict[str, Any], end: float) -> tuple[dict[str, Any], bool]:
    while True:
        shown = client.model(order["name"])
        at = {worker["worker"]: worker["order"] for worker in shown.get("workers", ())}
        if all(at.get(worker, 0) >= order["order"] for worker in order["workers"]):
            return shown, True
        if time.monotonic() >= end:
            return shown, False
        time.sleep(_POLL_S)


def _print(model: dict[str, Any]) -> None:
    click.secho(visible(model["name"]) + (" (default)" if model["default"] else ""), bold=True)
    if error := model.get("error"):
        click.echo(f"  cannot be used: {error['detail']}")
        return
    devices = sorted({worker["device"] for worker in model["workers"] if worker.get("device")})
    failures = [worker for worker in model["workers"] if worker.get("error")]
    size = f"{model['parameters'] / 1e6:.1f} M parameters" if model["parameters"] else ""
    dim = f"{model['dim']} dimensions" if model["dim"] else ""
    click.echo("  " + ", ".join(filter(None, [f"family {model['family']}", dim, size])))
    click.echo(f"  does: {', '.join(model['operations'])}")
    click.echo(f"  runs on: {', '.join(devices) or 'nothing yet; it is loaded by its first job'}")
    if failures:
        click.echo(f"  failed in {failures[0]['worker']}: {failures[0]['error']['detail']}")
    if model["license"]:
        click.echo(f"  license: {model['license']}")


def _in_worker(worker: dict[str, Any]) -> str:
    words = [f"{worker['worker']}: {worker['state']}"]
    if error := worker.get("error"):
        words.append(error["detail"])
    if worker.get("device"):
        batch = max(worker["batch"].values(), default=0)
        words.append(
            f"on {worker['device']} in {worker['dtype']}, {worker['size_bytes'] / 1e6:,.0f} MB of weights, "
            f"batches of at most {batch}, {worker['chunks']} chunks use it"
        )
    return ", ".join(words)
