"""The limits of the fields of events: the daemon rejects events beyond them, and producers shorten what they send.

`progressd run` imports this module before it starts the command, so this module imports nothing.
"""

MAX_COUNT = 2**53  # JavaScript numbers are exact up to this limit
MAX_PAGES = 10**9
MAX_RATE = 1e18  # units a second

MAX_KIND = 200  # characters
MAX_JOB_NAME = 255  # characters
MAX_LABEL = 200  # characters of the name of a label, and of its value
MAX_LABELS = 50
MAX_OPTIONS_BYTES = 65536  # bytes of JSON; jobs that are watched, listed or run are in memory
MAX_NESTING = 32  # levels of options; the parsers of Python and SQLite fail at about 1000

MAX_STEP_NAME = 1000  # characters; also of the name of an input file
MAX_UNIT = 20  # characters
MAX_PHASE = 200  # characters; also for the name of a task
MAX_TASK_ID = 100  # characters
MAX_TASKS = 32  # unfinished tasks of a job

MAX_ERROR = 10_000  # characters of the message of an error
MAX_LOG_TEXT = 2**18  # characters in one event

MIN_LEASE = 1  # second; the daemon checks a silent job once per lease
MAX_LEASE = 30 * 86400  # seconds
MAX_ETA = 36500 * 86400  # seconds
MAX_ELAPSED = 36500 * 86400  # seconds, a century; statistics sum them, as they sum pages
