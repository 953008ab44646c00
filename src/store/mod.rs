//! What clients leave with a server: files, and batches of requests. It survives the end of the process at any point.
//! Knows no HTTP, and nothing of what is in the files.

mod batches;
mod blobs;
mod files;

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use jiff::Timestamp;
use rusqlite::Connection;
use tracing::info;
use uuid::Uuid;

use self::blobs::Blobs;
pub use self::{
    batches::{
        Batch, Counts, Ended, Finalizing, From, Line, LineState, NewBatch, NewLine, Place, State, Tokens,
        Written,
    },
    blobs::{Bucket, Writer},
    files::{File, Listing, NewFile, Removed},
};

/// Changes with the tables: a database that is newer than the program is not touched.
const VERSION: i64 = 1;

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
        let database = Connection::open(&file)?;
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
        match database.query_row("PRAGMA user_version", (), |row| row.get::<_, i64>(0))? {
            0 => {
                database
                    .execute_batch(&format!("BEGIN; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;"))?;
            }
            VERSION => {}
            found => return Err(StoreError::Newer { folder: folder.clone(), found, known: VERSION }),
        }
        let blobs = match bucket {
            Some(bucket) => {
                info!(folder = %folder.display(), %bucket, "files are kept");
                Blobs::in_bucket(bucket)?
            }
            None => {
                info!(folder = %folder.display(), "files are kept");
                Blobs::in_folder(folder.join("files"))?
            }
        };
        Ok(Self { database: Arc::new(Mutex::new(database)), blobs, opened: SystemTime::now() })
    }

    /// Removes contents that nobody knows of: the program ended between one and the other. Says how many.
    ///
    /// # Errors
    /// When the database or the contents fail.
    pub async fn sweep(&self) -> Result<usize, StoreError> {
        // What is written from now on will be known soon.
        let names = self.blobs.before(self.opened).await?;
        let unknown = self.transact(move |database| {
            let mut query = database.prepare("SELECT 1 FROM files WHERE id = ?1")?;
            let mut unknown = Vec::new();
            for name in names {
                if !query.exists((&name,))? {
                    unknown.push(name);
                }
            }
            Ok(unknown)
        });
        let unknown = unknown.await?;
        for name in &unknown {
            self.blobs.delete(name).await?;
        }
        Ok(unknown.len())
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

/// A new name that nobody can guess: a word, a hyphen or an underscore, 32 hexadecimal digits.
fn new_id(prefix: &str) -> String {
    format!("{prefix}{}", Uuid::new_v4().simple())
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    Timestamp::now().as_second()
}
