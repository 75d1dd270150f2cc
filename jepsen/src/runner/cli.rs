//! `jepsen run` and `jepsen check`: what people say on the command line.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use super::{Plan, Target, files, judge, say};
use crate::client::Client;
use crate::cluster::hypervisor::Driver;
use crate::cluster::{SITES, Spec};
use crate::nemesis::{Name, Schedule};
use crate::run::Run;
use crate::workload::{self, Cloud, Endpoint, Valid, Workload};

/// Tries a cloud: clients of every site work, faults are made beside them, all is healed, and checkers judge from what the
/// clients saw whether every promise was kept.
///
/// Without --endpoints it starts a cloud of its own on this machine, which needs root: sites in network namespaces, each with
/// its own data and hypervisor. It is taken away at the end, after Ctrl-C too.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// How many sites.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=8))]
    sites: u16,
    /// How many sites have a second replica.
    #[arg(long, default_value_t = 1)]
    doubled: usize,
    /// How many sites have a further host, with an agent alone.
    #[arg(long, default_value_t = 1)]
    hosts: usize,
    /// How long clients work and faults are made, seconds.
    #[arg(long, default_value_t = 60)]
    time: u64,
    /// What clients do, separated by commas; `all` for everything there is.
    #[arg(long, value_delimiter = ',', default_value = "all")]
    workload: Vec<String>,
    /// Which faults, separated by commas; `all` for all there are, `none` for none.
    #[arg(long, value_delimiter = ',', default_value = "all")]
    nemesis: Vec<String>,
    /// Seconds from one fault to the next, on average: `15s` or `15`.
    #[arg(long, default_value = "15s", value_parser = seconds)]
    every: Duration,
    /// How many faults at once, at most.
    #[arg(long, default_value_t = 1)]
    overlap: usize,
    /// What chance decides (faults, operations, the network) follows from it; how threads and sites interleave does not.
    #[arg(long)]
    seed: Option<u64>,
    /// Operations a second, of all clients together.
    #[arg(long, default_value_t = 30.0)]
    rate: f64,
    /// Clients of each workload at each replica.
    #[arg(long, default_value_t = 1)]
    concurrency: u32,
    /// How long sites may take to agree in the end, from when one of them last took something up, seconds.
    #[arg(long, default_value_t = 120)]
    agree: u64,
    /// A file that is made when all is set up: for who has something to do then.
    #[arg(long, hide = true)]
    when_up: Option<PathBuf>,
    /// Where history, verdicts, report and logs are written. What is there of an earlier run is overwritten.
    #[arg(long, default_value = "target/jepsen")]
    out: PathBuf,
    /// Lines between sites, as `wan set` says them.
    #[arg(long, default_value = "delay=10ms jitter=1ms")]
    lines: String,
    /// The binary under test; the one beside this one if not given.
    #[arg(long)]
    luc: Option<PathBuf>,
    /// Another binary, for rolling restarts: an older or newer version.
    #[arg(long)]
    other_luc: Option<PathBuf>,
    /// What virtual machines are.
    #[arg(long, value_enum, default_value = "test")]
    hypervisor: Driver,
    /// Script that runs a libvirt daemon of its own.
    #[arg(long, default_value = "packaging/libvirt/private-libvirtd.sh")]
    libvirtd: PathBuf,
    /// Name of the cloud on this machine: several can be up at once.
    #[arg(long, default_value = "jepsen")]
    name: String,
    /// Try a deployment that is up already: the base URLs of its sites' APIs, separated by commas, each `http://address:port`,
    /// with `site=` before it if you like. No faults are made there, but for --fault-command.
    #[arg(long, value_delimiter = ',')]
    endpoints: Vec<String>,
    /// The administrator's password of that deployment.
    #[arg(long, env = "LUC_PASSWORD", requires = "endpoints")]
    password: Option<String>,
    /// A command that makes a fault in that deployment when it is called with `start`, and undoes it with `stop`.
    #[arg(long, requires = "endpoints")]
    fault_command: Option<String>,
}

/// Judges a run that was written, once more.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// The run's directory.
    dir: PathBuf,
}

/// `jepsen run`: 0 if every rule held, 1 if one was broken, 2 if the run is worthless, 3 if there was none.
#[must_use]
pub fn run(args: &RunArgs) -> ExitCode {
    let interrupted = Arc::new(AtomicBool::new(false));
    let done = watch(interrupted.clone()).and_then(|()| plan(args)).and_then(|plan| super::run(&plan, &interrupted));
    match done {
        Ok(run) => conclude(&args.out, &run),
        Err(error) => {
            eprintln!("jepsen: {error:#}");
            ExitCode::from(3)
        }
    }
}

