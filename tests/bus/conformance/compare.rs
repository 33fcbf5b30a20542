//! Compares recorded values with those of this daemon. A recorded path or UUID matches the first
//! value found in its place, and from then on only that value.

use std::collections::BTreeMap;

use dbus::Message;
use serde_json::{Value as Json, json};

use super::values;
use support::client::TOP;

/// Sizes that are constants in the simulated engine of the recording. Here they follow from the
/// stored data and change with it.
const MEASURED: [&str; 6] = ["AllocatedSize", "NoAllocSpace", "Size", "TotalPhysicalSize", "TotalPhysicalUsed", "Used"];

/// The paths and UUIDs of this run that correspond to recorded paths (`~/7`) and UUIDs (`<P1>`).
#[derive(Debug, Clone, Default)]
pub struct Known {
    names: BTreeMap<String, String>,
}

fn hyphenated(uuid: &str) -> String {
    [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &uuid[part]).join("-")
}

fn is_uuid(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|letter| letter.is_ascii_hexdigit())
}

/// The name of a placeholder, and whether it stands for a UUID with hyphens.
fn placeholder(text: &str) -> Option<(&str, bool)> {
    let name = text.strip_prefix('<')?.strip_suffix('>')?;
    Some(match name {
        "uuid, hyphenated" => ("uuid", true),
        _ => name.strip_suffix("-hyphenated").map_or((name, false), |name| (name, true)),
    })
}

fn is_path(text: &str) -> bool {
    text == "~" || text.strip_prefix("~/").is_some_and(|number| number.bytes().all(|digit| digit.is_ascii_digit()))
}

impl Known {
    /// The path in this run, or `None` if the object was not made. Object 999 never existed in the
    /// recording.
    pub fn path(&self, recorded: &str) -> Option<String> {
        match recorded {
            "~" => Some(TOP.to_owned()),
            "~/999" => Some(format!("{TOP}/999999")),
            _ => self.names.get(recorded).cloned(),
        }
    }

    /// An argument with the paths and UUIDs of this run.
    pub fn fill_in(&self, value: &Json) -> Option<Json> {
        Some(match value {
            Json::String(text) if is_path(text) => self.path(text)?.into(),
            Json::String(text) => match placeholder(text) {
                Some((name, with_hyphens)) => {
                    let uuid = self.names.get(name)?;
                    if with_hyphens { hyphenated(uuid).into() } else { uuid.clone().into() }
                }
                None => value.clone(),
            },
            Json::Array(values) => Json::Array(values.iter().map(|value| self.fill_in(value)).collect::<Option<_>>()?),
            Json::Object(entries) => Json::Object(
                entries.iter().map(|(key, value)| Some((key.clone(), self.fill_in(value)?))).collect::<Option<_>>()?,
            ),
            _ => value.clone(),
        })
    }

    fn learn(&mut self, name: &str, found: &str) -> bool {
        match self.names.get(name) {
            Some(known) => known == found,
            None if self.names.values().any(|known| known == found) => false,
            None => self.names.insert(name.to_owned(), found.to_owned()).is_none(),
        }
    }

    fn unify_text(&mut self, recorded: &str, found: &str) -> bool {
        if recorded == "~" {
            return found == TOP;
        }
        if is_path(recorded) {
            return found.starts_with(TOP) && self.learn(recorded, found);
        }
        match placeholder(recorded) {
            None => recorded == found,
            Some((name, with_hyphens)) => {
                let bare = if with_hyphens { found.replace('-', "") } else { found.to_owned() };
                let is_form = is_uuid(&bare) && (!with_hyphens || hyphenated(&bare) == found);
                is_form && (name == "uuid" || self.learn(name, &bare))
            }
        }
    }

    /// Whether the found value can correspond to the recorded one. `null` matches any value except
    /// an empty text. Arrays may be in another order: a recorded array often had the order of a
    /// hash table.
    pub fn unify(&mut self, recorded: &Json, found: &Json) -> bool {
        match (recorded, found) {
            (Json::Null, found) => found.as_str() != Some(""),
            (Json::String(recorded), Json::String(found)) => self.unify_text(recorded, found),
            (Json::Array(recorded), Json::Array(found)) => {
                let in_order = |known: &mut Known| {
                    recorded.len() == found.len() && recorded.iter().zip(found).all(|(a, b)| known.unify(a, b))
                };
                let mut known = self.clone();
                if in_order(&mut known) {
                    *self = known;
                    return true;
                }
                let mut left: Vec<&Json> = found.iter().collect();
                // Values without a known name are matched last.
                recorded.iter().all(|recorded| self.take(recorded, &mut left)) && left.is_empty()
            }
            (Json::Object(recorded), Json::Object(found)) => {
                let mut left: Vec<Json> = found.iter().map(|(key, value)| json!([key, value])).collect();
                recorded.iter().all(|(key, value)| {
                    let mut refs: Vec<&Json> = left.iter().collect();
                    let taken = self.take(&json!([key, value]), &mut refs);
                    left = refs.into_iter().cloned().collect();
                    taken
                }) && left.is_empty()
            }
            _ => recorded == found,
        }
    }

