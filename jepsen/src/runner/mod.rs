//! A run of the suite: clients of every site, faults beside them, healing, final reads, verdicts, and what it leaves.
//!
//! The thread that runs this starts all processes and makes all faults: processes are tied to it, and end when it does.

pub mod cli;
pub mod clients;
pub mod files;
pub mod judge;
pub mod probe;
pub mod recorder;
pub mod sampler;
pub mod tidy;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

use self::clients::Crowd;
use self::recorder::Recorder;
use self::sampler::{Host, Seen};
use crate::client::Client;
use crate::cluster::{Cluster, Spec};
use crate::nemesis::{Around, Nemesis, Schedule};
use crate::run::{Domains, Run, Sample};
use crate::workload::{Cloud, Session, Valid, Workload};

/// How long sites may take to agree in all, however much they still take up.
const AGREE_AT_MOST: Duration = Duration::from_secs(900);

/// The cloud that is tried.
pub enum Target {
    /// One of our own, made for this run.
    Own(Box<Spec>),
    /// Somebody's: its endpoints, and the command that makes faults there, called with `start` and `stop`.
    Theirs {
        /// Its endpoints and its password.
        cloud: Cloud,
        /// The command, if any.
        fault: Option<String>,
    },
}

/// What a run is.
pub struct Plan {
    /// The cloud.
    pub target: Target,
    /// What clients do.
    pub workloads: Vec<Box<dyn Workload>>,
    /// How long.
    pub time: Duration,
    /// Clients of each workload at each endpoint.
    pub concurrency: u32,
    /// Operations a second, of all clients together.
    pub rate: f64,
    /// Which faults, and when.
    pub schedule: Schedule,
    /// How long sites may take to agree after all was healed, from when one of them last took something up. How long they took is
    /// recorded, and judged; but what is read in the end says little of sites that are still at it.
    pub agree: Duration,
    /// A file that is made when all is set up: for who has something to do then.
    pub when_up: Option<PathBuf>,
    /// What chance decides follows from it.
    pub seed: u64,
    /// The command line that does it again.
    pub command: String,
    /// Where everything is written.
    pub out: PathBuf,
}

impl Plan {
    /// How many operations each workload does, about.
    fn operations(&self) -> u64 {
        let all = self.rate * self.time.as_secs_f64();
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate and a time, and no more than about"
        )]
        let all = all as u64;
        all / u64::try_from(self.workloads.len().max(1)).unwrap_or(u64::MAX)
    }
}

/// Does a run, and gives what it left. Interrupted, it heals, cleans up and fails.
///
/// # Errors
/// What kept it from being one: the cloud did not start, a workload could not be set up, it was interrupted.
pub fn run(plan: &Plan, interrupted: &Arc<AtomicBool>) -> Result<Run> {
    std::fs::create_dir_all(&plan.out).with_context(|| format!("cannot make {}", plan.out.display()))?;
    let (mut cluster, mut cloud) = match &plan.target {
        Target::Own(spec) => {
            say(&format!("starting {} sites …", spec.sites.len()));
            let cluster = Cluster::start(Spec::clone(spec))?;
            let cloud = cluster.cloud();
            (Some(cluster), cloud)
        }
        Target::Theirs { cloud, .. } => (None, cloud.clone()),
    };
    cloud.operations = plan.operations();
    let clients = clients(&cloud)?;
    let theirs = cluster.is_none();
    if theirs {
        tidy::tidy(&cloud, &clients);
    }
    let done = tried(plan, &mut cluster, &cloud, &clients, interrupted);
    drop(cluster);
    match &done {
        Ok(run) if theirs && run.verdicts.iter().any(|verdict| verdict.valid == Valid::False) => {
            say("what was made there stays, to be looked at; the next run takes it away");
        }
        _ if theirs => tidy::tidy(&cloud, &clients),
        _ => {}
    }
    done
}

/// A run in a cloud that is up.
fn tried(
    plan: &Plan,
    cluster: &mut Option<Cluster>,
    cloud: &Cloud,
    clients: &[Client],
    interrupted: &Arc<AtomicBool>,
) -> Result<Run> {
    for workload in &plan.workloads {
        let name = workload.name();
        workload.setup(cloud, clients).with_context(|| format!("workload {name}: it cannot be set up"))?;
        stop_if(interrupted)?;
    }
    if let Some(file) = &plan.when_up {
        std::fs::write(file, "").with_context(|| format!("cannot make {}", file.display()))?;
    }
    say(&format!("the cloud is up; {} s of work", plan.time.as_secs()));
    let mut run = work(plan, cluster, cloud, clients, interrupted)?;
    run.versions = files::versions(cluster.as_ref(), cloud);
    // Logs are whole once nothing writes them.
    *cluster = None;
    run.logs = files::logs(&plan.out);
    run.verdicts = judge::verdicts(&plan.workloads, &run);
    files::write(&plan.out, &run)?;
    Ok(run)
}

