//! Who may use a server, and how much of it: keys of tenants, what those are allowed, and how much they have used. Knows
//! no HTTP.

mod keys;
mod meter;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use jiff::{Timestamp, civil::Date, tz::TimeZone};
use tracing::{error, info};

pub use self::{
    keys::{Area, KEY_PREFIX, Key, KeyFile, KeysError, Secret, Terms, hex, random_secret},
    meter::{Budget, Exceeded, Level, Meter, Now, Rate},
};

/// The keys of a file, as they are there now, and what their tenants have used.
#[derive(Debug)]
pub struct Access {
    file: PathBuf,
    state: Mutex<State>,
    began: Instant,
}

#[derive(Debug)]
struct State {
    known: Arc<Known>,
    /// When the file was changed, and how long it is: of the version that was read last, with or without success.
    seen: Option<Stamp>,
    /// Of every tenant that was ever seen: who is taken out of the file and put back has used as much as before.
    meters: HashMap<String, Arc<Meter>>,
}

/// What tells versions of a file apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    changed: Option<SystemTime>,
    length: u64,
    /// Another one where the file was replaced.
    number: u64,
}

impl Stamp {
    fn of(file: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let data = fs::metadata(file).ok()?;
        Some(Self { changed: data.modified().ok(), length: data.len(), number: data.ino() })
    }
}

/// A version of the file.
#[derive(Debug)]
struct Known {
    tenants: HashMap<String, Arc<Terms>>,
    /// By the first bytes of their hashes, so that looking up tells nothing about the rest.
    keys: HashMap<[u8; 8], Vec<Key>>,
}

impl Known {
    fn new(file: KeyFile) -> Self {
        let mut keys: HashMap<[u8; 8], Vec<Key>> = HashMap::new();
        for key in file.keys {
            keys.entry(key.hash.start()).or_default().push(key);
        }
        let tenants = file.tenants.into_iter().map(|(name, terms)| (name, Arc::new(terms))).collect();
        Self { tenants, keys }
    }
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The tenant's name.
    pub tenant: String,
    /// The key's public name.
    pub key: String,
    /// What the tenant may do.
    pub terms: Arc<Terms>,
    /// What it has used.
    pub meter: Arc<Meter>,
}

impl Access {
    /// The keys of a file.
    ///
    /// # Errors
    /// When it cannot be read, or means nothing.
    pub fn open(file: PathBuf) -> Result<Self, KeysError> {
        let seen = Stamp::of(&file);
        let known = Arc::new(Known::new(KeyFile::read(&file)?));
        info!(file = %file.display(), tenants = known.tenants.len(), "access is by key");
        let state = Mutex::new(State { known, seen, meters: HashMap::new() });
        Ok(Self { file, state, began: Instant::now() })
    }

    /// Reads the file again if it has changed. What cannot be read is logged, and the keys stay as they were: a mistake
    /// in the file must neither let anyone in nor lock everyone out.
    pub fn refresh(&self) {
        let stamp = Stamp::of(&self.file);
        if self.state().seen == stamp {
            return;
        }
        let read = KeyFile::read(&self.file);
        // Somebody is writing it: the next look is soon enough.
        if Stamp::of(&self.file) != stamp {
            return;
        }
        let mut state = self.state();
        state.seen = stamp;
        match read {
            Ok(file) => {
                state.known = Arc::new(Known::new(file));
                info!(tenants = state.known.tenants.len(), "the keys were read again");
            }
            Err(error) => error!(%error, "the keys stay as they were"),
        }
    }

    /// Whose secret it is; nobody's, where the key is unknown, expired or revoked.
    pub fn identify(&self, secret: &str) -> Option<Caller> {
        let secret = Secret::new(secret);
        let mut state = self.state();
        let known = Arc::clone(&state.known);
        let candidates = known.keys.get(&secret.start())?;
        let key = candidates.iter().find(|key| key.hash == secret)?;
        if key.is_expired() {
            return None;
        }
        let terms = Arc::clone(known.tenants.get(&key.tenant)?);
        let meter = state.meters.entry(key.tenant.clone()).or_default();
        let meter = Arc::clone(meter);
        Some(Caller { tenant: key.tenant.clone(), key: key.id.clone(), terms, meter })
    }

    /// A tenant as one that asks, by a key that it had: what is done for it later.
    pub fn tenant(&self, name: &str, key: &str) -> Option<Caller> {
        let mut state = self.state();
        let terms = Arc::clone(state.known.tenants.get(name)?);
        let meter = Arc::clone(state.meters.entry(name.to_owned()).or_default());
        Some(Caller { tenant: name.to_owned(), key: key.to_owned(), terms, meter })
    }

    /// A tenant as one that asks with a key, by that key's public name: as long as the key is good.
    pub fn holder(&self, tenant: &str, key: &str) -> Option<Caller> {
        let known = Arc::clone(&self.state().known);
        let mut keys = known.keys.values().flatten();
        let found = keys.find(|found| found.id == key && found.tenant == tenant)?;
        if found.is_expired() {
            return None;
        }
        self.tenant(tenant, key)
    }

    /// What a tenant has used, for the time before this program began.
    pub fn meter(&self, tenant: &str) -> Arc<Meter> {
        Arc::clone(self.state().meters.entry(tenant.to_owned()).or_default())
    }

    /// The names of all tenants whose usage is bounded by day or month.
    pub fn with_budgets(&self) -> Vec<String> {
        let known = Arc::clone(&self.state().known);
        let bounded = known.tenants.iter().filter(|(_, terms)| terms.has_budget());
        bounded.map(|(name, _)| name.clone()).collect()
    }

    /// The time, as meters want it.
    pub fn now(&self) -> Now {
        Now { elapsed: self.began.elapsed(), date: today() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // It is whole at every point where a holder could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The date in UTC, by which days and months of budgets are counted.
pub fn today() -> Date {
    Timestamp::now().to_zoned(TimeZone::UTC).date()
}
