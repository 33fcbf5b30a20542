"""No passphrase and no volume key is left in logs, files, arguments, reports, core dumps, on disks
or in the daemon's memory. The search includes the secrets of earlier tests.

Each search is shown to find what it searches for where that may be.
"""

import base64
import os
import pathlib
import signal
import subprocess
import threading

import luks_dump
import stratis_client as client
import system
from encrypted_pool import FIRST, SECOND, THIRD, WRONG
from stratis_bus import ANY_SLOT, done

PLACES = ["/run", "/tmp", "/var/tmp", "/var/log", "/var/lib", "/etc", "/dev/shm"]
CORE_PATTERN = pathlib.Path("/proc/sys/kernel/core_pattern")
# Pause between two scans of all processes; without it, little else would run. The processes of
# Clevis live longer.
PAUSE_SECONDS = 0.01
# Name of the child process that works with keys.
CHILD = "stratisd-luks"
CORES = pathlib.Path("/root/cores")


class Arguments(threading.Thread):
    """Scans the arguments and environments of all processes repeatedly."""

    def __init__(self):
        super().__init__(daemon=True)
        self.seen, self._end = set(), threading.Event()
        self.start()

    def run(self):
        while not self._end.wait(PAUSE_SECONDS):
            for entry in os.scandir("/proc"):
                if entry.name.isdigit():
                    for name in ("cmdline", "environ"):
                        try:
                            self.seen.add(pathlib.Path(entry.path, name).read_bytes())
                        except OSError:  # it has exited
                            pass

    def end(self):
        self._end.set()
        self.join()
        return self.seen


def forms(secret):
    """The encodings in which a secret may appear."""
    yield secret
    yield secret.hex().encode()
    yield base64.b64encode(secret).rstrip(b"=")
    yield base64.urlsafe_b64encode(secret).rstrip(b"=")


def holds(data, secrets):
    return any(form in data for secret in secrets for form in forms(secret))


def files_with(secrets):
    found = []
    for place in PLACES:
        for folder, _, names in os.walk(place):
            for path in (pathlib.Path(folder, name) for name in names):
                if path.is_file() and not path.is_symlink() and holds(path.read_bytes(), secrets):
                    found.append(str(path))
    return found


