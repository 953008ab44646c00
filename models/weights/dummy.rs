//! What stands in for weights where there are none: their outline, which takes no memory, and random ones. Both have
//! every tensor that a network asks for, in the shape that it asks for, and none of those that a checkpoint may lack:
//! an output that a configuration ties to the embedding is tied.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use candle_core::{DType, Device, Shape, Tensor, WithDType, bail};
use candle_nn::{Init, VarBuilder, var_builder::SimpleBackend};
use half::{bf16, f16};
use rayon::prelude::*;

use super::Progress;
use crate::Result;

/// Tensors that are one number, repeated: they have shapes, but hardly any memory, and are no weights to compute with.
/// Counts the numbers that real ones would have.
#[derive(Clone, Default)]
pub(crate) struct Outlined {
    asked: Arc<Mutex<HashMap<String, u64>>>,
}

impl Outlined {
    /// Such tensors, wherever a network asks for one.
    pub(crate) fn builder(&self, dtype: DType) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self.clone()), dtype, Device::Cpu)
    }

    /// Numbers of all tensors that were asked for, each counted once.
    pub(crate) fn elements(&self) -> u64 {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }

    /// The same, by when they are used.
    pub(crate) fn uses(&self) -> WeightUses {
        let (mut uses, mut embedding) = (WeightUses::default(), 0);
        for (name, &count) in self.asked.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let parts: Vec<&str> = name.split('.').collect();
            let any = |known: &[&str]| parts.iter().any(|part| known.contains(part));
            if any(ENCODERS) {
                uses.encoder += count;
            } else if any(HEADS) {
                uses.head += count;
            } else if any(EMBEDDINGS) {
                embedding = count.max(embedding);
            } else if !(any(POSITIONS) || any(CROSS_ATTENTION) && any(KEYS_AND_VALUES)) {
                uses.layers += count;
            }
        }
        if uses.head == 0 {
            uses.head = embedding;
        }
        uses
    }
}

/// Numbers of a network's weights, by when they are used. Those that are looked up by the row, or used once for each
/// medium only, are in none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WeightUses {
    /// For each row that is encoded.
    pub encoder: u64,
    /// For each row of text.
    pub layers: u64,
    /// For each row whose logits are wanted.
    pub head: u64,
}

/// What parts of networks are called in the names of their weights: towers, and what is between them and the text;
const ENCODERS: &[&str] = &[
    "connector",
    "encoder",
    "mlp1",
    "multi_modal_projector",
    "vision_embed_tokens",
    "vision_model",
    "vision_tower",
    "visual",
];
/// output layers;
const HEADS: &[&str] = &["lm_head", "output", "proj_out"];
/// embeddings, which are output layers as well where a network has no other;
const EMBEDDINGS: &[&str] = &["embed_tokens", "tok_embeddings"];
/// positions that are looked up;
const POSITIONS: &[&str] = &["embed_positions"];
/// layers that attend to a memory, and what they use for the memory's rows only.
const CROSS_ATTENTION: &[&str] = &["cross_attn", "encoder_attn"];
const KEYS_AND_VALUES: &[&str] = &["k_norm", "k_proj", "v_proj"];

/// Whether a tensor is one number, repeated without taking the memory.
pub(crate) fn is_outline(tensor: &Tensor) -> bool {
    tensor.elem_count() > 1 && tensor.stride().iter().all(|&stride| stride == 0)
}

impl SimpleBackend for Outlined {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let count = elements(&shape, name)?;
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        asked.insert(name.to_owned(), count as u64);
        Tensor::zeros((), dtype, device)?.broadcast_as(shape)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("tensor `{name}` is asked for without its shape, which only a file would tell")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        false
    }
}

/// Random weights: small and normally distributed, as networks are before they are trained, and 1 in norms. A tensor's
/// numbers depend on its name alone.
pub(crate) struct Random {
    bytes: u64,
    made: AtomicU64,
    progress: Box<Progress>,
}

impl Random {
    /// Weights of so many bytes altogether.
    pub(crate) fn new(bytes: u64, progress: Box<Progress>) -> Self {
        Self { bytes, made: AtomicU64::new(0), progress }
    }

    /// Such weights as `dtype` on `device`, wherever a network asks for one.
    pub(crate) fn into_builder(self, dtype: DType, device: &Device) -> VarBuilder<'static> {
        VarBuilder::from_backend(Box::new(self), dtype, device.clone())
    }
}

impl SimpleBackend for Random {
    fn get(&self, shape: Shape, name: &str, _: Init, dtype: DType, device: &Device) -> Result<Tensor> {
        let count = elements(&shape, name)?;
        // Weights of layers have two dimensions, of convolutions more; only those of norms have one.
        let norm = shape.rank() == 1 && name.rsplit('.').next() == Some("weight");
        let tensor = match dtype {
            _ if norm => Tensor::ones(shape, dtype, device)?,
            DType::F32 => Tensor::from_vec(numbers::<f32>(name, count), shape, device)?,
            DType::BF16 => Tensor::from_vec(numbers::<bf16>(name, count), shape, device)?,
            DType::F16 => Tensor::from_vec(numbers::<f16>(name, count), shape, device)?,
            other => bail!("there are no random weights of type {other:?}"),
        };
        let bytes = (count * dtype.size_in_bytes()) as u64;
        let made = self.made.fetch_add(bytes, Ordering::Relaxed) + bytes;
        (self.progress)(made, self.bytes);
        Ok(tensor)
    }

