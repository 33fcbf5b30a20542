//! P3 and P4 for one change at a time: when the reply arrives, every client sees the change, and
//! exactly the signals of this change have come before the reply.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
};

use support::{
    bus::Bus,
    client::{self, BLOCKDEV, Client, FILESYSTEM, Label, Outcome, POOL, Signal},
};

/// Number of reads after a reply, over all clients.
const TRIES: usize = 10_000;
const CLIENTS: usize = 4;

/// Another connection that reads, and the wrong values that it found.
struct Looker<'a> {
    client: Client,
    tries: &'a AtomicUsize,
    misses: &'a AtomicUsize,
}

impl Looker<'_> {
    /// Checks the first list and the first `Get` after a reply.
    fn expect(&self, path: &str, interface: &str, property: &str, wanted: Option<&str>) {
        let list = self.client.list();
        let got = client::value(&self.client.call(client::get(path, interface, property)));
        let listed = client::labels(&list).into_iter().find_map(|(at, label)| (at == path).then_some(label));
        let listed = listed.map(|label| match label {
            Label::Pool(text) | Label::Filesystem(_, text) | Label::Device(text) => text,
        });
        let wanted_from_get = wanted.map(str::to_owned).ok_or("UnknownObject".to_owned());
        self.tries.fetch_add(1, Ordering::Relaxed);
        if listed.as_deref() != wanted || got != wanted_from_get {
            self.misses.fetch_add(1, Ordering::Relaxed);
            eprintln!("{path} should be {wanted:?}: listed as {listed:?}, got {got:?}");
        }
    }
}

/// The life of a pool: ten changes, each read by another client.
fn one_life(caller: &Client, other: &Looker<'_>, pool_name: &str) {
    let made = caller.done(client::create_pool(pool_name, &[&format!("/dev/{pool_name}-a")]));
    let pool = &made[0];
    other.expect(pool, POOL, "Name", Some(pool_name));
    let home = &caller.done(client::create_filesystem(pool, "home"))[0];
    other.expect(home, FILESYSTEM, "Name", Some("home"));
    caller.done(client::rename_filesystem(home, "house"));
    other.expect(home, FILESYSTEM, "Name", Some("house"));
    let copy = &caller.done(client::snapshot(pool, home, "copy"))[0];
    other.expect(copy, FILESYSTEM, "Name", Some("copy"));
    caller.done(client::set_user_info(&made[1], "spinning"));
    other.expect(&made[1], BLOCKDEV, "UserInfo", Some("(true spinning)"));
    let added = &caller.done(client::add_devices(pool, &[&format!("/dev/{pool_name}-b")]))[0];
    other.expect(added, BLOCKDEV, "UserInfo", Some("(false )"));
    let new_name = format!("{pool_name}-renamed");
    caller.done(client::rename_pool(pool, &new_name));
    other.expect(pool, POOL, "Name", Some(&new_name));
    caller.done(client::destroy_filesystem(pool, home));
    other.expect(home, FILESYSTEM, "Name", None);
    caller.done(client::destroy_filesystem(pool, copy));
    other.expect(copy, FILESYSTEM, "Name", None);
    caller.done(client::destroy_pool(pool));
    other.expect(pool, POOL, "Name", None);
}

#[test]
fn what_was_replied_is_in_the_next_read() {
    let bus = Bus::start();
    let _daemon = bus.daemon(&[]);
    let (tries, misses) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (bus, tries, misses) = (&bus, &tries, &misses);
            scope.spawn(move || {
                let caller = Client::new(bus);
                let other = Looker { client: Client::new(bus), tries, misses };
                for life in 0..TRIES / CLIENTS / 10 {
                    one_life(&caller, &other, &format!("p{number}-{life}"));
                }
            });
        }
    });
    let (tries, misses) = (tries.into_inner(), misses.into_inner());
    println!("read your writes: {tries} tries, {misses} misses");
    assert_eq!((tries, misses), (TRIES, 0));
}

