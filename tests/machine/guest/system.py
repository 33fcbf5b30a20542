"""The guest's side of a test: disks, mounts, the daemon as a service, programs. Makes no D-Bus calls."""

import ctypes
import hashlib
import os
import pathlib
import select
import signal
import subprocess
import threading
import time

import stratis_bus

DISKS = os.environ["MACHINE_DISKS"].split()
LIBC = ctypes.CDLL(None, use_errno=True)
# Far longer than any program reads a device; reached only by a test that has failed.
READING_SECONDS = 60


def run(*command, check=True):
    """A program's standard output; its standard error goes to the test's output."""
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(map(str, command))} ended with status {done.returncode}: {done.stdout}")
    return done.stdout


# ---- disks ----


def settle():
    run("udevadm", "settle")


def erase(disk):
    """Makes a disk look new, to udev too. The first and last mebibytes contain every signature in
    use."""
    run("blockdev", "--setrw", disk)
    with open(disk, "r+b", buffering=0) as node:
        end = node.seek(0, os.SEEK_END)
        for offset in (0, end - (2 << 20)):
            node.seek(offset)
            node.write(bytes(2 << 20))
        os.fsync(node.fileno())
    run("udevadm", "trigger", "--settle", "--action=change", disk)


def digest(disk, length=16 << 20):
    """Digest of the start of a disk, which holds headers and metadata, to detect changes."""
    with open(disk, "rb", buffering=0) as node:
        os.posix_fadvise(node.fileno(), 0, length, os.POSIX_FADV_DONTNEED)
        return hashlib.sha256(node.read(length)).hexdigest()


def signature(disk):
    """What blkid reads on the disk itself, as a dict."""
    return dict(line.split("=", 1) for line in run("blkid", "-p", "-o", "export", disk, check=False).splitlines())


def mapped_devices():
    names = run("dmsetup", "ls").split("\n")
    return sorted(line.split()[0] for line in names if line and "No devices found" not in line)


def thin_pool():
    """The name of the only thin pool."""
    (name,) = [name for name in mapped_devices() if name.endswith("-thinpool-pool")]
    return name


def remove_mapped(prefix=""):
    """Removes the device-mapper devices with this prefix, from the top of the stack to the bottom.

    A program of udev, or the daemon, may still be reading a device on which something was written.
    """
    deadline = time.monotonic() + READING_SECONDS
    while True:
        rows = [row.split(":") for row in run("dmsetup", "info", "-c", "--noheadings", "-o", "name,open").split()]
        ours = [(name, users) for name, users in (row for row in rows if len(row) == 2) if name.startswith(prefix)]
        if not ours:
            return
        unused = [name for name, users in ours if users == "0"]
        if not unused:
            assert time.monotonic() < deadline, f"cannot remove devices that are all in use: {ours}"
            settle()
        for name in unused:
            run("dmsetup", "remove", "--retry", name)


def cut(disk, count, size):
    """`count` devices of `size` bytes from a disk, by device-mapper."""
    names = [f"slice{number}" for number in range(count)]
    for number, name in enumerate(names):
        sectors = size // 512
        run("dmsetup", "create", name, "--table", f"0 {sectors} linear {disk} {number * sectors}")
    settle()
    return [f"/dev/mapper/{name}" for name in names]


# ---- mounts and data ----


def mount(node, place):
    """mount(2) itself: starting a program would give a late link time to appear."""
    pathlib.Path(place).mkdir(parents=True, exist_ok=True)
    if LIBC.mount(os.fsencode(node), os.fsencode(place), b"xfs", 0, None):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), str(node))


def unmount(place):
    run("umount", place)


def crash(place):
    """As after a crash: the log of the XFS is not empty, and nothing is mounted."""
    run("xfs_io", "-x", "-c", "shutdown -f", place)
    unmount(place)


def unmount_all(below="/mnt"):
    mounts = [line.split()[1] for line in open("/proc/mounts")]
    for place in reversed([m for m in mounts if m.startswith(below + "/")]):
        run("umount", place)


