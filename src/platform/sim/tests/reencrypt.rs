//! Re-encryption jobs on a LUKS device in use: no interruption damages the data.

use parking_lot::Mutex;

use super::{
    luks::{DATA, DISK, NAME, format, new_keyslot, open, secret, token, with},
    *,
};
use crate::{
    base::units::Bytes,
    platform::{
        luks::{
            Begin, DataEncryption, FormatPurpose, Header, HeaderChange, Progress, ReencryptionEnd, ReencryptionMode,
            Unlock,
        },
        sim::CallKind,
    },
};

const MODES: [ReencryptionMode; 3] =
    [ReencryptionMode::Encrypt, ReencryptionMode::Reencrypt, ReencryptionMode::Decrypt];

/// Offsets of the writes: close together, far apart, within a page and across pages.
const PLACES: [u64; 8] = [0, 1536, 4096, 8192, 20_480, 1 << 20, (1 << 20) + 512, 1 << 39];

/// The content written there, the same in each of its sectors.
fn contents(place: u64, stamp: u8) -> Vec<u8> {
    let length = if place == 8192 { 8192 - 512 } else { 512 };
    (0..length).map(|i| stamp ^ (i % 512) as u8 ^ (place >> 9) as u8 | 1).collect()
}

fn is_written(sim: &Sim, place: u64, stamp: u8) -> bool {
    read(sim, NAME, place, contents(place, stamp).len()) == contents(place, stamp)
}

/// Checks that all places hold the content of this stamp, and all others zeros.
fn check(sim: &Sim, stamp: u8, at: &str) {
    for place in PLACES {
        assert!(is_written(sim, place, stamp), "{at}: {place}");
    }
    for place in [512, 4608, 40_960, 1 << 30, (1 << 39) + 512] {
        assert_eq!(read(sim, NAME, place, 512), [0; 512], "{at}: {place}");
    }
}

fn fill(sim: &Sim, stamp: u8) {
    PLACES.into_iter().for_each(|place| write(sim, NAME, place, &contents(place, stamp)).unwrap());
}

/// A LUKS device with data, opened and ready for this job.
fn prepared(sim: Sim, mode: ReencryptionMode) -> Sim {
    format(&sim, if mode == ReencryptionMode::Encrypt { FormatPurpose::Encrypt } else { FormatPurpose::New });
    open(&sim, Some(NAME), "one").unwrap();
    fill(&sim, 1);
    flush(&sim, NAME);
    if mode == ReencryptionMode::Reencrypt {
        let (one, two) = (secret("one"), secret("two"));
        let next = |number, passphrase| HeaderChange::AddNextKeyslot(new_keyslot(number, passphrase));
        let changes = [
            next(2, &one),
            next(3, &two),
            HeaderChange::PutToken(1, token("luks2-keyring", &["0", "2"])),
            HeaderChange::PutToken(2, token("clevis", &["1", "3"])),
        ];
        sim.luks_change(Path::new(DISK), Some(with(&one)), &changes).unwrap();
    }
    sim
}

fn begin(mode: ReencryptionMode) -> Begin {
    match mode {
        ReencryptionMode::Encrypt => Begin::Resume,
        ReencryptionMode::Reencrypt => Begin::Reencrypt { from: 0, to: 2 },
        ReencryptionMode::Decrypt => Begin::Decrypt,
    }
}

fn state(sim: &Sim) -> DataEncryption {
    sim.header(Path::new(DISK)).unwrap().state
}

fn run_from(sim: &Sim, begin: Begin, watch: impl Fn(Progress) -> bool + Sync) -> Result<ReencryptionEnd, Error> {
    sim.luks_reencrypt(Path::new(DISK), NAME, with(&secret("one")), begin, &watch)
}

fn run(sim: &Sim, mode: ReencryptionMode) -> Result<ReencryptionEnd, Error> {
    run_from(sim, begin(mode), |_| true)
}

/// Resumes a job that was cut short, or starts it if it had not started.
fn go_on(sim: &Sim, mode: ReencryptionMode, at: &str) {
    let begun = matches!(state(sim), DataEncryption::Unfinished { .. });
    let finished = sim.header(Path::new(DISK)).is_some_and(|header| is_finished(&header, mode));
    let begin = if begun { Begin::Resume } else { begin(mode) };
    if !finished {
        let ended = run_from(sim, begin, |_| true);
        assert!(matches!(ended, Ok(ReencryptionEnd::Finished)), "{at}: {ended:?}");
    }
}

