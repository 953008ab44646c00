//! Batches of requests: lines of a file, each of which is answered once.

use std::{fmt, fs, sync::Arc};

use rusqlite::{
    Connection, OptionalExtension as _, Row, ToSql, named_params,
    types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef},
};

use super::{
    NewFile, Owner, REMOVED_AT_ONCE, Store, StoreError, Writer,
    files::{Content, remove_hidden},
    new_id, now,
};

/// How long a batch is kept that has ended: 30 days, in seconds.
pub const KEPT_SECONDS: i64 = 30 * 24 * 3600;
/// Bytes of answers that are read at once: no more are asked for where there are so many.
const PAGE_BYTES: usize = 4 << 20;

/// What becomes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its lines are looked at.
    Validating,
    /// Its lines are not what they should be. Nothing was done.
    Failed,
    /// Its lines are answered.
    InProgress,
    /// Its output is written.
    Finalizing,
    /// All its lines have an outcome.
    Completed,
    /// Its time ran out before all lines had an answer.
    Expired,
    /// It is to end early.
    Cancelling,
    /// It ended early.
    Cancelled,
}

impl State {
    const ALL: [Self; 8] = [
        Self::Validating,
        Self::Failed,
        Self::InProgress,
        Self::Finalizing,
        Self::Completed,
        Self::Expired,
        Self::Cancelling,
        Self::Cancelled,
    ];

    /// Its name, as OpenAI has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Failed => "failed",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether nothing follows.
    pub fn is_last(self) -> bool {
        matches!(self, Self::Failed | Self::Completed | Self::Expired | Self::Cancelled)
    }
}

impl ToSql for State {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.name().into())
    }
}

impl FromSql for State {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let name = value.as_str()?;
        Self::ALL.into_iter().find(|state| state.name() == name).ok_or(FromSqlError::InvalidType)
    }
}

/// What became of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineState {
    /// It waits, or is being answered.
    Pending = 0,
    /// It has its answer.
    Succeeded = 1,
    /// Its answer is an error.
    Failed = 2,
    /// The time ran out.
    Expired = 3,
    /// The batch was cancelled.
    Cancelled = 4,
}

impl LineState {
    const ALL: [Self; 5] = [Self::Pending, Self::Succeeded, Self::Failed, Self::Expired, Self::Cancelled];
}

impl FromSql for LineState {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let number = value.as_i64()?;
        Self::ALL.into_iter().find(|state| *state as i64 == number).ok_or(FromSqlError::OutOfRange(number))
    }
}

/// A batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// In the order in which they came.
    pub number: i64,
    /// Its name.
    pub id: String,
    /// Whose it is.
    pub owner: Owner,
    /// What its lines ask for: a path of the API.
    pub endpoint: String,
    /// How long it may take, as the client said.
    pub window: String,
    /// What the client noted, as JSON.
    pub metadata: Option<String>,
    /// Seconds after which its output goes.
    pub output_expires: Option<i64>,
    /// The file of its lines.
    pub input: String,
    /// The file of its answers, once it is written.
    pub output: Option<String>,
    /// The file of its errors, once it is written.
    pub errors: Option<String>,
    /// What is wrong with its lines, as JSON.
    pub problems: Option<String>,
    /// What becomes of it.
    pub state: State,
    /// How many lines it has, and what became of them.
    pub counts: Counts,
    /// What its answers took.
    pub tokens: Tokens,
    /// When it came: seconds since 1970, as all that follow.
    pub created: i64,
    /// When its time runs out.
    pub expires: i64,
    /// When the first line was begun.
    pub began: Option<i64>,
    /// When the last line had its outcome.
    pub finalizing: Option<i64>,
    /// When it was cancelled.
    pub cancelling: Option<i64>,
    /// When all was done.
    pub ended: Option<i64>,
}

/// Lines of a batch by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// All of them.
    pub total: u64,
    /// Those with an answer.
    pub succeeded: u64,
    /// Those with an error.
    pub failed: u64,
    /// Those whose time ran out.
    pub expired: u64,
    /// Those that were given up.
    pub cancelled: u64,
}

