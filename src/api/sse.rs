//! Answers in pieces: server-sent events.

use std::{convert::Infallible, time::Duration};

use axum::{
    http::{HeaderName, HeaderValue},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures_util::stream;
use tracing::error;

/// Proxies that collect an answer before they pass it on would undo streaming.
const NO_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// How often a line is sent while there is no text, so that nothing on the way gives up.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// What an answer's pieces come from.
pub(super) trait Pieces: Send + 'static {
    /// The next piece; `None` behind the last.
    fn next(&mut self) -> impl Future<Output = Option<Event>> + Send;
}

/// An answer in pieces. Dropping it drops what they come from.
pub(super) fn respond(pieces: impl Pieces) -> Response {
    respond_with(pieces, KeepAlive::new().text("keep-alive"))
}

/// An answer in pieces, and what is sent while there are none.
pub(super) fn respond_with(pieces: impl Pieces, keep_alive: KeepAlive) -> Response {
    let events = stream::unfold(pieces, |mut pieces| async move {
        let event = pieces.next().await?;
        Some((Ok::<_, Infallible>(event), pieces))
    });
    let mut response = Sse::new(events).keep_alive(keep_alive.interval(KEEP_ALIVE)).into_response();
    response.headers_mut().insert(NO_BUFFERING, HeaderValue::from_static("no"));
    response
}

/// A piece that is an object.
pub(super) fn json(value: &impl serde::Serialize) -> Event {
    with_data(Event::default(), value)
}

fn with_data(event: Event, value: &impl serde::Serialize) -> Event {
    event.json_data(value).unwrap_or_else(|error| {
        error!(%error, "a piece could not be written");
        Event::default().comment("error")
    })
}

/// A piece that is an object, under a name.
pub(super) fn named(name: &str, value: &impl serde::Serialize) -> Event {
    with_data(Event::default().event(name), value)
}

/// The last piece of an answer that is complete.
pub(super) fn done() -> Event {
    Event::default().data("[DONE]")
}
