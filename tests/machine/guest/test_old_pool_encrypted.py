"""A pool of metadata version 1 with a LUKS2 header on each device: used, bound, unlocked,
re-encrypted.
"""

import subprocess
from uuid import UUID

import luks_dump
import pytest
import stratis_client as client
import system
from stratis_bus import Stratis, done
from tang import Tang

GIB = 1 << 30
FIRST, SECOND = "the first passphrase", "the second passphrase"


@pytest.fixture
def tang(tmp_path):
    server = Tang(tmp_path / "tang", 7500).start()
    yield server
    server.stop()


@pytest.fixture
def old_pool(disks, tang):
    """A pool "old" on one disk with both bindings, as an older daemon would have left it up."""
    client.set_key("k1", FIRST)
    system.stop_daemon()
    # In a new session, so that the test's session gets no keys from it.
    made = subprocess.run(["keyctl", "session", "-", "./platform_machine", "old-pool", "old", "key=k1", f"tang={tang.url}", disks[0]],
                          env={"STRATISD_MACHINE": "1", "MACHINE_DISKS": " ".join(disks),
                               "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, check=False)  # fmt: skip
    assert made.returncode == 0
    system.start_daemon()
    connection = Stratis()
    yield connection
    connection.close()
    client.unset_keys()


def headers(disks):
    return [luks_dump.header(disk) for disk in disks]


def stop():
    system.unmount_all()
    client.ok("pool", "stop", "--name", "old")
    assert system.mapped_devices() == []


def start_refused(*arguments, stdin=None):
    said = client.refused("pool", "start", "--name", "old", *arguments, stdin=stdin)
    assert system.mapped_devices() == [], "devices were left open"
    return said


def check_header(disk, pool, key, tang):
    """Checks a header against the specification."""
    header = luks_dump.header(disk)
    tokens = header["tokens"]
    assert sorted(tokens) == ["0", "1", "2"]
    (uuid,) = [uuid for uuid in pool.devices.values() if str(UUID(uuid)) == tokens["0"]["device_uuid"]]
    assert tokens["0"] == {
        "type": "stratis", "keyslots": [], "activation_name": f"stratis-1-private-{uuid}-crypt",
        "pool_uuid": str(UUID(pool.uuid)), "device_uuid": str(UUID(uuid)), "pool_name": "old",
    }  # fmt: skip
    assert tokens["1"] == {"type": "luks2-keyring", "keyslots": tokens["1"]["keyslots"],
                           "key_description": f"stratis-1-key-{key}"}  # fmt: skip
    assert luks_dump.thumbprint(tokens["2"]["jwe"]) == tang.thumbprint()
    assert header["segments"]["0"]["offset"] == str(32768 * 512)
    assert header["config"]["json_size"] == str((16 << 10) - 4096)


def test_encrypted_pool_of_version_1(old_pool, disks, tang):
    stratis = old_pool
    ours = disks[:2]
    pool = stratis.pool("old")
    assert stratis.get(pool.path, "pool", "MetadataVersion") == 1
    check_header(disks[0], pool, "k1", tang)
    assert luks_dump.opens(disks[0], FIRST.encode(), 1)
    luks_dump.clevis_passphrase(disks[0], 2)
    ((fs, _),) = done(stratis.create_filesystem(pool.path, "f", GIB))
    system.mount("/dev/stratis/old/f", "/mnt/f")
    data = {"first": system.put("/mnt/f", "first", 8 << 20)}

    def check():
        system.settle()
        system.mount("/dev/stratis/old/f", "/mnt/f")
        assert system.contents("/mnt/f") == data

    # Bound, unbound, rebound: the key on one device, since each derivation takes long, Clevis on
    # each.
    client.ok("pool", "unbind", "keyring", "old")
    assert sorted(luks_dump.header(disks[0])["tokens"]) == ["0", "2"]
    client.refused("pool", "unbind", "clevis", "old")
    client.ok("pool", "bind", "keyring", "old", "k1")
    client.set_key("k2", SECOND)
    client.ok("pool", "rebind", "keyring", "old", "k2")
    assert luks_dump.opens(disks[0], SECOND.encode(), 1) and not luks_dump.opens(disks[0], FIRST.encode(), 1)
    done(stratis.add_data_devices(pool.path, [disks[1]]))
    pool = stratis.pool("old")
    for disk in ours:
        check_header(disk, pool, "k2", tang)
    client.ok("pool", "unbind", "clevis", "old")
    assert all(sorted(header["tokens"]) == ["0", "1"] for header in headers(ours))
    client.refused("pool", "unbind", "keyring", "old")
    client.ok("pool", "bind", "nbde", "old", tang.url, f"--thumbprint={tang.thumbprint()}")
    before = [header["tokens"]["2"]["jwe"] for header in headers(ours)]
    client.ok("pool", "rebind", "clevis", "old")
    after = [header["tokens"]["2"]["jwe"] for header in headers(ours)]
    assert all(old != new for old, new in zip(before, after))

    # Unlocked by each method, wrong key first. Clevis' own program opens a device, too.
    stop()
    system.run("clevis", "luks", "unlock", "-d", disks[0], "-n", "probe")
    system.settle()
    # A program that probes new devices may have it open for a moment.
    system.run("dmsetup", "remove", "--retry", "probe")
    client.unset_keys()
    assert "k2" in start_refused("--unlock-method=keyring")
    client.set_key("k2", FIRST)
    start_refused("--unlock-method=keyring")
    client.set_key("k2", SECOND)
    client.ok("pool", "start", "--name", "old", "--unlock-method=keyring")
    check()
    stop()
    client.unset_keys()
    tang.stop()
    assert tang.url in start_refused("--unlock-method=clevis")
    start_refused("--capture-key", stdin=FIRST + "\n")
    client.ok("pool", "start", "--name", "old", "--capture-key", stdin=SECOND + "\n")
    check()
    stop()
    tang.start()
    client.ok("pool", "start", "--name", "old", "--unlock-method=clevis")
    check()

    # A new volume key under a file system in use.
    stratis.close()
    stratis = Stratis()
    pool = stratis.pool("old")
    client.set_key("k2", SECOND)
    old = [luks_dump.volume_key(disk, SECOND.encode()) for disk in ours]
    writer = system.Writer("/mnt/f")
    assert stratis.reencrypt_pool(pool.path) == (True, 0, "Ok")
    data |= writer.end()
    new = [luks_dump.volume_key(disk, SECOND.encode()) for disk in ours]
    assert not set(old) & set(new)
    assert stratis.get(pool.path, "pool", "LastReencryptedTimestamp")[0]
    stop()
    client.ok("pool", "start", "--name", "old", "--unlock-method=any")
    check()

    system.unmount_all()
    stratis.close()
    stratis = Stratis()
    pool = stratis.pool("old")
    done(stratis.destroy_filesystem(pool.path, pool.filesystems["f"].path))
    done(stratis.destroy_pool(pool.path))
    assert not any(luks_dump.is_left_on(disk) for disk in ours)
    assert system.mapped_devices() == []
    stratis.close()
