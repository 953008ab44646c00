//! How much each tenant used of each model on each day.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use jiff::{ToSpan as _, civil::Date};

use super::{Outcome, Used};

/// Days that are kept.
const KEPT_DAYS: i64 = 400;

/// Sums of what was used.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    /// Requests.
    pub requests: u64,
    /// Of these, those that ended without an answer.
    pub errors: u64,
    /// All of them together.
    pub used: Used,
}

impl Totals {
    /// Adds a request.
    pub fn add(&mut self, outcome: Outcome, used: &Used) {
        self.join(&Self { requests: 1, errors: u64::from(outcome != Outcome::Ok), used: *used });
    }

    /// Adds other sums.
    pub fn join(&mut self, other: &Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        let used = &other.used;
        self.used.prompt_tokens += used.prompt_tokens;
        self.used.cached_tokens += used.cached_tokens;
        self.used.completion_tokens += used.completion_tokens;
        self.used.images += used.images;
        self.used.audio_seconds += used.audio_seconds;
        self.used.compute_seconds += used.compute_seconds;
        self.used.cost += used.cost;
    }
}

/// What a tenant used of a model on a day (UTC).
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// The day.
    pub date: Date,
    /// Nobody's, where there are no keys or none was known.
    pub tenant: Option<String>,
    /// None, where a request named no model that there is.
    pub model: Option<String>,
    /// How much.
    pub totals: Totals,
}

type Key = (Date, Option<String>, Option<String>);

/// What everyone used.
#[derive(Debug, Default)]
pub struct Usage(Mutex<BTreeMap<Key, Totals>>);

impl Usage {
    /// Adds a request that ended on a day.
    pub fn add(&self, date: Date, tenant: Option<&str>, model: Option<&str>, outcome: Outcome, used: &Used) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (date, tenant.map(str::to_owned), model.map(str::to_owned));
        all.entry(key).or_default().add(outcome, used);
        let oldest = date.saturating_sub(KEPT_DAYS.days());
        while all.first_key_value().is_some_and(|((date, ..), _)| *date < oldest) {
            all.pop_first();
        }
    }

    /// What was used from one day to another, both included: of one tenant, or of all.
    pub fn rows(&self, from: Date, to: Date, of: Option<&str>) -> Vec<Row> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let days = all.range((from, None, None)..).take_while(|((date, ..), _)| *date <= to);
        let rows = days.filter(|((_, tenant, _), _)| of.is_none() || tenant.as_deref() == of);
        let row = |((date, tenant, model), totals): (&Key, &Totals)| Row {
            date: *date,
            tenant: tenant.clone(),
            model: model.clone(),
            totals: *totals,
        };
        rows.map(row).collect()
    }
}

#[cfg(test)]
mod tests {
    use jiff::civil::date;

    use super::*;

    #[test]
    fn usage_is_told_by_day_tenant_and_model() {
        let usage = Usage::default();
        let used = Used { prompt_tokens: 5, cost: 0.5, ..Used::default() };
        usage.add(date(2025, 1, 1), Some("a"), None, Outcome::Ok, &used);
        for (day, tenant, model, outcome) in [
            (1, Some("a"), Some("x"), Outcome::Ok),
            (1, Some("a"), Some("x"), Outcome::Failed),
            (2, Some("b"), Some("x"), Outcome::Ok),
            (3, None, None, Outcome::Refused),
        ] {
            usage.add(date(2026, 11, day), tenant, model, outcome, &used);
        }
        let rows = |from, to, of| usage.rows(date(2026, 11, from), date(2026, 11, to), of);
        let first = &rows(1, 3, Some("a"))[..];
        assert_eq!(first.len(), 1);
        assert_eq!((first[0].totals.requests, first[0].totals.errors), (2, 1));
        assert_eq!((first[0].totals.used.prompt_tokens, first[0].totals.used.cost), (10, 1.0));
        assert_eq!(rows(1, 3, None).len(), 3);
        assert_eq!(rows(2, 2, None).len(), 1);
        assert_eq!(rows(1, 3, Some("nobody")), []);
        assert_eq!(usage.rows(date(2020, 1, 1), date(2026, 1, 1), None), [], "what is old is forgotten");
    }
}
