//! `percept serve`

use std::{
    io::{self, Write as _},
    path::Path,
    sync::Arc,
};

use anyhow::{Context as _, bail};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};
use tracing::{info, warn};

use super::{log, progress};
use crate::{
    api::App,
    config::Settings,
    demo,
    hub::Source,
    operations::Operations,
    router::{Kind, Router},
    server::{self, ServerConfig},
    store::Store,
};

pub(super) fn run(settings: Settings, file: Option<&Path>) -> anyhow::Result<()> {
    let settings = settings.complete(file)?;
    log(settings.log.as_deref().unwrap_or("info"), settings.log_format.unwrap_or_default())?;
    let config = settings.resolve()?;
    if settings.model.is_empty() {
        let instead = demo::INSTEAD;
        info!(instead, "no model is named: two small ones that are part of the program are served");
    }
    let runtime = tokio::runtime::Runtime::new()?;
    let result = runtime.block_on(serve(config));
    // A download or a load that nobody waits for any more must not keep the process.
    runtime.shutdown_background();
    result
}

/// Listens at once, so that a taken port is known before minutes of loading, and answers 503 until all is loaded.
async fn serve(config: ServerConfig) -> anyhow::Result<()> {
    let reachable = !config.address.ip().is_loopback();
    if reachable && config.operations.keys.is_none() {
        if !config.insecure_no_keys {
            bail!(
                "{} can be reached from elsewhere, and there are no keys: make one with percept keys add, and give the \
                 file with --keys; or say --insecure-no-keys, where something else guards the server",
                config.address.ip()
            );
        }
        warn!(address = %config.address, "anyone who can reach this address can use the server");
    }
    let operations = Operations::open(&config.operations)?;
    let listener = TcpListener::bind(config.address).await.with_context(|| {
        format!("cannot listen on {}; choose another with --host or --port", config.address)
    })?;
    let address = listener.local_addr()?;
    let demo = config.models.iter().all(|model| matches!(model.source, Source::Embedded(_)));
    let page = config.api.ui;
    let store = config.store.as_ref().map(Store::open).transpose()?;
    let app = App::guarded(config.api.clone(), operations, store);
    let running = tokio::spawn(server::run(listener, Arc::clone(&app), stop_signal()?, config.drain));
    let loading =
        tokio::task::spawn_blocking(move || server::load(&config, progress::bar, progress::loading));
    tokio::pin!(running);
    let models = tokio::select! {
        loaded = loading => loaded??,
        // Stopped while loading.
        ended = &mut running => return Ok(ended??),
    };
    let names: Vec<String> = models.iter().map(|model| model.id.clone()).collect();
    let mut tries: String = [Kind::Chat, Kind::Speech, Kind::Embedding]
        .into_iter()
        .filter(|kind| models.iter().any(|model| model.work.kind() == *kind))
        .map(|kind| match kind {
            Kind::Chat => format!(
                "\n  try: percept chat 'What is in this picture?' --image FILE --url http://{address}"
            ),
            Kind::Speech => format!("\n  try: percept transcribe FILE --url http://{address}"),
            Kind::Embedding => format!(
                "\n  try: curl http://{address}/v1/embeddings --json '{{\"model\": \"{}\", \"input\": \"a text\"}}'",
                models.iter().find(|model| model.embedding().is_some()).map_or("", |model| &model.id)
            ),
        })
        .collect();
    if page {
        tries += &format!("\n  or open http://{address}/ in a browser");
    }
    if demo {
        tries += "\nThese are small models for trying it out: one knows drawings of coloured shapes, the other some \
                  140 English words.";
        tries += &format!("\nFor real ones: {}", demo::INSTEAD);
    }
    app.serve(Router::new(models));
    // Nobody need read this.
    let _ = writeln!(io::stdout(), "percept serves {} on http://{address}/v1{tries}", names.join(" and "));
    running.await??;
    Ok(())
}

/// Ends at the first SIGINT or SIGTERM. A second one ends the process.
pub(super) fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            std::process::exit(130);
        });
    })
}
