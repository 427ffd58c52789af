"""The ledger of uploads: the result of each file, sent once or repeatedly, alone or in a batch."""

from collections import Counter


class Uploads:
    """The part of the ledger for uploads. The name identifies a file."""

    def __init__(self, counted: Counter[str]) -> None:
        self.counted = counted
        self.inputs: dict[str, bytes] = {}  # content by name
        self.accepted: dict[str, str] = {}  # accepted with 202: job -> file
        self.unanswered: list[str] = []  # to be repeated with their key
        self.batches: dict[tuple[str, ...], str | None] = {}  # files -> batch id
        self.made: dict[str, str] = {}  # all jobs of the runner: job -> file
        self._tried: Counter[str] = Counter()  # number of requests
        self._denied: Counter[str] = Counter()  # number of final rejections
        self._refused: set[str] = set()  # rejected, and not accepted since

    def sent(self, name: str) -> None:
        """Record a request, perhaps repeated."""
        self._tried[name] += 1
        self.counted["refused uploads sent again"] += name in self._refused

    def refused(self, name: str, full: bool) -> None:
        """Record a rejection. With `full`, the disk is full, so this request makes no job."""
        self._refused.add(name)
        self._denied[name] += full
        self.counted["uploads refused"] += 1

    def answered(self, name: str, job_id: str) -> None:
        """Record an accepted upload. Repeated requests with its key have the same job."""
        self.counted["uploads answered"] += 1
        self.counted["uploads answered again"] += job_id in self.accepted
        self.accepted[job_id] = name
        self._refused.discard(name)
        jobs = [made for made, of in self.accepted.items() if of == name]
        assert jobs == [job_id], f"the upload {name} has become the jobs {jobs}"

    def batch_answered(self, names: tuple[str, ...], batch_id: str) -> None:
        """Record an accepted batch. Repeated requests have the same batch."""
        known, self.batches[names] = self.batches[names], batch_id
        assert known in (None, batch_id), f"the batch {names} has become the batches {known} and {batch_id}"
        self._refused.difference_update(names)

    def compare(self, job_id: str, name: str, content: bytes | None) -> None:
        """Compare the input of a job, None if it is missing."""
        others = [other for other, of in self.made.items() if of == name and other != job_id]
        assert not others, f"the upload {name} has become the jobs {[*others, job_id]}"
        assert self._tried[name] > self._denied[name], f"the upload {name} was refused, and has become job {job_id}"
        self.made[job_id] = name
        self.counted["refused uploads that became jobs"] += name in self._refused
        assert content is not None, f"the input {name} of job {job_id} is gone"
        assert content == self.inputs[name], f"the input {name} of job {job_id} is not what was uploaded"
        self.counted["inputs compared"] += 1

    def compare_accepted(self) -> None:
        """Check that every accepted upload has its job, after all changes were compared."""
        for job_id, name in self.accepted.items():
            assert self.made.get(job_id) == name, f"the upload {name} was answered {job_id}, and it is gone"

    def compare_batches(self) -> None:
        """Check that batches are atomic, after all uploads were compared."""
        there = set(self.made.values())
        for names, batch_id in self.batches.items():
            made = [name for name in names if name in there]
            assert len(made) == len(names) or not made, f"of the batch {names} only {made} have become jobs"
            assert made or batch_id is None, f"the batch {batch_id} was answered, and it is gone"
            self.counted["batches compared"] += 1
