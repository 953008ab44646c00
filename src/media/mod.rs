//! From what a client sends to decoded pixels: on a pool of its own, never in the engine's step.

pub mod document;
mod fetch;
mod image;
pub mod remote;
pub mod sound;

use std::{num::NonZero, sync::Arc, thread};

use futures_util::future::join_all;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub use self::{
    document::DocumentLimits,
    fetch::{FetchError, File, read_base64, read_url, video_frames},
    image::{Header, ImageError, decode},
};

/// What pictures may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MediaLimits {
    /// Most pictures and videos of a request.
    pub images: usize,
    /// Most bytes of a file.
    pub image_bytes: usize,
    /// Most columns or rows of a picture.
    pub image_edge: usize,
    /// Most pixels of a picture.
    pub image_pixels: usize,
    /// Most frames of all videos of a request.
    pub video_frames: usize,
    /// Most pixels of all pictures and frames of a request.
    pub request_pixels: usize,
    /// What documents may cost.
    pub document: DocumentLimits,
}

/// A decoded picture.
#[derive(Debug)]
pub struct Picture {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Red, green and blue of each pixel, row by row.
    pub rgb: Vec<u8>,
    /// Its share of the decoders' memory, given back when it is dropped.
    _memory: Option<OwnedSemaphorePermit>,
}

impl Picture {
    /// A picture of `width * height` pixels, outside the decoders' count.
    pub fn new(width: usize, height: usize, rgb: Vec<u8>) -> Self {
        debug_assert_eq!(rgb.len(), width * height * 3);
        Self { width, height, rgb, _memory: None }
    }
}

/// Decodes pictures: so many at once as there are cores, in a bounded amount of memory.
#[derive(Debug, Clone)]
pub struct Decoders {
    cores: Arc<Semaphore>,
    /// In units of [`UNIT`] bytes.
    memory: Arc<Semaphore>,
    units: u32,
}

/// Memory is granted in this unit, because a semaphore counts in 32 bits.
const UNIT: usize = 1 << 16;

impl Decoders {
    /// Decoders that together hold at most `memory` bytes of decoded pictures. A request that needs more waits
    /// until it has all of it to itself.
    pub fn new(memory: usize) -> Self {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let units = u32::try_from(memory / UNIT).unwrap_or(u32::MAX).max(1);
        Self {
            cores: Arc::new(Semaphore::new(cores)),
            memory: Arc::new(Semaphore::new(units as usize)),
            units,
        }
    }

    /// Runs short work of the same kind, such as reading headers, on one of the cores.
    ///
    /// # Errors
    /// When it panics.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, tokio::task::JoinError> {
        let core = Arc::clone(&self.cores).acquire_owned().await.expect(NEVER_CLOSED);
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(core);
            done
        });
        done.await
    }

    /// Decodes files whose headers were read. Waits until there is memory for all of them: if requests took it
    /// picture by picture, two could wait for each other. Dropping the future gives up the place.
    ///
    /// # Errors
    /// When a file is broken; says which.
    pub async fn decode(&self, files: Vec<(File, Header)>) -> Result<Vec<Picture>, (usize, ImageError)> {
        let total =
            files.iter().fold(0u32, |sum, (_, header)| sum.saturating_add(units(header))).min(self.units);
        let mut memory = Arc::clone(&self.memory).acquire_many_owned(total).await.expect(NEVER_CLOSED);
        let decoding: Vec<_> = files
            .into_iter()
            .map(|(file, header)| {
                // The last of a request larger than all memory get none of their own.
                let share = memory.split(memory.num_permits().min(units(&header) as usize));
                self.decode_one(file, header, share)
            })
            .collect();
        let mut pictures = Vec::with_capacity(decoding.len());
        for (index, picture) in join_all(decoding).await.into_iter().enumerate() {
            pictures.push(picture.map_err(|error| (index, error))?);
        }
        Ok(pictures)
    }

    async fn decode_one(
        &self,
        file: File,
        header: Header,
        memory: Option<OwnedSemaphorePermit>,
    ) -> Result<Picture, ImageError> {
        let decoded = self.run(move || decode(&file, header)).await;
        // A decoder that panics has met a file it cannot read.
        let picture = decoded.unwrap_or(Err(ImageError::Broken { reason: "its decoder gave up".into() }))?;
        Ok(Picture { _memory: memory, ..picture })
    }
}

const NEVER_CLOSED: &str = "these semaphores are never closed";

fn units(header: &Header) -> u32 {
    u32::try_from((header.pixels() * 3).div_ceil(UNIT)).unwrap_or(u32::MAX)
}