fn work(
    plan: &Plan,
    cluster: &mut Option<Cluster>,
    cloud: &Cloud,
    clients: &[Client],
    interrupted: &Arc<AtomicBool>,
) -> Result<Run> {
    let hosts = cluster.as_ref().map(hosts).unwrap_or_default();
    let unix = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (recorder, seen, at) = (Recorder::default(), Seen::default(), Mutex::default());
    let (stop, quiet) = (AtomicBool::new(false), AtomicBool::new(false));
    let endpoints = u32::try_from(cloud.endpoints.len())?;
    let count = endpoints * plan.concurrency * u32::try_from(plan.workloads.len())?;
    let pause = Duration::from_secs_f64(f64::from(count) / plan.rate.max(0.001));
    let crowd = Crowd { cloud, hosts: &hosts, recorder: &recorder, pause, stop: &stop, count, at: &at };
    let mut sessions = sessions(plan, &crowd, clients);
    let namespaces: Vec<PathBuf> = cloud.endpoints.iter().filter_map(|endpoint| endpoint.namespace.clone()).collect();
    let (healed, converged, nemesis_error) = std::thread::scope(|scope| {
        for endpoint in 0..cloud.endpoints.len() {
            let (recorder, seen, quiet) = (&recorder, &seen, &quiet);
            scope.spawn(move || sampler::endpoint(cloud, endpoint, recorder, seen, quiet));
        }
        for host in &hosts {
            let (recorder, seen, quiet) = (&recorder, &seen, &quiet);
            scope.spawn(move || sampler::host(host, recorder, seen, quiet));
        }
        scope.spawn(|| probe::probe(&namespaces, &recorder, &seen, &quiet));
        let crowd = &crowd;
        let working: Vec<_> = sessions
            .iter_mut()
            .map(|(workload, session)| scope.spawn(move || crowd.work(*workload, session)))
            .collect();
        let fault = match &plan.target {
            Target::Theirs { fault, .. } => fault.as_deref(),
            Target::Own(_) => None,
        };
        let around =
            Around { cluster: cluster.as_mut(), command: fault, recorder: &recorder, seen: &seen, processes: &at };
        let mut nemesis = Nemesis::new(around, plan.seed);
        let failed = nemesis.play(&plan.schedule, plan.time, interrupted, || progress(&recorder)).err();
        stop.store(true, Ordering::Relaxed);
        say("clients stop …");
        let crashed = working.into_iter().map(std::thread::ScopedJoinHandle::join).filter(Result::is_err).count();
        say("healing …");
        let healing = nemesis.heal().err();
        let healed = recorder.now();
        let converged = agree(cloud, plan.agree, &recorder, &seen, interrupted);
        quiet.store(true, Ordering::Relaxed);
        let crashed = (crashed > 0).then(|| anyhow::anyhow!("{crashed} clients have panicked"));
        (healed, converged, failed.or(healing).or(crashed))
    });
    stop_if(interrupted)?;
    match converged {
        Some(took) => say(&format!("all agree {} ms after the last fault was healed", took / 1_000_000)),
        None => say(&format!("the sites do not agree, and have taken up nothing for {} s", plan.agree.as_secs())),
    }
    say("final reads …");
    std::thread::scope(|scope| {
        for (workload, session) in &mut sessions {
            let crowd = &crowd;
            scope.spawn(move || crowd.finish(*workload, session));
        }
    });
    for (number, sample) in last(&askers(cloud), &recorder, true).into_iter().enumerate() {
        seen.add(number, sample);
    }
    for host in &hosts {
        let time = recorder.now();
        if let Ok(found) = crate::cluster::hypervisor::domains(&host.uri) {
            let at = clients.iter().find(|client| client.site == host.site);
            let said = at.and_then(|client| crate::check::hypervisor::said(client, &host.name));
            seen.add_domains(Domains { said, ..sampler::record(host, time, found) });
        }
    }
    let history = recorder.history();
    let (samples, domains, paces) = seen.into_parts();
    let run = Run {
        seed: plan.seed,
        command: plan.command.clone(),
        started: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
        duration: recorder.now(),
        healed,
        converged,
        versions: BTreeMap::new(),
        sites: sites(cloud),
        endpoints,
        faults: crate::run::faults(&history),
        history,
        verdicts: Vec::new(),
        samples,
        domains,
        paces,
        logs: Vec::new(),
    };
    if let Some(error) = nemesis_error {
        // What was recorded is worth reading all the same.
        files::write(&plan.out, &run)?;
        return Err(error.context("the run broke off"));
    }
    Ok(run)
}