    /// Takes a value that can correspond to the recorded one from those that are left.
    fn take(&mut self, recorded: &Json, left: &mut Vec<&Json>) -> bool {
        for at in 0..left.len() {
            let mut known = self.clone();
            if known.unify(recorded, left[at]) {
                *self = known;
                left.remove(at);
                return true;
            }
        }
        false
    }
}

/// Splits recorded signals into single facts, each of them once: the existing daemon sends some of
/// them twice, or in several messages. The flag says whether there were more signals than the
/// recording contains.
fn recorded_facts(signals: &[Json]) -> (Vec<Json>, bool) {
    let (mut facts, mut are_more) = (Vec::new(), false);
    for signal in signals {
        let kind = &signal["interface"];
        if !signal["more"].is_null() {
            are_more = true;
        } else if !signal["added"].is_null() {
            facts.push(json!(["added", kind, signal["added"]]));
        } else if !signal["removed"].is_null() {
            facts.push(json!(["removed", kind, signal["removed"]]));
        } else {
            let revision = |at: usize| signal["revisions"][at].as_u64().unwrap();
            for revision in revision(0)..=revision(1) {
                let interface = format!("{}.r{revision}", kind.as_str().unwrap());
                for (property, value) in signal["values"].as_object().unwrap() {
                    facts.push(json!(["changed", interface, signal["changed"], property, value]));
                }
                for property in signal["invalidated"].as_array().into_iter().flatten() {
                    facts.push(json!(["invalid", interface, signal["changed"], property]));
                }
            }
        }
    }
    let mut once: Vec<Json> = Vec::new();
    facts.into_iter().for_each(|fact| {
        if !once.contains(&fact) {
            once.push(fact);
        }
    });
    (once, are_more)
}

/// The received signals as facts.
fn found_facts(heard: &[Message]) -> Result<Vec<Json>, String> {
    let short = |name: &str| name.replace("org.storage.stratis3.", "");
    let mut facts = Vec::new();
    for message in heard {
        let (_, arguments) = values::decode(message);
        let member = message.member().map(|member| member.to_string()).unwrap_or_default();
        match (member.as_str(), arguments.as_slice()) {
            ("InterfacesAdded", [path, interfaces]) => {
                let names = interfaces.as_object().unwrap().keys().map(|name| short(name)).collect();
                facts.push(json!(["added", all_revisions(names)?, path]));
            }
            ("InterfacesRemoved", [path, interfaces]) => {
                let names = interfaces.as_array().unwrap().iter().map(|name| short(name.as_str().unwrap())).collect();
                facts.push(json!(["removed", all_revisions(names)?, path]));
            }
            ("PropertiesChanged", [interface, changed, invalidated]) => {
                let (interface, path) = (short(interface.as_str().unwrap()), message.path().unwrap().to_string());
                for (property, value) in changed.as_object().unwrap() {
                    facts.push(json!(["changed", interface, path, property, value]));
                }
                for property in invalidated.as_array().unwrap() {
                    facts.push(json!(["invalid", interface, path, property]));
                }
            }
            // Signals of the bus itself, about names.
            _ => {}
        }
    }
    Ok(facts)
}

/// The kind of the interfaces. All revisions of this kind must be among the names.
fn all_revisions(mut names: Vec<String>) -> Result<String, String> {
    names.sort();
    let kind = names.first().and_then(|name| name.split_once('.')).map(|(kind, _)| kind.to_owned()).unwrap_or_default();
    let all: Vec<String> = (0..10).map(|revision| format!("{kind}.r{revision}")).collect();
    if names == all { Ok(kind) } else { Err(format!("a signal names the interfaces {names:?}")) }
}

/// Compares the signals of one request.
pub fn signals(known: &mut Known, recorded: &[Json], heard: &[Message]) -> Result<(), String> {
    let (recorded, are_more) = recorded_facts(recorded);
    let found = found_facts(heard)?;
    for (at, fact) in found.iter().enumerate() {
        if found[..at].contains(fact) {
            return Err(format!("signalled twice: {fact}"));
        }
    }
    let mut left: Vec<&Json> = found.iter().collect();
    for fact in &recorded {
        if !known.take(fact, &mut left) {
            return Err(format!("not signalled: {fact}, only {left:?}"));
        }
    }
    left.retain(|fact| !(fact[0] == "changed" && MEASURED.iter().any(|property| fact[3] == *property)));
    if left.is_empty() || are_more { Ok(()) } else { Err(format!("signalled as well: {left:?}")) }
}
