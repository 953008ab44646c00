//! `percept demo`: a server with the program's own models, asked over HTTP as a client would, and left running.

use std::{
    env,
    io::{self, IsTerminal, Write},
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Args;
use serde_json::json;
use tokio::{net::TcpListener, task::JoinHandle};

use super::{
    client::{ApiKey, Client},
    log, progress,
    serve::stop_signal,
    transcribe,
};
use crate::{
    api::App,
    config::{LogFormat, Settings},
    demo::{self, Demo as Model},
    router::Router,
    server,
};

/// Columns of the picture on a terminal.
const COLUMNS: u32 = 44;

#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Port of the server; where it is taken, a free one
    #[arg(long, short, value_name = "PORT", default_value = "8000")]
    port: u16,
    /// End after the answers
    #[arg(long)]
    once: bool,
}

impl Demo {
    pub(super) fn run(&self) -> anyhow::Result<()> {
        log("warn", LogFormat::Human)?;
        let runtime = tokio::runtime::Runtime::new()?;
        let result = runtime.block_on(self.show());
        runtime.shutdown_background();
        result
    }

    async fn show(&self) -> anyhow::Result<()> {
        let started = Instant::now();
        let (url, mut running) = serve(self.port).await?;
        let mut out = io::stdout();
        writeln!(
            out,
            "percept {} serves two small models of its own on {url}, on this machine alone ({:.1} s)\n",
            env!("CARGO_PKG_VERSION"),
            started.elapsed().as_secs_f64()
        )?;
        let once = self.once || !out.is_terminal();
        let base = url.clone();
        let asked = tokio::task::spawn_blocking(move || ask(&Client::new(&base, &ApiKey::default())));
        tokio::select! {
            result = asked => result??,
            // Stopped meanwhile.
            ended = &mut running => return Ok(ended??),
        }
        writeln!(out, "{}", next(&url, once))?;
        if once { Ok(()) } else { Ok(running.await??) }
    }
}

/// Starts a server on this machine, on a port where it can; its URL, and what ends with it.
async fn serve(port: u16) -> anyhow::Result<(String, JoinHandle<io::Result<()>>)> {
    // What is set for servers is not meant for this one.
    let config = Settings::default().resolve()?;
    let here = Ipv4Addr::LOCALHOST;
    let listener = match TcpListener::bind((here, port)).await {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => TcpListener::bind((here, 0)).await?,
        listener => listener?,
    };
    let url = format!("http://{}", listener.local_addr()?);
    let app = App::new(config.api.clone());
    // Whoever asked for an end does not want to wait for it.
    let drain = Duration::from_secs(1);
    let running = tokio::spawn(server::run(listener, Arc::clone(&app), stop_signal()?, drain));
    let load = move || server::load(&config, progress::bar, progress::loading);
    app.serve(Router::new(tokio::task::spawn_blocking(load).await??));
    Ok((url, running))
}

