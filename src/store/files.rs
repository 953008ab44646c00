//! Files that clients left, and that batches made.

use std::{fs, io, ops::Range};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use rusqlite::{OptionalExtension as _, Row, named_params};

use super::{Owner, Store, StoreError, Writer, new_id, now};

/// Most files that are removed at once when their time has come.
const REMOVED_AT_ONCE: usize = 100;

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Its name here.
    pub id: String,
    /// What for, as the client said.
    pub purpose: String,
    /// As the client called it: for display only.
    pub name: String,
    /// What the client said that it is.
    pub mime: String,
    /// Its length.
    pub bytes: u64,
    /// When it came: seconds since 1970.
    pub created: i64,
    /// When it goes.
    pub expires: Option<i64>,
}

/// A file that is to be kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewFile {
    /// How its name here begins: `file-` or `file_`.
    pub prefix: &'static str,
    /// What for.
    pub purpose: String,
    /// As the client calls it.
    pub name: String,
    /// What the client says that it is.
    pub mime: String,
    /// When it goes.
    pub expires: Option<i64>,
    /// Whether it is part of something else, and not listed.
    pub hidden: bool,
}

const COLUMNS: &str = "id, purpose, name, mime, bytes, created, expires";

impl File {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get("id")?,
            purpose: row.get("purpose")?,
            name: row.get("name")?,
            mime: row.get("mime")?,
            bytes: row.get::<_, i64>("bytes")?.cast_unsigned(),
            created: row.get("created")?,
            expires: row.get("expires")?,
        })
    }
}

impl NewFile {
    /// Notes it, with the content that it has.
    pub(super) fn insert(
        self,
        database: &rusqlite::Connection,
        id: &str,
        tenant: &str,
        bytes: u64,
    ) -> Result<File, StoreError> {
        let Self { purpose, name, mime, expires, hidden, .. } = self;
        let created = now();
        database.execute(
            "INSERT OR REPLACE INTO files (id, tenant, purpose, name, mime, bytes, created, expires, hidden) \
             VALUES (:id, :tenant, :purpose, :name, :mime, :bytes, :created, :expires, :hidden)",
            named_params! {
                ":id": id,
                ":tenant": tenant,
                ":purpose": purpose,
                ":name": name,
                ":mime": mime,
                ":bytes": bytes.cast_signed(),
                ":created": created,
                ":expires": expires,
                ":hidden": hidden,
            },
        )?;
        Ok(File { id: id.to_owned(), purpose, name, mime, bytes, created, expires })
    }
}

/// Which files are listed.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// Only of this purpose.
    pub purpose: Option<String>,
    /// The oldest first.
    pub ascending: bool,
    /// Those that follow this one.
    pub after: Option<String>,
    /// Most of them.
    pub limit: usize,
}

impl Store {
    /// Keeps a file: its content first, so that what is known is there.
    ///
    /// # Errors
    /// When it cannot be kept.
    pub async fn add_file(
        &self,
        owner: &Owner,
        file: NewFile,
        content: fs::File,
    ) -> Result<File, StoreError> {
        let id = new_id(file.prefix);
        let bytes = self.blobs.put(&id, content).await?;
        let (tenant, known) = (owner.tenant().to_owned(), id.clone());
        let noted = self.transact(move |database| file.insert(database, &known, &tenant, bytes)).await;
        if noted.is_err() {
            self.blobs.delete(&id).await?;
        }
        noted
    }

    /// What takes the content of a file that [`Store`] notes later, under a name that it gave.
    pub(super) async fn write_file(&self, id: &str) -> Result<Writer, StoreError> {
        self.blobs.writer(id).await
    }

