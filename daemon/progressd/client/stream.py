"""A feed: what a task in the background produces, as an asynchronous iterator that lives in an `async with` block.

Trio allows no nursery to be left by `yield` in an asynchronous generator; and an error of the producer has to come out
of the iteration itself, not after the loop has ended as if all were well.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Generic, TypeAlias, TypeVar

import trio

T = TypeVar("T")
Send: TypeAlias = Callable[[T], Awaitable[None]]


class Stream(Generic[T]):
    """Iterate over it: one item at a time is taken from the producer, and its error is raised in its place."""

    def __init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel[T](0)
        self._error: Exception | None = None

    def __aiter__(self) -> "Stream[T]":
        return self

    async def __anext__(self) -> T:
        try:
            return await self._receive.receive()
        except trio.EndOfChannel:
            raise (self._error or StopAsyncIteration) from None

    async def _fill(self, produce: Callable[[Send[T]], Awaitable[None]]) -> None:
        with self._send:
            try:
                await produce(self._send.send)
            except Exception as error:
                self._error = error


@asynccontextmanager
async def stream(produce: Callable[[Send[T]], Awaitable[None]]) -> AsyncIterator[Stream[T]]:
    """What `produce(send)` sends; it is cancelled when the block is left."""
    with unwrapped():
        async with trio.open_nursery() as nursery:
            source = Stream[T]()
            nursery.start_soon(source._fill, produce)
            yield source
            nursery.cancel_scope.cancel()


@contextmanager
def unwrapped() -> Iterator[None]:
    """Take the only error out of the group that a nursery has put around it."""
    try:
        yield
    except BaseExceptionGroup as group:
        errors = [error for error in _leaves(group) if not isinstance(error, trio.Cancelled)]
        if len(errors) > 1:
            raise
        raise next(iter(errors), next(_leaves(group))) from None


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error
