"""One life of a machine: starts it, passes on its output, cuts its power, reports how it ended.

Knows nothing about the command inside.
"""

import dataclasses
import os
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import termios
import time
from pathlib import Path

import facts
from kernels import Boot, Machine
from shell import Failure, say

# How long a machine may take to power off after its command has ended.
POWEROFF_SECONDS = 60


@dataclasses.dataclass
class PowerCut:
    """A power cut by the host at a random moment given by `seed`: at most `within_seconds` after
    the guest's line `@@MACHINE cut-window@@`."""

    seed: int
    within_seconds: float


@dataclasses.dataclass
class Plug:
    """Connect the disk with this number."""

    disk: int


END = object()


@dataclasses.dataclass
class Outcome:
    """How a machine ended."""

    status: int
    cut: bool  # the power was cut
    lines: list  # what the command printed


@dataclasses.dataclass
class Job:
    """What to run in a machine. `share` is copied to /host/share there; `disks_folder` keeps the
    disks for a later run."""

    command: str | None  # None: a shell on our terminal
    share: Path | None = None
    disk_sizes: tuple = ()
    disks_folder: Path | None = None
    memory_mib: int = 2048
    seconds: float = 600
    power_cut: PowerCut | None = None
    keep_root: bool = False  # in `disks_folder`, for the next life
    console: Path | None = None  # file for the kernel's console output
    boot: Boot | None = None  # None: the machine's own image
    # Texts at the console and the reaction to each, once and in this order: a string is typed, a
    # Plug connects a disk, END ends the machine as a success, None is no reaction. A text that does
    # not appear is a failure.
    typed: tuple = ()
    absent: tuple = ()  # numbers of disks that are not connected at first


def _memory_folder(bytes_needed):
    """A directory for the machine's memory and scratch files: in RAM if there is enough of it and
    it permits mapping programs."""
    shm = "/dev/shm"
    if os.access(shm, os.W_OK):
        room = os.statvfs(shm)
        if room.f_bavail * room.f_frsize > bytes_needed and not room.f_flag & os.ST_NOEXEC:
            return shm
    return tempfile.gettempdir()


def _pack(folder, job):
    """The archive that image/agent unpacks."""
    size = shutil.get_terminal_size()
    mode = "run" if job.command is not None else "shell"
    (folder / "session").write_text(
        f"MODE={mode} DISK_COUNT={len(job.disk_sizes)} ROWS={size.lines} COLUMNS={size.columns}"
        f" TERM_NAME={os.environ.get('TERM', 'dumb') if mode == 'shell' else 'dumb'}\n"
    )
    (folder / "command").write_text((job.command or "") + "\n")
    payload = folder / "payload.tar"
    with tarfile.open(payload, "w") as archive:
        for name in ("session", "command"):
            archive.add(folder / name, name)
        if job.share:
            archive.add(job.share, "share")
    return payload


def _make_disks(folder, sizes):
    """Creates sparse files; uses existing ones as they are."""
    if len(sizes) > facts.DISKS_MAX:
        raise Failure(f"at most {facts.DISKS_MAX} disks")
    folder.mkdir(parents=True, exist_ok=True)
    disks = [(folder / f"disk{number}").absolute() for number in range(len(sizes))]
    for disk, size in zip(disks, sizes):
        if not disk.exists():
            subprocess.run(["truncate", "-s", size, disk], check=True)
    return disks


def live(kernel, job, echo=True):
    """Runs the job in a new machine and returns its Outcome; `echo` prints the guest's lines as
    they arrive."""
    scratch = _memory_folder((job.memory_mib + 512) << 20)
    folder = Path(tempfile.mkdtemp(prefix="stratis-machine.", dir=scratch))
    try:
        disks = _make_disks(job.disks_folder or folder, job.disk_sizes)
        payload = _pack(folder, job)
        console_path = job.console or folder / "console"
        with open(console_path, "wb") as console:
            overlay = job.disks_folder.absolute() / "root.cow" if job.keep_root else None
            machine = Machine(folder, payload, disks, job.memory_mib, console.fileno(), None, root_overlay=overlay,
                              boot=job.boot, absent=job.absent)  # fmt: skip
            if job.command is None:
                return _interactive(kernel, machine, scratch)
            outcome = _batch(kernel, machine, scratch, job, echo)
        if outcome.status in (facts.EXIT_TIME_LIMIT, facts.EXIT_MACHINE_DIED):
            tail = console_path.read_text(errors="replace")[-3000:]
            say(f"end of its kernel's console output:\n{tail}")
        return outcome
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(kernel, machine, scratch, stdin, stdout):
    descriptors = [each for each in (machine.console, machine.line, machine.keyboard) if each is not None]
    return subprocess.Popen(
        kernel.command(machine), stdin=stdin, stdout=stdout, stderr=machine.console, pass_fds=descriptors,
        env=dict(os.environ, TMPDIR=scratch), start_new_session=True,
    )  # fmt: skip


def _kill(process):
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _interactive(kernel, machine, scratch):
    if not sys.stdin.isatty():
        raise Failure("a shell needs a terminal; give a command instead")
    settings = termios.tcgetattr(sys.stdin)
    process = _start(kernel, machine, scratch, None, None)
    try:
        process.wait()
    finally:
        _kill(process)
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, settings)
        print("\r")
    return Outcome(0, False, [])


