"""`mcspex completion`, and what shells are told of models."""

from __future__ import annotations

import sys

import click
from click.shell_completion import get_completion_class

from mcspex_cli.cli import console

PLACES = {
    "bash": "~/.local/share/bash-completion/completions/mcspex",
    "zsh": "~/.zfunc/_mcspex",
    "fish": "~/.config/fish/completions/mcspex.fish",
}
"""Where each shell looks for it; zsh if fpath has ~/.zfunc before compinit."""


@click.command()
@click.argument("shell", type=click.Choice(list(PLACES)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script that completes mcspex's commands, options, models and files in a shell.

    \b
    mcspex completion bash > ~/.local/share/bash-completion/completions/mcspex
    mcspex completion zsh  > ~/.zfunc/_mcspex     (in .zshrc, before compinit: fpath+=~/.zfunc)
    mcspex completion fish > ~/.config/fish/completions/mcspex.fish
    """  # noqa: D301 (click needs the character itself)
    made = get_completion_class(shell)
    if made is None:
        raise click.UsageError(f"this click has no completion for {shell}.")
    script = made(ctx.find_root().command, {}, "mcspex", "_MCSPEX_COMPLETE").source()
    console.text(script)
    if sys.stdout.isatty():
        console.say(f"To install it: mcspex completion {shell} > {PLACES[shell]}")
