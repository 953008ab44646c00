//! What clients leave with a server: files, and batches of requests. It survives the end of the process at any point.
//! Knows no HTTP, and nothing of what is in the files.

mod batches;
mod blobs;
mod files;
#[cfg(test)]
mod tests;

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension as _};
use tracing::{info, warn};
use uuid::Uuid;

use self::blobs::Blobs;
pub use self::{
    batches::{
        Batch, Counts, Ended, Finalizing, From, KEPT_SECONDS, Line, LineState, NewBatch, NewLine, Outcome,
        Place, State, Tokens, Written,
    },
    blobs::{Bucket, Writer},
    files::{File, Listing, NewFile, Removed},
};

/// Most files or batches that are removed at once when their time has come.
const REMOVED_AT_ONCE: usize = 100;

/// Where things are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct StoreConfig {
    /// A folder of this machine's, for one server: what is known of files and batches; the files too, unless they are in
    /// a bucket.
    pub folder: PathBuf,
    /// Where the contents of files are instead.
    pub bucket: Option<Bucket>,
}

/// Why something is not kept or not found.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database.
    #[error("the database of files and batches: {0}")]
    Database(#[from] rusqlite::Error),
    /// The contents.
    #[error("the contents of files: {0}")]
    Blobs(#[from] object_store::Error),
    /// The disk.
    #[error("the folder of files and batches: {0}")]
    Io(#[from] io::Error),
    /// A tenant has no room for more files.
    #[error("{used} of {limit} bytes are used")]
    Full {
        /// Bytes of its files.
        used: u64,
        /// Bytes that it may have.
        limit: u64,
    },
    /// A tenant has too many batches that have not ended.
    #[error("there are {limit} batches that have not ended")]
    TooManyBatches {
        /// How many it may have.
        limit: u64,
    },
    /// Another server has it.
    #[error("{} is in use by another server: each has a folder of its own", folder.display())]
    InUse {
        /// The folder.
        folder: PathBuf,
    },
    /// A later program made it.
    #[error("{} was made by a newer percept (version {found} of its tables, {known} are known here)", folder.display())]
    Newer {
        /// The folder.
        folder: PathBuf,
        /// Its version.
        found: i64,
        /// The program's.
        known: i64,
    },
    /// A thread ended that should not.
    #[error("a thread of the store ended: {0}")]
    Thread(String),
}

impl StoreError {
    /// Whether a content is not there or not what it was, and not only out of reach.
    pub fn is_lost(&self) -> bool {
        match self {
            Self::Blobs(error) => matches!(error, object_store::Error::NotFound { .. }),
            Self::Io(error) => error.kind() == io::ErrorKind::InvalidData,
            _ => false,
        }
    }
}

/// Files and batches. Clones are of the same store.
#[derive(Debug, Clone)]
pub struct Store {
    database: Arc<Mutex<Connection>>,
    blobs: Blobs,
    opened: SystemTime,
}

/// Whose something is. Nobody sees what is another's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The tenant; everyone's, where there are no keys.
    pub tenant: Option<String>,
    /// The key that was used, by its public name.
    pub key: Option<String>,
}

impl Owner {
    /// As the database has it.
    fn tenant(&self) -> &str {
        self.tenant.as_deref().unwrap_or("")
    }
}

/// What has changed the tables, in order: a database's version is how many of them it has seen. One that has seen more is
/// newer than the program, and is not touched.
const CHANGES: &[&str] = &[TABLES, CONTENTS];

/// Which store it is, among those that share a bucket, and since when. Contents have names of their own: those that were
/// there before are still called as their files are.
const CONTENTS: &str = "
CREATE TABLE store (id TEXT NOT NULL, made INTEGER NOT NULL);
ALTER TABLE files ADD COLUMN content TEXT NOT NULL DEFAULT '';
UPDATE files SET content = id;
CREATE UNIQUE INDEX files_by_content ON files (content);
CREATE INDEX batches_by_end ON batches (ended);
";

const TABLES: &str = "
CREATE TABLE files (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    purpose TEXT NOT NULL,
    name TEXT NOT NULL,
    mime TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    created INTEGER NOT NULL,
    expires INTEGER,
    hidden INTEGER NOT NULL
);
CREATE INDEX files_of_tenants ON files (tenant, number);
CREATE INDEX files_that_expire ON files (expires) WHERE expires IS NOT NULL;
CREATE TABLE batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    tenant TEXT NOT NULL,
    key TEXT,
    prefix TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    window TEXT NOT NULL,
    metadata TEXT,
    output_expires INTEGER,
    input TEXT NOT NULL,
    output TEXT,
    errors TEXT,
    problems TEXT,
    state TEXT NOT NULL,
    total INTEGER NOT NULL DEFAULT 0,
    succeeded INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    expired INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    created INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    began INTEGER,
    finalizing INTEGER,
    cancelling INTEGER,
    ended INTEGER,
    input_tokens INTEGER NOT NULL DEFAULT 0,
    cached_tokens INTEGER NOT NULL DEFAULT 0,
    output_tokens INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX batches_of_tenants ON batches (tenant, number);
CREATE INDEX batches_by_state ON batches (state);
CREATE TABLE lines (
    batch INTEGER NOT NULL REFERENCES batches (number) ON DELETE CASCADE,
    line INTEGER NOT NULL,
    custom_id TEXT NOT NULL,
    start INTEGER NOT NULL,
    length INTEGER NOT NULL,
    state INTEGER NOT NULL DEFAULT 0,
    result TEXT,
    PRIMARY KEY (batch, line)
) WITHOUT ROWID;
CREATE UNIQUE INDEX lines_by_id ON lines (batch, custom_id);
CREATE INDEX lines_that_wait ON lines (batch, line) WHERE state = 0;
";

impl Store {
    /// Opens what is in a folder, or makes it. Only its owner can read it.
    ///
    /// # Errors
    /// When it cannot be used, or another server uses it.
    pub fn open(config: &StoreConfig) -> Result<Self, StoreError> {
        let StoreConfig { folder, bucket } = config;
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let file = folder.join("percept.sqlite");
        // SQLite would make it readable for all.
        fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&file)?.flush()?;
        let mut database = Connection::open(&file)?;
        let busy = |error: rusqlite::Error| match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                StoreError::InUse { folder: folder.clone() }
            }
            _ => error.into(),
        };
        // One process has it, and the lock is gone with the process. What is committed is on the disk.
        let settings = "PRAGMA locking_mode = EXCLUSIVE; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; \
                        PRAGMA foreign_keys = ON; BEGIN EXCLUSIVE; COMMIT;";
        database.execute_batch(settings).map_err(busy)?;
        let Identity { id, made } = prepare(&mut database, folder)?;
        let blobs = match bucket {
            Some(bucket) => {
                info!(folder = %folder.display(), %bucket, store = id, "files are kept");
                Blobs::in_bucket(bucket, id)?
            }
            None => {
                info!(folder = %folder.display(), "files are kept");
                Blobs::in_folder(folder.join("files"), made)?
            }
        };
        Ok(Self { database: Arc::new(Mutex::new(database)), blobs, opened: SystemTime::now() })
    }

    /// Removes contents of this store's that nobody knows of: the program ended between one and the other. Says how many.
    /// What others have in the same bucket is not touched, nor what an earlier database knew of.
    ///
    /// # Errors
    /// When the database fails, or the contents cannot be listed.
    pub async fn sweep(&self) -> Result<usize, StoreError> {
        let unnamed = self.remove_unnamed().await?;
        // What is written from now on will be known soon.
        let names = self.blobs.written_before(self.opened).await?;
        let unknown = self.transact(move |database| {
            let mut query = database.prepare("SELECT 1 FROM files WHERE content = ?1")?;
            let mut unknown = Vec::new();
            for name in names {
                if !query.exists((&name,))? {
                    unknown.push(name);
                }
            }
            Ok(unknown)
        });
        Ok(self.forget(&unnamed).await + self.forget(&unknown.await?).await)
    }

    /// Removes contents of which nothing is known any more; says how many. What cannot be removed now is left to a sweep.
    async fn forget(&self, contents: &[String]) -> usize {
        let mut removed = 0;
        for name in contents {
            match self.blobs.delete(name).await {
                Ok(()) => removed += 1,
                Err(error) => {
                    warn!(name, %error, "a content cannot be removed: it stays until a later start");
                }
            }
        }
        removed
    }

    /// Does something with the database, as one transaction, where it holds up nobody.
    async fn transact<T: Send + 'static>(
        &self,
        work: impl FnOnce(&rusqlite::Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let database = Arc::clone(&self.database);
        let done = tokio::task::spawn_blocking(move || {
            // What a holder that panicked had begun was rolled back.
            let mut database = database.lock().unwrap_or_else(PoisonError::into_inner);
            let transaction = database.transaction()?;
            let done = work(&transaction)?;
            transaction.commit()?;
            Ok(done)
        });
        done.await.map_err(|error| StoreError::Thread(error.to_string()))?
    }
}

