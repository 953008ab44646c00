//! Which part of a list is asked for, as both APIs write it.

use super::check::{integer, value};
use crate::request::InvalidRequest;

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Page {
    /// Most items.
    pub(super) limit: usize,
    /// What follows this one (`after`, `after_id`).
    pub(super) after: Option<String>,
    /// What is in front of this one (`before_id`).
    pub(super) before: Option<String>,
    /// The oldest first (`order`).
    pub(super) ascending: bool,
    /// Only what is for this (`purpose`).
    pub(super) purpose: Option<String>,
    /// Only what is at these stages (`lifecycle`); all where there are none.
    pub(super) lifecycle: Vec<String>,
}

impl Page {
    /// The page that a URL's query means: of `usual` items where it does not say, and of `most` at most.
    pub(super) fn parse(query: Option<&str>, usual: usize, most: i64) -> Result<Self, InvalidRequest> {
        let mut page = Self {
            limit: usual,
            after: None,
            before: None,
            ascending: false,
            purpose: None,
            lifecycle: Vec::new(),
        };
        for (name, text) in form_urlencoded::parse(query.unwrap_or("").as_bytes()) {
            match &*name {
                "limit" => {
                    let limit = text.parse().map_err(|_| value("limit", &text, "whole numbers"))?;
                    page.limit = integer("limit", limit, 1, most)? as usize;
                }
                "after" | "after_id" => page.after = Some(text.into_owned()),
                "before_id" => page.before = Some(text.into_owned()),
                "order" => match &*text {
                    "asc" => page.ascending = true,
                    "desc" => page.ascending = false,
                    other => return Err(value("order", other, "'asc' and 'desc'")),
                },
                "lifecycle" | "lifecycle[]" if page.lifecycle.len() < 3 => {
                    page.lifecycle.push(text.into_owned());
                }
                "purpose" => page.purpose = Some(text.into_owned()),
                _ => {}
            }
        }
        Ok(page)
    }
}
