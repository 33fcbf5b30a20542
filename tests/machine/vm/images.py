"""Builds what machines boot from, once, and caches it: the guest's root image and the kernels.

Each image lies in the cache under a name with a digest of everything it was made from, so a change
of the package list or of the build code makes a new one. Knows nothing of running machines.
"""

import contextlib
import fcntl
import gzip
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import facts
from debian import PrivateApt, source_lines
from shell import Failure, find_program, require, run, say, write

HERE = Path(__file__).resolve().parent


def default_cache():
    """The default directory of the images."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stratisd-machine"


def _digest(*parts):
    total = hashlib.sha256()
    for part in parts:
        total.update(part.read_bytes() if isinstance(part, Path) else repr(part).encode())
    return total.hexdigest()[:12]


@contextlib.contextmanager
def _locked(cache, name):
    """Makes a second build of the same image wait for the first instead of repeating it."""
    with open(cache / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _cached(cache, name, digest, build):
    """The directory `name-digest` in the cache, made atomically by `build(folder)` if it is
    missing."""
    folder = cache / f"{name}-{digest}"
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache, name):
        if not folder.is_dir():
            if os.geteuid() != 0:
                raise Failure(
                    f"the machine's {name} is not built yet, and the build needs root. Run once:\n"
                    f"    sudo python3 {HERE} --cache {cache} build"
                )
            say(f"building the {name} in {cache} (once) ...")
            started = time.monotonic()
            for left_over in cache.glob(f"{name}.part*"):
                shutil.rmtree(left_over)
            part = Path(tempfile.mkdtemp(dir=cache, prefix=f"{name}.part"))
            part.chmod(0o755)
            build(part)
            part.rename(folder)
            say(f"built the {name} in {time.monotonic() - started:.0f} s")
            for old in cache.glob(f"{name}-*"):
                if old != folder:
                    shutil.rmtree(old)
    return folder


def root(cache, guest=facts.DEFAULT_GUEST):
    """Directory with `root.img` (ext4, which every machine reads through a copy-on-write layer) and
    the stock kernel with its initial ramdisk: `vmlinuz`, `initrd`."""
    made_from = [guest, facts.STRATIS_LIBRARIES, facts.MASKED_UNITS, facts.KERNEL_SUITE, facts.BOOT_MODULES,
                 facts.MODULE_FOLDERS, HERE / "images.py"]  # fmt: skip
    made_from += [facts.IMAGE_FILES / name for name in ("agent", "agent.service", "power-cut", "init")]
    return _cached(cache, f"{guest.name}-image", _digest(*made_from), lambda part: _build_root(part, guest))


def uml_kernel(cache):
    """The program `linux`: the kernel as User-mode Linux, without modules."""
    config = facts.IMAGE_FILES / "uml.config"
    digest = _digest(config, facts.UML_SUITE, facts.UML_SOURCE)
    return _cached(cache, "uml-kernel", digest, _build_uml_kernel) / "linux"


def _build_root(part, of):
    require(facts.IMAGE_TOOLS | facts.STOCK_KERNEL_TOOLS)
    guest = part / "root"
    sources = " ".join(f"'{line}'" for line in source_lines(of.suite))
    run(f"mmdebstrap --variant=minbase --format=directory --include={','.join(of.packages)} "
        f"{of.suite} {guest} {sources}")  # fmt: skip
    run(f"python3 -m venv {part}/pip")
    _install_stratis_clients(part, guest, of)
    _install_python_programs(part, guest, of)
    shutil.rmtree(part / "pip")
    _prepare_guest(guest, of)
    modules = _install_stock_kernel(part, guest)
    _make_initial_ramdisk(part, modules)
    # No journal: the image is never written to again, and the root of a machine that loses power is
    # discarded.
    run(f"mke2fs -q -t ext4 -O ^has_journal -d {guest} root.img {of.size}", cwd=part)
    shutil.rmtree(guest)


def _pip(part):
    return f"{part}/pip/bin/pip install -q --disable-pip-version-check --no-compile"


def _write_starter(guest, name, home, program):
    """A program on the PATH that runs a Python program of the directory `home`."""
    starter = f'#!/bin/sh\nPYTHONPATH={home} exec /usr/bin/python3 {home}/bin/{program} "$@"\n'
    write(guest / "usr/local/bin" / name, starter, 0o755)


def _install_stratis_clients(part, guest, of):
    """Installs every version of the client in its own directory /opt/stratis-VERSION, with a
    starter of that name on the PATH, and `stratis` for the first version."""
    libraries = guest / f"usr/local/lib/python{of.python}/dist-packages"
    # pip runs on the host's Python, which may be older than the guest's.
    newer = "" if of.python == "3.11" else "--ignore-requires-python"
    run(f"{_pip(part)} --no-deps {newer} --target {libraries} {' '.join(facts.STRATIS_LIBRARIES)}")
    for version in of.stratis_versions:
        run(f"{_pip(part)} --no-deps --ignore-requires-python --target {guest}/opt/stratis-{version} stratis-cli=={version}")
        # 3.8.2 promises to run on Python 3.9 but has one `type` statement of Python 3.12; without
        # the keyword it is the same alias. Nothing else in the client is changed, and nothing where
        # Python is newer.
        if of.python == "3.11":
            run(f"sed -i 's/^type \\([A-Za-z]* = \\)/\\1/' {guest}/opt/stratis-{version}/stratis_cli/_error_codes.py")
        _write_starter(guest, f"stratis-{version}", f"/opt/stratis-{version}", "stratis")
    (guest / "usr/local/bin/stratis").symlink_to(f"stratis-{of.stratis_versions[0]}")
    run(f"chroot {guest} python3 -m compileall -q /usr/local/lib/python{of.python}/dist-packages /opt")


def _install_python_programs(part, guest, of):
    """Installs the guest's programs from PyPI, unchanged: libraries where Python looks for them,
    each program with a starter on the PATH."""
    home = Path("/opt/programs")
    if of.python_programs:
        run(f"{_pip(part)} --no-deps --ignore-requires-python --target {guest}{home} {' '.join(of.python_programs)}")
        write(guest / f"usr/local/lib/python{of.python}/dist-packages/programs.pth", f"{home}\n")
        for program in (guest / "opt/programs/bin").glob("*"):
            _write_starter(guest, program.name, home, program.name)
    for wanted in of.python_applications:
        name = wanted.partition("==")[0]
        run(f"{_pip(part)} --only-binary=:all: --python-version {of.python} --target {guest}/opt/{name} {wanted}")


def _prepare_guest(guest, of):
    for unit in facts.MASKED_UNITS:
        path = guest / "etc/systemd/system" / unit
        if unit not in of.unmasked and not os.path.lexists(path):
            path.symlink_to("/dev/null")
    # Installing the package makes its bus the system's.
    (guest / "etc/systemd/system/dbus.service").unlink(missing_ok=True)
    write(guest / "etc/machine-id", "0123456789abcdef0123456789abcdef\n")
    write(guest / "etc/hostname", "machine\n")
    default_target = guest / "etc/systemd/system/default.target"
    default_target.unlink(missing_ok=True)
    default_target.symlink_to("/lib/systemd/system/multi-user.target")
    for source, target in (("agent", "usr/local/sbin/machine-agent"), ("power-cut", "usr/local/bin/machine-power-cut")):
        write(guest / target, (facts.IMAGE_FILES / source).read_text(), 0o755)
    write(guest / "etc/systemd/system/machine-agent.service", (facts.IMAGE_FILES / "agent.service").read_text())


def _install_stock_kernel(part, guest):
    """Puts the kernel beside the image and its storage modules into the guest. Returns the
    directory of the modules."""
    apt = PrivateApt(part / "apt", facts.KERNEL_SUITE)
    package = apt.dependency("linux-image-amd64", "linux-image-[0-9][^ ]*")
    apt.unpack(package, part / "kernel")
    (boot_image,) = (part / "kernel/boot").glob("vmlinuz-*")
    shutil.copy(boot_image, part / "vmlinuz")
    (unpacked,) = (part / "kernel/lib/modules").iterdir()
    modules = guest / "lib/modules" / unpacked.name
    for folder in facts.MODULE_FOLDERS:
        if (unpacked / folder).is_dir():
            shutil.copytree(unpacked / folder, modules / folder)
    for index in [*unpacked.glob("modules.builtin*"), unpacked / "modules.order"]:
        shutil.copy(index, modules)
    run(f"chroot {guest} depmod {unpacked.name}")
    shutil.rmtree(part / "kernel")
    shutil.rmtree(part / "apt")
    return modules


def _make_initial_ramdisk(part, modules):
    ramdisk = part / "ramdisk"
    for folder in ("bin", "dev", "modules", "proc", "root"):
        (ramdisk / folder).mkdir(parents=True)
    dependencies = dict(line.split(":", 1) for line in (modules / "modules.dep").read_text().splitlines())
    order = []
    for name in facts.BOOT_MODULES:
        path = next(p for p in dependencies if p.endswith(f"/{name}.ko"))
        order += [p for p in [*reversed(dependencies[path].split()), path] if p not in order]
    for path in order:
        shutil.copy(modules / path, ramdisk / "modules")
    write(ramdisk / "modules/order", "".join(Path(p).name + "\n" for p in order))
    write(ramdisk / "init", (facts.IMAGE_FILES / "init").read_text(), 0o755)
    shutil.copy(find_program("busybox"), ramdisk / "bin/busybox")
    run("find . | cpio -o -H newc --quiet > ../initrd.cpio", cwd=ramdisk)
    with open(part / "initrd.cpio", "rb") as plain, gzip.open(part / "initrd", "wb", compresslevel=1) as packed:
        shutil.copyfileobj(plain, packed)
    (part / "initrd.cpio").unlink()
    shutil.rmtree(ramdisk)


def _build_uml_kernel(part):
    require(facts.UML_TOOLS)
    apt = PrivateApt(part / "apt", facts.UML_SUITE)
    try:
        apt.unpack(facts.UML_SOURCE, part / "package")
    except Failure:  # the suite has moved on to a newer kernel
        apt.unpack(apt.dependency("linux-source", "linux-source-[0-9.]*"), part / "package")
    source = part / "source"
    source.mkdir()
    run(f"tar -C {source} --strip-components=1 -xf {part}/package/usr/src/linux-source-*.tar.xz")
    config = facts.IMAGE_FILES / "uml.config"
    run(f"make -s ARCH=um KCONFIG_ALLCONFIG={config} allnoconfig", cwd=source)
    run(f"make -s ARCH=um -j{os.cpu_count()} linux && strip -o ../linux linux && cp .config ../config", cwd=source)
    for folder in ("apt", "package", "source"):
        shutil.rmtree(part / folder)
