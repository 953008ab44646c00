//! Headers that tell a tenant how much of its limits is left.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use jiff::{Timestamp, Unit};

use crate::access::{Caller, Level, Now, Rate};

/// What the APIs have headers for.
const TOLD: [Rate; 2] = [Rate::Requests, Rate::Tokens];

/// Adds the headers, where there are limits: OpenAI's, and Anthropic's to its clients.
pub(super) fn tell(headers: &mut HeaderMap, caller: &Caller, now: Now, anthropic: bool) {
    for what in TOLD {
        let Some(level) = caller.meter.level(&caller.terms, what, now) else { continue };
        let Level { limit, remaining, reset } = level;
        let name = what.name();
        put(headers, &format!("x-ratelimit-limit-{name}"), &limit.to_string());
        put(headers, &format!("x-ratelimit-remaining-{name}"), &remaining.to_string());
        put(headers, &format!("x-ratelimit-reset-{name}"), &duration(reset.as_millis()));
        if anthropic {
            put(headers, &format!("anthropic-ratelimit-{name}-limit"), &limit.to_string());
            put(headers, &format!("anthropic-ratelimit-{name}-remaining"), &remaining.to_string());
            let at = Timestamp::now().checked_add(reset).and_then(|at| at.round(Unit::Second));
            if let Ok(at) = at {
                put(headers, &format!("anthropic-ratelimit-{name}-reset"), &at.to_string());
            }
        }
    }
}

fn put(headers: &mut HeaderMap, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::from_str(value)) {
        headers.insert(name, value);
    }
}

/// As Go writes durations, because OpenAI does: `20ms`, `1.2s`, `6m0s`.
fn duration(milliseconds: u128) -> String {
    let seconds = |milliseconds: u128| {
        let text = format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000);
        format!("{}s", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match milliseconds {
        0 => "0s".to_owned(),
        1..1000 => format!("{milliseconds}ms"),
        1000..60_000 => seconds(milliseconds),
        60_000..3_600_000 => format!("{}m{}", milliseconds / 60_000, seconds(milliseconds % 60_000)),
        _ => {
            let minutes = milliseconds / 60_000;
            format!("{}h{}m{}", minutes / 60, minutes % 60, seconds(milliseconds % 60_000))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (milliseconds, expected) in [
            (0, "0s"),
            (20, "20ms"),
            (1000, "1s"),
            (1200, "1.2s"),
            (59_999, "59.999s"),
            (60_000, "1m0s"),
            (360_000, "6m0s"),
            (3_723_040, "1h2m3.04s"),
        ] {
            assert_eq!(duration(milliseconds), expected);
        }
    }
}