/// `jepsen check`.
#[must_use]
pub fn check(args: &CheckArgs) -> ExitCode {
    let judged = files::read(&args.dir).and_then(|mut run| {
        let names: std::collections::BTreeSet<String> =
            run.history.0.iter().filter_map(|op| op.workload.clone()).collect();
        run.verdicts = judge::verdicts(&workloads(&names.into_iter().collect::<Vec<_>>())?, &run);
        files::write(&args.dir, &run)?;
        Ok(run)
    });
    match judged {
        Ok(run) => conclude(&args.dir, &run),
        Err(error) => {
            eprintln!("jepsen: {error:#}");
            ExitCode::from(3)
        }
    }
}

fn conclude(out: &Path, run: &Run) -> ExitCode {
    for verdict in &run.verdicts {
        let word = match verdict.valid {
            Valid::True => "held",
            Valid::False => "BROKEN",
            Valid::Unknown => "unknown",
        };
        say(&format!("{word:<8} {:<10} {:<22} {}", verdict.workload, verdict.checker, verdict.summary));
        if verdict.valid == Valid::False {
            say(&format!("         rule: {}; operations {:?}", verdict.rule, verdict.anomaly));
        }
    }
    say(&crate::check::machine(run));
    say(&format!("seed {}; everything is in {}", run.seed, out.display()));
    let any = |valid| run.verdicts.iter().any(|verdict| verdict.valid == valid);
    if any(Valid::False) {
        say("a rule was BROKEN");
        return ExitCode::from(1);
    }
    // One that says nothing at all of a workload was not worth its time.
    let of = |name: &str| {
        run.verdicts.iter().filter(|verdict| verdict.workload == name).all(|one| one.valid == Valid::Unknown)
    };
    let mut silent: Vec<&str> =
        run.verdicts.iter().map(|verdict| verdict.workload.as_str()).filter(|name| of(name)).collect();
    silent.dedup();
    if run.verdicts.is_empty() || !silent.is_empty() {
        say(&format!("the run is WORTHLESS: it says nothing of {}", silent.join(", ")));
        return ExitCode::from(2);
    }
    say(if any(Valid::Unknown) { "no rule was broken; of some the run says nothing" } else { "every rule held" });
    ExitCode::SUCCESS
}

fn plan(args: &RunArgs) -> Result<Plan> {
    let seed = args.seed.unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
        u64::from(now.subsec_nanos()) ^ now.as_secs()
    });
    let out = std::path::absolute(&args.out)?;
    let own = args.endpoints.is_empty();
    let names = if own { faults(&args.nemesis)? } else { Vec::new() };
    let clocks = names.contains(&Name::Clock);
    let target = if own { Target::Own(Box::new(spec(args, &out, seed, clocks)?)) } else { theirs(args)? };
    let mut command: Vec<String> = std::env::args().collect();
    if args.seed.is_none() {
        command.extend(["--seed".into(), seed.to_string()]);
    }
    Ok(Plan {
        target,
        workloads: workloads(&args.workload)?,
        time: Duration::from_secs(args.time),
        concurrency: args.concurrency.max(1),
        rate: args.rate,
        schedule: Schedule { names, every: args.every, overlap: args.overlap.max(1) },
        agree: Duration::from_secs(args.agree),
        when_up: args.when_up.clone(),
        seed,
        command: command.join(" "),
        out,
    })
}

fn spec(args: &RunArgs, out: &Path, seed: u64, clocks: bool) -> Result<Spec> {
    let jepsen = std::env::current_exe().context("this program does not know where it is")?;
    let luc = args.luc.clone().unwrap_or_else(|| jepsen.with_file_name("luc"));
    let found = |path: &Path, what: &str| {
        std::path::absolute(path)
            .ok()
            .filter(|path| path.exists())
            .with_context(|| format!("{} is missing: {what}", path.display()))
    };
    let logs = out.join(files::LOGS);
    if logs.exists() {
        std::fs::remove_dir_all(&logs).with_context(|| format!("cannot clean {}", logs.display()))?;
    }
    Ok(Spec {
        name: args.name.clone(),
        sites: SITES.iter().take(usize::from(args.sites)).map(|site| (*site).to_owned()).collect(),
        doubled: args.doubled,
        hosts: args.hosts,
        lines: args.lines.clone(),
        seed,
        luc: found(&luc, "cargo build -p luc-api makes it; or give --luc")?,
        other: args.other_luc.as_deref().map(|luc| found(luc, "--other-luc")).transpose()?,
        jepsen,
        libvirtd: found(&args.libvirtd, "run this in the source's directory, or give --libvirtd")?,
        driver: args.hypervisor,
        disk_mib: 1_024,
        clocks,
        logs,
        more: String::new(),
    })
}

