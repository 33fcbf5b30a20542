//! Undo: what has been done so far, and how to take it back.
//!
//! An operation pushes the undo of each step when the step has succeeded. If a later step fails, the list is run
//! backwards; if it succeeds, the list is dropped. So the rollback follows from the steps that ran and is never written by
//! hand in an error branch.
//!
//! It is also run when the work panics, before the panic goes on to whoever contains it: what that could not know of would
//! stay on the machine.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

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
            // One that panics does not keep the others from being tried either.
            let undone = catch_unwind(AssertUnwindSafe(|| undo(platform))).unwrap_or(Err(Error::Panicked));
            if let Err(error) = undone {
                log::error!("after an error ({}): could not {what}: {}", cause.sentence(), error.sentence());
                failures.push((what, error));
            }
        }
        match failures.is_empty() {
            true => cause,
            false => Error::Rollback { cause: Box::new(cause), failures, leaves: Availability::NoRequests },
        }
    }

    /// Runs `work`; if it fails or panics, takes everything back that was done, before it and by it.
    ///
    /// # Errors
    /// As [`Rollback::run`].
    ///
    /// # Panics
    /// If `work` does, when all has been taken back.
    pub fn guard<T>(
        mut self,
        platform: &dyn Platform,
        work: impl FnOnce(&mut Rollback) -> Result<T>,
    ) -> Result<(T, Rollback)> {
        // What work was changing is given up by whoever contains the panic; the list is only pushed to.
        match catch_unwind(AssertUnwindSafe(|| work(&mut self))) {
            Ok(Ok(value)) => Ok((value, self)),
            Ok(Err(cause)) => Err(self.run(platform, cause)),
            Err(panic) => {
                // What could not be taken back is in the log.
                drop(self.run(platform, Error::Panicked));
                resume_unwind(panic)
            }
        }
    }
}

/// Runs `work`; if it panics, `mend` is run before the panic goes on. For what must not outlast the work, such as a device held
/// still, and is set right by the work itself when it merely fails.
pub fn mended<T>(work: impl FnOnce() -> T, mend: impl FnOnce()) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        if catch_unwind(AssertUnwindSafe(mend)).is_err() {
            log::error!("setting things right after a panic panicked, too");
        }
        resume_unwind(panic)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::platform::sim::Sim;

    fn note(undo: &mut Rollback, told: &Sender<&'static str>, what: &'static str) {
        let told = told.clone();
        undo.push(what, move |_| -> Result<()> {
            told.send(what).expect("the test listens");
            Ok(())
        });
    }

    /// Found in review: a panic left the thin devices of a create up, and the pool could neither be stopped nor destroyed.
    #[test]
    fn work_that_panics_is_taken_back() {
        let sim = Sim::builder().build();
        let (told, undone) = channel();
        let mut before = Rollback::new();
        note(&mut before, &told, "first");
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            before.guard(&sim, |undo| -> Result<()> {
                note(undo, &told, "second");
                undo.push("third", |_| -> Result<()> { resume_unwind(Box::new("in the undo")) });
                resume_unwind(Box::new("in the work"))
            })
        }));
        let panic = panicked.map(drop).expect_err("the panic goes on");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"in the work"));
        assert_eq!(undone.try_iter().collect::<Vec<_>>(), ["second", "first"]);
    }
}
