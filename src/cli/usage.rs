//! `percept usage`: how much was used, by whom.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use clap::Args;
use jiff::{civil::Date, tz::TimeZone};
use serde_json::{Value, json};

use super::{
    audit::folder,
    client::{ApiKey, Client, message},
};
use crate::{
    access::today,
    operations::{Totals, audit},
};

#[derive(Debug, Args)]
pub(super) struct Usage {
    /// A server that is running
    #[arg(long, short, value_name = "URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    #[command(flatten)]
    key: ApiKey,
    /// The folder of an audit log, to be read instead of asking a server
    #[arg(long, value_name = "FOLDER", conflicts_with = "url")]
    audit: Option<PathBuf>,
    /// The first day (UTC), such as 2026-11-01 [default: the first of the month]
    #[arg(long, value_name = "DAY")]
    from: Option<Date>,
    /// The last day (UTC) [default: today]
    #[arg(long, value_name = "DAY")]
    to: Option<Date>,
    /// Of this tenant only
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// A row's numbers, in the order of the table.
const COLUMNS: [&str; 8] = [
    "requests",
    "errors",
    "prompt_tokens",
    "completion_tokens",
    "images",
    "audio_seconds",
    "compute_seconds",
    "cost",
];

impl Usage {
    pub(super) fn run(self, config: Option<&Path>) -> anyhow::Result<()> {
        let list = match &self.audit {
            Some(_) => self.read(config)?,
            None => self.ask()?,
        };
        if self.json {
            println!("{list:#}");
            return Ok(());
        }
        let rows = list["data"].as_array().context("that is no server of percept's")?;
        let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        println!(
            "{:<10}  {:<16}  {:<32}  {}",
            "date",
            "tenant",
            "model",
            COLUMNS.map(|name| format!("{name:>17}")).concat()
        );
        for row in rows {
            let numbers = numbers(row);
            println!(
                "{:<10}  {:<16}  {:<32}  {numbers}",
                text(&row["date"]),
                text(&row["tenant"]),
                text(&row["model"])
            );
        }
        println!(
            "{:<10}  {:<16}  {:<32}  {}",
            "all",
            "",
            list["currency"].as_str().unwrap_or(""),
            numbers(&list["total"])
        );
        Ok(())
    }

    fn ask(&self) -> anyhow::Result<Value> {
        let client = Client::new(&self.url, &self.key);
        let mut request = client.agent.get(format!("{}/v1/usage", client.base));
        let days =
            [("from", self.from.map(|day| day.to_string())), ("to", self.to.map(|day| day.to_string()))];
        for (name, value) in days.into_iter().chain([("tenant", self.tenant.clone())]) {
            if let Some(value) = value {
                request = request.query(name, value);
            }
        }
        let mut response = request.call().with_context(|| format!("no server at {}", client.base))?;
        let list: Value = response.body_mut().read_json().context("that is no server of percept's")?;
        if !response.status().is_success() {
            bail!(message(&list));
        }
        Ok(list)
    }

    /// The same from the log, which goes back further.
    fn read(&self, config: Option<&Path>) -> anyhow::Result<Value> {
        let folder = folder(self.audit.clone(), config)?.context("which folder?")?;
        let to = self.to.unwrap_or_else(today);
        let from = self.from.unwrap_or_else(|| to.first_of_month());
        let mut days: BTreeMap<_, Totals> = BTreeMap::new();
        let mut total = Totals::default();
        audit::entries(&folder, Some(from), |entry| {
            let day = entry.time.to_zoned(TimeZone::UTC).date();
            let wanted = self.tenant.as_ref().is_none_or(|tenant| entry.tenant.as_ref() == Some(tenant));
            if wanted && (from..=to).contains(&day) {
                days.entry((day, entry.tenant, entry.model)).or_default().add(entry.outcome, &entry.used);
                total.add(entry.outcome, &entry.used);
            }
        })?;
        let rows = days.into_iter().map(|((day, tenant, model), totals)| {
            let mut row =
                json!({"object": "usage", "date": day.to_string(), "tenant": tenant, "model": model});
            extend(&mut row, &totals);
            row
        });
        let data: Vec<Value> = rows.collect();
        let mut all = json!({});
        extend(&mut all, &total);
        let (from, to) = (from.to_string(), to.to_string());
        Ok(json!({"object": "list", "from": from, "to": to, "currency": null, "data": data, "total": all}))
    }
}

fn extend(row: &mut Value, totals: &Totals) {
    let used = &totals.used;
    row["requests"] = totals.requests.into();
    row["errors"] = totals.errors.into();
    row["prompt_tokens"] = used.prompt_tokens.into();
    row["cached_tokens"] = used.cached_tokens.into();
    row["completion_tokens"] = used.completion_tokens.into();
    row["images"] = used.images.into();
    row["audio_seconds"] = used.audio_seconds.into();
    row["compute_seconds"] = used.compute_seconds.into();
    row["cost"] = used.cost.into();
}

fn numbers(row: &Value) -> String {
    let number = |name: &str| match (&row[name], row[name].as_f64()) {
        (Value::Number(whole), _) if whole.is_u64() => format!("{whole:>17}"),
        (_, Some(number)) => format!("{number:>17.4}"),
        _ => format!("{:>17}", "-"),
    };
    COLUMNS.map(number).concat()
}
