//! Clouds of real `luc` processes on loopback addresses, with a WAN between them, for the end-to-end tests.
//!
//! Every site has its own directory, its own loopback address and a relay before it ([`luc_api::wan`]), so that links
//! can be cut. Whatever a test does, what it started is killed and removed when it ends; a test that failed prints the
//! ends of the sites' logs.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use luc_api::wan::Wan;
use serde_json::{Value, json};

/// The administrator's password in test clouds.
pub const PASSWORD: &str = "test-password";

/// Sites of one process get addresses of their own; processes differ in the second part.
static NEXT: AtomicU8 = AtomicU8::new(1);

/// The `luc` binary that was built beside this test.
///
/// # Panics
/// If it was not built: `make test` does it.
#[must_use]
pub fn luc() -> PathBuf {
    let test = std::env::current_exe().unwrap_or_default();
    let profile = test.ancestors().nth(2).unwrap_or(Path::new("target/debug")).to_owned();
    let luc = profile.join("luc");
    assert!(luc.exists(), "{} is missing: run `cargo build -p luc-api` first, as `make test` does", luc.display());
    luc
}

/// The root of the project.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// A cloud of sites with libvirt's simulated hypervisor.
pub struct Cloud {
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    /// The network between the sites.
    pub wan: Wan,
    /// The sites, the founder first.
    pub sites: Vec<Site>,
    /// What goes at the end of each site's configuration.
    more: String,
}

/// One site: a replica with an agent.
pub struct Site {
    /// Its name.
    pub name: String,
    /// Its configuration file.
    pub config: PathBuf,
    /// Where its APIs are.
    pub api: SocketAddr,
    /// Where its replica listens.
    pub quic: SocketAddr,
    process: Option<Child>,
    log: PathBuf,
}

impl Cloud {
    /// A cloud with these sites, all up.
    ///
    /// # Errors
    /// Whatever keeps a site from starting.
    pub fn start(names: &[&str]) -> Result<Self> {
        Self::start_with(names, "")
    }

    /// A cloud with these sites, all up, and this at the end of their configurations.
    ///
    /// # Errors
    /// Whatever keeps a site from starting.
    pub fn start_with(names: &[&str], more: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (dir, more) = (tempfile::tempdir()?, more.to_owned());
        let mut cloud = Self { dir, runtime, wan: Wan::default(), sites: Vec::new(), more };
        for name in names {
            cloud.add(name)?;
        }
        // A site hears once a second how the hosts of the others are.
        for site in &cloud.sites {
            let client = site.login()?;
            eventually(Duration::from_secs(30), "all hosts to be up everywhere", || {
                let hosts = client.get("/luc/v1/hosts")?;
                let up = |hosts: &Vec<Value>| hosts.iter().filter(|host| host["state"] == "up").count();
                Ok(hosts["hosts"].as_array().map(up) == Some(names.len()))
            })?;
        }
        Ok(cloud)
    }

    /// Founds the cloud with its first site, or joins a further one; then starts it.
    ///
    /// # Errors
    /// Whatever keeps it from starting.
    pub fn add(&mut self, name: &str) -> Result<&Site> {
        let site = self.prepare(name, &self.more)?;
        match self.sites.first() {
            None => {
                let password = self.dir.path().join("password");
                std::fs::write(&password, PASSWORD)?;
                site.luc(&["init", "--site", name, "--password-file", &password.display().to_string()])?;
            }
            Some(founder) => {
                let token = founder.luc(&["token", "--site", name])?;
                site.luc(&["join", token.trim()])?;
            }
        }
        self.sites.push(site);
        let last = self.sites.last_mut().context("just pushed")?;
        last.start()?;
        let client = last.login()?;
        eventually(Duration::from_secs(30), "the site's host", || {
            let hosts = client.get("/luc/v1/hosts")?;
            Ok(hosts["hosts"]
                .as_array()
                .is_some_and(|hosts| hosts.iter().any(|host| host["site"] == name && host["state"] == "up")))
        })?;
        self.sites.last().context("just pushed")
    }

