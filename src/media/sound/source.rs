//! The bytes of a sound, which several readers look at one after the other.

use std::{
    fs::File,
    io::{self, Cursor, Read, Seek, SeekFrom},
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use symphonia::core::io::MediaSource;

/// Bytes of a sound: a file, or what can be read like one.
pub trait Source: Read + Seek + Send + Sync + 'static {
    /// The same as a file, which another program can read. Copied to one that has no name, unless it is one.
    ///
    /// # Errors
    /// When it cannot be read or the disk is full.
    fn into_file(mut self: Box<Self>) -> io::Result<File> {
        let mut file = tempfile::tempfile()?;
        self.seek(SeekFrom::Start(0))?;
        io::copy(&mut self, &mut file)?;
        Ok(file)
    }
}

impl Source for File {
    fn into_file(self: Box<Self>) -> io::Result<Self> {
        Ok(*self)
    }
}

impl<T: AsRef<[u8]> + Send + Sync + 'static> Source for Cursor<T> {}

/// A source that outlives its readers.
pub(super) struct Shared {
    source: Arc<Mutex<Box<dyn Source>>>,
}

impl Shared {
    pub(super) fn new(source: impl Source) -> Self {
        Self { source: Arc::new(Mutex::new(Box::new(source))) }
    }

    /// A reader of a part, at its start. One at a time: an earlier one loses its place.
    pub(super) fn section(&self, part: Range<u64>) -> io::Result<Section> {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        let end = source.seek(SeekFrom::End(0))?.min(part.end);
        let start = part.start.min(end);
        source.seek(SeekFrom::Start(start))?;
        drop(source);
        Ok(Section {
            source: Arc::clone(&self.source),
            part: start..end,
            at: start,
            seekable: true,
            patch: None,
        })
    }

    /// The source as a file, once its readers are gone.
    pub(super) fn into_file(self) -> io::Result<File> {
        let source = Arc::into_inner(self.source).ok_or_else(|| io::Error::other("a reader is left"))?;
        source.into_inner().unwrap_or_else(PoisonError::into_inner).into_file()
    }
}

/// A part of a source, as if it were all.
pub(super) struct Section {
    source: Arc<Mutex<Box<dyn Source>>>,
    part: Range<u64>,
    at: u64,
    seekable: bool,
    /// Bytes that are read as others, and where.
    patch: Option<(u64, [u8; 8])>,
}

impl Section {
    /// The same for readers that look at the end of a file only if they can.
    pub(super) fn forward_only(self) -> Self {
        Self { seekable: false, ..self }
    }

    /// The same as if it went on to this length, for readers that give up a file that is too short for its own headers.
    pub(super) fn stretched(mut self, len: u64) -> Self {
        self.part.end = self.part.end.max(self.part.start.saturating_add(len));
        self
    }

    /// The same with eight other bytes at an offset, where a header is wrong in a way that can be told.
    pub(super) fn patched(mut self, offset: u64, bytes: [u8; 8]) -> Self {
        self.patch = Some((self.part.start + offset, bytes));
        self
    }

    pub(super) fn len(&self) -> u64 {
        self.part.end - self.part.start
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.part.end - self.at).unwrap_or(usize::MAX);
        let count = buffer.len().min(left);
        let read = self.source.lock().unwrap_or_else(PoisonError::into_inner).read(&mut buffer[..count])?;
        if let Some((start, bytes)) = self.patch {
            for (at, byte) in (start..).zip(bytes) {
                if (self.at..self.at + read as u64).contains(&at) {
                    buffer[(at - self.at) as usize] = byte;
                }
            }
        }
        self.at += read as u64;
        Ok(read)
    }
}

impl Seek for Section {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let to = match to {
            SeekFrom::Start(offset) => self.part.start.checked_add(offset),
            SeekFrom::End(offset) => self.part.end.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.at.checked_add_signed(offset),
        };
        // Behind the end there is nothing to read, wherever.
        let to = to.ok_or(io::ErrorKind::InvalidInput)?.min(self.part.end);
        if to < self.part.start {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.source.lock().unwrap_or_else(PoisonError::into_inner).seek(SeekFrom::Start(to))?;
        self.at = to;
        Ok(to - self.part.start)
    }
}

impl MediaSource for Section {
    fn is_seekable(&self) -> bool {
        self.seekable
    }

    fn byte_len(&self) -> Option<u64> {
        self.seekable.then(|| self.len())
    }
}
