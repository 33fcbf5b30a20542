"""Encrypted pools start in parallel, and reads stay as fast as ever meanwhile.

Lines that start with FIGURE are for docs/performance.md, which has eight pools (ENCRYPTED_POOLS=8):
creating one takes long, because the library benchmarks the key derivation. No time is asserted.
"""

import os
import statistics
import threading
import time

import stratis_client as client
import system
from stratis_bus import ANY_SLOT, Stratis, done

GIB = 1 << 30
POOLS = int(os.environ.get("ENCRYPTED_POOLS", "2"))
CALLS = 200


def get_times(path, while_alive=()):
    """Milliseconds of each Get on a pool: a fixed number, or as many as fit while the threads live."""
    connection, times = Stratis(), []
    while any(thread.is_alive() for thread in while_alive) if while_alive else len(times) < CALLS:
        begin = time.monotonic()
        assert connection.get(path, "pool", "Name") == "other"
        times.append((time.monotonic() - begin) * 1000)
    connection.close()
    return times


def described(times):
    times = sorted(times)
    return f"median {statistics.median(times):.1f} ms, 99 % {times[len(times) * 99 // 100]:.1f} ms, worst {times[-1]:.1f} ms"


def test_encrypted_pools_start_side_by_side(stratis, disks):
    client.set_key("k1", "a passphrase for all")
    slices = system.cut(disks[0], POOLS + 1, 2 * GIB)
    try:
        uuids = []
        for number, device in enumerate(slices[:POOLS]):
            done(stratis.create_pool(f"p{number}", [device], keys=["k1"]))
            uuids.append(stratis.pool(f"p{number}").uuid)
            done(stratis.stop_pool(uuids[-1]))
        other, _ = done(stratis.create_pool("other", [slices[POOLS]]))

        # The library benchmarks the key derivation when a pool is created, so its cost varies a
        # little.
        alone = []
        for uuid in uuids:
            begin = time.monotonic()
            done(stratis.start_pool(uuid, slot=ANY_SLOT))
            alone.append(time.monotonic() - begin)
            done(stratis.stop_pool(uuid))
        one = statistics.mean(alone)

        idle = get_times(other)
        failures = []

        def start(uuid):
            try:
                done(Stratis().start_pool(uuid, slot=ANY_SLOT))
            except Exception as failure:
                failures.append(failure)

        threads = [threading.Thread(target=start, args=[uuid]) for uuid in uuids]
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        busy = get_times(other, threads)
        for thread in threads:
            thread.join()
        eight = time.monotonic() - begin
        assert failures == []
        assert set(stratis.pools()) == {"other", *(f"p{number}" for number in range(POOLS))}
        cores = os.cpu_count()
        print(f"FIGURE start of encrypted pools, {cores} cores: one {one:.2f} s, {POOLS} side by side {eight:.2f} s,"
              f" {eight / (one * POOLS / cores):.2f} of (one x {POOLS} / cores)")  # fmt: skip
        print(f"FIGURE Get on another pool: idle {described(idle)}; while they start {described(busy)}")
        for pool in stratis.pools().values():
            done(stratis.destroy_pool(pool.path))
    finally:
        system.stop_daemon()
        system.remove_mapped()
        system.start_daemon()
        client.unset_keys()

