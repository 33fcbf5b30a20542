"""A cache on real disks: created, extended, kept across a start from nothing, and removed; and a
device that becomes larger.
"""

import subprocess

import pytest
import system
from stratis_bus import Stratis, done

GIB = 1 << 30


def client(*arguments):
    result = subprocess.run(["stratis", *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{arguments}: {result.stdout}{result.stderr}"
    return result.stdout


def new_pool(disks):
    client("pool", "create", "p", disks[0])


def old_pool(disks):
    """A pool of metadata version 1."""
    system.stop_daemon()
    environment = {"STRATISD_MACHINE": "1", "MACHINE_DISKS": " ".join(disks), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
    assert subprocess.run(["./platform_machine", "old-pool", "p", disks[0]], env=environment, check=False).returncode == 0
    system.start_daemon()


def targets():
    return {line.split()[3] for line in system.run("dmsetup", "table").splitlines()}


def has_cache():
    return "cache" in targets()


@pytest.mark.parametrize("make_pool", [new_pool, old_pool])
def test_a_cache_is_created_extended_kept_and_removed(disks, make_pool):
    make_pool(disks)
    client("filesystem", "create", "p", "f", "--size=1GiB")
    system.mount("/dev/stratis/p/f", "/mnt/f")
    written = {"before": system.put("/mnt/f", "before", 16 << 20)}
    # With the filesystem mounted and in use.
    client("pool", "init-cache", "p", disks[1])
    assert has_cache()
    written["cached"] = system.put("/mnt/f", "cached", 16 << 20)
    client("pool", "add-cache", "p", disks[2])
    written["more"] = system.put("/mnt/f", "more", 16 << 20)
    assert client("blockdev", "list", "p").count("CACHE") == 2
    assert system.contents("/mnt/f") == written
    system.unmount("/mnt/f")

    system.stop_daemon()
    system.remove_mapped("stratis-")
    system.start_daemon()
    assert has_cache()
    stratis = Stratis()
    pool = stratis.pool("p")
    done(stratis.stop_pool(pool.uuid))
    done(stratis.start_pool(pool.uuid, remove_cache=True))
    assert not has_cache()
    system.mount("/dev/stratis/p/f", "/mnt/f")
    assert system.contents("/mnt/f") == written
    system.unmount("/mnt/f")
    assert sorted(stratis.pool("p").devices) == [disks[0]]
    system.settle()
    for disk in disks[1:]:
        assert system.signature(disk).get("TYPE") is None, "the removed cache left a signature"


def test_a_device_that_became_larger_is_grown(disks):
    system.run("dmsetup", "create", "growing", "--table", f"0 {2 * GIB // 512} linear {disks[0]} 0")
    system.settle()
    try:
        client("pool", "create", "p", "/dev/mapper/growing")
        client("filesystem", "create", "p", "f", "--size=1GiB")
        system.mount("/dev/stratis/p/f", "/mnt/f")
        first = system.put("/mnt/f", "first")
        system.run("dmsetup", "suspend", "growing")
        system.run("dmsetup", "load", "growing", "--table", f"0 {5 * GIB // 1024} linear {disks[0]} 0")
        system.run("dmsetup", "resume", "growing")
        client("pool", "extend-data", "p")
        assert system.contents("/mnt/f") == {"first": first}
        stratis = Stratis()
        properties = stratis.objects()[stratis.pool("p").path]["org.storage.stratis3.pool.r9"]
        assert int(properties["TotalPhysicalSize"]) > 2.4 * GIB
        system.unmount("/mnt/f")
        client("filesystem", "destroy", "p", "f")
        client("pool", "destroy", "p")
    finally:
        system.unmount_all()
        if system.mapped_devices() == ["growing"]:
            system.run("dmsetup", "remove", "--retry", "growing")
