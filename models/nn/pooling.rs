//! One vector for each sequence, out of its rows: what sentence-transformers puts behind a network
//! (<https://arxiv.org/abs/1908.10084>; reference: its `models/Pooling.py` and `models/Normalize.py`).

use candle_core::{DType, Tensor};
use percept_kernels::Ragged;
use serde::Deserialize;

use crate::{Checkpoint, LoadError, Result};

/// How the rows of a sequence become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// The first row.
    First,
    /// The largest of each column.
    Max,
    /// The mean of each column.
    Mean,
    /// Like [`Self::Mean`], but divided by the root of the number of rows.
    RootMean,
    /// The mean in which row `i`, counted from 1, has weight `i`.
    WeightedMean,
    /// The last row.
    Last,
}

impl Pooling {
    /// f32 `[1, width]`, of the rows of one sequence: f32 `[rows, width]`, one row at least.
    fn of(self, rows: &Tensor) -> Result<Tensor> {
        let count = rows.dim(0)?;
        match self {
            Self::First => rows.narrow(0, 0, 1),
            Self::Last => rows.narrow(0, count - 1, 1),
            Self::Max => rows.max_keepdim(0),
            Self::Mean => rows.sum_keepdim(0)? / count as f64,
            Self::RootMean => rows.sum_keepdim(0)? / (count as f64).sqrt(),
            Self::WeightedMean => {
                let weights = Tensor::arange(1f32, count as f32 + 1.0, rows.device())?.unsqueeze(1)?;
                rows.broadcast_mul(&weights)?.sum_keepdim(0)? / (count * (count + 1) / 2) as f64
            }
        }
    }
}

/// What makes one vector of a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Whose vectors stand one behind another.
    pooling: Vec<Pooling>,
    /// Whether vectors have length 1.
    unit: bool,
    /// Most rows of a text, where the checkpoint says so.
    longest: Option<usize>,
}

/// An entry of `modules.json`.
#[derive(Debug, Deserialize)]
struct Module {
    #[serde(default)]
    path: String,
    #[serde(rename = "type")]
    class: String,
}

/// `config.json` of a `Pooling` module, as older versions write it and as newer ones do.
#[derive(Debug, Default, Deserialize)]
struct PoolingConfig {
    pooling_mode: Option<OneOrMany>,
    #[serde(default)]
    pooling_mode_cls_token: bool,
    #[serde(default)]
    pooling_mode_max_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_tokens: bool,
    #[serde(default)]
    pooling_mode_mean_sqrt_len_tokens: bool,
    #[serde(default)]
    pooling_mode_weightedmean_tokens: bool,
    #[serde(default)]
    pooling_mode_lasttoken: bool,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl PoolingConfig {
    fn pooling(self) -> Result<Vec<Pooling>, LoadError> {
        // In the order in which the reference puts them one behind another.
        let flags = [
            (self.pooling_mode_cls_token, Pooling::First),
            (self.pooling_mode_max_tokens, Pooling::Max),
            (self.pooling_mode_mean_tokens, Pooling::Mean),
            (self.pooling_mode_mean_sqrt_len_tokens, Pooling::RootMean),
            (self.pooling_mode_weightedmean_tokens, Pooling::WeightedMean),
            (self.pooling_mode_lasttoken, Pooling::Last),
        ];
        let named = match self.pooling_mode {
            Some(OneOrMany::One(name)) => vec![name],
            Some(OneOrMany::Many(names)) => names,
            None => Vec::new(),
        };
        let mut pooling = Vec::new();
        for name in named {
            pooling.push(match name.as_str() {
                "cls" => Pooling::First,
                "max" => Pooling::Max,
                "mean" => Pooling::Mean,
                "mean_sqrt_len_tokens" => Pooling::RootMean,
                "weightedmean" => Pooling::WeightedMean,
                "lasttoken" => Pooling::Last,
                other => {
                    let supported = "cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken";
                    return Err(LoadError::unsupported("pooling_mode", other, supported));
                }
            });
        }
        if pooling.is_empty() {
            pooling = flags.into_iter().filter(|(wanted, _)| *wanted).map(|(_, pooling)| pooling).collect();
        }
        if pooling.is_empty() {
            return Err(LoadError::unsupported("a pooling module", "without a mode", "one mode or more"));
        }
        Ok(pooling)
    }
}

impl Head {
    /// Reads `modules.json` and what it names. Without it the rows' mean is taken as it is, as sentence-transformers does.
    ///
    /// # Errors
    /// When a file is broken or names a module that is not known.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self, LoadError> {
        #[derive(Default, Deserialize)]
        struct Lengths {
            max_seq_length: Option<usize>,
        }
        let lengths: Option<Lengths> = checkpoint.json("sentence_bert_config.json")?;
        let longest = lengths.unwrap_or_default().max_seq_length;
        let Some(modules) = checkpoint.json::<Vec<Module>>("modules.json")? else {
            return Ok(Self { pooling: vec![Pooling::Mean], unit: false, longest });
        };
        let (mut pooling, mut unit) = (None, false);
        for module in modules {
            // Packages of the library moved between versions; the last part is the class.
            match module.class.rsplit('.').next().unwrap_or_default() {
                "Transformer" => {}
                "Pooling" => {
                    let file = format!("{}/config.json", module.path);
                    let config: Option<PoolingConfig> = checkpoint.json(&file)?;
                    let missing = || LoadError::MissingFile { file: checkpoint.folder().join(&file) };
                    pooling = Some(config.ok_or_else(missing)?.pooling()?);
                }
                "Normalize" => unit = true,
                other => {
                    let supported = "Transformer, Pooling, Normalize";
                    return Err(LoadError::unsupported("modules.json type", other, supported));
                }
            }
        }
        Ok(Self { pooling: pooling.unwrap_or_else(|| vec![Pooling::Mean]), unit, longest })
    }

    /// Most rows of a text, of a network that has places for so many.
    pub fn context(&self, positions: usize) -> usize {
        self.longest.map_or(positions, |longest| longest.min(positions))
    }

    /// Numbers of a vector, out of rows of so many.
    pub fn dimensions(&self, width: usize) -> usize {
        self.pooling.len() * width
    }

    /// f32 `[sequences, dimensions]`, of `x` `[rows, width]`. What a sequence gets does not depend on the others, to the
    /// bit: each is summed by itself.
    ///
    /// # Errors
    /// When `x` has other rows than `rows`, or a sequence has none.
    pub fn forward(&self, x: &Tensor, rows: &Ragged) -> Result<Tensor> {
        let mut first = 0;
        let mut vectors = Vec::with_capacity(rows.lengths.len());
        for &count in rows.lengths.iter() {
            let own = x.narrow(0, first, count)?.to_dtype(DType::F32)?;
            first += count;
            let parts = self.pooling.iter().map(|pooling| pooling.of(&own)).collect::<Result<Vec<_>>>()?;
            vectors.push(Tensor::cat(&parts, 1)?);
        }
        let vectors = Tensor::cat(&vectors, 0)?;
        if self.unit { unit(&vectors) } else { Ok(vectors) }
    }
}

/// `x` `[vectors, width]`, each divided by its length, as f32.
///
/// # Errors
/// When the device refuses.
pub fn unit(x: &Tensor) -> Result<Tensor> {
    // torch.nn.functional.normalize.
    const LEAST: f32 = 1e-12;
    let x = x.to_dtype(DType::F32)?;
    x.broadcast_div(&x.sqr()?.sum_keepdim(1)?.sqrt()?.maximum(LEAST)?)
}
