//! Undo: what has been done so far, and how to take it back.
//!
//! An operation pushes the undo of each step when the step has succeeded. If a later step fails, the list is run
//! backwards; if it succeeds, the list is dropped. So the rollback follows from the steps that ran and is never written by
//! hand in an error branch.

use crate::{
    engine::error::{Error, Result},
    platform::Platform,
    view::Availability,
};

type Step = Box<dyn FnOnce(&dyn Platform) -> Result<()> + Send>;

/// The undo steps of what has been done so far, oldest first.
#[derive(Default)]
#[must_use]
pub struct Rollback {
    steps: Vec<(String, Step)>,
}

impl Rollback {
    /// Nothing done yet.
    pub fn new() -> Rollback {
        Rollback::default()
    }

    /// Remembers how to take back what was just done. `what` completes "could not …".
    pub fn push<E: Into<Error>>(
        &mut self,
        what: impl Into<String>,
        undo: impl FnOnce(&dyn Platform) -> std::result::Result<(), E> + Send + 'static,
    ) {
        self.steps.push((what.into(), Box::new(|platform| undo(platform).map_err(Into::into))));
    }

    /// Takes over what was done by others on the same work.
    pub fn append(&mut self, mut others: Rollback) {
        self.steps.append(&mut others.steps);
    }

    /// The work is complete and stays.
    pub fn forget(mut self) {
        self.steps.clear();
    }

    /// Takes everything back, newest first, because of `cause`. A step that cannot be taken back does not keep the
    /// others from being tried.
    ///
    /// Gives `cause`, or, if something could not be taken back, an [`Error::Rollback`] that names both.
    pub fn run(mut self, platform: &dyn Platform, cause: Error) -> Error {
        let mut failures = Vec::new();
        while let Some((what, undo)) = self.steps.pop() {
            if let Err(error) = undo(platform) {
                log::error!("after an error ({}): could not {what}: {}", cause.sentence(), error.sentence());
                failures.push((what, error));
            }
        }
        match failures.is_empty() {
            true => cause,
            false => Error::Rollback { cause: Box::new(cause), failures, leaves: Availability::NoRequests },
        }
    }

    /// Runs `work`; if it fails, takes everything back that was done, before it and by it.
    ///
    /// # Errors
    /// As [`Rollback::run`].
    pub fn guard<T>(
        mut self,
        platform: &dyn Platform,
        work: impl FnOnce(&mut Rollback) -> Result<T>,
    ) -> Result<(T, Rollback)> {
        match work(&mut self) {
            Ok(value) => Ok((value, self)),
            Err(cause) => Err(self.run(platform, cause)),
        }
    }
}
