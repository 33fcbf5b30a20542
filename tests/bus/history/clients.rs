//! Makes a history: clients make random calls and record the signals about labels, and a watcher
//! records all signals.
//!
//! There are few names, so that calls conflict. Each client chooses among the objects that it has
//! received by signals, so some calls go to objects that are already gone. A rename never uses a
//! name twice.

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use dbus::Message;
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::record::{Answer, Call, Event, History, Item, Stream, What, digest, text};
use support::{
    bus::Bus,
    client::{self, BLOCKDEV, Client, FILESYSTEM, Label, Outcome, POOL},
};

pub const CLIENTS: usize = 6;
/// Names that clients compete for.
const NAMES: u32 = 6;
/// Clients stop making filesystems at this number. It keeps lists small.
const FILESYSTEMS_MAX: usize = 20;
/// The number of signals that the watcher receives between two lists.
const SIGNALS_PER_LIST: usize = 500;

/// Makes every name unique, across all histories.
static NUMBER: AtomicU64 = AtomicU64::new(0);

fn fresh(word: &str) -> String {
    format!("{word}{}", NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// Makes a history of about `calls` calls. Pools must exist; filesystems may exist.
pub fn history(bus: &Bus, calls: usize, seed: u64) -> History {
    let rules = [
        ",member='InterfacesAdded'".to_owned(),
        ",member='InterfacesRemoved'".to_owned(),
        format!(",member='PropertiesChanged',arg0='{POOL}'"),
        format!(",member='PropertiesChanged',arg0='{FILESYSTEM}'"),
        format!(",member='PropertiesChanged',arg0='{BLOCKDEV}'"),
    ];
    let connect = || rules.iter().fold(Client::new(bus), |client, rule| client.listens(rule));
    let connected: Vec<Client> = (0..CLIENTS).map(|_| connect()).collect();
    let watcher = Client::new(bus).listens("");
    let first = client::objects(&watcher.list());
    let before: Vec<(String, Label)> =
        first.iter().map(|(path, interfaces)| (path.clone(), client::label(interfaces).unwrap())).collect();
    watcher.take_signals();
    let clock = Instant::now();
    let all_done = Arc::new(Barrier::new(CLIENTS));
    std::thread::scope(|scope| {
        let watching = scope.spawn(move || watch(&watcher, first));
        let streams: Vec<_> = connected
            .into_iter()
            .enumerate()
            .map(|(number, client)| {
                let caller = Caller {
                    client,
                    clock,
                    random: StdRng::seed_from_u64(seed * 1000 + number as u64),
                    stream: Stream::default(),
                    labels: before.clone(),
                    gone: Vec::new(),
                    mix: &MIXES[(seed % MIXES.len() as u64) as usize],
                    own_device: format!("/dev/moment-{number}"),
                    own_pool: None,
                };
                let all_done = Arc::clone(&all_done);
                scope.spawn(move || caller.run(calls / CLIENTS, &all_done))
            })
            .collect();
        let clients: Vec<Stream> = streams.into_iter().map(|stream| stream.join().unwrap()).collect();
        // A change that belongs to no client ends the recording of the watcher.
        let last = Client::new(bus);
        let made = last.done(client::create_pool(LAST, &["/dev/last"]));
        last.done(client::destroy_pool(&made[0]));
        History { clients, watcher: watching.join().unwrap() }
    })
}

/// The name of the pool whose creation ends the recording of the watcher.
const LAST: &str = "the-end";

fn watch(client: &Client, first: std::collections::BTreeMap<String, client::Interfaces>) -> Vec<Item> {
    let mut items = vec![Item::List(first)];
    loop {
        for _ in 0..SIGNALS_PER_LIST {
            let Some(signal) = client.next_signal() else { continue };
            if matches!(Event::of(&signal), Some(Event::Added(_, Label::Pool(name))) if name == LAST) {
                return items;
            }
            items.push(Item::Signal(signal));
        }
        let list = client.list();
        let signals = client.take_signals();
        let is_last = |signal: &client::Signal| matches!(Event::of(signal), Some(Event::Added(_, Label::Pool(name))) if name == LAST);
        if let Some(end) = signals.iter().position(is_last) {
            items.extend(signals.into_iter().take(end).map(Item::Signal));
            return items;
        }
        items.extend(signals.into_iter().map(Item::Signal));
        items.push(Item::List(client::objects(&list)));
    }
}

struct Caller {
    client: Client,
    clock: Instant,
    random: StdRng,
    stream: Stream,
    /// The objects that this client has received by signals.
    labels: Vec<(String, Label)>,
    /// Filesystems that this client knew and whose removal it has received.
    gone: Vec<String>,
    /// How often the client makes each kind of call.
    mix: &'static Mix,
    /// The device of this client's short-lived pools. It is always the same one, because the
    /// simulated machine keeps every disk that was ever named.
    own_device: String,
    own_pool: Option<Moment>,
}

/// A short-lived pool: only its client creates, stops, starts and destroys it.
enum Moment {
    /// The pool is running. `objects` are the pool and its block devices.
    Up {
        name: String,
        objects: Vec<String>,
    },
    Stopped {
        name: String,
    },
}

/// How often the client makes each kind of call, of a thousand calls.
struct Mix {
    look: u32,
    list: u32,
    create: u32,
    destroy: u32,
    rename: u32,
    snapshot: u32,
    rename_pool: u32,
    inform: u32,
    /// Of ten reads, those of pools and of devices. The others are of filesystems.
    pools: u32,
    devices: u32,
}

/// The calls that a mix leaves over of its thousand create, stop, start and destroy short-lived
/// pools.
const MIXES: [Mix; 2] = [
    // Filesystems are created and destroyed.
    Mix {
        look: 500,
        list: 60,
        create: 160,
        destroy: 130,
        rename: 80,
        snapshot: 30,
        rename_pool: 10,
        inform: 20,
        pools: 1,
        devices: 1,
    },
    // Pools are created and destroyed, and reads of them or of their devices come too early or too
    // late.
    Mix {
        look: 500,
        list: 20,
        create: 40,
        destroy: 40,
        rename: 0,
        snapshot: 0,
        rename_pool: 10,
        inform: 290,
        pools: 1,
        devices: 8,
    },
];

impl Caller {
    fn run(mut self, calls: usize, all_done: &Barrier) -> Stream {
        for _ in 0..calls {
            self.step();
        }
        // Removes the client's own pool before the next history.
        if matches!(self.own_pool, Some(Moment::Stopped { .. })) {
            self.pool_of_the_moment();
        }
        if let Some(Moment::Up { objects, .. }) = self.own_pool.take() {
            self.destroy_pool(objects);
        }
        all_done.wait();
        // All changes have been answered, so their signals precede this reply.
        self.client.call(client::ping());
        self.hear();
        self.stream
    }

    fn hear(&mut self) {
        for signal in self.client.take_newest_signals() {
            let Some(event) = Event::of(&signal) else { continue };
            match &event {
                Event::Added(path, label) => self.labels.push((path.clone(), label.clone())),
                Event::Removed(path) => {
                    self.labels.retain(|(known, _)| known != path);
                    self.gone.push(path.clone());
                    if self.gone.len() > 5 {
                        self.gone.remove(0);
                    }
                }
                Event::Labelled(..) => {}
            }
            self.stream.heard.push(event);
        }
    }

    /// Makes a call and records it.
    fn call(&mut self, what: What, message: Message, read: impl FnOnce(&Message) -> Answer) -> Answer {
        let begin = self.now();
        let reply = self.client.call(message);
        let end = self.now();
        self.hear();
        let answer = read(&reply);
        self.stream.calls.push(Call { begin, end, what, answer: answer.clone(), heard: self.stream.heard.len() });
        answer
    }

    fn now(&self) -> u64 {
        self.clock.elapsed().as_nanos() as u64
    }

    fn change(&mut self, what: What, message: Message) -> Answer {
        self.call(what, message, |reply| match client::outcome(reply) {
            Outcome::Changed(words) => {
                Answer::Changed(words.into_iter().filter(|word| word.starts_with('/')).collect())
            }
            Outcome::Unchanged => Answer::Unchanged,
            Outcome::Refused(text) => Answer::Refused(text),
            Outcome::Error(name) => Answer::Error(name),
        })
    }

    /// Picks one of the known objects of a kind. The daemon may have removed it already.
    fn pick(&mut self, is_it: impl Fn(&Label) -> bool) -> Option<(String, Label)> {
        let found: Vec<&(String, Label)> = self.labels.iter().filter(|(_, label)| is_it(label)).collect();
        (!found.is_empty()).then(|| found[self.random.random_range(0..found.len())].clone())
    }

    fn filesystem(&mut self) -> Option<String> {
        if !self.gone.is_empty() && self.random.random_range(0..20) == 0 {
            let at = self.random.random_range(0..self.gone.len());
            return Some(self.gone[at].clone());
        }
        self.pick(|label| matches!(label, Label::Filesystem(..))).map(|(path, _)| path)
    }

    fn pool(&mut self) -> String {
        // Short-lived pools are excluded: only their client knows when they are gone.
        let is_lasting = |label: &Label| matches!(label, Label::Pool(name) if name.starts_with("lasting"));
        self.pick(is_lasting).expect("there are pools").0
    }

    fn filesystems(&self) -> usize {
        self.labels.iter().filter(|(_, label)| matches!(label, Label::Filesystem(..))).count()
    }

    fn step(&mut self) {
        let Mix { look, list, create, destroy, rename, snapshot, rename_pool, inform, .. } = *self.mix;
        type Step = fn(&mut Caller);
        let calls: [(u32, Step); 8] = [
            (look, Caller::look),
            (list, Caller::list),
            (create, Caller::create),
            (destroy, Caller::destroy),
            (rename, Caller::rename),
            (snapshot, Caller::snapshot),
            (rename_pool, Caller::rename_pool),
            (inform, Caller::inform),
        ];
        let mut at: u32 = self.random.random_range(0..1000);
        for (often, call) in calls {
            match at.checked_sub(often) {
                Some(rest) => at = rest,
                None => return call(self),
            }
        }
        self.pool_of_the_moment();
    }

    fn look(&mut self) {
        let Mix { pools, devices, .. } = *self.mix;
        let (path, interface, property) = match self.random.random_range(0..10) {
            at if at < pools => (Some(self.pool()), POOL, "Name"),
            at if at < pools + devices => (self.device(), BLOCKDEV, "UserInfo"),
            _ => (self.filesystem(), FILESYSTEM, "Name"),
        };
        let Some(path) = path else { return };
        let all = self.random.random_range(0..3) == 0;
        let message = if all { client::get_all(&path, interface) } else { client::get(&path, interface, property) };
        let read = |reply: &Message| if all { client::value_of(reply, property) } else { client::value(reply) };
        self.call(What::Look { path }, message, |reply| match read(reply) {
            Ok(text) => Answer::Label(text),
            Err(name) => Answer::Error(name),
        });
    }

    fn device(&mut self) -> Option<String> {
        self.pick(|label| matches!(label, Label::Device(_))).map(|(path, _)| path)
    }

    /// Makes one of the calls that read all objects.
    fn list(&mut self) {
        let all = |words: Vec<(String, String)>| {
            Answer::Listed(words.iter().fold(0, |all, (what, text)| all ^ digest(what, text)))
        };
        match self.random.random_range(0..4) {
            0 => drop(self.call(What::Introspect, client::introspect(client::TOP), |reply| {
                all(client::children(reply).into_iter().map(|path| (path, String::new())).collect())
            })),
            1 => {
                drop(self.call(What::Report, client::engine_state_report(), |reply| all(client::reported_names(reply))))
            }
            _ => self.list_objects(),
        }
    }

    fn list_objects(&mut self) {
        self.call(What::List, client::list(), |reply| {
            let labels = client::labels(reply);
            Answer::Listed(labels.iter().fold(0, |all, (path, label)| all ^ digest(path, text(label))))
        });
    }

    fn create(&mut self) {
        if self.filesystems() >= FILESYSTEMS_MAX {
            return self.destroy();
        }
        let (pool, name) = (self.pool(), format!("fs{}", self.random.random_range(0..NAMES)));
        let message = client::create_filesystem(&pool, &name);
        self.change(What::CreateFilesystem { pool, name }, message);
    }

    fn destroy(&mut self) {
        let Some(path) = self.filesystem() else { return };
        let of = self.labels.iter().find_map(|(known, label)| match label {
            Label::Filesystem(pool, _) if *known == path => Some(pool.clone()),
            _ => None,
        });
        let pool = match of {
            Some(pool) => pool,
            None => self.pool(),
        };
        let message = client::destroy_filesystem(&pool, &path);
        self.change(What::DestroyFilesystem { path }, message);
    }

    fn rename(&mut self) {
        let Some(path) = self.filesystem() else { return };
        let text = fresh("renamed");
        let message = client::rename_filesystem(&path, &text);
        self.change(What::Label { path, text }, message);
    }

    fn snapshot(&mut self) {
        if self.filesystems() >= FILESYSTEMS_MAX {
            return self.destroy();
        }
        let Some((origin, Label::Filesystem(pool, _))) = self.pick(|label| matches!(label, Label::Filesystem(..)))
        else {
            return;
        };
        let name = format!("fs{}", self.random.random_range(0..NAMES));
        let message = client::snapshot(&pool, &origin, &name);
        self.change(What::Snapshot { pool, origin, name }, message);
    }

    fn rename_pool(&mut self) {
        let (path, text) = (self.pool(), fresh("lasting"));
        let message = client::rename_pool(&path, &text);
        self.change(What::Label { path, text }, message);
    }

    fn inform(&mut self) {
        let Some(path) = self.device() else { return };
        let text = fresh("note");
        let message = client::set_user_info(&path, &text);
        self.change(What::Label { path, text: format!("(true {text})") }, message);
    }

    /// Creates a short-lived pool. If the client already has one, stops or destroys it, or starts
    /// it again.
    fn pool_of_the_moment(&mut self) {
        match self.own_pool.take() {
            None => {
                let name = fresh("moment");
                let message = client::create_pool(&name, &[&self.own_device]);
                self.up(What::CreatePool, name, message);
            }
            Some(Moment::Stopped { name }) => {
                let message = client::start_pool(&name);
                self.up(What::StartPool, name, message);
            }
            Some(Moment::Up { name, objects }) if self.random.random_range(0..2) == 0 => {
                let message = client::stop_pool(&name);
                self.change(What::StopPool { objects }, message);
                self.own_pool = Some(Moment::Stopped { name });
            }
            Some(Moment::Up { objects, .. }) => self.destroy_pool(objects),
        }
    }

    fn up(&mut self, what: What, name: String, message: Message) {
        if let Answer::Changed(objects) = self.change(what, message) {
            self.own_pool = Some(Moment::Up { name, objects });
        }
    }

    fn destroy_pool(&mut self, objects: Vec<String>) {
        let message = client::destroy_pool(&objects[0]);
        self.change(What::DestroyPool { objects }, message);
    }
}