/// Shows both models something, and what they say to it.
fn ask(client: &Client) -> anyhow::Result<()> {
    let mut out = io::stdout();
    writeln!(out, "1. A picture, and a question about it: {}\n", demo::QUESTION)?;
    let colours = Colours::of(&out);
    match colours {
        Colours::None => writeln!(out, "   ({})\n", demo::PICTURE_SHOWS)?,
        colours => writeln!(out, "{}", blocks(demo::PICTURE, colours)?)?,
    }
    let model = Model::Vlm.name();
    let url = format!("data:image/png;base64,{}", STANDARD.encode(demo::PICTURE));
    let content = json!([
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": demo::QUESTION},
    ]);
    let body = json!({
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "temperature": 0,
        "max_completion_tokens": 64,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    write!(out, "   ")?;
    let pace = client.chat(&body, |text| {
        write!(out, "{text}")?;
        out.flush()
    })?;
    writeln!(out, "\n   {model}: {pace}\n")?;

    writeln!(out, "2. A recording\n")?;
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(demo::RECORDING)?;
    let model = Model::Whisper.name();
    let started = Instant::now();
    let transcript = transcribe::transcript(client, model, file.path())?;
    let took = started.elapsed().as_secs_f64().max(1e-9);
    for segment in transcript["segments"].as_array().into_iter().flatten() {
        let [start, end] = ["start", "end"].map(|name| segment[name].as_f64().unwrap_or(0.0));
        writeln!(out, "   {start:5.2} to {end:5.2} s {}", segment["text"].as_str().unwrap_or(""))?;
    }
    let seconds = transcript["duration"].as_f64().unwrap_or(0.0);
    let speed = seconds / took;
    writeln!(out, "   {model}: {seconds:.1} s in {took:.2} s, {speed:.1} seconds of sound per second\n")?;
    Ok(())
}

/// What to try now.
fn next(url: &str, ended: bool) -> String {
    let real = format!(
        "These models are for trying it out: one knows drawings of coloured shapes and single characters, the other \
         some\n140 English words. For real ones:\n\n   {}\n",
        demo::INSTEAD
    );
    if ended {
        return real;
    }
    format!(
        "It is your turn; the server runs until Ctrl-C:\n\n   open {url}/ in a browser\n\n   from Python, with pip install \
         openai:\n      client = openai.OpenAI(base_url=\"{url}/v1\", api_key=\"none\")\n      answer = \
         client.chat.completions.create(model=\"{}\", messages=…)\n\n{real}",
        Model::Vlm.name()
    )
}

/// How a terminal shows colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Colours {
    None,
    /// The 216 of the cube.
    Few,
    All,
}

impl Colours {
    fn of(out: &impl IsTerminal) -> Self {
        let set = |name| env::var(name).unwrap_or_default();
        let plain = ["", "dumb"].contains(&set("TERM").as_str());
        if !out.is_terminal() || plain || !set("NO_COLOR").is_empty() {
            return Self::None;
        }
        if ["truecolor", "24bit"].contains(&set("COLORTERM").as_str()) { Self::All } else { Self::Few }
    }

    fn code(self, [red, green, blue]: [u8; 3]) -> String {
        let step = |value: u8| (u16::from(value) * 5 + 127) / 255;
        match self {
            Self::All => format!("2;{red};{green};{blue}"),
            Self::None | Self::Few => format!("5;{}", 16 + 36 * step(red) + 6 * step(green) + step(blue)),
        }
    }
}

/// A picture as lines of half blocks, each of which has two pixels.
fn blocks(file: &[u8], colours: Colours) -> anyhow::Result<String> {
    let picture = image::load_from_memory(file)?;
    let rows = COLUMNS * picture.height() / picture.width() / 2;
    let small = picture.resize_exact(COLUMNS, 2 * rows, image::imageops::FilterType::Triangle).to_rgb8();
    let mut text = String::new();
    for row in 0..rows {
        text += "   ";
        for column in 0..COLUMNS {
            let [upper, lower] = [0, 1].map(|half| colours.code(small.get_pixel(column, 2 * row + half).0));
            text += &format!("\x1b[38;{upper};48;{lower}m\u{2580}");
        }
        text += "\x1b[0m\n";
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_shown_in_the_colours_that_a_terminal_has() {
        // Red above, blue below: the upper half of a block is its text's colour, the lower half its background.
        let mut picture = image::RgbImage::from_pixel(COLUMNS, 2, image::Rgb([255, 0, 0]));
        (0..COLUMNS).for_each(|column| picture.put_pixel(column, 1, image::Rgb([0, 0, 255])));
        let mut file = io::Cursor::new(Vec::new());
        picture.write_to(&mut file, image::ImageFormat::Png).unwrap();
        for (colours, expected) in [
            (Colours::All, "\x1b[38;2;255;0;0;48;2;0;0;255m\u{2580}"),
            (Colours::Few, "\x1b[38;5;196;48;5;21m\u{2580}"),
        ] {
            let text = blocks(&file.clone().into_inner(), colours).unwrap();
            assert_eq!(text, format!("   {}\x1b[0m\n", expected.repeat(COLUMNS as usize)));
        }
    }
}
