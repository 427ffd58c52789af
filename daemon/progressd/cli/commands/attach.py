"""`progressd attach`: report running processes as jobs."""

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import click

from progressd.cli.language import sentence
from progressd.cli.options import labels_option, lease_option
from progressd.cli.remote import Remote, error_sentence, remote_options

if TYPE_CHECKING:
    from progressd.cli.display import Display
    from progressd.client.attach import Target
    from progressd.client.errors import ClientError


@click.command()
@click.argument("processes", metavar="PROCESS...", nargs=-1, required=True)
@click.option("--follow", "-f", is_flag=True, help="Also attach to processes that start later.")
@click.option("--watch", "-w", is_flag=True, help="Watch the jobs.")
@click.option("--name", metavar="NAME", help="The name of the jobs.  [default: the command, without secrets]")
@labels_option("A label of the jobs, in addition to host, user, pid and unit.")
@lease_option("a job")
@remote_options
@click.pass_context
def attach(
    ctx: click.Context,
    processes: tuple[str, ...],
    follow: bool,
    watch: bool,
    name: str | None,
    labels: dict[str, str],
    lease: float,
    remote: Remote,
) -> None:
    """Report running processes as jobs, until they end.

    PROCESS is a process id, the name of a program, or a systemd unit. The progress is the position in the largest file
    that the process, or a process that it has started, reads or writes. The command prints the ids of the jobs.

    With --follow, a job also covers processes that outlive the process that started them. The command attaches to
    matching programs and units whenever they start, until Ctrl-C.

    \b
    Examples:
      progressd attach 4711
      progressd attach --follow cp dd
      progressd attach backup.service
    """
    import trio

    from progressd.client.attach import Attachment
    from progressd.client.exception_groups import unwrapped

    def say(what: "str | ClientError") -> None:
        line = f"progressd: {sentence(what) if isinstance(what, str) else error_sentence(what, remote)}"
        if display is None:
            click.echo(line, err=True)
        else:
            display.notice(line)

    display: Display | None = None
    targets = _targets(processes, say, follow=follow)
    names = [process for process in processes if follow and not process.isdecimal()]
    if not targets and not names:
        ctx.exit(1)

    async def attach_all() -> int:
        async with trio.open_nursery() as watching:

            def begun(target: "Target", job_id: str) -> None:
                if display is None:
                    click.echo(f"{job_id} {target}")
                else:
                    from progressd.cli.follow import follow_job

                    display.print_line(f"{job_id} {target}")
                    display.name_job(job_id, name or target.name)
                    watching.start_soon(follow_job, remote, job_id, display)

            attachment = Attachment(remote.client, say, begun, name=name, labels=labels, lease=lease, follow=follow)
            return await attachment.run(targets, names)

    with contextlib.ExitStack() as stack:
        if watch:
            from progressd.cli.display import display_for

            display = stack.enter_context(display_for(remote.url, {}, as_json=False))
        stack.enter_context(unwrapped())
        status = trio.run(attach_all)
    ctx.exit(status)


def _targets(processes: Sequence[str], say: "Callable[[ClientError], None]", *, follow: bool) -> "list[Target]":
    """Return the processes with these ids, names or units. Raises ClientError if there is none for one of them.

    With `follow`, processes may start later. So `say` gets the errors.
    """
    from progressd.client.attach import Target, find, opened
    from progressd.client.errors import ClientError

    targets = list[Target]()
    for process in processes:
        found = find(process)
        if not found and not follow:
            raise ClientError(f"no process is called {process}")
        for one in found:
            try:
                targets.append(opened(one))
            except ClientError as error:
                if len(found) == 1 and not follow:
                    raise
                say(error)
    return targets
