//! Safetensors files as a source of weights: mapped, checked, under old and new names. What stands in for them where
//! there are none is in [`dummy`].

pub(crate) mod dummy;

use std::{
    collections::HashMap,
    ops::Deref,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use percept_kernels::{Mmap, map_file};
use safetensors::{Dtype, tensor::Metadata};

use crate::{Checkpoint, LoadError};

/// Called with the bytes read so far and the bytes there are, from several threads.
pub type Progress = dyn Fn(u64, u64) + Send + Sync;

/// The file that names the shards of a checkpoint in several files.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The file of a checkpoint in one piece.
pub const SINGLE_FILE: &str = "model.safetensors";

/// The shards that an index file names, each once, sorted.
///
/// # Errors
/// When the text is not an index.
pub fn shards_of_index(text: &str) -> Result<Vec<String>, serde_json::Error> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let mut shards: Vec<String> = serde_json::from_str::<Index>(text)?.weight_map.into_values().collect();
    shards.sort_unstable();
    shards.dedup();
    Ok(shards)
}

/// A checkpoint's weights, still where they are stored.
pub(crate) struct Weights {
    tensors: HashMap<String, Stored>,
    maps: Vec<Content>,
    files: Vec<PathBuf>,
    /// Pairs of a name prefix that models ask for and one that files may have instead.
    aliases: &'static [(&'static str, &'static str)],
    progress: Box<Progress>,
    read: AtomicU64,
    bytes: u64,
    failure: Failure,
}

/// The first reason why a network did not get a tensor. candle's errors would carry it as text only.
pub(crate) type Failure = Arc<Mutex<Option<LoadError>>>;

struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    file: usize,
    start: usize,
    end: usize,
}

/// The bytes of a weight file.
enum Content {
    /// On the disk.
    Mapped(Mmap),
    /// In the program.
    Embedded(&'static [u8]),
}

impl Content {
    fn open(checkpoint: &Checkpoint, name: &str) -> Result<Self, LoadError> {
        if let Some(bytes) = checkpoint.in_program(name) {
            return Ok(Self::Embedded(bytes));
        }
        let file = checkpoint.folder().join(name);
        map_file(&file).map(Self::Mapped).map_err(|error| LoadError::Io { file, error })
    }
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Embedded(bytes) => bytes,
        }
    }
}

impl Weights {
    /// Maps all weight files of a checkpoint and reads their headers.
    pub(crate) fn open(
        checkpoint: &Checkpoint,
        aliases: &'static [(&'static str, &'static str)],
        progress: Box<Progress>,
    ) -> Result<Self, LoadError> {
        let names = weight_files(checkpoint)?;
        let files: Vec<PathBuf> = names.iter().map(|name| checkpoint.folder().join(name)).collect();
        let mut tensors = HashMap::new();
        let mut maps = Vec::with_capacity(files.len());
        let mut bytes = 0;
        for (index, (name, file)) in names.iter().zip(&files).enumerate() {
            let map = Content::open(checkpoint, name)?;
            let (data, metadata) = header(file, &map)?;
            for (name, info) in metadata.tensors() {
                let (start, end) = info.data_offsets;
                bytes += (end - start) as u64;
                let stored = Stored {
                    dtype: info.dtype,
                    shape: info.shape.clone(),
                    file: index,
                    start: data + start,
                    end: data + end,
                };
                tensors.insert(name, stored);
            }
            maps.push(map);
        }
        Ok(Self {
            tensors,
            maps,
            files,
            aliases,
            progress,
            read: AtomicU64::new(0),
            bytes,
            failure: Failure::default(),
        })
    }

    /// Bytes that all tensors take that a network can ask for, as `dtype`.
    pub(crate) fn bytes_as(&self, dtype: DType) -> u64 {
        let numbers = self.tensors.values().filter(|stored| self::dtype(stored.dtype).is_some());
        let elements: u64 = numbers.map(|stored| stored.shape.iter().product::<usize>() as u64).sum();
        elements * dtype.size_in_bytes() as u64
    }

    /// Where the first failure will be.
    pub(crate) fn failure(&self) -> Failure {
        Arc::clone(&self.failure)
    }

