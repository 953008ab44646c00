//! Which part of a list is asked for, as both APIs write it.

use super::check::{integer, unsupported, value};
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
    /// Only those with these ids (`ids`).
    pub(super) ids: Option<Vec<String>>,
}

/// What a cursor begins with (`page`). Behind it is what `after_id` takes.
pub(super) const CURSOR: &str = "page_";
/// Most ids that a page can be asked for.
const MOST_IDS: usize = 100;

/// The names of a page's first and last item.
pub(super) fn ends<T>(page: &[T], id: impl Fn(&T) -> &str) -> (Option<String>, Option<String>) {
    let name = |item: Option<&T>| item.map(|item| id(item).to_owned());
    (name(page.first()), name(page.last()))
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
            ids: None,
        };
        let mut placed = false;
        for (name, text) in form_urlencoded::parse(query.unwrap_or("").as_bytes()) {
            match &*name {
                "limit" => {
                    let limit = text.parse().map_err(|_| value("limit", &text, "whole numbers"))?;
                    page.limit = integer("limit", limit, 1, most)? as usize;
                    placed = true;
                }
                "after" | "after_id" => page.after = Some(text.into_owned()),
                "page" => {
                    let wrong = || value("page", &text, "what 'next_page' of the page before was");
                    page.after = Some(text.strip_prefix(CURSOR).ok_or_else(wrong)?.to_owned());
                    placed = true;
                }
                "ids" | "ids[]" => {
                    let ids = page.ids.get_or_insert_default();
                    if !ids.iter().any(|id| *id == text) {
                        ids.push(text.into_owned());
                    }
                    if ids.len() > MOST_IDS {
                        let (param, found) = ("ids".into(), ids.len().to_string());
                        return Err(InvalidRequest::ArrayTooLong {
                            param,
                            items: "ids",
                            found,
                            limit: MOST_IDS,
                        });
                    }
                }
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
        if placed && page.ids.is_some() {
            return Err(unsupported(
                "ids",
                "all of them are on one page, which has neither 'page' nor 'limit'",
            ));
        }
        Ok(page)
    }
}