fn is_finished(header: &Header, mode: ReencryptionMode) -> bool {
    match mode {
        ReencryptionMode::Encrypt => header.state == DataEncryption::Encrypted,
        ReencryptionMode::Reencrypt => header.state == DataEncryption::Encrypted && !header.keyslots.contains(&0),
        ReencryptionMode::Decrypt => header.state == DataEncryption::Clear,
    }
}

/// Checks the header and the disk after a job.
fn check_finished(sim: &Sim, mode: ReencryptionMode, at: &str) {
    let header = sim.header(Path::new(DISK)).unwrap();
    assert!(is_finished(&header, mode), "{at}: {header:?}");
    if mode == ReencryptionMode::Reencrypt {
        assert_eq!(header.keyslots, [2, 3].into(), "{at}");
        assert_eq!(header.tokens[&1], token("luks2-keyring", &["2"]), "{at}");
        assert_eq!(header.tokens[&2], token("clevis", &["3"]), "{at}");
    }
    let raw = sim.read(Path::new(DISK), DATA, 512).unwrap();
    let clear = [contents(0, 1), contents(0, 2)].contains(&raw);
    assert_eq!(clear, mode == ReencryptionMode::Decrypt, "{at}");
    let table = sim.dm_find(NAME).unwrap().unwrap().table;
    assert_eq!(table.len(), 1, "{at}");
    assert_eq!(table[0].kind(), if mode == ReencryptionMode::Decrypt { "linear" } else { "crypt" }, "{at}");
}

#[test]
fn a_job_completes_on_a_device_in_use() {
    for mode in MODES {
        let sim = prepared(Sim::builder().hot_zone(1).build(), mode);
        let key = open(&sim, None, "one").unwrap();
        let raw = sim.read(Path::new(DISK), DATA, 512).unwrap();
        assert_eq!(raw == contents(0, 1), mode == ReencryptionMode::Encrypt);
        let seen: Mutex<Vec<Progress>> = Mutex::default();
        let ended = run_from(&sim, begin(mode), |progress| {
            let has_begun = !seen.lock().is_empty() || mode == ReencryptionMode::Encrypt;
            seen.lock().push(progress);
            check(&sim, 1, "on the way");
            let done = progress.done;
            let header = sim.luks_read(Path::new(DISK)).unwrap().unwrap();
            let state = if has_begun { DataEncryption::Unfinished { mode, done } } else { DataEncryption::Encrypted };
            assert_eq!(header.state, state);
            let lines = sim.dm_find(NAME).unwrap().unwrap().table;
            let inside = done.0 > 0 && done < progress.total;
            assert_eq!(lines.len(), if inside { 2 } else { 1 });
            assert!(!inside || lines[0].length.bytes() == done);
            true
        });
        assert!(matches!(ended, Ok(ReencryptionEnd::Finished)), "{ended:?}");
        let seen = seen.into_inner();
        // The job also reports its progress before it starts.
        assert_eq!(seen[0], seen[1]);
        assert!(seen[1..].windows(2).all(|pair| pair[0].done < pair[1].done));
        // The progress runs from nothing to all, with one zone for each of seven non-zero pages.
        assert_eq!((seen.len(), seen[1].done, seen[8].done), (9, Bytes(0), seen[1].total));
        check(&sim, 1, "afterwards");
        check_finished(&sim, mode, "afterwards");
        assert_ne!(sim.read(Path::new(DISK), DATA, 512).unwrap(), raw);
        let now = open(&sim, None, "one").unwrap();
        assert_eq!(now.same(key.bytes()), mode != ReencryptionMode::Reencrypt);
        assert!(now.same(open(&sim, None, "two").unwrap().bytes()));
        // The result is an ordinary device, also after a boot.
        fill(&sim, 2);
        sim.luks_resize(Path::new(DISK), NAME, &now, None).unwrap();
        flush(&sim, NAME);
        sim.cut_power();
        sim.power_on();
        open(&sim, Some(NAME), "two").unwrap();
        check(&sim, 2, "after a boot");
    }
}

