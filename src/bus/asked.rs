//! What a call asked for, which decides the form of its answer: return code and text, or a D-Bus error. The one place
//! that gives an outcome its form.
//!
//! Engine errors never become D-Bus errors of *methods*; setting a property knows nothing else. Texts are for people:
//! no client reads them (`docs/spec/dbus/dbus-api.md` §6).

use crate::bus::{
    answer::{Answer, error_name, readable},
    outcome::{Failure, Outcome},
    properties::NO_UUID,
    schema::{Filler, Interface},
    table::{Member, Row},
    tree::Tree,
    wire::{Body, Value},
};

/// Return code and text of a method that did what was asked, or found it done.
const OK: (u16, &str) = (0, "Ok");
/// Return code of a method that did not.
const REFUSED: u16 = 1;

/// What was called: decides the form of the answer.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    /// The method, or the property that is to be set.
    pub row: &'static Row,
    /// Through which interface.
    pub interface: Interface,
}

impl Asked {
    /// For the log, as `pool.r9.SetName`.
    pub fn label(&self) -> String {
        let set = if self.row.is_property() { "Set " } else { "" };
        format!("{set}{}.{}", self.interface.short(), self.row.name)
    }

    /// The answer.
    pub fn answer(&self, outcome: Outcome, tree: &Tree) -> Answer {
        match self.row.member {
            Member::Method { result, filler, .. } => {
                let fill = || result.map(|(_, signature)| filled(filler, signature));
                let (value, code, text) = match outcome {
                    Outcome::Done(build) => {
                        let value = build(tree);
                        (result.map(|_| value), OK.0, OK.1.to_owned())
                    }
                    Outcome::NoChange => (fill(), OK.0, OK.1.to_owned()),
                    Outcome::Refused(text) => (fill(), REFUSED, readable(text)),
                };
                let values: Vec<Value> = value.into_iter().chain([Value::U16(code), Value::Str(text)]).collect();
                Answer::Return(Body::of(&values))
            }
            Member::Property { .. } => match outcome {
                Outcome::Done(_) | Outcome::NoChange => Answer::Return(Body::empty()),
                // Every stratis-cli from 3.7 on but 3.9.0 explains a refusal under this name, and none of those under another
                // (`dbus-api.md` §6.3).
                Outcome::Refused(text) => Answer::Error(error_name::FAILED, text),
            },
        }
    }

    /// The outcome of a request that did not come to its end.
    pub fn failure(&self, failure: Failure) -> Outcome {
        Outcome::Refused(match failure {
            Failure::Panicked => format!(
                "{} met with a fault of the daemon and was given up; please report it with what the log says",
                self.label()
            ),
            Failure::Stopping => {
                "the daemon is stopping and takes no more requests; try again when it is up".to_owned()
            }
            Failure::Unfinished => format!(
                "the daemon is stopping and could not wait for the end of {}; look what has become of it when it is up",
                self.label()
            ),
        })
    }
}

fn filled(filler: Filler, signature: &'static str) -> Value {
    match (filler, Value::filler(signature)) {
        (Filler::Zeros, Value::Struct(fields)) => {
            let zeros = |field| if field == Value::str("") { Value::str(NO_UUID) } else { field };
            Value::Struct(fields.into_iter().map(zeros).collect())
        }
        (_, value) => value,
    }
}