def memory_holds(pid, secrets):
    """The places in a process's memory that hold one of them."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            place, rights, *_, name = line.split(maxsplit=5)
            if not rights.startswith("r") or name.startswith("[v"):  # the kernel's own pages
                continue
            begin, end = (int(number, 16) for number in place.split("-"))
            memory.seek(begin)
            if holds(memory.read(end - begin), secrets):
                return line
    return None


def test_no_secret_is_left_anywhere(encrypted):
    pool = encrypted
    server = pool.tangs[0]
    arguments = Arguments()
    client.ok("pool", "rebind", "clevis", "p")
    client.ok("pool", "bind", "nbde", "p", pool.tangs[1].url, "--trust-url")
    client.ok("pool", "unbind", "clevis", "p", "--token-slot=2")
    pool.stop()
    pool.start_refused(f"--keyfile-path={client.key_file('wrong', WRONG)}")
    pool.start(f"--keyfile-path={client.key_file('right', FIRST)}")
    pool.stop()
    done(pool.stratis.start_pool(pool.uuid, slot=ANY_SLOT))
    pool.mount()
    stratis = pool.stratis
    report = str(stratis.report()) + str(stratis.objects()) + str(stratis.stopped_pools())
    seen = arguments.end()

    by_clevis = luks_dump.clevis_passphrase(pool.node, 1)
    volume_key = luks_dump.volume_key(pool.node, FIRST.encode())
    halves = [volume_key[:32], volume_key[32:]]
    secrets = [*(words.encode() for words in (FIRST, SECOND, THIRD, WRONG)), by_clevis, *halves]

    for program in (b"/clevis", b"/proc/self/exe"):
        assert any(program in words for words in seen), f"{program} was not seen"
    assert not [words for words in seen if holds(words, secrets)]
    assert not holds(report.encode(), secrets)
    system.run("journalctl", "--sync")
    journal = system.run("journalctl", "--no-pager", "-o", "export", "--all").encode(errors="replace")
    assert b"stratisd" in journal and not holds(journal, secrets)
    assert files_with([b"is to be found: " + pool.uuid.encode()]) == []
    pathlib.Path("/tmp/control").write_bytes(b"is to be found: " + pool.uuid.encode())
    assert files_with([b"is to be found: " + pool.uuid.encode()]) == ["/tmp/control"]
    assert files_with(secrets) == []
    for disk in pool.disks:
        with open(disk, "rb") as contents:
            assert not holds(contents.read(luks_dump.ROOM), secrets)

    daemon = system.unit("MainPID")
    assert memory_holds(daemon, [server.url.encode()]), "the search does not find what is there"
    assert memory_holds(daemon, secrets) is None
    client.unset_keys()
    assert memory_holds(daemon, secrets) is None


def test_no_core_dump(encrypted):
    """Neither a limit nor a check of files suffices: this sends core dumps to a pipe, to which no
    limit applies."""
    CORES.mkdir()
    before = CORE_PATTERN.read_text()
    CORE_PATTERN.write_text(f"|/bin/dd of={CORES}/%e status=none")
    try:
        subprocess.run(["sh", "-c", "kill -ABRT $$"], check=False)
        assert len(list(CORES.iterdir())) == 1, "a core dump is made"
        encrypted.stop()
        reply = start_with_children_killed(encrypted)
        assert reply.code == 1 and system.mapped_devices() == [], reply
        assert len(list(CORES.iterdir())) == 1, "the child with the keys left a core dump"
        done(encrypted.stratis.start_pool(encrypted.uuid, slot=ANY_SLOT))
        system.send_daemon(signal.SIGABRT)
        assert len(list(CORES.iterdir())) == 1, "the daemon left a core dump"
    finally:
        CORE_PATTERN.write_text(before)
        system.start_daemon()


def start_with_children_killed(pool):
    """The reply to StartPool by a key, if the child that derives it, which takes at least a second,
    aborts."""
    client.set_key("k1", FIRST)
    replies = []
    start = threading.Thread(target=lambda: replies.append(pool.stratis.start_pool(pool.uuid, slot=(True, 0))))
    start.start()
    while start.is_alive():
        found = subprocess.run(["pgrep", "-x", CHILD], stdout=subprocess.PIPE, check=False).stdout.split()
        for child in found:
            try:
                os.kill(int(child), signal.SIGABRT)
            except ProcessLookupError:  # it has exited
                pass
    return replies[0]


def not_locked(process):
    """Ranges of a process's memory that could be swapped out. Read-only ranges come from files."""
    found, stretch = [], None
    for line in open(f"/proc/{process}/smaps"):
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            stretch = words
        elif words[0] == "VmFlags:" and "w" in stretch[1] and "lo" not in words:
            found.append(stretch)
    return found


def test_memory_with_keys_is_locked(encrypted):
    """Keys could be written to swap by the daemon and by its LUKS children."""
    assert not_locked(system.unit("MainPID")) == []
    seen, ended = [], threading.Event()

    def look():
        while not ended.is_set():
            for entry in os.scandir("/proc"):
                try:
                    if entry.name.isdigit() and pathlib.Path(entry.path, "comm").read_text().strip() == CHILD:
                        seen.append(not_locked(entry.name))
                except (OSError, TypeError, IndexError):  # it has just started, or exited
                    pass

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    encrypted.stop()
    encrypted.start("--unlock-method=any")
    ended.set()
    watcher.join()
    unlocked = {" ".join(stretch) for stretches in seen for stretch in stretches}
    assert seen and not unlocked, unlocked
