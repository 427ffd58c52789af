"""Iterate over a Trio stream from asyncio and from synchronous programs. Trio runs in a thread."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, suppress
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class ThreadedStream(AsyncIterator[T], Iterator[T], Generic[T]):
    """The items of `opened`, one at a time, from `start` to `stop`. A wait that is interrupted loses no item.

    `opened` is called and used in the thread.
    """

    def __init__(self, opened: Callable[[], AbstractAsyncContextManager[AsyncIterator[T]]]) -> None:
        self._opened = opened
        self._next: Future[T] | None = None  # requested, but not taken
        self._token: trio.lowlevel.TrioToken
        self._nursery: trio.Nursery
        self._stream: AsyncIterator[T]
        self._begun = Future[None]()
        self._ended = Future[None]()
        self._thread = threading.Thread(target=self._run, name="progressd watch", daemon=True)

    def start(self) -> "Future[None]":
        """Start the thread. The future is done when items may be requested."""
        self._thread.start()
        return self._begun

    def stop(self) -> "Future[None]":
        """Stop the thread. The future is done when the stream is closed."""
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._nursery.cancel_scope.cancel)
        return self._ended

    def __next__(self) -> T:
        future = self._requested()
        try:
            item = future.result()
        except StopAsyncIteration:
            raise StopIteration from None
        finally:
            self._taken(future)
        return item

    async def __anext__(self) -> T:
        import asyncio

        future = self._requested()
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        finally:
            self._taken(future)

    def _requested(self) -> "Future[T]":
        if self._next is None:
            self._next = Future()
            try:
                self._token.run_sync_soon(self._ask, self._next)
            except trio.RunFinishedError:
                self._next.set_exception(StopAsyncIteration())
        return self._next

    def _ask(self, future: "Future[T]") -> None:
        try:
            self._nursery.start_soon(self._answer, future)
        except RuntimeError:  # the stream is closed
            future.set_exception(StopAsyncIteration())

    def _taken(self, future: "Future[T]") -> None:
        """Forget a future that is done. After an interrupted wait, the next request gets the same one."""
        if future.done():
            self._next = None

    def _run(self) -> None:
        try:
            trio.run(self._serve)
        except BaseException as error:
            if self._begun.done():
                self._ended.set_exception(error)
            else:
                self._begun.set_exception(error)
        else:
            self._ended.set_result(None)

    async def _serve(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with self._opened() as self._stream, trio.open_nursery() as self._nursery:
            self._begun.set_result(None)
            await trio.sleep_forever()

    async def _answer(self, future: "Future[T]") -> None:
        try:
            item = await anext(self._stream)
        except Exception as error:
            future.set_exception(error)
        except BaseException:  # the stream is being closed
            future.cancel()
            raise
        else:
            future.set_result(item)
