"""Runs build steps on the host and prints progress. Knows nothing of machines."""

import os
import shutil
import signal
import subprocess
import sys


class Failure(Exception):
    """An error that the user has to fix; the text says what."""


def command_line(main):
    """Runs the main function of a program: a Failure becomes a sentence and status 1; a termination
    signal unwinds normally, so that no machine keeps running."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main())
    except Failure as failure:
        say(str(failure))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def say(text):
    print(f"machine: {text}", file=sys.stderr, flush=True)


def run(command, cwd=None):
    """Runs a bash script to its end and returns its output, which is shown only on failure."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=cwd, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise Failure(f"a build step failed with status {done.returncode}:\n{command}\n{done.stdout[-4000:]}")
    return done.stdout


def find_program(name):
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def require(tools):
    """Raises a Failure unless every program of `tools` (program → Debian package) is installed."""
    missing = sorted({package for tool, package in tools.items() if not find_program(tool)})
    if missing:
        raise Failure(f"missing packages: {' '.join(missing)}; `scripts/setup machine` installs what is needed")


def write(path, text, mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
