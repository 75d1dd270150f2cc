//! A replica's certificate is revoked while a site is cut off. What comes of it is asked from outside, and is in the history for
//! the checker of the workload `auth`: whether anything that is written afterwards goes to that replica, or comes from it,
//! whether tokens that it had issued still work, and whether anybody is connected to it.
//!
//! The replica is one that has joined for it: no client works there, and it is retired afterwards.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::deck::shuffle;
use super::{Act, Nemesis, Planned, Undo, links, record};
use crate::client::Client;
use crate::cluster::node::Node;
use crate::history::Kind;
use crate::run::Fault;
use crate::workload::REVOKED;

/// How long what is written may take to be where it does not belong.
const SPREADS: Duration = Duration::from_secs(3);
/// How long one answer is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// A replica whose certificate was revoked, and that is to be looked at.
pub(super) struct Revoked {
    node: usize,
    /// Where that was done.
    by: String,
    /// When it was acknowledged there, nanoseconds since the run began.
    time: u64,
    /// A token that it had issued before.
    token: String,
    /// When all have heard of it.
    due: Instant,
}

impl Nemesis<'_> {
    /// Who joins and is revoked, where that is said, and who is cut off meanwhile.
    pub(super) fn revocation(&mut self) -> Result<Option<Planned>> {
        let mut sites = self.cluster()?.spec().sites.clone();
        shuffle(&mut sites, &mut self.rng);
        // It is revoked where a replica runs that no other fault hits.
        let hit: Vec<usize> = self.open.iter().flat_map(|open| open.nodes.clone()).collect();
        let nodes = self.cluster()?.nodes.iter().enumerate().filter(|(at, node)| !hit.contains(at) && node.serves());
        let sound: Vec<&str> = nodes.map(|(_, node)| node.site.as_str()).collect();
        sites.sort_by_key(|site| !sound.contains(&site.as_str()));
        let [by, home, alone, ..] = sites.as_slice() else { return Ok(None) };
        if !sound.contains(&by.as_str()) {
            return Ok(None);
        }
        let others: Vec<String> = sites.iter().filter(|site| *site != alone).cloned().collect();
        let detail = format!("{alone} is cut off, and the certificate of a further replica of {home} revoked at {by}");
        let cut = links::both(std::slice::from_ref(alone), &others);
        let fault = Fault { sites: sites.clone(), cut, detail, ..Fault::default() };
        let act = Act::Revoke { home: home.clone(), by: by.clone(), alone: alone.clone() };
        Ok(Some(Planned { fault, act }))
    }

    /// It joins; one site is cut off; its certificate is revoked at another.
    pub(super) fn revoke(&mut self, home: &str, by: &str, alone: &str) -> Result<(Vec<usize>, Undo)> {
        let site = self.cluster()?.spec().sites.iter().position(|site| site == home).context("no such site")?;
        let (node, _) = self.newcomer(site)?;
        let cluster = self.cluster()?;
        let replica = cluster.nodes.get(node).and_then(|node| node.replica.clone()).context("it has no replica")?;
        let token = cluster.ask(cluster.nodes.get(node).context("no such node")?).login()?;
        let sponsor = cluster.others(node).find(|node| node.site == by).context("no replica runs there")?;
        let asker = cluster.ask(sponsor);
        cluster.net.say(&format!("isolate {alone}"))?;
        asker.post(&format!("/luc/v1/replicas/{replica}/revoke"), &json!({}))?;
        cluster.nodes.get_mut(node).context("no such node")?.revoked = true;
        let time = self.around.recorder.now();
        // From when the last fault is over, which comes later.
        self.revoked.push(Revoked { node, by: by.to_owned(), time, token, due: Instant::now() });
        Ok((vec![node], Undo::Revoked))
    }

    /// A fault has ended: if none begins, from now on all hear of it.
    pub(super) fn note_quiet(&mut self) {
        // A second more: the fault ends only when this has.
        let due = Instant::now() + REVOKED + Duration::from_secs(1);
        self.revoked.iter_mut().for_each(|one| one.due = due);
    }

    /// Whether a node's certificate was revoked: no other fault hits it.
    pub(super) fn is_revoked(&self, at: usize) -> bool {
        self.revoked.iter().any(|one| one.node == at)
    }

    /// Looks at those that are due, or waits for all; then they leave.
    pub(super) fn look_at_revoked(&mut self, wait: bool) -> Result<()> {
        let open: Vec<usize> = self.open.iter().flat_map(|open| open.nodes.clone()).collect();
        while let Some(at) =
            self.revoked.iter().position(|one| !open.contains(&one.node) && (wait || one.due <= Instant::now()))
        {
            let one = self.revoked.swap_remove(at);
            std::thread::sleep(one.due.saturating_duration_since(Instant::now()));
            self.look_at(&one)?;
            self.farewell(one.node)?;
        }
        Ok(())
    }

    fn look_at(&mut self, one: &Revoked) -> Result<()> {
        let cluster = self.around.cluster.as_deref().context("there is no cloud of our own")?;
        let name = |at: usize| cluster.nodes.get(at).map(|node| node.name.as_str());
        let ask = |node: &Node| cluster.ask(node).patient(PATIENCE);
        let revoked = cluster.nodes.get(one.node).context("no such node")?;
        let replica = revoked.replica.clone().unwrap_or_default();
        let newcomers: Vec<&str> = self.revoked.iter().filter_map(|other| name(other.node)).collect();
        let others = cluster.others(one.node).filter(|node| !newcomers.contains(&node.name.as_str()));
        let others: Vec<Client> = others.map(&ask).collect();
        let (theirs, ours) = (format!("revoked-{replica}"), |at: usize| format!("not-for-{replica}-{at}"));
        let revoked = ask(revoked);
        record(self.around.recorder, Kind::Invoke, "certificate", json!({"replica": replica}), None);
        // What is not written is nowhere.
        let _ = revoked.create_flavor(&theirs, 1, 64, 0);
        for (at, client) in others.iter().enumerate() {
            let _ = client.create_flavor(&ours(at), 1, 64, 0);
        }
        std::thread::sleep(SPREADS);
        let has = |client: &Client, flavor: &str| client.get(&format!("/compute/v2.1/flavors/{flavor}")).is_ok();
        let token = |client: &Client| client.with_token(&one.token).get("/compute/v2.1/flavors").is_ok();
        let talks = |client: &Client| {
            let replicas = client.get("/luc/v1/replicas").unwrap_or_default();
            let mut replicas = replicas["replicas"].as_array().into_iter().flatten();
            replicas.any(|other| other["id"] == replica && other["reachable"] == true)
        };
        let look = |(at, client): (usize, &Client)| {
            let (takes, gives) = (has(client, &theirs), has(&revoked, &ours(at)));
            json!({"site": client.site, "takes": takes, "gives": gives, "token": token(client), "talks": talks(client)})
        };
        let sites: Vec<_> = others.iter().enumerate().map(look).collect();
        let told = json!({"replica": replica, "by": one.by, "revoked": one.time, "sites": sites});
        record(self.around.recorder, Kind::Info, "certificate", told, None);
        Ok(())
    }
}
