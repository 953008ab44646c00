//! How commands ask a server: one that runs, or one of their own.

use std::{
    fmt,
    io::{self, BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use clap::Args;
use serde_json::Value;
use tokio::{net::TcpListener, runtime::Runtime};
use ureq::{
    SendBody,
    http::{HeaderValue, Request, header::AUTHORIZATION},
    middleware::MiddlewareNext,
};

use super::{log, progress};
use crate::{
    api::App,
    bench::client::base_of,
    config::{LogFormat, Settings},
    router::{Kind, Router},
    server,
};

/// The key for a server.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct ApiKey {
    /// The key for the server; better given in the environment, where others do not see it
    #[arg(long, env = "OPENAI_API_KEY", hide_env_values = true, value_name = "KEY", help_heading = "Who")]
    api_key: Option<String>,
}

/// A server that can be asked.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) agent: ureq::Agent,
    /// Its URL, without `/v1`.
    pub(super) base: String,
}

impl Client {
    /// The server at a URL, as people write them.
    pub(super) fn new(url: &str, key: &ApiKey) -> Self {
        let base = base_of(url);
        let mut agent = ureq::Agent::config_builder().http_status_as_error(false);
        if is_here(&base) {
            // A proxy leads elsewhere.
            agent = agent.proxy(None);
        }
        // What cannot be a header is no key, and is answered so.
        let bearer = key.api_key.as_ref().filter(|key| !key.is_empty());
        let bearer = bearer.and_then(|key| HeaderValue::try_from(format!("Bearer {key}")).ok());
        if let Some(bearer) = bearer {
            agent = agent.middleware(move |mut request: Request<SendBody<'_>>, next: MiddlewareNext<'_>| {
                request.headers_mut().insert(AUTHORIZATION, bearer.clone());
                next.handle(request)
            });
        }
        Self { agent: agent.build().into(), base }
    }

    /// The first of the server's models that is of a kind, or does not say what it is for.
    pub(super) fn first_model(&self, kind: Kind) -> anyhow::Result<String> {
        let base = &self.base;
        let mut response = self.agent.get(format!("{base}/v1/models")).call().with_context(|| {
            format!("no server at {base}: start one with percept serve, or load a model with --model")
        })?;
        let list: Value = response.body_mut().read_json().context("that is no OpenAI server")?;
        if !response.status().is_success() {
            bail!(message(&list));
        }
        pick(&list, kind).with_context(|| {
            let name = kind.name();
            format!("the server has no {name} model: serve one with percept serve; --name asks another nevertheless")
        })
    }

    /// Asks for an answer in pieces, which `show` gets as they come.
    pub(super) fn chat(
        &self,
        body: &Value,
        mut show: impl FnMut(&str) -> io::Result<()>,
    ) -> anyhow::Result<Pace> {
        let started = Instant::now();
        let sent = self.agent.post(format!("{}/v1/chat/completions", self.base)).send_json(body);
        let mut response = sent.with_context(|| format!("cannot reach {}", self.base))?;
        if !response.status().is_success() {
            bail!(message(&response.body_mut().read_json().unwrap_or(Value::Null)));
        }
        let mut first = None;
        let mut tokens = 0;
        for line in BufReader::new(response.body_mut().as_reader()).lines() {
            let line = line.context("the answer broke off")?;
            let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
            if data == "[DONE]" {
                let first = first.unwrap_or_else(|| started.elapsed());
                return Ok(Pace { tokens, first, rest: started.elapsed().saturating_sub(first) });
            }
            let piece: Value = serde_json::from_str(data).context("the server sent something strange")?;
            if piece.get("error").is_some() {
                bail!(message(&piece));
            }
            let text = piece["choices"][0]["delta"]["content"].as_str().unwrap_or("");
            if !text.is_empty() {
                first.get_or_insert_with(|| started.elapsed());
                show(text)?;
            }
            tokens = piece["usage"]["completion_tokens"].as_u64().unwrap_or(tokens);
        }
        bail!("the answer broke off")
    }
}

/// How fast an answer came.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    tokens: u64,
    /// To the first token.
    first: Duration,
    /// From there to the end.
    rest: Duration,
}

