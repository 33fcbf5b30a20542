//! The promises of the dispatcher, with pools that are only a number. Events come over channels;
//! only a lost event reaches a time limit.

mod panics;
mod parking;
mod shares;
mod stopping;

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crossbeam_channel::{bounded, unbounded};
use threads::{group::Group, pulse::Pulse, workers::Bounds};

use super::{context::JoinStep, *};
use crate::{
    base::pool_ref::PoolRef,
    daemon::table::PoolEntry,
    engine::request::{Access, Granted, Key, Mode, Pace, Part, Step, Table},
    platform::PendingLinks,
    view::{self, Availability, StoppedPoolsView},
};

const HANG: Duration = Duration::from_secs(60);

/// A pool that is a number, shown as its filesystem limit.
struct ToyPool {
    shown: view::PoolView,
    changed: bool,
}

impl ToyPool {
    fn new(uuid: PoolUuid, name: &str) -> ToyPool {
        let shown = view::PoolView::bare(uuid, Name::new(name).unwrap());
        ToyPool { shown, changed: false }
    }

    fn add_one(&mut self) -> u64 {
        self.shown.fs_limit += 1;
        self.changed = true;
        self.shown.fs_limit
    }
}

impl PoolEntry for ToyPool {
    fn uuid(&self) -> PoolUuid {
        self.shown.uuid
    }

    fn name(&self) -> &Name {
        &self.shown.name
    }

    fn view(&self) -> Arc<view::PoolView> {
        Arc::new(self.shown.clone())
    }

    fn take_change(&mut self) -> Option<Arc<view::PoolView>> {
        std::mem::take(&mut self.changed).then(|| self.view())
    }

    fn restrict(&mut self) {
        self.shown.availability = Availability::NoPoolChanges;
        self.changed = true;
    }
}

/// A context with a single claim, and a version number of the stopped pools.
#[derive(Default)]
struct ToyContext {
    claimed: AtomicBool,
    given_back: AtomicU64,
    watcher: OnceLock<Box<dyn Fn(Vec<Wait>) + Send + Sync>>,
    /// How often a step tried to claim.
    looks: AtomicU64,
    stopped: Mutex<(u64, bool)>,
}

impl ToyContext {
    fn claim(&self) -> bool {
        self.looks.fetch_add(1, Ordering::SeqCst);
        !self.claimed.swap(true, Ordering::SeqCst)
    }

    fn give_back(&self) {
        self.claimed.store(false, Ordering::SeqCst);
        self.given_back.fetch_add(1, Ordering::SeqCst);
        self.watcher.get().expect("set by the dispatcher")(vec![the_claim()]);
    }

    fn change_stopped(&self) -> u64 {
        let mut stopped = self.stopped.lock();
        *stopped = (stopped.0 + 1, true);
        stopped.0
    }
}

impl Context for ToyContext {
    type Pool = ToyPool;

    fn claims_given_back(&self) -> u64 {
        self.given_back.load(Ordering::SeqCst)
    }

    fn is_taken(&self, wait: &Wait, _: u64) -> bool {
        assert_eq!(*wait, the_claim());
        self.claimed.load(Ordering::SeqCst)
    }

    fn watch_claims(&self, watcher: Box<dyn Fn(Vec<Wait>) + Send + Sync>) {
        assert!(self.watcher.set(watcher).is_ok());
    }

    fn take_stopped_change(&self) -> Option<Arc<StoppedPoolsView>> {
        let taken = {
            let mut stopped = self.stopped.lock();
            std::mem::take(&mut stopped.1).then(|| Arc::new(StoppedPoolsView::new(stopped.0)))
        };
        // Gives other threads the chance to run between taking and sending the change.
        (0..20).for_each(|_| std::thread::yield_now());
        taken
    }

    fn end(&self) {}

    fn hurry(&self) {}

    fn take_follow_ups<R: Send + 'static>(&self) -> Vec<(String, Chain<R, Self>)> {
        Vec::new()
    }
}

/// The wait after [`ToyContext::claim`] has failed.
fn the_claim() -> Wait {
    Wait::Key(Key::PoolName(Name::new("claim").unwrap()))
}

