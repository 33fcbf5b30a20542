//! The argument of `--clevis-infos`: words such as `pin=tang tang_url=http://tang trust_url`.
//! Scripts know some of the error texts.

use std::{collections::BTreeMap, num::ParseIntError};

use serde_json::{Value, json};

/// The member of a configuration by which Clevis trusts a Tang server without checking its key.
const TRUST_URL: &str = "stratis:tang:trust_url";

/// Why the argument is refused.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ClevisInfoError {
    #[error("pin is required")]
    NoPin,
    #[error("Value required for key pin")]
    NoPinValue,
    #[error("Invalid pin {0}")]
    Pin(String),
    #[error("tang_url is required")]
    NoUrl,
    #[error("Missing required argument trust_url or thumbprint=")]
    NoTrust,
    #[error("thumbprint= cannot be used with trust_url")]
    TwoTrusts,
    #[error("trust_url takes no argument")]
    TrustValue,
    #[error("token_slot requires argument")]
    NoSlotValue,
    #[error("the token slot {text} is not a number")]
    Slot { text: String, source: ParseIntError },
    #[error("{0} is not known here; give pin=, tang_url=, thumbprint=, trust_url or token_slot=")]
    Unknown(String),
}

/// The configuration of a Tang server, which is trusted by its thumbprint or without a check.
pub fn tang(url: &str, thumbprint: Option<&str>, trust_url: bool) -> Value {
    let mut config = json!({ "url": url });
    if let Some(thumbprint) = thumbprint {
        config["thp"] = thumbprint.into();
    }
    if trust_url {
        config[TRUST_URL] = true.into();
    }
    config
}

/// The token slot, the pin and its configuration.
///
/// # Errors
/// A word is unknown, or one is missing.
pub fn parse(text: &str) -> Result<(Option<u32>, String, Value), ClevisInfoError> {
    let mut items: BTreeMap<&str, Option<&str>> = text
        .split_whitespace()
        .map(|word| word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value))))
        .collect();
    let slot = match items.remove("token_slot") {
        None => None,
        Some(None) => return Err(ClevisInfoError::NoSlotValue),
        Some(Some(text)) => {
            let number = text.parse().map_err(|source| ClevisInfoError::Slot { text: text.to_owned(), source });
            Some(number?)
        }
    };
    let pin = match items.remove("pin") {
        None => return Err(ClevisInfoError::NoPin),
        Some(None) => return Err(ClevisInfoError::NoPinValue),
        Some(Some(pin)) => pin,
    };
    let [url, thumbprint, trust] = ["tang_url", "thumbprint", "trust_url"].map(|key| items.remove(key));
    if let Some((unknown, _)) = items.first_key_value() {
        return Err(ClevisInfoError::Unknown((*unknown).to_owned()));
    }
    let config = match pin {
        "tpm2" => json!({}),
        "tang" => {
            let url = url.flatten().ok_or(ClevisInfoError::NoUrl)?;
            match (thumbprint.flatten(), trust) {
                (_, Some(Some(_))) => return Err(ClevisInfoError::TrustValue),
                (Some(_), Some(None)) => return Err(ClevisInfoError::TwoTrusts),
                (None, None) => return Err(ClevisInfoError::NoTrust),
                (Some(thumbprint), None) => tang(url, Some(thumbprint), false),
                (None, Some(None)) => tang(url, None, true),
            }
        }
        other => return Err(ClevisInfoError::Pin(other.to_owned())),
    };
    Ok((slot, pin.to_owned(), config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_a_configuration() {
        assert_eq!(parse("pin=tpm2").unwrap(), (None, "tpm2".into(), json!({})));
        let trusted = parse(" token_slot=3  pin=tang tang_url=http://t?a=b trust_url ").unwrap();
        assert_eq!(trusted, (Some(3), "tang".into(), json!({ "url": "http://t?a=b", TRUST_URL: true })));
        let checked = parse("pin=tang tang_url=http://t thumbprint=T").unwrap();
        assert_eq!(checked.2, json!({ "url": "http://t", "thp": "T" }));
    }

    #[test]
    fn errors_have_the_texts_that_scripts_know() {
        for (text, error) in [
            ("", "pin is required"),
            ("pin", "Value required for key pin"),
            ("pin=x", "Invalid pin x"),
            ("pin=tang trust_url", "tang_url is required"),
            ("pin=tang tang_url=u", "Missing required argument trust_url or thumbprint="),
            ("pin=tang tang_url=u thumbprint=t trust_url", "thumbprint= cannot be used with trust_url"),
            ("pin=tang tang_url=u trust_url=yes", "trust_url takes no argument"),
            ("pin=tpm2 token_slot", "token_slot requires argument"),
            ("pin=tpm2 token_slot=x", "the token slot x is not a number"),
            (
                "pin=tpm2 token-slot=3",
                "token-slot is not known here; give pin=, tang_url=, thumbprint=, trust_url or token_slot=",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), error, "{text}");
        }
    }
}