    /// The weights as `dtype` on `device`, wherever a network asks for one.
    pub(crate) fn into_builder(self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self), dtype, device.clone())
    }

    fn fail(&self, error: LoadError) -> candle_core::Error {
        let text = error.to_string();
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        candle_core::Error::Msg(text)
    }

    fn find(&self, name: &str) -> Option<&Stored> {
        self.tensors.get(name).or_else(|| {
            self.aliases.iter().find_map(|(asked, stored)| {
                self.tensors.get(&format!("{stored}{}", name.strip_prefix(asked)?))
            })
        })
    }

    fn stored(&self, name: &str) -> candle_core::Result<&Stored> {
        self.find(name).ok_or_else(|| {
            self.fail(LoadError::MissingTensor {
                name: name.to_owned(),
                files: self.files.iter().map(|file| file_name(file)).collect(),
            })
        })
    }

    fn read(
        &self,
        name: &str,
        stored: &Stored,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        // Some files carry buffers of integers that nothing asks for.
        let found = self::dtype(stored.dtype).ok_or_else(|| {
            let file = file_name(&self.files[stored.file]);
            self.fail(LoadError::Unsupported {
                what: format!("type {:?} of tensor `{name}` in {file}", stored.dtype),
                supported: "f16, bf16, f32 and f64".into(),
            })
        })?;
        let bytes = &self.maps[stored.file][stored.start..stored.end];
        let tensor = Tensor::from_raw_buffer(bytes, found, &stored.shape, device)?.to_dtype(dtype)?;
        let read = self.read.fetch_add(bytes.len() as u64, Ordering::Relaxed) + bytes.len() as u64;
        (self.progress)(read, self.bytes);
        Ok(tensor)
    }
}

impl SimpleBackend for Weights {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        _: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        let stored = self.stored(name)?;
        if stored.shape != shape.dims() {
            return Err(self.fail(LoadError::WrongShape {
                name: name.to_owned(),
                expected: shape.into_dims(),
                found: stored.shape.clone(),
                file: file_name(&self.files[stored.file]),
            }));
        }
        self.read(name, stored, dtype, device)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        self.read(name, self.stored(name)?, dtype, device)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.find(name).is_some()
    }
}

/// Tensors end to end along their first dimension. Those of an [outline](dummy::Outlined) stay one.
///
/// # Errors
/// When their other dimensions differ.
pub(crate) fn join(parts: &[Tensor]) -> crate::Result<Tensor> {
    match parts {
        [first, ..] if parts.iter().all(dummy::is_outline) => {
            let mut shape = first.dims().to_vec();
            shape[0] = parts.iter().map(|part| part.dims()[0]).sum();
            first.narrow(0, 0, 1)?.broadcast_as(shape)
        }
        _ => Tensor::cat(parts, 0),
    }
}

/// The names of a checkpoint's weight files, by transformers' rule: one file before an index.
fn weight_files(checkpoint: &Checkpoint) -> Result<Vec<String>, LoadError> {
    if checkpoint.has(SINGLE_FILE) {
        return Ok(vec![SINGLE_FILE.to_owned()]);
    }
    let Some(text) = checkpoint.text(INDEX_FILE)? else {
        return Err(LoadError::NoWeights { folder: checkpoint.folder().to_owned() });
    };
    let index = checkpoint.folder().join(INDEX_FILE);
    let shards = shards_of_index(&text).map_err(|error| LoadError::Json { file: index.clone(), error })?;
    let plain = |shard: &str| Path::new(shard).components().count() == 1;
    match shards.iter().find(|shard| !plain(shard) || !checkpoint.has(shard)) {
        Some(shard) => Err(LoadError::MissingShard { file: checkpoint.folder().join(shard), index }),
        None => Ok(shards),
    }
}

/// Where the tensors of a file begin, and what they are. Every byte that they claim is there.
fn header(file: &Path, map: &[u8]) -> Result<(usize, Metadata), LoadError> {
    const LENGTH: usize = 8;
    /// The format's own limit.
    const MOST: u64 = 100_000_000;
    let broken = |reason: String| LoadError::NotSafetensors { file: file.to_owned(), reason };
    let Some(length) = map.first_chunk::<LENGTH>() else {
        return Err(broken(format!("it has only {} bytes", map.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MOST {
        return Err(broken(format!("its header claims {length} bytes")));
    }
    let data = LENGTH + length as usize;
    if data > map.len() {
        return Err(LoadError::Truncated {
            file: file.to_owned(),
            expected: data as u64,
            found: map.len() as u64,
        });
    }
    let metadata: Metadata =
        serde_json::from_slice(&map[LENGTH..data]).map_err(|error| broken(format!("its header: {error}")))?;
    let end = metadata.tensors().values().map(|info| info.data_offsets.1).max().unwrap_or(0);
    if data + end > map.len() {
        return Err(LoadError::Truncated {
            file: file.to_owned(),
            expected: (data + end) as u64,
            found: map.len() as u64,
        });
    }
    Ok((data, metadata))
}

fn dtype(stored: Dtype) -> Option<DType> {
    match stored {
        Dtype::F16 => Some(DType::F16),
        Dtype::BF16 => Some(DType::BF16),
        Dtype::F32 => Some(DType::F32),
        Dtype::F64 => Some(DType::F64),
        _ => None,
    }
}

fn file_name(file: &Path) -> String {
    file.file_name().unwrap_or(file.as_os_str()).to_string_lossy().into_owned()
}
