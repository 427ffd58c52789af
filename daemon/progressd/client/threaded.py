"""Iterate over a Trio stream from asyncio and from synchronous programs. Trio runs in a thread."""

import atexit
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, ExitStack
from typing import Generic, TypeVar

T = TypeVar("T")


class ThreadedStream(AsyncIterator[T], Iterator[T], Generic[T]):
    """The items of `opened`, one at a time, from `start` to `stop`. A wait that is interrupted loses no item."""

    def __init__(self, opened: Callable[[], AbstractAsyncContextManager[AsyncIterator[T]]]) -> None:
        self._opened = opened
        self._next: Future[T] | None = None  # requested, but not taken
        self._open = ExitStack()

    def start(self) -> None:
        """Open the stream in a new thread. Blocks."""
        from anyio.from_thread import start_blocking_portal

        with ExitStack() as opening:
            self._portal = opening.enter_context(start_blocking_portal("trio"))
            self._stream = opening.enter_context(self._portal.wrap_async_context_manager(self._opened()))
            self._open = opening.pop_all()
        atexit.register(self.stop)  # later, the interpreter could wait for the thread forever

    def stop(self) -> None:
        """Close the stream, and end the thread. Blocks."""
        atexit.unregister(self.stop)
        if self._next is not None:
            self._next.cancel()
        self._open.close()

    def __next__(self) -> T:
        try:
            future = self._requested()
            try:
                return future.result()
            finally:
                self._taken(future)
        except StopAsyncIteration:
            raise StopIteration from None

    async def __anext__(self) -> T:
        import asyncio

        future = self._requested()
        try:
            return await asyncio.shield(asyncio.wrap_future(future))
        finally:
            self._taken(future)

    def _requested(self) -> "Future[T]":
        if self._next is None:
            try:
                self._next = self._portal.start_task_soon(self._stream.__anext__)
            except RuntimeError:  # the stream is closed
                raise StopAsyncIteration from None
        return self._next

    def _taken(self, future: "Future[T]") -> None:
        """Forget a future that is done. After an interrupted wait, the next request gets the same one."""
        if future.done():
            self._next = None
