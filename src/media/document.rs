//! Documents of pages: what is written on them, and what they look like.
//!
//! A PDF file is a program, and can take any memory and time to be read. It is read by a process of its own, this
//! program once more, which has limits of the operating system: where one ends it, a request is refused and nothing else
//! happens. It reads no other file, reaches no address and runs no script.

mod pdf;
mod text;

use std::{
    io::{self, Read, Write},
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::Stdio,
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::process::{Resource, Rlimit, setrlimit};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    process::{Child, Command},
    sync::Semaphore,
    time::timeout,
};

use super::File;

/// The command that makes of this program what reads a document.
pub const COMMAND: &str = "read-document";

/// Documents that are read at once, for all requests.
const AT_ONCE: usize = 4;
/// Memory of a process that reads one.
const MEMORY: u64 = 2 << 30;
/// Its stack: objects can be nested.
const STACK: usize = 64 << 20;
/// Bytes of text in a document.
const MOST_TEXT: usize = 4 << 20;
/// Objects of a document.
const MOST_OBJECTS: usize = 500_000;
/// Bytes of what a process tells about a document: a text is escaped in it.
const MOST_TOLD: usize = 8 * MOST_TEXT;

/// What documents may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DocumentLimits {
    /// Most bytes of a file.
    pub bytes: usize,
    /// Most pages of all documents of a request.
    pub pages: usize,
    /// Most time that reading a file once may take.
    pub time: Duration,
}

/// Why a document is not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum DocumentError {
    /// It is something else.
    #[error("the file is no PDF, and no text in UTF-8")]
    Format,
    /// It is encrypted.
    #[error("the PDF needs a password: send it without one")]
    Encrypted,
    /// It is cut off.
    #[error("the PDF is cut off: its end is missing")]
    Cut,
    /// It is broken.
    #[error("the PDF is broken")]
    Broken,
    /// There is nothing in it.
    #[error("the PDF has no pages")]
    NoPages,
    /// It is too long.
    #[error("the request's documents have {found} pages or more; the limit is {limit}")]
    Pages {
        /// Up to this document.
        found: usize,
        /// How many would do.
        limit: usize,
    },
    /// It is too complicated.
    #[error("the PDF has {found} objects; the limit is {limit}")]
    Objects {
        /// How many.
        found: usize,
        /// How many would do.
        limit: usize,
    },
    /// There is too much text in it.
    #[error("the document has more than {limit} bytes of text")]
    Text {
        /// How many would do.
        limit: usize,
    },
    /// It ended what reads it.
    #[error("the PDF cannot be read in the memory that this server has for a document, or is broken")]
    TooMuch,
    /// It takes too long.
    #[error("the PDF cannot be read within {seconds} seconds")]
    Slow {
        /// How long it may take.
        seconds: u64,
    },
}

/// Why reading failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The document.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// The process that reads could not be started.
    #[error("cannot start {program} to read a document: {error}")]
    Start {
        /// What should have been.
        program: String,
        /// Why not.
        error: io::Error,
    },
}

/// A page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page {
    /// Points, of which an inch has 72.
    pub width: f32,
    /// Points.
    pub height: f32,
    /// What is written on it, as far as the file tells.
    pub text: String,
}

/// What a file is, told by its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Pages.
    Pdf,
    /// Text in UTF-8.
    Text,
}

impl Kind {
    /// The kind of a file.
    ///
    /// # Errors
    /// When it is neither.
    pub fn of(file: &[u8]) -> Result<Self, DocumentError> {
        /// Where a PDF file may begin, and what is in front of that: ISO 32000-2, annex I.
        const FRONT: usize = 1024;
        if memchr::memmem::find(&file[..file.len().min(FRONT)], b"%PDF-").is_some() {
            return Ok(Self::Pdf);
        }
        match std::str::from_utf8(file) {
            Ok(text) if !text.contains('\0') => Ok(Self::Text),
            _ => Err(DocumentError::Format),
        }
    }
}

/// What a process is to do with a document.
#[derive(Debug, Serialize, Deserialize)]
enum Task {
    /// Tell what pages there are.
    Contents { pages: usize },
    /// Make pictures of the pages, of these columns and rows.
    Pictures { sizes: Vec<(u16, u16)> },
}

/// What goes before the task: limits of the process.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    seconds: u64,
    task: Task,
}

/// Reads documents.
#[derive(Debug, Clone)]
pub struct Readers {
    program: PathBuf,
    places: Arc<Semaphore>,
}

