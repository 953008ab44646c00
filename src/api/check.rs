//! Ranges of numbers, and other things that are wrong with fields of any request.

use crate::request::{InvalidRequest, Number};

/// A whole number from `least` to `most`.
pub(super) fn integer(param: &str, found: i64, least: i64, most: i64) -> Result<i64, InvalidRequest> {
    let (param, kind) = (param.to_owned(), Number::Integer);
    if found < least {
        let (found, limit) = (found.to_string(), least.to_string());
        return Err(InvalidRequest::BelowMinimum { param, kind, found, limit });
    }
    if found > most {
        let (found, limit) = (found.to_string(), most.to_string());
        return Err(InvalidRequest::AboveMaximum { param, kind, found, limit });
    }
    Ok(found)
}

/// A number from `least` to `most`, where there is one.
pub(super) fn decimal(
    param: &str,
    found: Option<f64>,
    least: f64,
    most: f64,
) -> Result<Option<f64>, InvalidRequest> {
    let (param, kind) = (param.to_owned(), Number::Decimal);
    match found {
        Some(found) if found < least => {
            let (found, limit) = (shown(found), shown(least));
            Err(InvalidRequest::BelowMinimum { param, kind, found, limit })
        }
        Some(found) if found > most => {
            let (found, limit) = (shown(found), shown(most));
            Err(InvalidRequest::AboveMaximum { param, kind, found, limit })
        }
        other => Ok(other),
    }
}

/// A number in as few digits as say it.
fn shown(number: f64) -> String {
    // Which would be up to 309 digits.
    if number.abs() >= 1e16 { format!("{number:e}") } else { number.to_string() }
}

/// A field that must be there is not.
pub(super) fn missing(param: &str) -> InvalidRequest {
    InvalidRequest::Missing { param: param.into() }
}

/// A field has another value than it may have.
pub(super) fn value(param: &str, found: &str, supported: &str) -> InvalidRequest {
    let found: String = found.chars().take(100).collect();
    InvalidRequest::Value { param: param.into(), found: format!("'{found}'"), supported: supported.into() }
}

/// A field asks for what is not done.
pub(super) fn unsupported(param: &str, reason: impl Into<String>) -> InvalidRequest {
    InvalidRequest::Unsupported { param: param.into(), reason: reason.into() }
}
