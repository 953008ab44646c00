//! How much a tenant has used, and whether there is more. Time is an argument.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{ToSpan as _, civil::Date};

use super::keys::Terms;

/// What is bounded by the minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// Requests for answers or transcripts.
    Requests,
    /// Tokens of prompts and answers.
    Tokens,
    /// Pictures and frames.
    Images,
    /// Seconds of recordings.
    AudioSeconds,
}

impl Rate {
    const COUNT: usize = 4;

    /// What is counted.
    pub fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::Images => "images",
            Self::AudioSeconds => "seconds of audio",
        }
    }

    fn limit(self, terms: &Terms) -> Option<f64> {
        let limit = match self {
            Self::Requests => terms.requests_per_minute,
            Self::Tokens => terms.tokens_per_minute,
            Self::Images => terms.images_per_minute,
            Self::AudioSeconds => terms.audio_seconds_per_minute,
        };
        limit.map(|limit| f64::from(limit.get()))
    }
}

/// What is bounded by the day or the month.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// Minutes of recordings in a day.
    Audio,
    /// Tokens in a month.
    Tokens,
    /// Money in a month.
    Money,
}

impl Budget {
    /// What is counted, and over which time.
    pub fn name(self) -> &'static str {
        match self {
            Self::Audio => "minutes of audio per day",
            Self::Tokens => "tokens per month",
            Self::Money => "money per month",
        }
    }
}

/// A moment.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Since some fixed moment.
    pub elapsed: Duration,
    /// In UTC.
    pub date: Date,
}

/// Why something may not be used now.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum Exceeded {
    /// Too much in too short a time.
    #[error("Rate limit reached: {limit} {} per minute. Please try again in {:.3} s", what.name(), wait.as_secs_f64())]
    Rate {
        /// Of what.
        what: Rate,
        /// In a minute.
        limit: u64,
        /// Until there is enough.
        wait: Duration,
    },
    /// More at once than there ever is.
    #[error("Request too large: it has {found} {}, and the limit is {limit} per minute", what.name())]
    TooLarge {
        /// Of what.
        what: Rate,
        /// In a minute.
        limit: u64,
        /// How much it is.
        found: u64,
    },
    /// A budget is used up.
    #[error("You exceeded your current quota of {limit} {}. It begins anew on {renewed}", what.name())]
    Budget {
        /// Of what.
        what: Budget,
        /// All there is.
        limit: f64,
        /// When there is more.
        renewed: Date,
    },
}

/// How much there is of what is bounded by the minute.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// In a minute.
    pub limit: u64,
    /// Now.
    pub remaining: u64,
    /// Until all of it is there again.
    pub reset: Duration,
}

/// What a tenant has used.
#[derive(Debug, Default)]
pub struct Meter {
    used: Mutex<Used>,
}

#[derive(Debug, Default)]
struct Used {
    /// What is used of each rate and has not come back.
    rates: [Debt; Rate::COUNT],
    /// The day that `audio` is of.
    day: Option<Date>,
    /// Seconds.
    audio: f64,
    /// The month that `tokens` and `money` are of: its first day.
    month: Option<Date>,
    tokens: u64,
    money: f64,
}

/// What is used at some time. It comes back with time, as much in a minute as there is in all: limits may change
/// meanwhile.
#[derive(Debug, Clone, Copy, Default)]
struct Debt {
    used: f64,
    at: Duration,
}

impl Debt {
    fn now(self, limit: f64, now: Now) -> f64 {
        let passed = now.elapsed.saturating_sub(self.at).as_secs_f64();
        (self.used - passed * limit / 60.0).max(0.0)
    }
}

impl Meter {
    /// Takes an amount if there is enough of it.
    ///
    /// # Errors
    /// When there is not.
    pub fn take(&self, terms: &Terms, what: Rate, amount: f64, now: Now) -> Result<(), Exceeded> {
        let Some(limit) = what.limit(terms) else { return Ok(()) };
        if amount > limit {
            return Err(Exceeded::TooLarge { what, limit: limit as u64, found: amount.ceil() as u64 });
        }
        let mut used = self.used();
        let debt = used.rates[what as usize].now(limit, now);
        let over = debt + amount - limit;
        // Of sums of fractions some dust remains.
        if over > 1e-6 {
            let wait = Duration::from_secs_f64((over * 60.0 / limit).max(0.001));
            return Err(Exceeded::Rate { what, limit: limit as u64, wait });
        }
        used.rates[what as usize] = Debt { used: debt + amount, at: now.elapsed };
        Ok(())
    }

    /// Adds an amount that was used, whether there is enough or not: then what comes next waits longer.
    pub fn charge(&self, terms: &Terms, what: Rate, amount: f64, now: Now) {
        let Some(limit) = what.limit(terms) else { return };
        let mut used = self.used();
        let debt = used.rates[what as usize].now(limit, now);
        used.rates[what as usize] = Debt { used: debt + amount, at: now.elapsed };
    }

    /// Adds to what is used of budgets: tokens, seconds of recordings, money.
    pub fn spend(&self, tokens: u64, audio: f64, money: f64, now: Now) {
        let mut used = self.used();
        used.turn(now.date);
        used.tokens += tokens;
        used.audio += audio;
        used.money += money;
    }

