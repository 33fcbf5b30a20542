"""Every write of a stream of operations is recorded, then the pool is started from disks as power cuts would have left
them: all that a flush covers is there, of what came after it a drawn part, whole, torn or not at all.

  crash_states.py SEED OPERATIONS CUTS

Uses the machine's three disks as: the disk (cut into three by dm-linear, so that one record has the order of all
writes), the record, and room for what the check of one state writes (by dm-snapshot, so that the next state begins from
the untouched disk).
"""

import json
import os
import random
import sys

import model
import stratis_bus
import stream
import system
import write_log

DISK, RECORD, ROOM = system.DISKS[:3]
PARTS = ["part0", "part1", "part2"]
SECTORS_PER_MIB = 2048


def make_parts(below):
    """Three devices on the device `below`. The first begins late, so that `below` itself has no signature."""
    sectors = int(system.run("blockdev", "--getsz", below))
    each = (sectors - SECTORS_PER_MIB) // len(PARTS)
    for number, part in enumerate(PARTS):
        start = SECTORS_PER_MIB + number * each
        system.run("dmsetup", "create", part, "--table", f"0 {each} linear {below} {start}")
    system.settle()
    # The daemon names devices by their canonical nodes.
    system.DISKS[:] = [os.path.realpath(f"/dev/mapper/{part}") for part in PARTS]


def take_down(*names):
    """Removes the pool's devices, from the top of the stack to its bottom, then those named."""
    system.unmount_all()
    system.stop_daemon()
    while True:
        ours = [name for name in system.mapped_devices() if name.startswith("stratis-")]
        if not ours:
            break
        for name in ours:
            system.run("dmsetup", "remove", "--retry", name, check=False)
        left = [name for name in system.mapped_devices() if name.startswith("stratis-")]
        assert len(left) < len(ours), f"cannot be removed: {left}"
    for name in names:
        system.run("dmsetup", "remove", "--retry", name)


def record(seed, operations):
    """Carries out the stream and gives the entries of its record."""
    sectors = system.run("blockdev", "--getsz", DISK).strip()
    system.run("dmsetup", "create", "recorded", "--table", f"0 {sectors} log-writes {DISK} {RECORD}")
    make_parts("/dev/mapper/recorded")
    system.start_daemon()
    stratis = stratis_bus.Stratis()

    def mark(**entry):
        text = json.dumps(entry, separators=(",", ":"))
        assert len(text) < 400, "a mark's text shares one sector with its head"
        system.run("dmsetup", "message", "recorded", "0", "mark", text)

    mark(begin=["create-pool"])
    stratis_bus.done(stratis.create_pool("pool", system.DISKS))
    mark(done=["create-pool"])
    generator, state = random.Random(seed), model.start("pool")
    for counter in range(operations):
        operation = model.choose(state, generator, counter)
        mark(begin=operation)
        operation = stream.carry_out(stratis, state, operation)
        state = model.after(state, operation)
        mark(done=operation)
    stratis.close()
    take_down(*PARTS, "recorded")
    return write_log.read(RECORD)


def states_at(entries):
    """For each place of the record: (states that are right there, the operation under way)."""
    found, state, under_way = [], None, None
    for entry in entries:
        if entry.mark:
            told = json.loads(entry.mark)
            if "begin" in told:
                under_way = told["begin"]
            else:
                operation, under_way = told["done"], None
                state = model.start("pool") if operation == ["create-pool"] else model.after(state, operation)
        found.append((state, under_way))
    return found


def right_states(state, under_way):
    if under_way is None or under_way[0] == "write":
        return [state]
    return [state, model.start("pool") if under_way == ["create-pool"] else model.after(state, under_way)]


def check(states, under_way):
    """The daemon starts on the parts and finds one of the states."""
    system.start_daemon()
    stratis = stratis_bus.Stratis()
    try:
        if None in states:  # while the pool is being made there may be none
            if not stratis.pools():
                return
            states = [state for state in states if state]
        half_written = under_way[1:3] if under_way and under_way[0] == "write" else None
        stream.compare(stratis, states, half_written)
    finally:
        stratis.close()


def main(seed, operations, cuts):
    entries = record(seed, operations)
    states = states_at(entries)
    flushes = sum(write_log.is_flush(entry) for entry in entries)
    writes = sum(entry.length > 0 for entry in entries)
    print(f"recorded {operations} operations: {writes} writes, {flushes} flushes", flush=True)
    generator = random.Random(seed)
    first = next(number for number, entry in enumerate(entries) if entry.mark)
    places = sorted(generator.sample(range(first, len(entries)), min(cuts, len(entries) - first)))

    # The disk is made empty again, and then follows the record up to the last flush before each cut.
    system.run("blkdiscard", "--zeroout", DISK)
    room_sectors = system.run("blockdev", "--getsz", DISK).strip()
    done_to = 0
    failed = 0
    for place in places:
        flushed = max((n + 1 for n in range(place) if write_log.is_flush(entries[n])), default=0)
        with open(RECORD, "rb") as log, open(DISK, "r+b") as disk:
            for entry in entries[done_to:flushed]:
                if entry.length:
                    write_log.copy(entry, log, disk)
            disk.flush()
            os.fsync(disk.fileno())
        done_to = max(done_to, flushed)
        system.run("dd", "if=/dev/zero", f"of={ROOM}", "bs=4k", "count=1", "conv=fsync", "status=none")
        system.run("dmsetup", "create", "cut", "--table", f"0 {room_sectors} snapshot {DISK} {ROOM} N 8")
        kept = torn = lost = 0
        with open(RECORD, "rb") as log, open("/dev/mapper/cut", "r+b") as disk:
            for entry in entries[flushed : place + 1]:
                if entry.length:
                    length = write_log.fate(entry, generator)
                    kept += length == entry.length
                    lost += length == 0
                    torn += 0 < length < entry.length
                    if length:
                        write_log.copy(entry, log, disk, length)
            disk.flush()
            os.fsync(disk.fileno())
        make_parts("/dev/mapper/cut")
        state, under_way = states[place]
        about = f"cut at {place} of {len(entries)} during {under_way}: {kept} unflushed writes kept, {torn} torn, {lost} lost"
        try:
            check(right_states(state, under_way), under_way)
            print(f"PASSED {about}", flush=True)
        except Exception as error:  # a state that cannot be handled is what is looked for
            failed += 1
            print(f"FAILED {about}: {error}\n{system.daemon_log(30)}", flush=True)
        take_down(*PARTS, "cut")
    print(f"{len(places) - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    system.stop_daemon()
    sys.exit(main(*(int(word) for word in sys.argv[1:4])))