fn sessions<'a>(plan: &'a Plan, crowd: &Crowd<'_>, clients: &[Client]) -> Vec<(&'a dyn Workload, Session)> {
    let mut sessions = Vec::new();
    for workload in &plan.workloads {
        for _ in 0..plan.concurrency {
            for at in 0..clients.len() {
                let process = u32::try_from(sessions.len()).unwrap_or(u32::MAX);
                let session = crowd.session(process, at, clients, plan.seed);
                sessions.extend(session.map(|session| (workload.as_ref(), session)));
            }
        }
    }
    sessions
}

/// Every endpoint's administrator.
fn clients(cloud: &Cloud) -> Result<Vec<Client>> {
    let login = |endpoint: &crate::workload::Endpoint| -> Result<Client> {
        let client = Client::admin(endpoint, &cloud.password);
        client.login().with_context(|| format!("the administrator cannot log in at {}", endpoint.base))?;
        Ok(client)
    };
    cloud.endpoints.iter().map(login).collect()
}

/// Waits until all endpoints have equal frontiers and digests at once, and says how long that took, nanoseconds.
fn agree(cloud: &Cloud, limit: Duration, recorder: &Recorder, seen: &Seen, interrupted: &AtomicBool) -> Option<u64> {
    let (from, begun) = (recorder.now(), Instant::now());
    let askers = askers(cloud);
    let (mut most, mut until) = (0, begun + limit);
    while Instant::now() < until && !interrupted.load(Ordering::Relaxed) {
        let samples = last(&askers, recorder, false);
        let equal = samples.windows(2).all(|pair| match pair {
            [one, other] => one.digest == other.digest && one.frontier == other.frontier,
            _ => true,
        });
        let all = samples.iter().all(|sample| sample.digest.is_some());
        if equal && all {
            // Equal when the last was asked, at the latest.
            let at = samples.iter().map(|sample| sample.answered).max().unwrap_or(from);
            samples.into_iter().enumerate().for_each(|(number, sample)| seen.add(number, sample));
            return Some(at.saturating_sub(from));
        }
        let held: u64 = samples.iter().flat_map(|sample| sample.frontier.values()).map(|tip| tip.number).sum();
        if held > most {
            (most, until) = (held, (Instant::now() + limit).min(begun + AGREE_AT_MOST));
        }
        std::thread::sleep(Duration::from_millis(30));
    }
    None
}

/// Who asks each endpoint. They log in once: that costs a site more than all answers, by intent.
fn askers(cloud: &Cloud) -> Vec<Client> {
    cloud.endpoints.iter().map(|endpoint| Client::admin(endpoint, &cloud.password)).collect()
}

/// What all endpoints say, asked at once; of rights too if that is wanted, which is long.
fn last(askers: &[Client], recorder: &Recorder, rights: bool) -> Vec<Sample> {
    let ask = |client: &Client| {
        let time = recorder.now();
        let sample = sampler::sample(client, rights).unwrap_or_default();
        let (site, base) = (client.site.clone(), client.base.clone());
        Sample { time, answered: recorder.now(), site, base, ..sample }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = askers.iter().map(|client| scope.spawn(move || ask(client))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_default()).collect()
    })
}

fn hosts(cluster: &Cluster) -> Vec<Host> {
    let hosts = cluster.nodes.iter().filter_map(|node| {
        let uri = node.hypervisor.as_ref()?.uri();
        Some(Host { site: node.site.clone(), name: node.name.clone(), uri })
    });
    hosts.collect()
}

/// The sites, each once, in order.
fn sites(cloud: &Cloud) -> Vec<String> {
    let mut sites = Vec::new();
    for endpoint in &cloud.endpoints {
        if !sites.contains(&endpoint.site) {
            sites.push(endpoint.site.clone());
        }
    }
    sites
}

fn progress(recorder: &Recorder) {
    let [invoked, ok, fail, info] = recorder.counts();
    let seconds = recorder.now() / 1_000_000_000;
    say(&format!("{seconds:>5} s: {invoked} operations, {ok} ok, {fail} refused, {info} unknown"));
}

fn stop_if(interrupted: &AtomicBool) -> Result<()> {
    if interrupted.load(Ordering::Relaxed) { bail!("interrupted") } else { Ok(()) }
}

/// Tells whoever watches.
pub fn say(text: &str) {
    use std::io::Write;
    println!("{text}");
    let _ = std::io::stdout().flush();
}

/// Which processes work at an endpoint.
#[must_use]
pub fn processes(at: &Mutex<Vec<(u32, usize)>>, endpoint: usize) -> Vec<u32> {
    let at = at.lock().unwrap_or_else(PoisonError::into_inner);
    at.iter().filter(|(_, place)| *place == endpoint).map(|(process, _)| *process).collect()
}
