"""Retention: what is deleted when, and what stays."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from progressd import retention as module
from progressd.core.errors import StoreFailed
from progressd.core.status import JobStatus
from progressd.files import Files
from progressd.registry import Registry
from progressd.retention import run_retention
from progressd.store.sqlite import SQLiteStore
from samples import job, job_id
