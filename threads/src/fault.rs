//! How a mistake is planted, to see that a checker notices it. The mistakes themselves stand beside the code that they are in.
//!
//! Must never know: the mistakes.

/// Whether this fault is switched on, for code that has a `fault` field and the enum `Fault` in scope. Without the feature
/// `planted-faults` it is `false`, and the mistake is not compiled.
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
