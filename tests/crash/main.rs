//! Every operation, with a fault at every step and a power cut at every step (promise P7).
//!
//! Each case is prepared on a fresh simulated machine, run once to learn how many steps it takes and what its result is, and
//! then run again and again with one step struck. Afterwards:
//!
//! - success means the state after, an error means the state before: nothing half done, nothing left over, in memory and, as
//!   the next daemon and the next boot find it, on disk;
//! - after a kill, when nothing of the process has an effect any more, the next daemon finds the machine as it was left and makes
//!   the state before or after of it;
//! - after a power cut the pools are found again in the state before or after, and after if the request was answered;
//! - the next operation works.
//!
//! Counts are printed; `cargo test --test crash -- --nocapture` shows them.

// Shared with other tests, each of which uses a part of it.
#[allow(dead_code)]
#[path = "../engine/bench.rs"]
mod bench;
mod cases;
mod growth_cases;
mod state;

use bench::Bench;
use cases::{CASES, Case};
use growth_cases::GROWTH_CASES;
use state::State;
use stratisd::{
    engine::{Result, dm_names::Role, ops},
    platform::{Platform, sim::Sim},
};

/// What is done before the state is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Look,
    /// Checks of the pools, as many as change something. What such a request has recorded and could not give to the kernel is
    /// given by the next check; and the space that it has brought is used by checks.
    Check,
    /// As with [`Then::Check`]. The operation is a check itself, which does several things one after the other and takes none
    /// of them back: space that is recorded as the thin pool's may be in use by then. So after an error the next check
    /// must make the state after of it. After a kill or a power cut the state is the one before or the one after also
    /// without that.
    Forward,
    /// As with [`Then::Forward`], but the things are filesystems, of which each is as before or as after.
    EachForward,
}

impl Then {
    fn is_forward(self) -> bool {
        matches!(self, Then::Forward | Then::EachForward)
    }

    /// After a start of the daemon. What a check that was cut short has recorded is not left to the next check then.
    fn settle_started(self, bench: Bench) -> Bench {
        if self.is_forward() { bench } else { self.settle(bench) }
    }

