//! One request after another over connections that are kept: what it was, when its pieces came, how it ended.

use std::{fmt, time::Duration};

use http_body_util::{BodyExt as _, Full};
use hyper::{
    Method, Request, Response, StatusCode, Uri,
    body::{Bytes, Incoming},
};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Pool, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::sse::{Reader, Said, WireUsage, error_message};

/// How long a server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);
/// Most bytes of an answer that does not come in pieces.
const MOST_BODY: usize = 256 << 20;

/// How a request went.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// When it was meant to be sent: all times count from here.
    pub start: Instant,
    /// When it was sent.
    pub sent: Instant,
    /// When its last byte came, or the failure.
    pub end: Instant,
    /// What was asked.
    pub work: Work,
    /// The answer.
    pub result: Result<Answer, Failure>,
}

/// What a request asks a server to do.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Pictures to look at.
    pub pictures: u64,
    /// Seconds of sound to listen to.
    pub sound: f64,
}

/// A complete answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// When pieces with text came.
    pub pieces: Vec<Instant>,
    /// The server's count.
    pub usage: Option<Usage>,
    /// What the server says changes when its answers may.
    pub fingerprint: Option<String>,
}

/// Tokens as a server counts them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt.
    pub prompt: u64,
    /// Those of them that an earlier request had computed.
    pub cached: u64,
    /// Of the answer.
    pub completion: u64,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// 429: come again later.
    #[error("{message}")]
    Busy {
        /// The server's words.
        message: String,
        /// How much later, where it says so.
        again: Option<Duration>,
    },
    /// Another status than success.
    #[error("{message}")]
    Status {
        /// The status.
        status: u16,
        /// The server's words.
        message: String,
    },
    /// No connection.
    #[error("{0}")]
    Refused(String),
    /// It took too long.
    #[error("no complete answer within {} seconds", .0.as_secs_f64())]
    Timeout(Duration),
    /// It ended in the middle.
    #[error("{0}")]
    Broken(String),
    /// The server failed after its answer had begun, and said so.
    #[error("{0}")]
    Stream(String),
    /// It is none that a client could read.
    #[error("{0}")]
    Strange(String),
}

impl Failure {
    /// Under which name it is counted.
    pub fn class(&self) -> String {
        match self {
            Self::Busy { .. } => "status 429".into(),
            Self::Status { status, .. } => format!("status {status}"),
            Self::Refused(_) => "connection refused".into(),
            Self::Timeout(_) => "timeout".into(),
            Self::Broken(_) => "broken answer".into(),
            Self::Stream(_) => "error in a stream".into(),
            Self::Strange(_) => "strange answer".into(),
        }
    }
}

/// A request that is ready to be sent.
#[derive(Debug, Clone)]
pub struct Prepared {
    /// Below `/v1`.
    pub path: &'static str,
    /// Of the body.
    pub content_type: String,
    /// What is sent.
    pub body: Vec<u8>,
    /// What that asks.
    pub work: Work,
}

/// Why a URL cannot be measured.
#[derive(Debug, thiserror::Error)]
#[error("{url} is no URL of a server, such as http://127.0.0.1:8000")]
pub struct UrlError {
    url: String,
}

/// A server, and connections to it.
pub struct Client {
    pool: Pool<HttpsConnector<HttpConnector>, Full<Bytes>>,
    base: Base,
    key: Option<String>,
    timeout: Duration,
}

impl fmt::Debug for Client {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the key.
        formatter.debug_struct("Client").field("base", &self.base).finish_non_exhaustive()
    }
}

/// A server's URL, without `/v1`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Base(String);

impl Client {
    /// A client of the server at `url`, with or without `/v1`. `key` goes with each request, none of which may take
    /// longer than `timeout`.
    ///
    /// # Errors
    /// When the URL is none.
    pub fn new(url: &str, key: Option<String>, timeout: Duration) -> Result<Self, UrlError> {
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        // What is sent is small or whole: nothing may wait for more.
        http.set_nodelay(true);
        http.set_connect_timeout(Some(CONNECT));
        let connector = HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        // As many connections are kept as were used at once.
        let pool = Pool::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_max_idle_per_host(usize::MAX)
            .build(connector);
        Ok(Self { pool, base: Base::parse(url)?, key, timeout })
    }

    /// The server's URL, without `/v1`.
    pub fn url(&self) -> &str {
        &self.base.0
    }

    /// Sends a request and reads its answer.
    pub async fn send(&self, request: Prepared, start: Instant) -> Outcome {
        let work = request.work;
        let sent = Instant::now();
        let asked = self.ask(request);
        let result = timeout_at(sent + self.timeout, asked).await;
        let result = result.unwrap_or(Err(Failure::Timeout(self.timeout)));
        Outcome { start, sent, end: Instant::now(), work, result }
    }

