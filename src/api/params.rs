//! What was read from a request's body, and the fields in it that had no effect.

use std::collections::BTreeSet;

use axum::{
    http::{HeaderName, HeaderValue},
    response::{IntoResponse, Response},
};

use super::ApiError;
use crate::request::InvalidRequest;

const IGNORED_PARAMS: HeaderName = HeaderName::from_static("x-ignored-params");
/// Most names of ignored fields that are kept.
pub(super) const MOST_IGNORED: usize = 20;

/// A body, and the paths of fields in it that the wire type does not know.
#[derive(Debug)]
pub(super) struct Parsed<T> {
    pub(super) value: T,
    pub(super) ignored: Ignored,
}

/// Fields that had no effect.
#[derive(Debug, Default)]
pub(super) struct Ignored {
    /// The first of them.
    names: Vec<String>,
    /// The first that nobody knows.
    unknown: Option<String>,
}

impl Ignored {
    /// Adds a field; a harmless one is known, and changes nothing.
    pub(super) fn push(&mut self, name: String, harmless: bool) {
        if self.unknown.is_none() && !harmless {
            self.unknown = Some(name.clone());
        }
        if self.names.len() < MOST_IGNORED {
            self.names.push(name);
        }
    }

    /// Whether a field had no effect.
    pub(super) fn has(&self, name: &str) -> bool {
        self.names.iter().any(|ignored| ignored == name)
    }

    /// Refuses an unknown field, where the server is strict.
    pub(super) fn check(&self, strict: bool) -> Result<(), ApiError> {
        match &self.unknown {
            Some(param) if strict => Err(InvalidRequest::Unknown { param: param.clone() }.into()),
            _ => Ok(()),
        }
    }

    /// An answer, with a header that has the names.
    pub(super) fn with(&self, answer: impl IntoResponse) -> Response {
        let mut response = answer.into_response();
        self.report(&mut response);
        response
    }

    fn report(&self, response: &mut Response) {
        let plain = |name: &&String| {
            name.len() < 100 && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
        };
        let names: BTreeSet<&str> = self.names.iter().filter(plain).map(String::as_str).collect();
        if names.is_empty() {
            return;
        }
        if let Ok(names) = HeaderValue::from_str(&names.into_iter().collect::<Vec<_>>().join(", ")) {
            response.headers_mut().insert(IGNORED_PARAMS, names);
        }
    }
}
