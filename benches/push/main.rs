//! Pushes beside skopeo, crane and regctl: the same images between the same registries, through the same delay.
//!
//! `make bench-push`; `BENCH_ROWS`, `BENCH_DELAYS` (milliseconds for a round trip) and `BENCH_MIB` choose less.
//! Each measurement has a registry of its own at the target, so that nobody finds what another one left. The
//! delay is made by `proxy`, since not every kernel has netem. Ratios count; the seconds are this machine's.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::cast_precision_loss,
    reason = "a measurement that cannot go on says so by ending"
)]

mod image;
mod proxy;
mod server;
mod tool;

use std::time::Duration;

use proxy::Proxy;
use server::Server;
use tool::{Job, Measured, Tool};

/// One thing that is done with an image.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Row {
    /// Eight large layers to a registry that has nothing.
    Cold,
    /// Sixty small ones.
    Many,
    /// To another repository of the same registry.
    Within,
    /// The target has all but one layer.
    Changed,
    /// The target has everything.
    Unchanged,
    /// To three registries.
    Three,
    /// The connection to the target is cut at twenty places.
    Cut,
}

const ROWS: [(&str, Row); 7] = [
    ("cold", Row::Cold),
    ("many", Row::Many),
    ("within", Row::Within),
    ("changed", Row::Changed),
    ("unchanged", Row::Unchanged),
    ("three", Row::Three),
    ("cut", Row::Cut),
];

fn chosen(variable: &str, default: &str) -> Vec<String> {
    let text = std::env::var(variable).unwrap_or_else(|_| default.to_owned());
    text.split([',', ' '])
        .filter(|part| !part.is_empty())
        .map(str::to_owned)
        .collect()
}

#[tokio::main]
async fn main() {
    let tools = Tool::all();
    for tool in [Tool::Skopeo, Tool::Crane, Tool::Regctl] {
        if !tools.contains(&tool) {
            println!("SKIPPED: {tool:?} is not installed");
        }
    }
    let Some(registry) = tool::program("registry") else {
        println!("SKIPPED: no `registry`; hack/cluster/build-tools registry builds it");
        return;
    };
    let rows = chosen("BENCH_ROWS", "cold,many,within,changed,unchanged,three,cut");
    let delays = chosen("BENCH_DELAYS", "0,20,80");
    let mib: usize = std::env::var("BENCH_MIB").map_or(1024, |text| text.parse().unwrap());
    let repeats: usize = std::env::var("BENCH_REPEATS").map_or(1, |text| text.parse().unwrap());
    let source = Server::start(&registry).await;
    image::put(&source, "large:v1", &image::layers(8, mib << 17, 1));
    image::put(&source, "many:v1", &image::layers(60, 200 << 10, 2));
    // The same but for the last layer.
    let mut layers = image::layers(8, mib << 17, 1);
    let last = layers.len() - 1;
    layers[last] = image::layers(1, mib << 17, 3).remove(0);
    image::put(&source, "large:v2", &layers);
    drop(layers);
    println!(
        "{mib} MiB in 8 layers, 60 layers of 200 KiB; {} CPUs; median of {repeats}",
        tool::cpus()
    );
    for (name, row) in ROWS {
        if !rows.iter().any(|wanted| wanted == name) {
            continue;
        }
        for delay in &delays {
            let delay = Duration::from_millis(delay.parse().unwrap());
            println!("\n{name}, {} ms\n{}", delay.as_millis(), Measured::HEADER);
            let mut runs: Vec<Vec<Measured>> = tools.iter().map(|_| Vec::new()).collect();
            // In turns, so that what the machine does meanwhile concerns all of them.
            for run in 0..repeats {
                for (tool, runs) in tools.iter().zip(&mut runs) {
                    runs.push(measure(*tool, row, delay, &registry, &source, run).await);
                }
            }
            let results: Vec<(Tool, Measured)> = tools
                .iter()
                .zip(runs)
                .map(|(tool, mut runs)| {
                    runs.sort_by(|a, b| a.wall.total_cmp(&b.wall));
                    (*tool, runs.swap_remove(repeats / 2))
                })
                .collect();
            let best = results
                .iter()
                .filter(|(tool, measured)| *tool != Tool::Slipway && measured.ok)
                .map(|(_, measured)| measured.wall)
                .fold(f64::INFINITY, f64::min);
            for (tool, measured) in &results {
                println!("{}", measured.line(*tool, best));
            }
        }
    }
}

async fn measure(
    tool: Tool,
    row: Row,
    delay: Duration,
    registry: &std::path::Path,
    source: &Server,
    run: usize,
) -> Measured {
    let targets = match row {
        Row::Three => 3,
        Row::Within => 0,
        _ => 1,
    };
    let mut servers = Vec::new();
    for _ in 0..targets {
        servers.push(Server::start(registry).await);
    }
    let image = if row == Row::Many { "many:v1" } else { "large:v1" };
    let from = Proxy::start(&source.host, delay, Vec::new()).await;
    let mut to = Vec::new();
    for server in &servers {
        if matches!(row, Row::Changed | Row::Unchanged) {
            // What the target has, the tool itself brought there.
            tool.run(&[Job::copy(&source.host, image, &server.host, image)])
                .await;
        }
        let cuts = if row == Row::Cut {
            image::cuts(run)
        } else {
            Vec::new()
        };
        to.push(Proxy::start(&server.host, delay, cuts).await);
    }
    let copied = if row == Row::Changed { "large:v2" } else { image };
    let jobs: Vec<Job> = match row {
        Row::Within => {
            let other = format!("within-{tool:?}-{}-{run}:v1", delay.as_millis()).to_lowercase();
            vec![Job::copy(&from.host, copied, &from.host, &other)]
        }
        _ => to
            .iter()
            .map(|to| Job::copy(&from.host, copied, &to.host, image))
            .collect(),
    };
    let before = source.requests() + servers.iter().map(Server::requests).sum::<usize>();
    let mut measured = tool.run(&jobs).await;
    let after = source.requests() + servers.iter().map(Server::requests).sum::<usize>();
    measured.requests = after - before;
    measured.sent =
        to.iter().map(Proxy::sent).sum::<u64>() + if row == Row::Within { from.sent() } else { 0 };
    measured.read = from.received();
    measured
}
