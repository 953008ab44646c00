//! `percept chat`: one question over HTTP, to a server that runs or to one of its own.

use std::{
    fs,
    io::{self, BufRead, BufReader, IsTerminal, Read, Write},
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args;
use serde_json::{Value, json};

use super::client::{Client, Own, OwnModel, message};
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
        let client = Client::new(url);
        let model = match &self.name {
            Some(name) => name.clone(),
            None => client.first_model(Kind::Chat)?,
        };
        let body = self.body(&model)?;
        let started = Instant::now();
        let mut response = client
            .agent
            .post(format!("{}/v1/chat/completions", client.base))
            .send_json(&body)
            .with_context(|| format!("cannot reach {}", client.base))?;
        if !response.status().is_success() {
            bail!(message(&response.body_mut().read_json().unwrap_or(Value::Null)));
        }
        let mut out = io::stdout().lock();
        let mut first = None;
        let mut tokens = 0;
        let mut done = false;
        for line in BufReader::new(response.body_mut().as_reader()).lines() {
            let line = line.context("the answer broke off")?;
            let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
            if data == "[DONE]" {
                done = true;
                break;
            }
            let piece: Value = serde_json::from_str(data).context("the server sent something strange")?;
            if piece.get("error").is_some() {
                bail!(message(&piece));
            }
            if let Some(text) =
                piece["choices"][0]["delta"]["content"].as_str().filter(|text| !text.is_empty())
            {
                first.get_or_insert_with(|| started.elapsed());
                write!(out, "{text}")?;
                out.flush()?;
            }
            tokens = piece["usage"]["completion_tokens"].as_u64().unwrap_or(tokens);
        }
        writeln!(out)?;
        if !done {
            bail!("the answer broke off");
        }
        if io::stderr().is_terminal() {
            let first = first.unwrap_or_default().as_secs_f64();
            let rest = (started.elapsed().as_secs_f64() - first).max(1e-9);
            let speed = tokens.saturating_sub(1) as f64 / rest;
            eprintln!("{model}: {tokens} tokens, the first after {first:.2} s, then {speed:.1} a second");
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