/// Tokens of answers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Of prompts.
    pub input: u64,
    /// Of these, those that were in the cache.
    pub cached: u64,
    /// Of answers.
    pub output: u64,
}

/// A batch that is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBatch {
    /// How its name begins.
    pub prefix: &'static str,
    /// See [`Batch`].
    pub endpoint: String,
    /// See [`Batch`].
    pub window: String,
    /// See [`Batch`].
    pub metadata: Option<String>,
    /// See [`Batch`].
    pub output_expires: Option<i64>,
    /// Seconds that it may take.
    pub seconds: i64,
    /// How many lines it has, where that is known.
    pub total: usize,
    /// Most batches that its owner may have with it that have not ended.
    pub most_open: u64,
}

/// A line that was found in an input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLine {
    /// What the client calls it.
    pub custom_id: String,
    /// Where it is.
    pub place: Place,
}

/// Bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// From which one on.
    pub start: u64,
    /// How many.
    pub length: u64,
}

/// A line of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// From 0 on.
    pub number: i64,
    /// What the client calls it.
    pub custom_id: String,
    /// Where it is in the input.
    pub place: Place,
    /// What became of it.
    pub state: LineState,
    /// Its line of the output, where it has one.
    pub result: Option<String>,
}

/// What a line comes to. Clones are cheap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// What became of it.
    pub state: LineState,
    /// Its line of the output.
    pub result: Arc<str>,
    /// What its answer took.
    pub tokens: Tokens,
}

/// Where in a list a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    /// With the newest.
    Newest,
    /// With what came before this one.
    Before(String),
    /// So that it ends with what came after this one.
    After(String),
}

/// What is written of a batch that ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The name that was reserved.
    pub id: String,
    /// What is known of it.
    pub file: NewFile,
    /// Its length.
    pub bytes: u64,
}

/// How a batch ends.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ended {
    /// Its answers.
    pub output: Option<Written>,
    /// Its errors.
    pub errors: Option<Written>,
}

impl Batch {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let tenant: String = row.get("tenant")?;
        let count = |name: &str| Ok::<_, rusqlite::Error>(row.get::<_, i64>(name)?.cast_unsigned());
        let ended: Option<i64> = row.get("ended")?;
        // Names that are reserved are no files yet.
        let written =
            |name: &str| row.get::<_, Option<String>>(name).map(|id| id.filter(|_| ended.is_some()));
        Ok(Self {
            number: row.get("number")?,
            id: row.get("id")?,
            owner: Owner { tenant: Some(tenant).filter(|tenant| !tenant.is_empty()), key: row.get("key")? },
            endpoint: row.get("endpoint")?,
            window: row.get("window")?,
            metadata: row.get("metadata")?,
            output_expires: row.get("output_expires")?,
            input: row.get("input")?,
            output: written("output")?,
            errors: written("errors")?,
            problems: row.get("problems")?,
            state: row.get("state")?,
            counts: Counts {
                total: count("total")?,
                succeeded: count("succeeded")?,
                failed: count("failed")?,
                expired: count("expired")?,
                cancelled: count("cancelled")?,
            },
            tokens: Tokens {
                input: count("input_tokens")?,
                cached: count("cached_tokens")?,
                output: count("output_tokens")?,
            },
            created: row.get("created")?,
            expires: row.get("expires")?,
            began: row.get("began")?,
            finalizing: row.get("finalizing")?,
            cancelling: row.get("cancelling")?,
            ended,
        })
    }
}

fn find(database: &Connection, number: i64) -> rusqlite::Result<Batch> {
    database.query_row("SELECT * FROM batches WHERE number = ?1", (number,), Batch::read)
}

