"""Marks for tests of what some systems lack."""

import multiprocessing
import os
import sys

import pytest

needs_posix_files = pytest.mark.skipif(
    os.name != "posix", reason="Windows has no pipes, owners, modes, or control characters in names"
)
needs_links = pytest.mark.skipif(os.name != "posix", reason="on Windows links need a privilege")
needs_case = pytest.mark.skipif(
    sys.platform != "linux", reason="A and a are the same name on macOS and Windows"
)
needs_signals = pytest.mark.skipif(
    os.name != "posix", reason="on Windows a signal to a process ends it at once"
)
# Its worker processes have what the test replaced. The first is the system's default.
needs_forked_workers = pytest.mark.skipif(
    multiprocessing.get_all_start_methods()[0] != "fork",
    reason="worker processes start anew on macOS and Windows",
)
