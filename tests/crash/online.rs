//! Re-encryption jobs (encryption, a new volume key, decryption), struck at many moments.
//!
//! Each kind of strike hits a hundred steps of each job, spread evenly over the job. `CRASH_POINTS`
//! sets another number. The amount of data follows from it, so that a job has about twice as many
//! steps. `make crash-points` strikes a thousand steps.
//!
//! After each strike the pool is set up again, once the keys that a power cut removes are set
//! again, and an unfinished job is resumed. Then the pool must be completely in the state before,
//! if the job had not been decided, or completely in the state after. No data may be lost. The same
//! must hold again after a stop and a start, and after a reboot.
//!
//! The time of a new volume key is recorded when the job is complete. If the daemon ends just
//! before that, or between two devices of a version 1 pool, no time is recorded. The pool is then
//! in the state before except for volume keys, which no client sees, and a repeated request
//! replaces them again.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use stratisd::{
    base::units::Sectors,
    engine::{Result, dm_names::Role, encryption::NewBinding, metadata::MetadataVersion, ops},
    platform::{
        Platform, WriteStep,
        sim::{CallKind, Sim},
    },
};
use support::{
    bench::{Bench, GIB},
    keys::{by_key, by_tang, create},
    state::State,
};

use crate::{Strike, encryption_cases::set_keys, start_all, stop_all, unlock_all};

const V1: MetadataVersion = MetadataVersion::V1;
const V2: MetadataVersion = MetadataVersion::V2;

/// A re-encryption job to strike.
struct Online {
    name: &'static str,
    version: MetadataVersion,
    /// Whether the pool is encrypted before the job.
    encrypted: bool,
    act: fn(&mut Bench) -> Result<bool>,
}

const OPERATIONS: &[Online] = &[
    Online {
        name: "encrypt all data",
        version: V2,
        encrypted: false,
        act: |bench| {
            let bindings = vec![by_key(None, "k"), by_tang(None, "http://tang")];
            bench.run(ops::encrypt_pool(bench.id("p"), bindings))
        },
    },
    Online {
        name: "re-encrypt all data",
        version: V2,
        encrypted: true,
        act: |bench| bench.run(ops::reencrypt_pool(bench.id("p"))),
    },
    Online {
        name: "re-encrypt all data, version 1",
        version: V1,
        encrypted: true,
        act: |bench| bench.run(ops::reencrypt_pool(bench.id("p"))),
    },
    Online {
        name: "decrypt all data",
        version: V2,
        encrypted: true,
        act: |bench| bench.run(ops::decrypt_pool(bench.id("p"))),
    },
];

/// Patterns to look for on the disks. Plaintext of a filesystem has a sector full of its byte.
const MARKS: [(&str, u8); 2] = [("f", 0xa7), ("g", 0xb9)];
/// Where the pages in use begin in the first filesystem, and how far apart they are.
const PAGES_AT: u64 = 80 << 20;
const PAGES_APART: u64 = 1 << 16;