/// A client that receives all signals.
struct Stage {
    client: Client,
    pool: String,
    device: String,
}

impl Stage {
    fn new(bus: &Bus) -> Stage {
        let client = Client::new(bus).listens("");
        let made = client.done(client::create_pool("p", &["/dev/a"]));
        let added: Vec<String> = client.take_signals().into_iter().filter_map(added).collect();
        assert_eq!(added.iter().collect::<BTreeSet<_>>(), made.iter().collect(), "pool and device, before the reply");
        assert_eq!(added.len(), 2, "each once");
        Stage { client, pool: made[0].clone(), device: made[1].clone() }
    }

    /// Makes a change and returns its result and the signals that came before the reply.
    fn change(&self, call: dbus::Message) -> (Vec<String>, Vec<Signal>) {
        let words = self.client.done(call);
        let before = self.client.take_signals();
        // Signals that come after the reply precede the reply to this call.
        let late = self.news();
        assert!(late.is_empty(), "after the reply: {late:?}");
        (words, before)
    }

    /// The signals so far, except those about usage, which is measured periodically and belongs to
    /// no call.
    fn news(&self) -> Vec<Signal> {
        self.client.call(client::ping());
        let measured = |property: &String| matches!(property.as_str(), "TotalPhysicalUsed" | "Used");
        let is_news = |signal: &Signal| match signal {
            Signal::Changed(_, _, values, _) => !values.keys().all(measured),
            _ => true,
        };
        self.client.take_signals().into_iter().filter(is_news).collect()
    }

    /// Checks that a call without effect is answered as such and sends no signal.
    #[track_caller]
    fn changes_nothing(&self, call: dbus::Message, wanted: &str) {
        let found = match client::outcome(&self.client.call(call)) {
            Outcome::Unchanged => "unchanged".to_owned(),
            Outcome::Refused(text) => {
                assert!(text.len() > 10, "{text}");
                "refused".to_owned()
            }
            Outcome::Error(name) => name,
            Outcome::Changed(words) => panic!("changed {words:?}"),
        };
        assert_eq!(found, wanted);
        let signals = self.news();
        assert!(signals.is_empty(), "{signals:?}");
    }
}

/// The path of an added object. The object must come with all interfaces of its kind.
fn added(signal: Signal) -> Option<String> {
    let Signal::Added(path, interfaces) = signal else { return None };
    let kind = interfaces.keys().next().unwrap().rsplit_once(".r").unwrap().0.to_owned();
    let wanted: BTreeSet<String> = (0..10).map(|revision| format!("{kind}.r{revision}")).collect();
    assert_eq!(interfaces.into_keys().collect::<BTreeSet<_>>(), wanted, "{path}");
    Some(path)
}

/// The number of revisions that announce a change of the property, and the announced values.
fn told(signals: &[Signal], object: &str, property: &str) -> (usize, BTreeSet<String>) {
    let mut revisions = 0;
    let mut values = BTreeSet::new();
    for signal in signals {
        let Signal::Changed(path, _, changed, _) = signal else { continue };
        if let (true, Some(value)) = (path == object, changed.get(property)) {
            revisions += 1;
            values.insert(value.clone());
        }
    }
    (revisions, values)
}

fn only(value: &str) -> BTreeSet<String> {
    BTreeSet::from([value.to_owned()])
}

