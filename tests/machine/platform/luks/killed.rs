//! Re-encryption jobs that are killed, or meet a bad range of the disk, under a mounted file
//! system.

use super::*;

/// The process ID of a LUKS2 child.
pub(super) fn child() -> Option<Pid> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let is_child = |path: &Path| fs::read_to_string(path.join("comm")).is_ok_and(|name| name == "stratisd-luks\n");
    let found = processes.map(|entry| entry.path()).find(|path| is_child(path))?;
    found.file_name()?.to_str()?.parse().ok().map(Pid::from_raw)
}

/// Lets this much time pass, because the moment of a kill is random.
fn pass(time: Duration) {
    poll(&mut [], Some(&Timespec::try_from(time).unwrap())).unwrap();
}

/// Waits for something that must happen.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        pass(Duration::from_millis(1));
    }
}

/// The states of jobs at the moments of their kills.
#[derive(Debug, Default)]
struct Moments {
    /// I/O waits, and the header names the hot zone: the step was writing.
    writing: u32,
    /// I/O waits, and the header does not name the hot zone: the step was reading, or complete.
    reading: u32,
    between: u32,
}

impl Moments {
    /// Waits for a random moment of a step.
    fn wait(luks_device: &LuksDevice<'_>, is_over: &dyn Fn() -> bool, moment: Duration) {
        until("a step to start", || luks_device.is_held_back() || is_over());
        pass(moment);
    }

    fn note(&mut self, luks_device: &LuksDevice<'_>) {
        let waits = luks_device.is_held_back();
        // Does not read through the library, because the job may hold the library's lock.
        let bytes = luks_device.machine.linux.read(&luks_device.device, 4096, 60 << 10).unwrap();
        match (waits, String::from_utf8_lossy(&bytes).contains("in-reencryption")) {
            (true, true) => self.writing += 1,
            (true, false) => self.reading += 1,
            (false, _) => self.between += 1,
        }
    }
}

/// An encrypted LUKS device with files on it.
fn encrypted(machine: &Machine) -> (LuksDevice<'_>, Files<'_>) {
    let luks_device = LuksDevice::new(machine, "base", 0, 2048, SIZE);
    luks_device.format(FormatPurpose::New);
    luks_device.open();
    let files = Files::new(machine, &luks_device.name, 0);
    (luks_device, files)
}

fn moments(seed: u32) -> impl Iterator<Item = Duration> {
    let mut state = seed;
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        Duration::from_millis(u64::from(state >> 16) % 300)
    })
}

fn kills() -> u32 {
    std::env::var("KILLS").ok().and_then(|number| number.parse().ok()).unwrap_or(KILLS)
}

pub(super) fn killed(machine: &Machine) {
    let (luks_device, files) = encrypted(machine);
    let mut seen = Moments::default();
    let mut begin = luks_device.prepare();
    for moment in moments(1).take(kills() as usize) {
        let over = AtomicBool::new(false);
        let (result, _) = writing(&files, || {
            thread::scope(|scope| {
                scope.spawn(|| {
                    Moments::wait(&luks_device, &|| over.load(Ordering::Relaxed), moment);
                    // Stops the child first to see its state, then kills it.
                    if let Some(child) = child() {
                        let _ = kill(child, Signal::SIGSTOP);
                        seen.note(&luks_device);
                        let _ = kill(child, Signal::SIGKILL);
                    }
                });
                let result = luks_device.work(begin, &|_| true);
                over.store(true, Ordering::Relaxed);
                result
            })
        });
        assert!(luks_device.left().is_empty(), "{:?} after {result:?}", luks_device.left());
        files.check();
        match (result, luks_device.header().state) {
            (Ok(ReencryptionEnd::Finished), DataEncryption::Encrypted) => begin = luks_device.prepare(),
            (Err(error), DataEncryption::Unfinished { mode: ReencryptionMode::Reencrypt, .. }) => {
                assert!(error.to_string().contains("killed by signal 9"), "{error}");
                begin = Begin::Resume;
            }
            // The job was killed in its last step, which the recovery completed, or before the
            // header recorded its start.
            (Err(_), DataEncryption::Encrypted) if begin == Begin::Resume => begin = luks_device.prepare(),
            (Err(_), DataEncryption::Encrypted) => {}
            other => panic!("{other:?}"),
        }
    }
    println!("        (killed while {seen:?})");
    if luks_device.header().state != DataEncryption::Encrypted {
        assert_eq!(luks_device.work(Begin::Resume, &|_| true).unwrap(), ReencryptionEnd::Finished);
    }
    files.check();
    files.down();
    luks_device.remove();
}

