"""A stream of operations that is cut off at some moment, and the check of the state afterwards.

  stream.py begin SEED               makes a pool, runs operations without end, reports each before (`begin`) and after (`done`)
  stream.py check JOURNAL            after the power cut: checks for the state after the last `done` or the last `begin`
  stream.py check JOURNAL continue   then runs 20 more operations and checks again

A line of the journal is what `begin` printed: `JOURNAL {"done": [...]}`.
"""

import json
import os
import random
import sys
import termios

import model
import stratis_bus
import system
from stratis_bus import done

SIZE = 512 << 20
PREFIX = "JOURNAL "


def tell(**entry):
    """Returns when the host has the line, so that the host always knows of every operation that has
    started."""
    print(PREFIX + json.dumps(entry), flush=True)
    if sys.stdout.isatty():
        termios.tcdrain(sys.stdout)


def mounted(pool, name):
    place = "/mnt/stream"
    system.mount(f"/dev/stratis/{pool}/{name}", place)
    return place


def carry_out(stratis, state, operation):
    """Runs one operation and returns it as the model should remember it."""
    pool = stratis.pool(state["pool"])
    kind, *arguments = operation
    if kind == "create":
        done(stratis.create_filesystem(pool.path, arguments[0], SIZE))
    elif kind == "snapshot":
        done(stratis.snapshot(pool.path, pool.filesystems[arguments[0]].path, arguments[1]))
    elif kind == "rename":
        done(stratis.rename_filesystem(pool.filesystems[arguments[0]].path, arguments[1]))
    elif kind == "destroy":
        done(stratis.destroy_filesystem(pool.path, pool.filesystems[arguments[0]].path))
    elif kind == "rename-pool":
        done(stratis.rename_pool(pool.path, arguments[0]))
    elif kind == "write":
        place = mounted(state["pool"], arguments[0])
        operation = [*operation, system.put(place, arguments[1])]
        system.unmount(place)
    return operation


def go_on(stratis, state, generator, counters):
    for counter in counters:
        operation = model.choose(state, generator, counter)
        tell(begin=operation)
        operation = carry_out(stratis, state, operation)
        state = model.after(state, operation)
        tell(done=operation)
    return state


def begin(seed):
    stratis = stratis_bus.Stratis()
    done(stratis.create_pool("pool", system.DISKS))
    state = model.start("pool")
    state = go_on(stratis, state, random.Random(seed), range(3))
    print("@@MACHINE cut-window@@", flush=True)
    go_on(stratis, state, random.Random(seed + 1), range(3, 1_000_000))


def expected_states(journal):
    """The states allowed after the power cut: the last one done, and that of the running operation."""
    state, under_way = model.start("pool"), None
    for line in open(journal):
        entry = json.loads(line.removeprefix(PREFIX))
        if "done" in entry:
            state, under_way = model.after(state, entry["done"]), None
        else:
            under_way = entry["begin"]
    states = [state]
    if under_way and under_way[0] != "write":
        states.append(model.after(state, under_way))
    return states, under_way


def compare(stratis, states, half_written=None):
    """The state of the pool; raises unless it is one of `states`, with all durable data. The file
    `half_written` (filesystem, file), if any, may exist or not; it is removed."""
    pools = stratis.pools()
    assert len(pools) == 1, f"pools found: {sorted(pools)}"
    ((pool_name, pool),) = pools.items()
    assert sorted(pool.devices) == sorted(system.DISKS)
    found = (pool_name, sorted(pool.filesystems))
    fitting = [s for s in states if (s["pool"], sorted(s["filesystems"])) == found]
    assert fitting, f"found {found}, expected one of {[(s['pool'], sorted(s['filesystems'])) for s in states]}"
    state = fitting[0]
    for name, expected in state["filesystems"].items():
        place = mounted(pool_name, name)
        if half_written and half_written[0] == name and os.path.exists(f"{place}/{half_written[1]}"):
            os.unlink(f"{place}/{half_written[1]}")
        files = system.contents(place)
        system.unmount(place)
        assert files == expected["files"], f"contents of {name}"
    return state


def check(journal, afterwards):
    states, under_way = expected_states(journal)
    half_written = under_way[1:3] if under_way and under_way[0] == "write" else None
    stratis = stratis_bus.Stratis()
    state = compare(stratis, states, half_written)
    print(f"found {state['pool']} with {len(state['filesystems'])} filesystems; cut during {under_way}")
    if afterwards:
        state = go_on(stratis, state, random.Random(0), range(2_000_000, 2_000_020))
        compare(stratis, [state])


if __name__ == "__main__":
    if sys.argv[1] == "begin":
        begin(int(sys.argv[2]))
    else:
        check(sys.argv[2], "continue" in sys.argv[3:])
