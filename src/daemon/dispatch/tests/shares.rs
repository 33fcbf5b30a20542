//! A hang blocks its own share only, and requests that have begun go first.

use std::{os::fd::BorrowedFd, path::PathBuf};

use threads::wake::Waker;

use super::*;

fn by_number(number: u128) -> PoolRef {
    PoolRef::Uuid(uuid(number))
}

fn slow_in(number: u128, step: impl FnOnce(&ToyContext) -> Todo + Send + 'static) -> Todo {
    Step::Blocking(Pace::Slow(Some(Share::Pool(uuid(number)))), Box::new(step))
}

fn brief(step: impl FnOnce(&ToyContext) -> Todo + Send + 'static) -> Todo {
    Step::Blocking(Pace::Brief, Box::new(step))
}

/// Pools 1 to 17, with the limits of the daemon.
fn seventeen() -> Daemon {
    let daemon = Daemon::with_limits(LIMITS, Box::new(|_| ()));
    daemon.insert((1..=17).map(|number| ToyPool::new(uuid(number), &format!("p{number}"))).collect());
    daemon
}

/// Steps that hang until the gate is dropped.
struct Hung {
    begun: (Sender<()>, Receiver<()>),
    gate: (Option<Sender<()>>, Receiver<()>),
}

impl Hung {
    fn new() -> Hung {
        let (keep, gate) = bounded(0);
        Hung { begun: unbounded(), gate: (Some(keep), gate) }
    }

    fn step(&self) -> impl FnOnce() -> Todo + Send + 'static {
        let (begun, gate) = (self.begun.0.clone(), self.gate.1.clone());
        move || {
            begun.send(()).unwrap();
            assert!(gate.recv().is_err(), "the gate carries no message");
            done(0)
        }
    }

    fn wait_for(&self, count: usize) {
        (0..count).for_each(|_| begun(&self.begun.1));
    }

    fn let_go(&mut self) {
        self.gate.0 = None;
    }
}

/// Every kind of step of the seventeenth pool, and steps of no pool.
fn serves_the_seventeenth(daemon: &Daemon) {
    for number in 1..=20 {
        daemon.submit("lists keys", brief(move |_| done(1000 + number)));
        assert_eq!(daemon.answer(), Answer::Number(1000 + number));
        daemon.submit("has no share", act(move |_| done(2000 + number)));
        assert_eq!(daemon.answer(), Answer::Number(2000 + number));
        let device = Share::Device("/dev/new".into());
        let creates = Step::Blocking(
            Pace::Slow(Some(device)),
            Box::new(|_: &ToyContext| whole_table(|_, table| done(table.list().len() as u64))),
        );
        daemon.submit("creates a pool", creates);
        assert_eq!(daemon.answer(), Answer::Number(17));
        let part = || -> Part<ToyContext> { Box::new(|_| Box::new(())) };
        let parts = (0..4).map(|_| part()).collect();
        let formats = write(by_number(17), |_, pool| {
            pool.add_one();
            Step::Parallel(
                parts,
                Box::new(|_, _| slow_in(17, |_| write(by_number(17), |_, pool| done(pool.add_one())))),
            )
        });
        daemon.submit("formats", formats);
        assert_eq!(daemon.answer(), Answer::Number(2 * number));
    }
}

/// The limit for slow steps used to be half of the workers, for all shares together: eight hung
/// formats of one pool were enough to block all.
#[test]
fn sixteen_hung_pools_leave_the_seventeenth_alone() {
    let daemon = seventeen();
    let mut hung = Hung::new();
    for number in 1..=16 {
        for _ in 0..20 {
            let step = hung.step();
            daemon.submit("hangs", slow_in(number, move |_| step()));
        }
    }
    hung.wait_for(16);
    serves_the_seventeenth(&daemon);
    // Brief steps of the hung pools still run.
    daemon.submit("renames", write(by_number(3), |_, pool| done(pool.add_one())));
    assert_eq!(daemon.answer(), Answer::Number(1));
    hung.let_go();
    daemon.end();
}

