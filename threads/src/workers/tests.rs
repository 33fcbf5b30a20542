//! What this module promises, shown.

use std::{num::NonZeroUsize, time::Duration};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::{Class, Workers};
use crate::group::Group;

/// Long enough for any machine; reached only by a test that has failed.
const LIMIT: Duration = Duration::from_secs(60);

fn start(count: usize) -> (Group, Workers) {
    let group = Group::new(&["worker-*", "long-*"]);
    let workers = Workers::start(&group, NonZeroUsize::new(count).unwrap()).unwrap();
    (group, workers)
}

/// Jobs that say that they have started, and stay until the gate is dropped.
struct Gated {
    started: (Sender<usize>, Receiver<usize>),
    gate: Receiver<()>,
}

impl Gated {
    fn new() -> (Self, Sender<()>) {
        let (keep, gate) = bounded(0);
        (Self { started: unbounded(), gate }, keep)
    }

    fn submit(&self, workers: &Workers, class: Class, number: usize) {
        let (started, gate) = (self.started.0.clone(), self.gate.clone());
        let job = Box::new(move || {
            started.send(number).unwrap();
            assert!(gate.recv().is_err(), "nothing is ever sent through the gate");
        });
        assert!(workers.submit(class, job).is_ok());
    }

    fn next(&self) -> usize {
        self.started.1.recv_timeout(LIMIT).unwrap()
    }
}

/// With `count` workers, `slow_max` slow jobs run at once and all others are free for quick ones.
fn check_slow_share(count: usize, slow_max: usize) {
    let (group, workers) = start(count);
    let (slow, slow_gate) = Gated::new();
    let (quick, quick_gate) = Gated::new();
    // More slow jobs than workers, and all of them before the first quick one.
    (0..2 * count).for_each(|number| slow.submit(&workers, Class::Slow, number));
    (slow_max..count).for_each(|number| quick.submit(&workers, Class::Quick, number));
    (0..slow_max).for_each(|_| assert!(slow.next() < slow_max));
    (slow_max..count).for_each(|_| assert!(quick.next() >= slow_max));
    // Every worker is at one of the jobs seen now, so no further slow job can be running.
    assert!(slow.started.1.is_empty());

    // With the gates open all the rest come through.
    drop((slow_gate, quick_gate));
    (slow_max..2 * count).for_each(|_| assert!(slow.next() >= slow_max));
    workers.close();
    group.join(&["worker-*"], LIMIT).unwrap();
}

#[test]
fn long_jobs_have_threads_of_their_own() {
    let (group, workers) = start(1);
    let (quick, quick_gate) = Gated::new();
    quick.submit(&workers, Class::Quick, 0);
    assert_eq!(quick.next(), 0, "the only worker is busy");
    let (long, long_gate) = Gated::new();
    for number in 0..3 {
        long.submit(&workers, Class::Long, number);
        assert_eq!(long.next(), number);
    }
    drop((long_gate, quick_gate));
    // One that panics does not take its thread along. Those that are free are used again.
    for _ in 0..10 {
        assert!(workers.submit(Class::Long, Box::new(|| panic!("a mistake"))).is_ok());
    }
    let (done, ends) = unbounded();
    assert!(workers.submit(Class::Long, Box::new(move || done.send(()).unwrap())).is_ok());
    ends.recv_timeout(LIMIT).unwrap();
    workers.close();
    group.join(&["worker-*", "long-*"], LIMIT).unwrap();
}

#[test]
fn a_long_job_without_a_thread_is_a_slow_one() {
    // No thread of that name may be started.
    let group = Group::new(&["worker-*"]);
    let workers = Workers::start(&group, NonZeroUsize::MIN).unwrap();
    let (done, ends) = unbounded();
    assert!(workers.submit(Class::Long, Box::new(move || done.send(()).unwrap())).is_ok());
    ends.recv_timeout(LIMIT).unwrap();
    workers.close();
    group.join(&["worker-*"], LIMIT).unwrap();
}