    /// Whether a budget is used up.
    ///
    /// # Errors
    /// When one is; says which.
    pub fn check(&self, terms: &Terms, now: Now) -> Result<(), Exceeded> {
        let mut used = self.used();
        used.turn(now.date);
        let next_month = || now.date.last_of_month().saturating_add(1.day());
        let exceeded = |what, limit, renewed| Err(Exceeded::Budget { what, limit, renewed });
        if let Some(limit) = terms.audio_minutes_per_day.map(|limit| f64::from(limit.get()))
            && used.audio >= 60.0 * limit
        {
            return exceeded(Budget::Audio, limit, now.date.saturating_add(1.day()));
        }
        if let Some(limit) = terms.tokens_per_month.filter(|limit| used.tokens >= limit.get()) {
            return exceeded(Budget::Tokens, limit.get() as f64, next_month());
        }
        if let Some(limit) = terms.money_per_month.filter(|limit| used.money >= *limit) {
            return exceeded(Budget::Money, limit, next_month());
        }
        Ok(())
    }

    /// What there is of something, where it is bounded.
    pub fn level(&self, terms: &Terms, what: Rate, now: Now) -> Option<Level> {
        let limit = what.limit(terms)?;
        let debt = self.used().rates[what as usize].now(limit, now);
        Some(Level {
            limit: limit as u64,
            remaining: (limit - debt).max(0.0) as u64,
            reset: Duration::from_secs_f64(debt * 60.0 / limit),
        })
    }

    fn used(&self) -> MutexGuard<'_, Used> {
        // It is whole at every point where a holder could panic.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Used {
    /// Begins a new day or month.
    fn turn(&mut self, date: Date) {
        if self.day != Some(date) {
            (self.day, self.audio) = (Some(date), 0.0);
        }
        let month = date.first_of_month();
        if self.month != Some(month) {
            (self.month, self.tokens, self.money) = (Some(month), 0, 0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::{NonZeroU32, NonZeroU64};

    use jiff::civil::date;

    use super::*;

    fn at(seconds: f64) -> Now {
        Now { elapsed: Duration::from_secs_f64(seconds), date: date(2026, 11, 30) }
    }

    #[test]
    fn a_rate_is_a_bucket_that_fills_in_a_minute() {
        let terms = Terms { requests_per_minute: NonZeroU32::new(6), ..Terms::default() };
        let meter = Meter::default();
        let take = |seconds| meter.take(&terms, Rate::Requests, 1.0, at(seconds));
        for _ in 0..6 {
            take(0.0).unwrap();
        }
        let wait = |error| match error {
            Err(Exceeded::Rate { wait, .. }) => wait.as_secs_f64(),
            other => panic!("{other:?}"),
        };
        assert!((wait(take(0.0)) - 10.0).abs() < 1e-6);
        assert!((wait(take(4.0)) - 6.0).abs() < 1e-6);
        take(10.0).unwrap();
        assert!((wait(take(10.0)) - 10.0).abs() < 1e-6);
        let level = meter.level(&terms, Rate::Requests, at(35.0)).unwrap();
        assert_eq!((level.limit, level.remaining), (6, 2));
        assert!((level.reset.as_secs_f64() - 35.0).abs() < 1e-6);
        assert_eq!(meter.level(&terms, Rate::Requests, at(1000.0)).unwrap().remaining, 6);
        assert_eq!(meter.level(&terms, Rate::Tokens, at(0.0)), None);
        // A tighter limit counts at once, a wider one too.
        let tighter = Terms { requests_per_minute: NonZeroU32::new(1), ..Terms::default() };
        assert!(meter.take(&tighter, Rate::Requests, 1.0, at(10.0)).is_err());
        let wider = Terms { requests_per_minute: NonZeroU32::new(600), ..Terms::default() };
        meter.take(&wider, Rate::Requests, 500.0, at(10.0)).unwrap();
    }

    #[test]
    fn what_was_used_counts_though_there_was_not_enough() {
        let terms = Terms { tokens_per_minute: NonZeroU32::new(60), ..Terms::default() };
        let meter = Meter::default();
        meter.take(&terms, Rate::Tokens, 60.0, at(0.0)).unwrap();
        meter.charge(&terms, Rate::Tokens, 60.0, at(0.0));
        assert_eq!(meter.level(&terms, Rate::Tokens, at(60.0)).unwrap().remaining, 0);
        assert!(meter.take(&terms, Rate::Tokens, 1.0, at(60.5)).is_err());
        meter.take(&terms, Rate::Tokens, 1.0, at(61.5)).unwrap();
        let large = meter.take(&terms, Rate::Tokens, 61.0, at(1e6));
        assert_eq!(large, Err(Exceeded::TooLarge { what: Rate::Tokens, limit: 60, found: 61 }));
    }

    #[test]
    fn budgets_end_and_begin_anew() {
        let terms = Terms {
            tokens_per_month: NonZeroU64::new(100),
            audio_minutes_per_day: NonZeroU32::new(1),
            money_per_month: Some(2.0),
            ..Terms::default()
        };
        let on = |month, day| Now { elapsed: Duration::ZERO, date: date(2026, month, day) };
        let budget = |meter: &Meter, now| match meter.check(&terms, now) {
            Ok(()) => None,
            Err(Exceeded::Budget { what, renewed, .. }) => Some((what, renewed)),
            Err(other) => panic!("{other:?}"),
        };
        let meter = Meter::default();
        meter.spend(99, 59.9, 1.9, on(11, 29));
        assert_eq!(budget(&meter, on(11, 29)), None);
        meter.spend(0, 0.1, 0.0, on(11, 29));
        assert_eq!(budget(&meter, on(11, 29)), Some((Budget::Audio, date(2026, 11, 30))));
        assert_eq!(budget(&meter, on(11, 30)), None);
        meter.spend(1, 0.0, 0.0, on(11, 30));
        assert_eq!(budget(&meter, on(11, 30)), Some((Budget::Tokens, date(2026, 12, 1))));
        assert_eq!(budget(&meter, on(12, 1)), None);
        meter.spend(0, 0.0, 2.0, on(12, 31));
        assert_eq!(budget(&meter, on(12, 31)), Some((Budget::Money, date(2027, 1, 1))));
    }
}
