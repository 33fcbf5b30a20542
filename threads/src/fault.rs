//! Compiles a planted fault into the code, to show that a checker finds it. Each fault is defined
//! next to the code that it breaks.
//!
//! Must never know: the faults.

/// Whether this fault is switched on. The calling code must have a `fault` field and the enum
/// `Fault` in scope. Without the feature `planted-faults` the macro is `false` and the fault is not
/// compiled.
#[cfg(feature = "planted-faults")]
macro_rules! planted {
    ($state:expr, $fault:ident) => {
        $state.fault == Some(Fault::$fault)
    };
}

#[cfg(not(feature = "planted-faults"))]
macro_rules! planted {
    ($state:expr, $fault:ident) => {
        false
    };
}

pub(crate) use planted;