class Writer:
    """Writes files, one after the other, overwriting old ones, until it is ended."""

    FILES = 8

    def __init__(self, place):
        self.place, self.written, self.rounds = place, {}, 0
        self._end, self._failure = threading.Event(), None
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self):
        try:
            while not self._end.is_set():
                name = f"written{self.rounds % self.FILES}"
                self.written[name] = put(self.place, name, 1 << 20)
                self.rounds += 1
        except OSError as failure:
            self._failure = failure

    def end(self):
        """Name → digest of all files written, all of them durable."""
        self._end.set()
        self._thread.join()
        assert self._failure is None, self._failure
        assert self.rounds > 0
        return self.written


def put(place, name, size_bytes=1 << 20):
    """Writes a file of random bytes durably; returns its digest."""
    data = os.urandom(size_bytes)
    with open(f"{place}/{name}", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    folder = os.open(place, os.O_DIRECTORY)
    os.fsync(folder)
    os.close(folder)
    return hashlib.sha256(data).hexdigest()


def contents(place):
    """File name → digest of every file."""
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in pathlib.Path(place).iterdir() if f.is_file()}


# ---- the daemon ----

UNIT = "stratisd.service"


def unit(property_name):
    return run("systemctl", "show", "-P", property_name, UNIT).strip()


def start_daemon(all_pools=True):
    """Returns when the daemon has acquired its bus name, at which point it reports readiness; with
    `all_pools`, when no pool is being set up any more."""
    run("systemctl", "start", UNIT)
    if all_pools:
        stratis_bus.Stratis().close()


def stop_daemon():
    run("systemctl", "stop", UNIT)


def send_daemon(signal_number):
    """Sends the daemon a signal that ends it, and waits for its exit. Not by systemctl, which may
    signal each thread; the second signal would mean haste."""
    process = os.pidfd_open(int(unit("MainPID")))
    signal.pidfd_send_signal(process, signal_number)
    wait_for_end(process)
    os.close(process)


def wait_for_end(process):
    """Waits for the exit of a process that got a signal."""
    ended, _, _ = select.select([process], [], [], 60)
    assert ended, "the process did not exit in time"


def kill_daemon():
    """Sends SIGKILL, as the OOM killer does, and keeps systemd from restarting the daemon."""
    drop_in = pathlib.Path(f"/run/systemd/system/{UNIT}.d/no-restart.conf")
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text("[Service]\nRestart=no\n")
    run("systemctl", "daemon-reload")
    send_daemon(signal.SIGKILL)
    stop_daemon()
    run("systemctl", "reset-failed", UNIT, check=False)
    drop_in.unlink()
    run("systemctl", "daemon-reload")


def daemon_log(lines=60):
    """The daemon's last lines, among them what it has just written."""
    run("journalctl", "--sync")
    return run("journalctl", "--no-pager", "-o", "cat", "-n", lines, "-u", UNIT, check=False)


class Log:
    """The daemon's log from now on, to wait for its lines."""

    def __init__(self):
        run("journalctl", "--sync")
        cursor = run("journalctl", "-n1", "-o", "cat", "--show-cursor").rsplit("-- cursor: ", 1)[1].strip()
        self._reader = subprocess.Popen(["journalctl", "-f", "-o", "cat", f"--after-cursor={cursor}", "-u", UNIT],
                                        stdout=subprocess.PIPE)  # fmt: skip

    def wait_for(self, *words, limit=300):
        """The next line with all these words."""
        rest, lines = b"", []
        pipe = self._reader.stdout.fileno()
        while select.select([pipe], [], [], limit)[0]:
            rest += os.read(pipe, 1)
            if rest.endswith(b"\n"):
                line, rest = rest.decode().strip(), b""
                lines.append(line)
                if all(word in line for word in words):
                    return line
        raise AssertionError(f"the daemon did not log {words}, but {lines}")

    def close(self):
        self._reader.kill()
        self._reader.wait()
