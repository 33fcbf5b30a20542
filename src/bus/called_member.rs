//! The member that a call names. It decides the form of the answer: return code and text, or a
//! D-Bus error. No other module gives an outcome its form.
//!
//! Engine errors never become D-Bus errors of *methods*. A failed set of a property does become a
//! D-Bus error, since it has no other way to fail. The texts are for people: no client parses them
//! (`docs/spec/dbus/dbus-api.md` §6).

use crate::{
    bus::{
        answer::{Answer, error_name, readable},
        outcome::Outcome,
        properties::NO_UUID,
        schema::{Filler, Interface},
        table::{MemberShape, Row},
        tree::Tree,
        wire::{Body, Value},
    },
    service::Failure,
};

/// Return code and text of a method that succeeded or found nothing to change.
const OK: (u16, &str) = (0, "Ok");
/// Return code of a method that was refused or failed.
const REFUSED: u16 = 1;

/// The member that was called. It decides the form of the answer.
#[derive(Debug, Clone, Copy)]
pub struct CalledMember {
    /// The method, or the property to set.
    pub row: &'static Row,
    /// The interface that the call names.
    pub interface: Interface,
}

impl CalledMember {
    /// The call's label in the log, such as `pool.r9.SetName`.
    pub fn label(&self) -> String {
        let set = if self.row.is_property() { "Set " } else { "" };
        format!("{set}{}.{}", self.interface.short(), self.row.name)
    }

    /// Gives the outcome the form of an answer.
    pub fn answer(&self, outcome: Outcome, tree: &Tree) -> Answer {
        match self.row.member {
            MemberShape::Method { result, filler, .. } => {
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
            MemberShape::Property { .. } => match outcome {
                Outcome::Done(_) | Outcome::NoChange => Answer::Return(Body::empty()),
                // stratis-cli since 3.7, except 3.9.0, explains a refusal with this error name.
                // None of these releases explains one with another name (`dbus-api.md` §6.3).
                Outcome::Refused(text) => Answer::Error(error_name::FAILED, text),
            },
        }
    }

    /// The outcome of a request that did not finish.
    pub fn failure(&self, failure: Failure) -> Outcome {
        Outcome::Refused(match failure {
            Failure::Panicked => {
                format!("{} failed because of a bug in the daemon; report it with the log", self.label())
            }
            Failure::Stopping => "the daemon is stopping and takes no more requests; try again when it runs".to_owned(),
            Failure::Unfinished => format!(
                "the daemon is stopping and could not wait for {} to finish; check its result when the daemon runs again",
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
