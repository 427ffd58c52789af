"""Finished jobs, page by page from the REST API: messages only bring those that end while the list is open."""

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlencode

from progressd.cli.screen.rows import Filter, Tab
from progressd.client.errors import APIError
from progressd.client.rest import RestClient
from progressd.core.messages import JobStatus

PAGE: Final = 500  # jobs
FIRST: Final = 200  # unfinished jobs that are shown before the messages about all of them
LAST: Final = [status for status in JobStatus if status.finished]


class Finished:
    """Fetch the finished jobs that a filter admits.

    `totals`: how many jobs the daemon has for a tab, if they are not all fetched. An older daemon knows fewer
    parameters. Then the list alone filters.
    """

    def __init__(self, given: Filter) -> None:
        self._filter = given
        self._simple = False  # the daemon knows only the parameters of the first version
        self._next: str | None = ""  # where the next page begins; None: there is none
        self._fetched = 0
        self.totals = dict[Tab, int]()

    @property
    def complete(self) -> bool:
        """Return whether all pages have been fetched."""
        return self._next is None

    def begin(self, client: RestClient) -> list[dict[str, Any]]:
        """Return the newest unfinished jobs, those that need a look, and a page of finished jobs."""
        self._simple = False
        try:
            page = self._page(client, [("attention", "true"), ("limit", str(PAGE))])
        except APIError as error:
            if error.status != 400:
                raise
            self._simple = True
            page = self._page(client, [("status", "failed"), ("limit", str(PAGE))])
        found: list[dict[str, Any]] = page["jobs"]
        self._note(Tab.ATTENTION, page.get("total", 0), len(found))
        for status in ("processing", "queued"):
            found += self._page(client, [("status", status), ("limit", str(FIRST))])["jobs"]
        return found + self.more(client)

    def slow(self, client: RestClient) -> set[str]:
        """Return the ids of the running jobs that take longer than usual; none if the daemon does not say so."""
        if self._simple:
            return set()
        query = [("attention", "true"), ("status", "processing"), ("limit", str(PAGE))]
        return {job["id"] for job in self._page(client, query)["jobs"] if job["progress"].get("slow")}

    def restart(self) -> None:
        """Begin again with the first page."""
        self._next, self._fetched = "", 0

    def more(self, client: RestClient) -> list[dict[str, Any]]:
        """Return the next page of finished jobs; no jobs if there is none."""
        statuses = [status for status in LAST if not self._filter.statuses or status in self._filter.statuses]
        if self._next is None or not statuses:
            self._next = None
            return []
        query = [("limit", str(PAGE))]
        if self._simple:
            page = self._page(client, [*query, ("offset", str(self._fetched))], "/api/jobs/history")
            following = "more" if self._fetched + len(page["jobs"]) < page["total"] and page["jobs"] else None
        else:
            query += [("status", ",".join(statuses)), ("sort", "-finished")]
            page = self._page(client, [*query, *([("after", self._next)] if self._next else [])])
            following = page.get("next")
        jobs: list[dict[str, Any]] = page["jobs"]
        self._next = following
        self._fetched += len(jobs)
        self._note(Tab.FINISHED, page.get("total", 0), self._fetched)
        return jobs

    def search(self, client: RestClient, text: str) -> list[dict[str, Any]]:
        """Return the newest finished jobs that a search finds; no jobs if the daemon cannot search."""
        if self._simple or not text.strip():
            return []
        jobs: list[dict[str, Any]] = self._page(
            client, [("limit", str(PAGE)), ("status", ",".join(LAST)), ("q", text)]
        )["jobs"]
        return jobs

    def _note(self, tab: Tab, total: int, fetched: int) -> None:
        if fetched < total:
            self.totals[tab] = total
        else:
            self.totals.pop(tab, None)

    def _page(self, client: RestClient, query: Sequence[tuple[str, str]], path: str = "/api/jobs") -> dict[str, Any]:
        given = self._filter
        query = [*query, *([("kind", given.kind)] if given.kind else [])]
        labels = [f"{name}={value}" for name, value in given.labels.items()]
        if given.host:
            labels.append(f"host={given.host}")
        query += [("label", label) for label in labels[: 1 if self._simple else None]]
        if given.search and not self._simple and not any(name == "q" for name, _ in query):
            query.append(("q", given.search))
        return client.page(f"{path}?{urlencode(query, errors='replace')}")
