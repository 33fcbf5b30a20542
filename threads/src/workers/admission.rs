//! Decides which jobs of one class may run. A plain value with methods.
//!
//! Must never know: threads, sync types, what a job does, and what a share stands for.
//!
//! Each job belongs to a *share*: the part of the program's work that it may block, and the only
//! one. At most [`Bounds::per_share`] jobs of a share run at once. All shares together may run
//! [`Bounds::shared`] jobs; beyond that a share may run one job if it runs none, so that no share
//! is blocked by others. [`Bounds::most`] bounds the total.
//!
//! Of the waiting shares, the one with the fewest running jobs is next, and among those the one
//! whose first job has the lowest rank. Within a share jobs run by rank, and by submission within a
//! rank.

use std::collections::{BTreeMap, BTreeSet};

/// How many jobs of a class may run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Of all shares together, not counting the one job that each share may always run.
    pub shared: usize,
    /// Of one share.
    pub per_share: usize,
    /// In total, whatever waits.
    pub most: usize,
}

/// The rank of a job and its number in the order of submission.
pub(super) type JobOrder = (u64, u64);

/// The waiting jobs of one class, and how many run.
#[derive(Debug)]
pub(super) struct Admission<K, J> {
    bounds: Bounds,
    running: usize,
    /// Shares with a waiting or running job.
    shares: BTreeMap<K, ShareJobs<J>>,
    /// Shares with a waiting job, the next one first. So no lookup walks the shares.
    waiting: BTreeSet<(usize, JobOrder, K)>,
}

#[derive(Debug)]
struct ShareJobs<J> {
    running: usize,
    jobs: BTreeMap<JobOrder, J>,
}

impl<K: Ord + Clone, J> Admission<K, J> {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, running: 0, shares: BTreeMap::new(), waiting: BTreeSet::new() }
    }

    /// Adds a job, which waits until [`Admission::admit`] returns it.
    pub(super) fn add(&mut self, share: K, place: JobOrder, job: J) {
        self.change(&share, |share| drop(share.jobs.insert(place, job)));
    }

    /// Returns the next job that may run and counts it as running.
    pub(super) fn admit(&mut self) -> Option<(K, J)> {
        let (running, place, share) = self.waiting.first()?.clone();
        // The first share runs the fewest jobs: if it may not run another one, no share may.
        let may = running < self.bounds.per_share
            && self.running < self.bounds.most
            && (self.running < self.bounds.shared || running == 0);
        if !may {
            return None;
        }
        let mut job = None;
        self.change(&share, |share| {
            job = share.jobs.remove(&place);
            share.running += 1;
        });
        self.running += 1;
        job.map(|job| (share, job))
    }

    /// An admitted job of this share has ended.
    pub(super) fn ended(&mut self, share: &K) {
        self.running -= 1;
        self.change(share, |share| share.running -= 1);
    }

    /// Changes a share and its position among the waiting shares.
    fn change(&mut self, key: &K, change: impl FnOnce(&mut ShareJobs<J>)) {
        let share = self.shares.entry(key.clone()).or_insert_with(|| ShareJobs { running: 0, jobs: BTreeMap::new() });
        let standing =
            |share: &ShareJobs<J>| share.jobs.keys().next().map(|first| (share.running, *first, key.clone()));
        if let Some(before) = standing(share) {
            self.waiting.remove(&before);
        }
        change(share);
        if let Some(after) = standing(share) {
            self.waiting.insert(after);
        }
        if share.running == 0 && share.jobs.is_empty() {
            self.shares.remove(key);
        }
    }
}

#[cfg(test)]
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { shared: 4, per_share: 3, most: 6 };

    /// Adds jobs of these shares, with ranks in this order, and returns the shares of those that
    /// may run.
    fn admitted(admission: &mut Admission<char, u64>, shares: &str) -> String {
        for (rank, share) in shares.chars().enumerate() {
            admission.add(share, (rank as u64, rank as u64), rank as u64);
        }
        all(admission)
    }

    fn all(admission: &mut Admission<char, u64>) -> String {
        std::iter::from_fn(|| admission.admit()).map(|(share, _)| share).collect()
    }

    #[test]
    fn a_share_runs_no_more_than_its_bound() {
        let mut admission = Admission::new(BOUNDS);
        assert_eq!(admitted(&mut admission, "aaaaa"), "aaa");
        admission.ended(&'a');
        assert_eq!(all(&mut admission), "a");
        assert_eq!(all(&mut admission), "");
    }

    #[test]
    fn each_share_runs_one_job_beyond_the_bound() {
        let mut admission = Admission::new(BOUNDS);
        assert_eq!(admitted(&mut admission, "aaabbb"), "abab");
        // The shared bound is reached, but c and d run nothing.
        assert_eq!(admitted(&mut admission, "ccd"), "cd");
        // The maximum is reached.
        assert_eq!(admitted(&mut admission, "e"), "");
        admission.ended(&'a');
        assert_eq!(all(&mut admission), "e", "it runs nothing; c and b run something");
    }

    #[test]
    fn the_share_with_fewest_running_jobs_is_next() {
        let mut admission = Admission::new(Bounds { shared: 3, per_share: 3, most: 3 });
        assert_eq!(admitted(&mut admission, "aaaabc"), "abc");
        admission.ended(&'b');
        assert_eq!(all(&mut admission), "a", "no other share waits");
        let mut admission = Admission::new(Bounds { shared: 2, per_share: 2, most: 2 });
        assert_eq!(admitted(&mut admission, "ab"), "ab");
        assert_eq!(admitted(&mut admission, "bcab"), "");
        admission.ended(&'a');
        assert_eq!(all(&mut admission), "c", "c is older than a, and b runs a job");
    }

    #[test]
    fn a_share_runs_its_jobs_by_rank() {
        let mut admission = Admission::new(Bounds { shared: 1, per_share: 1, most: 1 });
        for (submitted, rank) in [5, 3, 4, 3].into_iter().enumerate() {
            admission.add('a', (rank, submitted as u64), submitted);
        }
        let mut order = Vec::new();
        while let Some((share, job)) = admission.admit() {
            order.push(job);
            admission.ended(&share);
        }
        assert_eq!(order, [1, 3, 2, 0]);
        assert!(admission.shares.is_empty() && admission.waiting.is_empty() && admission.running == 0);
    }
}