fn theirs(args: &RunArgs) -> Result<Target> {
    let password = args.password.clone().context("--password, or LUC_PASSWORD, is needed to log in there")?;
    let mut endpoints = Vec::new();
    for text in &args.endpoints {
        let (named, base) = match text.split_once('=').filter(|(site, _)| !site.contains('/')) {
            Some((site, base)) => (Some(site.to_owned()), base),
            None => (None, text.as_str()),
        };
        let base = base_of(base)?;
        let site = site_of(&base)?;
        // Servers are asked for by the site's name: a wrong one would have all of them refused.
        if let Some(other) = named.filter(|named| *named != site) {
            bail!("{base} is of the site {site}, not {other}");
        }
        endpoints.push(Endpoint { site, base, namespace: None });
    }
    Ok(Target::Theirs { cloud: Cloud { endpoints, password, operations: 0 }, fault: args.fault_command.clone() })
}

/// Which site answers at an endpoint.
fn site_of(base: &str) -> Result<String> {
    let client = Client::new(&Endpoint { site: String::new(), base: base.to_owned(), namespace: None });
    let answer = client.get("/").with_context(|| format!("no site answers at {base}"))?;
    answer["site"].as_str().map(str::to_owned).with_context(|| format!("what answers at {base} is no site of LUC"))
}

/// The base of a site's APIs. What `OS_AUTH_URL` has is understood too.
fn base_of(text: &str) -> Result<String> {
    let base = text.trim_end_matches('/');
    let base = base.strip_suffix("/v3").unwrap_or(base);
    let base = base.strip_suffix("/identity").unwrap_or(base);
    match base.strip_prefix("http://") {
        Some(host) if !host.is_empty() && !host.contains('/') => Ok(base.to_owned()),
        _ => bail!("{text:?} is no endpoint: http://address:port, with site= before it if you like"),
    }
}

fn faults(names: &[String]) -> Result<Vec<Name>> {
    let mut faults = Vec::new();
    for name in names {
        match name.as_str() {
            "all" => faults.extend(Name::value_variants()),
            "none" | "" => {}
            name => match Name::from_str(name, true) {
                Ok(fault) => faults.push(fault),
                Err(_) => {
                    let known: Vec<String> = Name::value_variants().iter().map(|name| name.text()).collect();
                    bail!("no fault is called {name:?}; there are {}, all and none", known.join(", "))
                }
            },
        }
    }
    Ok(faults)
}

fn workloads(names: &[String]) -> Result<Vec<Box<dyn Workload>>> {
    if names.iter().any(|name| name == "all") {
        return Ok(workload::all());
    }
    let known = || workload::all().iter().map(|workload| workload.name()).collect::<Vec<_>>().join(", ");
    let find = |name: &String| workload::all().into_iter().find(|workload| workload.name() == name);
    names
        .iter()
        .map(|name| find(name).with_context(|| format!("no workload is called {name:?}; there are {}", known())))
        .collect()
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    let number: f64 = number.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    Duration::try_from_secs_f64(number)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or_else(|| format!("{text:?} is no time"))
}

/// Notes Ctrl-C, and being asked to end: the run then heals and cleans up.
fn watch(interrupted: Arc<AtomicBool>) -> Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let mut ends = [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?];
    drop(guard);
    let wait = async move {
        let [interrupt, terminate, hangup] = &mut ends;
        loop {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            interrupted.store(true, Ordering::Relaxed);
            eprintln!("jepsen: interrupted; cleaning up …");
        }
    };
    std::thread::Builder::new().name("signals".into()).spawn(move || runtime.block_on(wait))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_endpoint_is_what_people_have_at_hand() {
        for text in ["http://a:1", "http://a:1/", "http://a:1/identity", "http://a:1/identity/v3/"] {
            assert_eq!(base_of(text).unwrap(), "http://a:1", "{text}");
        }
        for text in ["", "a:1", "http://", "https://a:1", "http://a:1/compute"] {
            assert!(base_of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn faults_are_named_and_what_is_none_is_refused_with_all_names() {
        let named = |names: &[&str]| faults(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(named(&["partition", "kill"]).unwrap(), [Name::Partition, Name::Kill]);
        assert_eq!(named(&["all"]).unwrap(), Name::value_variants());
        assert!(named(&["none"]).unwrap().is_empty());
        let refused = named(&["fire"]).unwrap_err().to_string();
        assert!(refused.contains("fire") && refused.contains("partition"), "{refused}");
    }
}
