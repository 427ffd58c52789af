"""The books of uploads: what became of each file that was sent, once or again, alone or in a batch."""

from collections import Counter


class Uploads:
    """Files are told apart by their names, under which they are sent; part of the ledger."""

    def __init__(self, counted: Counter[str]) -> None:
        self.counted = counted
        self.inputs: dict[str, bytes] = {}  # what is in each file
        self.accepted: dict[str, str] = {}  # those that were answered 202: job -> file
        self.unanswered: list[str] = []  # those to be sent again under their key
        self.batches: dict[tuple[str, ...], str | None] = {}  # files -> the id that was answered
        self.made: dict[str, str] = {}  # jobs of the runner, answered or not: job -> file
        self._tried: Counter[str] = Counter()  # how often a file was sent
        self._denied: Counter[str] = Counter()  # and how often it was refused for good
        self._refused: set[str] = set()  # those that were refused and not answered since

    def sent(self, name: str) -> None:
        """A file is on its way, once more perhaps."""
        self._tried[name] += 1
        self.counted["refused uploads sent again"] += name in self._refused

    def refused(self, name: str, full: bool) -> None:
        """It was refused; `full`: since the disk is, so that this time nothing will come of it."""
        self._refused.add(name)
        self._denied[name] += full
        self.counted["uploads refused"] += 1

    def answered(self, name: str, job_id: str) -> None:
        """An upload was answered 202; however often it is sent under its key, it is one job."""
        self.counted["uploads answered"] += 1
        self.counted["uploads answered again"] += job_id in self.accepted
        self.accepted[job_id] = name
        self._refused.discard(name)
        jobs = [made for made, of in self.accepted.items() if of == name]
        assert jobs == [job_id], f"the upload {name} has become the jobs {jobs}"

    def batch_answered(self, names: tuple[str, ...], batch_id: str) -> None:
        """A batch was answered 202; the same holds for it."""
        known, self.batches[names] = self.batches[names], batch_id
        assert known in (None, batch_id), f"the batch {names} has become the batches {known} and {batch_id}"
        self._refused.difference_update(names)

    def compare(self, job_id: str, name: str, content: bytes | None) -> None:
        """The input of a job of the runner, None where there is none."""
        others = [other for other, of in self.made.items() if of == name and other != job_id]
        assert not others, f"the upload {name} has become the jobs {[*others, job_id]}"
        assert self._tried[name] > self._denied[name], f"the upload {name} was refused, and has become job {job_id}"
        self.made[job_id] = name
        self.counted["refused uploads that became jobs"] += name in self._refused
        assert content is not None, f"the input {name} of job {job_id} is gone"
        assert content == self.inputs[name], f"the input {name} of job {job_id} is not what was uploaded"
        self.counted["inputs compared"] += 1

    def compare_accepted(self) -> None:
        """Every upload that was answered has its job; call it when all changes have been compared."""
        for job_id, name in self.accepted.items():
            assert self.made.get(job_id) == name, f"the upload {name} was answered {job_id}, and it is gone"

    def compare_batches(self) -> None:
        """All files of a batch have become jobs, or none; call it when all uploads have been compared."""
        there = set(self.made.values())
        for names, batch_id in self.batches.items():
            made = [name for name in names if name in there]
            assert len(made) == len(names) or not made, f"of the batch {names} only {made} have become jobs"
            assert made or batch_id is None, f"the batch {batch_id} was answered, and it is gone"
            self.counted["batches compared"] += 1
