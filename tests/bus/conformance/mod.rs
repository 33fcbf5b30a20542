//! Compares the recorded answers of the existing daemon with those of this one, entry by entry.
//!
//! `observed.jsonl` holds 361 requests in the order in which they were made, with reply and
//! signals, as recorded (`docs/spec/dbus/dbus-behaviours.md`). This daemon must answer each of them
//! in the same way, unless `differences.json` lists the request with the reason and the other
//! answer. A listed difference that no longer exists is an error as well.
//!
//! Paths and UUIDs are matched by the objects that they name. Error texts are not compared. Other
//! tests check the order of signals; this one checks that each signal comes once.

mod compare;
mod values;

use std::collections::BTreeMap;

use compare::Known;
use dbus::Message;
use serde::Deserialize;
use serde_json::Value as Json;
use support::{
    bus::Bus,
    client::{self, Client},
};

/// A request as recorded.
#[derive(Debug, Clone, Deserialize)]
struct Entry {
    entry: usize,
    about: String,
    path: String,
    member: String,
    signature: String,
    arguments: Vec<Json>,
    reply: Reply,
    /// The reply of the previous version, if it differs.
    older: Option<Reply>,
    #[serde(default)]
    signals: Vec<Json>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Reply {
    Error {
        error: String,
    },
    /// `values` is missing if the recording cut the text.
    Return {
        signature: String,
        values: Option<Vec<Json>>,
    },
}

/// A deliberate difference.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Difference {
    entries: Vec<String>,
    why: String,
    /// The expected reply is that of the previous version.
    #[serde(default)]
    like_older: bool,
    reply: Option<Reply>,
    signals: Option<Vec<Json>>,
    /// The arguments of the call, in place of the recorded ones.
    arguments: Option<Vec<Json>>,
    /// Before the call, the pool of object `~/4` is filled up to this number of filesystems.
    fill_to: Option<usize>,
    /// The request is skipped, because its object was not made.
    #[serde(default)]
    unreachable: bool,
}

/// `7` or `7-9`.
fn numbers(ranges: &[String]) -> impl Iterator<Item = usize> {
    ranges.iter().flat_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        first.parse().unwrap()..=last.parse().unwrap()
    })
}

#[derive(Debug, Clone, PartialEq)]
enum Outcome {
    Passes,
    Differs(String),
    Unreachable,
}

struct Run {
    client: Client,
    known: Known,
}

impl Run {
    fn fill(&mut self, wanted: usize) {
        let pool = self.known.path("~/4").expect("the pool was made");
        let is_of_pool = |label: &client::Label| matches!(label, client::Label::Filesystem(of, _) if *of == pool);
        let there = client::labels(&self.client.list()).iter().filter(|(_, label)| is_of_pool(label)).count();
        for number in there..wanted {
            self.client.done(client::create_filesystem(&pool, &format!("filler{number}")));
        }
    }

    fn play(&mut self, entry: &Entry, difference: Option<&Difference>) -> Outcome {
        let nothing = Difference::default();
        let ours = difference.unwrap_or(&nothing);
        if let Some(wanted) = ours.fill_to {
            self.fill(wanted);
        }
        let arguments = ours.arguments.as_ref().unwrap_or(&entry.arguments);
        let Some(message) = self.message(entry, arguments) else { return Outcome::Unreachable };
        self.client.take_heard();
        let reply = self.client.call(message);
        let heard = self.client.take_heard();
        let older = entry.older.as_ref().filter(|_| ours.like_older);
        let expected = ours.reply.as_ref().or(older).unwrap_or(&entry.reply);
        let signals = ours.signals.as_ref().unwrap_or(&entry.signals);
        let is_other = ours.reply.is_some() || ours.like_older || ours.signals.is_some();
        if is_other && ours.arguments.is_none() {
            let as_recorded = self.compare(&mut self.known.clone(), (&entry.reply, &entry.signals), &reply, &heard);
            if as_recorded.is_ok() {
                return Outcome::Differs("this is what was recorded, and no difference".to_owned());
            }
        }
        let mut known = self.known.clone();
        match self.compare(&mut known, (expected, signals), &reply, &heard) {
            Ok(()) => {
                self.known = known;
                Outcome::Passes
            }
            Err(difference) => Outcome::Differs(difference),
        }
    }

    /// The call, or `None` if its object was not made.
    fn message(&self, entry: &Entry, arguments: &[Json]) -> Option<Message> {
        let (interface, member) = entry.member.rsplit_once('.').unwrap();
        let arguments: Vec<Json> = arguments.iter().map(|value| self.known.fill_in(value)).collect::<Option<_>>()?;
        let mut message = client::call(&self.known.path(&entry.path)?, &values::interface(interface), member, ());
        let items = values::items(&entry.signature, &arguments, interface == "Properties");
        message.append_items(&items);
        Some(message)
    }

    fn compare(
        &self,
        known: &mut Known,
        (expected, signals): (&Reply, &[Json]),
        reply: &Message,
        heard: &[Message],
    ) -> Result<(), String> {
        match (expected, client::full_error_name(reply)) {
            (Reply::Error { error }, Some(name)) if *error == name => {}
            (Reply::Return { signature, values }, None) => {
                let (found, are) = values::decode(reply);
                if *signature != found {
                    return Err(format!("the reply has signature {found}, not {signature}"));
                }
                let values = values.as_ref().map(|values| Json::from(values.clone())).unwrap_or(Json::Null);
                let are = Json::from(are);
                if !known.unify(&values, &are) {
                    return Err(format!("the reply is {are}, not {values}"));
                }
            }
            (expected, name) => return Err(format!("{expected:?}, but it is {name:?} {:?}", values::decode(reply))),
        }
        compare::signals(known, signals, heard)
    }
}

#[test]
fn observed_behaviour_holds_or_differs_for_a_reason() {
    let entries: Vec<Entry> =
        include_str!("observed.jsonl").lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let differences: Vec<Difference> = serde_json::from_str(include_str!("differences.json")).unwrap();
    let mut differs: BTreeMap<usize, &Difference> = BTreeMap::new();
    for difference in &differences {
        assert!(difference.why.len() > 20, "{difference:?} has no reason");
        for number in numbers(&difference.entries) {
            assert!(differs.insert(number, difference).is_none(), "{number} is listed twice");
        }
    }

    let bus = Bus::start();
    let _daemon = bus.daemon(&[]);
    let mut run = Run { client: Client::new(&bus).listens(""), known: Known::default() };
    let (mut wrong, mut passed) = (Vec::new(), 0);
    for entry in &entries {
        let number = entry.entry;
        let difference = differs.get(&number).copied();
        let outcome = run.play(entry, difference);
        let about = format!("{number}. {} ({})", entry.about, entry.member);
        match outcome {
            Outcome::Passes => passed += 1,
            Outcome::Unreachable if difference.is_some_and(|difference| difference.unreachable) => {}
            outcome => wrong.push(format!("{about}: {outcome:?}")),
        }
    }
    println!(
        "{} observed requests: {passed} answered as listed, {} of these deliberately in another way",
        entries.len(),
        differs.len()
    );
    assert_eq!(entries.len(), 361);
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
