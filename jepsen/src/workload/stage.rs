//! What workloads share: a project of their own in which to play, clients that are logged in to it, and how a verdict is
//! put together.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Cloud, Session, Valid, Verdict};
use crate::client::{Client, Trouble};
use crate::history::{History, Kind, Pair, Process};
use crate::run::{Excuse, Fault, excuses, faults};

/// How long something that was made at one site may take to be known at the others, before any fault.
const KNOWN: Duration = Duration::from_secs(180);
/// How long a final read is asked for again.
pub(super) const INSIST: Duration = Duration::from_secs(180);
/// Bytes of the image that servers boot from.
const IMAGE: usize = 64 << 10;

/// A lock that outlives a panic elsewhere: what it guards is never half written.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What was made for one workload.
pub(super) struct Ground {
    /// The project's name; flavor and image are called so too.
    pub(super) name: String,
    /// The project's id.
    pub(super) project: String,
    /// The image's id.
    pub(super) image: String,
    /// Sites, in the cloud's order.
    pub(super) sites: Vec<String>,
    /// The administrator's password.
    pub(super) password: String,
}

/// A workload's ground, and clients that are logged in to it.
#[derive(Default)]
pub(super) struct Stage {
    ground: OnceLock<Ground>,
    clients: Mutex<HashMap<(u32, usize), Client>>,
    count: AtomicU64,
}

impl Stage {
    /// Makes project, quota, image and flavor, and waits until every site knows them. Names are new for each run.
    pub(super) fn prepare(
        &self,
        cloud: &Cloud,
        clients: &[Client],
        workload: &str,
        (vcpus, ram_mib): (u64, u64),
        quota: &Value,
    ) -> Result<()> {
        let first = clients.first().context("a cloud without sites")?;
        let name = format!("jepsen-{workload}-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]);
        let project = first.create_project(&name)?;
        first.set_quota(&project, quota)?;
        let image = first.as_user("admin", &cloud.password, &name).upload(&name, &[0; IMAGE])?;
        // The last that is made: who knows it knows all.
        first.create_flavor(&name, vcpus, ram_mib, 0)?;
        for client in clients {
            client.insist(KNOWN, |client| client.get(&format!("/compute/v2.1/flavors/{name}")))?;
        }
        let sites = cloud.endpoints.iter().map(|endpoint| endpoint.site.clone()).collect();
        let password = cloud.password.clone();
        let _ = self.ground.set(Ground { name, project, image, sites, password });
        Ok(())
    }

    /// What was made.
    pub(super) fn ground(&self) -> Result<&Ground, Trouble> {
        self.ground.get().ok_or_else(|| Trouble::Unsent("nothing was set up".into()))
    }

    /// The session's client of its own site, in the project.
    pub(super) fn client(&self, session: &Session) -> Result<Client, Trouble> {
        self.cached(session, usize::MAX, &session.client)
    }

    /// The session's client of some site, in the project.
    pub(super) fn client_at(&self, session: &Session, at: usize) -> Result<Client, Trouble> {
        let client = session.all.get(at).ok_or_else(|| Trouble::Unsent("there is no such site".into()))?;
        self.cached(session, at, client)
    }

    fn cached(&self, session: &Session, at: usize, client: &Client) -> Result<Client, Trouble> {
        let ground = self.ground()?;
        let mut clients = lock(&self.clients);
        let own = clients.entry((session.process, at));
        Ok(own.or_insert_with(|| client.as_user("admin", &ground.password, &ground.name)).clone())
    }

    /// Makes a server of the workload's flavor and image.
    pub(super) fn create(&self, session: &Session, name: &str, zone: &str) -> Result<String, Trouble> {
        let ground = self.ground()?;
        self.client(session)?.create_server(name, zone, &ground.name, &ground.image)
    }

    /// A number that nobody else gets in this run.
    pub(super) fn fresh(&self) -> u64 {
        self.count.fetch_add(1, Ordering::Relaxed)
    }

    /// How many such numbers were given.
    pub(super) fn given(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// A site by chance.
    pub(super) fn any_site(&self, session: &mut Session) -> String {
        let sites = self.ground.get().map(|ground| ground.sites.as_slice()).unwrap_or_default();
        one_of(sites, session.rng.bits()).cloned().unwrap_or_default()
    }
}

/// One of a list, by random bits.
pub(super) fn one_of<T>(list: &[T], bits: u64) -> Option<&T> {
    let count = u64::try_from(list.len()).ok()?;
    list.get(usize::try_from(bits.checked_rem(count)?).ok()?)
}

/// What each session keeps for itself.
pub(super) struct Own<T>(Mutex<HashMap<u32, T>>);

impl<T> Default for Own<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Default> Own<T> {
    /// Looks at or changes what is this session's.
    pub(super) fn with<R>(&self, session: &Session, f: impl FnOnce(&mut T) -> R) -> R {
        f(lock(&self.0).entry(session.process).or_default())
    }
}

/// A text of a value; empty if there is none.
pub(super) fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// The id of a client's process.
pub(super) fn client_of(process: Process) -> u32 {
    match process {
        Process::Client(number) => number,
        Process::Nemesis => u32::MAX,
    }
}

/// What an operation's site is called.
pub(super) fn site_of<'a>(pair: &Pair<'a>) -> &'a str {
    pair.invoke.site.as_deref().unwrap_or_default()
}