/// A store among others.
struct Identity {
    id: String,
    /// When its database was: what is older is not its.
    made: SystemTime,
}

/// Brings tables to where this program has them.
fn prepare(database: &mut Connection, folder: &Path) -> Result<Identity, StoreError> {
    let found: i64 = database.query_row("PRAGMA user_version", (), |row| row.get(0))?;
    let known = CHANGES.len() as i64;
    let newer = || StoreError::Newer { folder: folder.to_owned(), found, known };
    let missing = usize::try_from(found).ok().and_then(|seen| CHANGES.get(seen..)).ok_or_else(newer)?;
    let transaction = database.transaction()?;
    for change in missing {
        transaction.execute_batch(change)?;
    }
    transaction.execute_batch(&format!("PRAGMA user_version = {known};"))?;
    let read = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    let (id, made): (String, i64) =
        match transaction.query_row("SELECT id, made FROM store", (), read).optional()? {
            Some(identity) => identity,
            None => {
                let id = Uuid::new_v4().simple().to_string();
                // Of a database that was there already all contents are its own.
                let made = if found == 0 { now() } else { 0 };
                transaction.execute("INSERT INTO store (id, made) VALUES (?1, ?2)", (&id, made))?;
                (id, made)
            }
        };
    transaction.commit()?;
    Ok(Identity { id, made: UNIX_EPOCH + Duration::from_secs(made.max(0).cast_unsigned()) })
}

/// A new name that nobody can guess: a word, a hyphen or an underscore, 32 hexadecimal digits.
fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", Uuid::new_v4().simple())
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    Timestamp::now().as_second()
}