impl fmt::Display for Pace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tokens, first, rest } = self;
        let speed = tokens.saturating_sub(1) as f64 / rest.as_secs_f64().max(1e-9);
        let first = first.as_secs_f64();
        write!(formatter, "{tokens} tokens, the first after {first:.2} s, then {speed:.1} a second")
    }
}

/// The first model of a list that is of a kind, as far as it says. Other servers do not say what theirs are for.
fn pick(list: &Value, kind: Kind) -> Option<String> {
    let models = list["data"].as_array()?;
    let model = models.iter().find(|model| model.get("task").is_none_or(|task| task == kind.task()))?;
    model["id"].as_str().map(str::to_owned)
}

/// A server of one command, on a port that nobody else has. Ends with it.
#[derive(Debug)]
pub(super) struct Own {
    runtime: Runtime,
    pub(super) url: String,
}

/// What a server of one command serves.
#[derive(Debug)]
pub(super) struct OwnModel {
    /// A folder or a hub id.
    pub(super) model: String,
    /// What it is called, where that is said.
    pub(super) name: Option<String>,
    /// Whether its weights are random ones.
    pub(super) dummy_weights: bool,
}

impl Own {
    /// Loads a model and serves it.
    pub(super) fn start(own: OwnModel, config: Option<&Path>) -> anyhow::Result<Self> {
        let OwnModel { model, name, dummy_weights } = own;
        let settings = Settings::default().complete(config)?;
        log(settings.log.as_deref().unwrap_or("warn"), LogFormat::Human)?;
        // The file's names are for a server's models.
        let dummy_weights = Some(dummy_weights).filter(|dummy| *dummy).or(settings.dummy_weights);
        let config =
            Settings { model: vec![model], name, alias: Vec::new(), dummy_weights, ..settings }.resolve()?;
        let runtime = Runtime::new()?;
        let app = App::new(config.api.clone());
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let url = format!("http://{}", listener.local_addr()?);
        let server = server::run(listener, Arc::clone(&app), std::future::pending(), config.drain);
        runtime.spawn(server);
        app.serve(Router::new(server::load(&config, progress::bar, progress::loading)?));
        Ok(Self { runtime, url })
    }

    pub(super) fn stop(self) {
        self.runtime.shutdown_background();
    }
}

/// The message of an API error.
pub(super) fn message(body: &Value) -> String {
    body["error"]["message"].as_str().unwrap_or("the server gave an error without a message").to_owned()
}

/// Whether a URL is one of this machine.
pub(super) fn is_here(url: &str) -> bool {
    let Ok(url) = url.parse::<ureq::http::Uri>() else { return false };
    let host = url.host().unwrap_or("");
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host.eq_ignore_ascii_case("localhost")
        || address.is_ok_and(|address| address.is_loopback() || address.is_unspecified())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

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

    #[test]
    fn the_first_model_for_a_task_is_asked() {
        let speech = json!({"id": "a", "task": Kind::Speech.task()});
        let chat = json!({"id": "b", "task": Kind::Chat.task()});
        let other = json!({"id": "c"});
        for (models, for_chat, for_speech) in [
            (vec![&chat, &other], Some("b"), Some("c")),
            (vec![&speech, &chat], Some("b"), Some("a")),
            (vec![&speech, &other], Some("c"), Some("a")),
            (vec![&speech], None, Some("a")),
            (vec![], None, None),
        ] {
            let list = json!({"data": models});
            assert_eq!(pick(&list, Kind::Chat).as_deref(), for_chat, "{models:?}");
            assert_eq!(pick(&list, Kind::Speech).as_deref(), for_speech, "{models:?}");
        }
        assert_eq!(pick(&json!({"models": [chat]}), Kind::Chat), None);
    }

    #[test]
    fn urls_are_taken_as_people_write_them() {
        for (url, base) in [
            ("http://a:1", "http://a:1"),
            ("http://a:1/", "http://a:1"),
            ("http://a:1/v1/", "http://a:1"),
            ("a:1/v1", "http://a:1"),
            ("https://a/b/v1", "https://a/b"),
        ] {
            assert_eq!(Client::new(url, &ApiKey::default()).base, base);
        }
    }
}