#[test]
fn pools_hung_under_their_lock_leave_others_alone() {
    let daemon = seventeen();
    let mut hung = Hung::new();
    for number in 1..=16 {
        for _ in 0..5 {
            let step = hung.step();
            daemon.submit("hangs", write(by_number(number), move |_, _| step()));
        }
    }
    hung.wait_for(16);
    // A request for the whole table waits for these steps, so a creation is not granted.
    for number in 1..=20 {
        daemon.submit(
            "grows",
            write(by_number(17), |_, pool| {
                slow_in(17, {
                    let now = pool.add_one();
                    move |_| done(now)
                })
            }),
        );
        assert_eq!(daemon.answer(), Answer::Number(number));
        daemon.submit("lists keys", brief(|_| done(7)));
        assert_eq!(daemon.answer(), Answer::Number(7));
    }
    hung.let_go();
    daemon.end();
}

/// A step that holds the whole table waits for no share: nothing else would go on meanwhile.
#[test]
fn the_whole_table_waits_for_no_share() {
    let daemon = seventeen();
    let mut hung = Hung::new();
    for _ in 0..2 * LIMITS.brief.per_share {
        let step = hung.step();
        daemon.submit("hangs", slow_in(1, move |_| brief(move |_| step())));
    }
    hung.wait_for(LIMITS.brief.per_share);
    daemon.submit("takes the table", slow_in(1, |_| whole_table(|_, table| done(table.list().len() as u64))));
    assert_eq!(daemon.answer(), Answer::Number(17));
    hung.let_go();
    daemon.end();
}

/// A device that hangs would hang the next daemon too, so it is no reason to end this one.
#[test]
fn hung_steps_do_not_silence_the_watchdog() {
    let daemon = seventeen();
    let mut hung = Hung::new();
    let step = hung.step();
    daemon.submit("hangs with the whole table", whole_table(move |_, _| step()));
    // The test submits more slow steps than may run at once.
    for number in 1..=70 {
        let step = hung.step();
        daemon.submit("hangs", slow_in(number, move |_| step()));
    }
    hung.wait_for(1 + 64);
    let (tell, told) = unbounded();
    daemon.dispatcher.pass(Box::new(move || tell.send(()).unwrap()));
    told.recv_timeout(HANG).expect("a worker should pass");
    hung.let_go();
    daemon.end();
}

/// The first of 160 creations was answered when nearly all had been formatted: whenever it needed
/// the pool, a worker or its link, it queued behind all later arrivals.
#[test]
fn begun_requests_go_before_later_arrivals() {
    let daemon = daemon(2);
    let (first, has_begun, go_first) = held(None, write(a(), |_, _| done(1)));
    daemon.submit("first", first);
    begun(&has_begun);
    let (holder, has_begun, go_holder) = held(Some(a()), done(0));
    daemon.submit("holder", holder);
    begun(&has_begun);
    for number in 2..50 {
        daemon.submit("later", write(a(), move |_, _| done(number)));
    }
    go_first.send(()).unwrap();
    while daemon.dispatcher.observe().waiters.len() < 49 {
        std::thread::yield_now();
    }
    go_holder.send(()).unwrap();
    assert_eq!(daemon.answer(), Answer::Number(0));
    for number in 1..50 {
        assert_eq!(daemon.answer(), Answer::Number(number));
    }
    daemon.end();
}

/// Links that exist once the waker has been woken.
struct Awaited(Waker);

impl PendingLinks for Awaited {
    fn wait(self: Box<Self>, _: Duration) -> Vec<PathBuf> {
        panic!("a worker waits")
    }

    fn hear(&mut self) {}

    fn advance(&mut self) -> bool {
        self.0.drain()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.fd())
    }

    fn missing(self: Box<Self>) -> Vec<PathBuf> {
        Vec::new()
    }
}

#[test]
fn waiting_for_links_holds_no_worker() {
    let daemon = daemon(1);
    let wakers: Vec<Waker> = (0..100).map(|_| Waker::new().unwrap()).collect();
    for (number, waker) in wakers.iter().enumerate() {
        let links = Box::new(Awaited(waker.clone()));
        let wait = Step::Linked(links, HANG, Box::new(move |_, missing| done((number + missing.len()) as u64)));
        daemon.submit("waits", wait);
    }
    for number in 1..=20 {
        daemon.submit(
            "other",
            write(a(), |_, pool| {
                slow_in(1, {
                    let now = pool.add_one();
                    move |_| done(now)
                })
            }),
        );
        assert_eq!(daemon.answer(), Answer::Number(number));
    }
    for (number, waker) in wakers.iter().enumerate().rev() {
        waker.wake();
        assert_eq!(daemon.answer(), Answer::Number(number as u64));
    }
    daemon.end();
}
