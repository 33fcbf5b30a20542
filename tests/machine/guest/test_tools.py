"""The tools on real pools: the prediction equals what the daemon reports, metadata is dumped, checked
and printed, names are decoded, a pool of version 1 is made and taken over, and the doctor finds
what is broken.
"""

import json
import os
import subprocess

import stratis_bus
import system

GIB = 1 << 30
POOL = stratis_bus.interface("pool")


def call(*words, answer=None):
    """Exit status, standard output and standard error."""
    done = subprocess.run([str(word) for word in words], input=answer, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


def size_of(disk):
    return int(system.run("blockdev", "--getsize64", disk))


def doctor():
    status, text, _ = call("stratisd-tools", "doctor", "--json")
    report = json.loads(text)
    return status, {finding["id"]: finding for finding in report["findings"]}, report["unexamined"]


def test_predictions_equal_the_daemons_sizes(disks):
    for count, options in ((1, []), (2, ["--encrypted"])):
        stratis = stratis_bus.Stratis()
        words = [word for disk in disks[:count] for word in ("--device-size", size_of(disk))]
        status, text, _ = call("stratis-predict-usage", "pool", *options, *words)
        assert status == 0
        predicted = {key: int(value) for key, value in json.loads(text).items()}
        path = stratis_bus.done(stratis.create_pool("p", disks[:count]))[0]
        shown = stratis.objects()[path][POOL]
        assert predicted["total"] == int(shown["TotalPhysicalSize"])
        known, used = shown["TotalPhysicalUsed"]
        assert known and predicted["used"] == int(used)
        # A small filesystem uses the predicted space, and at most 64 MiB for its log.
        status, text, _ = call("stratis-predict-usage", "filesystem", "--filesystem-size", GIB)
        stratis_bus.done(stratis.create_filesystem(path, "f", GIB))
        stratis.refresh()
        _, after = stratis.objects()[path][POOL]["TotalPhysicalUsed"]
        assert 0 < int(after) - int(used) <= int(json.loads(text)["used"]) + (64 << 20)
        filesystem = stratis.pool("p").filesystems["f"].path
        stratis_bus.done(stratis.destroy_filesystem(path, filesystem))
        stratis_bus.done(stratis.destroy_pool(path))
        stratis.close()


def test_metadata_and_names_of_a_real_pool(disks, tmp_path):
    stratis = stratis_bus.Stratis()
    path = stratis_bus.done(stratis.create_pool("p", disks[:2]))[0]
    stratis_bus.done(stratis.create_filesystem(path, "f", GIB))
    pool = stratis.pool("p")
    before = system.digest(disks[0])
    status, text, _ = call("stratis-dumpmetadata", "--only", "pool", disks[0])
    assert status == 0 and json.loads(text)["name"] == "p"
    file = tmp_path / "pool.json"
    file.write_text(text)
    assert call("stratisd-tools", "checkmetadata", file) == (0, "", "")
    status, printed, _ = call("stratisd-tools", "printmetadata", file)
    assert status == 0 and printed.count("Data device: ") == 2
    status, dumped, _ = call("stratis-dumpmetadata", "-b", disks[0])
    assert status == 0 and dumped.startswith("Signature block: \n\nHeader:\nStaticHeader {") and "Length: 512" in dumped
    assert system.digest(disks[0]) == before
    node = f"/dev/mapper/stratis-1-{pool.uuid}-thin-fs-{pool.filesystems['f'].uuid}"
    assert os.path.exists(node)
    for output, name in (("symlink", "/dev/stratis/p/f"), ("pool-name", "p"), ("filesystem-name", "f")):
        assert call("stratis-decode-dm", node, "--output", output) == (0, f"{name}\n", "")
    stratis.close()


def test_a_legacy_pool_is_taken_over(disks):
    system.stop_daemon()
    status, text, errors = call("stratisd-tools", "legacy-pool", "old", *disks[:2], answer="n\n")
    assert (status, errors) == (0, "") and text.endswith("[Y/n] ")
    assert system.mapped_devices() == []
    status, _, errors = call("stratisd-tools", "legacy-pool", "old", *disks[:2], answer="y\n")
    assert (status, errors) == (0, "")
    system.start_daemon()
    stratis = stratis_bus.Stratis()
    path = stratis.pool("old").path
    assert stratis.objects()[path][POOL]["MetadataVersion"] == 1
    stratis_bus.done(stratis.create_filesystem(path, "f", GIB))
    system.mount("/dev/stratis/old/f", "/mnt/f")
    system.put("/mnt/f", "file")
    system.unmount("/mnt/f")
    stratis.close()


def test_the_doctor_finds_what_is_broken(disks):
    # The machine does not enable the service; a command starts it.
    expected = {"unit-disabled"}
    stratis = stratis_bus.Stratis()
    path = stratis_bus.done(stratis.create_pool("p", disks[:2]))[0]
    uuid = stratis.pool("p").uuid
    status, found, unexamined = doctor()
    assert set(found) <= expected and not unexamined, (found, unexamined)
    assert status == (1 if found else 0)
    # A line that would end a boot in emergency mode.
    with open("/etc/fstab", "a") as fstab:
        fstab.write("/dev/stratis/p/f /mnt/f xfs defaults 0 0\n")
    status, found, _ = doctor()
    assert status == 2 and "fstab-option-missing" in found
    system.run("sed", "-i", "/stratis/d", "/etc/fstab")
    # A stopped pool, and a copy of one of its disks.
    stratis_bus.done(stratis.stop_pool(uuid))
    system.run("dd", f"if={disks[0]}", f"of={disks[2]}", "bs=1M", "count=2", "conv=fsync")
    system.run("udevadm", "trigger", "--settle", "--action=change", disks[2])
    status, found, _ = doctor()
    assert {"pool-stopped", "identity-duplicate"} <= set(found), found
    system.erase(disks[2])
    stratis.close()
    system.stop_daemon()
    status, found, _ = doctor()
    assert "daemon-silent" in found and "pool-stopped" in found
    system.start_daemon()
    stratis = stratis_bus.Stratis()
    stratis_bus.done(stratis.start_pool(uuid))
    status, found, _ = doctor()
    assert set(found) <= expected, found
    stratis.close()
    assert path
