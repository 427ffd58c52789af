"""Answer reads of single jobs, the most frequent request of polling clients, without the application.

Quart alone takes 0.45 ms a request. This module looks a known job up in memory, makes the checks of
AccessMiddleware, and sends the same cached response as the route. The application handles all other requests.
"""

import re
from collections.abc import Sequence
from typing import Any, Final

from progressd.core.errors import ProgressdError
from progressd.engine.registry import Registry
from progressd.http.middleware.access import AccessMiddleware
from progressd.http.middleware.compression import MAX_INLINE_BYTES
from progressd.http.middleware.cors import CORSMiddleware
from progressd.http.middleware.job_cache import CachedResponse, JobResponseCache

_JOB = re.compile(rb"/api/jobs/([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")
_FOR_APPLICATION: Final = frozenset({b"content-length", b"transfer-encoding", b"upgrade", b"expect", b"origin"})


class FastJobReads:
    """Answer requests without a body."""

    def __init__(
        self, access: AccessMiddleware, cors: CORSMiddleware, registry: Registry, answers: JobResponseCache
    ) -> None:
        self._access = access
        self._cors = cors
        self._registry = registry
        self._answers = answers

    def answer(
        self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]], client: tuple[str, int] | None
    ) -> CachedResponse | None:
        """Return the response, and count the request. Return None if the application must respond and count.

        Header names are in lower case.
        """
        if method != b"GET" or (found := _JOB.fullmatch(target)) is None:
            return None
        job = self._registry.known(found[1].decode())
        if job is None:
            return None
        fields = dict(headers)
        if not _FOR_APPLICATION.isdisjoint(fields):
            return None
        path = target.decode()
        scope: Any = {"method": "GET", "path": path, "query_string": b"", "headers": headers, "client": client}
        try:
            sender = self._access.identify(scope)
            self._access.authorize(scope, sender)
            if not sender.identity.may_see(job):
                return None
            answer = self._answers.answer(job, fields.get(b"if-none-match"), fields.get(b"accept-encoding", b""))
            if len(answer.body) > MAX_INLINE_BYTES:  # compressed in a thread
                return None
            return answer.with_headers([*self._access.count(path, sender), *self._cors.vary()])
        except ProgressdError:
            return None