/// The number of steps to strike.
fn wanted() -> usize {
    std::env::var("CRASH_POINTS").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

/// The number of pages in use. The job handles each page separately, in about a dozen steps.
fn pages() -> u64 {
    wanted() as u64 / 6
}

fn page(number: u64) -> Vec<u8> {
    (0..4096_u64).map(|at| (number * 31 + at * 7 + at / 256) as u8).collect()
}

impl Online {
    /// The bindings before the job.
    fn bindings(&self) -> Vec<NewBinding> {
        match self.encrypted {
            true => vec![by_key(Some(1), "k"), by_tang(Some(2), "http://tang")],
            false => vec![],
        }
    }

    /// A pool with marks in two filesystems, and the number of the next step.
    fn prepared(&self, seed: u64) -> (Bench, u64) {
        let mut bench = Bench::start(Sim::builder().seed(seed).record().hot_zone(1).build());
        set_keys(&mut bench);
        create(&mut bench, self.version, "p", &["/dev/a", "/dev/b"], self.bindings()).expect("the pool can be created");
        bench.create_filesystems("p", &["f", "g"]).expect("the filesystems can be created");
        for (name, mark) in MARKS {
            bench.mark("p", name, mark);
        }
        let node = bench.thin_node(bench.id("p"), bench.filesystem("p", "f"));
        let pages: Vec<_> = (0..pages()).map(|number| (PAGES_AT + number * PAGES_APART, page(number))).collect();
        let writes = pages.iter().map(|(at, bytes)| WriteStep::At(*at, bytes)).chain([WriteStep::Flush]);
        bench.sim.write(&node, &writes.collect::<Vec<_>>()).expect("the machine runs");
        let first = bench.sim.steps();
        (bench, first)
    }

    /// The devices below the LUKS devices of the pool.
    fn luks_devices(&self, bench: &Bench) -> Vec<PathBuf> {
        match self.version {
            V1 => vec!["/dev/a".into(), "/dev/b".into()],
            V2 => vec![bench.sim.dm_node(&Role::Cache.name(bench.id("p")))],
        }
    }

    /// The number of LUKS devices with a new volume key. It is in other keyslots than the old one.
    fn replaced(&self, bench: &Bench) -> usize {
        let is_new = |path: &PathBuf| {
            let keyslots = bench.sim.header(path).expect("it is encrypted").keyslots;
            keyslots.iter().all(|keyslot| ![0, 1].contains(keyslot))
        };
        self.luks_devices(bench).iter().filter(|path| is_new(path)).count()
    }

    /// Starts or resumes the job.
    fn must_act(&self, bench: &mut Bench, at: &str) {
        (self.act)(bench).unwrap_or_else(|error| panic!("{at}: {}", error.sentence()));
    }

    fn reference(&self) -> Reference {
        let (bench, _) = self.prepared(1);
        let before = settled(bench);
        let (mut bench, first) = self.prepared(1);
        self.must_act(&mut bench, self.name);
        let trace = bench.sim.trace().into_iter().skip(usize::try_from(first).expect("step numbers are small"));
        let calls: Vec<CallKind> = trace.map(|step| step.call).collect();
        Reference { before, after: settled(bench), calls }
    }

    /// Checks what must hold in the end, whatever happened before. Returns whether the pool is in
    /// the state after.
    fn judge(&self, mut bench: Bench, reference: &Reference, may_be_before: bool, at: &str) -> bool {
        check_pages(&bench, at);
        check(&mut bench);
        let found = State::of(&bench);
        let is_after = found == reference.after;
        let undated = self.encrypted && found == reference.before && self.replaced(&bench) > 0;
        if self.encrypted && is_after && found.is_encrypted() {
            assert_eq!(self.replaced(&bench), self.luks_devices(&bench).len(), "{at}: not all have a new volume key");
        }
        assert!(
            is_after || (may_be_before || undated) && found == reference.before,
            "{at}:\nfound  {found:#?}\nbefore {:#?}\nafter  {:#?}",
            reference.before,
            reference.after
        );
        bench.check_nothing_left(at);
        stop_all(&mut bench, at);
        start_all(&mut bench, at);
        assert_eq!(State::of(&bench), found, "{at}: after a stop and a start");
        let mut bench = bench.reboot();
        unlock_all(&mut bench, &format!("{at}: after a reboot"));
        assert_eq!(State::of(&bench), found, "{at}: after a reboot");
        check_pages(&bench, &format!("{at}: after a reboot"));
        bench.check_nothing_left(at);
        if !is_after {
            self.must_act(&mut bench, &format!("{at}: again"));
            check(&mut bench);
            assert_eq!(State::of(&bench), reference.after, "{at}: again");
        }
        bench.create_filesystems("p", &["one-more"]).unwrap_or_else(|error| panic!("{at}: {}", error.sentence()));
        is_after || undated
    }
}

fn check_pages(bench: &Bench, at: &str) {
    let node = bench.thin_node(bench.id("p"), bench.filesystem("p", "f"));
    for number in 0..pages() {
        let found = bench.sim.read(&node, PAGES_AT + number * PAGES_APART, 4096).expect("the machine runs");
        assert!(found == page(number), "{at}: page {number} is not as it was");
    }
}

/// The job without a strike.
struct Reference {
    before: State,
    after: State,
    /// The steps of the job.
    calls: Vec<CallKind>,
}

/// Runs checks, which allocate the rest of the pool's space.
fn check(bench: &mut Bench) {
    let pool = bench.id("p");
    bench.run(ops::check_now(pool)).expect("the pool can be checked");
}

fn settled(mut bench: Bench) -> State {
    check(&mut bench);
    State::of(&bench)
}

/// Evenly spread numbers below `count`, one for each strike.
fn points(count: usize) -> impl Iterator<Item = usize> {
    let wanted = wanted().clamp(1, count);
    // Take the middle of each interval.
    (0..wanted).map(move |at| (2 * at + 1) * count / (2 * wanted))
}

/// The jobs to strike, each with its reference.
fn operations() -> impl Iterator<Item = (&'static Online, Reference)> {
    let part = std::env::var("CRASH_CASE").unwrap_or_default();
    let chosen = OPERATIONS.iter().filter(move |online| online.name.contains(&part));
    chosen.map(|online| (online, online.reference()))
}

#[test]
fn kills_during_a_reencryption_job_lose_nothing() {
    let mut total = 0;
    for (online, reference) in operations() {
        let count = reference.calls.len();
        let mut decided = None;
        for step in points(count) {
            let at = format!("{} killed at step {step} of {count}", online.name);
            let (mut bench, first) = online.prepared(1);
            bench.sim.faults().kill_at(first + step as u64);
            let answered = (online.act)(&mut bench).is_ok();
            bench.sim.faults().clear();
            let at = format!("{at}\n{}", tail(&bench, first));
            let mut bench = Bench::start(bench.sim);
            if bench.pool("p").is_none() {
                unlock_all(&mut bench, &at);
            }
            if online.judge(bench, &reference, !answered && decided.is_none(), &at) {
                decided.get_or_insert(step);
            }
            total += 1;
        }
        println!("{}: killed at {} of {count} steps; decided at {decided:?}", online.name, points(count).count());
    }
    println!("{total} kills of works on all data");
}

#[test]
fn power_cuts_during_a_reencryption_job_lose_nothing() {
    let mut total = 0;
    for (online, reference) in operations() {
        let count = reference.calls.len();
        let (mut olds, mut last_old) = (0, 0);
        let mut first_new = None;
        for step in points(count) {
            let at = format!("{} with a power cut at step {step} of {count}", online.name);
            // Seeds differ only in the loss of unflushed writes.
            let (mut bench, first) = online.prepared(1);
            bench.sim.faults().cut_power_at(first + step as u64);
            let answered = (online.act)(&mut bench).is_ok();
            bench.sim.faults().clear();
            bench.sim.cut_power();
            bench.sim.power_on();
            let at = format!("{at}\n{}", tail(&bench, first));
            let mut bench = Bench::start(bench.sim);
            unlock_all(&mut bench, &at);
            // A decision may be lost until it is flushed.
            let flushed = first_new.is_some_and(|new: usize| reference.calls[new..step].contains(&CallKind::Flush));
            match online.judge(bench, &reference, !answered && !flushed, &at) {
                true => drop(first_new.get_or_insert(step)),
                false => (olds, last_old) = (olds + 1, step),
            }
            total += 1;
        }
        let struck = points(count).count();
        println!("{}: power cut at {struck} of {count} steps; as before after {olds}, to step {last_old}", online.name);
    }
    println!("{total} power cuts during works on all data");
}

#[test]
fn faults_during_a_reencryption_job_lose_nothing() {
    let mut total = 0;
    for (online, reference) in operations() {
        let count = reference.calls.len();
        let (mut refused, mut unfinished) = (0, 0);
        let strikes = [Strike::FailBefore, Strike::FailAfter, Strike::Panic].into_iter().cycle();
        for (step, strike) in points(count).zip(strikes) {
            let at = format!("{} with {strike:?} at step {step} of {count}", online.name);
            let (mut bench, first) = online.prepared(1);
            strike.at(&bench.sim, first + step as u64);
            let done = catch_unwind(AssertUnwindSafe(|| (online.act)(&mut bench)));
            assert_eq!(bench.sim.faults().struck(), 1, "{at}");
            let at = format!("{at}\n{}", tail(&bench, first));
            let answered = matches!(done, Ok(Ok(_)));
            if matches!(strike, Strike::Panic) {
                stop_all(&mut bench, &at);
                start_all(&mut bench, &at);
            } else if State::of(&bench).is_at_work() {
                // A repeated request resumes the job.
                unfinished += 1;
                online.must_act(&mut bench, &format!("{at}: goes on"));
            }
            let is_after = online.judge(bench, &reference, !answered, &at);
            refused += u32::from(!is_after);
            total += 1;
        }
        let struck = points(count).count();
        println!(
            "{}: a fault at {struck} of {count} steps; {refused} as before, {unfinished} gone on with",
            online.name
        );
    }
    println!("{total} faults in works on all data");
}

/// The last steps, for a failure message.
fn tail(bench: &Bench, first: u64) -> String {
    let lines = bench.tail(first);
    let lines: Vec<&str> = lines.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}

/// The disks with a sector full of this byte.
fn disks_with(sim: &Sim, byte: u8) -> Vec<String> {
    let blank = Sim::builder().build().snapshot();
    let stored = blank.differences(&sim.snapshot());
    let holds = |path: &Path, ranges: &[std::ops::Range<u64>]| {
        let of = |range: &std::ops::Range<u64>| sim.durable(path, range.clone());
        ranges.iter().any(|range| of(range).chunks(512).any(|sector| sector.iter().all(|found| *found == byte)))
    };
    stored.iter().filter(|(path, ranges)| holds(path, ranges)).map(|(path, _)| path.display().to_string()).collect()
}

#[test]
fn no_plaintext_is_left_after_an_encryption() {
    for online in OPERATIONS {
        let (mut bench, _) = online.prepared(1);
        for (_, mark) in MARKS {
            assert_eq!(disks_with(&bench.sim, mark).is_empty(), online.encrypted, "{}: before", online.name);
        }
        online.must_act(&mut bench, online.name);
        for (_, mark) in MARKS {
            let found = disks_with(&bench.sim, mark);
            let is_clear = bench.pool("p").expect("the pool runs").encryption.is_none();
            assert_eq!(found.is_empty(), !is_clear, "{}: {found:?}", online.name);
        }
    }
}

/// To grow, a LUKS device needs the volume key, which the job has just made, replaced or dropped.
#[test]
fn a_pool_grows_after_a_reencryption_job() {
    for online in OPERATIONS {
        let mut bench = Bench::start(Sim::builder().seed(1).build());
        set_keys(&mut bench);
        bench.sim.add_disk(Path::new("/dev/small"), Sectors(4 * GIB.0)).expect("a disk can be plugged in");
        create(&mut bench, online.version, "p", &["/dev/small"], online.bindings()).expect("the pool can be created");
        bench.create_filesystems("p", &["f"]).expect("the filesystem can be created");
        check(&mut bench);
        online.must_act(&mut bench, online.name);
        check(&mut bench);
        let before = bench.pool("p").expect("the pool runs");
        assert!(before.no_alloc_space, "{}: all that there is has been handed out", online.name);
        let added = ops::add_data_devices(before.uuid, vec!["/dev/large".into()]);
        bench.run(added).unwrap_or_else(|error| panic!("{}: {}", online.name, error.sentence()));
        check(&mut bench);
        let after = bench.pool("p").expect("the pool runs");
        assert!(after.allocated > before.allocated, "{}: {:?}", online.name, after.restriction);
        bench.check_nothing_left(online.name);
    }
}
