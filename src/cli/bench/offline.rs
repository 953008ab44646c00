//! `percept bench --offline`: a network in this process.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use percept_models::Checkpoint;
use serde::Deserialize;

use crate::{
    bench::{
        offline::{self, Subject, Timing},
        report::Measured,
        workload::Size,
    },
    cli::{log, progress},
    config::{Dtype, LogFormat, Settings, Text},
    device::DeviceChoice,
    memory::Budget,
    server::{self, Network},
};

use super::OFFLINE;

#[derive(Debug, Args)]
pub(super) struct Offline {
    /// Time the parts of this network in this process, instead of asking a server
    #[arg(long, value_name = "PATH_OR_HUB_ID", conflicts_with_all = ["model", "image", "sound", "audio", "rate", "concurrency", "gpu", "price", "svg"], help_heading = OFFLINE)]
    offline: Option<String>,
    /// Where to compute: cpu, cuda, or cuda:1 for the second GPU [default: as percept serve]
    #[arg(long, value_name = "DEVICE", requires = "offline", help_heading = OFFLINE)]
    device: Option<Text<DeviceChoice>>,
    /// The type of weights and activations [default: bf16 on a GPU, f32 on the CPU]
    #[arg(long, value_name = "TYPE", requires = "offline", help_heading = OFFLINE)]
    dtype: Option<Dtype>,
    /// Random weights instead of the checkpoint's, which need not be there
    #[arg(long, requires = "offline", help_heading = OFFLINE)]
    dummy_weights: bool,
    /// Tokens that a sequence has when it is decoded, and that are prefilled [default: 512]
    #[arg(long, value_name = "TOKENS", requires = "offline", value_parser = clap::value_parser!(u32).range(2..), help_heading = OFFLINE)]
    context: Option<u32>,
    /// Sequences of decode steps [default: 1,2,4,8,16,32,64,128,256]
    #[arg(long, value_name = "COUNTS", requires = "offline", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=65_536), help_heading = OFFLINE)]
    batch: Vec<u32>,
    /// How much memory may be used: a share, such as 0.8, or a size, such as 20GiB [default: 0.9 of a GPU, 0.5 of
    /// what is free on this machine]
    #[arg(long, value_name = "SHARE_OR_SIZE", requires = "offline", help_heading = OFFLINE)]
    memory: Option<Text<Budget>>,
    /// How long each part is repeated [default: 1]
    #[arg(long, value_name = "SECONDS", requires = "offline", value_parser = super::seconds, help_heading = OFFLINE)]
    each: Option<f64>,
}

impl Offline {
    /// Times a network, if one was named. Figures, and what a reader must know.
    pub(super) fn run(
        &self,
        config: Option<&Path>,
        sizes: &[Size],
    ) -> anyhow::Result<Option<(Measured, Vec<String>)>> {
        let Some(model) = &self.offline else { return Ok(None) };
        let settings = Settings::default().complete(config)?;
        log(settings.log.as_deref().unwrap_or("error"), LogFormat::Human)?;
        let settings = Settings {
            model: vec![model.clone()],
            name: None,
            alias: Vec::new(),
            device: self.device.clone().or(settings.device.clone()),
            dtype: self.dtype.or(settings.dtype),
            memory: self.memory.clone().or(settings.memory.clone()),
            dummy_weights: Some(self.dummy_weights).filter(|dummy| *dummy).or(settings.dummy_weights),
            ..settings
        };
        let config = settings.resolve()?;
        let network = server::load_network(&config, progress::bar, progress::loading)?;
        let Network { checkpoint, loaded, budget } = network;
        let subject = Subject {
            name: model.clone(),
            dummy_weights: config.models[0].dummy_weights,
            uses: percept_models::weight_uses(&checkpoint)?,
            patch: patch(&checkpoint)?,
            loaded: &loaded,
        };
        let square = |edge| Size { width: edge, height: edge };
        let timing = Timing {
            context: self.context.unwrap_or(512) as usize,
            batches: match &self.batch[..] {
                [] => (0..=8).map(|power| 1 << power).collect(),
                given => given.iter().map(|&count| count as usize).collect(),
            },
            sizes: if sizes.is_empty() { vec![square(336), square(1024)] } else { sizes.to_vec() },
            each: Duration::from_secs_f64(self.each.unwrap_or(1.0)),
            // A filled layer is there twice for a moment, and steps have activations.
            cache_bytes: budget.saturating_sub(loaded.weight_bytes) / 4 * 3,
        };
        let bar = ProgressBar::new_spinner();
        bar.set_style(ProgressStyle::with_template("{spinner} {msg}").expect("the template is well formed"));
        let result = offline::run(&subject, &timing, &mut |stage| {
            bar.set_message(stage.to_owned());
            bar.tick();
        });
        bar.finish_and_clear();
        let (figures, warnings) = result.with_context(|| format!("cannot time {model}"))?;
        Ok(Some((Measured::Offline(Box::new(figures)), warnings)))
    }
}

/// Numbers that a patch of the tower takes, as far as the configuration tells.
fn patch(checkpoint: &Checkpoint) -> anyhow::Result<Option<usize>> {
    #[derive(Deserialize)]
    struct Config {
        vision_config: Option<Vision>,
    }
    #[derive(Deserialize)]
    struct Vision {
        patch_size: Option<usize>,
        temporal_patch_size: Option<usize>,
    }
    let config: Config = checkpoint.config()?;
    let patch = config.vision_config.and_then(|vision| {
        let frames = vision.temporal_patch_size.unwrap_or(1);
        vision.patch_size.map(|side| 3 * side * side * frames)
    });
    Ok(patch.filter(|patch| *patch > 0))
}
