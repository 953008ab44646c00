//! Figures of many requests: distributions, and what a level of load came to.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::client::{Answer, Failure, Outcome};

/// Times, in bounded memory. Percentiles are exact to three digits, mean and largest to the microsecond.
#[derive(Debug, Clone)]
pub struct Distribution {
    microseconds: Histogram<u64>,
    sum: Duration,
    most: Duration,
}

impl Default for Distribution {
    fn default() -> Self {
        let microseconds = Histogram::new(3).expect("three digits are what it can do");
        Self { microseconds, sum: Duration::ZERO, most: Duration::ZERO }
    }
}

impl Distribution {
    /// Adds a time.
    pub fn record(&mut self, time: Duration) {
        let microseconds = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.record(microseconds).expect("it grows with what is recorded");
        self.sum = self.sum.saturating_add(time);
        self.most = self.most.max(time);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.microseconds.len()
    }

    /// The smallest time that `percent` of all do not exceed (nearest rank), in seconds.
    pub fn percentile(&self, percent: f64) -> f64 {
        // A bin has a width; its upper end must not be more than what was there.
        let most = self.most.as_secs_f64();
        (self.microseconds.value_at_quantile(percent / 100.0) as f64 * 1e-6).min(most)
    }

    /// What is told of it; nothing where it is empty.
    pub fn summary(&self) -> Option<Times> {
        let count = self.count();
        (count > 0).then(|| Times {
            count,
            mean: self.sum.as_secs_f64() / count as f64,
            p50: self.percentile(50.0),
            p95: self.percentile(95.0),
            p99: self.percentile(99.0),
            max: self.most.as_secs_f64(),
        })
    }
}

/// What is told of a distribution of times, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// How many.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Half are no longer.
    pub p50: f64,
    /// 95 of 100 are no longer.
    pub p95: f64,
    /// 99 of 100 are no longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

/// What a level of load came to, request by request.
#[derive(Debug, Clone, Default)]
pub struct Tally {
    /// Requests that were answered.
    pub completed: u64,
    /// Requests that were refused because the server was busy: 429.
    pub busy: u64,
    /// Other requests without an answer, by class.
    pub errors: BTreeMap<String, u64>,
    /// What the first of each class said.
    pub examples: BTreeMap<String, String>,
    /// Of what was answered.
    pub prompt_tokens: u64,
    /// Those of them that the server had computed before.
    pub cached_tokens: u64,
    /// Of answers.
    pub completion_tokens: u64,
    /// Answers whose tokens the server counted.
    pub by_usage: u64,
    /// Answers whose pieces were counted instead.
    pub by_pieces: u64,
    /// Pictures of requests that were answered.
    pub pictures: u64,
    /// Seconds of sound of requests that were answered.
    pub sound: f64,
    /// From the start of a request to its first text.
    pub first: Distribution,
    /// Between pieces of text.
    pub gaps: Distribution,
    /// Per token behind the first, by request.
    pub per_token: Distribution,
    /// From the start of a request to its end.
    pub whole: Distribution,
    /// How much later than meant requests were sent.
    pub late: Distribution,
}

impl Tally {
    /// Adds a request.
    pub fn record(&mut self, outcome: &Outcome) {
        self.late.record(outcome.sent.saturating_duration_since(outcome.start));
        match &outcome.result {
            Ok(answer) => self.answered(outcome, answer),
            Err(Failure::Busy { message, .. }) => {
                self.busy += 1;
                self.examples.entry("status 429".into()).or_insert_with(|| message.clone());
            }
            Err(failure) => {
                let class = failure.class();
                self.examples.entry(class.clone()).or_insert_with(|| failure.to_string());
                *self.errors.entry(class).or_default() += 1;
            }
        }
    }

