"""Supervises one job: runs a command in its own process group and leaves no process behind.

    python -m restore_lab.launch.supervisor <lifeline> <facts.json> <log> <command> ...

The caller starts the supervisor in a new session and holds the write end of the pipe `lifeline`. When the command ends,
the supervisor writes the facts (exit status, seconds, peak memory) and kills the rest of the group. When the caller
dies for any reason, the pipe closes and the supervisor kills the whole group, itself included. When the supervisor is
killed, the kernel kills the command (Linux) and the caller kills the group. This module imports nothing from the
package.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time


def main() -> None:
    """Run the command line above."""
    lifeline, facts, log, *command = sys.argv[1:]
    started = time.time()
    with open(log, "ab") as file:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, preexec_fn=_die_with)
    while child.poll() is None:
        readable, _, _ = select.select([int(lifeline)], [], [], 0.05)
        if readable:  # the pipe is never written to: the other end has closed
            os.killpg(0, signal.SIGKILL)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = {"rc": child.returncode, "seconds": time.time() - started, "started": started}
    found["peak_bytes"] = used.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    temporary = f"{facts}.{os.getpid()}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(found, file)
    os.replace(temporary, facts)
    os.killpg(0, signal.SIGKILL)


def _die_with() -> None:
    """Let the kernel kill this process when the supervisor ends (Linux only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


if __name__ == "__main__":
    main()
