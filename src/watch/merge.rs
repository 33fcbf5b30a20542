//! Repeated causes merge: for each key one run, and one more if the cause came again meanwhile.
//!
//! Must never know: what is run.

use std::collections::BTreeMap;

/// What is under way, by key.
#[derive(Debug)]
pub(super) struct Merge<K> {
    /// The value: whether to run again.
    running: BTreeMap<K, bool>,
}

impl<K: Ord> Merge<K> {
    pub(super) fn new() -> Merge<K> {
        Merge { running: BTreeMap::new() }
    }

    /// The cause has come. True: run now.
    pub(super) fn cause(&mut self, key: K) -> bool {
        let mut first = false;
        let again = self.running.entry(key).or_insert_with(|| {
            first = true;
            false
        });
        *again = !first;
        first
    }

    /// A run has ended. True: run again, since the cause came while it was under way.
    pub(super) fn ended(&mut self, key: &K) -> bool {
        match self.running.get_mut(key) {
            Some(again) if *again => {
                *again = false;
                true
            }
            _ => {
                self.running.remove(key);
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Merge;

    #[test]
    fn one_runs_and_one_waits() {
        let mut merge = Merge::new();
        assert!(merge.cause("a"));
        assert!(!merge.cause("a") && !merge.cause("a"), "two causes during a run");
        assert!(merge.cause("b"), "another key is its own");
        assert!(merge.ended(&"a"), "are one more run");
        assert!(!merge.cause("a"), "during which the cause can come again");
        assert!(merge.ended(&"a"));
        assert!(!merge.ended(&"a"), "and that is all");
        assert!(merge.cause("a"));
    }
}
