//! The network between the sites: our own switch, as a process of its own, so that it has its own time on the processors and
//! ends in order even when the suite does not.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::process::{Ended, end, eventually, spawn};
use crate::wan::site;

/// The network, up until it is dropped.
pub struct Net {
    name: String,
    process: Option<Child>,
}

impl Net {
    /// Makes namespaces for these sites, with perfect lines between them. What chance decides follows from the seed.
    ///
    /// # Errors
    /// If the switch does not come up; its log says why.
    pub fn start(jepsen: &Path, name: &str, sites: &[String], seed: u64, log: &Path) -> Result<Self> {
        let mut switch = Command::new("setpriv");
        switch.args(["--pdeathsig", "TERM"]).arg(jepsen).args(["switch", name, &seed.to_string()]).args(sites);
        let mut net = Self { name: name.into(), process: Some(spawn(switch.stdin(Stdio::null()), log)?) };
        let limit = Duration::from_secs(120);
        let up = eventually(limit, "the network to be up", || {
            if let Some(status) = net.process.as_mut().and_then(|process| process.try_wait().ok().flatten()) {
                bail!("the switch ended: {status}");
            }
            Ok(net.say("show").is_ok())
        });
        up.with_context(|| format!("its log is {}", log.display()))?;
        Ok(net)
    }

    /// Tells the switch something (`docs/wan.md`), and gives its answer.
    ///
    /// # Errors
    /// If it refuses, or is not there.
    pub fn say(&self, words: &str) -> Result<Value> {
        let stream = UnixStream::connect(site::socket(&self.name)).context("the switch is not there")?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        writeln!(&stream, "{words}")?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line)?;
        match answer["error"].as_str() {
            Some(error) => bail!("{words}: {error}"),
            None => Ok(answer),
        }
    }

    /// The name of a site's namespace.
    #[must_use]
    pub fn namespace(&self, site: &str) -> String {
        site::namespace(&self.name, site)
    }

    /// Where a site's namespace is.
    #[must_use]
    pub fn path(&self, site: &str) -> PathBuf {
        Path::new("/run/netns").join(self.namespace(site))
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        // It ends what still runs at its sites, and takes the namespaces away.
        self.process.take().into_iter().for_each(|process| end(process, Ended::Asked));
    }
}
