"""A pool whose disks do not answer when the daemon starts: all other pools are up and watched, and
it starts when the disks answer.
"""

import system
from stratis_bus import Stratis, done

GIB = 1 << 30


def test_a_hung_pool_delays_no_other(stratis, disks):
    slices = system.cut(disks[0], 2, GIB)
    done(stratis.create_pool("slow", slices))
    path, _ = done(stratis.create_pool("quick", disks[1:]))
    done(stratis.create_filesystem(path, "f", GIB))
    uuids = {name: stratis.pool(name).uuid for name in ("slow", "quick")}
    stratis.close()
    # Remove the devices, as a reboot would: the records say that both pools should run.
    system.stop_daemon()
    system.remove_mapped("stratis-1")
    for node in slices:
        system.run("dmsetup", "suspend", "--noflush", node)
    try:
        system.start_daemon(all_pools=False)
        again = Stratis(all_pools=False)
        # A start request for a pool that is being set up waits for the pool.
        reply = again.start_pool(uuids["quick"])
        assert reply.code == 0, reply
        assert set(again.pools()) == {"quick"}
        # The daemon works: it creates filesystems, and stops and starts the pool.
        done(again.create_filesystem(again.pool("quick").path, "g", GIB))
        done(again.stop_pool(uuids["quick"]))
        done(again.start_pool(uuids["quick"]))
    finally:
        for node in slices:
            system.run("dmsetup", "resume", node)
    # A start request for it waits until it is up.
    while uuids["slow"] not in {pool.uuid for pool in again.pools().values()}:
        again.start_pool(uuids["slow"])
    assert set(again.pools()) == {"quick", "slow"}
    done(again.destroy_pool(again.pool("slow").path))
    system.remove_mapped("slice")
    again.close()
