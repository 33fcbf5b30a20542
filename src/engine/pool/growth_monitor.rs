//! What checks of a pool remember about its thin pool, so that the next check knows what has been
//! tried, what has been learnt and when to check again. All of it may be lost: the next set-up of
//! the pool starts without it, except for the low-water mark, which it reads from the kernel.

use std::time::Duration;

use crate::{
    base::{
        name::Name,
        units::{DataBlocks, Sectors},
    },
    engine::{
        plan::growth::Growth,
        thin_status::{self, State},
    },
};

/// What the need for thin metadata depends on: the usable size of the pool and its limit of
/// filesystems.
pub type MetadataDemand = (Sectors, u64);

/// What checks remember about the growth of a thin pool.
#[derive(Debug, Default)]
pub struct GrowthMonitor {
    /// The thin metadata could not grow as it should, and nothing has changed since that might let
    /// it grow.
    metadata_exhausted: bool,
    /// The size that the thin metadata should have, as computed for this demand.
    metadata_needed: Option<(MetadataDemand, Sectors)>,
    /// A growth that the kernel refused, with the space available then. The pool does not try that
    /// growth again until the available space changes.
    refused: Option<(Growth, Sectors)>,
    /// The kernel's tables lag behind the recorded metadata.
    is_behind: bool,
    /// The low-water mark at which the kernel should raise an event; `None`: the usual one.
    low_water: Option<DataBlocks>,
    /// When to check the pool again. No event reports that programs are writing.
    look_again: Option<Duration>,
    /// Data blocks in use at the last check.
    data_used: Option<DataBlocks>,
    /// How long no write has been seen, as far as the checks can tell.
    quiet: Duration,
    /// State of the thin pool at the last check.
    thin_state: Option<State>,
}

impl GrowthMonitor {
    // ---- thin metadata ----

    /// Whether the thin metadata was found unable to grow, and nothing has changed since.
    pub fn is_metadata_exhausted(&self) -> bool {
        self.metadata_exhausted
    }

    /// Notes that the thin metadata cannot grow as it should.
    pub fn note_metadata_exhausted(&mut self) {
        self.metadata_exhausted = true;
    }

    /// Lets the next check try to extend the thin metadata again: more space has become available,
    /// or less of it is promised to filesystems.
    pub fn retry_metadata(&mut self) {
        self.metadata_exhausted = false;
    }

    /// The size that the thin metadata should have, if it has been computed for this demand.
    pub fn metadata_needed(&self, demand: MetadataDemand) -> Option<Sectors> {
        self.metadata_needed.filter(|(known, _)| *known == demand).map(|(_, needed)| needed)
    }

    /// Notes the size that the thin metadata should have for this demand.
    pub fn note_metadata_needed(&mut self, demand: MetadataDemand, needed: Sectors) {
        self.metadata_needed = Some((demand, needed));
    }

    // ---- tables ----

    /// Whether the kernel refused this growth when as much space was available as now.
    pub fn is_refused(&self, growth: &Growth, available: Sectors) -> bool {
        self.refused == Some((*growth, available))
    }

    /// Notes a growth that failed, and whether the kernel refused it for good.
    pub fn note_failed(&mut self, growth: &Growth, available: Sectors, is_refusal: bool) {
        self.refused = is_refusal.then_some((*growth, available));
    }

    /// Whether the kernel's tables lag behind the recorded metadata.
    pub fn is_behind(&self) -> bool {
        self.is_behind
    }

    /// Notes whether the kernel's tables lag behind the recorded metadata.
    pub fn note_behind(&mut self, is_behind: bool) {
        self.is_behind = is_behind;
    }

    // ---- the low-water mark and the next check ----

    /// The low-water mark that the thin pool should have.
    pub fn low_water(&self, usual: DataBlocks) -> DataBlocks {
        self.low_water.unwrap_or(usual)
    }

    /// Adopts the low-water mark of a running thin pool; `None`: the thin pool does not run.
    pub fn adopt_low_water(&mut self, mark: Option<DataBlocks>) {
        self.low_water = mark;
    }

    /// Moves the low-water mark, and returns the former mark for
    /// [`GrowthMonitor::take_back_low_water`].
    pub fn move_low_water(&mut self, mark: DataBlocks) -> Option<DataBlocks> {
        self.quiet = Duration::ZERO;
        self.low_water.replace(mark)
    }

    /// Goes back to the former mark, because the table with the new one could not be put in place.
    /// The thin pool may even have been left suspended.
    pub fn take_back_low_water(&mut self, former: Option<DataBlocks>) {
        self.low_water = former;
        self.is_behind = true;
    }

    /// The time after which the pool has to be checked again, if no event will come.
    pub fn look_again(&self) -> Option<Duration> {
        self.look_again
    }

    /// Notes when the pool has to be checked again.
    pub fn set_look_again(&mut self, after: Option<Duration>) {
        self.look_again = after;
    }

    /// How long no write has been seen.
    pub fn quiet(&self) -> Duration {
        self.quiet
    }

    /// Notes how many data blocks are in use, `time` after the last check.
    pub fn note_use(&mut self, used: DataBlocks, time: Duration) {
        match self.data_used.replace(used) {
            Some(before) if before == used => self.quiet = self.quiet.saturating_add(time),
            _ => self.quiet = Duration::ZERO,
        }
    }

    // ---- the state of the thin pool ----

    /// State of the thin pool at the last check.
    pub fn thin_state(&self) -> Option<State> {
        self.thin_state
    }

    /// Notes the state in the status line of the thin pool, and logs a change.
    pub(super) fn note_thin_state(&mut self, pool: &Name, status: &str) {
        let state = thin_status::state(status);
        let before = std::mem::replace(&mut self.thin_state, state);
        match state {
            _ if before == state || before.is_none() && state == Some(State::ReadWrite) => {}
            Some(State::ReadWrite) => log::info!("the thin pool of {pool} works normally again"),
            Some(state) => log::warn!("the thin pool of {pool} {}", state.says()),
            None => log::warn!("the thin pool of {pool} does not report its state"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_ends_the_idle_time() {
        let mut growth = GrowthMonitor::default();
        let second = Duration::from_secs(1);
        for (used, quiet) in [(7, 0), (7, 1), (7, 2), (8, 0), (8, 1), (6, 0), (6, 1)] {
            growth.note_use(DataBlocks(used), second);
            assert_eq!(growth.quiet(), second * quiet, "{used}");
        }
        growth.move_low_water(DataBlocks(1));
        assert_eq!(growth.quiet(), Duration::ZERO);
    }
}
