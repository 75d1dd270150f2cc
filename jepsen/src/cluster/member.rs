//! What an operator does with members: admit, retire, put another in a replica's place.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::Value;

use super::Cluster;
use super::disk::copy;
use super::node::{Node, Role};
use super::process::eventually;
use crate::run::Tip;

/// How long a silent replica may be taken for one that answers.
const SILENCE: Duration = Duration::from_secs(180);
/// In how long it is known to be silent by all it was connected to.
const NOTICED: Duration = Duration::from_secs(10);

impl Cluster {
    /// Lets a prepared node join, and starts it.
    ///
    /// # Errors
    /// What `luc` says.
    pub fn join(&mut self, at: usize) -> Result<()> {
        self.join_as(at, &[])?;
        self.begin(at)
    }

    /// Lets another replica take the place of a node's, which has stopped: its files are put aside, its host stays.
    ///
    /// # Errors
    /// What `luc` says.
    pub fn replace(&mut self, at: usize) -> Result<()> {
        self.join_as(at, &["--replace"])?;
        // What `luc` has put aside is a retired replica's: an operator makes room.
        let disk = self.nodes.get(at).context("no such node")?.disk.path();
        for entry in std::fs::read_dir(disk)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("data.was-") {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        self.begin(at)
    }

    /// Takes a stopped node's replica off its disk, as if that had failed, and lets another join in its place. What is its
    /// machine's stays: its host, and images.
    ///
    /// # Errors
    /// What `luc` says.
    pub fn rejoin(&mut self, at: usize) -> Result<()> {
        let node = self.nodes.get(at).context("no such node")?;
        let (data, aside) = (node.data(), node.data().with_extension("machine"));
        if data.exists() {
            std::fs::rename(&data, &aside)?;
        }
        self.join_as(at, &[])?;
        for kept in ["agent", "images"] {
            if aside.join(kept).exists() {
                let _ = std::fs::remove_dir_all(data.join(kept));
                std::fs::rename(aside.join(kept), data.join(kept))?;
            }
        }
        std::fs::remove_dir_all(&aside)?;
        self.begin(at)
    }

    /// Takes from a stopped node's disk what is its replica's: store, keys, certificates.
    ///
    /// # Errors
    /// What the system says.
    pub fn wipe(&self, at: usize) -> Result<()> {
        let data = self.nodes.get(at).context("no such node")?.data();
        for entry in std::fs::read_dir(&data)? {
            let entry = entry?;
            let kept = ["agent", "images"].iter().any(|kept| entry.file_name() == *kept);
            match (kept, entry.file_type()?.is_dir()) {
                (true, _) => {}
                (false, true) => std::fs::remove_dir_all(entry.path())?,
                (false, false) => std::fs::remove_file(entry.path())?,
            }
        }
        Ok(())
    }

    /// Puts a copy in the place of a stopped node's data: other files with the same content.
    ///
    /// # Errors
    /// What the system says.
    pub fn put_copy(&self, at: usize) -> Result<()> {
        let data = self.nodes.get(at).context("no such node")?.data();
        let aside = data.with_extension("original");
        std::fs::rename(&data, &aside)?;
        copy(&aside, &data)?;
        Ok(std::fs::remove_dir_all(&aside)?)
    }

    /// Prepares a second node from a copy of a node's data.
    ///
    /// # Errors
    /// What the system says.
    pub fn clone_of(&mut self, at: usize) -> Result<usize> {
        let node = self.nodes.get(at).context("no such node")?;
        let (site, data) = (node.site.clone(), node.data());
        let site = self.spec.sites.iter().position(|name| *name == site).context("no such site")?;
        let other = self.prepare(site, Role::Replica, false)?;
        copy(&data, &self.nodes.get(other).context("just prepared")?.data())?;
        Ok(other)
    }

    /// Retires a replica that has stopped: its rights go to another of its site, or to any other that runs.
    ///
    /// # Errors
    /// What `luc` says.
    pub fn retire(&mut self, at: usize, replica: &str) -> Result<()> {
        let site = &self.nodes.get(at).context("no such node")?.site;
        let mut heirs: Vec<&Node> = self.others(at).collect();
        heirs.sort_by_key(|heir| heir.site != *site);
        let began = Instant::now();
        let mut last = anyhow!("no replica runs");
        let asked = eventually(SILENCE, "a retirement to be taken down", || {
            // A replica that was killed is taken for one that answers for some seconds. Who still refuses then may be a copy
            // that writes nothing, as another fault has it: an operator asks elsewhere.
            let asked = if began.elapsed() < NOTICED { 1 } else { heirs.len() };
            for heir in heirs.iter().take(asked) {
                let Some(id) = heir.replica.as_deref() else { continue };
                match heir.luc(&["replica", "retire", replica, "--heir", id]) {
                    Ok(_) => {
                        self.remind(heir);
                        return Ok(true);
                    }
                    Err(error) => last = error,
                }
            }
            Ok(false)
        });
        if asked.is_err() {
            return Err(last);
        }
        self.retiring.push(replica.to_owned());
        Ok(())
    }

    /// Asks once more for retirements of which a replica knows nothing: who was asked may have lost its disk before it told anybody.
    /// Until then everybody waits for the word of who is gone, as an operator sees in `luc status`.
    fn remind(&self, asked: &Node) {
        let Ok(status) = self.ask(asked).get("/luc/v1/status") else { return };
        let replicas = status["replicas"].as_array().into_iter().flatten();
        let unasked = replicas.filter(|one| one["retirement"].is_null()).filter_map(|one| one["id"].as_str());
        for id in unasked.filter(|id| self.retiring.iter().any(|of| of == id)) {
            if let Some(heir) = asked.replica.as_deref().filter(|heir| *heir != id) {
                let _ = asked.luc(&["replica", "retire", id, "--heir", heir]);
            }
        }
    }

    /// Whether those who stay can still retire somebody (M2) once these nodes are gone for good: they have more than half of the
    /// votes that somebody has, as far as one of them knows. Who loses more than that has to say `--force`.
    pub fn can_lose(&self, nodes: &[usize]) -> bool {
        let stays = |(at, node): &(usize, &Node)| !nodes.contains(at) && node.role == Role::Replica && !node.left;
        let stay: Vec<&Node> = self.nodes.iter().enumerate().filter(stays).map(|(_, node)| node).collect();
        let Some(asker) = stay.iter().find(|node| node.serves()) else { return false };
        let Ok(answer) = self.ask(asker).get("/luc/v1/pools") else { return false };
        let pools = answer["pools"].as_array().into_iter().flatten();
        let rights =
            pools.filter(|pool| pool["subject"]["votes"].is_string()).flat_map(|pool| pool["rights"].as_array());
        let rights: Vec<&Value> = rights.flatten().filter(|right| right["retired"] == false).collect();
        let sum = |counts: &dyn Fn(&Value) -> bool| -> u64 {
            let counted = rights.iter().filter(|right| counts(right));
            counted.filter_map(|right| right["free"]["Votes"].as_u64()).sum()
        };
        let is_there = |id: &str| stay.iter().any(|node| node.replica.as_deref() == Some(id));
        let stays = |right: &Value| right["retiring"] == false && right["replica"].as_str().is_some_and(is_there);
        sum(&stays) > sum(&|_| true) / 2
    }

    /// Waits until all retirements that were asked for have taken effect.
    ///
    /// # Errors
    /// If they do not in time.
    pub fn retired(&self, limit: Duration) -> Result<()> {
        if self.retiring.is_empty() {
            return Ok(());
        }
        let asked = self.others(usize::MAX).next().context("no replica runs")?;
        let asker = self.ask(asked);
        self.remind(asked);
        let mut awaited = Vec::new();
        let all = eventually(limit, "retirements to take effect", || {
            let Ok(status) = asker.get("/luc/v1/status") else { return Ok(false) };
            let of = |id: &str| {
                let replicas = status["replicas"].as_array().into_iter().flatten();
                replicas.filter(|one| one["id"] == id).map(|one| one["retirement"].clone()).next().unwrap_or_default()
            };
            let open = self.retiring.iter().map(|id| (id.clone(), of(id)));
            awaited = open.filter(|(_, retirement)| retirement["state"] != "retired").collect();
            Ok(awaited.is_empty())
        });
        if all.is_err() {
            bail!(
                "these retirements have not taken effect {} s after everything was healed: {awaited:?}",
                limit.as_secs()
            );
        }
        Ok(())
    }

    /// Replicas that run, other than this node, and whose word others take.
    pub fn others(&self, but: usize) -> impl Iterator<Item = &Node> {
        let others = self.nodes.iter().enumerate().filter(move |(at, _)| *at != but).map(|(_, node)| node);
        others.filter(|node| node.serves() && !node.revoked)
    }

    /// The highest entry of a replica that any other replica holds, of those that run.
    ///
    /// # Errors
    /// If one that runs does not say so: it may hold more than all the others, and what is held is not excused.
    pub fn held_by_others(&self, at: usize, replica: &str) -> Result<u64> {
        let ask = |node: &Node| -> Result<u64> {
            let asker = self.ask(node).patient(Duration::from_secs(10));
            let answer: Value = asker.insist(SILENCE, |asker| asker.get("/luc/v1/frontier"))?;
            // It may never have heard of it.
            Ok(serde_json::from_value(answer["frontier"][replica].clone()).map_or(0, |tip: Tip| tip.number))
        };
        let held: Vec<u64> = self.others(at).map(ask).collect::<Result<_>>()?;
        held.into_iter().max().context("no other replica runs: nobody says what only the lost disk held")
    }

    fn join_as(&mut self, at: usize, more: &[&str]) -> Result<()> {
        let node = self.nodes.get(at).context("no such node")?;
        let mut words = vec!["token", "--site", &node.site];
        if node.role == Role::Agent {
            words.push("--agent");
        }
        let mut last = None;
        for sponsor in self.others(at) {
            let joined = sponsor.luc(&words).and_then(|token| {
                let words: Vec<&str> = ["join", token.trim()].into_iter().chain(more.iter().copied()).collect();
                node.luc(&words)
            });
            match joined {
                Ok(_) => return Ok(()),
                Err(error) => last = Some(error),
            }
        }
        let error = last.context("no replica runs that could admit it")?;
        Err(error.context(format!("{} could not join", node.name)))
    }

    fn begin(&mut self, at: usize) -> Result<()> {
        let node = self.nodes.get_mut(at).context("no such node")?;
        node.start()?;
        node.ready()?;
        if node.role == Role::Replica { self.note_replica(at) } else { Ok(()) }
    }

    /// Notes which replica a node runs.
    ///
    /// # Errors
    /// If it does not say.
    pub(super) fn note_replica(&mut self, at: usize) -> Result<()> {
        let asker = self.ask(self.nodes.get(at).context("no such node")?);
        let mut id = None;
        eventually(SILENCE, "a replica to say who it is", || {
            id = asker.get("/luc/v1/status").ok().and_then(|status| status["replica"].as_str().map(str::to_owned));
            Ok(id.is_some())
        })?;
        self.nodes.get_mut(at).context("no such node")?.replica = id;
        Ok(())
    }

    /// Forgets a node that was never more than a copy or has left: it is not started again, and its disk is empty.
    pub fn leave(&mut self, at: usize) {
        let Some(node) = self.nodes.get_mut(at) else { return };
        node.kill();
        node.left = true;
        let _ = std::fs::remove_dir_all(node.data());
    }

    /// Writes an older content into a file of a stopped node, which stays the same file: a disk that was rolled back in its
    /// place.
    ///
    /// # Errors
    /// What the system says.
    pub fn roll_back(&self, at: usize, old: &Path) -> Result<()> {
        let store = self.nodes.get(at).context("no such node")?.data().join("store.redb");
        let bytes = std::fs::read(old)?;
        Ok(std::fs::write(store, bytes)?)
    }
}
