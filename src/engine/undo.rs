//! Undo: what an operation has done so far, and how to take it back.
//!
//! An operation pushes the undo of each step once the step has succeeded. If a later step fails,
//! the list runs backwards; if the whole operation succeeds, the list is dropped. So the rollback
//! follows from the steps that ran, and no error branch contains one written by hand.
//!
//! Not everything that was written to disk may be taken back. The rollback does not wipe a device
//! that is still in use because a device on it could not be taken down. Nor does it wipe a device
//! that a record may name because that record could not be overwritten ([`Error::is_unsure`]). A
//! journal entry stays as long as anything that it names exists. The next set-up then undoes or
//! completes the change.
//!
//! The list also runs when the work panics, before the panic reaches the code that contains it.
//! That code does not know what was done; without the rollback, everything would stay on the
//! machine.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::{
    engine::error::{Error, Result},
    platform::Platform,
    view::Availability,
};

type Undo = Box<dyn FnOnce(&dyn Platform) -> Result<()> + Send>;

/// When a step may be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Always. For changes to the running machine.
    Always,
    /// When it is known what the record on disk says. For things that a record may name.
    Known,
    /// When no record may name it, and every later step pushed as [`When::Always`] has been taken
    /// back. For things that other parts may still need, such as the data written to a device.
    Unused,
    /// When every later step has been taken back. For what tells the next set-up how to treat those
    /// steps, or what must not come back before they have been taken back.
    Last,
}

struct UndoStep {
    what: String,
    when: When,
    undo: Undo,
}

/// The undo steps of what has been done so far, oldest first.
#[derive(Default)]
#[must_use]
pub struct Rollback {
    steps: Vec<UndoStep>,
}

impl Rollback {
    /// An empty list: nothing has been done yet.
    pub fn new() -> Rollback {
        Rollback::default()
    }

    /// Records how to take back the last step, and when that is allowed. `what` completes "could
    /// not …".
    pub fn push<E: Into<Error>>(
        &mut self,
        when: When,
        what: impl Into<String>,
        undo: impl FnOnce(&dyn Platform) -> std::result::Result<(), E> + Send + 'static,
    ) {
        let undo = Box::new(|platform: &dyn Platform| undo(platform).map_err(Into::into));
        self.steps.push(UndoStep { what: what.into(), when, undo });
    }

    /// Appends the undo steps of other threads that worked on the same operation.
    pub fn append(&mut self, mut others: Rollback) {
        self.steps.append(&mut others.steps);
    }

    /// Drops the list: the work is complete and stays.
    pub fn forget(mut self) {
        self.steps.clear();
    }

    /// Takes everything back, newest first, because of `cause`. If one undo fails, the others are
    /// still tried, except those that must then stay.
    ///
    /// Returns `cause`, or an [`Error::Rollback`] that names both errors if an undo failed.
    pub fn run(mut self, platform: &dyn Platform, cause: Error) -> Error {
        let mut failures = Vec::new();
        let unsure = cause.is_unsure();
        // Other threads that worked on the operation may have left a device up.
        let mut in_use = unsure || cause.leaves() > Availability::Full;
        while let Some(UndoStep { what, when, undo }) = self.steps.pop() {
            let stays = match when {
                When::Always => false,
                When::Known => unsure,
                When::Unused => in_use,
                When::Last => in_use || !failures.is_empty(),
            };
            if stays {
                log::warn!("after an error ({}): did not {what}; the next set-up decides", cause.sentence());
                continue;
            }
            // If one undo panics, the others still run.
            let undone = catch_unwind(AssertUnwindSafe(|| undo(platform))).unwrap_or(Err(Error::Panicked));
            if let Err(error) = undone {
                log::error!("after an error ({}): could not {what}: {}", cause.sentence(), error.sentence());
                failures.push((what, error));
                in_use |= when == When::Always;
            }
        }
        match failures.is_empty() {
            true => cause,
            false => Error::Rollback { cause: Box::new(cause), failures, leaves: Availability::NoRequests },
        }
    }

