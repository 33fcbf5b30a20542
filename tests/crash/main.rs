//! Every operation, with a fault at every step and a power cut at every step (promise P7).
//!
//! Each case is prepared on a fresh simulated machine and run once, which gives its number of steps
//! and its result. It is then run once for each step, with that step struck. Afterwards:
//!
//! - Success means the state after, an error means the state before. Nothing is half done or left
//!   over, in memory or on disk, as the next daemon and the next boot find it.
//! - After a kill, no call of the killed process takes effect any more. The next daemon finds the
//!   machine as the kill left it, and brings it to the state before or after.
//! - After a panic, the daemon undoes what it can. A stop and a start of the pool repair the rest.
//! - After a power cut, the pools are found in the state before or after; in the state after if the
//!   request was answered. Encrypted pools are found when they are started, once the keys that the
//!   power cut removed are set again.
//! - The next operation works.
//!
//! The tests print counts; `cargo test --test crash -- --nocapture` shows them.

mod cases;
mod encryption_cases;
mod growth_cases;
mod online;
mod pairs;
mod starts;

use std::panic::{AssertUnwindSafe, catch_unwind};

use cases::{CASES, Case};
use encryption_cases::ENCRYPTION_CASES;
use growth_cases::GROWTH_CASES;
use stratisd::{
    base::pool_ref::PoolRef,
    engine::{Result, dm_names::Role, metadata::MetadataVersion, ops},
    platform::{Platform, sim::Sim},
};
use support::{bench::Bench, state::State};

/// What happens before the state is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Look,
    /// Nothing. The operation creates several filesystems: all or none. If it is interrupted and so
    /// never answered, each filesystem exists completely or not at all.
    LookAtEach,
    /// Checks of the pools until nothing changes. The next check carries out in the kernel what a
    /// request has only recorded, and uses the space that a request added.
    Check,
    /// As [`Then::Check`]. The operation is itself a check, which does several things in sequence
    /// and undoes none of them, because recorded space of the thin pool may already be in use. So
    /// after an error the next check must reach the state after. After a kill or a power cut the
    /// state is the one before or the one after, even without a check.
    Forward,
    /// As [`Then::Forward`], except that each filesystem may be in the state before or in the state
    /// after.
    EachForward,
}

impl Then {
    fn is_forward(self) -> bool {
        matches!(self, Then::Forward | Then::EachForward)
    }

    /// Settles the machine after a start of the daemon. The start completes what an interrupted
    /// check has recorded; no other check is needed.
    fn settle_started(self, bench: Bench) -> Bench {
        if self.is_forward() { bench } else { self.settle(bench) }
    }

    fn settle(self, mut bench: Bench) -> Bench {
        if matches!(self, Then::Look | Then::LookAtEach) {
            return bench;
        }
        for _ in 0..CHECKS_MAX {
            let before = State::of(&bench);
            for pool in bench.names() {
                let id = bench.id(&pool);
                for chain in [ops::check_now(id), ops::check_filesystems_now(id)] {
                    bench.run(chain).unwrap_or_else(|error| panic!("the check afterwards: {}", error.sentence()));
                }
            }
            if State::of(&bench) == before {
                return bench;
            }
        }
        panic!("checks find something to do again and again");
    }

    /// Whether this state is allowed after a kill or a power cut.
    fn allows(self, found: &State, before: &State, after: &State) -> bool {
        match self {
            Then::EachForward => found.is_between(before, after),
            Then::LookAtEach => found.has_some_of(before, after),
            _ => found == before || found == after,
        }
    }
}

/// The number of checks that suffice to use all space of a small pool.
const CHECKS_MAX: u32 = 5;

/// A case with a pool of one version.
struct Variant {
    name: String,
    case: &'static Case,
    version: MetadataVersion,
}

impl Variant {
    /// Whether the pools of the case are encrypted.
    fn is_locked(&self) -> bool {
        ENCRYPTION_CASES.iter().chain(pairs::LOCKED).any(|case| std::ptr::eq(case, self.case))
    }

