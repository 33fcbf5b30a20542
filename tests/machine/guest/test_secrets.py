"""No passphrase and no volume key is to be found anywhere: in logs, files, arguments, reports, core dumps, on disks, in the
daemon's memory.

Each search is shown to find what it looks for where that may be.
"""

import base64
import os
import pathlib
import signal
import subprocess
import threading

import luks_dump
import pytest
import stratis_client as client
import system
from stratis_bus import ANY_SLOT, done
from tang import Tang

FIRST, SECOND, WRONG = "xylophone-first-secret", "xylophone-second-secret", "xylophone-wrong-secret"
PLACES = ["/run", "/tmp", "/var/tmp", "/var/log", "/var/lib", "/etc", "/dev/shm"]
CORE_PATTERN = pathlib.Path("/proc/sys/kernel/core_pattern")
CORES = pathlib.Path("/root/cores")


@pytest.fixture
def tang():
    server = Tang("/root/tang-of-secrets", 7500).start()
    yield server
    server.stop()


class Arguments(threading.Thread):
    """Looks at the arguments and variables of all processes again and again."""

    def __init__(self):
        super().__init__(daemon=True)
        self.seen, self._end = set(), threading.Event()
        self.start()

    def run(self):
        while not self._end.is_set():
            for entry in os.scandir("/proc"):
                if entry.name.isdigit():
                    for name in ("cmdline", "environ"):
                        try:
                            self.seen.add(pathlib.Path(entry.path, name).read_bytes())
                        except OSError:  # it has ended
                            pass

    def end(self):
        self._end.set()
        self.join()
        return self.seen


def forms(secret):
    """How a secret may be written."""
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
    """Where a process has one of them in its memory."""
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


def test_no_secret_is_left_anywhere(stratis, disks, tang):
    client.unset_keys()
    arguments = Arguments()
    client.set_key("k1", FIRST)
    client.ok("pool", "create", "p", *disks[:2], "--key-desc=k1", "--clevis=tang", f"--tang-url={tang.url}",
              "--trust-url")  # fmt: skip
    pool = stratis.pool("p")
    node = luks_dump.node_of(pool.uuid)
    client.set_key("k2", SECOND)
    client.ok("pool", "rebind", "keyring", "p", "k2")
    client.ok("pool", "rebind", "clevis", "p")
    client.ok("pool", "stop", "--name", "p")
    client.refused("pool", "start", "--name", "p", f"--keyfile-path={client.key_file('wrong', WRONG)}")
    client.ok("pool", "start", "--name", "p", f"--keyfile-path={client.key_file('right', SECOND)}")
    client.ok("pool", "stop", "--name", "p")
    done(stratis.start_pool(pool.uuid, slot=ANY_SLOT))
    report = str(stratis.report()) + str(stratis.objects()) + str(stratis.stopped_pools())
    seen = arguments.end()

    by_clevis = luks_dump.clevis_passphrase(node, 1)
    volume_key = luks_dump.volume_key(node, SECOND.encode())
    halves = [volume_key[:32], volume_key[32:]]
    secrets = [FIRST.encode(), SECOND.encode(), WRONG.encode(), by_clevis, *halves]

    for program in (b"/clevis", b"/proc/self/exe"):
        assert any(program in words for words in seen), f"{program} was looked at"
    assert not [words for words in seen if holds(words, secrets)]
    assert not holds(report.encode(), secrets)
    system.run("journalctl", "--sync")
    journal = system.run("journalctl", "--no-pager", "-o", "export", "--all").encode(errors="replace")
    assert b"stratisd" in journal and not holds(journal, secrets)
    assert files_with([b"is to be found: " + pool.uuid.encode()]) == []
    pathlib.Path("/tmp/control").write_bytes(b"is to be found: " + pool.uuid.encode())
    assert files_with([b"is to be found: " + pool.uuid.encode()]) == ["/tmp/control"]
    assert files_with(secrets) == []
    for disk in disks:
        with open(disk, "rb") as contents:
            assert not holds(contents.read(luks_dump.ROOM), secrets)

    daemon = system.unit("MainPID")
    assert memory_holds(daemon, [tang.url.encode()]), "what is there is found"
    assert memory_holds(daemon, secrets) is None
    client.unset_keys()
    assert memory_holds(daemon, secrets) is None


def test_no_core_dump(stratis, disks, tang):
    """Neither by a limit alone nor in a file only: this asks for dumps into a pipe, for which there is no limit."""
    CORES.mkdir()
    before = CORE_PATTERN.read_text()
    CORE_PATTERN.write_text(f"|/bin/dd of={CORES}/%e status=none")
    try:
        subprocess.run(["sh", "-c", "kill -ABRT $$"], check=False)
        assert len(list(CORES.iterdir())) == 1, "dumps are made"
        system.send_daemon(signal.SIGABRT)
        assert len(list(CORES.iterdir())) == 1, "but none of the daemon"
    finally:
        CORE_PATTERN.write_text(before)
