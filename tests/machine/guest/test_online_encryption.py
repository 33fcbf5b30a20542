"""All data of a pool in use is encrypted, given a new key, and decrypted, by the daemon on a real kernel; it is stopped and
killed in the middle, and so is the pool.

What goes on and what is left to do is in the headers, so that whoever comes next finishes it.
"""

import os
import threading

import luks_dump
import pytest
import system
from stratis_bus import ANY_SLOT, Stratis, done
from tang import Tang

GIB = 1 << 30
DONE = "the work on its data is done"
# On the disk in the clear as long as the pool is not encrypted.
PLAIN = "this can be read by everybody who has the disk"
PIECE, PIECES = 4 << 20, 128


@pytest.fixture
def tang(tmp_path):
    server = Tang(tmp_path / "tang", 7500).start()
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
        self.disk, self.tang, self.data = disk, tang, {}
        self.clevis = [("tang", {"url": tang.url, "stratis:tang:trust_url": True})]
        self.stratis = Stratis()

    def make(self, encrypted):
        path, _ = done(self.stratis.create_pool("p", [self.disk], clevis=self.clevis if encrypted else ()))
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

    def check(self):
        """All that was ever written is there."""
        system.unmount_all()
        system.run("sysctl", "-q", "vm.drop_caches=3")
        system.mount("/dev/stratis/p/f", "/mnt/f")
        assert system.contents("/mnt/f") == self.data

    def stop_and_start(self, encrypted):
        uuid = self.found().uuid
        system.unmount_all()
        done(self.stratis.stop_pool(uuid))
        assert system.mapped_devices() == []
        done(self.stratis.start_pool(uuid, slot=ANY_SLOT if encrypted else None))
        system.mount("/dev/stratis/p/f", "/mnt/f")
        assert system.contents("/mnt/f") == self.data

    def again(self):
        """The daemon has been started anew."""
        self.stratis.close()
        self.stratis = Stratis()

    def found(self):
        return self.stratis.pool("p")

    def get(self, name):
        return self.stratis.get(self.found().path, "pool", name)

    def header(self):
        return luks_dump.header(luks_dump.node_of(self.found().uuid))

    def reads_in_the_clear(self):
        """Whether somebody who has the disk can read what is on the filesystem, which lies near the beginning."""
        system.run("blockdev", "--flushbufs", self.disk)
        with open(self.disk, "rb", buffering=0) as node:
            return any(PLAIN.encode() in node.read(PIECE) for _ in range(PIECES))

    def under_way(self):
        """What the daemon reports of the work."""
        (pool,) = self.stratis.report()["pools"]
        return pool.get("work")


@pytest.fixture
def pool(disks, tang):
    made = Pool(disks[0], tang)
    yield made
    made.writer.end()
    made.stratis.close()


def asked(pool, method, *arguments, **named):
    """Calls it in a thread of its own; gives the thread and the list that gets the reply or what went wrong."""
    replies, connection, path = [], Stratis(), pool.found().path

    def call():
        try:
            replies.append(getattr(connection, method)(path, *arguments, **named))
        except Exception as failure:  # the daemon has gone
            replies.append(failure)

    thread = threading.Thread(target=call)
    thread.start()
    return thread, replies


def test_encrypted_while_in_use(pool, log):
    pool.make(encrypted=False)
    assert pool.reads_in_the_clear()
    call, replies = asked(pool, "encrypt_pool", clevis=pool.clevis)
    log.wait_for("50 %")
    work = pool.under_way()
    assert work["kind"] == "encrypt" and 0 < work["bytes_done"], work
    assert set(pool.found().filesystems) == {"f"}, "the pool is readable meanwhile"
    call.join()
    assert replies == [(True, 0, "Ok")]
    pool.end_writing()
    assert pool.get("Encrypted") is True and pool.under_way() is None
    header = pool.header()
    (token,) = header["tokens"].values()
    assert token["type"] == "clevis" and len(token["keyslots"]) == 1 and list(header["keyslots"]) == token["keyslots"]
    assert [segment["type"] for segment in header["segments"].values()] == ["crypt"]
    assert header["segments"]["0"]["offset"] == str(34816 * 512)
    pool.check()
    pool.stop_and_start(encrypted=True)
    system.unmount_all()
    assert not pool.reads_in_the_clear()


@pytest.mark.parametrize("end", [system.stop_daemon, system.kill_daemon], ids=["stopped", "killed"])
def test_encryption_outlives_the_daemon(pool, log, end):
    pool.make(encrypted=False)
    call, _ = asked(pool, "encrypt_pool", clevis=pool.clevis)
    log.wait_for("40 %")
    end()
    call.join()
    # Nobody works on it: it is as usable as ever.
    pool.end_writing()
    pool.begin_to_write()
    system.start_daemon()
    pool.again()
    log.wait_for(DONE)
    pool.end_writing()
    assert pool.get("Encrypted") is True
    pool.check()
    pool.stop_and_start(encrypted=True)
    system.unmount_all()
    assert not pool.reads_in_the_clear()


def test_encryption_goes_on_when_the_pool_is_started_again(pool, log):
    pool.make(encrypted=False)
    uuid = pool.found().uuid
    call, replies = asked(pool, "encrypt_pool", clevis=pool.clevis)
    log.wait_for("40 %")
    pool.end_writing()
    system.unmount_all()
    done(pool.stratis.stop_pool(uuid))
    call.join()
    assert replies[0].code == 1 and "stopped" in replies[0].text, replies
    assert system.mapped_devices() == []
    pool.tang.stop()
    refused = pool.stratis.start_pool(uuid, slot=ANY_SLOT)
    assert refused.code == 1 and pool.tang.url in refused.text, refused
    pool.tang.start()
    done(pool.stratis.start_pool(uuid, slot=ANY_SLOT))
    system.mount("/dev/stratis/p/f", "/mnt/f")
    pool.begin_to_write()
    log.wait_for(DONE)
    pool.end_writing()
    pool.check()
    pool.stop_and_start(encrypted=True)


def test_a_new_volume_key_while_in_use(pool, log):
    pool.make(encrypted=True)
    node = luks_dump.node_of(pool.found().uuid)
    (token,) = pool.header()["tokens"]
    passphrase = luks_dump.clevis_passphrase(node, token)
    before = luks_dump.volume_key(node, passphrase)
    assert pool.get("LastReencryptedTimestamp") == (False, "")
    call, _ = asked(pool, "reencrypt_pool")
    log.wait_for("40 %")
    system.kill_daemon()
    call.join()
    system.start_daemon()
    pool.again()
    log.wait_for(DONE)
    pool.end_writing()
    header = pool.header()
    (token,) = header["tokens"].values()
    assert list(header["keyslots"]) == token["keyslots"], "nothing is left of the former key"
    assert luks_dump.volume_key(node, passphrase) != before
    assert pool.get("LastReencryptedTimestamp")[0] is True
    pool.check()
    pool.stop_and_start(encrypted=True)


def test_decrypted_while_in_use(pool, log):
    pool.make(encrypted=True)
    call, _ = asked(pool, "decrypt_pool")
    log.wait_for("40 %")
    system.kill_daemon()
    call.join()
    system.start_daemon()
    pool.again()
    log.wait_for(DONE)
    pool.end_writing()
    assert pool.get("Encrypted") is False
    assert not luks_dump.is_left_on(pool.disk)
    pool.check()
    pool.stop_and_start(encrypted=False)
    system.unmount_all()
    assert pool.reads_in_the_clear()