impl Readers {
    /// Documents will be read by this program, which must be this version of percept.
    pub fn new(program: PathBuf) -> Self {
        Self { program, places: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// The pages of a PDF file, of which there may be so many.
    ///
    /// # Errors
    /// When it is broken or too large.
    pub async fn contents(
        &self,
        file: &[u8],
        pages: usize,
        limits: &DocumentLimits,
    ) -> Result<Vec<Page>, ReadError> {
        let told = |mut child: Child| async move { told(&mut child).await };
        let told = self.run(file, Task::Contents { pages }, limits.time, told).await?;
        let pages: Result<Vec<Page>, DocumentError> =
            serde_json::from_slice(&told).map_err(|_| DocumentError::TooMuch)?;
        Ok(pages?)
    }

    /// PNG files of the first pages of a PDF file, each of so many columns and rows.
    ///
    /// # Errors
    /// When it cannot be drawn.
    pub async fn pictures(
        &self,
        file: &[u8],
        sizes: Vec<(u16, u16)>,
        limits: &DocumentLimits,
    ) -> Result<Vec<File>, ReadError> {
        let count = sizes.len();
        let drawn = |mut child: Child| async move {
            let mut files = Vec::with_capacity(count);
            while files.len() < count {
                files.push(told(&mut child).await?);
            }
            Ok(files)
        };
        self.run(file, Task::Pictures { sizes }, limits.time, drawn).await
    }

    /// Starts a process, gives it the file, and hears it out. It ends with this future.
    async fn run<T, F: Future<Output = Result<T, DocumentError>>>(
        &self,
        file: &[u8],
        task: Task,
        time: Duration,
        hear: impl FnOnce(Child) -> F,
    ) -> Result<T, ReadError> {
        let _place = self.places.acquire().await;
        let start = |error| ReadError::Start { program: self.program.display().to_string(), error };
        let mut child = Command::new(&self.program)
            .arg(COMMAND)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            // What ends the server from a terminal lets it finish first.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(start)?;
        let seconds = time.as_secs().max(1);
        let order = serde_json::to_vec(&Order { seconds, task }).map_err(|error| start(error.into()))?;
        let stdin = child.stdin.take();
        let all = async {
            let mut stdin = stdin.ok_or(DocumentError::TooMuch)?;
            for data in [&(order.len() as u32).to_le_bytes(), &*order, file] {
                stdin.write_all(data).await.map_err(|_| DocumentError::TooMuch)?;
            }
            drop(stdin);
            hear(child).await
        };
        let heard = timeout(time, all).await;
        Ok(heard.unwrap_or(Err(DocumentError::Slow { seconds }))?)
    }
}

/// The next thing that a process tells.
async fn told(child: &mut Child) -> Result<Vec<u8>, DocumentError> {
    let lost = |_| DocumentError::TooMuch;
    let stdout = child.stdout.as_mut().ok_or(DocumentError::TooMuch)?;
    let length = stdout.read_u32_le().await.map_err(lost)? as usize;
    if length > MOST_TOLD {
        return Err(DocumentError::TooMuch);
    }
    let mut told = Vec::new();
    stdout.take(length as u64).read_to_end(&mut told).await.map_err(lost)?;
    if told.len() < length { Err(DocumentError::TooMuch) } else { Ok(told) }
}

/// What the process does: takes an order and a file from its standard input, and tells what it finds.
///
/// # Errors
/// When nobody listens.
pub fn serve() -> io::Result<()> {
    let mut stdin = io::stdin().lock();
    let mut length = [0; 4];
    stdin.read_exact(&mut length)?;
    let mut order = Vec::new();
    (&mut stdin).take(u64::from(u32::from_le_bytes(length))).read_to_end(&mut order)?;
    let Order { seconds, task } = serde_json::from_slice(&order)?;
    for (resource, limit) in [
        (Resource::As, MEMORY),
        (Resource::Cpu, seconds + 1),
        (Resource::Core, 0),
        (Resource::Fsize, 0),
        // What is open stays open; nothing else is opened.
        (Resource::Nofile, 0),
    ] {
        setrlimit(resource, Rlimit { current: Some(limit), maximum: Some(limit) })?;
    }
    let mut file = Vec::new();
    stdin.read_to_end(&mut file)?;
    let work = move || match task {
        Task::Contents { pages } => {
            // A reader that panics has met a file it cannot read.
            let found = catch_unwind(AssertUnwindSafe(|| pdf::contents(file, pages)));
            let found = found.unwrap_or(Err(DocumentError::Broken));
            tell(&serde_json::to_vec(&found)?)
        }
        Task::Pictures { sizes } => pdf::pictures(file, &sizes, tell),
    };
    let reading = thread::Builder::new().stack_size(STACK).spawn(work)?;
    reading.join().unwrap_or_else(|_| Err(io::Error::other("the document could not be read")))
}

fn tell(data: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(&u32::try_from(data.len()).map_err(io::Error::other)?.to_le_bytes())?;
    stdout.write_all(data)?;
    stdout.flush()
}