    /// Requests without an answer, those that were told to come again not among them.
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    fn answered(&mut self, outcome: &Outcome, answer: &Answer) {
        self.completed += 1;
        self.pictures += outcome.work.pictures;
        self.sound += outcome.work.sound;
        self.whole.record(outcome.end.saturating_duration_since(outcome.start));
        let pieces = answer.pieces.len() as u64;
        let tokens = match &answer.usage {
            Some(usage) => {
                self.by_usage += 1;
                self.prompt_tokens += usage.prompt;
                self.cached_tokens += usage.cached;
                usage.completion
            }
            None => {
                self.by_pieces += u64::from(pieces > 0);
                pieces
            }
        };
        self.completion_tokens += tokens;
        let (Some(first), Some(last)) = (answer.pieces.first(), answer.pieces.last()) else { return };
        self.first.record(first.saturating_duration_since(outcome.start));
        for pair in answer.pieces.windows(2) {
            self.gaps.record(pair[1].saturating_duration_since(pair[0]));
        }
        if let Some(others) = tokens.checked_sub(1).filter(|others| *others > 0 && pieces > 1) {
            let spent = last.saturating_duration_since(*first);
            self.per_token.record(spent.div_f64(others as f64));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::*;
    use crate::bench::client::{Usage, Work};

    /// The nearest rank.
    fn plain(sorted: &[u64], percent: f64) -> f64 {
        let rank = (percent / 100.0 * sorted.len() as f64).ceil().max(1.0) as usize;
        sorted[rank - 1] as f64 * 1e-6
    }

    proptest! {
        #[test]
        fn percentiles_are_those_of_the_formula(mut times in proptest::collection::vec(0..90_000_000_u64, 1..400)) {
            let mut distribution = Distribution::default();
            for &time in &times {
                distribution.record(Duration::from_micros(time));
            }
            times.sort_unstable();
            let found = distribution.summary().unwrap();
            for (percent, found) in [(50.0, found.p50), (95.0, found.p95), (99.0, found.p99)] {
                let expected = plain(&times, percent);
                prop_assert!((found - expected).abs() <= expected * 1e-3, "{percent}: {found} {expected}");
            }
            let mean = times.iter().sum::<u64>() as f64 * 1e-6 / times.len() as f64;
            prop_assert!((found.mean - mean).abs() <= mean * 1e-9);
            let most = times[times.len() - 1] as f64 * 1e-6;
            prop_assert!((found.max - most).abs() <= most * 1e-9);
            prop_assert_eq!(found.count, times.len() as u64);
        }
    }

    fn answered(start: Instant, pieces: &[u64], usage: Option<Usage>) -> Outcome {
        let at = |milliseconds: &u64| start + Duration::from_millis(*milliseconds);
        let pieces: Vec<Instant> = pieces.iter().map(at).collect();
        Outcome {
            start,
            sent: start + Duration::from_millis(3),
            end: start + Duration::from_millis(500),
            work: Work { pictures: 2, sound: 1.5 },
            result: Ok(Answer { pieces, usage, fingerprint: None }),
        }
    }

    #[test]
    fn times_and_tokens_are_put_where_they_belong() {
        let start = Instant::now();
        let mut tally = Tally::default();
        let usage = Usage { prompt: 10, cached: 4, completion: 5 };
        // Five tokens in three pieces.
        tally.record(&answered(start, &[100, 150, 400], Some(usage)));
        tally.record(&answered(start, &[200, 240], None));
        // Nothing but the end of the text.
        tally.record(&answered(start, &[], Some(Usage { prompt: 10, cached: 0, completion: 1 })));
        let busy = Failure::Busy { message: "full".into(), again: None };
        tally.record(&Outcome { result: Err(busy), ..answered(start, &[], None) });
        for _ in 0..2 {
            let failure = Failure::Status { status: 500, message: "sorry".into() };
            tally.record(&Outcome { result: Err(failure), ..answered(start, &[], None) });
        }
        assert_eq!((tally.completed, tally.busy, tally.failed()), (3, 1, 2));
        assert_eq!(tally.errors["status 500"], 2);
        assert!(tally.examples["status 500"].contains("sorry"));
        assert_eq!((tally.prompt_tokens, tally.cached_tokens, tally.completion_tokens), (20, 4, 5 + 2 + 1));
        assert_eq!((tally.by_usage, tally.by_pieces), (2, 1));
        assert_eq!((tally.pictures, tally.sound), (6, 4.5));
        let near = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        let first = tally.first.summary().unwrap();
        assert_eq!(first.count, 2);
        near(first.mean, 0.150);
        near(tally.gaps.summary().unwrap().mean, (0.050 + 0.250 + 0.040) / 3.0);
        // 300 ms for four tokens behind the first, 40 ms for one.
        near(tally.per_token.summary().unwrap().mean, (0.075 + 0.040) / 2.0);
        near(tally.whole.summary().unwrap().max, 0.5);
        assert_eq!(tally.late.count(), 6);
        near(tally.late.summary().unwrap().max, 0.003);
    }
}
