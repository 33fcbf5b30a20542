"""Running build steps on the host, and saying what is done. Knows nothing of machines."""

import os
import shutil
import signal
import subprocess
import sys


class Failure(Exception):
    """Something a person has to mend; the text says what."""


def command_line(main):
    """Runs the main function of a program: a Failure becomes a sentence and status 1, and being ended from outside
    becomes an ordinary way out, so that no machine is left running."""
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
    """Runs a bash script to its end and gives what it printed; its output is shown only if it fails."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=cwd, text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    if done.returncode:
        raise Failure(f"a build step ended with status {done.returncode}:\n{command}\n{done.stdout[-4000:]}")
    return done.stdout


def find_program(name):
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def require(tools):
    """Raises unless every program of `tools` (program → Debian package) is there."""
    missing = sorted({package for tool, package in tools.items() if not find_program(tool)})
    if missing:
        raise Failure(f"missing packages: {' '.join(missing)}; `scripts/setup machine` installs what is needed")


def write(path, text, mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
