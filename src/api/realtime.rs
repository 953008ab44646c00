//! `/v1/realtime`: speech that is written down while it is said, over a WebSocket.

mod secrets;
mod session;
mod settings;

use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use axum::{
    extract::{
        OptionalFromRequestParts, Query, State,
        rejection::QueryRejection,
        ws::{WebSocketUpgrade, rejection::WebSocketUpgradeRejection},
    },
    http::{
        HeaderMap,
        header::{HOST, ORIGIN, SEC_WEBSOCKET_PROTOCOL},
        request::Parts,
    },
    response::Response,
};
use tokio::sync::watch;

pub(super) use self::secrets::{Secrets, create as create_secret, is_client_secret};
use self::{session::Session, settings::Settings};
use super::{
    ApiError, App, guard,
    record::{Ending, Record},
    wire::realtime as wire,
};
use crate::{operations::Counted, request::InvalidRequest};

/// Where sessions are.
pub(super) const PATH: &str = "/v1/realtime";
/// What is answered of the protocols that a client offers.
const PROTOCOL: &str = "realtime";
/// How clients of the older API say that they are.
const OLDER_HEADER: (&str, &str) = ("openai-beta", "realtime=v1");
const OLDER_PROTOCOL: &str = "openai-beta.realtime-v1";
/// Bytes of a message that are read. Larger ones than [`MOST_MESSAGE`] are answered, and those larger than this end the
/// connection.
const MOST_READ: usize = 2 * MOST_MESSAGE;
/// Bytes of a message.
const MOST_MESSAGE: usize = 15 << 20;

/// What sessions may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RealtimeLimits {
    /// Most sessions of a tenant at once.
    pub sessions: usize,
    /// How long one may take.
    pub longest: Duration,
    /// How long nothing may be sent in one.
    pub idle: Duration,
}

/// `GET /v1/realtime`
pub(super) async fn connect(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    query: Result<Query<wire::Connect>, QueryRejection>,
    connection: Option<Connection>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = upgrade.map_err(|_| ApiError::NotWebSocket)?;
    check_origin(&app, &headers)?;
    app.models()?;
    let Query(wire::Connect { model, intent }) = query.map_err(|error| InvalidRequest::Value {
        param: "model".into(),
        found: error.body_text(),
        supported: "model and intent, each once".into(),
    })?;
    if let Some(other) = intent.filter(|intent| intent != "transcription") {
        return Err(super::check::value("intent", &other, "'transcription'").into());
    }
    // A page that was given a secret begins as that says; its URL may say another model.
    let settings = match guard::keys(&headers).find(|key| is_client_secret(key)) {
        Some(secret) => {
            let mut settings = app.secrets.settings(secret)?;
            if let Some(name) = model.filter(|name| !name.is_empty()) {
                settings.set_model(&app, &record, &name)?;
            }
            settings
        }
        None => Settings::new(&app, &record, model.as_deref())?,
    };
    let tenant = record.caller().map(|caller| caller.tenant).unwrap_or_default();
    let open = app.open_session(tenant, app.config.realtime.sessions)?;
    let ending = Until::default();
    let session =
        Session::new(&app, record, settings, is_older(&headers), (open, connection, ending.clone()));
    let mut response = upgrade
        .protocols([PROTOCOL])
        .max_message_size(MOST_READ)
        .max_frame_size(MOST_READ)
        .on_upgrade(move |socket| session.run(socket));
    response.extensions_mut().insert(ending);
    Ok(response)
}

fn is_older(headers: &HeaderMap) -> bool {
    let (name, value) = OLDER_HEADER;
    let says = |name: &str, what: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|list| list.split(',')).any(|word| word.trim() == what)
    };
    says(name, value) || says(SEC_WEBSOCKET_PROTOCOL.as_str(), OLDER_PROTOCOL)
}

/// Browsers let every page open a WebSocket to any server, and tell who does.
fn check_origin(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
    let known = guard::origin(app, headers).is_some();
    let text = String::from_utf8_lossy(origin.as_bytes());
    let of_this = text.split_once("://").is_some_and(|(_, authority)| {
        headers.get(HOST).is_some_and(|host| host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()))
    });
    match known || of_this {
        true => Ok(()),
        false => {
            Err(ApiError::Origin { origin: text.chars().filter(|c| !c.is_control()).take(100).collect() })
        }
    }
}

/// A connection, which has a place among all as long as this is kept: an extension of its requests.
#[derive(Clone)]
pub(crate) struct Connection(
    #[expect(dead_code, reason = "it is kept, and nothing else")] pub(crate) Arc<dyn Any + Send + Sync>,
);

impl<S: Sync> OptionalFromRequestParts<S> for Connection {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, ApiError> {
        Ok(parts.extensions.get::<Self>().cloned())
    }
}

/// Where the end of a request is kept that goes on behind its response: an extension of that.
#[derive(Clone, Default)]
pub(super) struct Until(Arc<OnceLock<Ending>>);

impl Until {
    /// Keeps it.
    pub(super) fn set(&self, ending: Ending) {
        // One request has one end.
        drop(self.0.set(ending));
    }

    fn get(&self) -> Option<&Ending> {
        self.0.get()
    }
}

/// Sessions that are open.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    by_tenant: Mutex<HashMap<String, usize>>,
    count: watch::Sender<usize>,
}

/// An open session; dropping it closes it.
#[derive(Debug)]
struct Open {
    app: Arc<App>,
    tenant: String,
    _counted: Counted,
}

impl Sessions {
    /// Waits until there is none.
    pub(super) async fn ended(&self) {
        // The sender is never dropped before.
        let _ = self.count.subscribe().wait_for(|&count| count == 0).await;
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.by_tenant.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl App {
    /// Another session of a tenant that may have so many.
    fn open_session(self: &Arc<Self>, tenant: String, limit: usize) -> Result<Open, ApiError> {
        let mut by_tenant = self.sessions.lock();
        let count = by_tenant.entry(tenant.clone()).or_default();
        if *count >= limit {
            return Err(ApiError::Sessions { limit });
        }
        *count += 1;
        self.sessions.count.send_modify(|count| *count += 1);
        drop(by_tenant);
        let counted = self.operations.metrics.session();
        Ok(Open { app: Arc::clone(self), tenant, _counted: counted })
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        let mut by_tenant = self.app.sessions.lock();
        if let Some(count) = by_tenant.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                by_tenant.remove(&self.tenant);
            }
        }
        drop(by_tenant);
        self.app.sessions.count.send_modify(|count| *count -= 1);
    }
}
