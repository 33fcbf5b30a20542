"""The Debian packages as a new user gets them: installed by apt on a bare system, the first commands of README.md, a
reboot; upgrades and removal while filesystems are written to. The root file system stays from life to life.
"""

import functools
import gzip
import pathlib
import re
import subprocess
import threading

import dbus
import system
from stratis_bus import Stratis

PACKAGES = pathlib.Path("packages").resolve()
SOURCES = pathlib.Path("/etc/apt/sources.list")
DOCUMENTS = pathlib.Path("/usr/share/doc/stratisd")
# The part for the initramfs needs programs that the machine does not have.
NAMES = sorted(deb.name.split("_")[0] for deb in (PACKAGES / "before").glob("*.deb") if "initramfs" not in deb.name
               and "dbgsym" not in deb.name)  # fmt: skip


def apt(*words):
    done = subprocess.run(
        ["apt-get", "-y", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"},
    )  # fmt: skip
    print(done.stdout)
    assert done.returncode == 0, done.stdout
    return done.stdout


def install(version, *options):
    files = [next((PACKAGES / version).glob(f"{name}_*.deb")) for name in NAMES]
    return apt("install", "--no-install-recommends", *options, *map(str, files))


def version():
    return system.run("dpkg-query", "-W", "-f", "${Version}", "stratisd")


@functools.cache
def readme():
    """README.md as it was installed at first: a removal takes it away."""
    return gzip.decompress(next(DOCUMENTS.glob("README*")).read_bytes()).decode()


def readme_commands():
    """The commands after those of the installation in README.md, for the disks of this machine."""
    text = readme()
    block = re.search(r"^    # apt install .*\n    # (stratis pool create .*)\n    # (stratis filesystem create .*)\n    # (mount .*)\n", text, re.M)
    pool, filesystem, mount = block.groups()
    return [pool.replace("/dev/sdb /dev/sdc", " ".join(system.DISKS[:2])), filesystem, mount]


def fstab_line():
    """The line of README.md for /etc/fstab."""
    return re.search(r"^    (/dev/stratis/p1/home .*)$", readme(), re.M)[1]


def ignoring_its_end(call, *arguments):
    """The daemon ends before the request does, so there is a refusal, or no reply at all."""
    try:
        call(*arguments)
    except dbus.DBusException:
        pass


def job():
    """The re-encryption job of the only pool, as the daemon that runs now reports it."""
    stratis = Stratis()
    (pool,) = stratis.report()["pools"]
    stratis.close()
    return pool.get("work")


def place():
    return fstab_line().split()[1]


def is_mounted():
    return any(line.split()[1] == place() for line in open("/proc/mounts"))


class TestFirst:
    """The first life."""

    def test_installs_on_a_bare_debian(self):
        # What the image has for other tests; a new Debian has none of it.
        apt("purge", "xfsprogs", "thin-provisioning-tools")
        SOURCES.write_text(f"deb [trusted=yes] file:{PACKAGES}/dependencies ./\n")
        apt("update")
        install("before")
        assert system.run("systemctl", "is-active", "stratisd").strip() == "active"
        assert system.run("systemctl", "is-enabled", "stratisd").strip() == "enabled"
        assert version().endswith("+1")

    def test_every_file_is_as_packaged(self):
        assert system.run("dpkg", "--verify", *NAMES) == ""

    def test_commands_of_the_readme(self):
        for command in readme_commands():
            system.run("sh", "-c", command)
        pathlib.Path("/mnt/file").write_text("kept")
        uuid = re.search(r"[0-9a-f-]{36}", system.run("stratis", "pool", "list"))[0]
        with open("/etc/fstab", "a") as fstab:
            fstab.write(fstab_line().replace("UUID", uuid) + "\n")
        pathlib.Path("/run/machine-orderly-end").touch()


class TestAfterReboot:
    """The second life, in this order."""

    def test_mounted_by_fstab(self):
        # This waits for the mount that the boot has begun.
        system.run("systemctl", "start", system.run("systemd-escape", "--path", "--suffix=mount", place()).strip())
        assert is_mounted()
        assert pathlib.Path(place(), "file").read_text() == "kept"

    def test_upgrade_and_back_while_encrypted(self, tmp_path):
        """All data of the pool is encrypted while files are written, and each version goes on with it."""
        (tmp_path / "key").write_text("the passphrase of this test")
        system.run("stratis", "key", "set", "k", f"--keyfile-path={tmp_path / 'key'}")
        stratis, log = Stratis(), system.Log()
        pool = stratis.pool("p1").path
        encryption = threading.Thread(target=ignoring_its_end, args=(stratis.encrypt_pool, pool, ["k"]))
        writer = system.Writer(place())
        encryption.start()
        log.wait_for("re-encryption job of pool p1", "has done")
        daemons = [system.unit("MainPID")]
        for other, ending, options in (("after", "+2", ()), ("before", "+1", ("--allow-downgrades",))):
            install(other, *options)
            encryption.join()
            assert version().endswith(ending)
            assert system.run("systemctl", "is-active", "stratisd").strip() == "active"
            daemons.append(system.unit("MainPID"))
            assert job()["kind"] == "encrypt"
        assert len(set(daemons)) == 3 and "0" not in daemons, daemons
        log.wait_for("p1 has completed its re-encryption job")
        log.close()
        assert is_mounted()
        written = writer.end()
        files = system.contents(place())
        assert {name: files[name] for name in written} == written
        stratis.close()
        stratis = Stratis()
        assert stratis.get(stratis.pool("p1").path, "pool", "Encrypted") is True
        stratis.close()

    def test_removal_while_mounted(self):
        devices = system.mapped_devices()
        writer = system.Writer(place())
        said = apt("remove", "stratisd")
        assert "mounted now: 1" in said and "stay mounted" in said
        assert not pathlib.Path("/usr/libexec/stratisd").exists()
        assert is_mounted()
        written = writer.end()
        files = system.contents(place())
        assert {name: files[name] for name in written} == written
        assert system.mapped_devices() == devices

    def test_installed_again(self):
        apt("purge", "stratisd")
        install("after")
        assert "p1" in system.run("stratis", "pool", "list")
        system.run("stratis", "filesystem", "create", "p1", "later")
        assert pathlib.Path("/dev/stratis/p1/later").exists()

    def test_package_tests(self):
        for name in ("simulated", "loop-devices"):
            system.run(PACKAGES / "autopkgtest" / name)