    /// Starts another daemon.
    fn restart(&self, bench: Bench) -> Bench {
        Bench::start(bench.sim)
    }

    /// Cuts the power, boots, and unlocks the pools as a user would.
    fn reboot(&self, bench: Bench) -> Bench {
        let mut bench = bench.reboot();
        if self.is_locked() {
            unlock_all(&mut bench, "after a reboot");
        }
        bench
    }

    fn act(&self, bench: &mut Bench) -> Result<()> {
        (self.case.act)(bench)
    }

    /// As [`Variant::act`], which must succeed.
    fn must_act(&self, bench: &mut Bench, at: &str) {
        self.act(bench).unwrap_or_else(|error| panic!("{at}: {}", error.sentence()));
    }

    fn must_go_on(&self, bench: &mut Bench, at: &str) {
        (self.case.next)(bench).unwrap_or_else(|error| panic!("{at}: next: {}", error.sentence()));
    }
}

/// The cases to strike. `CRASH_CASE` selects those whose name contains it.
fn cases() -> impl Iterator<Item = (Variant, Then)> {
    let part = std::env::var("CRASH_CASE").unwrap_or_default();
    let variants = CASES.iter().chain(GROWTH_CASES).chain(ENCRYPTION_CASES).flat_map(|case| {
        case.versions.iter().map(move |version| {
            let name = match version {
                MetadataVersion::V1 => format!("{}, version 1", case.name),
                MetadataVersion::V2 => case.name.to_owned(),
            };
            (Variant { name, case, version: *version }, case.then)
        })
    });
    variants.filter(move |(variant, _)| variant.name.contains(&part))
}

/// The kinds of strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strike {
    /// The step fails without effect.
    FailBefore,
    /// The step takes effect and reports a failure.
    FailAfter,
    /// The daemon is killed after the step.
    Kill,
    /// The step panics.
    Panic,
}

impl Strike {
    /// Plans the strike of the step with this number.
    fn at(self, sim: &Sim, step: u64) {
        match self {
            Strike::FailBefore => sim.faults().fail_at(step),
            Strike::FailAfter => sim.faults().fail_after(step),
            Strike::Kill => sim.faults().kill_at(step),
            Strike::Panic => sim.faults().panic_at(step),
        }
    }
}

/// A prepared machine, and the number of its next step.
fn prepared(case: &Variant, seed: u64) -> (Bench, u64) {
    let mut bench = Bench::start(Sim::builder().seed(seed).record().build());
    (case.case.prepare)(&mut bench, case.version);
    let steps = bench.sim.steps();
    (bench, steps)
}

/// The case without a strike.
struct Reference {
    before: State,
    after: State,
    /// The number of steps of the case.
    steps: u64,
}

fn reference(case: &Variant, then: Then, seed: u64) -> Reference {
    let (mut bench, start) = prepared(case, seed);
    let before = State::of(&bench);
    let reading = bench.sim.steps();
    case.must_act(&mut bench, &case.name);
    let steps = bench.sim.steps() - reading;
    assert!(steps > 0, "{}: nothing is done from step {start} on", case.name);
    let bench = then.settle(bench);
    let after = State::of(&bench);
    bench.check_nothing_left(&case.name);
    Reference { before, after, steps }
}

/// The states before and after as another daemon finds them. They differ from the states in memory:
/// the next start makes some changes, and takes down leftovers.
fn found_by_another(case: &Variant, then: Then, seed: u64, begin: fn(&Variant, Bench) -> Bench) -> (State, State) {
    let before = then.settle_started(begin(case, prepared(case, seed).0));
    let (mut bench, _) = prepared(case, seed);
    case.must_act(&mut bench, &case.name);
    let after = then.settle_started(begin(case, bench));
    after.check_nothing_left(&case.name);
    (State::of(&before), State::of(&after))
}

