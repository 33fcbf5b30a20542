"""A program in uninterruptible sleep: neither its time limit nor a signal ends it, only its device."""

import threading
import time

import pytest
import stand_in
import system
from stratis_bus import Stratis, done

GIB = 1 << 30
STUCK = "waits for a device that does not answer"


@pytest.fixture
def silent(disks):
    """A device that a program can silence: `dmsetup suspend slice0`."""
    (device,) = system.cut(disks[0], 1, 2 * GIB)
    yield device
    system.run("dmsetup", "resume", "slice0")
    system.run("dmsetup", "remove", "--retry", "slice0")


def stuck_programs(stratis):
    return [program for program in stratis.report()["locks"]["programs"] if STUCK in program.get("stuck", "")]


def state(process):
    """The state of a process as the kernel has it, without its name, which may have spaces."""
    with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_a_stuck_program_holds_up_only_its_request(stratis, disks, silent):
    other, _ = done(stratis.create_pool("other", disks[1:]))
    waiting = Stratis()
    replies = []
    caller = threading.Thread(target=lambda: replies.append(waiting.create_pool("p", [silent])))
    with stand_in.program("thin_metadata_size", f"dmsetup suspend --noflush slice0; exec dd if={silent} of=/dev/null iflag=direct"):
        caller.start()
        while not (stuck := stuck_programs(stratis)):
            # Only the request of the program waits, for the time limit; other requests continue
            # meanwhile.
            done(stratis.create_filesystem(other, "f", GIB))
            done(stratis.destroy_filesystem(other, stratis.pool("other").filesystems["f"].path))
            time.sleep(0.2)
    # At least one of them: the check of the other pool may have run the program, too.
    for program in stuck:
        assert "thin_metadata_size" in program["program"], program
        assert state(program["process"]) == "D", program
        assert f"(process {program['process']}) was killed" in system.daemon_log(400)
    done(stratis.create_filesystem(other, "g", GIB))
    system.run("dmsetup", "resume", "slice0")
    caller.join()
    (reply,) = replies
    assert reply.code != 0 and "a device does not respond" in reply.text, reply
    assert set(stratis.pools()) == {"other"}
    # A program that has ended is no longer reported, and the device is free.
    while stuck_programs(stratis):
        time.sleep(0.2)
    path, _ = done(stratis.create_pool("p", [silent]))
    done(stratis.destroy_pool(path))
    waiting.close()