    fn get_unchecked(&self, name: &str, _: DType, _: &Device) -> Result<Tensor> {
        bail!("tensor `{name}` is asked for without its shape, which only a file would tell")
    }

    fn contains_tensor(&self, _: &str) -> bool {
        false
    }
}

/// Numbers of a tensor. A configuration may ask for any shape.
fn elements(shape: &Shape, name: &str) -> Result<usize> {
    /// More than any network has, and few enough that sums of bytes do not overflow.
    const MOST: usize = 1 << 44;
    let count = shape.dims().iter().try_fold(1_usize, |count, &dim| count.checked_mul(dim));
    match count.filter(|&count| count <= MOST) {
        Some(count) => Ok(count),
        None => bail!("tensor `{name}` would have shape {:?}", shape.dims()),
    }
}

/// `count` numbers around 0 with a standard deviation of 0.02.
fn numbers<T: WithDType>(name: &str, count: usize) -> Vec<T> {
    /// What transformers initialises most networks with.
    const DEVIATION: f64 = 0.02;
    // The sum of four uniform numbers of 16 bits is close to normal, and one draw of 64 bits has four of them.
    let mean = 2.0 * f64::from(u16::MAX);
    let scale = DEVIATION / ((f64::from(1_u32 << 16).powi(2) - 1.0) / 3.0).sqrt();
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        // FNV-1a: http://www.isthe.com/chongo/tech/comp/fnv/
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let number = |index: usize| {
        let draw = mixed(seed.wrapping_add((index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let sum: u64 = (0..4).map(|part| (draw >> (16 * part)) & 0xffff).sum();
        T::from_f64((sum as f64 - mean) * scale)
    };
    (0..count).into_par_iter().with_min_len(1 << 12).map(number).collect()
}

/// The mixing step of SplitMix64 (<https://prng.di.unimi.it/splitmix64.c>).
fn mixed(state: u64) -> u64 {
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::join;

    #[test]
    fn random_numbers_are_small_and_around_zero_and_always_the_same() {
        let all: Vec<f32> = numbers("a.weight", 100_000);
        let mean = all.iter().sum::<f32>() / all.len() as f32;
        let square = all.iter().map(|number| number * number).sum::<f32>() / all.len() as f32;
        assert!(mean.abs() < 3e-4, "{mean}");
        assert!((square.sqrt() - 0.02).abs() < 2e-4, "{square}");
        // As many within one deviation and within two as of a normal distribution.
        for (within, share) in [(0.02, 0.683), (0.04, 0.954)] {
            let count = all.iter().filter(|number| number.abs() < within).count();
            let found = count as f64 / all.len() as f64;
            assert!((found - share).abs() < 0.02, "{found}");
        }
        assert_eq!(numbers::<f32>("a.weight", 1000), all[..1000]);
        assert_ne!(numbers::<f32>("b.weight", 1000), all[..1000]);
        let rounded: Vec<f32> = all[..1000].iter().map(|&number| bf16::from_f32(number).to_f32()).collect();
        let halves: Vec<f32> = numbers::<bf16>("a.weight", 1000).into_iter().map(bf16::to_f32).collect();
        assert!(rounded.iter().zip(&halves).all(|(a, b)| (a - b).abs() <= a.abs() / 128.0));
    }

    #[test]
    fn norms_are_one_and_what_may_be_absent_is() {
        let vb = Random::new(0, Box::new(|_, _| {})).into_builder(DType::F32, &Device::Cpu);
        let of = |shape: &[usize], name: &str| {
            vb.get(shape, name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(of(&[3], "layers.0.norm.weight"), [1.0; 3]);
        for numbers in
            [of(&[3], "layers.0.norm.bias"), of(&[1, 3], "head.weight"), of(&[3], "class_embedding")]
        {
            assert!(numbers.iter().all(|number| number.abs() < 0.1 && *number != 0.0), "{numbers:?}");
        }
        assert!(!vb.contains_tensor("head.weight"));
    }

    #[test]
    fn outlines_are_joined_without_memory_and_counted_once() {
        let outlined = Outlined::default();
        let vb = outlined.builder(DType::F32);
        // As real tensors these would be a terabyte.
        let parts = ["a", "b"].map(|name| vb.get((1 << 18, 1 << 20), name).unwrap());
        assert!(parts.iter().all(is_outline));
        let both = join(&parts).unwrap();
        assert!(is_outline(&both));
        assert_eq!(both.dims(), [1 << 19, 1 << 20]);
        vb.get((1 << 18, 1 << 20), "a").unwrap();
        assert_eq!(outlined.elements(), 1 << 39);
        assert!(vb.get((1 << 40, 1 << 40), "c").is_err());
        let real =
            [Tensor::ones((1, 2), DType::F32, &Device::Cpu), Tensor::zeros((2, 2), DType::F32, &Device::Cpu)]
                .map(Result::unwrap);
        assert_eq!(join(&real).unwrap().to_vec2::<f32>().unwrap(), [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]]);
    }
}
