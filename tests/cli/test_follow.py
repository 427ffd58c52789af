"""Follow several jobs to their ends, as `submit --watch` does."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from progressd.cli.display import LineDisplay
from progressd.cli.follow import _follow_each
from progressd.cli.remote import Remote
from progressd.client.errors import APIError
from support.daemon import RunningDaemon, completed, progress, registered, running_daemon
from support.samples import ID, job_id
from support.waiting import PATIENCE


@pytest.fixture
async def daemon(tmp_path: Path) -> AsyncIterator[RunningDaemon]:
    async with running_daemon(tmp_path) as running:
        yield running


class WaitingDisplay(LineDisplay):
    """Set an event once the display has shown that a job was deleted."""

    def __init__(self, url: str) -> None:
        super().__init__(url, as_json=False)
        self.event = trio.Event()

    def job_deleted(self, job_id: str) -> None:
        super().job_deleted(job_id)
        self.event.set()


async def test_a_deleted_job_does_not_end_the_watch(daemon: RunningDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    await daemon.report(registered(ID), progress(ID, 1))
    statuses = []
    with WaitingDisplay(daemon.url) as display:
        async with trio.open_nursery() as nursery:

            async def follow() -> None:
                statuses.append(await _follow_each(Remote(daemon.url), [ID, job_id(2)], display))

            nursery.start_soon(follow)
            with trio.fail_after(PATIENCE):
                await display.event.wait()
            await daemon.report(completed(ID))
    said = capsys.readouterr()
    assert said.err == f"job {job_id(2)[:8]} was deleted\n"
    assert f"{ID} completed" in said.out
    assert statuses == [1]


async def test_a_missing_job_is_an_error(daemon: RunningDaemon) -> None:
    with LineDisplay(daemon.url, as_json=False) as display, pytest.RaisesGroup(APIError):
        await _follow_each(Remote(daemon.url), [ID], display)