    fn settle(self, mut bench: Bench) -> Bench {
        if self == Then::Look {
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

    /// Whether a state that was found after a kill or a power cut is right.
    fn allows(self, found: &State, before: &State, after: &State) -> bool {
        match self {
            Then::EachForward => found.is_between(before, after),
            _ => found == before || found == after,
        }
    }
}

/// More checks in a row than this are not needed to use all of a small pool's space.
const CHECKS_MAX: u32 = 5;

/// The cases that are to be struck.
fn cases() -> impl Iterator<Item = (&'static Case, Then)> {
    let all = CASES.iter().map(|case| (case, Then::Look)).chain(GROWTH_CASES.iter().map(|(then, case)| (case, *then)));
    all.filter(|(case, _)| chosen(case))
}

/// How a step is struck.
#[derive(Debug, Clone, Copy)]
enum Strike {
    /// It fails and has no effect.
    FailBefore,
    /// It takes effect, and is said to have failed.
    FailAfter,
}

/// A prepared machine, and the number of its next step.
fn prepared(case: &Case, seed: u64) -> (Bench, u64) {
    let mut bench = Bench::start(Sim::builder().seed(seed).record().build());
    (case.prepare)(&mut bench);
    let steps = bench.sim.steps();
    (bench, steps)
}

/// Cases can be chosen by a part of their name, to look at one.
fn chosen(case: &Case) -> bool {
    std::env::var("CRASH_CASE").map_or(true, |part| case.name.contains(&part))
}

/// What the case does when nothing goes wrong.
struct Reference {
    before: State,
    after: State,
    /// How many steps that takes.
    steps: u64,
}

fn reference(case: &Case, then: Then, seed: u64) -> Reference {
    let (mut bench, start) = prepared(case, seed);
    let before = State::of(&bench);
    let reading = bench.sim.steps();
    (case.act)(&mut bench).unwrap_or_else(|error| panic!("{}: {}", case.name, error.sentence()));
    let steps = bench.sim.steps() - reading;
    assert!(steps > 0, "{}: nothing is done from step {start} on", case.name);
    let bench = then.settle(bench);
    let after = State::of(&bench);
    bench.check_nothing_left(case.name);
    Reference { before, after, steps }
}

/// The states before and after as another daemon finds them: some orders are carried out at the next start, and what a
/// daemon has left up it takes down.
fn found_by_another(case: &Case, then: Then, seed: u64, begin: fn(Bench) -> Bench) -> (State, State) {
    let before = then.settle_started(begin(prepared(case, seed).0));
    let (mut bench, _) = prepared(case, seed);
    (case.act)(&mut bench).unwrap_or_else(|error| panic!("{}: {}", case.name, error.sentence()));
    let after = then.settle_started(begin(bench));
    after.check_nothing_left(case.name);
    (State::of(&before), State::of(&after))
}

/// A machine on which a step of the case was struck, the number of its first step, and what the request said.
fn struck(case: &Case, strike: Strike, step: u64) -> (Bench, u64, Result<()>) {
    let (mut bench, start) = prepared(case, 1);
    match strike {
        Strike::FailBefore => bench.sim.faults().fail_at(start + step),
        Strike::FailAfter => bench.sim.faults().fail_after(start + step),
    }
    let result = (case.act)(&mut bench);
    bench.sim.faults().clear();
    (bench, start, result)
}

/// Whether the device of a metadata volume is suspended.
fn is_held(bench: &Bench, mount: &str) -> bool {
    let pool = mount.strip_prefix(".mdv-").and_then(|uuid| uuid.parse().ok());
    let device = pool.map(|pool| bench.sim.dm_find(&Role::Mdv.name(pool)).expect("the machine runs"));
    device.flatten().is_some_and(|device| device.suspended)
}

#[test]
fn a_fault_at_every_step_leaves_the_state_before_or_after() {
    let mut total = 0;
    for (case, then) in cases() {
        let Reference { before, after, steps } = reference(case, then, 1);
        let found_before = |begin| found_by_another(case, then, 1, begin).0;
        let (restarted, rebooted) = (found_before(|bench| Bench::start(bench.sim)), found_before(Bench::reboot));
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
                    // On disk it is as before, too: the same done on another machine, whose daemon and then power go.
                    let as_before = |bench: Bench, before: &State, when: &str| {
                        let bench = then.settle(bench);
                        let expected = if then.is_forward() { &after } else { before };
                        assert_eq!(&State::of(&bench), expected, "{at}: {when}:\n{trace}");
                        bench
                    };
                    let other = Bench::start(struck(case, strike, step).0.sim);
                    let other = as_before(other, &restarted, "after a restart");
                    if then != Then::EachForward {
                        // Nothing is mounted after it, so of filesystems nothing is done.
                        as_before(other.reboot(), &rebooted, "after a reboot");
                    }
                    // The next operation works: the same again.
                    let again = (case.act)(&mut bench);
                    again.unwrap_or_else(|error| panic!("{at}: again: {}", error.sentence()));
                    bench = then.settle(bench);
                    assert_eq!(State::of(&bench), after, "{at}: again");
                }
                // A daemon that starts now adopts what is up and sees the same.
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
fn a_kill_at_every_step_leaves_the_state_before_or_after() {
    let mut total = 0;
    let mut olds = 0;
    for (case, then) in cases() {
        let Reference { after: at_once, steps, .. } = reference(case, then, 1);
        let (before, after) = found_by_another(case, then, 1, |bench| Bench::start(bench.sim));
        for step in 0..=steps {
            let at = format!("{} killed at step {step} of {steps}", case.name);
            let (mut bench, start) = prepared(case, 1);
            bench.sim.faults().kill_at(start + step);
            let answered = (case.act)(&mut bench).is_ok();
            bench.sim.faults().clear();
            if step % 2 == 0 {
                // The private mounts go with the last process that sees them; a child may outlive the daemon.
                let mounts = bench.sim.leftovers().mounts;
                let private = mounts.iter().filter_map(|at| at.strip_prefix(Sim::private_directory()).ok()?.to_str());
                // One on a device that is held still stays until that goes on.
                let free = private.filter(|at| !is_held(&bench, at));
                free.for_each(|at| bench.sim.unmount(at).expect("a private mount can be unmounted"));
            }
            let trace = bench.tail(start);
            let mut bench = then.settle_started(Bench::start(bench.sim));
            let found = State::of(&bench);
            let expected = if answered { found == after } else { then.allows(&found, &before, &after) };
            assert!(expected, "{at}:\nfound  {found:#?}\nbefore {before:#?}\nafter  {after:#?}\n{trace}");
            bench.check_nothing_left(&at);
            if then.is_forward() {
                bench = then.settle(bench);
                assert_eq!(State::of(&bench), at_once, "{at}: after a check");
            }
            if found == before && before != after {
                olds += 1;
                (case.act)(&mut bench).unwrap_or_else(|error| panic!("{at}: again: {}\n{trace}", error.sentence()));
                bench = then.settle(bench);
                assert_eq!(State::of(&bench), at_once, "{at}: again");
            }
            (case.next)(&mut bench).unwrap_or_else(|error| panic!("{at}: next: {}\n{trace}", error.sentence()));
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
fn a_power_cut_at_every_step_leaves_the_state_before_or_after() {
    let seeds: u64 = std::env::var("CRASH_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(3);
    let mut total = 0;
    let mut olds = 0_u32;
    for (case, then) in cases() {
        for seed in 1..=seeds {
            let Reference { before: unsettled, after: at_once, steps } = reference(case, then, seed);
            let (before, after) = found_by_another(case, then, seed, Bench::reboot);
            for step in 0..=steps {
                let at = format!("{} with a power cut at step {step} of {steps}, seed {seed}", case.name);
                let (mut bench, start) = prepared(case, seed);
                bench.sim.faults().cut_power_at(start + step);
                let result = (case.act)(&mut bench);
                bench.sim.cut_power();
                bench.sim.faults().clear();
                bench.sim.power_on();
                let trace = bench.tail(start);
                let mut bench = then.settle_started(Bench::start(bench.sim));
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
                // Unless a start has carried out the order that is to be taken back.
                if found == before && before != after && before == unsettled {
                    (case.act)(&mut bench).unwrap_or_else(|error| panic!("{at}: again: {}\n{trace}", error.sentence()));
                    bench = then.settle(bench);
                    assert_eq!(State::of(&bench), at_once, "{at}: again");
                }
                (case.next)(&mut bench).unwrap_or_else(|error| panic!("{at}: next: {}\n{trace}", error.sentence()));
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