    /// A site's directory, configuration and relay, but no replica yet. `more` goes at the configuration's end.
    ///
    /// # Errors
    /// What the system says.
    pub fn prepare(&self, name: &str, more: &str) -> Result<Site> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let part = u8::try_from(20 + std::process::id() % 100)?;
        let (own, front) = (Ipv4Addr::new(127, part, 1, number), Ipv4Addr::new(127, part, 2, number));
        let api = TcpListener::bind((own, 0))?.local_addr()?;
        let quic = UdpSocket::bind((own, 0))?.local_addr()?;
        let relay = UdpSocket::bind((front, 0))?.local_addr()?;
        self.runtime.block_on(self.wan.relay(relay, quic))?;
        let dir = self.dir.path().join(name);
        std::fs::create_dir_all(&dir)?;
        let text = format!(
            "data_dir = {:?}\nlisten = \"{quic}\"\nadvertise = [\"{relay}\"]\n[api]\nlisten = \"{api}\"\n\
             [agent]\nname = \"{name}-1\"\nlibvirt_uri = \"test:///default\"\ncpus = 64\nmemory_mib = 262144\n\
             disk_gib = 4096\n{more}",
            dir.join("data"),
        );
        let config = dir.join("luc.toml");
        std::fs::write(&config, text)?;
        Ok(Site { name: name.into(), config, api, quic, process: None, log: dir.join("luc.log") })
    }

    /// Cuts a site off.
    pub fn cut(&self, at: usize) {
        self.wan.cut(self.sites[at].quic.ip());
    }

    /// A site's client, logged in as administrator.
    ///
    /// # Errors
    /// If the login fails.
    pub fn login(&self, at: usize) -> Result<Client> {
        self.sites[at].login()
    }

    /// Waits until all running sites have one digest.
    ///
    /// # Errors
    /// If they do not within `limit`.
    pub fn agree(&self, clients: &[Client], limit: Duration) -> Result<Duration> {
        let started = Instant::now();
        eventually(limit, "all sites to agree", || {
            let digests: Result<Vec<Value>> = clients.iter().map(|client| client.get("/luc/v1/digest")).collect();
            let digests = digests?;
            Ok(digests.windows(2).all(|pair| pair[0]["digest"] == pair[1]["digest"]))
        })?;
        Ok(started.elapsed())
    }

    /// Where the cloud's files are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// A further host of a site: an agent in a process of its own. Killed when dropped.
pub struct Agent {
    config: PathBuf,
    process: Option<Child>,
}

impl Agent {
    /// Joins a site by a token, and starts.
    ///
    /// # Errors
    /// Whatever keeps it from joining.
    pub fn join(cloud: &Cloud, at: usize, name: &str) -> Result<Self> {
        let site = &cloud.sites[at];
        let dir = cloud.dir().join(format!("host-{name}"));
        std::fs::create_dir_all(&dir)?;
        let text = format!(
            "data_dir = {:?}\nreplicas = [\"{}\"]\n[agent]\nname = \"{name}\"\nlibvirt_uri = \"test:///default\"\n\
             cpus = 8\nmemory_mib = 65536\ndisk_gib = 500\n",
            dir.join("data"),
            site.quic,
        );
        let config = dir.join("agent.toml");
        std::fs::write(&config, text)?;
        let token = site.luc(&["token", "--site", &site.name, "--agent"])?;
        let joined = Command::new(luc()).args(["join", "--config"]).arg(&config).arg(token.trim()).output()?;
        if !joined.status.success() {
            bail!("luc join: {}", String::from_utf8_lossy(&joined.stderr).trim());
        }
        let mut agent = Self { config, process: None };
        agent.start()?;
        Ok(agent)
    }

    /// Starts it.
    ///
    /// # Errors
    /// What the system says.
    pub fn start(&mut self) -> Result<()> {
        self.kill();
        let mut agent = Command::new(luc());
        agent.args(["agent", "--config"]).arg(&self.config).stdin(Stdio::null()).stdout(Stdio::null());
        self.process = Some(agent.stderr(Stdio::null()).process_group(0).spawn()?);
        Ok(())
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        for site in &mut self.sites {
            site.kill();
            if std::thread::panicking() {
                let log = std::fs::read_to_string(&site.log).unwrap_or_default();
                let lines: Vec<&str> = log.lines().filter(|line| !line.contains(" request ")).collect();
                let _ = writeln!(std::io::stderr(), "--- log of {}", site.name);
                for line in lines.iter().rev().take(30).rev() {
                    let _ = writeln!(std::io::stderr(), "{line}");
                }
            }
        }
    }
}

