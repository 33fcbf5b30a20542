//! Compiles a planted fault into the code, to show that a checker finds it. Each fault is defined
//! next to the code that it breaks.
//!
//! Must never know: the faults.

/// Whether this fault is switched on. `$state` has a field `fault`, an option of the fault's enum.
/// Without the feature `planted-faults` the macro is `false` and the fault is not compiled.
#[cfg(feature = "planted-faults")]
macro_rules! planted {
    ($state:expr, $fault:path) => {
        $state.fault == Some($fault)
    };
}

#[cfg(not(feature = "planted-faults"))]
macro_rules! planted {
    ($state:expr, $fault:path) => {
        false
    };
}

pub(crate) use planted;