#[test]
fn a_change_is_signalled_once_before_its_reply() {
    let bus = Bus::start();
    let _daemon = bus.daemon(&[]);
    let stage = Stage::new(&bus);
    let added_by = |signals: Vec<Signal>| signals.into_iter().filter_map(added).collect::<Vec<_>>();

    let (words, signals) = stage.change(client::create_filesystem(&stage.pool, "home"));
    let home = words[0].clone();
    assert_eq!(added_by(signals), [home.as_str()]);
    let (words, signals) = stage.change(client::snapshot(&stage.pool, &home, "copy"));
    let copy = words[0].clone();
    assert_eq!(added_by(signals), [copy.as_str()]);
    let (words, signals) = stage.change(client::add_devices(&stage.pool, &["/dev/b", "/dev/c"]));
    assert_eq!(added_by(signals).into_iter().collect::<BTreeSet<_>>(), words.into_iter().collect());

    let (_, signals) = stage.change(client::rename_filesystem(&home, "house"));
    assert_eq!(told(&signals, &home, "Name"), (10, only("house")));
    let (_, signals) = stage.change(client::rename_pool(&stage.pool, "q"));
    assert_eq!(told(&signals, &stage.pool, "Name"), (10, only("q")));
    let (_, signals) = stage.change(client::set_user_info(&stage.device, "old"));
    // Revisions from r3 on announce changes of this property, earlier ones do not.
    assert_eq!(told(&signals, &stage.device, "UserInfo"), (7, only("(true old)")));

    for (gone, call) in [
        (&copy, client::destroy_filesystem(&stage.pool, &copy)),
        (&home, client::destroy_filesystem(&stage.pool, &home)),
        (&stage.pool, client::destroy_pool(&stage.pool)),
    ] {
        let (_, signals) = stage.change(call);
        let removed = signals.iter().filter(|signal| match signal {
            Signal::Removed(path, interfaces) => path == gone && interfaces.len() == 10,
            _ => false,
        });
        assert_eq!(removed.count(), 1, "{signals:?}");
    }
}

#[test]
fn an_unchanged_object_sends_no_signal() {
    let bus = Bus::start();
    let _daemon = bus.daemon(&[]);
    let stage = Stage::new(&bus);
    let (client, pool, device) = (&stage.client, &stage.pool, &stage.device);
    let home = &client.done(client::create_filesystem(pool, "home"))[0];
    let other = &client.done(client::create_filesystem(pool, "other"))[0];
    client.done(client::set_user_info(device, "x"));
    client.take_signals();

    // Calls that have nothing to change.
    stage.changes_nothing(client::create_pool("p", &["/dev/a"]), "unchanged");
    stage.changes_nothing(client::create_filesystem(pool, "home"), "unchanged");
    stage.changes_nothing(client::snapshot(pool, home, "other"), "unchanged");
    stage.changes_nothing(client::rename_filesystem(home, "home"), "unchanged");
    stage.changes_nothing(client::rename_pool(pool, "p"), "unchanged");
    stage.changes_nothing(client::add_devices(pool, &["/dev/a"]), "unchanged");
    stage.changes_nothing(client::add_devices(pool, &[]), "unchanged");
    stage.changes_nothing(client::destroy_filesystem(pool, "/org/storage/stratis3/999"), "unchanged");
    // Calls with impossible values.
    stage.changes_nothing(client::create_pool("p", &["/dev/other"]), "refused");
    stage.changes_nothing(client::create_pool("q", &["/dev/a"]), "refused");
    stage.changes_nothing(client::create_pool("q", &["relative"]), "refused");
    stage.changes_nothing(client::create_pool("q", &[]), "refused");
    stage.changes_nothing(client::create_pool("a/b", &["/dev/b"]), "refused");
    stage.changes_nothing(client::create_filesystem(pool, ""), "refused");
    stage.changes_nothing(client::rename_filesystem(home, "other"), "refused");
    stage.changes_nothing(client::rename_filesystem("/org/storage/stratis3/999", "x"), "UnknownObject");
    stage.changes_nothing(client::snapshot(pool, device, "x"), "refused");
    stage.changes_nothing(client::destroy_pool(pool), "refused");
    stage.changes_nothing(client::destroy_pool(home), "refused");
    stage.changes_nothing(client::set_user_info(home, "x"), "UnknownInterface");
    stage.changes_nothing(client::rename_pool(other, "x"), "UnknownInterface");
    // Setting the same value again is no error and sends no signal.
    assert_eq!(client::outcome(&client.call(client::set_user_info(device, "x"))), Outcome::Changed(vec![]));
    assert_eq!(stage.news(), []);
}
