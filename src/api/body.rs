//! A request's body as it comes: in pieces, bounded in bytes and in silence.

use std::time::{Duration, Instant};

use axum::{
    body::{Body, BodyDataStream, Bytes},
    http::{
        HeaderMap, HeaderName,
        header::{CONTENT_ENCODING, CONTENT_LENGTH},
    },
};
use futures_util::StreamExt as _;

use super::ApiError;

/// How long a client may be silent in the middle of its body.
const SILENCE: Duration = Duration::from_secs(30);
/// A body that has been coming for this long must have come fast enough.
const GRACE: Duration = Duration::from_secs(30);
/// The slowest that is fast enough, in bytes per second on average: slower than any telephone line, and fast enough to
/// end.
const SLOWEST: usize = 4096;
/// How long a body that is refused is read on, so that the client reads the answer instead of a broken connection.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most bytes that are read on.
const MOST_DISCARDED: usize = 256 << 20;

/// The pieces of a body.
#[derive(Debug)]
pub(super) struct Pieces {
    stream: BodyDataStream,
    read: usize,
    limit: usize,
    begun: Instant,
}

impl Pieces {
    /// A body of at most `limit` bytes, none of which is read yet.
    pub(super) fn open(headers: &HeaderMap, body: Body, limit: usize) -> Result<Self, ApiError> {
        let encoding = header(headers, CONTENT_ENCODING);
        if let Some(found) = encoding.filter(|found| !found.eq_ignore_ascii_case("identity")) {
            return Err(ApiError::ContentEncoding { found: found.chars().take(100).collect() });
        }
        let pieces = Self { stream: body.into_data_stream(), read: 0, limit, begun: Instant::now() };
        let claimed = header(headers, CONTENT_LENGTH).and_then(|length| length.parse().ok()).unwrap_or(0);
        if claimed > limit {
            pieces.discard();
            return Err(ApiError::BodyTooLarge { limit });
        }
        Ok(pieces)
    }

    /// The next piece; `None` at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        match tokio::time::timeout(SILENCE, self.stream.next()).await {
            Err(_) => Err(ApiError::BodySilent { seconds: SILENCE.as_secs() }),
            Ok(None) => Ok(None),
            Ok(Some(Err(_))) => Err(ApiError::BodyCut),
            Ok(Some(Ok(piece))) => {
                self.read += piece.len();
                if self.read > self.limit {
                    return Err(ApiError::BodyTooLarge { limit: self.limit });
                }
                if is_slow(self.read, self.begun.elapsed()) {
                    return Err(ApiError::BodySlow { slowest: SLOWEST });
                }
                Ok(Some(piece))
            }
        }
    }

    /// Reads on for a while, for nothing, while the answer is on its way: many clients look for one only when they
    /// have sent everything.
    pub(super) fn discard(mut self) {
        let rest = async move {
            let mut read = 0;
            while let Some(Ok(piece)) = self.stream.next().await {
                read += piece.len();
                if read > MOST_DISCARDED {
                    return;
                }
            }
        };
        tokio::spawn(tokio::time::timeout(PATIENCE, rest));
    }
}

/// Whether `read` bytes are too few for the time they took.
fn is_slow(read: usize, took: Duration) -> bool {
    took > GRACE && (read as f64) < took.as_secs_f64() * SLOWEST as f64
}

/// A header's text.
pub(super) fn header(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_may_be_slow_for_a_while_only() {
        let seconds = Duration::from_secs;
        assert!(!is_slow(0, GRACE));
        assert!(is_slow(1000, seconds(31)));
        assert!(!is_slow(31 * SLOWEST, seconds(31)));
        assert!(is_slow(3600 * SLOWEST - 1, seconds(3600)), "a byte now and then is not enough");
    }
}
