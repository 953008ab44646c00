//! `percept pull`

use clap::Args;

use super::progress;
use crate::hub::{self, HubConfig, Source};

#[derive(Debug, Args)]
pub(super) struct Pull {
    /// A hub id such as llava-hf/llava-1.5-7b-hf or owner/name@revision
    #[arg(value_name = "HUB_ID")]
    model: String,
}

impl Pull {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        let folder = match Source::parse(&self.model)? {
            Source::Folder(folder) => anyhow::bail!("{} is a folder already", folder.display()),
            Source::Hub(id) => hub::pull(&id, &HubConfig::from_environment(), progress::bar)?,
        };
        println!("{}", folder.display());
        Ok(())
    }
}
