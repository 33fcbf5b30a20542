//! The promises of the workers. `admission.rs` tests which jobs may run.

use std::{sync::Arc, time::Duration};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::{Bounds, Class, Limits, Workers};
use crate::{
    group::{Group, How},
    primitives::Mutex,
};

/// Long enough for any machine; only a failing test reaches it.
const LIMIT: Duration = Duration::from_secs(60);

fn start(kept: usize, bounds: Bounds) -> (Group, Workers<usize>) {
    let group = Group::new(&["worker-*"]);
    let workers = Workers::start(&group, Limits { kept, brief: bounds, slow: bounds }).unwrap();
    (group, workers)
}

fn end(group: &Group, workers: &Workers<usize>) {
    workers.close();
    group.join(&["worker-*"], LIMIT).unwrap();
}

/// Bounds of this many jobs in one share, and none in others.
fn one_share(count: usize) -> Bounds {
    Bounds { shared: count, per_share: count, most: count }
}

/// Jobs that report their start and run until the gate is dropped.
struct Gated {
    started: (Sender<usize>, Receiver<usize>),
    gate: Receiver<()>,
}

impl Gated {
    fn new() -> (Self, Sender<()>) {
        let (keep, gate) = bounded(0);
        (Self { started: unbounded(), gate }, keep)
    }

    fn submit(&self, workers: &Workers<usize>, class: Class<usize>, number: usize) {
        let (started, gate) = (self.started.0.clone(), self.gate.clone());
        let job = Box::new(move || {
            started.send(number).unwrap();
            assert!(gate.recv().is_err(), "the gate carries no message");
        });
        assert!(workers.submit(class, number as u64, job).is_ok());
    }

    fn next(&self) -> usize {
        self.started.1.recv_timeout(LIMIT).unwrap()
    }
}

/// Sixteen pools, each with a hung device, each had more jobs than one pool may run. The
/// seventeenth pool had to wait for one of those jobs.
#[test]
fn sixteen_hung_shares_leave_the_seventeenth_alone() {
    let (group, workers) = start(2, Bounds { shared: 4, per_share: 2, most: 32 });
    let (hung, hung_gate) = Gated::new();
    for share in 0..16 {
        (0..5).for_each(|_| hung.submit(&workers, Class::Slow(share), share));
    }
    let mut begun: Vec<_> = (0..16).map(|_| hung.next()).collect();
    begun.sort_unstable();
    let (free, free_gate) = Gated::new();
    drop(free_gate);
    for number in 16..36 {
        free.submit(&workers, Class::Slow(16), number);
        assert_eq!(free.next(), number);
        free.submit(&workers, Class::Brief(number % 17), number);
        assert_eq!(free.next(), number, "a brief job never waits for a slow one");
    }
    drop(hung_gate);
    end(&group, &workers);
    assert_eq!(hung.started.1.len(), 16 * 5 - 16, "all other jobs have run");
}

#[test]
fn hung_brief_jobs_block_only_their_share() {
    let (group, workers) = start(1, Bounds { shared: 2, per_share: 2, most: 8 });
    let (hung, hung_gate) = Gated::new();
    (0..4).for_each(|number| hung.submit(&workers, Class::Brief(0), number));
    assert_eq!((hung.next(), hung.next()), (0, 1));
    let (free, free_gate) = Gated::new();
    drop(free_gate);
    free.submit(&workers, Class::Brief(1), 7);
    assert_eq!(free.next(), 7);
    assert!(hung.started.1.is_empty(), "a share exceeds its bound");
    drop(hung_gate);
    end(&group, &workers);
}

#[test]
fn long_jobs_wait_for_no_other_job() {
    let (group, workers) = start(1, one_share(1));
    let (others, others_gate) = Gated::new();
    others.submit(&workers, Class::Brief(0), 0);
    others.submit(&workers, Class::Slow(0), 1);
    let begun = [others.next(), others.next()];
    assert!(begun.contains(&0) && begun.contains(&1));
    let (long, long_gate) = Gated::new();
    for number in 0..3 {
        long.submit(&workers, Class::Background, number);
        assert_eq!(long.next(), number);
    }
    drop((long_gate, others_gate));
    end(&group, &workers);
}

