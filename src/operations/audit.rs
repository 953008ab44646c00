//! The audit log: a line of JSON for each request that has ended, chained by hashes, in a file for each month. Who has the
//! log can show that no line was changed, taken out or put in; who noted a hash of it, that none was cut off behind it.
//!
//! The hash of a line is the SHA-256 of its text without the hash, up to and including the bracket that would then end
//! it; that text has the hash of the line before. So a line can be checked with any program, byte by byte.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        mpsc::{self, Receiver, SyncSender},
    },
    thread::{self, JoinHandle},
};

use jiff::{Timestamp, ToSpan as _, civil::Date, tz::TimeZone};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tracing::{error, info, warn};

use super::Entry;
use crate::access::hex;

/// What stands before the first line.
const NOTHING: &str = "0000000000000000000000000000000000000000000000000000000000000000";
/// Lines that wait to be written; then whoever has the next one waits.
const QUEUE: usize = 4096;
const HASH: &str = ",\"hash\":\"";

/// What is written down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event {
    /// A server began to write.
    Started {
        /// When.
        time: Timestamp,
        /// Of percept.
        version: String,
    },
    /// The last line was not whole when a server began: it had been written when the one before was ended by force.
    Healed {
        /// When.
        time: Timestamp,
        /// Bytes of what there was of the line.
        bytes: u64,
    },
    /// Old files were removed.
    Removed {
        /// When.
        time: Timestamp,
        /// Their names.
        files: Vec<String>,
        /// The hash of their last line.
        last: String,
    },
    /// A request has ended.
    Request(Box<Entry>),
}

impl Event {
    fn time(&self) -> Timestamp {
        match self {
            Self::Started { time, .. } | Self::Healed { time, .. } | Self::Removed { time, .. } => *time,
            Self::Request(entry) => entry.time,
        }
    }
}

/// A line without its hash.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Its number, from 1.
    pub seq: u64,
    /// The hash of the line before.
    pub prev: String,
    /// What it says.
    #[serde(flatten)]
    pub event: Event,
}

/// Why a log cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// A file cannot be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is not what was written.
    #[error("{}, line {number}: {reason}", path.display())]
    Broken {
        /// Which file.
        path: PathBuf,
        /// Which line of it.
        number: u64,
        /// Why.
        reason: String,
    },
    /// Another server writes it.
    #[error("{}: another server writes its audit log there; each needs a folder of its own", folder.display())]
    Taken {
        /// Where.
        folder: PathBuf,
    },
    /// A hash that was noted is not that of any line.
    #[error("no line has the hash {hash}: the log was cut off or replaced")]
    Missing {
        /// Which.
        hash: String,
    },
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> AuditError + use<'_> {
    |error| AuditError::Io { path: path.to_owned(), error }
}

