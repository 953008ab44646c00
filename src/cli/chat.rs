//! `percept chat`: one question over HTTP, to a server that runs or to one of its own.

use std::{
    fs,
    io::{self, BufRead, BufReader, IsTerminal, Read, Write},
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::{log, progress};
use crate::{
    api::App,
    config::{LogFormat, Settings},
    router::Router,
    server,
};

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
            Some(model) => self.ask_own(model, config),
        }
    }

    /// Starts a server for this one question, on a port that nobody else has.
    fn ask_own(self, model: String, config: Option<&Path>) -> anyhow::Result<()> {
        let settings = Settings::default().complete(config)?;
        log(settings.log.as_deref().unwrap_or("warn"), LogFormat::Human)?;
        // This one has the name that the question may ask for; the file's names are for a server's models.
        let name = self.name.clone();
        let config = Settings { model: vec![model], name, alias: Vec::new(), ..settings }.resolve()?;
        let runtime = tokio::runtime::Runtime::new()?;
        let app = App::new(config.api);
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let url = format!("http://{}", listener.local_addr()?);
        let server = server::run(listener, Arc::clone(&app), std::future::pending(), config.drain);
        runtime.spawn(server);
        app.serve(Router::new(server::load(&config, progress::bar, progress::loading)?));
        let result = self.ask(&url);
        runtime.shutdown_background();
        result
    }

    fn ask(&self, url: &str) -> anyhow::Result<()> {
        let url = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let base = url.trim_end_matches('/').trim_end_matches("/v1");
        let mut agent = ureq::Agent::config_builder().http_status_as_error(false);
        if is_here(base) {
            // A proxy leads elsewhere.
            agent = agent.proxy(None);
        }
        let agent: ureq::Agent = agent.build().into();
        let model = match &self.name {
            Some(name) => name.clone(),
            None => first_chat_model(&agent, base)?,
        };
        let body = self.body(&model)?;
        let started = Instant::now();
        let mut response = agent
            .post(format!("{base}/v1/chat/completions"))
            .send_json(&body)
            .with_context(|| format!("cannot reach {base}"))?;
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

/// Whether a URL is one of this machine.
fn is_here(url: &str) -> bool {
    let Ok(url) = url.parse::<ureq::http::Uri>() else { return false };
    let host = url.host().unwrap_or("");
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost")
        || address.is_ok_and(|address| address.is_loopback() || address.is_unspecified())
}

fn first_chat_model(agent: &ureq::Agent, base: &str) -> anyhow::Result<String> {
    let mut response = agent.get(format!("{base}/v1/models")).call().with_context(|| {
        format!("no server at {base}: start one with percept serve, or load a model with --model")
    })?;
    let list: Value = response.body_mut().read_json().context("that is no OpenAI server")?;
    if !response.status().is_success() {
        bail!(message(&list));
    }
    pick(&list).context("the server has no model to chat with; --name asks one nevertheless")
}

/// The first model of a list that is not known to be for speech. Other servers do not say what theirs are for.
fn pick(list: &Value) -> Option<String> {
    let models = list["data"].as_array()?;
    let model = models.iter().find(|model| model["task"] != "automatic-speech-recognition")?;
    model["id"].as_str().map(str::to_owned)
}

/// The message of an API error.
fn message(body: &Value) -> String {
    body["error"]["message"].as_str().unwrap_or("the server gave an error without a message").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_model_for_chat_is_asked() {
        let speech = json!({"id": "a", "task": "automatic-speech-recognition"});
        let chat = json!({"id": "b", "task": "image-text-to-text"});
        let other = json!({"id": "c"});
        for (models, expected) in [
            (vec![&chat, &other], Some("b")),
            (vec![&speech, &chat], Some("b")),
            (vec![&speech, &other], Some("c")),
            (vec![&speech], None),
            (vec![], None),
        ] {
            assert_eq!(pick(&json!({"data": models})).as_deref(), expected, "{models:?}");
        }
        assert_eq!(pick(&json!({"models": [chat]})), None);
    }

    #[test]
    fn this_machine_is_known_by_all_its_names() {
        for url in [
            "http://127.0.0.1:8000",
            "http://localhost",
            "http://LOCALHOST:1",
            "http://[::1]",
            "http://[::1]:8000",
            "http://0.0.0.0:8000",
        ] {
            assert!(is_here(url), "{url}");
        }
        for url in ["http://10.0.0.1:8000", "https://example.com", "http://localhost.example.com", "http:// "]
        {
            assert!(!is_here(url), "{url}");
        }
    }
}
