//! Rotary position embedding, half-split as in Llama (<https://arxiv.org/abs/2104.09864>), and what long contexts and
//! pictures made of it.

use candle_core::{DType, Device, Tensor};
use candle_nn::rotary_emb::rope_thd;
use serde::Deserialize;

use crate::{LoadError, Result, batch::Batch};

/// `rope_scaling` of older files, `rope_parameters` of transformers 5.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct RopeParameters {
    /// Base of the angles.
    pub rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// The older name; some tools save both.
    #[serde(rename = "type")]
    kind: Option<String>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
    mrope_section: Option<Vec<usize>>,
}

/// How angles follow from positions.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Angles per position, half as many as numbers of a head. The second list is for long sequences.
    frequencies: Vec<Vec<f32>>,
    /// Rows from which on a sequence is long.
    long: Option<usize>,
    /// Factor of sines and cosines.
    scale: f64,
    /// How many frequencies follow time, height and width, for networks that tell these apart.
    sections: Option<Vec<usize>>,
}

impl RopeConfig {
    /// Angles `p / theta^(2i / head_dim)`, scaled as `parameters` say. `lengths`: the original context, where the
    /// configuration has it outside of the parameters, and the context.
    ///
    /// # Errors
    /// When another scaling is asked for, or its parameters are not there.
    pub fn new(
        head_dim: usize,
        theta: f64,
        parameters: Option<&RopeParameters>,
        (original, positions): (Option<usize>, usize),
    ) -> Result<Self, LoadError> {
        let half = head_dim / 2;
        let plain: Vec<f64> =
            (0..half).map(|i| theta.powf(2.0 * i as f64 / head_dim as f64).recip()).collect();
        let simple = |frequencies: Vec<f64>| Self {
            frequencies: vec![single(&frequencies)],
            long: None,
            scale: 1.0,
            sections: None,
        };
        let Some(parameters) = parameters else { return Ok(simple(plain)) };
        let missing = |key: &str| LoadError::Unsupported {
            what: format!("text_config rope parameters without {key}"),
            supported: "those that have it".into(),
        };
        let kind = parameters.rope_type.as_deref().or(parameters.kind.as_deref());
        let sections = parameters.mrope_section.as_ref();
        match kind {
            // transformers 5 calls the sections' type the default.
            None | Some("default" | "mrope") if sections.is_some() || kind == Some("mrope") => {
                let sections = sections.ok_or_else(|| missing("mrope_section"))?;
                if sections.len() != 3 || sections.iter().sum::<usize>() != half {
                    let value = format!("{sections:?}");
                    let supported = format!("three numbers that make {half}");
                    return Err(LoadError::unsupported("mrope_section", &value, &supported));
                }
                Ok(Self { sections: Some(sections.clone()), ..simple(plain) })
            }
            // Dynamic scaling begins behind the context, which is where percept ends.
            None | Some("default" | "dynamic") => Ok(simple(plain)),
            Some("linear") => {
                let factor = parameters.factor.ok_or_else(|| missing("factor"))?;
                Ok(simple(plain.iter().map(|frequency| frequency / factor).collect()))
            }
            Some("llama3") => {
                let factor = parameters.factor.ok_or_else(|| missing("factor"))?;
                let low = parameters.low_freq_factor.ok_or_else(|| missing("low_freq_factor"))?;
                let high = parameters.high_freq_factor.ok_or_else(|| missing("high_freq_factor"))?;
                let original = parameters.original_max_position_embeddings.or(original);
                let original = original.ok_or_else(|| missing("original_max_position_embeddings"))? as f64;
                // transformers, `_compute_llama3_parameters`: short waves stay, long ones are slowed down.
                let scaled = |frequency: &f64| {
                    let turns = original * frequency / std::f64::consts::TAU;
                    let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                };
                Ok(simple(plain.iter().map(scaled).collect()))
            }
            Some("su" | "longrope") => {
                let divided = |factors: &Option<Vec<f64>>, key: &str| {
                    let factors = factors.as_ref().ok_or_else(|| missing(key))?;
                    if factors.len() != half {
                        let (value, supported) = (factors.len().to_string(), half.to_string());
                        return Err(LoadError::unsupported(&format!("{key} of length"), &value, &supported));
                    }
                    let of = plain.iter().zip(factors);
                    Ok(single(&of.map(|(frequency, factor)| frequency / factor).collect::<Vec<_>>()))
                };
                let original = original.or(parameters.original_max_position_embeddings);
                let original = original.ok_or_else(|| missing("original_max_position_embeddings"))?;
                let stretch = positions as f64 / original as f64;
                let scale =
                    if stretch <= 1.0 { 1.0 } else { (1.0 + stretch.ln() / (original as f64).ln()).sqrt() };
                Ok(Self {
                    frequencies: vec![
                        divided(&parameters.short_factor, "short_factor")?,
                        divided(&parameters.long_factor, "long_factor")?,
                    ],
                    long: Some(original),
                    scale,
                    sections: None,
                })
            }
            Some(other) => {
                let supported = "default, linear, dynamic, llama3, longrope (su), mrope";
                Err(LoadError::unsupported("text_config rope type", other, supported))
            }
        }
    }

