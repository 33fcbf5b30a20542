//! Resources of calls that wait for the engine, and the limits on what one client, and all clients
//! together, can make the daemon keep.
//!
//! A call is admitted when it is read and counts until it is answered or given up. Reads are
//! answered at once and never counted. This module does not know what the calls do.

use std::{
    collections::HashMap,
    ops::{AddAssign, SubAssign},
    sync::Arc,
};

use parking_lot::Mutex;

use crate::bus::wire::Value;

/// Resources of calls.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Number of calls.
    pub calls: usize,
    /// Memory of their arguments, approximately.
    pub bytes: usize,
    /// Descriptors of passphrases that are still to be read.
    pub descriptors: usize,
}

/// The most that one caller may have waiting. A caller's only call may exceed the limit: it fitted
/// into a message.
const OF_ONE: Load = Load { calls: 4096, bytes: 16 << 20, descriptors: 64 };
/// The most that all callers together may have waiting. The descriptors stay far below the 1024
/// that a service may have by default.
const OF_ALL: Load = Load { calls: 16384, bytes: 64 << 20, descriptors: 256 };

impl Load {
    /// The load of one call with these arguments, without their descriptors, since those that are
    /// not needed are closed at once.
    pub fn of(arguments: &[Value]) -> Load {
        let mut load = Load { calls: 1, ..Load::default() };
        let mut note = |value: &Value| {
            load.bytes += size_of::<Value>();
            match value {
                Value::Str(text) | Value::Path(text) => load.bytes += text.len(),
                _ => {}
            }
        };
        arguments.iter().for_each(|argument| argument.leaves(&mut note));
        load
    }

    fn exceeds(self, limit: Load) -> bool {
        self.calls > limit.calls || self.bytes > limit.bytes || self.descriptors > limit.descriptors
    }
}

impl AddAssign for Load {
    fn add_assign(&mut self, other: Load) {
        self.calls += other.calls;
        self.bytes += other.bytes;
        self.descriptors += other.descriptors;
    }
}

impl SubAssign for Load {
    fn sub_assign(&mut self, other: Load) {
        self.calls -= other.calls;
        self.bytes -= other.bytes;
        self.descriptors -= other.descriptors;
    }
}

/// All calls that wait. Clones share one state.
#[derive(Debug, Default, Clone)]
pub struct PendingCalls(Arc<Mutex<Loads>>);

#[derive(Debug, Default)]
struct Loads {
    all: Load,
    /// The load of each caller that has any.
    of_each: HashMap<String, Load>,
}

/// An admitted call. It counts until this is dropped.
#[derive(Debug)]
#[must_use = "a permit that is dropped does not count"]
pub struct CallPermit {
    pending: PendingCalls,
    caller: String,
    load: Load,
}

impl PendingCalls {
    /// Admits a call. `None` if too much waits already.
    pub fn admit(&self, caller: &str, load: Load) -> Option<CallPermit> {
        let mut loads = self.0.lock();
        let mut of_caller = loads.of_each.get(caller).copied().unwrap_or_default();
        let mut of_all = loads.all;
        let is_first = of_caller.calls == 0;
        of_caller += load;
        of_all += load;
        if (of_caller.exceeds(OF_ONE) && !is_first) || (of_all.exceeds(OF_ALL) && loads.all.calls > 0) {
            return None;
        }
        loads.all = of_all;
        loads.of_each.insert(caller.to_owned(), of_caller);
        Some(CallPermit { pending: self.clone(), caller: caller.to_owned(), load })
    }
}

impl Drop for CallPermit {
    fn drop(&mut self) {
        let mut loads = self.pending.0.lock();
        loads.all -= self.load;
        if let Some(of_caller) = loads.of_each.get_mut(&self.caller) {
            *of_caller -= self.load;
            if of_caller.calls == 0 {
                loads.of_each.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Load, OF_ALL, OF_ONE, PendingCalls};
    use crate::bus::wire::Value;

    const SMALL: Load = Load { calls: 1, bytes: 100, descriptors: 0 };

    fn admitted(pending: &PendingCalls, caller: &str, load: Load) -> Vec<super::CallPermit> {
        std::iter::from_fn(|| pending.admit(caller, load)).collect()
    }

    #[test]
    fn each_caller_has_its_own_limit() {
        let pending = PendingCalls::default();
        let many = admitted(&pending, ":1.1", SMALL);
        assert_eq!(many.len(), OF_ONE.calls);
        let long = admitted(&pending, ":1.2", Load { bytes: 1 << 20, ..SMALL });
        assert_eq!(long.len(), 16);
        let with_keys = admitted(&pending, ":1.3", Load { descriptors: 1, ..SMALL });
        assert_eq!(with_keys.len(), OF_ONE.descriptors);
        assert!(pending.admit(":1.4", SMALL).is_some());
        drop(many);
        assert!(pending.admit(":1.1", SMALL).is_some());
    }

    #[test]
    fn one_large_call_is_admitted_within_the_total() {
        let pending = PendingCalls::default();
        let large = Load { bytes: OF_ONE.bytes * 2, ..SMALL };
        let first = pending.admit(":1.1", large).unwrap();
        assert!(pending.admit(":1.1", SMALL).is_none());
        let second = pending.admit(":1.2", large).unwrap();
        assert!(pending.admit(":1.3", large).is_none(), "more than {OF_ALL:?} together");
        drop((first, second));
        assert!(pending.admit(":1.3", large).is_some());
    }

    #[test]
    fn memory_of_arguments_is_counted() {
        let texts = Value::Array("s", vec![Value::str("x".repeat(1000)); 10]);
        let load = Load::of(&[texts, Value::variant(Value::Bool(true))]);
        assert_eq!((load.calls, load.descriptors), (1, 0));
        assert!((10_000..12_000).contains(&load.bytes), "{load:?}");
    }

    #[test]
    fn nothing_is_kept_of_callers_without_calls() {
        let pending = PendingCalls::default();
        for number in 0..1000 {
            drop(pending.admit(&format!(":1.{number}"), SMALL));
        }
        assert!(pending.0.lock().of_each.is_empty());
        assert_eq!(pending.0.lock().all, Load::default());
    }
}
