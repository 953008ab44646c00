//! `percept keys`: who may use a server.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use jiff::{Timestamp, civil::Date, tz::TimeZone};
use serde_json::{Value, json};

use crate::{
    access::{KeyFile, Terms},
    config::Settings,
};

#[derive(Debug, Args)]
pub(super) struct Keys {
    /// The file of keys [default: that of the configuration file or of PERCEPT_KEYS]
    #[arg(long, global = true, value_name = "FILE")]
    keys: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key for a tenant, and say what the tenant may do
    ///
    /// The secret is printed once, and kept nowhere: the file has its hash. A tenant's keys share its limits; what is
    /// said here becomes the tenant's, and what is not said stays as it was.
    Add(Box<Add>),
    /// Show tenants, what they may do, and the names of their keys
    List {
        /// For programs
        #[arg(long)]
        json: bool,
    },
    /// Take a key out, or all keys of a tenant; a server that runs knows it within a second
    Revoke {
        /// A key's name, key_…, or a tenant's
        #[arg(value_name = "KEY_OR_TENANT")]
        name: String,
    },
}

#[derive(Debug, Args)]
struct Add {
    /// Letters, digits, '.', '_' and '-'
    tenant: String,
    #[command(flatten)]
    terms: Terms,
    /// The day (UTC) from which on the key is nobody's, such as 2027-06-30, or a time, such as 2027-06-30T12:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    expires: Option<Timestamp>,
}

fn moment(text: &str) -> Result<Timestamp, String> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let day: Date = text.parse().map_err(|_| "it is no day such as 2027-06-30".to_owned())?;
    day.to_zoned(TimeZone::UTC).map(|zoned| zoned.timestamp()).map_err(|error| error.to_string())
}

impl Keys {
    pub(super) fn run(self, config: Option<&Path>) -> anyhow::Result<()> {
        let file = match self.keys {
            Some(file) => file,
            None => Settings::default()
                .complete(config)?
                .keys
                .context("which file? Say it with --keys FILE, as percept serve has it")?,
        };
        match self.command {
            Command::Add(add) => {
                let Add { tenant, terms, expires } = *add;
                let (secret, id) = KeyFile::change(&file, |keys| keys.add(&tenant, terms, expires))?;
                eprintln!("{id} of {tenant}; the secret is not kept anywhere:");
                println!("{secret}");
            }
            Command::List { json: true } => println!("{:#}", described(&KeyFile::read(&file)?)?),
            Command::List { json: false } => list(&KeyFile::read(&file)?)?,
            Command::Revoke { name } => {
                let count = KeyFile::change(&file, |keys| keys.revoke(&name))?;
                eprintln!("{count} {} revoked", if count == 1 { "key is" } else { "keys are" });
            }
        }
        Ok(())
    }
}

/// All but hashes, which nobody needs.
fn described(file: &KeyFile) -> anyhow::Result<Value> {
    let keys = file.keys.iter().map(
        |key| json!({"id": key.id, "tenant": key.tenant, "created": key.created, "expires": key.expires}),
    );
    Ok(json!({"tenants": serde_json::to_value(&file.tenants)?, "keys": keys.collect::<Vec<_>>()}))
}

fn list(file: &KeyFile) -> anyhow::Result<()> {
    for (name, terms) in &file.tenants {
        let terms = toml::to_string(terms)?;
        let terms: Vec<&str> = terms.lines().collect();
        println!("{name}  {}", if terms.is_empty() { "no limits".to_owned() } else { terms.join(", ") });
        for key in file.keys.iter().filter(|key| key.tenant == *name) {
            let expires = key.expires.map(|expires| format!(", until {expires}")).unwrap_or_default();
            println!("  {}  since {:.0}{expires}", key.id, key.created);
        }
    }
    Ok(())
}
