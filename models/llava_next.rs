//! LLaVA-NeXT, also called LLaVA-1.6: LLaVA with pictures in tiles.
//!
//! Reference: transformers, `models/llava_next`; blog post: <https://llava-vl.github.io/blog/2024-01-30-llava-next/>.
//! Checkpoints: `llava-hf/llava-v1.6-mistral-7b-hf`, `llava-hf/llava-v1.6-vicuna-7b-hf`, `llava-hf/llava-v1.6-34b-hf` and
//! fine-tunes in that layout.

use std::sync::Arc;

use candle_core::Tensor;
use candle_nn::VarBuilder;
use serde::Deserialize;

use crate::{
    CacheShape, Checkpoint, Features, Fit, Footprint, KvCache, LoadError, MediaSize, Medium, Model, Parts,
    Preprocess, Result, SizeError, Task,
    batch::Batch,
    end_to_end,
    nn::{
        decoder::Decoder,
        image::{Filter, ImageProcessorConfig, Levels, pack, place, stretch, tiles},
        projected::{ProjectedConfig, ProjectedTower},
    },
};

#[derive(Debug, Deserialize)]
struct Config {
    /// Pairs of height and width.
    image_grid_pinpoints: Option<Vec<(usize, usize)>>,
}

/// Loads the network and its image processor.
pub(crate) fn load(checkpoint: &Checkpoint, _: Option<Fit>, vb: &VarBuilder<'_>) -> Result<Parts, LoadError> {
    let config: ProjectedConfig = checkpoint.config()?;
    let own: Config = checkpoint.config()?;
    let decoder = config.decoder()?;
    let hidden = decoder.attention.hidden;
    let vision = &config.vision_config;
    vision.check()?;
    if config.rows() != vision.patches() {
        return Err(LoadError::unsupported("vision_feature_select_strategy", "full", "default"));
    }
    let processor: ImageProcessorConfig = checkpoint.image_processor()?;
    processor.check_side(vision.image_size)?;
    let grid = Grid {
        side: vision.image_size,
        patches: vision.side(),
        pinpoints: own.image_grid_pinpoints.unwrap_or_else(|| {
            // Of `LlavaNextConfig`.
            vec![(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
        }),
    };
    grid.check()?;
    let tower = ProjectedTower::load(&config, hidden, vb)?;
    Ok(Parts {
        width: hidden,
        encoder_row: tower.row_size,
        task: Task::Chat(config.text()?),
        preprocess: Arc::new(Tiles {
            grid: grid.clone(),
            filter: processor.filter(Filter::Bicubic)?,
            levels: processor.levels(),
            placeholder: config.image_token(),
        }),
        model: Box::new(LlavaNext {
            tower,
            newline: vb.get(hidden, "image_newline")?,
            decoder: Decoder::load(
                &decoder,
                &vb.pp("language_model.model"),
                &vb.pp("language_model.lm_head"),
            )?,
            cache_shape: decoder.cache_shape(),
            grid,
        }),
    })
}

struct LlavaNext {
    tower: ProjectedTower,
    newline: Tensor,
    decoder: Decoder,
    cache_shape: CacheShape,
    grid: Grid,
}

impl Model for LlavaNext {
    fn cache_shape(&self) -> CacheShape {
        self.cache_shape
    }

    fn encode(&self, media: &[Features]) -> Result<Tensor> {
        let crops = self.tower.forward(&end_to_end(media)?)?.flatten_to(1)?;
        pack(&crops, &self.newline.unsqueeze(0)?, media, |(width, height), first, newline| {
            let plan = self.grid.plan(width, height);
            let patches = (1 + plan.rows * plan.columns) * self.grid.patches * self.grid.patches;
            (self.grid.order(&plan, first, newline), patches)
        })
    }

    fn forward(&self, batch: &Batch, cache: &KvCache) -> Result<Tensor> {
        self.decoder.forward(batch, cache)
    }
}

/// Which tiles a picture becomes, and which of their rows the text sees.
#[derive(Debug, Clone)]
struct Grid {
    /// Pixels of a tile's side.
    side: usize,
    /// Patches along it.
    patches: usize,
    /// Canvases that there are: pairs of height and width.
    pinpoints: Vec<(usize, usize)>,
}

/// Of one picture.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// Tiles of the canvas.
    rows: usize,
    columns: usize,
    /// Width and height of the picture on the canvas.
    resized: (usize, usize),
    /// Patches of the canvas, from one to another, that show the picture.
    visible_rows: (usize, usize),
    visible_columns: (usize, usize),
}

impl Grid {
    fn check(&self) -> Result<(), LoadError> {
        let fits = |&(height, width): &(usize, usize)| {
            [height, width].iter().all(|&length| length > 0 && length.is_multiple_of(self.side))
        };
        if self.pinpoints.is_empty() || !self.pinpoints.iter().all(fits) {
            let value = format!("{:?}", self.pinpoints);
            let supported = format!("pairs of multiples of {}", self.side);
            return Err(LoadError::unsupported("image_grid_pinpoints", &value, &supported));
        }
        Ok(())
    }

    /// The canvas that shows most of a picture: transformers, `select_best_resolution`.
    fn canvas(&self, width: usize, height: usize) -> (usize, usize) {
        let fit = |&(high, wide): &(usize, usize)| {
            let scale = (wide as f64 / width as f64).min(high as f64 / height as f64);
            let scaled = |length: usize| (length as f64 * scale) as usize;
            let effective = (scaled(width) * scaled(height)).min(width * height);
            (effective, high * wide - effective)
        };
        let mut best = self.pinpoints[0];
        let mut found = fit(&best);
        for pinpoint in &self.pinpoints[1..] {
            let (effective, wasted) = fit(pinpoint);
            if effective > found.0 || effective == found.0 && wasted < found.1 {
                (best, found) = (*pinpoint, (effective, wasted));
            }
        }
        best
    }

    fn plan(&self, width: usize, height: usize) -> Plan {
        let (high, wide) = self.canvas(width, height);
        let (across, down) = (wide as f64 / width as f64, high as f64 / height as f64);
        let resized = if across < down {
            (wide, ((height as f64 * across).ceil() as usize).min(high))
        } else {
            (((width as f64 * down).ceil() as usize).min(wide), high)
        };
        let (rows, columns) = (high / self.side, wide / self.side);
        let (all_rows, all_columns) = (rows * self.patches, columns * self.patches);
        // transformers, `unpad_image`: from the original size, and on the grid of patches.
        let cut = |all: usize, length: usize, other: usize, of: usize| {
            let scale = other as f64 / of as f64;
            // Python's round(x, 7).
            let kept = ((length as f64 * scale * 1e7).round_ties_even() / 1e7) as usize;
            let cut = (all - kept.min(all)) / 2;
            (cut, all - cut)
        };
        let is_wide = width as f64 / height as f64 > all_columns as f64 / all_rows as f64;
        let (visible_rows, visible_columns) = if is_wide {
            (cut(all_rows, height, all_columns, width), (0, all_columns))
        } else {
            ((0, all_rows), cut(all_columns, width, all_rows, height))
        };
        Plan { rows, columns, resized, visible_rows, visible_columns }
    }

    /// Rows that a picture has.
    fn count(&self, plan: &Plan) -> usize {
        let length = |(from, to): (usize, usize)| to - from;
        self.patches * self.patches + length(plan.visible_rows) * (length(plan.visible_columns) + 1)
    }

    /// The rows of a picture whose crops begin at row `first`, the whole picture's first, with `newline` behind each row
    /// of the canvas.
    fn order(&self, plan: &Plan, first: usize, newline: usize) -> Vec<u32> {
        let side = self.patches;
        let mut order: Vec<u32> = (first..first + side * side).map(|row| row as u32).collect();
        for y in plan.visible_rows.0..plan.visible_rows.1 {
            for x in plan.visible_columns.0..plan.visible_columns.1 {
                let crop = 1 + y / side * plan.columns + x / side;
                order.push((first + (crop * side + y % side) * side + x % side) as u32);
            }
            order.push(newline as u32);
        }
        order
    }
}

#[derive(Debug)]
struct Tiles {
    grid: Grid,
    filter: Filter,
    levels: Levels,
    placeholder: u32,
}

impl Preprocess for Tiles {
    fn footprint(&self, size: MediaSize) -> Result<Footprint, SizeError> {
        let rows =
            size.picture().map_or(0, |(width, height)| self.grid.count(&self.grid.plan(width, height)));
        Ok(Footprint::line(vec![self.placeholder; rows]))
    }

    /// `[1 + tiles, 3, side, side]`, the whole picture first.
    fn run(&self, medium: Medium<'_>) -> Result<Tensor> {
        let picture = medium.picture()?;
        let (height, width, _) = picture.dims3()?;
        let side = self.grid.side;
        let plan = self.grid.plan(width, height);
        let (wide, high) = (plan.columns * side, plan.rows * side);
        let resized = stretch(picture, plan.resized.0, plan.resized.1, self.filter)?;
        let corner = ((wide - plan.resized.0) / 2, (high - plan.resized.1) / 2);
        let canvas = place(&resized, (wide, high), corner, 0)?;
        let whole = self.levels.numbers(&stretch(picture, side, side, self.filter)?)?.unsqueeze(0)?;
        Tensor::cat(&[&whole, &tiles(&self.levels.numbers(&canvas)?, side)?], 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn published() -> Grid {
        Grid {
            side: 336,
            patches: 24,
            pinpoints: vec![(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)],
        }
    }

    /// The reference's packing of a picture of 90 × 60 pixels, crop · 16 + patch, -1 for a line's end.
    #[test]
    fn rows_lie_as_in_the_reference() {
        let manifest = include_str!("../tests/fixtures/goldens/llava_next/manifest.json");
        let manifest: serde_json::Value = serde_json::from_str(manifest).expect("a manifest");
        let expected: Vec<i64> =
            serde_json::from_value(manifest["packing_order_land"]["rows"].clone()).expect("rows");
        let grid = Grid {
            side: 56,
            patches: 4,
            pinpoints: vec![(56, 112), (112, 56), (112, 112), (168, 56), (56, 168)],
        };
        let order = grid.order(&grid.plan(90, 60), 0, 1000);
        let order: Vec<i64> =
            order.into_iter().map(|row| if row == 1000 { -1 } else { i64::from(row) }).collect();
        assert_eq!(order, expected);
    }

    #[test]
    fn real_pictures_have_as_many_rows_as_in_the_reference() {
        let manifest = include_str!("../tests/fixtures/goldens/llava_next/manifest.json");
        let manifest: serde_json::Value = serde_json::from_str(manifest).expect("a manifest");
        let plans = manifest["real_size_plans"].as_array().expect("plans");
        assert_eq!(plans.len(), 15);
        let grid = published();
        for plan in plans {
            let number = |value: &serde_json::Value| value.as_u64().expect("a number") as usize;
            let (width, height) = (number(&plan["width"]), number(&plan["height"]));
            let found = grid.plan(width, height);
            assert_eq!(
                [found.rows, found.columns],
                [0, 1].map(|index| number(&plan["grid"][index])),
                "{plan}"
            );
            assert_eq!(grid.count(&found), number(&plan["tokens"]), "{plan}");
        }
    }
}