#[test]
fn slow_jobs_hold_at_most_half() {
    check_slow_share(2, 1);
    check_slow_share(3, 1);
    check_slow_share(4, 2);
    check_slow_share(7, 3);
}

#[test]
fn a_single_worker_runs_slow_jobs_too() {
    check_slow_share(1, 1);
}

#[test]
fn the_end_of_a_slow_job_starts_the_next_though_its_worker_takes_a_quick_one() {
    let (group, workers) = start(2);
    let (first, first_gate) = Gated::new();
    let (quick, quick_gate) = Gated::new();
    let (second, second_gate) = Gated::new();
    first.submit(&workers, Class::Slow, 0);
    quick.submit(&workers, Class::Quick, 1);
    assert_eq!((first.next(), quick.next()), (0, 1));
    // Both workers are busy. An older quick job and a slow one wait; the first worker to be free takes the quick one.
    quick.submit(&workers, Class::Quick, 2);
    second.submit(&workers, Class::Slow, 3);
    drop(first_gate);
    assert_eq!(quick.next(), 2);
    drop(quick_gate);
    assert_eq!(second.next(), 3);
    drop(second_gate);
    workers.close();
    group.join(&["worker-*"], LIMIT).unwrap();
}

#[test]
fn jobs_start_in_the_order_of_submission() {
    let (group, workers) = start(1);
    let (jobs, gate) = Gated::new();
    drop(gate);
    for number in 0..100 {
        jobs.submit(&workers, if number % 3 == 0 { Class::Slow } else { Class::Quick }, number);
    }
    (0..100).for_each(|number| assert_eq!(jobs.next(), number));
    workers.close();
    group.join(&["worker-*"], LIMIT).unwrap();
}

#[test]
fn a_worker_outlives_a_panic_and_a_slow_panic_frees_its_place() {
    let (group, workers) = start(1);
    for class in [Class::Slow, Class::Quick, Class::Slow] {
        assert!(workers.submit(class, Box::new(|| panic!("planned"))).is_ok());
    }
    let (after, gate) = Gated::new();
    drop(gate);
    after.submit(&workers, Class::Slow, 7);
    assert_eq!(after.next(), 7);
    workers.close();
    group.join(&["worker-*"], LIMIT).unwrap();
}

#[test]
fn closing_runs_what_is_queued_and_hands_back_what_comes_later() {
    let (group, workers) = start(2);
    let (jobs, gate) = Gated::new();
    (0..10).for_each(|number| jobs.submit(&workers, Class::Slow, number));
    workers.close();
    let Err(job) = workers.submit(Class::Quick, Box::new(|| panic!("handed back, but called"))) else {
        panic!("a closed pool took a job")
    };
    drop(job);
    drop(gate);
    group.join(&["worker-*"], LIMIT).unwrap();
    assert_eq!(jobs.started.1.len(), 10);
}

#[test]
fn the_threads_end_with_the_last_handle() {
    let (group, workers) = start(3);
    drop(workers.clone());
    let (jobs, gate) = Gated::new();
    drop(gate);
    jobs.submit(&workers, Class::Quick, 1);
    drop(workers);
    group.join(&["worker-*"], LIMIT).unwrap();
    assert_eq!(jobs.next(), 1);
}

#[test]
fn threads_that_were_started_end_when_a_later_one_cannot_be() {
    // A thread of the second worker's name is there already.
    let group = Group::new(&["worker-*"]);
    let (keep, gate) = bounded::<()>(0);
    group
        .spawn("worker-2", move || {
            let _ = gate.recv();
            Ok(())
        })
        .unwrap();
    assert!(Workers::start(&group, NonZeroUsize::new(3).unwrap()).is_err());
    group.join(&["worker-1", "worker-3"], LIMIT).unwrap();
    drop(keep);
    group.join(&["worker-2"], LIMIT).unwrap();
}