    /// What is known of a file; hidden ones too, if `hidden`.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn file(&self, owner: &Owner, id: &str, hidden: bool) -> Result<Option<File>, StoreError> {
        let (tenant, id) = (owner.tenant().to_owned(), id.to_owned());
        self.transact(move |database| {
            let query = format!(
                "SELECT {COLUMNS} FROM files WHERE id = ?1 AND tenant = ?2 AND hidden <= ?3 AND \
                 (expires IS NULL OR expires > ?4)"
            );
            Ok(database.query_row(&query, (id, tenant, hidden, now()), File::read).optional()?)
        })
        .await
    }

    /// Files of an owner, and whether there are more of them. `None` where the one that they follow is not there.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn files(
        &self,
        owner: &Owner,
        listing: Listing,
    ) -> Result<Option<(Vec<File>, bool)>, StoreError> {
        let tenant = owner.tenant().to_owned();
        self.transact(move |database| {
            let Listing { purpose, ascending, after, limit } = listing;
            let (direction, beyond, first) =
                if ascending { ("ASC", ">", i64::MIN) } else { ("DESC", "<", i64::MAX) };
            let after = match after {
                None => first,
                Some(id) => {
                    let query = "SELECT number FROM files WHERE id = ?1 AND tenant = ?2";
                    match database.query_row(query, (id, &tenant), |row| row.get(0)).optional()? {
                        Some(number) => number,
                        None => return Ok(None),
                    }
                }
            };
            let query = format!(
                "SELECT {COLUMNS} FROM files WHERE tenant = :tenant AND NOT hidden AND number {beyond} :after AND \
                 (:purpose IS NULL OR purpose = :purpose) AND (expires IS NULL OR expires > :now) \
                 ORDER BY number {direction} LIMIT :limit"
            );
            let mut query = database.prepare(&query)?;
            let wanted = named_params! {
                ":tenant": tenant,
                ":after": after,
                ":purpose": purpose,
                ":now": now(),
                ":limit": limit.saturating_add(1) as i64,
            };
            let mut files = query.query_map(wanted, File::read)?.collect::<Result<Vec<_>, _>>()?;
            let more = files.len() > limit;
            files.truncate(limit);
            Ok(Some((files, more)))
        })
        .await
    }

    /// Bytes of all files of an owner.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn bytes(&self, owner: &Owner) -> Result<u64, StoreError> {
        let tenant = owner.tenant().to_owned();
        let query = "SELECT coalesce(sum(bytes), 0) FROM files WHERE tenant = ?1";
        self.transact(move |database| {
            Ok(database.query_row(query, (tenant,), |row| row.get::<_, i64>(0))?.cast_unsigned())
        })
        .await
    }

    /// The content of a file, or a part of it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn content(
        &self,
        id: &str,
        range: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, StoreError> {
        self.blobs.read(id, range).await
    }

    /// Removes a file, if it is there and no batch needs it: what is known first, so that what is known is there. Says
    /// which batch needs it.
    ///
    /// # Errors
    /// When the database or the contents fail.
    pub async fn remove_file(&self, owner: &Owner, id: &str) -> Result<Removed, StoreError> {
        let (tenant, known) = (owner.tenant().to_owned(), id.to_owned());
        let removed = self.transact(move |database| {
            let query = "SELECT id FROM batches WHERE input = ?1 AND ended IS NULL";
            if let Some(batch) = database.query_row(query, (&known,), |row| row.get(0)).optional()? {
                return Ok(Removed::Needed { batch });
            }
            let query = "DELETE FROM files WHERE id = ?1 AND tenant = ?2 AND NOT hidden";
            Ok(if database.execute(query, (known, tenant))? > 0 { Removed::Yes } else { Removed::NotThere })
        });
        let removed = removed.await?;
        if removed == Removed::Yes {
            self.blobs.delete(id).await?;
        }
        Ok(removed)
    }

    /// Removes files whose time has come and that no batch needs; says how many.
    ///
    /// # Errors
    /// When the database or the contents fail.
    pub async fn expire_files(&self) -> Result<usize, StoreError> {
        let expired = self.transact(|database| {
            let query = "DELETE FROM files WHERE number IN (SELECT number FROM files WHERE expires <= ?1 AND NOT EXISTS \
                         (SELECT 1 FROM batches WHERE input = files.id AND ended IS NULL) LIMIT ?2) RETURNING id";
            let mut query = database.prepare(query)?;
            let ids = query.query_map((now(), REMOVED_AT_ONCE as i64), |row| row.get::<_, String>(0))?;
            Ok(ids.collect::<Result<Vec<_>, _>>()?)
        });
        let expired = expired.await?;
        for id in &expired {
            self.blobs.delete(id).await?;
        }
        Ok(expired.len())
    }
}

/// What became of a file that was to be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Removed {
    /// It is gone.
    Yes,
    /// There was none.
    NotThere,
    /// A batch that has not ended needs it.
    Needed {
        /// The batch.
        batch: String,
    },
}
