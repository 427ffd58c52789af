"""`progressd completion`: shell completion."""

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    bash, in ~/.bashrc:
        eval "$(progressd completion bash)"
    zsh, in ~/.zshrc, after compinit:
        eval "$(progressd completion zsh)"
    fish:
        progressd completion fish > ~/.config/fish/completions/progressd.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    assert found is not None
    click.echo(found(ctx.find_root().command, {}, "progressd", "_PROGRESSD_COMPLETE").source())