/// Re-encrypts a LUKS device as a daemon does: `luks-work DEVICE NAME FROM TO` on the command line.
pub(crate) fn work_as_daemon(arguments: &[String]) {
    let [device, name, from, to] = arguments else { panic!("{arguments:?}") };
    let begin = match (from.parse(), to.parse()) {
        (Ok(from), Ok(to)) => Begin::Reencrypt { from, to },
        _ => Begin::Resume,
    };
    let passphrase = secret(PASSPHRASES[0]);
    let tell = |progress: Progress| {
        println!("{}", progress.done.0);
        true
    };
    println!("{:?}", Luks::default().reencrypt(Path::new(device), name, unlock(&passphrase), begin, &tell));
}

/// Lets another process re-encrypt a LUKS device and kills it at a random moment. If `with_child`
/// is set, kills its child, too.
fn work_and_kill(luks_device: &LuksDevice<'_>, begin: Begin, moment: Duration, with_child: bool, seen: &mut Moments) {
    let (from, to) = match begin {
        Begin::Reencrypt { from, to } => (from.to_string(), to.to_string()),
        _ => ("-".to_owned(), "-".to_owned()),
    };
    #[allow(clippy::disallowed_methods)]
    let mut daemon = Command::new("/proc/self/exe")
        .args(["luks-work", luks_device.device.to_str().unwrap(), &luks_device.name, &from, &to])
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let number = Pid::from_raw(daemon.id().try_into().unwrap());
    Moments::wait(luks_device, &|| kill(number, None).is_err(), moment);
    let child = child();
    if with_child {
        if let Some(child) = child {
            let _ = kill(child, Signal::SIGSTOP);
            seen.note(luks_device);
        }
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    if let Some(child) = child.filter(|_| with_child) {
        let _ = kill(child, Signal::SIGKILL);
    }
    until("the child to exit", || self::child().is_none());
}

pub(super) fn daemon_killed(machine: &Machine) {
    let (luks_device, files) = encrypted(machine);
    let mut begin = luks_device.prepare();
    for moment in moments(2).take(3) {
        let (_, rounds) =
            writing(&files, || work_and_kill(&luks_device, begin, moment, false, &mut Moments::default()));
        // There is nothing to recover.
        assert!(luks_device.left().is_empty(), "{:?}", luks_device.left());
        files.check();
        println!(
            "        (killed after {} ms, {rounds} files written meanwhile: {:?})",
            moment.as_millis(),
            luks_device.header().state
        );
        begin =
            if luks_device.header().state == DataEncryption::Encrypted { luks_device.prepare() } else { Begin::Resume };
    }
    files.down();
    luks_device.remove();
}

pub(super) fn both_killed(machine: &Machine) {
    let (luks_device, files) = encrypted(machine);
    let mut seen = Moments::default();
    let mut begin = luks_device.prepare();
    for moment in moments(3).take(kills() as usize) {
        let (ended, _) = writing(&files, || {
            work_and_kill(&luks_device, begin, moment, true, &mut seen);
            // The next daemon resumes the job.
            match luks_device.header().state {
                DataEncryption::Encrypted => Ok(ReencryptionEnd::Finished),
                _ => luks_device.work(Begin::Resume, &some),
            }
        });
        ended.unwrap();
        assert!(luks_device.left().is_empty(), "{:?}", luks_device.left());
        files.check();
        begin =
            if luks_device.header().state == DataEncryption::Encrypted { luks_device.prepare() } else { Begin::Resume };
    }
    println!("        (killed while {seen:?})");
    files.down();
    luks_device.remove();
}

/// A LUKS device on a disk in which a small range, without files, has another target.
fn with_stretch<'a>(
    machine: &'a Machine,
    target: impl FnOnce() -> Target,
    work: impl FnOnce(&LuksDevice<'a>, &Files<'a>, Begin),
) {
    let linux = &machine.linux;
    let (luks_device, files) = encrypted(machine);
    let begin = luks_device.prepare();
    let disk = machine.disk(0).number;
    let (bad, length) = (SIZE - 8192, 8);
    let table = [
        Line::linear(Sectors(0), Sectors(bad), disk, Sectors(2048)),
        Line { start: Sectors(bad), length: Sectors(length), target: target() },
        Line::linear(Sectors(bad + length), Sectors(SIZE - bad - length), disk, Sectors(2048 + bad + length)),
    ];
    linux.dm_load(&luks_device.base, &table).unwrap();
    linux.dm_resume(&luks_device.base, Visibility::Private).unwrap();
    work(&luks_device, &files, begin);
    assert_eq!(luks_device.work(Begin::Resume, &|_| true).unwrap(), ReencryptionEnd::Finished);
    assert!(luks_device.left().is_empty(), "{:?}", luks_device.left());
    files.check();
    files.down();
    luks_device.remove();
}

