"""Records every write of a stream of operations, then starts the pool from disks as power cuts
would have left them: flushed writes are complete; later ones are complete, torn or lost at random.

  crash_states.py SEED OPERATIONS CUTS

Uses the machine's three disks as: the disk (divided into three by dm-linear, so that one record has
the order of all writes), the record, and space for the writes of each check (by dm-snapshot, so
that the next check starts from the unchanged disk).
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
    """Three devices on the device `below`. The first starts late, so that `below` itself has no
    signature."""
    sectors = int(system.run("blockdev", "--getsz", below))
    each = (sectors - SECTORS_PER_MIB) // len(PARTS)
    for number, part in enumerate(PARTS):
        start = SECTORS_PER_MIB + number * each
        system.run("dmsetup", "create", part, "--table", f"0 {each} linear {below} {start}")
    system.settle()
    # The daemon names devices by their canonical nodes.
    system.DISKS[:] = [os.path.realpath(f"/dev/mapper/{part}") for part in PARTS]


def take_down(*names):
    """Removes the pool's devices, from the top of the stack to the bottom, then the named ones."""
    system.unmount_all()
    system.stop_daemon()
    system.remove_mapped("stratis-")
    for name in names:
        system.run("dmsetup", "remove", "--retry", name)


def record(seed, operations):
    """Runs the stream and returns the entries of its record."""
    sectors = system.run("blockdev", "--getsz", DISK).strip()
    system.run("dmsetup", "create", "recorded", "--table", f"0 {sectors} log-writes {DISK} {RECORD}")
    make_parts("/dev/mapper/recorded")
    system.start_daemon()
    stratis = stratis_bus.Stratis()

    def mark(**entry):
        text = json.dumps(entry, separators=(",", ":"))
        assert len(text) < 400, "the text of a mark does not fit its sector"
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
    """For each place of the record: (states allowed there, the running operation)."""
    found, state, under_way = [], None, None
    for entry in entries:
        # The target itself adds a mark when it ends.
        if entry.mark and entry.mark.startswith("{"):
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
    """Starts the daemon on the parts and checks that it finds one of the states."""
    system.start_daemon()
    stratis = stratis_bus.Stratis()
    try:
        if None in states:  # while the pool is being created, none may exist
            if not stratis.pools():
                return
            states = [state for state in states if state]
        half_written = under_way[1:3] if under_way and under_way[0] == "write" else None
        stream.compare(stratis, states, half_written)
    finally:
        stratis.close()


def flushed_before(entries, place):
    """Number of entries that a completed flush covers when the power is cut at `place`."""
    return max((number + 1 for number in range(place) if write_log.is_flush(entries[number])), default=0)


def draw_places(entries, generator, count):
    """Places of power cuts: random ones between two random flushes, so that the many writes of a
    mkfs do not get all of them."""
    first = next(number for number, entry in enumerate(entries) if entry.mark)
    ends = [n for n in range(first, len(entries)) if write_log.is_flush(entries[n])] + [len(entries) - 1]
    places = set()
    for end in generator.sample(ends, min(count, len(ends))):
        places.add(generator.randint(max(first, flushed_before(entries, end)), end))
    return sorted(places)


class CutDisk:
    """The disk as a power cut leaves it. The writes of a check go to another disk, so the next
    check starts from the unchanged one; places must be in rising order."""

    def __init__(self, entries):
        self.entries = entries
        self.done_to = 0
        self.sectors = system.run("blockdev", "--getsz", DISK).strip()
        system.run("blkdiscard", "--zeroout", DISK)

    def _repeat(self, entries, path, length_of):
        with open(RECORD, "rb") as log, open(path, "r+b") as disk:
            for entry in entries:
                length = length_of(entry) if entry.length else 0
                if length:
                    write_log.copy(entry, log, disk, length)
            disk.flush()
            os.fsync(disk.fileno())

    def set_up(self, flushed, unflushed, length_of):
        """Writes all entries up to `flushed`, then of each in `unflushed` the part that `length_of`
        says."""
        self._repeat(self.entries[self.done_to : flushed], DISK, lambda entry: entry.length)
        self.done_to = max(self.done_to, flushed)
        system.run("dd", "if=/dev/zero", f"of={ROOM}", "bs=4k", "count=1", "conv=fsync", "status=none")
        system.run("dmsetup", "create", "cut", "--table", f"0 {self.sectors} snapshot {DISK} {ROOM} N 8")
        self._repeat(unflushed, "/dev/mapper/cut", length_of)
        make_parts("/dev/mapper/cut")

    def take_down(self):
        take_down(*PARTS, "cut")


def cut(disk, place, states, generator):
    """One power cut: (whether the daemon recovers, what was done)."""
    fates = []

    def length_of(entry):
        fates.append((write_log.fate(entry, generator), entry.length))
        return fates[-1][0]

    flushed = flushed_before(disk.entries, place)
    disk.set_up(flushed, disk.entries[flushed : place + 1], length_of)
    kept, lost = sum(got == all_ for got, all_ in fates), sum(got == 0 for got, _ in fates)
    state, under_way = states[place]
    about = f"cut at {place} during {under_way}: of {len(fates)} unflushed writes {lost} lost, {len(fates) - kept - lost} torn"
    try:
        check(right_states(state, under_way), under_way)
        return True, about
    except Exception as error:  # a state that the daemon cannot handle is what this test looks for
        return False, f"{about}: {error}\n{system.daemon_log(30)}"
    finally:
        disk.take_down()


def lying_disk_is_noticed(disk, states):
    """Tests the checker: a disk that lost the whole last operation although it was flushed."""
    done_at = max(n for n, (_, under_way) in enumerate(states) if under_way is None and n and states[n - 1][1])
    begun_at = max(n for n in range(done_at) if states[n][1] is None)
    disk.set_up(flushed_before(disk.entries, begun_at), [], None)
    try:
        check([states[done_at][0]], None)
        return False
    except AssertionError:
        return True
    finally:
        disk.take_down()


def main(seed, operations, cuts):
    entries = record(seed, operations)
    states = states_at(entries)
    flushes = sum(write_log.is_flush(entry) for entry in entries)
    writes = sum(entry.length > 0 for entry in entries)
    print(f"recorded {operations} operations: {writes} writes, {flushes} flushes", flush=True)
    generator = random.Random(seed)
    disk = CutDisk(entries)
    passed = failed = 0
    for place in draw_places(entries, generator, cuts):
        good, about = cut(disk, place, states, generator)
        passed, failed = passed + good, failed + (not good)
        print("PASSED" if good else "FAILED", about, flush=True)
    noticed = lying_disk_is_noticed(CutDisk(entries), states)
    print("PASSED" if noticed else "FAILED", "the checker detects a disk that loses flushed writes", flush=True)
    passed, failed = passed + noticed, failed + (not noticed)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    system.stop_daemon()
    sys.exit(main(*(int(word) for word in sys.argv[1:4])))