    /// Whether a row has a position in time, height and width.
    pub fn has_planes(&self) -> bool {
        self.sections.is_some()
    }

    /// From how many rows on a sequence is long.
    pub fn long(&self) -> Option<usize> {
        self.long
    }
}

fn single(frequencies: &[f64]) -> Vec<f32> {
    frequencies.iter().map(|&frequency| frequency as f32).collect()
}

/// Angles are computed in f32: in bf16 far positions would fall together.
#[derive(Debug)]
pub struct Rope {
    /// f32 `[kinds, head_dim / 2]`.
    frequencies: Tensor,
    scale: f64,
    /// u32 `[head_dim / 2]`: which position each frequency follows.
    axes: Option<Tensor>,
    dtype: DType,
}

/// Sines and cosines of some rows, shared by all layers.
#[derive(Debug)]
pub struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// # Errors
    /// When the device refuses the upload.
    pub fn new(config: &RopeConfig, dtype: DType, device: &Device) -> Result<Self> {
        let half = config.frequencies[0].len();
        let frequencies =
            Tensor::from_vec(config.frequencies.concat(), (config.frequencies.len(), half), device)?;
        let axes = config.sections.as_ref().map(|sections| {
            let axes = (0..).zip(sections).flat_map(|(axis, &count)| vec![axis; count]);
            Tensor::from_vec(axes.collect::<Vec<u32>>(), half, device)
        });
        Ok(Self { frequencies, scale: config.scale, axes: axes.transpose()?, dtype })
    }

    /// Of the batch's rows.
    ///
    /// # Errors
    /// When the batch's positions are not of the kind that the configuration needs.
    pub fn at(&self, batch: &Batch) -> Result<Rotation> {
        let positions = batch.positions.to_dtype(DType::F32)?;
        let positions = match &self.axes {
            Some(axes) => positions.index_select(axes, 0)?.t()?,
            None => positions.unsqueeze(1)?,
        };
        let frequencies = match &batch.long {
            Some(long) => self.frequencies.index_select(long, 0)?,
            None => self.frequencies.narrow(0, 0, 1)?,
        };
        Rotation::of(&positions.broadcast_mul(&frequencies)?, self.scale, self.dtype)
    }
}

/// How angles follow from a place on a grid: one half of a head's numbers turns with the row, the other with the
/// column.
#[derive(Debug)]
pub struct GridRope {
    /// Angles per row.
    rows: Vec<f32>,
    /// Angles per column, as many.
    columns: Vec<f32>,
}

impl GridRope {
    /// The base of a tower's angles, in newer files or in older ones.
    ///
    /// # Errors
    /// When angles are asked for that follow in another way.
    pub fn theta(parameters: Option<&RopeParameters>, older: Option<f64>) -> Result<f64, LoadError> {
        let kind = parameters.and_then(|rope| rope.rope_type.as_deref().or(rope.kind.as_deref()));
        if let Some(kind) = kind.filter(|kind| !["default", "axial"].contains(kind)) {
            return Err(LoadError::unsupported("vision_config rope type", kind, "default, axial"));
        }
        Ok(parameters.and_then(|rope| rope.rope_theta).or(older).unwrap_or(10_000.0))
    }

