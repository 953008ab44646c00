//! A request's body as it comes: in pieces, bounded in bytes and in silence.

use std::time::Duration;

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
}

impl Pieces {
    /// A body of at most `limit` bytes, none of which is read yet.
    pub(super) fn open(headers: &HeaderMap, body: Body, limit: usize) -> Result<Self, ApiError> {
        let encoding = header(headers, CONTENT_ENCODING);
        if let Some(found) = encoding.filter(|found| !found.eq_ignore_ascii_case("identity")) {
            return Err(ApiError::ContentEncoding { found: found.chars().take(100).collect() });
        }
        let pieces = Self { stream: body.into_data_stream(), read: 0, limit };
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

/// A header's text.
pub(super) fn header(headers: &HeaderMap, name: HeaderName) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}