#[test]
fn impossible_jobs_are_refused() {
    let sim = prepared(Sim::builder().build(), ReencryptionMode::Reencrypt);
    let before = sim.header(Path::new(DISK)).unwrap();
    let said = |begin: Begin| match run_from(&sim, begin, |_| true) {
        Err(error) => error.to_string(),
        Ok(ended) => panic!("{ended:?}"),
    };
    assert!(said(Begin::Resume).contains("no re-encryption job"));
    for (from, to) in [(2, 0), (0, 1), (0, 9), (9, 2), (0, 0)] {
        assert!(said(Begin::Reencrypt { from, to }).contains("do not hold"), "{from} {to}");
    }
    // `one` does not open keyslot 3.
    assert!(said(Begin::Reencrypt { from: 0, to: 3 }).contains("passphrase"));
    let wrong = secret("wrong");
    for begin in [Begin::Decrypt, Begin::Reencrypt { from: 0, to: 2 }] {
        let done = sim.luks_reencrypt(Path::new(DISK), NAME, with(&wrong), begin, &|_| true);
        assert!(matches!(done, Err(Error::WrongKey { .. })));
    }
    let done = sim.luks_reencrypt(Path::new(DISK), "other", with(&secret("one")), Begin::Decrypt, &|_| true);
    assert!(done.unwrap_err().to_string().contains("no active crypt device"));
    assert_eq!(sim.header(Path::new(DISK)).unwrap(), before);
    check(&sim, 1, "refused");
    // A job that is stopped at once has not started.
    assert!(matches!(run_from(&sim, Begin::Decrypt, |_| false), Ok(ReencryptionEnd::Interrupted)));
    assert_eq!(sim.header(Path::new(DISK)).unwrap(), before);
    // During a job the header takes no other change, and the device keeps its size.
    let asked = Mutex::new(0);
    let once = |_| std::mem::replace(&mut *asked.lock(), 1) == 0;
    assert!(matches!(run_from(&sim, Begin::Decrypt, once), Ok(ReencryptionEnd::Interrupted)));
    assert!(said(Begin::Decrypt).contains("another re-encryption job"));
    let changed = sim.luks_change(Path::new(DISK), None, &[HeaderChange::RemoveToken(1)]);
    assert!(changed.unwrap_err().to_string().contains("unfinished"));
    let key = open(&sim, None, "one").unwrap();
    assert!(sim.luks_resize(Path::new(DISK), NAME, &key, None).is_err());
    assert!(matches!(run_from(&sim, Begin::Resume, |_| true), Ok(ReencryptionEnd::Finished)));
    assert!(said(Begin::Decrypt).contains("not encrypted"));
}

/// A job stops on request and resumes at the same place, also on a device that was taken down and
/// opened again. With two volume keys, the passphrase must open both.
#[test]
fn a_job_stops_and_resumes() {
    for mode in MODES {
        let sim = prepared(Sim::builder().hot_zone(1).build(), mode);
        let mut from = begin(mode);
        let mut rounds = 0;
        loop {
            let asked = Mutex::new(0);
            let ended = run_from(&sim, from, |_| {
                let mut asked = asked.lock();
                *asked += 1;
                *asked < 3
            });
            check(&sim, 1, "stopped");
            if ended.unwrap() == ReencryptionEnd::Finished {
                break;
            }
            rounds += 1;
            from = Begin::Resume;
            let header = sim.header(Path::new(DISK)).unwrap();
            assert!(
                matches!(header.state, DataEncryption::Unfinished { mode: w, done } if w == mode && done > Bytes(0))
            );
            sim.dm_remove(NAME).unwrap();
            for wrong in ["wrong", ""] {
                assert!(matches!(open(&sim, Some(NAME), wrong), Err(Error::WrongKey { .. })));
            }
            let slot = if mode == ReencryptionMode::Reencrypt { 2 } else { 0 };
            let one = secret("one");
            sim.luks_open(Path::new(DISK), Some(NAME), Unlock { passphrase: &one, keyslot: Some(slot) }).unwrap();
            check(&sim, 1, "opened again");
        }
        assert_eq!(rounds, 6, "not one zone per round");
        check_finished(&sim, mode, "in the end");
    }
}

/// How a step is struck.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Strike {
    CutPower,
    Kill,
    FailBefore,
    FailAfter,
}

