//! How long a request to a sleeping service takes: many services, each woken once, one after another.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::instance::Ember;
use crate::phases::{Timeline, Wake};
use crate::programs::{EMBER, TINY_APP};
use crate::report::{Report, Row};
use crate::say;
use crate::services::{NAMESPACE, Services};

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// What `ember-bench coldstart` takes.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many services to wake
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// What the services run
    #[arg(long, value_enum, default_value_t = Choice::Both)]
    app: Choice,
    /// Delete services once so many of them are awake, and wait until their pods are gone [default: keep all]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    most_awake: Option<u32>,
    /// Before each request, wait until what the one before has set off is done
    #[arg(long)]
    settle: bool,
    /// Write the figures to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// The ember program [default: the one beside this program, built if missing]
    #[arg(long)]
    ember: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Choice {
    /// A program that listens within a fraction of a millisecond
    Tiny,
    /// `ember demo-app hello`
    Demo,
    /// One after the other, each in an instance of its own
    Both,
}

/// An app to wake.
struct App {
    name: &'static str,
    command: Vec<String>,
}

/// How many services, and when each is woken.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    count: u32,
    most_awake: usize,
    settle: bool,
}

impl Choice {
    fn apps(self) -> anyhow::Result<Vec<App>> {
        let mut apps = Vec::new();
        if self != Self::Demo {
            let path = TINY_APP.path()?;
            let path = path.to_str().context("the path of tiny-app is no text")?;
            apps.push(App { name: "tiny", command: vec![path.to_owned()] });
        }
        if self != Self::Tiny {
            let command = ["ember", "demo-app", "hello"].map(str::to_owned).to_vec();
            apps.push(App { name: "demo", command });
        }
        Ok(apps)
    }
}

/// Runs the scenario and reports.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let ember = match options.ember {
        Some(path) => path,
        None => EMBER.path()?,
    };
    let schedule = Schedule {
        count: options.count,
        most_awake: usize::try_from(options.most_awake.unwrap_or(options.count))?,
        settle: options.settle,
    };
    let mut report = Report { rows: Vec::new() };
    for app in options.app.apps()? {
        let timelines = measure(&ember, &app, schedule).await?;
        let row = Row::new(app.name, &timelines)?;
        say(&format!("\n{row}"))?;
        report.rows.push(row);
    }
    if let Some(path) = options.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

async fn measure(program: &Path, app: &App, schedule: Schedule) -> anyhow::Result<Vec<Timeline>> {
    let ember = Ember::start(program).await?;
    let wakes = match wake_all(&ember, app, schedule).await {
        Ok(wakes) => wakes,
        Err(error) => bail!("{error:#}; ember up said:\n{}", ember.tail()),
    };
    let events = ember.stop().await?;
    Ok(wakes.iter().map(|wake| Timeline::of(wake, &events)).collect())
}

async fn wake_all(ember: &Ember, app: &App, schedule: Schedule) -> anyhow::Result<Vec<Wake>> {
    let Schedule { count, most_awake, settle } = schedule;
    let names: Vec<String> = (1..=count).map(|n| format!("{}-{n:04}", app.name)).collect();
    let services = Services::new(&ember.client);
    let begun = Instant::now();
    services.create(&names, &app.command).await?;
    let revisions = services.ready(&names).await?;
    say(&format!("{}: {count} services Ready after {:.2} s", app.name, begun.elapsed().as_secs_f64()))?;
    let mut wakes = Vec::new();
    for (turn, batch) in names.chunks(most_awake).enumerate() {
        quiet(ember).await?;
        let pods = services.pod_count().await?;
        ensure!(pods == 0, "{pods} pods run before any request: the services are not asleep");
        for (at, name) in batch.iter().enumerate() {
            if settle && at > 0 {
                quiet(ember).await?;
            }
            let revision = revisions.get(name).cloned().with_context(|| format!("{name} has no revision"))?;
            wakes.push(
                wake(ember.gateway, name, revision).await.with_context(|| format!("cannot wake {name}"))?,
            );
        }
        if (turn + 1) * most_awake < names.len() {
            services.delete(batch).await?;
        }
    }
    Ok(wakes)
}

async fn quiet(ember: &Ember) -> anyhow::Result<()> {
    if !ember.quiet().await? {
        say("the instance does not get quiet: the figures include what else it does")?;
    }
    Ok(())
}

/// One request over a connection of its own, from before it is made to the last byte of the answer.
async fn wake(gateway: SocketAddr, service: &str, revision: String) -> anyhow::Result<Wake> {
    let request = Request::get("/")
        .header(http::header::HOST, format!("{service}.{NAMESPACE}.localhost"))
        .body(Empty::<Bytes>::new())?;
    let (sent, begun) = (Timestamp::now().as_microsecond(), Instant::now());
    let (status, body) =
        timeout(PATIENCE, exchange(gateway, request)).await.context("no answer in time")??;
    // The wall clock is what phases are told in; how long it took is not to depend on its corrections.
    let answered = sent + i64::try_from(begun.elapsed().as_micros())?;
    if status != StatusCode::OK {
        bail!("answered {status}: {}", String::from_utf8_lossy(&body).trim());
    }
    Ok(Wake { revision, sent, answered })
}

async fn exchange(
    gateway: SocketAddr,
    request: Request<Empty<Bytes>>,
) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(gateway).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let (head, body) = sender.send_request(request).await?.into_parts();
    let body = body.collect().await?.to_bytes();
    connection.abort();
    Ok((head.status, body))
}
