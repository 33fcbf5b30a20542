"""Data and thin metadata space that run out and return; snapshots of filesystems that were not
cleanly unmounted.
"""

import errno
import subprocess

import dbus
import pytest
import stratis_bus
import system
from stratis_bus import done

MIB = 1 << 20
GIB = 1 << 30
# The daemon gives thin devices numbers from 0.
FIRST_THIN_ID = 1 << 20


@pytest.fixture
def small(disks):
    """A device of about the smallest size that a pool accepts."""
    (device,) = system.cut(disks[0], 1, 1200 * MIB)
    yield device
    system.unmount_all()
    connection = stratis_bus.Stratis()
    for pool in connection.pools().values():
        paths = [fs.path for fs in pool.filesystems.values()]
        if paths:
            done(connection.destroy_filesystem(pool.path, *paths))
        done(connection.destroy_pool(pool.path))
    connection.close()
    system.run("dmsetup", "remove", "--retry", "slice0")


def status():
    return system.run("dmsetup", "status", "--noflush", system.thin_pool()).strip()


def starve():
    """Creates thin devices, each of which takes a metadata block, until the kernel has no more."""
    name = system.thin_pool()
    for number in range(FIRST_THIN_ID, FIRST_THIN_ID + 10_000):
        command = ["dmsetup", "message", name, "0", f"create_thin {number}"]
        if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
            return number - FIRST_THIN_ID
    raise AssertionError("metadata space never ran out")


def xfs_uuid(node):
    return system.run("blkid", "-p", "-s", "UUID", "-o", "value", node).strip().replace("-", "")


def test_a_disk_frees_a_metadata_starved_pool(stratis, disks, small):
    """The pool used to count as damaged: no disk could be added, and only a stop freed it."""
    pool, _ = done(stratis.create_pool("p", [small]))
    done(stratis.create_filesystem(pool, "f", GIB))
    stratis.refresh()
    made = starve()
    print(f"FIGURE out of thin metadata after {made} thin devices: {status()}")
    assert " ro " in status() and "needs_check" not in status()
    stratis.refresh()
    assert stratis.get(pool, "pool", "AvailableActions") == "no_ipc_requests"
    refused = stratis.create_filesystem(pool, "g", GIB)
    assert refused.code == 1 and "add a data device" in refused.text, refused
    done(stratis.add_data_devices(pool, [disks[1]]))
    assert stratis.get(pool, "pool", "AvailableActions") == "fully_operational"
    assert " rw " in status(), status()
    done(stratis.create_filesystem(pool, "g", GIB))
    system.mount("/dev/stratis/p/g", "/mnt/g")
    system.put("/mnt/g", "file", MIB)


def test_a_destroyed_filesystem_frees_it_too(stratis, small):
    pool, _ = done(stratis.create_pool("p", [small]))
    done(stratis.create_filesystem(pool, "f", GIB))
    done(stratis.create_filesystem(pool, "g", GIB))
    stratis.refresh()
    starve()
    stratis.refresh()
    assert stratis.get(pool, "pool", "AvailableActions") == "no_ipc_requests"
    done(stratis.destroy_filesystem(pool, stratis.pool("p").filesystems["g"].path))
    assert stratis.get(pool, "pool", "AvailableActions") == "fully_operational"
    assert " rw " in status(), status()


def test_a_snapshot_of_a_crashed_origin_is_itself(stratis, disks):
    """xfs_db refused to write the UUID and exited with status 0, so the two had the same UUID."""
    pool, _ = done(stratis.create_pool("p", disks[:1]))
    done(stratis.create_filesystem(pool, "f", GIB))
    system.mount("/dev/stratis/p/f", "/mnt/f")
    digest = system.put("/mnt/f", "file", MIB)
    system.crash("/mnt/f")
    origin = stratis.pool("p").filesystems["f"]
    done(stratis.snapshot(pool, origin.path, "s"))
    snapshot = stratis.pool("p").filesystems["s"]
    assert [xfs_uuid(f"/dev/stratis/p/{name}") for name in ("f", "s")] == [origin.uuid, snapshot.uuid]
    system.mount("/dev/stratis/p/f", "/mnt/f")
    system.mount("/dev/stratis/p/s", "/mnt/s")
    assert system.contents("/mnt/f") == system.contents("/mnt/s") == {"file": digest}


def test_reverting_to_a_crashed_snapshot_keeps_the_identity(stratis, disks):
    pool, _ = done(stratis.create_pool("p", disks[:1]))
    done(stratis.create_filesystem(pool, "f", GIB))
    origin = stratis.pool("p").filesystems["f"]
    done(stratis.snapshot(pool, origin.path, "s"))
    system.mount("/dev/stratis/p/s", "/mnt/s")
    digest = system.put("/mnt/s", "file", MIB)
    system.crash("/mnt/s")
    snapshot = stratis.pool("p").filesystems["s"]
    stratis.bus.call_blocking(stratis_bus.NAME, snapshot.path, dbus.PROPERTIES_IFACE, "Set", "ssv",
                              (stratis_bus.interface("filesystem"), "MergeScheduled",
                               dbus.Boolean(True, variant_level=1)))  # fmt: skip
    uuid = stratis.pool("p").uuid
    done(stratis.stop_pool(uuid))
    done(stratis.start_pool(uuid))
    assert list(stratis.pool("p").filesystems) == ["f"]
    assert xfs_uuid("/dev/stratis/p/f") == origin.uuid
    system.mount("/dev/stratis/p/f", "/mnt/f")
    assert system.contents("/mnt/f") == {"file": digest}


def test_a_full_pool_refuses_a_snapshot_at_once(stratis, disks, small):
    """The suspend used to wait for writes that waited for space: 63 s, with the pool locked."""
    pool, _ = done(stratis.create_pool("p", [small]))
    done(stratis.create_filesystem(pool, "f", 16 * GIB))
    stratis.refresh()
    system.mount("/dev/stratis/p/f", "/mnt/f")
    with pytest.raises(OSError) as refused:
        for number in range(1000):
            system.put("/mnt/f", f"file{number}", 8 * MIB)
    assert refused.value.errno in (errno.ENOSPC, errno.EIO), refused.value
    origin = stratis.pool("p").filesystems["f"]
    reply = stratis.snapshot(pool, origin.path, "s")
    assert reply.code == 1 and "no free space" in reply.text, reply
    done(stratis.add_data_devices(pool, [disks[1]]))
    system.unmount("/mnt/f")
    done(stratis.snapshot(pool, origin.path, "s"))
    system.mount("/dev/stratis/p/s", "/mnt/s")