/// Runs a job that fails at the bad range, and fails there again when it is resumed.
fn fails(luks_device: &LuksDevice<'_>, files: &Files<'_>, begin: Begin) {
    let (result, _) = writing(files, || luks_device.work(begin, &|_| true));
    println!("        ({})", result.unwrap_err());
    files.check();
    let before = done(luks_device, ReencryptionMode::Reencrypt);
    assert!(before > 0);
    luks_device.work(Begin::Resume, &|_| true).unwrap_err();
    assert_eq!(done(luks_device, ReencryptionMode::Reencrypt), before);
    files.check();
}

pub(super) fn not_read(machine: &Machine) {
    let error = || Target::Foreign { kind: "error".to_owned(), parameters: String::new() };
    with_stretch(machine, error, |luks_device, files, begin| {
        fails(luks_device, files, begin);
        assert!(luks_device.left().is_empty(), "{:?}", luks_device.left());
        let good = Line::linear(Sectors(0), Sectors(SIZE), machine.disk(0).number, Sectors(2048));
        machine.linux.dm_load(&luks_device.base, &[good]).unwrap();
        machine.linux.dm_resume(&luks_device.base, Visibility::Private).unwrap();
    });
}

/// The bad range lies on a sparse file, in a file system that is full until a filler is removed.
pub(super) fn not_written(machine: &Machine) {
    let shell = |script: &str| command("sh", &["-c", script]);
    let hole = || {
        shell(
            "mkdir -p /run/full && mount -t tmpfs -o size=64k full /run/full && truncate -s 1M /run/full/hole
            (cat /dev/zero > /run/full/filler) 2> /dev/null; losetup /dev/loop0 /run/full/hole
            udevadm settle",
        );
        let device = machine.linux.find_device(Path::new("/dev/loop0")).unwrap().number;
        Target::Linear { device, offset: Sectors(0) }
    };
    with_stretch(machine, hole, |luks_device, files, begin| {
        fails(luks_device, files, begin);
        // Half of the hot zone is written. It is not used until the step can be completed.
        assert!(!luks_device.left().is_empty());
        shell("rm /run/full/filler");
    });
    shell("losetup -d /dev/loop0; umount /run/full");
}
