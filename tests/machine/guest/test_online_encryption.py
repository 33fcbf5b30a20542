"""All data of a pool in use is encrypted, re-encrypted and decrypted by the daemon on a real
kernel; the daemon is stopped and killed in the middle, and the pool is stopped.

The headers hold the progress and the remaining work, so any later daemon can finish it. The tests
share one pool, in this order, because each rewrites its whole disk.
"""

import os
import threading

import luks_dump
import pytest
import system
from stratis_bus import ANY_SLOT, Stratis, done
from tang import Tang

GIB = 1 << 30
DONE = "has completed its re-encryption job"
# Plaintext on the disk as long as the pool is not encrypted.
PLAIN = "this is readable for everyone who has the disk"
PIECE, PIECES = 4 << 20, 128


@pytest.fixture(scope="session")
def tang():
    server = Tang("/root/tang", 7500).start()
    yield server
    server.stop()


@pytest.fixture
def log():
    follower = system.Log()
    yield follower
    follower.close()


class Pool:
    """A pool on one disk with a filesystem that is written to all the time."""

    def __init__(self, disk, tang):
        self.disk, self.tang, self.data, self.writer = disk, tang, {}, None
        self.clevis = [("tang", {"url": tang.url, "stratis:tang:trust_url": True})]
        self.stratis = Stratis()

    def make(self):
        path, _ = done(self.stratis.create_pool("p", [self.disk]))
        done(self.stratis.create_filesystem(path, "f", GIB))
        system.mount("/dev/stratis/p/f", "/mnt/f")
        with open("/mnt/f/plain", "w") as file:
            file.write(f"{PLAIN}\n" * 1000)
            file.flush()
            os.fsync(file.fileno())
        self.data = system.contents("/mnt/f")
        self.begin_to_write()

    def begin_to_write(self):
        self.writer = system.Writer("/mnt/f")

    def end_writing(self):
        self.data |= self.writer.end()
        self.writer = None

    def check(self):
        """Checks all files ever written."""
        system.unmount_all()
        system.run("sysctl", "-q", "vm.drop_caches=3")
        system.mount("/dev/stratis/p/f", "/mnt/f")
        assert system.contents("/mnt/f") == self.data

    def stop(self):
        uuid = self.found().uuid
        system.unmount_all()
        done(self.stratis.stop_pool(uuid))
        assert system.mapped_devices() == []
        return uuid

    def start(self, uuid, encrypted):
        done(self.stratis.start_pool(uuid, slot=ANY_SLOT if encrypted else None))
        system.mount("/dev/stratis/p/f", "/mnt/f")
        assert system.contents("/mnt/f") == self.data

    def again(self):
        """Reconnects after a restart of the daemon."""
        self.stratis.close()
        self.stratis = Stratis()

    def found(self):
        return self.stratis.pool("p")

    def get(self, name):
        return self.stratis.get(self.found().path, "pool", name)

    def header(self):
        return luks_dump.header(luks_dump.node_of(self.found().uuid))

    def reads_in_the_clear(self):
        """Whether the contents of the filesystem, which lie near the start, are readable on the
        disk."""
        system.run("blockdev", "--flushbufs", self.disk)
        with open(self.disk, "rb", buffering=0) as node:
            return any(PLAIN.encode() in node.read(PIECE) for _ in range(PIECES))

    def under_way(self):
        """What the daemon reports about the job."""
        (pool,) = self.stratis.report()["pools"]
        return pool.get("work")


@pytest.fixture(scope="session")
def pool(disks_for_all, tang):
    made = Pool(disks_for_all[0], tang)
    made.make()
    yield made
    if made.writer:
        made.writer.end()
    made.stratis.close()


def asked(pool, method, *arguments, **named):
    """Calls it in a thread; returns the thread and the list that gets the reply or the error."""
    replies, connection, path = [], Stratis(), pool.found().path

    def call():
        try:
            replies.append(getattr(connection, method)(path, *arguments, **named))
        except Exception as failure:  # the daemon is gone
            replies.append(failure)

    thread = threading.Thread(target=call)
    thread.start()
    return thread, replies


def killed_at(words, pool, log):
    """Kills the daemon at this log line and waits for it to come back; the filesystem is written to
    all the time."""
    log.wait_for(words)
    system.kill_daemon()
    # No daemon works on it: the filesystem stays usable.
    pool.end_writing()
    pool.begin_to_write()
    system.start_daemon()
    pool.again()


def test_encrypted_while_in_use(pool, log):
    """The pool is stopped, then the daemon is stopped, then it is killed."""
    assert pool.reads_in_the_clear()
    call, replies = asked(pool, "encrypt_pool", clevis=pool.clevis)
    log.wait_for("20 %")
    work = pool.under_way()
    assert work["kind"] == "encrypt" and 0 < work["bytes_done"], work
    assert set(pool.found().filesystems) == {"f"}, "the pool is not readable meanwhile"
    pool.end_writing()
    uuid = pool.stop()
    call.join()
    assert replies[0].code == 1 and "stopped" in replies[0].text, replies
    pool.tang.stop()
    refused = pool.stratis.start_pool(uuid, slot=ANY_SLOT)
    assert refused.code == 1 and pool.tang.url in refused.text, refused
    assert system.mapped_devices() == []
    pool.tang.start()
    pool.start(uuid, encrypted=True)
    pool.begin_to_write()

    log.wait_for("50 %")
    system.stop_daemon()
    pool.end_writing()
    pool.begin_to_write()
    system.start_daemon()
    pool.again()
    killed_at("70 %", pool, log)
    log.wait_for(DONE)
    pool.end_writing()

    assert pool.get("Encrypted") is True and pool.under_way() is None
    header = pool.header()
    (token,) = header["tokens"].values()
    assert token["type"] == "clevis" and len(token["keyslots"]) == 1 and list(header["keyslots"]) == token["keyslots"]
    assert [segment["type"] for segment in header["segments"].values()] == ["crypt"]
    assert header["segments"]["0"]["offset"] == str(34816 * 512)
    pool.check()
    uuid = pool.stop()
    assert not pool.reads_in_the_clear()
    pool.start(uuid, encrypted=True)


def test_a_new_volume_key_while_in_use(pool, log):
    pool.begin_to_write()
    node = luks_dump.node_of(pool.found().uuid)
    (token,) = pool.header()["tokens"]
    passphrase = luks_dump.clevis_passphrase(node, token)
    before = luks_dump.volume_key(node, passphrase)
    assert pool.get("LastReencryptedTimestamp") == (False, "")
    call, _ = asked(pool, "reencrypt_pool")
    killed_at("40 %", pool, log)
    call.join()
    log.wait_for(DONE)
    pool.end_writing()
    header = pool.header()
    (token,) = header["tokens"].values()
    assert list(header["keyslots"]) == token["keyslots"], "the former key is still in the header"
    assert luks_dump.volume_key(node, passphrase) != before
    assert pool.get("LastReencryptedTimestamp")[0] is True
    pool.check()
    pool.start(pool.stop(), encrypted=True)


def test_decrypted_while_in_use(pool, log):
    pool.begin_to_write()
    call, _ = asked(pool, "decrypt_pool")
    killed_at("40 %", pool, log)
    call.join()
    log.wait_for(DONE)
    pool.end_writing()
    assert pool.get("Encrypted") is False
    assert not luks_dump.is_left_on(pool.disk)
    pool.check()
    uuid = pool.stop()
    assert pool.reads_in_the_clear()
    pool.start(uuid, encrypted=False)
