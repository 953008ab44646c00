//! `percept chat`: one question over HTTP, to a server that runs or to one of its own.

use std::{
    fs,
    io::{self, IsTerminal, Read, Write},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args;
use serde_json::{Value, json};

use super::client::{ApiKey, Client, Own, OwnModel};
use crate::router::Kind;

#[derive(Debug, Args)]
pub(super) struct Chat {
    /// What to ask
    question: String,
    /// A picture to ask about; may be repeated
    #[arg(long, short, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Add what is on standard input to the question
    #[arg(long)]
    stdin: bool,
    /// What the model should know or be, as a system message
    #[arg(long, short, value_name = "TEXT")]
    system: Option<String>,
    /// A server that is running
    #[arg(
        long,
        short,
        value_name = "URL",
        default_value = "http://127.0.0.1:8000",
        conflicts_with = "model"
    )]
    url: String,
    #[command(flatten)]
    key: ApiKey,
    /// A checkpoint folder or hub id to load for this question, instead of asking a server
    #[arg(long, short, value_name = "PATH_OR_HUB_ID")]
    model: Option<String>,
    /// Random weights for --model instead of the checkpoint's, to measure a machine; answers mean nothing
    #[arg(long, requires = "model")]
    dummy_weights: bool,
    /// The name of the model to ask, where a server has several
    #[arg(long, short, value_name = "NAME")]
    name: Option<String>,
    /// 0 always takes the most probable word; higher is more varied
    #[arg(long, short, value_name = "0..2", allow_negative_numbers = true)]
    temperature: Option<f64>,
    /// Most tokens of the answer
    #[arg(long, value_name = "COUNT")]
    max_tokens: Option<u64>,
    /// The same seed gives the same answer
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    seed: Option<i64>,
}

impl Chat {
    pub(super) fn run(self, config: Option<&Path>) -> anyhow::Result<()> {
        match self.model.clone() {
            None => self.ask(&self.url),
            Some(model) => {
                let (name, dummy_weights) = (self.name.clone(), self.dummy_weights);
                let own = Own::start(OwnModel { model, name, dummy_weights }, config)?;
                let result = self.ask(&own.url);
                own.stop();
                result
            }
        }
    }

    fn ask(&self, url: &str) -> anyhow::Result<()> {
        let client = Client::new(url, &self.key);
        let model = match &self.name {
            Some(name) => name.clone(),
            None => client.first_model(Kind::Chat)?,
        };
        let body = self.body(&model)?;
        let mut out = io::stdout().lock();
        let pace = client.chat(&body, |text| {
            write!(out, "{text}")?;
            out.flush()
        })?;
        writeln!(out)?;
        if io::stderr().is_terminal() {
            eprintln!("{model}: {pace}");
        }
        Ok(())
    }

    fn body(&self, model: &str) -> anyhow::Result<Value> {
        let mut question = self.question.clone();
        if self.stdin {
            question.push('\n');
            io::stdin().read_to_string(&mut question).context("cannot read standard input")?;
        }
        let mut parts = Vec::with_capacity(self.image.len() + 1);
        for file in &self.image {
            let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            // The server tells the format by the content.
            let url = format!("data:image/*;base64,{}", STANDARD.encode(bytes));
            parts.push(json!({"type": "image_url", "image_url": {"url": url}}));
        }
        parts.push(json!({"type": "text", "text": question}));
        let mut messages = Vec::new();
        if let Some(system) = &self.system {
            messages.push(json!({"role": "system", "content": system}));
        }
        messages.push(json!({"role": "user", "content": parts}));
        Ok(json!({
            "model": model,
            "messages": messages,
            "stream": true,
            "stream_options": {"include_usage": true},
            "temperature": self.temperature,
            "max_completion_tokens": self.max_tokens,
            "seed": self.seed,
        }))
    }
}
