//! The `queue-proxy` container: environment in, one runtime, SIGTERM drains.

use std::process::ExitCode;
use std::time::Duration;

use ember_allocator::{Allocator, give_back_at_once};
use ember_dataplane::io::Io;
use ember_dataplane::worker::Workers;
use ember_queue_proxy::{Config, threads};
use ember_telemetry::logs;
use ember_telemetry::request_log::Output;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Tasks that run between two looks at the sockets: fewer looks cost less, and none is waited for when nothing runs.
const EVENT_INTERVAL: u32 = 200;
/// How long the last requests may take to be logged.
const LAST_LINES: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    give_back_at_once();
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    let config = Config::from_env(std::env::vars())?;
    let level = match config.logging_level.to_ascii_lowercase().as_str() {
        level @ ("debug" | "warn" | "error") => level.to_owned(),
        // Beyond errors zap has levels of its own.
        "dpanic" | "panic" | "fatal" => "error".to_owned(),
        _ => "info".to_owned(),
    };
    logs::init(logs::Format::Json, &level)?;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().event_interval(EVENT_INTERVAL);
    let ended = runtime.build()?.block_on(serve(config));
    Output::flush_stdout(LAST_LINES);
    ended
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (readiness, _) = watch::channel(false);
    let workers = match threads::by_cpu_limit() {
        0 | 1 => Workers::current(),
        several => Workers::start(several)?,
    };
    let running = ember_queue_proxy::run_on(&workers, config, Io::system(), readiness, shutdown.clone());
    tokio::pin!(running);
    loop {
        tokio::select! {
            ended = &mut running => return Ok(ended?),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if shutdown.is_cancelled() {
            anyhow::bail!("second signal: exiting at once");
        }
        shutdown.cancel();
    }
}
