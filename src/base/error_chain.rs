//! An error with its causes as one sentence.

use std::error::Error;

/// The text of an error, followed by the texts of its causes. A cause is left out if the sentence
/// already contains its text.
pub fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let next = cause.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Link {
        text: &'static str,
        source: Option<Box<Link>>,
    }

    #[test]
    fn a_cause_is_named_once() {
        let cause = Link { text: "the disk is full", source: None };
        let quoting = Link { text: "no room: the disk is full", source: Some(Box::new(cause)) };
        let outer = Link { text: "cannot write", source: Some(Box::new(quoting)) };
        assert_eq!(sentence(&outer), "cannot write: no room: the disk is full");
    }
}
