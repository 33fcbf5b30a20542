"""Many pools, and many filesystems in a pool: all exist after a start from nothing.

Lines that start with FIGURE are for docs/performance.md; no time is asserted.
"""

import os
import time

import system
from stratis_bus import Stratis, done

GIB = 1 << 30
POOLS = 16
FILESYSTEMS = int(os.environ.get("FILESYSTEMS", "24"))


def seconds_of(work):
    begin = time.monotonic()
    work()
    return time.monotonic() - begin


def start_from_nothing():
    """Seconds until the daemon has set up all pools from nothing, as after a boot."""
    system.stop_daemon()
    system.remove_mapped("stratis-")
    return seconds_of(system.start_daemon)


def test_sixteen_pools_start_side_by_side(stratis, disks):
    slices = system.cut(disks[0], POOLS, 2 * GIB)
    try:
        for number, device in enumerate(slices):
            pool, _ = done(stratis.create_pool(f"p{number}", [device]))
            done(stratis.create_filesystem(pool, "f", GIB))
            if number == 0:
                alone = start_from_nothing()
                stratis = Stratis()
        together = start_from_nothing()
        stratis = Stratis()
        pools = stratis.pools()
        assert sorted(pools) == sorted(f"p{number}" for number in range(POOLS))
        for name in pools:
            system.mount(f"/dev/stratis/{name}/f", f"/mnt/{name}")
        print(f"FIGURE start until all are set up: one pool {alone:.2f} s, {POOLS} pools {together:.2f} s")
        system.unmount_all()
        for pool in pools.values():
            done(stratis.destroy_filesystem(pool.path, pool.filesystems["f"].path))
            done(stratis.destroy_pool(pool.path))
    finally:
        system.unmount_all()
        system.stop_daemon()
        system.remove_mapped()


def test_cost_grows_linearly_with_filesystems(stratis, disks):
    """Creation, list, start from nothing and stop, at each doubling of their number."""
    pool, _ = done(stratis.create_pool("p", disks))
    uuid = stratis.pool("p").uuid
    if FILESYSTEMS > 100:
        stratis.set_fs_limit(pool, FILESYSTEMS)
    count, step = 0, max(FILESYSTEMS // 8, 1)
    while count < FILESYSTEMS:
        target = min(max(2 * count, step), FILESYSTEMS)
        creation = seconds_of(lambda: [done(stratis.create_filesystem(pool, f"f{n}", GIB)) for n in range(count, target)])
        creation, count = creation / (target - count), target
        listing = seconds_of(stratis.objects)
        start = start_from_nothing()
        stratis = Stratis()
        assert len(stratis.pool("p").filesystems) == count
        pool = stratis.pool("p").path
        stop = seconds_of(lambda: done(stratis.stop_pool(uuid)))
        restart = seconds_of(lambda: done(stratis.start_pool(uuid)))
        pool = stratis.pool("p").path
        print(f"FIGURE {count} filesystems: creation of one {1000 * creation:.0f} ms, list {1000 * listing:.0f} ms,"
              f" start from nothing {start:.2f} s, stop {stop:.2f} s, StartPool {restart:.2f} s")  # fmt: skip
    for path in sorted(os.listdir("/dev/stratis/p"))[:10]:
        system.mount(f"/dev/stratis/p/{path}", "/mnt/one")
        system.unmount("/mnt/one")
