"""A pool of metadata version 1, as an older daemon would have left it up: adopted, changed, and
started from nothing.
"""

import subprocess

import pytest
import system
from stratis_bus import Stratis, done

GIB = 1 << 30


@pytest.fixture
def old_pool(disks):
    system.stop_daemon()
    made = subprocess.run(["./platform_machine", "old-pool", "old", *disks[:2]], env={"STRATISD_MACHINE": "1",
                          "MACHINE_DISKS": " ".join(disks), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, check=False)  # fmt: skip
    assert made.returncode == 0
    system.start_daemon()
    connection = Stratis()
    yield connection
    connection.close()


def version_of(stratis, pool):
    return stratis.objects()[pool]["org.storage.stratis3.pool.r9"]["MetadataVersion"]


def test_main_job_of_version_1(old_pool, disks):
    stratis = old_pool
    pool = stratis.pool("old").path
    assert version_of(stratis, pool) == 1
    ((fs, _),) = done(stratis.create_filesystem(pool, "f", GIB))
    system.mount("/dev/stratis/old/f", "/mnt/f")
    first = {"first": system.put("/mnt/f", "first", 8 << 20)}
    done(stratis.snapshot(pool, fs, "s"))
    both = {**first, "second": system.put("/mnt/f", "second")}
    done(stratis.add_data_devices(pool, [disks[2]]))
    done(stratis.rename_filesystem(fs, "g"))
    done(stratis.rename_pool(pool, "renamed"))
    system.unmount("/mnt/f")

    def check():
        for filesystem, content in (("g", both), ("s", first)):
            system.mount(f"/dev/stratis/renamed/{filesystem}", "/mnt/f")
            assert system.contents("/mnt/f") == content
            system.unmount("/mnt/f")

    # From nothing, as after a boot.
    system.stop_daemon()
    system.remove_mapped("stratis-")
    system.start_daemon()
    stratis = Stratis()
    pool = stratis.pool("renamed")
    assert version_of(stratis, pool.path) == 1
    assert sorted(pool.devices) == sorted(disks)
    check()
    # Stopped and started.
    done(stratis.stop_pool(pool.uuid))
    assert system.mapped_devices() == []
    done(stratis.start_pool(pool.uuid))
    check()
    pool = stratis.pool("renamed")
    done(stratis.destroy_filesystem(pool.path, *(fs.path for fs in pool.filesystems.values())))
    done(stratis.destroy_pool(pool.path))
    assert system.mapped_devices() == []