    /// Runs `work`. If it fails or panics, takes back everything that was done before it and by it.
    ///
    /// # Errors
    /// As [`Rollback::run`].
    ///
    /// # Panics
    /// If `work` panics, once everything has been taken back.
    pub fn guard<T>(
        mut self,
        platform: &dyn Platform,
        work: impl FnOnce(&mut Rollback) -> Result<T>,
    ) -> Result<(T, Rollback)> {
        // The code that contains the panic drops the object that the work was changing, and the
        // list is only ever pushed to.
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

/// Runs `work`. If it panics, runs `mend` before the panic continues. For a state that must not
/// outlast the work, such as a suspended device, and that the work itself corrects when it merely
/// fails.
pub fn mended<T>(work: impl FnOnce() -> T, mend: impl FnOnce()) -> T {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        if catch_unwind(AssertUnwindSafe(mend)).is_err() {
            log::error!("could not clean up after a panic: the clean-up panicked, too");
        }
        resume_unwind(panic)
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;
    use crate::platform::sim::Sim;

    fn failing() -> impl FnOnce(&dyn Platform) -> Result<()> + Send + 'static {
        |_| Err(Error::Panicked)
    }

    fn run(undo: Rollback, cause: Error) -> Error {
        undo.run(&Sim::builder().build(), cause)
    }

    /// Found in review: the journal entry was removed although the thin device that it named could
    /// not be.
    #[test]
    fn a_journal_entry_stays_with_its_step() {
        for fails in [false, true] {
            let (told, undone) = channel();
            let mut undo = Rollback::new();
            let entry = told.clone();
            undo.push(When::Last, "remove the entry", move |_| -> Result<()> {
                entry.send("entry").map_err(|_| Error::Panicked)
            });
            let disk = told.clone();
            undo.push(When::Unused, "wipe", move |_| -> Result<()> { disk.send("disk").map_err(|_| Error::Panicked) });
            match fails {
                true => undo.push(When::Unused, "delete", failing()),
                false => note(&mut undo, &told, "delete"),
            }
            let error = run(undo, Error::NoDevices);
            assert_eq!(error.leaves() > Availability::Full, fails);
            let expected: &[&str] = if fails { &["disk"] } else { &["delete", "disk", "entry"] };
            assert_eq!(undone.try_iter().collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_device_in_use_is_not_wiped() {
        let (told, undone) = channel();
        let mut undo = Rollback::new();
        undo.push(When::Unused, "wipe", move |_| -> Result<()> { told.send("disk").map_err(|_| Error::Panicked) });
        undo.push(When::Always, "remove", failing());
        run(undo, Error::NoDevices);
        assert_eq!(undone.try_iter().count(), 0);
    }

    /// Found in review: the rollback wiped devices that the record may have named, so the next
    /// start missed them.
    #[test]
    fn nothing_that_a_record_may_name_is_wiped() {
        let (told, undone) = channel();
        let mut undo = Rollback::new();
        let disk = told.clone();
        undo.push(When::Unused, "wipe", move |_| -> Result<()> { disk.send("disk").map_err(|_| Error::Panicked) });
        note(&mut undo, &told, "take down");
        let pool = crate::base::name::Name::new("p").expect("a name");
        let boxed = || Box::new(Error::NoDevices);
        let error = run(undo, Error::Unrecorded { pool, cause: boxed(), source: boxed() });
        assert!(error.is_unsure());
        assert_eq!(undone.try_iter().collect::<Vec<_>>(), ["take down"]);
    }

    #[test]
    fn a_failed_undo_keeps_the_record_unsure() {
        let pool = crate::base::name::Name::new("p").expect("a name");
        let boxed = || Box::new(Error::NoDevices);
        let mut undo = Rollback::new();
        undo.push(When::Always, "take down", failing());
        let error = run(undo, Error::Unrecorded { pool, cause: boxed(), source: boxed() });
        assert!(matches!(error, Error::Rollback { .. }) && error.is_unsure());
    }

    fn note(undo: &mut Rollback, told: &Sender<&'static str>, what: &'static str) {
        let told = told.clone();
        undo.push(When::Always, what, move |_| -> Result<()> {
            told.send(what).expect("the test listens");
            Ok(())
        });
    }

    /// Found in review: a panic left the thin devices of a create up, and the pool could be neither
    /// stopped nor destroyed.
    #[test]
    fn work_that_panics_is_taken_back() {
        let sim = Sim::builder().build();
        let (told, undone) = channel();
        let mut before = Rollback::new();
        note(&mut before, &told, "first");
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            before.guard(&sim, |undo| -> Result<()> {
                note(undo, &told, "second");
                undo.push(When::Always, "third", |_| -> Result<()> { resume_unwind(Box::new("in the undo")) });
                resume_unwind(Box::new("in the work"))
            })
        }));
        let panic = panicked.map(drop).expect_err("the panic goes on");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"in the work"));
        assert_eq!(undone.try_iter().collect::<Vec<_>>(), ["second", "first"]);
    }
}
