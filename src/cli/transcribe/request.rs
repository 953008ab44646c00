//! One recording, sent as a form while it is read, and what comes back.

use std::{
    io::{self, BufRead, BufReader, Cursor, Read},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde_json::Value;
use ureq::{Body, SendBody, http::Response};
use uuid::Uuid;

use super::{Client, Input};
use crate::cli::client::message;

/// How often a server that is busy is asked again.
const MOST_TRIES: usize = 30;

/// What is known of one recording's progress, on a terminal.
#[derive(Debug)]
pub(super) struct Bar {
    bar: ProgressBar,
    started: Instant,
}

impl Bar {
    pub(super) fn new(bars: &MultiProgress, input: &Input) -> Self {
        let style =
            ProgressStyle::with_template("{prefix} [{wide_bar}] {msg}").expect("the template is well formed");
        let bar = bars.add(ProgressBar::new(1).with_style(style.progress_chars("=> ")));
        let (_, name) = input.names();
        bar.set_prefix(name);
        bar.set_message("sending");
        Self { bar, started: Instant::now() }
    }

    /// Everything up to `seconds` is done.
    fn reach(&self, seconds: f64, duration: f64) {
        self.bar.set_length((duration * 1000.0) as u64);
        self.bar.set_position((seconds * 1000.0) as u64);
        let speed = seconds / self.started.elapsed().as_secs_f64().max(1e-9);
        self.bar.set_message(format!("{} of {}, {speed:.1} x real time", clock(seconds), clock(duration)));
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

fn clock(seconds: f64) -> String {
    let seconds = seconds as u64;
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Sends a recording, again where the server is busy, and reads its transcript.
pub(super) fn send(
    client: &Client,
    path: &str,
    fields: &[(&str, String)],
    input: &Input,
    bar: &Bar,
) -> anyhow::Result<Value> {
    let mut tries = 1;
    loop {
        let mut response = send_once(client, path, fields, input)?;
        if response.status().is_success() {
            bar.bar.set_message("listening");
            return receive(&mut response, bar);
        }
        let status = response.status().as_u16();
        // What came from standard input is gone.
        if [429, 503].contains(&status) && *input != Input::Stdin && tries < MOST_TRIES {
            let header = response.headers().get("retry-after").and_then(|seconds| seconds.to_str().ok());
            let seconds = header.and_then(|seconds| seconds.parse().ok()).unwrap_or(5u64).clamp(1, 60);
            bar.bar.set_message(format!("the server is busy, again in {seconds} s"));
            thread::sleep(Duration::from_secs(seconds));
            tries += 1;
            continue;
        }
        bail!(message(&response.body_mut().read_json().unwrap_or(Value::Null)));
    }
}

fn send_once(
    client: &Client,
    path: &str,
    fields: &[(&str, String)],
    input: &Input,
) -> anyhow::Result<Response<Body>> {
    let boundary = format!("percept-{}", Uuid::new_v4().simple());
    let (head, tail) = frame(&boundary, fields);
    let (content, length) = input.open().context("cannot read it")?;
    let url = format!("{}{path}", client.base);
    let mut request =
        client.agent.post(url).header("content-type", format!("multipart/form-data; boundary={boundary}"));
    let mut body: Box<dyn Read> = Box::new(content);
    if let Some(length) = length {
        request = request.header("content-length", (head.len() + tail.len()) as u64 + length);
        // A file that grows meanwhile must not make the body longer than it was said to be.
        body = Box::new(body.take(length));
    }
    let mut body = Cursor::new(head).chain(body).chain(Cursor::new(tail));
    request.send(SendBody::from_reader(&mut body)).with_context(|| format!("cannot reach {}", client.base))
}

/// What a form has in front of and behind the content of its file. The name of a file is its own business.
fn frame(boundary: &str, fields: &[(&str, String)]) -> (Vec<u8>, Vec<u8>) {
    let mut head = String::new();
    for (name, text) in fields {
        head += &format!("--{boundary}\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{text}\r\n");
    }
    head += &format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; filename=\"recording\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n"
    );
    (head.into_bytes(), format!("\r\n--{boundary}--\r\n").into_bytes())
}

/// A transcript: in pieces, or whole from a server that does not send pieces.
fn receive(response: &mut Response<Body>, bar: &Bar) -> anyhow::Result<Value> {
    let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok()).unwrap_or("");
    if !kind.starts_with("text/event-stream") {
        let body = response.body_mut().with_config().limit(u64::MAX).read_json();
        return body.context("the server sent something strange");
    }
    let mut last = None;
    for line in BufReader::new(response.body_mut().as_reader()).lines() {
        let line = line.map_err(broken_off)?;
        let Some(data) = line.strip_prefix("data:").map(str::trim) else { continue };
        if data == "[DONE]" {
            return last.context("the server sent no transcript");
        }
        let piece: Value = serde_json::from_str(data).context("the server sent something strange")?;
        if piece.get("error").is_some() {
            bail!(message(&piece));
        }
        if let (Some(seconds), Some(duration)) =
            (piece["segment"]["end"].as_f64(), piece["duration"].as_f64())
        {
            bar.reach(seconds, duration);
        }
        if piece["type"] == "transcript.text.done" {
            last = Some(piece.get("transcription").unwrap_or(&piece).clone());
        }
    }
    Err(broken_off(io::ErrorKind::UnexpectedEof.into()))
}

fn broken_off(error: io::Error) -> anyhow::Error {
    anyhow::Error::new(error).context("the answer broke off")
}