/// A machine after a strike, the number of its first step, and the result of the request.
fn struck(case: &Variant, strike: Strike, step: u64) -> (Bench, u64, Result<()>) {
    let (mut bench, start) = prepared(case, 1);
    strike.at(&bench.sim, start + step);
    let result = case.act(&mut bench);
    bench.sim.faults().clear();
    (bench, start, result)
}

/// A machine after a kill, the number of its first step, and whether the request was answered.
fn killed(case: &Variant, step: u64) -> (Bench, u64, bool) {
    let (bench, start, result) = struck(case, Strike::Kill, step);
    if step.is_multiple_of(2) {
        unmount_private(&bench);
    }
    (bench, start, result.is_ok())
}

/// Whether the device of a metadata volume is suspended.
fn is_held(bench: &Bench, mount: &str) -> bool {
    let pool = mount.strip_prefix(".mdv-").and_then(|uuid| uuid.parse().ok());
    let device = pool.map(|pool| bench.sim.dm_find(&Role::Mdv.name(pool)).expect("the machine runs"));
    device.flatten().is_some_and(|device| device.suspended)
}

/// Unmounts the private mounts. They end with the last process that sees them, and a child may
/// outlive the daemon.
fn unmount_private(bench: &Bench) {
    let mounts = bench.sim.leftovers().mounts;
    let private = mounts.iter().filter_map(|at| at.strip_prefix(Sim::private_directory()).ok()?.to_str());
    // A mount of a suspended device stays until the device is resumed.
    let free = private.filter(|at| !is_held(bench, at));
    free.for_each(|at| bench.sim.unmount(at).expect("a private mount can be unmounted"));
}

#[test]
fn faults_leave_the_state_before_or_after() {
    let mut total = 0;
    for (case, then) in cases() {
        let case = &case;
        let Reference { before, after, steps } = reference(case, then, 1);
        let found_before = |begin| found_by_another(case, then, 1, begin).0;
        let (restarted, rebooted) = (found_before(Variant::restart), found_before(Variant::reboot));
        for strike in [Strike::FailBefore, Strike::FailAfter] {
            for step in 0..steps {
                let at = format!("{} with {strike:?} at step {step} of {steps}", case.name);
                let (bench, start, result) = struck(case, strike, step);
                let trace = bench.tail(start);
                let mut bench = then.settle(bench);
                let found = State::of(&bench);
                let expected = if result.is_ok() || then.is_forward() { &after } else { &before };
                let said = result.as_ref().map_err(|error| error.sentence());
                assert_eq!(&found, expected, "{at}: {said:?}\n{trace}");
                bench.check_nothing_left(&at);
                if result.is_err() {
                    // The disks are in the state before, too. To see that, another machine with the
                    // same history loses its daemon and then its power.
                    let as_before = |bench: Bench, before: &State, when: &str| {
                        let bench = then.settle(bench);
                        let expected = if then.is_forward() { &after } else { before };
                        assert_eq!(&State::of(&bench), expected, "{at}: {when}:\n{trace}");
                        bench
                    };
                    let other = Bench::start(struck(case, strike, step).0.sim);
                    let other = as_before(other, &restarted, "after a restart");
                    if then != Then::EachForward {
                        // Nothing is mounted after a reboot, so the check changes no filesystem.
                        as_before(case.reboot(other), &rebooted, "after a reboot");
                    }
                    // The same operation succeeds when it is repeated.
                    case.must_act(&mut bench, &format!("{at}: again"));
                    bench = then.settle(bench);
                    assert_eq!(State::of(&bench), after, "{at}: again");
                }
                // A daemon that starts now adopts the active devices and sees the same state.
                let bench = then.settle(Bench::start(bench.sim));
                assert_eq!(State::of(&bench), after, "{at}: after a restart of the daemon");
                total += 1;
            }
        }
        println!("{}: {steps} steps, each struck twice", case.name);
    }
    println!("{total} faults injected");
}