class _Guest:
    """Reads the agent's output line by line and acts on its marks."""

    def __init__(self, process, job, echo, keyboard=None):
        self.process, self.job, self.echo, self.keyboard = process, job, echo, keyboard
        self.started = time.monotonic()
        self.deadline = self.started + job.seconds
        self.cut_at = None
        self.status, self.cut, self.lines = None, False, []
        self.rest = b""

    def follow(self, reader):
        while self.status is None:
            now = time.monotonic()
            if self.cut_at is not None and now >= self.cut_at:
                return self._cut_power()
            if now >= self.deadline:
                say(f"reached the time limit of {self.job.seconds:.0f} s")
                self.status = facts.EXIT_TIME_LIMIT
                return
            wait = min(self.deadline, self.cut_at or self.deadline) - now
            sources = [reader] + ([self.keyboard.reader] if self.keyboard else [])
            ready = select.select(sources, [], [], max(wait, 0))[0]
            if self.keyboard and self.keyboard.reader in ready and not self.keyboard.take():
                self.keyboard = None
            if self.keyboard and self.keyboard.is_end:
                return self._cut_power()
            if reader not in ready:
                continue
            data = os.read(reader, 65536)
            if not data:  # the last writer is gone: the machine has ended
                return
            self._take(data)

    def drain(self, reader):
        """Reads the output of a machine that has ended. No writer is left, so the output ends."""
        while data := os.read(reader, 65536):
            self._take(data)
        if self.rest:
            self._pass_on(self.rest)

    def _take(self, data):
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            mark = re.match(facts.MARK, line)
            if mark:
                self._obey(mark[1], mark[2])
            else:
                self._pass_on(line)

    def _pass_on(self, line):
        text = line.decode(errors="replace").rstrip("\r")
        self.lines.append(text)
        if self.echo:
            print(text, flush=True)

    def _obey(self, word, argument):
        if self.status is not None:  # the command has ended; later marks change nothing
            return
        if word == b"up":
            say(f"the machine is up after {time.monotonic() - self.started:.1f} s")
        elif word == b"exit":
            self.status = int(argument)
        elif word == b"power-cut":
            self._cut_power()
        elif word == b"cut-window" and self.job.power_cut:
            delay = random.Random(self.job.power_cut.seed).uniform(0, self.job.power_cut.within_seconds)
            self.cut_at = time.monotonic() + delay

    def _cut_power(self):
        say(f"cut the power {time.monotonic() - self.started:.2f} s after the start")
        os.killpg(self.process.pid, signal.SIGKILL)
        self.status, self.cut = 0, True


class _Keyboard:
    """Acts when a text appears at the console of a machine. The console's output goes on to a file."""

    def __init__(self, kernel, machine, typed):
        self.kernel, self.machine, self.is_end = kernel, machine, False
        self.file, self.waiting, self.seen = os.dup(machine.console), list(typed), b""
        self.reader, machine.console = os.pipe()
        machine.keyboard, self.keys = os.pipe()
        self.given = (machine.console, machine.keyboard)

    def started(self):
        for descriptor in self.given:
            os.close(descriptor)

    def take(self):
        """Returns False at the end of the output."""
        data = os.read(self.reader, 65536)
        os.write(self.file, data)
        self.seen += data
        while self.waiting and (at := self.seen.find(self.waiting[0][0].encode())) >= 0:
            text, action = self.waiting.pop(0)
            self.seen = self.seen[at + len(text):]
            if action is END:
                self.is_end = True
            elif isinstance(action, Plug):
                self.kernel.plug(self.machine, action.disk)
            elif action is not None:
                os.write(self.keys, action.encode() + b"\n")
        return bool(data)

    def end(self):
        for descriptor in (self.reader, self.keys, self.file):
            os.close(descriptor)


def _batch(kernel, machine, scratch, job, echo):
    reader, machine.line = os.pipe()
    keyboard = _Keyboard(kernel, machine, job.typed) if job.typed else None
    process = _start(kernel, machine, scratch, subprocess.DEVNULL, machine.console)
    os.close(machine.line)
    if keyboard:
        keyboard.started()
    guest = _Guest(process, job, echo, keyboard)
    try:
        guest.follow(reader)
        if guest.status is not None and guest.status != facts.EXIT_TIME_LIMIT:
            try:
                process.wait(POWEROFF_SECONDS)
            except subprocess.TimeoutExpired:
                say(f"the machine did not power off within {POWEROFF_SECONDS} s")
    finally:
        _kill(process)
        guest.drain(reader)
        os.close(reader)
        if keyboard:
            keyboard.end()
    if keyboard and keyboard.waiting and not guest.status:
        say(f"the console has not shown {keyboard.waiting[0][0]!r}")
        guest.status = guest.status if guest.status is None else 1
    if guest.status is None:
        say("the machine died before its command had ended")
        guest.status = facts.EXIT_MACHINE_DIED
    return Outcome(guest.status, guest.cut, guest.lines)