/// What came of an operation; null if it is not known.
pub(super) fn result<'a>(pair: &Pair<'a>) -> &'a Value {
    static NOTHING: Value = Value::Null;
    pair.complete.filter(|op| op.kind == Kind::Ok).map_or(&NOTHING, |op| &op.value)
}

/// What failed, and why.
pub(super) fn failed_with(pair: &Pair<'_>, words: &str) -> bool {
    let error = pair.complete.filter(|op| op.kind == Kind::Fail).and_then(|op| op.error.as_deref());
    error.is_some_and(|error| error.contains(words))
}

/// When it ended, in the order of the history; never, if that is not known.
pub(super) fn ended(pair: &Pair<'_>) -> u64 {
    pair.complete.map_or(u64::MAX, |op| op.index)
}

/// Both indices of an operation, as far as there are two.
pub(super) fn indices(pair: &Pair<'_>) -> Vec<u64> {
    std::iter::once(pair.invoke.index).chain(pair.complete.map(|op| op.index)).collect()
}

/// What the faults of a run excuse.
pub(super) struct Excused {
    excuses: Vec<Excuse>,
    losses: Vec<Fault>,
    clocks: Vec<Fault>,
}

impl Excused {
    /// From the whole history.
    pub(super) fn of(all: &History) -> Self {
        let (clocks, others): (Vec<_>, Vec<_>) = faults(all).into_iter().partition(|fault| fault.name == "clock");
        let losses = others.into_iter().filter(|fault| fault.may_lose).collect();
        Self { excuses: excuses(all), losses, clocks }
    }

    /// Whether a site's clock was wrong then: what expires by it says nothing.
    pub(super) fn is_off(&self, site: &str, time: u64) -> bool {
        self.clocks.iter().any(|fault| fault.hit(site, time, time))
    }

    /// Whether a site's disk was lost or put back then, and its replica is not another one yet: what it shows may be old.
    pub(super) fn may_be_old(&self, site: &str, time: u64) -> bool {
        self.losses.iter().any(|fault| fault.hit(site, time, time))
    }

    /// Whether what this operation wrote may be lost.
    pub(super) fn loses(&self, pair: &Pair<'_>) -> bool {
        self.loses_at(pair, site_of(pair))
    }

    /// As [`Excused::loses`], for an operation of a session that wanders.
    pub(super) fn loses_at(&self, pair: &Pair<'_>, site: &str) -> bool {
        pair.complete.is_some_and(|op| self.excuses.iter().any(|excuse| excuse.covers(site, op.time)))
    }

    /// Which of its lives a site's replica leads: reads at one site are monotone within a life. A disk that was wiped or
    /// rolled back begins another, and what is answered meanwhile is one of its own: before its replica stopped, and after.
    pub(super) fn life(&self, site: &str, time: u64) -> u64 {
        let here = self.losses.iter().filter(|fault| fault.sites.iter().any(|other| other == site));
        let ends = here.flat_map(|fault| [Some(fault.from), fault.until]).flatten();
        let stops = self.excuses.iter().filter(|excuse| excuse.site == site).map(|excuse| excuse.until);
        ends.chain(stops).filter(|end| *end <= time).map(|_| 1).sum()
    }