/// Runs the job again and again with one step struck.
fn strike_each(mode: ReencryptionMode, strike: Strike, pages: u64, judge: impl Fn(&Sim, &str)) -> u64 {
    let machine = |seed| prepared(Sim::builder().hot_zone(pages).seed(seed).build(), mode);
    let steps = {
        let sim = machine(0);
        let start = sim.steps();
        run(&sim, mode).unwrap();
        sim.steps() - start
    };
    for step in 0..steps {
        let sim = machine(step);
        let at = sim.steps() + step;
        match strike {
            Strike::CutPower => sim.faults().cut_power_at(at),
            Strike::Kill => sim.faults().kill_at(at),
            Strike::FailBefore => sim.faults().fail_at(at),
            Strike::FailAfter => sim.faults().fail_after(at),
        }
        assert!(run(&sim, mode).is_err());
        sim.faults().clear();
        judge(&sim, &format!("{mode:?}, {strike:?} at step {step} of {steps}"));
    }
    steps
}

#[test]
fn a_power_cut_at_every_step_loses_nothing() {
    for mode in MODES {
        let steps = strike_each(mode, Strike::CutPower, 1, |sim, at| {
            sim.power_on();
            open(sim, Some(NAME), "one").unwrap_or_else(|error| panic!("{at}: {error}"));
            check(sim, 1, at);
            go_on(sim, mode, at);
            check(sim, 1, at);
            check_finished(sim, mode, at);
        });
        println!("{mode:?}: {steps} steps");
        assert!(steps > 80, "{steps}");
    }
}

/// The device serves all data, also after the next power cut, whatever was written in between.
#[test]
fn writes_after_an_interruption_survive() {
    for mode in MODES {
        for strike in [Strike::Kill, Strike::FailAfter] {
            strike_each(mode, strike, 3, |sim, at| {
                check(sim, 1, at);
                // Writes go to every second place, and only to some of its sectors, so that old and
                // new sectors are neighbours.
                let some: Vec<u64> = PLACES.into_iter().step_by(2).collect();
                for place in &some {
                    write(sim, NAME, *place, &contents(*place, 2)).unwrap();
                }
                let check_mixed = |when: &str| {
                    for place in PLACES {
                        let stamp = if some.contains(&place) { 2 } else { 1 };
                        assert!(is_written(sim, place, stamp), "{at}: {when}: {place}");
                    }
                };
                check_mixed("at once");
                flush(sim, NAME);
                // Each unflushed write has either survived or not.
                let last = PLACES[1];
                write(sim, NAME, last, &contents(last, 3)).unwrap();
                sim.cut_power();
                sim.power_on();
                open(sim, Some(NAME), "one").unwrap_or_else(|error| panic!("{at}: {error}"));
                assert!(is_written(sim, last, 3) || is_written(sim, last, 1), "{at}");
                write(sim, NAME, last, &contents(last, 1)).unwrap();
                check_mixed("after a cut");
                go_on(sim, mode, at);
                check_mixed("in the end");
            });
        }
    }
}

/// After an interruption, each sector of an unflushed write has either survived or not.
#[test]
fn unflushed_writes_survive_or_are_lost() {
    for mode in MODES {
        for strike in [Strike::Kill, Strike::FailAfter] {
            strike_each(mode, strike, 2, |sim, at| {
                fill(sim, 2);
                sim.cut_power();
                sim.power_on();
                open(sim, Some(NAME), "one").unwrap_or_else(|error| panic!("{at}: {error}"));
                for place in PLACES {
                    let (old, new) = (contents(place, 1), contents(place, 2));
                    let found = read(sim, NAME, place, old.len());
                    let mut sectors = found.chunks(512).zip(old.chunks(512).zip(new.chunks(512)));
                    assert!(sectors.all(|(found, (old, new))| found == old || found == new), "{at}: {place}");
                }
            });
        }
    }
}

/// Does what the next process does: the device is active, and the job resumes.
#[test]
fn another_process_resumes_a_killed_job() {
    for mode in MODES {
        for strike in [Strike::Kill, Strike::FailBefore] {
            strike_each(mode, strike, 3, |sim, at| {
                let place = PLACES[3];
                write(sim, NAME, place, &contents(place, 2)).unwrap();
                go_on(sim, mode, at);
                assert!(is_written(sim, place, 2), "{at}");
                write(sim, NAME, place, &contents(place, 1)).unwrap();
                check(sim, 1, at);
                check_finished(sim, mode, at);
            });
        }
    }
}