impl NewBatch {
    /// Notes it.
    fn insert(self, database: &Connection, owner: &Owner, input: &str) -> Result<Batch, StoreError> {
        self.check_open(database, owner)?;
        let created = now();
        database.execute(
            "INSERT INTO batches (id, tenant, key, prefix, endpoint, window, metadata, output_expires, input, state, \
             total, created, expires) VALUES (:id, :tenant, :key, :prefix, :endpoint, :window, :metadata, :output_expires, \
             :input, :state, :total, :created, :expires)",
            named_params! {
                ":id": new_id(self.prefix),
                ":tenant": owner.tenant(),
                ":key": owner.key,
                ":prefix": self.prefix,
                ":endpoint": self.endpoint,
                ":window": self.window,
                ":metadata": self.metadata,
                ":output_expires": self.output_expires,
                ":input": input,
                ":state": State::Validating,
                ":total": self.total as i64,
                ":created": created,
                ":expires": created.saturating_add(self.seconds),
            },
        )?;
        Ok(find(database, database.last_insert_rowid())?)
    }

    /// Refuses one more than its owner may have.
    fn check_open(&self, database: &Connection, owner: &Owner) -> Result<(), StoreError> {
        let query = "SELECT count(*) FROM batches WHERE tenant = ?1 AND ended IS NULL";
        let open = database.query_row(query, (owner.tenant(),), |row| row.get::<_, i64>(0))?;
        let limit = self.most_open;
        if open.cast_unsigned() >= limit { Err(StoreError::TooManyBatches { limit }) } else { Ok(()) }
    }
}

/// Removes what is known of files that were part of a batch; says which contents they had.
fn remove_parts<'a>(
    database: &Connection,
    ids: impl IntoIterator<Item = &'a String>,
) -> rusqlite::Result<Vec<String>> {
    ids.into_iter().filter_map(|id| remove_hidden(database, id).transpose()).collect()
}

impl Store {
    /// Notes a batch whose input is an owner's file. `None` where that is not there.
    ///
    /// # Errors
    /// When its owner has too many, or the database fails.
    pub async fn add_batch(
        &self,
        owner: &Owner,
        input: &str,
        batch: NewBatch,
    ) -> Result<Option<Batch>, StoreError> {
        let (owner, input) = (owner.clone(), input.to_owned());
        self.transact(move |database| {
            let query =
                "SELECT 1 FROM files WHERE id = ?1 AND tenant = ?2 AND (expires IS NULL OR expires > ?3)";
            if !database.prepare(query)?.exists((&input, owner.tenant(), now()))? {
                return Ok(None);
            }
            batch.insert(database, &owner, &input).map(Some)
        })
        .await
    }

    /// Notes a batch with its input, which is part of it: both, or none.
    ///
    /// # Errors
    /// When there is no room for either, or they cannot be kept.
    pub async fn add_batch_of(
        &self,
        owner: &Owner,
        input: NewFile,
        content: fs::File,
        batch: NewBatch,
    ) -> Result<Batch, StoreError> {
        let (of, file, new, bytes) = (owner.clone(), input.clone(), batch.clone(), content.metadata()?.len());
        // What is refused anyway need not be written first; what counts is asked again when it is noted.
        let check = self.transact(move |database| {
            new.check_open(database, &of)?;
            file.check_room(database, of.tenant(), bytes)
        });
        check.await?;
        let (owner, prefix) = (owner.clone(), input.prefix);
        self.keep(prefix, content, move |database, content| {
            let input = input.insert(database, owner.tenant(), content)?;
            batch.insert(database, &owner, &input.id)
        })
        .await
    }