    async fn ask(&self, request: Prepared) -> Result<Answer, Failure> {
        let Prepared { path, content_type, body, .. } = request;
        let request = self.request(Method::POST, path).header("content-type", content_type);
        let request = request.header("accept", "text/event-stream, application/json");
        let request = request.body(Full::new(Bytes::from(body))).expect("its parts are well formed");
        let response = self.pool.request(request).await.map_err(|error| unsent(&error))?;
        if !response.status().is_success() {
            return Err(refused(response).await);
        }
        let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok());
        if kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
            return stream(response).await;
        }
        whole(response).await
    }

    fn request(&self, method: Method, path: &str) -> hyper::http::request::Builder {
        let request = Request::builder().method(method).uri(self.base.of(path));
        let request = request.header("user-agent", concat!("percept-bench/", env!("CARGO_PKG_VERSION")));
        match &self.key {
            Some(key) => request.header("authorization", format!("Bearer {key}")),
            None => request,
        }
    }

    /// A small JSON document of the server.
    ///
    /// # Errors
    /// When there is none.
    pub async fn get(&self, path: &str) -> Result<Value, Failure> {
        let request =
            self.request(Method::GET, path).body(Full::default()).expect("its parts are well formed");
        let asked = async {
            let response = self.pool.request(request).await.map_err(|error| unsent(&error))?;
            if !response.status().is_success() {
                return Err(refused(response).await);
            }
            let body = collect(response.into_body()).await?;
            serde_json::from_slice(&body).map_err(|error| Failure::Strange(format!("{path}: {error}")))
        };
        let patience = self.timeout.min(CONNECT);
        tokio::time::timeout(patience, asked).await.unwrap_or(Err(Failure::Timeout(patience)))
    }
}

/// A server's URL as people write it, without `/v1` and with a scheme.
#[must_use]
pub fn base_of(url: &str) -> String {
    let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
    url.trim_end_matches('/').trim_end_matches("/v1").trim_end_matches('/').to_owned()
}

impl Base {
    fn parse(url: &str) -> Result<Self, UrlError> {
        let wrong = || UrlError { url: url.to_owned() };
        let base = base_of(url);
        let uri: Uri = base.parse().map_err(|_| wrong())?;
        let known = matches!(uri.scheme_str(), Some("http" | "https")) && uri.query().is_none();
        let host = uri.host().is_some_and(|host| !host.is_empty());
        if known && host { Ok(Self(base)) } else { Err(wrong()) }
    }

    fn of(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }
}

/// What kept a request from being sent, or its answer from beginning.
fn unsent(error: &hyper_util::client::legacy::Error) -> Failure {
    let mut causes = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        causes = format!("{causes}: {cause}");
        source = cause.source();
    }
    if error.is_connect() { Failure::Refused(causes) } else { Failure::Broken(causes) }
}

fn broken(error: &hyper::Error) -> Failure {
    Failure::Broken(format!("the answer broke off: {error}"))
}

/// What an answer without success says.
async fn refused(response: Response<Incoming>) -> Failure {
    let status = response.status();
    let seconds = |name: &str, unit: f64| {
        let text = response.headers().get(name)?.to_str().ok()?;
        let seconds = text.trim().parse::<f64>().ok()? * unit;
        Duration::try_from_secs_f64(seconds).ok()
    };
    let again = seconds("retry-after-ms", 1e-3).or_else(|| seconds("retry-after", 1.0));
    let body = collect(response.into_body()).await.unwrap_or_default();
    let message = error_message(&body);
    match status {
        StatusCode::TOO_MANY_REQUESTS => Failure::Busy { message, again },
        _ => Failure::Status { status: status.as_u16(), message },
    }
}

/// An answer in pieces.
async fn stream(response: Response<Incoming>) -> Result<Answer, Failure> {
    let mut body = response.into_body();
    let (mut reader, mut answer) = (Reader::default(), Answer::default());
    let (mut done, mut failure) = (false, None);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error))?;
        let Some(bytes) = frame.data_ref() else { continue };
        let now = Instant::now();
        reader.push(bytes, |said| match said {
            Said::Text => answer.pieces.push(now),
            Said::Usage { usage, text } => {
                answer.usage = Some(usage);
                if text {
                    answer.pieces.push(now);
                }
            }
            Said::Done => done = true,
            Said::Error(message) => failure = failure.take().or(Some(Failure::Stream(message))),
            Said::Strange(message) => failure = failure.take().or(Some(Failure::Strange(message))),
        });
        if let Some(failure) = failure {
            return Err(failure);
        }
    }
    if !done {
        return Err(Failure::Broken("the stream ended without [DONE]".into()));
    }
    Ok(Answer { fingerprint: reader.fingerprint, ..answer })
}

/// An answer that comes at once.
async fn whole(response: Response<Incoming>) -> Result<Answer, Failure> {
    #[derive(Deserialize)]
    struct Whole {
        usage: Option<WireUsage>,
        system_fingerprint: Option<String>,
    }
    let body = collect(response.into_body()).await?;
    let read: Whole = serde_json::from_slice(&body)
        .map_err(|error| Failure::Strange(format!("an answer that cannot be read: {error}")))?;
    let usage = read.usage.filter(WireUsage::counts);
    Ok(Answer {
        pieces: Vec::new(),
        usage: usage.as_ref().map(Usage::from),
        fingerprint: read.system_fingerprint,
    })
}

async fn collect(mut body: Incoming) -> Result<Vec<u8>, Failure> {
    let mut all = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error))?;
        let Some(bytes) = frame.data_ref() else { continue };
        if all.len() + bytes.len() > MOST_BODY {
            return Err(Failure::Strange(format!("an answer of more than {MOST_BODY} bytes")));
        }
        all.extend_from_slice(bytes);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_as_people_write_them() {
        for (url, expected) in [
            ("http://a:1", "http://a:1"),
            ("http://a:1/v1/", "http://a:1"),
            ("a:1/v1", "http://a:1"),
            ("https://a/b/v1", "https://a/b"),
        ] {
            assert_eq!(Base::parse(url).unwrap().of("/v1/models"), format!("{expected}/v1/models"));
        }
        for url in ["", "http://", "ftp://a", "http://a b", "unix:///a"] {
            let error = Base::parse(url).unwrap_err().to_string();
            assert!(error.contains(url) && error.contains("no URL"), "{error}");
        }
    }
}
