//! `/v1/realtime/client_secrets`: keys that a page may have, since they open sessions and nothing else, and not for long.
//! They are in memory only: a server that begins anew knows none of them, and pages ask for others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{Json, body::Body, extract::State, http::HeaderMap, response::Response};

use super::{
    super::json,
    session::{name, seconds_from_now},
    settings::Settings,
};
use crate::{
    access::{Access, Caller, Secret, random_secret},
    api::{
        ApiError, App,
        check::{integer, value},
        files::owner,
        params::Parsed,
        record::Record,
        wire::{Object, realtime as wire},
    },
    store::Owner,
};

/// How they begin.
const PREFIX: &str = "ek_percept-";
/// How long they may be good, in seconds.
const SECONDS: (i64, i64) = (10, 7200);
/// How long they are where nothing is said, in seconds.
const USUAL_SECONDS: i64 = 600;
/// Most bytes that all of a tenant's take. One without words takes [`PLAIN_BYTES`].
const MOST_BYTES: usize = 4 << 20;
const PLAIN_BYTES: usize = 1 << 10;

/// `POST /v1/realtime/client_secrets`
pub(in crate::api) async fn create(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    app.models()?;
    let harmless =
        |path: &str| path.strip_prefix("session.").is_some_and(|field| wire::HARMLESS.contains(&field));
    let Parsed { value, ignored } =
        json::request::<wire::ClientSecretRequest>(&app, &headers, body, harmless).await?;
    record.admit()?;
    let wire::ClientSecretRequest { expires_after, session } = value;
    let seconds = lifetime(expires_after)?;
    let mut settings = Settings::new(&app, &record, None)?;
    if let Some(Object(session)) = session {
        settings = settings.updated(&app, &record, session)?;
    }
    let lasts = Duration::from_secs(seconds.unsigned_abs());
    let secret = app.secrets.add(owner(&record), settings.clone(), lasts)?;
    let expires_at = seconds_from_now(lasts);
    let id = name("sess");
    let answer =
        wire::ClientSecret { value: &secret, expires_at, session: settings.session(&id, expires_at) };
    Ok(ignored.with(Json(answer)))
}

fn lifetime(after: Option<Object<wire::SecretExpiry>>) -> Result<i64, ApiError> {
    let Some(Object(wire::SecretExpiry { anchor, seconds })) = after else { return Ok(USUAL_SECONDS) };
    if let Some(other) = anchor.filter(|anchor| anchor != "created_at") {
        return Err(value("expires_after.anchor", &other, "'created_at'").into());
    }
    let seconds = seconds.unwrap_or(USUAL_SECONDS);
    Ok(integer("expires_after.seconds", seconds, SECONDS.0, SECONDS.1)?)
}

/// What a secret opens, and for whom.
#[derive(Debug)]
struct Known {
    owner: Owner,
    settings: Settings,
    until: Instant,
}

impl Known {
    fn bytes(&self) -> usize {
        PLAIN_BYTES + self.settings.words()
    }
}

/// Secrets that are good, by their hashes: none is kept itself, and how long looking up takes tells nothing about it.
#[derive(Debug, Default)]
pub(in crate::api) struct Secrets(Mutex<HashMap<[u8; 32], Known>>);

impl Secrets {
    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 32], Known>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, owner: Owner, settings: Settings, lasts: Duration) -> Result<String, ApiError> {
        let secret = random_secret(PREFIX).map_err(|error| ApiError::internal(&error))?;
        let now = Instant::now();
        let new = Known { owner, settings, until: now + lasts };
        let mut known = self.lock();
        known.retain(|_, known| known.until > now);
        let of_tenant = known.values().filter(|known| known.owner.tenant == new.owner.tenant);
        if of_tenant.map(Known::bytes).sum::<usize>() + new.bytes() > MOST_BYTES {
            return Err(ApiError::ClientSecrets { limit: MOST_BYTES / PLAIN_BYTES });
        }
        known.insert(Secret::new(&secret).bytes(), new);
        Ok(secret)
    }

    /// How a session begins that is opened with this; the error where it is no good any more.
    pub(super) fn settings(&self, secret: &str) -> Result<Settings, ApiError> {
        self.find(secret, |known| known.settings.clone()).ok_or(ApiError::WrongKey)
    }

    /// Who comes with it: as long as the key that it was made with is good.
    pub(in crate::api) fn identify(&self, secret: &str, access: &Access) -> Option<Caller> {
        let Owner { tenant, key } = self.find(secret, |known| known.owner.clone())?;
        access.holder(tenant.as_deref()?, key.as_deref()?)
    }

    fn find<T>(&self, secret: &str, what: impl FnOnce(&Known) -> T) -> Option<T> {
        let known = self.lock();
        let found = known.get(&Secret::new(secret).bytes())?;
        (found.until > Instant::now()).then(|| what(found))
    }
}

/// Whether a key is one of these.
pub(in crate::api) fn is_client_secret(key: &str) -> bool {
    key.starts_with(PREFIX)
}