impl Site {
    /// Runs `luc` with the site's configuration, and gives what it printed.
    ///
    /// # Errors
    /// What it printed as an error.
    pub fn luc(&self, arguments: &[&str]) -> Result<String> {
        let (first, rest) = arguments.split_first().context("a command")?;
        let output = Command::new(luc()).arg(first).args(rest).arg("--config").arg(&self.config).output()?;
        if !output.status.success() {
            bail!("luc {first}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Starts the replica, and waits until it answers, be it that it is not well.
    ///
    /// # Errors
    /// If it does not.
    pub fn start(&mut self) -> Result<()> {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(luc());
        command.args(["serve", "--config"]).arg(&self.config).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log).process_group(0);
        self.process = Some(command.spawn()?);
        let base = format!("http://{}", self.api);
        let client = Client { base, token: None, agent: agent() };
        eventually(Duration::from_secs(30), "the site to answer", || {
            if let Some(status) = self.process.as_mut().and_then(|process| process.try_wait().ok().flatten()) {
                bail!("luc serve ended: {status}");
            }
            Ok(client.send("GET", "/healthz", &[], &[]).is_ok())
        })
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// Whether the process still runs.
    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().is_some_and(|process| matches!(process.try_wait(), Ok(None)))
    }

    /// The site's log so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A client, logged in as administrator.
    ///
    /// # Errors
    /// If the login fails.
    pub fn login(&self) -> Result<Client> {
        Client::login(&format!("http://{}", self.api), "admin", PASSWORD, "admin")
    }
}

/// A client of one site.
#[derive(Clone)]
pub struct Client {
    base: String,
    token: Option<String>,
    agent: ureq::Agent,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Headers, lower-case names.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub text: String,
}

impl Answer {
    /// The body as JSON; null if it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_default()
    }

    /// A header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

fn agent() -> ureq::Agent {
    let config =
        ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(Duration::from_secs(60)));
    config.build().new_agent()
}

impl Client {
    /// Logs in to a project.
    ///
    /// # Errors
    /// If that fails.
    pub fn login(base: &str, user: &str, password: &str, project: &str) -> Result<Self> {
        let client = Self { base: base.into(), token: None, agent: agent() };
        let domain = json!({"id": "default"});
        let body = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {"name": user, "domain": domain, "password": password}}},
            "scope": {"project": {"name": project, "domain": domain}},
        }});
        let answer = client.send("POST", "/identity/v3/auth/tokens", &[], body.to_string().as_bytes())?;
        let token = answer.header("x-subject-token").map(str::to_owned);
        Ok(Self {
            token: Some(token.with_context(|| format!("login failed: {} {}", answer.status, answer.text))?),
            ..client
        })
    }

    /// The same client with another token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self { token: Some(token.into()), ..self.clone() }
    }

    /// The token.
    #[must_use]
    pub fn token(&self) -> &str {
        self.token.as_deref().unwrap_or_default()
    }

    /// Any request; whatever the status of the answer.
    ///
    /// # Errors
    /// If there is no answer.
    pub fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.header("x-auth-token", token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut response = self.agent.run(request.body(body)?)?;
        let headers = response.headers().iter();
        let headers = headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_owned()));
        let headers = headers.collect();
        let status = response.status().as_u16();
        let text = response.body_mut().with_config().limit(64 << 20).read_to_vec()?;
        Ok(Answer { status, headers, text: String::from_utf8_lossy(&text).into_owned() })
    }

    /// A request with a JSON body that must succeed.
    ///
    /// # Errors
    /// Any other status, with the answer's text.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let text = body.map(ToString::to_string).unwrap_or_default();
        let headers = [("content-type", "application/json"), ("openstack-api-version", "compute 2.90")];
        let answer = self.send(method, path, &headers, text.as_bytes())?;
        if !(200..300).contains(&answer.status) {
            bail!("{method} {path}: {} {}", answer.status, answer.text);
        }
        Ok(answer.json())
    }

    /// GET.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub fn get(&self, path: &str) -> Result<Value> {
        self.call("GET", path, None)
    }

    /// POST.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.call("POST", path, Some(body))
    }

    /// Uploads a raw image and gives its id.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub fn upload(&self, name: &str, data: &[u8]) -> Result<String> {
        let body = json!({"name": name, "disk_format": "raw", "container_format": "bare", "visibility": "public"});
        let id = self.post("/image/v2/images", &body)?["id"].as_str().context("an id")?.to_owned();
        let headers = [("content-type", "application/octet-stream")];
        let answer = self.send("PUT", &format!("/image/v2/images/{id}/file"), &headers, data)?;
        if answer.status != 204 {
            bail!("upload: {} {}", answer.status, answer.text);
        }
        Ok(id)
    }

    /// Creates a server of 128 MiB and gives its id.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub fn create(&self, name: &str, zone: &str, image: &str) -> Result<String> {
        let mut server = json!({"name": name, "flavorRef": "42", "imageRef": image, "networks": "none"});
        if !zone.is_empty() {
            server["availability_zone"] = json!(zone);
        }
        let created = self.post("/compute/v2.1/servers", &json!({"server": server}))?;
        Ok(created["server"]["id"].as_str().context("an id")?.to_owned())
    }

    /// A server; none if there is none.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub fn server(&self, id: &str) -> Result<Option<Value>> {
        let headers = [("openstack-api-version", "compute 2.90")];
        let answer = self.send("GET", &format!("/compute/v2.1/servers/{id}"), &headers, &[])?;
        match answer.status {
            200 => Ok(Some(answer.json()["server"].clone())),
            404 => Ok(None),
            status => bail!("{status} {}", answer.text),
        }
    }

    /// Waits until a server has a status.
    ///
    /// # Errors
    /// If it does not within `limit`.
    pub fn becomes(&self, id: &str, status: &str, limit: Duration) -> Result<()> {
        eventually(limit, &format!("{id} to become {status}"), || {
            Ok(self.server(id)?.is_some_and(|server| server["status"] == status))
        })
    }

    /// Names of all servers of the project, in order.
    ///
    /// # Errors
    /// See [`Client::call`].
    pub fn names(&self) -> Result<Vec<String>> {
        let servers = self.get("/compute/v2.1/servers")?;
        let names = servers["servers"].as_array().into_iter().flatten();
        let mut names: Vec<String> = names.filter_map(|server| server["name"].as_str().map(str::to_owned)).collect();
        names.sort();
        Ok(names)
    }
}

/// Waits until something holds.
///
/// # Errors
/// What `holds` says, or that it did not within `limit`.
pub fn eventually(limit: Duration, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    loop {
        if holds()? {
            return Ok(());
        }
        if started.elapsed() > limit {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