#[test]
fn kills_leave_the_state_before_or_after() {
    let mut total = 0;
    let mut olds = 0;
    for (case, then) in cases() {
        let case = &case;
        let Reference { after: at_once, steps, .. } = reference(case, then, 1);
        let (before, after) = found_by_another(case, then, 1, Variant::restart);
        let opened = case.is_locked().then(|| found_by_another(case, then, 1, Variant::reboot).0);
        for step in 0..=steps {
            let at = format!("{} killed at step {step} of {steps}", case.name);
            let (bench, start, answered) = killed(case, step);
            let trace = bench.tail(start);
            let mut bench = then.settle_started(Bench::start(bench.sim));
            let mut found = State::of(&bench);
            let mut is_opened = false;
            if case.is_locked() && !answered && found != before && found != after {
                // Locked pools stay locked until a user unlocks them.
                unlock_all(&mut bench, &at);
                found = State::of(&bench);
                // This is the state before, but unlocked: the start set the pool up as recorded.
                if opened.as_ref() == Some(&found) {
                    found = before.clone();
                    is_opened = true;
                }
            }
            let expected = if answered { found == after } else { then.allows(&found, &before, &after) };
            assert!(expected, "{at}:\nfound  {found:#?}\nbefore {before:#?}\nafter  {after:#?}\n{trace}");
            bench.check_nothing_left(&at);
            if then.is_forward() {
                bench = then.settle(bench);
                assert_eq!(State::of(&bench), at_once, "{at}: after a check");
            }
            if found == before && before != after {
                olds += 1;
                if is_opened && before.runs_nothing() {
                    // The pool has already been started. Repeat the kill, so that the case can
                    // start it.
                    bench = killed(case, step).0;
                    bench = Bench::start(bench.sim);
                }
                case.must_act(&mut bench, &format!("{at}: again"));
                bench = then.settle(bench);
                assert_eq!(State::of(&bench), at_once, "{at}: again");
            }
            case.must_go_on(&mut bench, &at);
            total += 1;
        }
        println!("{}: killed at each of {steps} steps", case.name);
    }
    println!("{total} kills; {olds} left the state before, the others that after");
    if std::env::var_os("CRASH_CASE").is_none() {
        assert!(olds > 0 && olds < total, "kills that always leave the same state prove nothing");
    }
}