    /// A batch of an owner's.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn batch(&self, owner: &Owner, id: &str) -> Result<Option<Batch>, StoreError> {
        let (tenant, id) = (owner.tenant().to_owned(), id.to_owned());
        let query = "SELECT * FROM batches WHERE id = ?1 AND tenant = ?2";
        self.transact(move |database| Ok(database.query_row(query, (id, tenant), Batch::read).optional()?))
            .await
    }

    /// A batch of anybody's.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn batch_number(&self, number: i64) -> Result<Option<Batch>, StoreError> {
        self.transact(move |database| Ok(find(database, number).optional()?)).await
    }

    /// Batches of an owner whose names begin with `prefix`, the newest first, and whether there are more of them.
    /// `None` where the one that they follow is not there.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn batches(
        &self,
        owner: &Owner,
        prefix: &'static str,
        from: From,
        limit: usize,
    ) -> Result<Option<(Vec<Batch>, bool)>, StoreError> {
        let tenant = owner.tenant().to_owned();
        self.transact(move |database| {
            let (beyond, direction, id) = match from {
                From::Newest => ("<", "DESC", None),
                From::Before(id) => ("<", "DESC", Some(id)),
                From::After(id) => (">", "ASC", Some(id)),
            };
            let number = match id {
                None => i64::MAX,
                Some(id) => {
                    let query = "SELECT number FROM batches WHERE id = ?1 AND tenant = ?2 AND prefix = ?3";
                    match database.query_row(query, (id, &tenant, prefix), |row| row.get(0)).optional()? {
                        Some(number) => number,
                        None => return Ok(None),
                    }
                }
            };
            let query = format!(
                "SELECT * FROM batches WHERE tenant = ?1 AND prefix = ?2 AND number {beyond} ?3 \
                 ORDER BY number {direction} LIMIT ?4"
            );
            let mut query = database.prepare(&query)?;
            let most = limit.saturating_add(1) as i64;
            let batches = query.query_map((tenant, prefix, number, most), Batch::read)?;
            let mut batches = batches.collect::<Result<Vec<_>, _>>()?;
            let more = batches.len() > limit;
            batches.truncate(limit);
            if direction == "ASC" {
                batches.reverse();
            }
            Ok(Some((batches, more)))
        })
        .await
    }

    /// The numbers of all batches that have not ended, the oldest first.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn open_batches(&self) -> Result<Vec<i64>, StoreError> {
        self.transact(|database| {
            let mut query =
                database.prepare("SELECT number FROM batches WHERE ended IS NULL ORDER BY number")?;
            Ok(query.query_map((), |row| row.get(0))?.collect::<Result<_, _>>()?)
        })
        .await
    }

    /// Begins a batch whose lines are as they should be. Those that it had are forgotten: the program ended before it
    /// had all of them.
    ///
    /// # Errors
    /// When the database fails, or two lines have one name.
    pub async fn begin_batch(&self, number: i64, lines: Vec<NewLine>) -> Result<(), StoreError> {
        self.transact(move |database| {
            database.execute("DELETE FROM lines WHERE batch = ?1", (number,))?;
            let query = "INSERT INTO lines (batch, line, custom_id, start, length) VALUES (?1, ?2, ?3, ?4, ?5)";
            let mut insert = database.prepare(query)?;
            for (index, NewLine { custom_id, place }) in lines.iter().enumerate() {
                let (start, length) = (place.start.cast_signed(), place.length.cast_signed());
                insert.execute((number, index as i64, custom_id, start, length))?;
            }
            let query = "UPDATE batches SET total = ?2, began = ?3, \
                         state = CASE state WHEN 'validating' THEN 'in_progress' ELSE state END WHERE number = ?1";
            database.execute(query, (number, lines.len() as i64, now()))?;
            Ok(())
        })
        .await
    }

    /// Ends a batch whose lines are not as they should be; `problems` says why, as JSON. What is known of its lines all
    /// failed.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn fail_batch(&self, number: i64, problems: String) -> Result<(), StoreError> {
        let done = self.transact(move |database| {
            database.execute("DELETE FROM lines WHERE batch = ?1", (number,))?;
            let query = "UPDATE batches SET state = ?2, problems = ?3, failed = total, ended = ?4 WHERE number = ?1 \
                         RETURNING input";
            let input: Option<String> = database
                .query_row(query, (number, State::Failed, problems, now()), |row| row.get(0))
                .optional()?;
            Ok(remove_parts(database, &input)?)
        });
        self.forget(&done.await?).await;
        Ok(())
    }

    /// Lines that have no outcome, behind a line.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn pending(&self, number: i64, behind: i64, limit: usize) -> Result<Vec<Line>, StoreError> {
        let query = "SELECT * FROM lines WHERE batch = ?1 AND line > ?2 AND state = 0 ORDER BY line LIMIT ?3";
        self.lines(query, (number, behind, limit as i64)).await
    }

    /// Lines with what became of them, behind a line: fewer where their answers are long, but one if there is one.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn results(&self, number: i64, behind: i64, limit: usize) -> Result<Vec<Line>, StoreError> {
        let query = "SELECT * FROM lines WHERE batch = ?1 AND line > ?2 ORDER BY line LIMIT ?3";
        self.lines(query, (number, behind, limit as i64)).await
    }

    async fn lines(&self, query: &'static str, of: (i64, i64, i64)) -> Result<Vec<Line>, StoreError> {
        self.transact(move |database| {
            let read = |row: &Row<'_>| -> rusqlite::Result<Line> {
                let bytes = |name| Ok::<_, rusqlite::Error>(row.get::<_, i64>(name)?.cast_unsigned());
                Ok(Line {
                    number: row.get("line")?,
                    custom_id: row.get("custom_id")?,
                    place: Place { start: bytes("start")?, length: bytes("length")? },
                    state: row.get("state")?,
                    result: row.get("result")?,
                })
            };
            let mut query = database.prepare(query)?;
            let mut rows = query.query(of)?;
            let (mut lines, mut bytes) = (Vec::new(), 0);
            while bytes < PAGE_BYTES
                && let Some(row) = rows.next()?
            {
                let line = read(row)?;
                bytes += line.result.as_ref().map_or(0, String::len);
                lines.push(line);
            }
            Ok(lines)
        })
        .await
    }

    /// Notes the outcome of a line: once. What comes after the first is forgotten.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn finish_line(&self, number: i64, line: i64, outcome: Outcome) -> Result<(), StoreError> {
        self.transact(move |database| {
            let Outcome { state, result, tokens } = outcome;
            let query =
                "UPDATE lines SET state = ?3, result = ?4 WHERE batch = ?1 AND line = ?2 AND state = 0";
            if database.execute(query, (number, line, state as i64, &*result))? == 0 {
                return Ok(());
            }
            database.execute(
                "UPDATE batches SET succeeded = succeeded + :succeeded, failed = failed + :failed, \
                 input_tokens = input_tokens + :input, cached_tokens = cached_tokens + :cached, \
                 output_tokens = output_tokens + :output WHERE number = :number",
                named_params! {
                    ":number": number,
                    ":succeeded": state == LineState::Succeeded,
                    ":failed": state == LineState::Failed,
                    ":input": tokens.input.cast_signed(),
                    ":cached": tokens.cached.cast_signed(),
                    ":output": tokens.output.cast_signed(),
                },
            )?;
            Ok(())
        })
        .await
    }

    /// Notes that a batch of an owner's is to end early. `None` where there is none; else as it is now.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn cancel_batch(&self, owner: &Owner, id: &str) -> Result<Option<Batch>, StoreError> {
        let (tenant, id) = (owner.tenant().to_owned(), id.to_owned());
        self.transact(move |database| {
            let query = "UPDATE batches SET state = ?3, cancelling = ?4 WHERE id = ?1 AND tenant = ?2 AND \
                         state IN ('validating', 'in_progress', 'finalizing')";
            database.execute(query, (&id, &tenant, State::Cancelling, now()))?;
            let query = "SELECT * FROM batches WHERE id = ?1 AND tenant = ?2";
            Ok(database.query_row(query, (id, tenant), Batch::read).optional()?)
        })
        .await
    }

    /// Gives lines that have no outcome the one that the batch has: it is cancelled, or its time has run out. From now
    /// on its output is written, under names that stay the same if the program ends meanwhile.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn finalize_batch(&self, number: i64, prefix: &'static str) -> Result<Finalizing, StoreError> {
        self.transact(move |database| {
            let Batch { state, .. } = find(database, number)?;
            let rest = if state == State::Cancelling { LineState::Cancelled } else { LineState::Expired };
            let query = "UPDATE lines SET state = ?2 WHERE batch = ?1 AND state = 0";
            let left = database.execute(query, (number, rest as i64))? as i64;
            let column = if rest == LineState::Cancelled { "cancelled" } else { "expired" };
            let next = if state == State::Cancelling { state } else { State::Finalizing };
            let query = format!(
                "UPDATE batches SET {column} = {column} + ?2, state = ?3, finalizing = coalesce(finalizing, ?4), \
                 output = coalesce(output, ?5), errors = coalesce(errors, ?6) WHERE number = ?1"
            );
            database.execute(&query, (number, left, next, now(), new_id(prefix), new_id(prefix)))?;
            let names = "SELECT output, errors FROM batches WHERE number = ?1";
            let (output, errors) =
                database.query_row(names, (number,), |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(Finalizing { output, errors })
        })
        .await
    }

    /// What takes a batch's output, under a name that it has reserved.
    ///
    /// # Errors
    /// When the contents fail.
    pub async fn write_output(&self, id: &str) -> Result<Writer, StoreError> {
        self.write_file(id).await
    }

    /// Ends a batch whose output is written, and notes its files. What it held besides is forgotten.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn end_batch(&self, number: i64, ended: Ended) -> Result<Batch, StoreError> {
        let blobs = self.blobs.clone();
        let done = self.transact(move |database| {
            let Batch { state, counts, owner, input, .. } = find(database, number)?;
            let Ended { output, errors } = ended;
            let note = |written: Option<Written>| {
                let Some(Written { id, file, bytes }) = written else { return Ok(None) };
                let content = Content { name: blobs.name(&id), id, bytes };
                Ok::<_, StoreError>(Some(file.insert(database, owner.tenant(), content)?.id))
            };
            let (output, errors) = (note(output)?, note(errors)?);
            let last = match state {
                State::Cancelling => State::Cancelled,
                _ if counts.expired > 0 => State::Expired,
                _ => State::Completed,
            };
            let query =
                "UPDATE batches SET state = ?2, ended = ?3, output = ?4, errors = ?5 WHERE number = ?1";
            database.execute(query, (number, last, now(), output, errors))?;
            database.execute("DELETE FROM lines WHERE batch = ?1", (number,))?;
            // Nobody knows of an input that was part of the request.
            Ok((find(database, number)?, remove_parts(database, [&input])?))
        });
        let (batch, parts) = done.await?;
        self.forget(&parts).await;
        Ok(batch)
    }

    /// Forgets a batch of an owner's that has ended, and its output, where that is no file of its own.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn remove_batch(&self, owner: &Owner, id: &str) -> Result<bool, StoreError> {
        let (tenant, id) = (owner.tenant().to_owned(), id.to_owned());
        let removed = self.transact(move |database| {
            let query =
                "DELETE FROM batches WHERE id = ?1 AND tenant = ?2 AND ended IS NOT NULL RETURNING input, output";
            let Some(files) = database.query_row(query, (id, tenant), files_of).optional()? else {
                return Ok(None);
            };
            Ok(Some(remove_parts(database, files.iter().flatten())?))
        });
        let removed = removed.await?;
        self.forget(removed.as_deref().unwrap_or_default()).await;
        Ok(removed.is_some())
    }

    /// Forgets batches that ended [`KEPT_SECONDS`] ago, as [`Store::remove_batch`] does; says how many.
    ///
    /// # Errors
    /// When the database fails.
    pub async fn expire_batches(&self) -> Result<usize, StoreError> {
        let mut count = 0;
        loop {
            let expired = self.transact(|database| {
                let query = "DELETE FROM batches WHERE number IN \
                             (SELECT number FROM batches WHERE ended <= ?1 LIMIT ?2) RETURNING input, output";
                let mut query = database.prepare(query)?;
                let ended = now().saturating_sub(KEPT_SECONDS);
                let removed = query.query_map((ended, REMOVED_AT_ONCE as i64), files_of)?;
                let removed = removed.collect::<Result<Vec<_>, _>>()?;
                Ok((removed.len(), remove_parts(database, removed.iter().flatten().flatten())?))
            });
            let (removed, parts) = expired.await?;
            count += removed;
            self.forget(&parts).await;
            if removed < REMOVED_AT_ONCE {
                return Ok(count);
            }
        }
    }
}

/// The files of a batch that could be part of it.
fn files_of(row: &Row<'_>) -> rusqlite::Result<[Option<String>; 2]> {
    Ok([row.get("input")?, row.get("output")?])
}

/// Names of what is written of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finalizing {
    /// Of its answers.
    pub output: String,
    /// Of its errors.
    pub errors: String,
}

impl fmt::Display for State {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
