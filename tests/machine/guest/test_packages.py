"""The Debian packages as a new user gets them: installed by apt on a bare system, the first commands of README.md, a
reboot; upgrades and removal while filesystems are written to. The root file system stays from life to life.
"""

import gzip
import pathlib
import re
import subprocess

import system

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


def readme():
    return gzip.decompress(next(DOCUMENTS.glob("README*")).read_bytes()).decode()


def readme_commands():
    """The commands of the first session in README.md, for the disks of this machine."""
    text = readme()
    block = re.search(r"^    # (stratis pool create .*)\n    # (stratis filesystem create .*)\n    # (mount .*)\n", text, re.M)
    pool, filesystem, mount = block.groups()
    return [pool.replace("/dev/sdb /dev/sdc", " ".join(system.DISKS[:2])), filesystem, mount]


def fstab_line():
    """The line of README.md for /etc/fstab."""
    return re.search(r"^    (/dev/stratis/p1/home .*)$", readme(), re.M)[1]


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

    def test_upgrade_and_back_while_written(self):
        daemon = system.unit("MainPID")
        writer = system.Writer(place())
        install("after")
        assert version().endswith("+2")
        upgraded = system.unit("MainPID")
        assert upgraded not in (daemon, "0")
        assert system.run("systemctl", "is-active", "stratisd").strip() == "active"
        install("before", "--allow-downgrades")
        assert version().endswith("+1")
        assert system.unit("MainPID") not in (upgraded, "0")
        assert is_mounted()
        written = writer.end()
        files = system.contents(place())
        assert {name: files[name] for name in written} == written
        assert "p1" in system.run("stratis", "pool", "list")

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