/// Another thread writes between the steps of the job; all rounds together cover every step.
#[test]
fn others_write_at_every_step() {
    for mode in MODES {
        for round in 0..7 {
            let sim = prepared(Sim::builder().hot_zone(2).build(), mode);
            let mut gate = sim.delay(CallKind::LuksWrite, DISK);
            std::thread::scope(|scope| {
                let running = scope.spawn(|| run(&sim, mode));
                let mut stamp = 1;
                for turn in 0..60 {
                    assert!(gate.wait_for(1, LIMIT));
                    if turn % 7 == round {
                        stamp += 2;
                        fill(&sim, stamp);
                    }
                    check(&sim, stamp, &format!("{mode:?}, round {round}, turn {turn}"));
                    // Close the next gate before this one lets the job take one step.
                    let next = sim.delay(CallKind::LuksWrite, DISK);
                    drop(std::mem::replace(&mut gate, next));
                }
                drop(gate);
                assert!(matches!(running.join().unwrap(), Ok(ReencryptionEnd::Finished)));
                check(&sim, stamp, "in the end");
            });
            assert!(is_finished(&sim.header(Path::new(DISK)).unwrap(), mode));
        }
    }
}

/// Other threads read and write as fast as they can.
#[test]
fn other_io_is_not_held_up() {
    let sim = prepared(Sim::builder().build(), ReencryptionMode::Reencrypt);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| run(&sim, ReencryptionMode::Reencrypt));
        let mut stamp = 1;
        while !running.is_finished() {
            stamp = (stamp + 2) % 100;
            fill(&sim, stamp);
            check(&sim, stamp, "on the way");
        }
        assert!(matches!(running.join().unwrap(), Ok(ReencryptionEnd::Finished)));
        check(&sim, stamp, "in the end");
    });
}

/// Zeros that a power cut may still undo must not be skipped.
#[test]
fn unflushed_zeros_are_not_skipped() {
    for seed in 0..20 {
        let sim = prepared(Sim::builder().seed(seed).hot_zone(1).build(), ReencryptionMode::Reencrypt);
        write(&sim, NAME, 4096, &[0; 512]).unwrap();
        let at = sim.steps();
        run_from(&sim, begin(ReencryptionMode::Reencrypt), |progress| progress.done < Bytes(8192)).unwrap();
        assert!(sim.steps() > at);
        sim.cut_power();
        sim.power_on();
        open(&sim, Some(NAME), "one").unwrap();
        assert_eq!(read(&sim, NAME, 4096, 512), [0; 512]);
    }
}

/// The default number of steps is about the number of power cuts that the proofs use.
#[test]
fn a_filled_device_gives_a_thousand_steps() {
    let sim = prepared(Sim::builder().build(), ReencryptionMode::Encrypt);
    for page in 0..512_u64 {
        write(&sim, NAME, (1 << 32) + page * 8192, &contents(0, 5)).unwrap();
    }
    let start = sim.steps();
    run(&sim, ReencryptionMode::Encrypt).unwrap();
    let steps = sim.steps() - start;
    assert!((800..2000).contains(&steps), "{steps}");
    check(&sim, 1, "in the end");
    for page in 0..512_u64 {
        assert_eq!(read(&sim, NAME, (1 << 32) + page * 8192, 512), contents(0, 5));
    }
}

/// Data on a stack of devices is found as on a disk, at any offset.
#[test]
fn a_luks_device_can_lie_on_a_stack() {
    let sim = Sim::builder().hot_zone(1).build();
    let disk = number(&sim, "/dev/b");
    let table = [
        Line::linear(Sectors(0), Sectors(20_001), disk, Sectors(77)),
        Line::linear(Sectors(20_001), Sectors(40_000), disk, Sectors(500_003)),
    ];
    create(&sim, "below", &table);
    let below = sim.dm_node("below");
    let one = secret("one");
    let layout = luks::LAYOUT;
    let tokens = std::collections::BTreeMap::new();
    sim.luks_format(&below, &layout, FormatPurpose::New, &[new_keyslot(0, &one)], &tokens).unwrap();
    sim.luks_open(&below, Some(NAME), with(&one)).unwrap();
    let places = [0, 3000, 1_000_000, 3_000_000, 20_000_000];
    for place in places {
        write(&sim, NAME, place, b"some text").unwrap();
    }
    let ended = sim.luks_reencrypt(&below, NAME, with(&one), Begin::Decrypt, &|_| true);
    assert!(matches!(ended, Ok(ReencryptionEnd::Finished)), "{ended:?}");
    for place in places {
        assert_eq!(read(&sim, NAME, place, 9), b"some text", "{place}");
        assert_eq!(read(&sim, "below", DATA + place, 9), b"some text", "{place}");
    }
}
