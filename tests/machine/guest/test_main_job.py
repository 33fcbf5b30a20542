"""The main job on real disks: create, mount, write, snapshot, rename, add a disk, destroy."""

import os

import system
from stratis_bus import done

GIB = 1 << 30


def test_main_job_on_real_disks(stratis, disks):
    pool_path, device_paths = done(stratis.create_pool("p1", disks[:2]))
    assert len(device_paths) == 2
    pool = stratis.pool("p1")
    assert pool.path == pool_path
    assert sorted(pool.devices) == sorted(disks[:2])

    ((fs_path, name),) = done(stratis.create_filesystem(pool_path, "f1", 2 * GIB))
    assert name == "f1"
    system.mount("/dev/stratis/p1/f1", "/mnt/f1")
    first = system.put("/mnt/f1", "first", 8 << 20)

    done(stratis.snapshot(pool_path, fs_path, "s1"))
    second = system.put("/mnt/f1", "second")
    system.mount("/dev/stratis/p1/s1", "/mnt/s1")
    assert system.contents("/mnt/s1") == {"first": first}, "the snapshot does not have exactly the earlier files"
    assert stratis.pool("p1").filesystems["s1"].origin == stratis.pool("p1").filesystems["f1"].uuid

    done(stratis.rename_filesystem(fs_path, "f2"))
    done(stratis.rename_pool(pool_path, "p2"))
    done(stratis.add_data_devices(pool_path, [disks[2]]))
    assert sorted(stratis.pool("p2").devices) == sorted(disks)

    system.unmount_all()
    system.mount("/dev/stratis/p2/f2", "/mnt/f2")
    assert system.contents("/mnt/f2") == {"first": first, "second": second}
    system.unmount_all()

    for fs in stratis.pool("p2").filesystems.values():
        done(stratis.destroy_filesystem(pool_path, fs.path))
    done(stratis.destroy_pool(pool_path))
    assert stratis.pools() == {}
    assert system.mapped_devices() == []
    system.settle()
    assert not os.path.exists("/dev/stratis/p2")
    for disk in disks:
        assert system.signature(disk).get("TYPE") is None, "the destroyed pool left a signature"


def test_data_written_while_the_pool_changes(stratis, disks):
    """Other changes of the pool do not affect the data of a filesystem."""
    pool_path, _ = done(stratis.create_pool("p", disks[:1]))
    ((fs_path, _),) = done(stratis.create_filesystem(pool_path, "f"))
    system.mount("/dev/stratis/p/f", "/mnt/f")
    written = {}
    changes = [
        lambda: done(stratis.add_data_devices(pool_path, disks[1:])),
        lambda: done(stratis.snapshot(pool_path, fs_path, "s")),
        lambda: done(stratis.create_filesystem(pool_path, "g", GIB)),
        lambda: done(stratis.rename_pool(pool_path, "q")),
        lambda: done(stratis.rename_filesystem(fs_path, "h")),
        lambda: done(stratis.destroy_filesystem(pool_path, stratis.pool("q").filesystems["s"].path)),
    ]
    for number, change in enumerate(changes):
        written[f"file{number}"] = system.put("/mnt/f", f"file{number}", 32 << 20)
        change()
    system.unmount("/mnt/f")
    system.mount("/dev/stratis/q/h", "/mnt/h")
    assert system.contents("/mnt/h") == written


def test_more_data_than_the_first_disk_holds(stratis, disks):
    """The pool grows by itself under writes, onto disks that were added later."""
    pool_path, _ = done(stratis.create_pool("p", disks[:1]))
    done(stratis.create_filesystem(pool_path, "f"))
    done(stratis.add_data_devices(pool_path, disks[1:]))
    system.mount("/dev/stratis/p/f", "/mnt/f")
    file_size = 64 << 20
    count = int(system.run("blockdev", "--getsize64", disks[0])) // file_size
    written = {f"file{number}": system.put("/mnt/f", f"file{number}", file_size) for number in range(count)}
    system.unmount("/mnt/f")
    system.mount("/dev/stratis/p/f", "/mnt/f")
    assert system.contents("/mnt/f") == written