#[test]
fn power_cuts_leave_the_state_before_or_after() {
    let seeds: u64 = std::env::var("CRASH_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let mut total = 0;
    let mut olds = 0_u32;
    for (case, then) in cases() {
        let case = &case;
        for seed in 1..=seeds {
            let Reference { before: unsettled, after: at_once, steps } = reference(case, then, seed);
            let (before, after) = found_by_another(case, then, seed, Variant::reboot);
            for step in 0..=steps {
                let at = format!("{} with a power cut at step {step} of {steps}, seed {seed}", case.name);
                let (mut bench, start) = prepared(case, seed);
                bench.sim.faults().cut_power_at(start + step);
                let result = case.act(&mut bench);
                bench.sim.cut_power();
                bench.sim.faults().clear();
                bench.sim.power_on();
                let trace = bench.tail(start);
                let mut bench = Bench::start(bench.sim);
                if case.is_locked() {
                    unlock_all(&mut bench, &format!("{at}\n{trace}"));
                }
                let mut bench = then.settle_started(bench);
                let found = State::of(&bench);
                match result {
                    Ok(()) => assert_eq!(found, after, "{at}: the request had been answered\n{trace}"),
                    Err(_) => assert!(
                        then.allows(&found, &before, &after),
                        "{at}:\nfound  {found:#?}\nbefore {before:#?}\nafter  {after:#?}\n{trace}"
                    ),
                }
                bench.check_nothing_left(&at);
                olds += u32::from(found == before && before != after);
                // Except when a start has carried out the revert that the case cancels.
                if found == before && before != after && before == unsettled {
                    case.must_act(&mut bench, &format!("{at}: again"));
                    bench = then.settle(bench);
                    assert_eq!(State::of(&bench), at_once, "{at}: again");
                }
                case.must_go_on(&mut bench, &at);
                total += 1;
            }
        }
        println!("{}: power cut at every step, {seeds} seeds", case.name);
    }
    println!("{total} power cuts; {olds} left the state before, the others that after");
    if std::env::var_os("CRASH_CASE").is_none() {
        assert!(olds > 0 && olds < total, "cuts that always leave the same state prove nothing");
    }
}

/// Sets all keys and starts all stopped pools.
fn unlock_all(bench: &mut Bench, at: &str) {
    encryption_cases::set_keys(bench);
    start_all(bench, at);
}

/// Starts all stopped pools. A pool that proves incomplete or destroyed once it is unlocked must
/// disappear from the list.
fn start_all(bench: &mut Bench, at: &str) {
    for pool in bench.stopped().list().iter() {
        let is_locked = pool.encryption.is_some() || pool.features.is_some_and(|features| features.encryption);
        let unlock = if is_locked { ops::UnlockOptions::any() } else { ops::UnlockOptions::default() };
        let started = ops::start_pool(PoolRef::Uuid(pool.uuid), unlock, ops::CacheTier::Keep);
        if let Err(error) = bench.run(started) {
            let is_known = bench.stopped().list().iter().any(|known| known.uuid == pool.uuid);
            assert!(!is_known, "{at}: start: {}", error.sentence());
        }
    }
}

/// Stops all pools, and takes down the active leftovers of stopped pools. Unmounts the filesystems
/// first, as a user would.
fn stop_all(bench: &mut Bench, at: &str) {
    let mounts = bench.sim.leftovers().mounts;
    for mount in mounts.iter().filter(|mount| mount.starts_with("/mnt")) {
        bench.sim.unmount_user(mount).expect("it is mounted");
    }
    let stopped = bench.stopped().list().iter().filter_map(|pool| Some(pool.name.as_ref()?.to_string())).collect();
    for pool in [bench.names(), stopped].concat() {
        let stopped = bench.stop_pool(&pool).unwrap_or_else(|error| panic!("{at}: stop: {}", error.sentence()));
        assert!(!matches!(stopped, ops::StopOutcome::Partly(..)), "{at}: {stopped:?}");
    }
    let up = bench.sim.leftovers().devices;
    assert!(up.is_empty(), "{at}: up of stopped pools: {up:?}");
}

/// Found in review: after a panic, the effects of earlier steps stayed on the machine, unknown to
/// the daemon.
#[test]
fn panics_are_repaired_by_stopping_and_starting() {
    let mut total = 0;
    let mut olds = 0;
    for (case, then) in cases() {
        let case = &case;
        let Reference { steps, .. } = reference(case, then, 1);
        let start_again = |mut bench: Bench, at: &str| {
            stop_all(&mut bench, at);
            start_all(&mut bench, at);
            then.settle(bench)
        };
        let before = State::of(&start_again(prepared(case, 1).0, &case.name));
        let after = {
            let (mut bench, _) = prepared(case, 1);
            case.must_act(&mut bench, &case.name);
            State::of(&start_again(bench, &case.name))
        };
        for step in 0..steps {
            let at = format!("{} with a panic at step {step} of {steps}", case.name);
            let (mut bench, start) = prepared(case, 1);
            bench.sim.faults().panic_at(start + step);
            // A panic in a parallel part ends only that part.
            let _ = catch_unwind(AssertUnwindSafe(|| case.act(&mut bench)));
            assert_eq!(bench.sim.faults().struck(), 1, "{at}");
            let trace = bench.tail(start);
            let bench = start_again(bench, &format!("{at}\n{trace}"));
            let found = State::of(&bench);
            assert!(
                then.allows(&found, &before, &after),
                "{at}:\nfound  {found:#?}\nbefore {before:#?}\nafter  {after:#?}\n{trace}"
            );
            bench.check_nothing_left(&at);
            olds += u32::from(found == before && before != after);
            total += 1;
        }
        println!("{}: panicked at each of {steps} steps", case.name);
    }
    println!("{total} panics; {olds} left the state before, the others that after");
}
