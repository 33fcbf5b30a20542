//! Merges repeated causes: for each key one run, and one more if the cause came again during the
//! run.
//!
//! Must never know: what is run.

use std::collections::BTreeMap;

/// The keys whose run has not ended.
#[derive(Debug)]
pub(super) struct Merge<K> {
    /// For each key, whether another run follows.
    running: BTreeMap<K, bool>,
}

impl<K: Ord> Merge<K> {
    pub(super) fn new() -> Merge<K> {
        Merge { running: BTreeMap::new() }
    }

    /// The cause has occurred. Returns `true` if the run is to start now.
    pub(super) fn cause(&mut self, key: K) -> bool {
        let mut first = false;
        let again = self.running.entry(key).or_insert_with(|| {
            first = true;
            false
        });
        *again = !first;
        first
    }

    /// A run has ended. Returns `true` if another run is to start, because the cause occurred
    /// during the run.
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
    fn one_run_and_at_most_one_more() {
        let mut merge = Merge::new();
        assert!(merge.cause("a"));
        assert!(!merge.cause("a") && !merge.cause("a"), "causes during a run must wait");
        assert!(merge.cause("b"), "another key must not wait");
        assert!(merge.ended(&"a"), "causes during a run cause one more");
        assert!(!merge.cause("a"), "a cause during the second run must wait");
        assert!(merge.ended(&"a"));
        assert!(!merge.ended(&"a"), "a run without a cause");
        assert!(merge.cause("a"));
    }
}
