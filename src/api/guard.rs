//! What every request comes through before anything is looked up: the size of its head, the server's name, the origin of a
//! web page, the key. Nothing is let in but what is said here: a new route needs a key without anyone thinking of it.

use std::{net::IpAddr, sync::Arc};

use axum::{
    extract::{Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, StatusCode,
        header::{
            ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
            ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, HOST, ORIGIN, SEC_WEBSOCKET_PROTOCOL, VARY,
        },
        uri::Authority,
    },
    middleware::Next,
    response::{IntoResponse as _, Response},
};

use super::{
    ApiError, App,
    batches::Inside,
    realtime::{self, is_client_secret},
    record::Record,
    spellings,
};
use crate::{access::Caller, request::Priority};

/// Most headers of a request.
const MOST_HEADERS: usize = 100;
/// Most bytes of headers and URL.
const MOST_HEAD_BYTES: usize = 64 << 10;
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// How openai's library for browsers sends a key with a WebSocket, which takes no headers from a page.
const SUBPROTOCOL: &str = "openai-insecure-api-key.";

/// Lets a request in, or answers it.
pub(super) async fn guard(
    State(app): State<Arc<App>>,
    record: Record,
    request: Request,
    next: Next,
) -> Response {
    let origin = origin(&app, request.headers());
    let mut response = match admit(&app, &record, &request, origin.is_some()) {
        Ok(Admitted::In) => next.run(request).await,
        Ok(Admitted::Preflight) => preflight(request.headers()),
        Err(error) => error.into_response(),
    };
    if !app.config.cors.is_empty() {
        // Whatever is kept of an answer is for one origin.
        response.headers_mut().append(VARY, HeaderValue::from_static("origin"));
    }
    if let Some(origin) = origin {
        let headers = response.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        // Never with credentials of a browser: a key is in a header, which a page must have.
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("*"));
    }
    response
}

enum Admitted {
    /// To what it asks for.
    In,
    /// It is a browser's question before the request, and has its answer.
    Preflight,
}

fn admit(app: &App, record: &Record, request: &Request, of_known_origin: bool) -> Result<Admitted, ApiError> {
    let headers = request.headers();
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
    let path_and_query = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    if headers.len() > MOST_HEADERS || bytes + path_and_query > MOST_HEAD_BYTES {
        return Err(ApiError::HeadTooLarge { headers: MOST_HEADERS, bytes: MOST_HEAD_BYTES });
    }
    check_host(app, request)?;
    let is_preflight =
        request.method() == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    if of_known_origin && is_preflight {
        return Ok(Admitted::Preflight);
    }
    if let Some(Inside { caller, .. }) = request.extensions().get() {
        record.is_at(Priority::Low);
        match (&app.operations.access, caller) {
            (None, _) => {}
            (Some(_), Some(caller)) => record.came_from(caller.clone()),
            // The tenant is gone.
            (Some(_), None) => return Err(ApiError::WrongKey),
        }
        return Ok(Admitted::In);
    }
    let Some(access) = &app.operations.access else { return Ok(Admitted::In) };
    let caller = identify(headers, |key| match is_client_secret(key) {
        // These open sessions, and nothing else.
        true if is_session(request) => app.secrets.identify(key, access),
        true => None,
        false => access.identify(key),
    });
    let reads = [Method::GET, Method::HEAD].contains(request.method());
    let is_public = reads && app.public.contains(request.uri().path());
    match caller {
        Ok(caller) => record.came_from(caller),
        // Whoever is let in anyway need not have a key that is right.
        Err(_) if is_public => {}
        Err(error) => return Err(error),
    }
    Ok(Admitted::In)
}

/// Refuses a name that is not this server's, where it is for this machine alone: a page whose name leads here is not of
/// this machine (DNS rebinding).
fn check_host(app: &App, request: &Request) -> Result<(), ApiError> {
    let Some(allowed) = &app.config.hosts else { return Ok(()) };
    let wrong =
        |host: &str| ApiError::Host { host: host.chars().filter(|c| !c.is_control()).take(100).collect() };
    // All that say one must say the right one: the target, where it is a whole URL, and each header.
    let target = request.uri().authority().map(|authority| authority.as_str().as_bytes());
    let headers = request.headers().get_all(HOST).iter().map(HeaderValue::as_bytes);
    // Browsers always send one; who does not is none.
    for host in target.into_iter().chain(headers) {
        let text = String::from_utf8_lossy(host);
        let authority: Authority = text.parse().map_err(|_| wrong(&text))?;
        let name = authority.host().trim_matches(['[', ']']).trim_end_matches('.');
        let is_here = name.eq_ignore_ascii_case("localhost")
            || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            || allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(name));
        if !is_here || authority.as_str().contains('@') {
            return Err(wrong(&text));
        }
    }
    Ok(())
}

/// Whether a session that transcribes is asked for.
fn is_session(request: &Request) -> bool {
    request.method() == Method::GET
        && spellings(realtime::PATH).iter().any(|path| path == request.uri().path())
}

/// All keys of a request.
pub(super) fn keys(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let bearer = headers.get_all(AUTHORIZATION).iter().filter_map(|value| {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key)
    });
    let plain = headers.get_all(API_KEY).iter().filter_map(|value| value.to_str().ok());
    let offered = headers.get_all(SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    let offered =
        offered.flat_map(|list| list.split(',')).filter_map(|word| word.trim().strip_prefix(SUBPROTOCOL));
    bearer.chain(plain).chain(offered).map(str::trim).filter(|key| !key.is_empty())
}

/// Whose the request is. Where it has several keys, all must be of one tenant.
fn identify(headers: &HeaderMap, whose: impl Fn(&str) -> Option<Caller>) -> Result<Caller, ApiError> {
    let mut found: Option<Caller> = None;
    for key in keys(headers) {
        let caller = whose(key).ok_or(ApiError::WrongKey)?;
        if found.as_ref().is_some_and(|found| found.tenant != caller.tenant) {
            return Err(ApiError::WrongKey);
        }
        found = found.or(Some(caller));
    }
    found.ok_or(ApiError::NoKey)
}

/// The origin of the page that asks, if it is one that may.
pub(super) fn origin(app: &App, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(ORIGIN)?;
    app.config.cors.iter().any(|known| known.as_bytes() == origin.as_bytes()).then(|| origin.clone())
}

/// Any method with any header: what a request may do its key says.
fn preflight(headers: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let answer = response.headers_mut();
    answer.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE"));
    if let Some(wanted) = headers.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    answer.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}