fn parked(next: Todo) -> Todo {
    Step::Parked(the_claim(), Box::new(next))
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Number(u64),
    Failed(&'static str, Failure),
}

type Todo = Chain<Answer, ToyContext>;

struct Daemon {
    context: Arc<ToyContext>,
    group: Group,
    dispatcher: Dispatcher<Answer, ToyContext>,
    updates: Receiver<Update<Answer>>,
}

fn uuid(number: u128) -> PoolUuid {
    PoolUuid::from(uuid::Uuid::from_u128(number))
}

fn a() -> PoolRef {
    PoolRef::Uuid(uuid(1))
}

fn b() -> PoolRef {
    PoolRef::Uuid(uuid(2))
}

/// A dispatcher over `workers` threads, with pools A (named "a") and B (named "b").
fn daemon(workers: usize) -> Daemon {
    let daemon = Daemon::new(workers, Box::new(|_| ()));
    daemon.insert_pools();
    daemon
}

impl Daemon {
    /// Up to `workers` brief steps at once, and half as many slow ones.
    fn new(workers: usize, observer: Observer) -> Daemon {
        let bounds = |count| Bounds { shared: count, per_share: count, most: count };
        let limits = Limits { kept: workers, brief: bounds(workers), slow: bounds((workers / 2).max(1)) };
        Daemon::with_limits(limits, observer)
    }

    fn with_limits(limits: Limits, observer: Observer) -> Daemon {
        let group = Group::new(&["links", "worker-*"]);
        let workers = StepWorkers::start(&group, limits).unwrap();
        let links = Links::new().unwrap();
        let waits = links.clone();
        group.spawn("links", move || waits.run(&Pulse::default()).map_err(|error| error.to_string())).unwrap();
        let (sender, updates) = unbounded();
        let context = Arc::new(ToyContext::default());
        let dispatcher = Dispatcher::new(Arc::clone(&context), workers, links, sender, observer);
        Daemon { context, group, dispatcher, updates }
    }

    fn insert_pools(&self) {
        self.insert(vec![ToyPool::new(uuid(1), "a"), ToyPool::new(uuid(2), "b")]);
    }

    fn insert(&self, toys: Vec<ToyPool>) {
        let count = toys.len();
        let step = whole_table(|_, table| {
            for pool in toys {
                assert!(table.insert(pool).is_ok());
            }
            done(0)
        });
        self.submit("insert", step);
        assert_eq!(self.next().changes.len(), count);
    }

    fn submit(&self, label: &'static str, chain: Todo) {
        let on_failure = Box::new(move |failure| Some(Answer::Failed(label, failure)));
        self.dispatcher.submit(Request { label: label.to_owned(), chain, on_failure });
    }

    fn next(&self) -> Update<Answer> {
        self.updates.recv_timeout(HANG).expect("an update comes")
    }

    fn answer(&self) -> Answer {
        loop {
            if let Some(answer) = self.next().reply {
                return answer;
            }
        }
    }

    /// Returns when every slow step submitted before has run. For a dispatcher with one worker.
    fn let_all_park(&self) {
        self.submit("barrier", act(|_| done(u64::MAX)));
        assert_eq!(self.answer(), Answer::Number(u64::MAX));
    }

    fn end(self) {
        let over = self.dispatcher.stop();
        assert!(over.recv_timeout(HANG).is_err_and(|error| error.is_disconnected()));
        self.dispatcher.close();
        self.group.join(&["links", "worker-*"], HANG).unwrap();
    }
}

fn done(number: u64) -> Todo {
    Step::Done(Some(Answer::Number(number)))
}

fn act(step: impl FnOnce(&ToyContext) -> Todo + Send + 'static) -> Todo {
    Step::Blocking(Pace::Slow(None), Box::new(step))
}

fn write(pool: PoolRef, step: impl FnOnce(&ToyContext, &mut ToyPool) -> Todo + Send + 'static) -> Todo {
    Step::Locked(
        Access::Pool(pool, Mode::Exclusive),
        Box::new(move |context, granted| match granted {
            Granted::Write(pool) => step(context, pool),
            _ => panic!("no write grant"),
        }),
    )
}

fn whole_table(step: impl FnOnce(&ToyContext, &mut dyn Table<ToyPool>) -> Todo + Send + 'static) -> Todo {
    Step::Locked(
        Access::Table(Mode::Exclusive),
        Box::new(move |context, granted| match granted {
            Granted::Table(table) => step(context, table),
            _ => panic!("no table grant"),
        }),
    )
}

/// A chain that occupies its worker, and the pool if one is given, until the test releases it; and
/// the ends of its two channels.
fn held(pool: Option<PoolRef>, then: Todo) -> (Todo, Receiver<()>, Sender<()>) {
    let (begun, has_begun) = bounded(1);
    let (go, may_go) = bounded::<()>(1);
    let wait = move || {
        begun.send(()).unwrap();
        may_go.recv_timeout(HANG).unwrap();
        then
    };
    let chain = match pool {
        Some(pool) => write(pool, move |_, _| wait()),
        None => act(move |_| wait()),
    };
    (chain, has_begun, go)
}

fn begun(has_begun: &Receiver<()>) {
    has_begun.recv_timeout(HANG).expect("the step begins");
}

fn pool_of(change: &Change) -> &view::PoolView {
    match change {
        Change::Pool(pool) => pool,
        other => panic!("not a pool's change: {other:?}"),
    }
}

#[test]
fn records_come_in_commit_order_with_their_replies() {
    const EACH: u64 = 200;
    let daemon = daemon(4);
    std::thread::scope(|scope| {
        for pool in [a(), b(), a(), b()] {
            let daemon = &daemon;
            scope.spawn(move || {
                for _ in 0..EACH {
                    daemon.submit("add", write(pool.clone(), |_, pool| done(pool.add_one())));
                }
            });
        }
    });
    let mut seen = BTreeMap::new();
    for _ in 0..4 * EACH {
        let update = daemon.next();
        let [change] = &update.changes[..] else { panic!("a record has one change") };
        let pool = pool_of(change);
        let before = seen.insert(pool.uuid, pool.fs_limit).unwrap_or(0);
        assert_eq!(pool.fs_limit, before + 1);
        assert_eq!(update.reply, Some(Answer::Number(pool.fs_limit)));
    }
    daemon.end();
}

#[test]
fn records_are_made_under_the_grant() {
    let dispatcher = Arc::new(OnceLock::<Dispatcher<Answer, ToyContext>>::new());
    let (seen, holders) = unbounded();
    let watched = Arc::clone(&dispatcher);
    let observer = Box::new(move |_: &[Change]| {
        let holders = watched.get().expect("set before the first request").observe().holders;
        seen.send(holders.into_iter().map(|holder| holder.label.into_owned()).collect::<Vec<_>>()).unwrap();
    });
    let daemon = Daemon::new(2, observer);
    assert!(dispatcher.set(daemon.dispatcher.clone()).is_ok());
    daemon.insert_pools();
    assert_eq!(holders.recv_timeout(HANG).unwrap(), ["insert"]);
    daemon.submit("add", write(a(), |_, pool| done(pool.add_one())));
    assert_eq!(holders.recv_timeout(HANG).unwrap(), ["add"]);
    daemon.end();
}

#[test]
fn a_chain_runs_its_steps_and_replies_once() {
    let daemon = daemon(2);
    let chain = act(|_| {
        write(a(), |_, pool| {
            pool.add_one();
            act(|_| write(b(), |_, pool| done(pool.add_one() + 10)))
        })
    });
    daemon.submit("chain", chain);
    let first = daemon.next();
    assert_eq!((pool_of(&first.changes[0]).uuid, first.reply), (uuid(1), None));
    let second = daemon.next();
    assert_eq!((pool_of(&second.changes[0]).uuid, second.reply), (uuid(2), Some(Answer::Number(11))));
    let updates = daemon.updates.clone();
    daemon.end();
    assert!(updates.try_recv().is_err());
}

#[test]
fn names_are_resolved_and_missing_pools_reported() {
    let daemon = daemon(2);
    let by_name = |name: &str| PoolRef::Name(Name::new(name).unwrap());
    daemon.submit(
        "rename",
        whole_table(|_, table| {
            let name = Name::new("c").unwrap();
            let pool = table.rename(uuid(1), name.clone()).expect("pool a exists");
            pool.shown.name = name;
            pool.changed = true;
            assert!(table.rename(uuid(2), Name::new("c").unwrap()).is_none(), "the name is taken");
            assert!(table.insert(ToyPool::new(uuid(1), "d")).is_err(), "the identifier is taken");
            done(1)
        }),
    );
    let update = daemon.next();
    assert_eq!(pool_of(&update.changes[0]).name.as_str(), "c");
    assert_eq!((update.changes.len(), update.reply), (1, Some(Answer::Number(1))));
    daemon.submit("new name", write(by_name("c"), |_, pool| done(pool.add_one())));
    assert_eq!(daemon.answer(), Answer::Number(1));
    let missing: GrantedStep<Answer, ToyContext> = Box::new(|_, granted| match granted {
        Granted::NoPool => done(404),
        _ => done(0),
    });
    daemon.submit("old name", Step::Locked(Access::Pool(by_name("a"), Mode::Shared), missing));
    assert_eq!(daemon.answer(), Answer::Number(404));
    daemon.submit(
        "remove",
        whole_table(|_, table| {
            let _ = table.rename(uuid(2), Name::new("gone").unwrap());
            assert!(table.remove(uuid(2)).is_some());
            assert!(table.remove(uuid(2)).is_none());
            assert_eq!(table.list(), [(uuid(1), Name::new("c").unwrap())]);
            done(2)
        }),
    );
    let update = daemon.next();
    assert!(matches!(update.changes[..], [Change::PoolGone(gone)] if gone == uuid(2)), "{:?}", update.changes);
    daemon.end();
}

#[test]
fn shared_access_cannot_change_the_table() {
    let daemon = daemon(2);
    let step: GrantedStep<Answer, ToyContext> = Box::new(|_, granted| {
        let Granted::Table(table) = granted else { return done(0) };
        assert!(table.insert(ToyPool::new(uuid(3), "x")).is_err());
        assert!(table.remove(uuid(1)).is_none());
        assert!(table.rename(uuid(1), Name::new("x").unwrap()).is_none());
        done(table.list().len() as u64)
    });
    daemon.submit("look", Step::Locked(Access::Table(Mode::Shared), step));
    let update = daemon.next();
    assert_eq!((update.changes.len(), update.reply), (0, Some(Answer::Number(2))));
    daemon.end();
}

#[test]
fn a_reply_never_overtakes_the_stopped_pools() {
    const REQUESTS: u64 = 500;
    let daemon = daemon(4);
    for _ in 0..REQUESTS {
        daemon.submit("change", write(a(), |context, _| done(context.change_stopped())));
        daemon.submit("change", act(|context| done(context.change_stopped())));
    }
    let (mut published, mut answered) = (0, 0);
    while answered < 2 * REQUESTS {
        let update = daemon.next();
        for change in &update.changes {
            let Change::Stopped(stopped) = change else { panic!("{change:?}") };
            assert!(stopped.version > published);
            published = stopped.version;
        }
        if let Some(Answer::Number(version)) = update.reply {
            assert!(version <= published, "reply to change {version} while {published} is published");
            answered += 1;
        }
    }
    daemon.end();
}

/// Takes the single claim; parks while another request has it.
fn claiming(number: u64, then: impl FnOnce(&ToyContext) + Send + 'static) -> Todo {
    act(move |context| match context.claim() {
        true => {
            then(context);
            context.give_back();
            done(number)
        }
        false => parked(claiming(number, then)),
    })
}

#[test]
fn parts_run_in_parallel_and_join_in_order() {
    let daemon = daemon(4);
    // Runs on two slow workers: each part waits for the other.
    let (to_second, from_first) = bounded::<()>(1);
    let (to_first, from_second) = bounded::<()>(1);
    let part = |send: Sender<()>, receive: Receiver<()>, result: u64| -> Part<ToyContext> {
        Box::new(move |_| {
            send.send(()).unwrap();
            receive.recv_timeout(HANG).unwrap();
            Box::new(result)
        })
    };
    let parts: Vec<Part<ToyContext>> = vec![
        part(to_second, from_second, 1),
        part(to_first, from_first, 2),
        Box::new(|_| panic!("planted")),
        Box::new(|_| Box::new(4u64)),
    ];
    let join: JoinStep<Answer, ToyContext> = Box::new(|_, results| {
        let results: Vec<Option<u64>> =
            results.into_iter().map(|result| result.map(|number| *number.downcast().unwrap())).collect();
        assert_eq!(results, [Some(1), Some(2), None, Some(4)]);
        done(5)
    });
    daemon.submit("together", Step::Parallel(parts, join));
    assert_eq!(daemon.answer(), Answer::Number(5));
    daemon.end();
}

#[test]
fn brief_steps_never_wait_for_slow_ones() {
    let daemon = daemon(4);
    let slow: Vec<_> = (0..5)
        .map(|_| {
            let (chain, has_begun, go) = held(None, done(1));
            daemon.submit("slow", chain);
            (has_begun, go)
        })
        .collect();
    begun(&slow[0].0);
    begun(&slow[1].0);
    for number in 1..=20 {
        daemon.submit("quick", write(a(), |_, pool| done(pool.add_one())));
        assert_eq!(daemon.answer(), Answer::Number(number));
    }
    assert!(slow[2..].iter().all(|(has_begun, _)| has_begun.is_empty()), "slow steps exceeded their bound");
    slow.iter().for_each(|(_, go)| go.send(()).unwrap());
    daemon.end();
}

#[test]
fn pools_do_not_wait_for_each_other() {
    let daemon = daemon(2);
    let (holder, has_begun, go) = held(Some(a()), done(1));
    daemon.submit("holder", holder);
    begun(&has_begun);
    // More waiters than workers: they wait in the lock's queue.
    for _ in 0..50 {
        daemon.submit("waiter", write(a(), |_, _| done(2)));
    }
    for number in 1..=50 {
        daemon.submit("other pool", write(b(), |_, pool| done(pool.add_one())));
        let update = daemon.next();
        assert_eq!(update.reply, Some(Answer::Number(number)));
        assert_eq!(pool_of(&update.changes[0]).uuid, uuid(2));
    }
    go.send(()).unwrap();
    assert_eq!(daemon.answer(), Answer::Number(1));
    daemon.end();
}

/// Like [`claiming`], but under a lock, so that the step finds a worker while the slow ones are
/// taken.
fn claiming_quick(number: u64) -> Todo {
    write(a(), move |context, _| match context.claim() {
        true => {
            context.give_back();
            done(number)
        }
        false => parked(claiming_quick(number)),
    })
}
