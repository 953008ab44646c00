//! Files that clients left, and that batches made.

use std::{fs, io, ops::Range};

use bytes::Bytes;
use futures_util::stream::BoxStream;
use rusqlite::{Connection, OptionalExtension as _, Row, named_params};

use super::{Owner, REMOVED_AT_ONCE, Store, StoreError, Writer, new_id, now};

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
    /// Most bytes that all files of its owner may have with it.
    pub room: Option<u64>,
}

/// A content that is there.
pub(super) struct Content {
    /// The file that it is of.
    pub(super) id: String,
    /// What it is called itself.
    pub(super) name: String,
    pub(super) bytes: u64,
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
        database: &Connection,
        tenant: &str,
        content: Content,
    ) -> Result<File, StoreError> {
        let Content { id, name: content, bytes } = content;
        self.check_room(database, tenant, bytes)?;
        let Self { purpose, name, mime, expires, hidden, .. } = self;
        let created = now();
        database.execute(
            "INSERT OR REPLACE INTO files \
             (id, tenant, purpose, name, mime, bytes, created, expires, hidden, content) VALUES \
             (:id, :tenant, :purpose, :name, :mime, :bytes, :created, :expires, :hidden, :content)",
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
                ":content": content,
            },
        )?;
        Ok(File { id, purpose, name, mime, bytes, created, expires })
    }

    /// Refuses more bytes than its owner has room for.
    pub(super) fn check_room(
        &self,
        database: &Connection,
        tenant: &str,
        bytes: u64,
    ) -> Result<(), StoreError> {
        let Some(limit) = self.room else { return Ok(()) };
        let query = "SELECT coalesce(sum(bytes), 0) FROM files WHERE tenant = ?1";
        let used = database.query_row(query, (tenant,), |row| row.get::<_, i64>(0))?.cast_unsigned();
        if used.saturating_add(bytes) > limit { Err(StoreError::Full { used, limit }) } else { Ok(()) }
    }
}

/// Removes what is known of a file that is part of something else; says which content it had.
pub(super) fn remove_hidden(database: &Connection, id: &str) -> rusqlite::Result<Option<String>> {
    let query = "DELETE FROM files WHERE id = ?1 AND hidden RETURNING content";
    database.query_row(query, (id,), |row| row.get(0)).optional()
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
    /// When there is no room for it, or it cannot be kept; then nothing is.
    pub async fn add_file(
        &self,
        owner: &Owner,
        file: NewFile,
        content: fs::File,
    ) -> Result<File, StoreError> {
        let tenant = owner.tenant().to_owned();
        let (check, of, bytes) = (file.clone(), tenant.clone(), content.metadata()?.len());
        // What is refused anyway need not be written first; what counts is asked again when it is noted.
        self.transact(move |database| check.check_room(database, &of, bytes)).await?;
        let prefix = file.prefix;
        self.keep(prefix, content, move |database, content| file.insert(database, &tenant, content)).await
    }

    /// Writes a content and notes it by `note`, in one transaction. Where that fails, the content goes again.
    pub(super) async fn keep<T: Send + 'static>(
        &self,
        prefix: &str,
        content: fs::File,
        note: impl FnOnce(&Connection, Content) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let id = new_id(prefix);
        let name = self.blobs.name(&id);
        let writer = self.blobs.put(&name, content).await?;
        let store = self.clone();
        // From here on it comes to its end, whether its client stays or not: else a content could be left that nobody
        // knows of.
        let kept = tokio::spawn(async move {
            let bytes = writer.finish().await?;
            let content = Content { id, name: name.clone(), bytes };
            let noted = store.transact(move |database| note(database, content)).await;
            if noted.is_err() {
                store.forget(&[name]).await;
            }
            noted
        });
        kept.await.map_err(|error| StoreError::Thread(error.to_string()))?
    }

    /// What takes the content of a file that [`Store`] notes later, under a name that it gave.
    pub(super) async fn write_file(&self, id: &str) -> Result<Writer, StoreError> {
        self.blobs.writer(&self.blobs.name(id)).await
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

    /// The content of a file, or a part of it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn content(
        &self,
        id: &str,
        range: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, StoreError> {
        let of = id.to_owned();
        let query = "SELECT content FROM files WHERE id = ?1";
        let name = self.transact(move |database| {
            Ok(database.query_row(query, (of,), |row| row.get::<_, String>(0)).optional()?)
        });
        let name = name.await?.unwrap_or_else(|| self.blobs.name(id));
        self.blobs.read(&name, range).await
    }

    /// Removes a file, if it is there and no batch needs it: what is known first, so that what is known is there. Says
    /// which batch needs it.
    ///
    /// # Errors
    /// When the database or the contents fail.
    pub async fn remove_file(&self, owner: &Owner, id: &str) -> Result<Removed, StoreError> {
        let (tenant, known) = (owner.tenant().to_owned(), id.to_owned());
        let removed = self.transact(move |database| {
            let query = "SELECT batches.id FROM batches JOIN files ON files.id = batches.input WHERE files.id = ?1 AND \
                         files.tenant = ?2 AND NOT files.hidden AND batches.ended IS NULL";
            if let Some(batch) = database.query_row(query, (&known, &tenant), |row| row.get(0)).optional()? {
                return Ok((Removed::Needed { batch }, None));
            }
            let query = "DELETE FROM files WHERE id = ?1 AND tenant = ?2 AND NOT hidden RETURNING content";
            let content: Option<String> =
                database.query_row(query, (known, tenant), |row| row.get(0)).optional()?;
            Ok((if content.is_some() { Removed::Yes } else { Removed::NotThere }, content))
        });
        let (removed, content) = removed.await?;
        if let Some(content) = content {
            self.blobs.delete(&content).await?;
        }
        Ok(removed)
    }

    /// Removes files whose time has come and that no batch needs; says how many.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn expire_files(&self) -> Result<usize, StoreError> {
        let mut count = 0;
        loop {
            let expired = self.transact(|database| {
                let query = "DELETE FROM files WHERE number IN (SELECT number FROM files WHERE expires <= ?1 AND NOT EXISTS \
                             (SELECT 1 FROM batches WHERE input = files.id AND ended IS NULL) LIMIT ?2) RETURNING content";
                let mut query = database.prepare(query)?;
                let contents = query.query_map((now(), REMOVED_AT_ONCE as i64), |row| row.get(0))?;
                Ok(contents.collect::<Result<Vec<String>, _>>()?)
            });
            let expired = expired.await?;
            count += expired.len();
            self.forget(&expired).await;
            if expired.len() < REMOVED_AT_ONCE {
                return Ok(count);
            }
        }
    }

    /// Removes what is known of files that are part of something that is not there: programs before this one could end
    /// between one and the other. Says which contents they had.
    pub(super) async fn remove_unnamed(&self) -> Result<Vec<String>, StoreError> {
        self.transact(|database| {
            let query = "DELETE FROM files WHERE hidden AND id NOT IN (SELECT input FROM batches UNION \
                         SELECT output FROM batches WHERE output IS NOT NULL) RETURNING content";
            let mut query = database.prepare(query)?;
            Ok(query.query_map((), |row| row.get(0))?.collect::<Result<_, _>>()?)
        })
        .await
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
