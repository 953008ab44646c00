//! `percept pull`

use std::path::Path;

use clap::Args;

use super::progress;
use crate::{
    config::Settings,
    hub::{self, Source},
};

#[derive(Debug, Args)]
pub(super) struct Pull {
    /// A hub id such as llava-hf/llava-1.5-7b-hf or owner/name@revision
    #[arg(value_name = "HUB_ID")]
    model: String,
}

impl Pull {
    pub(super) fn run(&self, config: Option<&Path>) -> anyhow::Result<()> {
        let hub = Settings::default().complete(config)?.hub();
        let folder = match Source::parse(&self.model)? {
            Source::Folder(folder) => anyhow::bail!("{} is a folder already", folder.display()),
            Source::Embedded(demo) => anyhow::bail!("{} is part of the program already", demo.name()),
            Source::Hub(id) => hub::pull(&id, &hub, progress::bar)?,
        };
        println!("{}", folder.display());
        Ok(())
    }
}