/// Writes a log, on a thread of its own.
#[derive(Debug)]
pub struct Audit {
    folder: PathBuf,
    /// Taken to end the thread.
    lines: Mutex<Option<SyncSender<Command>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Command {
    Write(Event),
    /// Says when all before is on the disk.
    Flush(mpsc::Sender<()>),
}

impl Audit {
    /// Goes on with the log in a folder, or begins one. With `months`, files of more months than that are removed.
    ///
    /// # Errors
    /// When it cannot be written, another server writes it, or its last line is not what was written.
    pub fn open(folder: PathBuf, months: Option<u32>) -> Result<Self, AuditError> {
        let mut writer = Writer::open(&folder, months)?;
        writer.append(Event::Started {
            time: Timestamp::now(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })?;
        let (lines, receiver) = mpsc::sync_channel(QUEUE);
        let thread = thread::Builder::new().name("audit".into()).spawn(move || writer.run(&receiver));
        let thread = thread.map_err(io_error(&folder))?;
        Ok(Self { folder, lines: Mutex::new(Some(lines)), thread: Mutex::new(Some(thread)) })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes something down. Waits only where the disk is far behind.
    pub fn write(&self, event: Event) {
        self.send(Command::Write(event));
    }

    /// Returns when all that was written is on the disk.
    pub fn flush(&self) {
        let (sender, done) = mpsc::channel();
        self.send(Command::Flush(sender));
        // The thread has ended, where there is no answer.
        let _ = done.recv();
    }

    fn send(&self, command: Command) {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if lines.is_none_or(|lines| lines.send(command).is_err()) {
            error!("the audit log has ended: a line is lost");
        }
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        drop(self.lines.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}

/// The end of a log.
struct Writer {
    folder: PathBuf,
    months: Option<u32>,
    /// The file, and the month that it is of.
    file: Option<(File, String)>,
    seq: u64,
    last: String,
    /// Held as long as this lives.
    _lock: File,
}

impl Writer {
    fn open(folder: &Path, months: Option<u32>) -> Result<Self, AuditError> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(io_error(folder))?;
        let path = folder.join("lock");
        let lock = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
        let lock = lock.map_err(io_error(&path))?;
        lock.try_lock().map_err(|_| AuditError::Taken { folder: folder.to_owned() })?;

        let mut writer = Self {
            folder: folder.to_owned(),
            months,
            file: None,
            seq: 0,
            last: NOTHING.to_owned(),
            _lock: lock,
        };
        let mut torn = 0;
        for path in files(folder)?.iter().rev() {
            torn += heal(path)?;
            if let Some((number, text)) = last_line(path)? {
                let broken = |reason| AuditError::Broken { path: path.clone(), number, reason };
                let (line, hash) = check(&text).map_err(broken)?;
                (writer.seq, writer.last) = (line.seq, hash);
                break;
            }
        }
        if torn > 0 {
            warn!(bytes = torn, "the audit log's last line was not whole and is taken out");
            writer.append(Event::Healed { time: Timestamp::now(), bytes: torn })?;
        }
        writer.remove_old(Timestamp::now())?;
        Ok(writer)
    }

    fn run(mut self, commands: &Receiver<Command>) {
        while let Ok(command) = commands.recv() {
            let mut waiting = Vec::new();
            let mut next = Some(command);
            // What has come meanwhile goes to the disk together.
            while let Some(command) = next {
                match command {
                    Command::Write(event) => {
                        if let Err(error) = self.append(event) {
                            error!(%error, "a line of the audit log is lost");
                        }
                    }
                    Command::Flush(done) => waiting.push(done),
                }
                next = commands.try_recv().ok();
            }
            if let Some((file, _)) = &self.file
                && let Err(error) = file.sync_data()
            {
                error!(%error, "the audit log is not on the disk");
            }
            for done in waiting {
                // Whoever does not wait any more does not mind.
                let _ = done.send(());
            }
        }
    }

    fn append(&mut self, event: Event) -> Result<(), AuditError> {
        let time = event.time();
        let month = month_of(time);
        // A request that began before midnight goes to the month that is being written.
        if self.file.as_ref().is_none_or(|(_, open)| *open < month) {
            let known = files(&self.folder)?
                .last()
                .and_then(|path| Some(path.file_stem()?.to_string_lossy().into_owned()));
            let newest = known.and_then(|name| Some(name.strip_prefix("audit-")?.to_owned()));
            let month = newest.filter(|newest| *newest > month).unwrap_or(month);
            let path = self.folder.join(format!("audit-{month}.jsonl"));
            let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
            let turned = self.file.is_some();
            self.file = Some((file.map_err(io_error(&path))?, month));
            if turned {
                self.remove_old(time)?;
            }
        }
        let line = Line { seq: self.seq + 1, prev: self.last.clone(), event };
        let path = self.folder.clone();
        let mut text = serde_json::to_string(&line).map_err(|error| io_error(&path)(error.into()))?;
        let hash = hex(&Sha256::digest(text.as_bytes()));
        text.pop();
        text += HASH;
        text += &hash;
        text += "\"}\n";
        if let Some((file, _)) = &mut self.file {
            let before = file.metadata().map(|data| data.len());
            if let Err(error) = file.write_all(text.as_bytes()) {
                // Half a line, of a disk that is full, must not have another one behind it.
                if let Ok(before) = before {
                    file.set_len(before).map_err(io_error(&path))?;
                }
                return Err(io_error(&path)(error));
            }
        }
        (self.seq, self.last) = (line.seq, hash);
        Ok(())
    }

    /// Removes files that are too old, and writes that down.
    fn remove_old(&mut self, now: Timestamp) -> Result<(), AuditError> {
        let Some(months) = self.months else { return Ok(()) };
        let today = now.to_zoned(TimeZone::UTC).date();
        let oldest = today.first_of_month().saturating_sub(i64::from(months).months());
        let oldest = self.folder.join(format!("audit-{}.jsonl", oldest.strftime("%Y-%m")));
        let old: Vec<PathBuf> = files(&self.folder)?.into_iter().filter(|file| *file < oldest).collect();
        let Some(newest) = old.last() else { return Ok(()) };
        let last = match last_line(newest)? {
            Some((number, text)) => {
                let broken = |reason| AuditError::Broken { path: newest.clone(), number, reason };
                check(&text).map_err(broken)?.1
            }
            None => NOTHING.to_owned(),
        };
        let name = |file: &PathBuf| Some(file.file_name()?.to_string_lossy().into_owned());
        let names: Vec<String> = old.iter().filter_map(name).collect();
        info!(files = names.join(" "), "old files of the audit log are removed");
        // Written down first: a log without its beginning and without a word of it is no log.
        self.append(Event::Removed { time: now, files: names, last })?;
        if let Some((file, _)) = &self.file {
            file.sync_data().map_err(io_error(&self.folder))?;
        }
        for file in &old {
            fs::remove_file(file).map_err(io_error(file))?;
        }
        Ok(())
    }
}

fn month_of(time: Timestamp) -> String {
    time.to_zoned(TimeZone::UTC).date().strftime("%Y-%m").to_string()
}

/// The files of a log, oldest first.
fn files(folder: &Path) -> Result<Vec<PathBuf>, AuditError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(io_error(folder))? {
        let path = entry.map_err(io_error(folder))?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let month = name.strip_prefix("audit-").and_then(|rest| rest.strip_suffix(".jsonl"));
        if month.is_some_and(|month| month.len() == 7 && format!("{month}-01").parse::<Date>().is_ok()) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Takes out what stands behind the last end of a line; how many bytes that were.
fn heal(path: &Path) -> Result<u64, AuditError> {
    let mut file = OpenOptions::new().read(true).write(true).open(path).map_err(io_error(path))?;
    let length = file.metadata().map_err(io_error(path))?.len();
    let end = find_back(&mut file, length, 0).map_err(io_error(path))?;
    if end < length {
        file.set_len(end).map_err(io_error(path))?;
        file.sync_data().map_err(io_error(path))?;
    }
    Ok(length - end)
}

/// The place behind the last end of a line in the first `length` bytes of a file; 0 where there is none.
fn find_back(file: &mut File, mut length: u64, least: u64) -> io::Result<u64> {
    let mut block = [0; 4096];
    while length > least {
        let count = (length - least).min(block.len() as u64);
        file.seek(SeekFrom::Start(length - count))?;
        file.read_exact(&mut block[..count as usize])?;
        if let Some(place) = memchr::memrchr(b'\n', &block[..count as usize]) {
            return Ok(length - count + place as u64 + 1);
        }
        length -= count;
    }
    Ok(least)
}

/// The last line of a file that is whole, with its number; none, where the file is empty.
fn last_line(path: &Path) -> Result<Option<(u64, String)>, AuditError> {
    let mut file = File::open(path).map_err(io_error(path))?;
    let length = file.metadata().map_err(io_error(path))?.len();
    if length == 0 {
        return Ok(None);
    }
    let start = find_back(&mut file, length - 1, 0).map_err(io_error(path))?;
    file.seek(SeekFrom::Start(start)).map_err(io_error(path))?;
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(io_error(path))?;
    file.rewind().map_err(io_error(path))?;
    let lines = BufReader::new(file).lines().count() as u64;
    Ok(Some((lines, text.trim_end_matches('\n').to_owned())))
}

/// A line and its hash, if they belong together.
fn check(text: &str) -> Result<(Line, String), String> {
    let (body, hash) = text.rsplit_once(HASH).ok_or("it has no hash")?;
    let hash = hash.strip_suffix("\"}").ok_or("it does not end with its hash")?;
    let body = format!("{body}}}");
    if hex(&Sha256::digest(body.as_bytes())) != hash {
        return Err("it was changed: its hash is that of another text".into());
    }
    let line = serde_json::from_str(&body).map_err(|error| error.to_string())?;
    Ok((line, hash.to_owned()))
}

/// What a check of a log found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Files.
    pub files: usize,
    /// Lines of all files.
    pub lines: u64,
    /// Requests of these.
    pub requests: u64,
    /// The first line's time.
    pub from: Option<Timestamp>,
    /// The last line's time.
    pub to: Option<Timestamp>,
    /// The last line's hash: who notes it can tell later whether the log was cut off.
    pub head: String,
}

/// Checks a log from its first line to its last. With `noted`, one of its lines must have that hash.
///
/// # Errors
/// When a line was changed, taken out or put in; says which.
pub fn verify(folder: &Path, noted: Option<&str>) -> Result<Report, AuditError> {
    let mut report =
        Report { files: 0, lines: 0, requests: 0, from: None, to: None, head: NOTHING.to_owned() };
    let mut seq = None;
    // The hash before the first line, until it is told why nothing is there.
    let mut removed: Option<(PathBuf, String)> = None;
    let mut found = noted.is_none();
    for path in files(folder)? {
        report.files += 1;
        let file = BufReader::new(File::open(&path).map_err(io_error(&path))?);
        for (number, text) in (1u64..).zip(file.lines()) {
            let broken = |reason: String| AuditError::Broken { path: path.clone(), number, reason };
            let text = text.map_err(io_error(&path))?;
            let (line, hash) = check(&text).map_err(broken)?;
            match seq {
                None if line.seq != 1 || line.prev != NOTHING => {
                    removed = Some((path.clone(), line.prev.clone()));
                }
                None => {}
                Some(before) if line.seq != before + 1 || line.prev != report.head => {
                    return Err(broken(format!("line {} of the log is missing in front of it", before + 1)));
                }
                Some(_) => {}
            }
            if let (Event::Removed { last, .. }, Some((_, first))) = (&line.event, &removed)
                && last == first
            {
                removed = None;
            }
            seq = Some(line.seq);
            report.lines += 1;
            report.requests += u64::from(matches!(line.event, Event::Request(_)));
            report.from = report.from.or(Some(line.event.time()));
            report.to = Some(line.event.time());
            found |= noted == Some(hash.as_str());
            report.head = hash;
        }
    }
    if let Some((path, _)) = removed {
        let reason = "lines in front of it are missing, and no line says that they were removed".to_owned();
        return Err(AuditError::Broken { path, number: 1, reason });
    }
    match noted {
        Some(hash) if !found => Err(AuditError::Missing { hash: hash.to_owned() }),
        _ => Ok(report),
    }
}

/// Hands over every request of a log, oldest first, from the month of a date on. A last line that is not whole is left
/// out: it is being written.
///
/// # Errors
/// When a file cannot be read, or a line is not one.
pub fn entries(folder: &Path, from: Option<Date>, mut take: impl FnMut(Entry)) -> Result<(), AuditError> {
    lines(folder, from, |line, _| {
        if let Event::Request(entry) = line.event {
            take(*entry);
        }
    })
}

/// Hands over every line of a log with its text, as [`entries`] does.
///
/// # Errors
/// As [`entries`].
pub fn lines(folder: &Path, from: Option<Date>, mut take: impl FnMut(Line, &str)) -> Result<(), AuditError> {
    let first = from.map(|from| folder.join(format!("audit-{}.jsonl", from.strftime("%Y-%m"))));
    for path in files(folder)?.into_iter().filter(|path| first.as_ref().is_none_or(|first| path >= first)) {
        let mut file = BufReader::new(File::open(&path).map_err(io_error(&path))?);
        let mut text = String::new();
        let mut number = 0;
        while {
            text.clear();
            file.read_line(&mut text).map_err(io_error(&path))?
        } > 0
            && text.ends_with('\n')
        {
            number += 1;
            let broken = |reason| AuditError::Broken { path: path.clone(), number, reason };
            let text = text.trim_end();
            let (line, _) = check(text).map_err(broken)?;
            take(line, text);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::operations::{Outcome, Used};

    fn entry(time: &str, tenant: &str) -> Event {
        Event::Request(Box::new(Entry {
            time: time.parse().unwrap(),
            id: "req_1".into(),
            tenant: Some(tenant.into()),
            key: None,
            peer: None,
            endpoint: "POST /v1/chat/completions".into(),
            model: Some("m".into()),
            status: 200,
            outcome: Outcome::Ok,
            error: None,
            request_bytes: 10,
            request_sha256: None,
            response_bytes: 20,
            response_sha256: None,
            used: Used { prompt_tokens: 3, cost: 0.25, ..Used::default() },
            ms: 5,
        }))
    }

    /// A log with three requests of two months.
    fn log() -> TempDir {
        let folder = TempDir::new().unwrap();
        let mut writer = Writer::open(folder.path(), None).unwrap();
        for (time, tenant) in
            [("2026-10-31T23:59:59Z", "a"), ("2026-11-01T00:00:00Z", "b"), ("2026-10-31T23:59:00Z", "c")]
        {
            writer.append(entry(time, tenant)).unwrap();
        }
        folder
    }

    fn change(folder: &TempDir, month: &str, change: impl FnOnce(String) -> String) {
        let path = folder.path().join(format!("audit-{month}.jsonl"));
        fs::write(&path, change(fs::read_to_string(&path).unwrap())).unwrap();
    }

    fn error(folder: &TempDir) -> String {
        verify(folder.path(), None).unwrap_err().to_string()
    }

    #[test]
    fn what_was_written_is_verified_and_read() {
        let folder = log();
        let report = verify(folder.path(), None).unwrap();
        assert_eq!((report.files, report.lines, report.requests), (2, 3, 3));
        let mut tenants = Vec::new();
        entries(folder.path(), None, |entry| tenants.push(entry.tenant.unwrap())).unwrap();
        assert_eq!(tenants, ["a", "b", "c"], "a late one does not go back to the month before");
        let mut later = 0;
        entries(folder.path(), Some("2026-11-15".parse().unwrap()), |_| later += 1).unwrap();
        assert_eq!(later, 2);
        assert!(verify(folder.path(), Some(&report.head)).is_ok());
        assert!(matches!(verify(folder.path(), Some(NOTHING)), Err(AuditError::Missing { .. })));
    }

    #[test]
    fn every_change_shows() {
        for (name, edit, expected) in [
            ("changed", (|text| text.replace("\"b\"", "\"x\"")) as fn(String) -> String, "was changed"),
            ("number changed", |text| text.replace("0.25", "0.26"), "was changed"),
            (
                "taken out",
                |text| text.lines().skip(1).map(|line| format!("{line}\n")).collect(),
                "is missing",
            ),
            ("no line", |text| text + "nonsense\n", "has no hash"),
            ("twice", |text| text.repeat(2), "is missing"),
        ] {
            let folder = log();
            change(&folder, "2026-11", edit);
            let error = error(&folder);
            assert!(error.contains(expected), "{name}: {error}");
        }
        let folder = log();
        fs::remove_file(folder.path().join("audit-2026-10.jsonl")).unwrap();
        assert!(error(&folder).contains("no line says that they were removed"));
        // A log that was cut off is whole; who noted its end knows better.
        let folder = log();
        let head = verify(folder.path(), None).unwrap().head;
        change(&folder, "2026-11", |text| text.lines().take(1).map(|line| format!("{line}\n")).collect());
        assert!(verify(folder.path(), None).is_ok());
        assert!(verify(folder.path(), Some(&head)).is_err());
    }

    #[test]
    fn a_torn_line_is_taken_out_and_the_chain_goes_on() {
        for cut in [1, 2, 100] {
            let folder = log();
            change(&folder, "2026-11", |text| text[..text.len() - cut].to_owned());
            drop(Writer::open(folder.path(), None).unwrap());
            let report = verify(folder.path(), None).unwrap();
            assert_eq!((report.lines, report.requests), (3, 2), "the torn one, and what says so");
        }
        // All of a file that had but begun.
        let folder = log();
        fs::write(folder.path().join("audit-2026-12.jsonl"), "{\"seq\":4,\"pr").unwrap();
        drop(Writer::open(folder.path(), None).unwrap());
        assert_eq!(verify(folder.path(), None).unwrap().requests, 3);
        // What is whole and wrong is nothing to go on with.
        change(&folder, "2026-11", |text| text.replace("\"c\"", "\"x\""));
        fs::remove_file(folder.path().join("audit-2026-12.jsonl")).unwrap();
        assert!(matches!(Writer::open(folder.path(), None), Err(AuditError::Broken { .. })));
    }

    #[test]
    fn old_months_are_removed_and_the_log_says_so() {
        let folder = log();
        let mut writer = Writer::open(folder.path(), None).unwrap();
        writer.months = Some(1);
        writer.remove_old("2026-11-30T00:00:00Z".parse().unwrap()).unwrap();
        assert_eq!(files(folder.path()).unwrap().len(), 2, "one month back is kept");
        writer.append(entry("2026-11-30T00:00:00Z", "c")).unwrap();
        writer.append(entry("2027-01-01T00:00:00Z", "d")).unwrap();
        drop(writer);
        let left = files(folder.path()).unwrap();
        assert_eq!(left.len(), 1, "{left:?}");
        let report = verify(folder.path(), None).unwrap();
        assert_eq!((report.lines, report.requests), (2, 1));
    }

    #[test]
    fn a_folder_is_written_by_one_server() {
        let folder = TempDir::new().unwrap();
        let audit = Audit::open(folder.path().to_owned(), None).unwrap();
        assert!(matches!(Audit::open(folder.path().to_owned(), None), Err(AuditError::Taken { .. })));
        audit.write(entry("2026-11-01T00:00:00Z", "a"));
        audit.flush();
        // The month that it is now is later, and stays the one that is written.
        assert_eq!(verify(folder.path(), None).unwrap().requests, 1);
        drop(audit);
        Audit::open(folder.path().to_owned(), None).unwrap();
    }
}
