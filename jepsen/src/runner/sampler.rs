//! What endpoints and hypervisors say of themselves beside the clients' work: frontiers, digests, lag and rights over time.
//! Each is asked by a thread of its own, so that a silent one delays no other.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::Value;

use super::recorder::Recorder;
use crate::client::Client;
use crate::cluster::hypervisor;
use crate::run::{Domains, Pace, Sample};
use crate::workload::Cloud;

/// Between two questions to one endpoint.
const EVERY: Duration = Duration::from_millis(500);
/// While a cloud heals, that is how long its sites lack what others have: a second, if all is as it should be.
const CLOSE: Duration = Duration::from_millis(50);
/// How long a healing is looked at closely, nanoseconds.
const HEALING: u64 = 3_000_000_000;
/// Rights are asked for so seldom: the answer is long.
const RIGHTS: Duration = Duration::from_secs(5);
/// Between two questions to one hypervisor.
const HYPERVISOR: Duration = Duration::from_secs(2);
/// How long an endpoint may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A host whose hypervisor may be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its site.
    pub site: String,
    /// Its name.
    pub name: String,
    /// libvirt's URI.
    pub uri: String,
}

/// What was seen so far, by time of the answer.
#[derive(Default)]
pub struct Seen {
    samples: Mutex<Vec<(usize, Sample)>>,
    domains: Mutex<Vec<Domains>>,
    paces: Mutex<Vec<Pace>>,
    /// Until when sites are looked at closely.
    close: AtomicU64,
}

impl Seen {
    /// The last fault that was under way ends now.
    pub fn note_healing(&self, now: u64) {
        self.close.store(now + HEALING, Ordering::Relaxed);
    }

    fn is_close(&self, now: u64) -> bool {
        now < self.close.load(Ordering::Relaxed)
    }

    /// What all endpoints said, what all hypervisors said, and what the probe saw of the machine: each by time. It is a lot.
    #[must_use]
    pub fn into_parts(self) -> (Vec<Sample>, Vec<Domains>, Vec<Pace>) {
        let samples = self.samples.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut samples: Vec<Sample> = samples.into_iter().map(|(_, sample)| sample).collect();
        samples.sort_by_key(|sample| sample.time);
        let mut domains = self.domains.into_inner().unwrap_or_else(PoisonError::into_inner);
        domains.sort_by_key(|domains| domains.time);
        (samples, domains, self.paces.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Writes down what the probe saw.
    pub fn add_pace(&self, pace: Pace) {
        self.paces.lock().unwrap_or_else(PoisonError::into_inner).push(pace);
    }

    /// When an endpoint was last asked that then showed so many entries of a replica, or fewer: what it had acknowledged by
    /// then lies in those. The beginning, if never.
    #[must_use]
    pub fn last_within(&self, endpoint: usize, replica: &str, number: u64) -> u64 {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        let of = samples.iter().filter(|(at, sample)| *at == endpoint && sample.digest.is_some());
        let within = of.filter(|(_, sample)| sample.frontier.get(replica).is_some_and(|held| held.number <= number));
        within.map(|(_, sample)| sample.time).max().unwrap_or(0)
    }

    /// Writes a sample down.
    pub fn add(&self, endpoint: usize, sample: Sample) {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).push((endpoint, sample));
    }

    /// Writes down what a hypervisor said.
    pub fn add_domains(&self, domains: Domains) {
        self.domains.lock().unwrap_or_else(PoisonError::into_inner).push(domains);
    }
}

/// Asks one endpoint again and again until it is told to stop.
pub fn endpoint(cloud: &Cloud, at: usize, recorder: &Recorder, seen: &Seen, stop: &AtomicBool) {
    let Some(endpoint) = cloud.endpoints.get(at) else { return };
    let client = Client::admin(endpoint, &cloud.password).patient(TIMEOUT);
    let mut rights = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let time = recorder.now();
        let close = seen.is_close(time);
        let with_rights = !close && rights <= Instant::now();
        if with_rights {
            rights = Instant::now() + RIGHTS;
        }
        let sample = if close { held(&client) } else { sample(&client, with_rights) }.unwrap_or_default();
        let answered = recorder.now();
        let (site, base) = (endpoint.site.clone(), endpoint.base.clone());
        seen.add(at, Sample { time, answered, site, base, ..sample });
        let asked = Instant::now();
        let is_due = || asked.elapsed() >= if seen.is_close(recorder.now()) { CLOSE } else { EVERY };
        while !stop.load(Ordering::Relaxed) && !is_due() {
            std::thread::sleep(CLOSE / 5);
        }
    }
}

/// What an endpoint holds now.
fn held(client: &Client) -> Result<Sample> {
    let digest = client.get("/luc/v1/digest")?;
    let frontier = serde_json::from_value(digest["frontier"].clone())?;
    Ok(Sample { digest: digest["digest"].as_str().map(str::to_owned), frontier, ..Sample::default() })
}

/// What an endpoint says of itself now.
///
/// # Errors
/// If it does not answer.
pub fn sample(client: &Client, rights: bool) -> Result<Sample> {
    let held = held(client)?;
    let replicas = client.get("/luc/v1/replicas")?;
    let mut pools = if rights { client.get("/luc/v1/pools")? } else { Value::Null };
    for pool in pools.get_mut("pools").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(rights) = pool.get_mut("rights").and_then(Value::as_array_mut) {
            rights.retain(|right| right["site"] == client.site.as_str());
        }
    }
    let mut lag = BTreeMap::new();
    for replica in replicas["replicas"].as_array().into_iter().flatten().filter(|one| one["local"] != true) {
        let behind: &mut u64 = lag.entry(replica["site"].as_str().unwrap_or_default().to_owned()).or_default();
        *behind = (*behind).max(replica["lag"].as_u64().unwrap_or(0));
    }
    Ok(Sample { lag, pools, ..held })
}

/// Asks one hypervisor again and again until it is told to stop.
pub fn host(host: &Host, recorder: &Recorder, seen: &Seen, stop: &AtomicBool) {
    let mut asker = hypervisor::Asker::new(&host.uri);
    while !stop.load(Ordering::Relaxed) {
        let time = recorder.now();
        if let Ok(found) = asker.domains() {
            seen.add_domains(record(host, time, found));
        }
        sleep(HYPERVISOR, stop);
    }
}

/// What a hypervisor said, for the record.
#[must_use]
pub fn record(host: &Host, time: u64, found: hypervisor::Domains) -> Domains {
    let (running, stopped) = (found.active.into_iter().collect(), found.inactive.into_iter().collect());
    Domains { time, site: host.site.clone(), host: host.name.clone(), running, stopped, said: None }
}

/// Sleeps, but not long after it is told to stop.
pub fn sleep(time: Duration, stop: &AtomicBool) {
    let until = std::time::Instant::now() + time;
    while !stop.load(Ordering::Relaxed) {
        let left = until.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            return;
        }
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
}
