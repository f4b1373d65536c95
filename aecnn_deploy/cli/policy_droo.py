"""``aecnn-deploy policy evaluate --droo FILE``: the published test set of DROO."""

from pathlib import Path

import typer

from aecnn_deploy.cli.console import print_json, progress


def evaluate_droo(file: Path, policy: Path | None, seeds: int, json: bool) -> None:
    """Print the table of ``file``: the shipped set policies, or the one in ``policy``, beside DROO and rules."""
    from aecnn_deploy.offloading.droo.files import read_samples
    from aecnn_deploy.offloading.droo.set_policy import SHIPPED, read_policy
    from aecnn_deploy.offloading.droo.table import online_total, table_of
    from aecnn_deploy.offloading.droo.table_text import table_lines
    from aecnn_deploy.optional import require

    for module in ("scipy", "torch"):
        require(module, why="the test set of DROO", extra="offloading")
    samples = read_samples(file)
    policies = [read_policy(path) for path in ([policy] if policy else SHIPPED)]
    with progress("DROO learns", online_total(samples)) as bar:
        document = table_of(samples, policies, seeds=seeds, on_frames=bar.advance)
    if json:
        print_json(document)
        return
    for line in table_lines(document):
        typer.echo(line)
