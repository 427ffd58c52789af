from samples import ID

from daemon import RunningDaemon, completed, progress, registered


async def test_first(daemon: RunningDaemon) -> None:
    assert [a["ok"] for a in await daemon.report(registered(ID))] == [True]
    async with daemon.watch(f"/ws/jobs/{ID}") as watcher:
        await daemon.report(progress(ID, 5, 12, "AI Upscaling"))
        print(await watcher.receive())
        print(await watcher.receive())
        await daemon.report(completed(ID))
        print(await watcher.rest(), await watcher.closed())