#[test]
fn idle_threads_beyond_the_kept_ones_end() {
    let (group, workers) = start(2, one_share(16));
    for _ in 0..5 {
        let (jobs, gate) = Gated::new();
        (0..16).for_each(|number| jobs.submit(&workers, Class::Slow(0), number));
        (0..16).for_each(|_| assert!(jobs.next() < 16));
        assert_eq!(workers.handle.board.jobs.lock().threads.len(), 16);
        drop(gate);
        // Each thread ends by itself when it finds no job; the kept ones go through the same check.
        let over = || workers.handle.board.jobs.lock().threads.len() == 2;
        while !over() {
            std::thread::yield_now();
        }
    }
    end(&group, &workers);
    assert_eq!(group.ended().try_iter().count(), 0, "the end of a transient thread is reported");
}

#[test]
fn jobs_of_a_share_start_by_rank() {
    let (group, workers) = start(1, one_share(1));
    let (first, first_gate) = Gated::new();
    first.submit(&workers, Class::Brief(0), 0);
    assert_eq!(first.next(), 0);
    let order = Arc::new(Mutex::new(Vec::new()));
    for (number, rank) in [9, 3, 7, 3, 1].into_iter().enumerate() {
        let order = Arc::clone(&order);
        assert!(workers.submit(Class::Brief(0), rank, Box::new(move || order.lock().push(number))).is_ok());
    }
    drop(first_gate);
    end(&group, &workers);
    assert_eq!(*order.lock(), [4, 1, 3, 2, 0]);
}

#[test]
fn a_worker_survives_a_panic_of_its_job() {
    let (group, workers) = start(1, one_share(1));
    for class in [Class::Slow(0), Class::Brief(0), Class::Background, Class::Slow(0)] {
        assert!(workers.submit(class, 0, Box::new(|| panic!("planned"))).is_ok());
    }
    let (after, gate) = Gated::new();
    drop(gate);
    after.submit(&workers, Class::Slow(0), 7);
    assert_eq!(after.next(), 7);
    end(&group, &workers);
    assert!(group.ended().try_iter().all(|ended| ended.how == How::Returned));
}

#[test]
fn closing_runs_queued_jobs_and_refuses_new_ones() {
    let (group, workers) = start(2, one_share(1));
    let (jobs, gate) = Gated::new();
    (0..10).for_each(|number| jobs.submit(&workers, Class::Slow(0), number));
    workers.close();
    let Err(job) = workers.submit(Class::Brief(0), 0, Box::new(|| panic!("a returned job ran"))) else {
        panic!("a closed pool accepted a job")
    };
    drop(job);
    drop(gate);
    group.join(&["worker-*"], LIMIT).unwrap();
    assert_eq!(jobs.started.1.len(), 10);
}

#[test]
fn the_threads_end_with_the_last_handle() {
    let (group, workers) = start(3, one_share(1));
    drop(workers.clone());
    let (jobs, gate) = Gated::new();
    drop(gate);
    jobs.submit(&workers, Class::Brief(0), 1);
    drop(workers);
    group.join(&["worker-*"], LIMIT).unwrap();
    assert_eq!(jobs.next(), 1);
}

#[test]
fn a_failed_start_ends_the_threads_already_started() {
    // The second worker's name is already in use.
    let group = Group::new(&["worker-*"]);
    let (keep, gate) = bounded::<()>(0);
    group
        .spawn("worker-2", move || {
            let _ = gate.recv();
            Ok(())
        })
        .unwrap();
    let bounds = one_share(1);
    assert!(Workers::<usize>::start(&group, Limits { kept: 3, brief: bounds, slow: bounds }).is_err());
    group.join(&["worker-1", "worker-3"], LIMIT).unwrap();
    drop(keep);
    group.join(&["worker-2"], LIMIT).unwrap();
}
