"""Run a command in the process of the tests, which is faster than in its own."""

from click.testing import CliRunner, Result
from progressd.cli.main import main


def run(*arguments: object, **environ: str) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], prog_name="progressd", env=environ)