    /// Of the frequencies `theta^(-2i / head_dim)` those of even `i` are the rows', the others the columns', as in
    /// Pixtral. `head_dim` is a multiple of 4.
    pub fn by_turns(head_dim: usize, theta: f64) -> Self {
        let every_second = |first| {
            let frequencies = (first..head_dim / 2).step_by(2);
            frequencies.map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64) as f32).collect()
        };
        Self { rows: every_second(0), columns: every_second(1) }
    }

    /// The frequencies `theta^(-4i / head_dim)` are the rows' and the columns', as in Qwen2-VL. `head_dim` is a
    /// multiple of 4.
    pub fn alike(head_dim: usize, theta: f64) -> Self {
        let Self { rows, .. } = Self::by_turns(head_dim, theta);
        Self { columns: rows.clone(), rows }
    }

    /// Of rows like those of `x`, which lie at these pairs of row and column.
    ///
    /// # Errors
    /// When the device refuses the upload.
    pub fn at(&self, places: &[(usize, usize)], x: &Tensor) -> Result<Rotation> {
        let times = |place: usize, frequencies: &[f32]| -> Vec<f32> {
            frequencies.iter().map(|frequency| place as f32 * frequency).collect()
        };
        let angles = places.iter().flat_map(|&(row, column)| {
            [times(row, &self.rows), times(column, &self.columns)].into_iter().flatten()
        });
        let shape = (places.len(), self.rows.len() + self.columns.len());
        Rotation::of(&Tensor::from_vec(angles.collect(), shape, x.device())?, 1.0, x.dtype())
    }
}

impl Rotation {
    /// `angles`: f32 `[rows, head_dim / 2]`; sines and cosines are multiplied by `scale`.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn of(angles: &Tensor, scale: f64, dtype: DType) -> Result<Self> {
        let scaled = |x: Tensor| if scale == 1.0 { Ok(x) } else { x * scale };
        Ok(Self {
            cos: scaled(angles.cos()?)?.to_dtype(dtype)?,
            sin: scaled(angles.sin()?)?.to_dtype(dtype)?,
        })
    }

    /// Rotates `x` `[rows, heads, head_dim]`.
    ///
    /// # Errors
    /// When the rows differ from those of the positions.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        rope_thd(&x.contiguous()?.unsqueeze(0)?, &self.cos, &self.sin)?.squeeze(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(parameters: serde_json::Value, lengths: (Option<usize>, usize)) -> RopeConfig {
        let parameters: RopeParameters = serde_json::from_value(parameters).expect("parameters");
        RopeConfig::new(64, 500_000.0, Some(&parameters), lengths).expect("a configuration")
    }

    fn near(found: &[f32], expected: impl Fn(f64) -> f64) {
        for (i, &found) in found.iter().enumerate() {
            let expected = expected(500_000_f64.powf(-2.0 * i as f64 / 64.0));
            assert!((f64::from(found) - expected).abs() <= 1e-6 * expected, "{i}: {found}, not {expected}");
        }
    }

    /// Meta's `apply_scaling` of llama-models, which speaks of wave lengths.
    #[test]
    fn long_waves_are_slowed_down_as_in_llama_3() {
        let parameters = serde_json::json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        });
        near(&config(parameters, (None, 131_072)).frequencies[0], |frequency| {
            let wave = std::f64::consts::TAU / frequency;
            let smooth = (8192.0 / wave - 1.0) / (4.0 - 1.0);
            match wave {
                wave if wave < 8192.0 / 4.0 => frequency,
                wave if wave > 8192.0 => frequency / 8.0,
                _ => (1.0 - smooth) * frequency / 8.0 + smooth * frequency,
            }
        });
    }

    #[test]
    fn long_sequences_have_factors_of_their_own() {
        let parameters = serde_json::json!({
            "type": "su", "short_factor": vec![2.0; 32], "long_factor": vec![3.0; 32],
        });
        let config = config(parameters, (Some(4096), 131_072));
        near(&config.frequencies[0], |frequency| frequency / 2.0);
        near(&config.frequencies[1], |frequency| frequency / 3.0);
        assert_eq!(config.long(), Some(4096));
        // What the published checkpoints have.
        assert!((config.scale - 1.190_238_071_423_808_3).abs() < 1e-12);
    }

    #[test]
    fn simple_kinds() {
        let linear = serde_json::json!({"type": "linear", "factor": 4.0});
        near(&config(linear, (None, 4096)).frequencies[0], |frequency| frequency / 4.0);
        for kind in ["default", "dynamic"] {
            let plain = serde_json::json!({"type": kind, "factor": 2.0});
            near(&config(plain, (None, 4096)).frequencies[0], |frequency| frequency);
        }
    }
}