    /// Whether a site's disk was touched between two times.
    pub(super) fn touched(&self, site: &str, from: u64, until: u64) -> bool {
        self.life(site, from) != self.life(site, until)
    }
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Anomaly {
    /// In a sentence.
    pub(super) what: String,
    /// The operations that show it.
    pub(super) ops: Vec<u64>,
}

impl Anomaly {
    pub(super) fn new(what: impl Into<String>, ops: impl IntoIterator<Item = u64>) -> Self {
        let ops: BTreeSet<u64> = ops.into_iter().collect();
        Self { what: what.into(), ops: ops.into_iter().collect() }
    }
}

/// What a checker is called, and what must hold.
pub(super) struct Rule {
    pub(super) workload: &'static str,
    pub(super) checker: &'static str,
    pub(super) rule: &'static str,
}

/// Whether a run says anything: what was done, and why that is not enough, if it is not.
#[derive(Clone, Debug, Default)]
pub(super) struct Worth {
    pub(super) done: String,
    pub(super) worthless: Option<String>,
}

impl Worth {
    /// Whether enough came of what was tried: so many of a hundred, at the least.
    pub(super) fn of(history: &History, least: usize, dull: impl Fn(&Pair<'_>) -> bool) -> Self {
        let pairs = history.pairs();
        let tried = pairs.iter().filter(|pair| !dull(pair)).count();
        let ok = pairs.iter().filter(|pair| pair.is_ok()).count();
        let fail = pairs.iter().filter(|pair| pair.kind() == Kind::Fail).count();
        let done = format!("{} operations: {ok} ok, {fail} failed, {} unknown", pairs.len(), pairs.len() - ok - fail);
        let enough = ok > 0 && ok * 100 >= tried * least;
        let worthless = (!enough).then(|| format!("worthless: only {ok} of {tried} operations came to anything"));
        Self { done, worthless }
    }

    /// What else there must have been.
    pub(super) fn needs(mut self, there: bool, what: &str) -> Self {
        if !there && self.worthless.is_none() {
            self.worthless = Some(format!("worthless: {what}"));
        }
        self
    }
}

impl Rule {
    /// The verdict: broken by the smallest anomaly; else unknown, if the run says nothing; else it held.
    pub(super) fn verdict(&self, worth: &Worth, mut anomalies: Vec<Anomaly>) -> Verdict {
        anomalies.sort_by(|a, b| (a.ops.len(), &a.ops).cmp(&(b.ops.len(), &b.ops)));
        let first = anomalies.first();
        let (valid, summary) = match (first, &worth.worthless) {
            (Some(first), _) if anomalies.len() == 1 => (Valid::False, first.what.clone()),
            (Some(first), _) => (Valid::False, format!("{} ({} such)", first.what, anomalies.len())),
            (None, Some(why)) => (Valid::Unknown, format!("{why}; {}", worth.done)),
            (None, None) => (Valid::True, worth.done.clone()),
        };
        let others: Vec<Value> =
            anomalies.iter().take(20).map(|one| json!({"what": one.what, "operations": one.ops})).collect();
        Verdict {
            workload: self.workload.into(),
            checker: self.checker.into(),
            rule: self.rule.into(),
            valid,
            summary,
            detail: json!({"done": worth.done, "anomalies": others}),
            anomaly: first.map(|first| first.ops.clone()).unwrap_or_default(),
        }
    }
}

/// Groups by a key, keeping the order.
pub(super) fn group<K: Eq + Hash, V>(items: impl IntoIterator<Item = (K, V)>) -> HashMap<K, Vec<V>> {
    let mut groups: HashMap<K, Vec<V>> = HashMap::new();
    for (key, value) in items {
        groups.entry(key).or_default().push(value);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk is copied at 10, its replica stops at 25 with all that it has shown since, the copy is back at 30, and another
    /// replica is in its place at 40.
    #[test]
    fn an_old_copy_leads_a_life_of_its_own() {
        let excuse = Excuse { site: "lyon".into(), after: 12, until: 25, ..Excuse::default() };
        let sites = vec!["lyon".to_owned()];
        let loss = Fault { from: 10, until: Some(40), sites, excused: vec![excuse.clone()], ..Fault::default() };
        let excused = Excused { excuses: vec![excuse], losses: vec![loss], clocks: Vec::new() };
        assert!(excused.touched("lyon", 20, 30), "before it stopped, and from the copy");
        assert!(excused.touched("lyon", 5, 20) && excused.touched("lyon", 30, 45));
        assert!(!excused.touched("lyon", 15, 20) && !excused.touched("lyon", 27, 35));
        assert!(!excused.touched("paris", 5, 45));
    }
}
