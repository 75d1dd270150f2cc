//! `wan`: a wide-area network between namespaces of this machine. See `docs/wan.md`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};
use jepsen::wan::site::{Network, namespace, socket};
use jepsen::wan::up::up;
use serde_json::Value;

/// What stops it.
type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

#[derive(Parser)]
#[command(about = "A wide-area network between namespaces of this machine, with delay, loss and cuts")]
struct Cli {
    /// Which network: several can be up.
    #[arg(long, global = true, default_value = "wan")]
    net: String,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Makes the sites and joins them, until it is told to end (Ctrl-C, or `down`).
    Up {
        /// Names of the sites.
        #[arg(required = true)]
        sites: Vec<String>,
        /// The first address; the sites have this and the next ones, in a network of 24 bits.
        #[arg(long, default_value = "10.77.0.1")]
        first: Ipv4Addr,
        /// What chance decides follows from it.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Runs a program at a site.
    Exec {
        /// The site.
        site: String,
        /// The program and its arguments.
        #[arg(required = true, last = true)]
        program: Vec<String>,
    },
    /// Tells the switch to end.
    Down,
    /// Takes away what a switch that was killed has left.
    Clean,
    /// What is on each line, and what has happened there.
    Show {
        /// As the switch says it.
        #[arg(long)]
        json: bool,
    },
    /// set, cut, flap, isolate, heal: see docs/wan.md.
    #[command(external_subcommand)]
    Say(Vec<String>),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.action {
        Action::Up { sites, first, seed } => up(&cli.net, sites, first, seed).map_err(Into::into),
        Action::Exec { site, program } => exec(&cli.net, &site, &program),
        Action::Down => down(&cli.net),
        Action::Clean => Network::take(&cli.net).map(drop).map_err(Into::into),
        Action::Show { json } => {
            say(&cli.net, "show").map(|value| if json { println!("{value}") } else { show(&value) })
        }
        Action::Say(words) => say(&cli.net, &words.join(" ")).map(drop),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wan: {error}");
            ExitCode::FAILURE
        }
    }
}

fn exec(net: &str, site: &str, program: &[String]) -> Fallible<()> {
    let error = Command::new("ip").args(["netns", "exec", &namespace(net, site)]).args(program).exec();
    Err(format!("ip netns exec: {error}").into())
}

fn connect(net: &str) -> Fallible<UnixStream> {
    UnixStream::connect(socket(net)).map_err(|error| format!("the network {net:?} is not up: {error}").into())
}

/// Tells the switch something, and gives its answer.
fn say(net: &str, line: &str) -> Fallible<Value> {
    let mut stream = connect(net)?;
    writeln!(stream, "{line}")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    let answer: Value = serde_json::from_str(&answer)?;
    match answer["error"].as_str() {
        Some(error) => Err(error.into()),
        None => Ok(answer),
    }
}

/// Waits until the switch has ended, and cleaned up.
fn down(net: &str) -> Fallible<()> {
    let mut stream = connect(net)?;
    writeln!(stream, "down")?;
    let _ = stream.read_to_end(&mut Vec::new());
    while socket(net).exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    Ok(())
}

fn show(value: &Value) {
    let text = |line: &Value, key: &str| line[key].as_str().unwrap_or_default().to_owned();
    let number = |line: &Value, key: &str| line[key].as_u64().unwrap_or_default();
    println!(
        "{:<12} {:<12} {:<15} {:>9} {:>9} {:>7} {:>7} {:>7} {:>9} {:>9} {:>8} {:>8} {:>8}",
        "from", "to", "state", "delay", "jitter", "loss", "double", "reorder", "rate", "passed", "lost", "cut", "full"
    );
    for line in value["lines"].as_array().into_iter().flatten() {
        let millis = |key| format!("{:.2}ms", number(line, key) as f64 / 1e3);
        let percent = |key| format!("{}%", number(line, key) as f64 / 1e4);
        let rate = line["rate_bits"].as_u64().map_or("-".into(), |bits| format!("{}mbit", bits as f64 / 1e6));
        println!(
            "{:<12} {:<12} {:<15} {:>9} {:>9} {:>7} {:>7} {:>7} {:>9} {:>9} {:>8} {:>8} {:>8}",
            text(line, "from"),
            text(line, "to"),
            text(line, "state"),
            millis("delay_us"),
            millis("jitter_us"),
            percent("loss_ppm"),
            percent("duplicate_ppm"),
            percent("reorder_ppm"),
            rate,
            number(line, "passed"),
            number(line, "lost"),
            number(line, "cut"),
            number(line, "full"),
        );
    }
}
