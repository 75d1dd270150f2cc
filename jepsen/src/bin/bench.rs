//! `make bench`: the figures that the README promises, measured over HTTP against real `luc` processes on libvirt's
//! simulated hypervisor, beside their targets and beside OpenStack (Zed, Nova's fake driver, measured on such a machine
//! of two cores). The load runs on the same cores as the sites.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use luc_api::wan::Wan;
use serde_json::{Value, json};

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(bench())
}

async fn bench() -> Result<()> {
    println!("{:<52} {:>12} {:>12}   OpenStack", "", "measured", "target");
    let dir = tempfile::tempdir()?;
    let wan = Wan::default();
    let mut sites = vec![Site::start(dir.path(), "paris", &wan, None).await?];
    let paris = sites.first().context("a site")?;
    let image = paris.upload().await?;

    let idle = creates(paris, &image, 300).await?;
    line("POST /servers to 202, one idle site, p50", ms(idle.at(50)), "≤ 1.5 ms", "54 ms");
    line("  p99", ms(idle.at(99)), "≤ 8 ms", "");
    let active = to_active(paris, &image, 50).await?;
    line("POST to ACTIVE on test:///default, p50", ms(active.at(50)), "≤ 25 ms", "438 ms");
    let id = paris.create(&mut paris.connect().await?, &image, "one").await?;
    let gets = times(paris, &format!("/compute/v2.1/servers/{id}"), 2_000).await?;
    line("GET of one server, p50", ms(gets.at(50)), "≤ 0.4 ms", "32 ms");
    many(paris, &image, 500 - paris.count().await?).await?;
    line("resident memory, 500 servers", mib(paris.resident()?), "≤ 60 MiB", "3.2 GiB");
    let detail = times(paris, "/compute/v2.1/servers/detail", 60).await?;
    line("detail of 500 servers, p50", ms(detail.at(50)), "≤ 12 ms", "475 ms");
    let rate = parallel_gets(paris, &id, 16, Duration::from_secs(4)).await?;
    line("GETs a second, 16 clients", rate.to_string(), "≥ 15000", "59");

    // 500 servers at once, on a site of their own.
    let alone = Site::start(&dir.path().join("alone"), "alone", &Wan::default(), None).await?;
    let other = alone.upload().await?;
    let started = Instant::now();
    many(&alone, &other, 500).await?;
    alone.all_active(500).await?;
    line("500 servers ACTIVE", format!("{} ms", started.elapsed().as_millis()), "≤ 2 s", "109 s");
    drop(alone);

    // 10,000 on a further host: its agent is a process of its own, and so is what the simulated hypervisor keeps of them.
    let mut alone = Site::start(&dir.path().join("large"), "large", &Wan::default(), None).await?;
    let agent = alone.further_host().await?;
    let other = alone.upload().await?;
    // The hypervisor's own time is another figure: it is held while servers are created, and then makes them all.
    agent.signal("-STOP")?;
    let started = Instant::now();
    many(&alone, &other, 9_500).await?;
    let created = started.elapsed();
    agent.signal("-CONT")?;
    many(&alone, &other, 500).await?;
    let rate = 9_500_000_u128.checked_div(created.as_millis()).unwrap_or(0);
    line("creates a second, 16 clients, hypervisor held", rate.to_string(), "≥ 2000", "");
    alone.all_active(10_000).await?;
    line("resident memory, 10,000 servers on a further host", mib(alone.resident()?), "≤ 150 MiB", "");
    let took = alone.restart().await?;
    line("luc serve answers after its start, 10,000 servers", format!("{} ms", took.as_millis()), "≤ 1 s", "");
    drop((agent, alone));

    for name in ["lyon", "rennes"] {
        let next = Site::start(dir.path(), name, &wan, sites.first()).await?;
        sites.push(next);
    }
    let paris = sites.first().context("a site")?;
    let lyon = sites.get(1).context("a second site")?;
    settle(&sites).await?;
    let near = creates(paris, &image, 300).await?;
    wan.set_delay(Duration::from_millis(25));
    let far = creates(paris, &image, 300).await?;
    let ratio = far.at(50).as_micros() * 100 / near.at(50).as_micros().max(1);
    line(
        "POST, 50 ms round trip to other sites, over no delay",
        format!("{}.{:02}×", ratio / 100, ratio % 100),
        "≤ 1.1×",
        "",
    );
    line("  p50", ms(far.at(50)), "", "");
    settle(&sites).await?;
    let lag = visible_after(paris, lyon, 200).await?;
    line("visible at another site, 25 ms away, p50", ms(lag.at(50)), "", "");
    line("  p99", ms(lag.at(99)), "≤ 45 ms", "");
    Ok(())
}

fn line(what: &str, measured: String, target: &str, openstack: &str) {
    println!("{what:<52} {measured:>12} {target:>12}   {openstack}");
}

fn ms(time: Duration) -> String {
    format!("{}.{:02} ms", time.as_millis(), time.subsec_micros() % 1000 / 10)
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// Sorted times.
struct Times(Vec<Duration>);

impl Times {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self(times)
    }

    fn at(&self, percent: usize) -> Duration {
        let last = self.0.len().saturating_sub(1);
        self.0.get(self.0.len() * percent / 100).or(self.0.get(last)).copied().unwrap_or_default()
    }
}

/// A connection that is kept open.
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    host: String,
    token: String,
}

impl Connection {
    async fn open(address: SocketAddr, token: &str) -> Result<Self> {
        let stream = tokio::net::TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, host: address.to_string(), token: token.into() })
    }

    async fn send(&mut self, method: Method, path: &str, body: Vec<u8>) -> Result<(u16, hyper::HeaderMap, Bytes)> {
        let request = Request::builder().method(method).uri(path).header("host", &self.host);
        let request = request.header("x-auth-token", &self.token).header("openstack-api-version", "compute 2.90");
        self.sender.ready().await?;
        let answer = self.sender.send_request(request.body(Full::new(Bytes::from(body)))?).await?;
        let (parts, body) = answer.into_parts();
        Ok((parts.status.as_u16(), parts.headers, body.collect().await?.to_bytes()))
    }

    async fn json(&mut self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map(ToString::to_string).unwrap_or_default().into_bytes();
        let (status, _, answer) = self.send(method, path, body).await?;
        if !(200..300).contains(&status) {
            bail!("{path}: {status} {}", String::from_utf8_lossy(&answer));
        }
        Ok(serde_json::from_slice(&answer).unwrap_or_default())
    }
}

/// A site, killed when dropped.
struct Site {
    config: PathBuf,
    api: SocketAddr,
    token: String,
    process: Child,
}

/// A process that is killed when dropped.
struct Killed(Child);

impl Killed {
    fn signal(&self, signal: &str) -> Result<()> {
        let sent = Command::new("kill").arg(signal).arg(self.0.id().to_string()).status()?;
        if sent.success() { Ok(()) } else { bail!("kill {signal} failed") }
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn luc() -> Result<PathBuf> {
    let luc = std::env::current_exe()?.with_file_name("luc");
    if !luc.exists() {
        bail!("{} is missing: run `make bench`, which builds it", luc.display());
    }
    Ok(luc)
}

fn serve(config: &Path) -> Result<Child> {
    let mut command = Command::new(luc()?);
    command.args(["serve", "--config"]).arg(config).env("RUST_LOG", "warn").stdin(Stdio::null());
    Ok(command.spawn()?)
}

impl Site {
    async fn start(dir: &Path, name: &str, wan: &Wan, sponsor: Option<&Site>) -> Result<Self> {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let number = u8::try_from(name.len())?;
        let (own, front) = (Ipv4Addr::new(127, 13, 1, number), Ipv4Addr::new(127, 13, 2, number));
        let api = TcpListener::bind((own, 0))?.local_addr()?;
        let quic = UdpSocket::bind((own, 0))?.local_addr()?;
        let relay = UdpSocket::bind((front, 0))?.local_addr()?;
        wan.relay(relay, quic).await?;
        let text = format!(
            "data_dir = {:?}\nlisten = \"{quic}\"\nadvertise = [\"{relay}\"]\n[api]\nlisten = \"{api}\"\n[agent]\n\
             name = \"{name}\"\nlibvirt_uri = \"test:///default\"\ncpus = 100000\nmemory_mib = 100000000\ndisk_gib = 10000000\n",
            dir.join("data")
        );
        let config = dir.join("luc.toml");
        std::fs::write(&config, text)?;
        let run = |config: &Path, arguments: &[&str]| -> Result<String> {
            let (first, rest) = arguments.split_first().context("a command")?;
            let output = Command::new(luc()?).arg(first).arg("--config").arg(config).args(rest).output()?;
            if !output.status.success() {
                bail!("luc {first}: {}", String::from_utf8_lossy(&output.stderr));
            }
            Ok(String::from_utf8(output.stdout)?)
        };
        match sponsor {
            None => {
                let password = dir.join("password");
                std::fs::write(&password, "bench")?;
                run(&config, &["init", "--site", name, "--password-file", &password.display().to_string()])?;
            }
            Some(sponsor) => {
                let token = run(&sponsor.config, &["token", "--site", name])?;
                run(&config, &["join", token.trim()])?;
            }
        }
        let process = serve(&config)?;
        let mut site = Self { config, api, token: String::new(), process };
        site.healthy().await?;
        site.login().await?;
        let mut connection = site.connect().await?;
        wait("the host", async || {
            let hosts = connection.json(Method::GET, "/luc/v1/hosts", None).await?;
            Ok(hosts["hosts"]
                .as_array()
                .is_some_and(|all| all.iter().any(|one| one["name"] == name && one["state"] == "up")))
        })
        .await?;
        let project = connection.json(Method::GET, "/identity/v3/projects?name=admin", None).await?;
        let project = project["projects"][0]["id"].as_str().context("a project")?.to_owned();
        if sponsor.is_none() {
            let quota = json!({"quota_set": {"instances": 100_000, "cores": 1_000_000, "ram": 1_000_000_000}});
            connection.json(Method::PUT, &format!("/compute/v2.1/os-quota-sets/{project}"), Some(&quota)).await?;
        }
        Ok(site)
    }

    /// Disables the site's own host, and starts the agent of another.
    async fn further_host(&self) -> Result<Killed> {
        let mut connection = self.connect().await?;
        let services = connection.json(Method::GET, "/compute/v2.1/os-services", None).await?;
        let id = services["services"][0]["id"].as_str().context("a service")?.to_owned();
        let disable = json!({"status": "disabled"});
        connection.json(Method::PUT, &format!("/compute/v2.1/os-services/{id}"), Some(&disable)).await?;
        let dir = self.config.with_file_name("host");
        std::fs::create_dir_all(&dir)?;
        let text = std::fs::read_to_string(&self.config)?;
        let quic = text.lines().find_map(|line| line.strip_prefix("listen = ")).context("the site's address")?;
        let agent =
            text.split("[agent]").nth(1).context("the agent's settings")?.replace("name = \"", "name = \"further-");
        let config = dir.join("agent.toml");
        std::fs::write(&config, format!("data_dir = {:?}\nreplicas = [{quic}]\n[agent]{agent}", dir.join("data")))?;
        let site =
            self.config.parent().and_then(|dir| dir.file_name()).and_then(|name| name.to_str()).context("a site")?;
        let token =
            Command::new(luc()?).args(["token", "--agent", "--site", site, "--config"]).arg(&self.config).output()?;
        let token = String::from_utf8(token.stdout)?;
        let joined = Command::new(luc()?).args(["join", "--config"]).arg(&config).arg(token.trim()).output()?;
        if !joined.status.success() {
            bail!("luc join: {}", String::from_utf8_lossy(&joined.stderr));
        }
        let mut agent = Command::new(luc()?);
        agent.args(["agent", "--config"]).arg(&config).env("RUST_LOG", "warn").stdin(Stdio::null());
        let agent = Killed(agent.spawn()?);
        wait("the further host", async || {
            let hosts = connection.json(Method::GET, "/luc/v1/hosts", None).await?;
            let up = |host: &Value| host["state"] == "up" && host["disabled"] == false;
            Ok(hosts["hosts"].as_array().is_some_and(|hosts| hosts.iter().any(up)))
        })
        .await?;
        Ok(agent)
    }

    async fn healthy(&self) -> Result<()> {
        let api = self.api;
        wait("the site", async || {
            let Ok(mut connection) = Connection::open(api, "").await else { return Ok(false) };
            Ok(connection.send(Method::GET, "/healthz", Vec::new()).await.is_ok_and(|(status, _, _)| status == 200))
        })
        .await
    }

    async fn login(&mut self) -> Result<()> {
        let domain = json!({"id": "default"});
        let body = json!({"auth": {
            "identity": {"methods": ["password"], "password": {"user": {"name": "admin", "domain": domain, "password": "bench"}}},
            "scope": {"project": {"name": "admin", "domain": domain}},
        }});
        let mut connection = self.connect().await?;
        let (_, headers, _) =
            connection.send(Method::POST, "/identity/v3/auth/tokens", body.to_string().into_bytes()).await?;
        self.token =
            headers.get("x-subject-token").and_then(|token| token.to_str().ok()).context("a token")?.to_owned();
        Ok(())
    }

    async fn connect(&self) -> Result<Connection> {
        Connection::open(self.api, &self.token).await
    }

    async fn upload(&self) -> Result<String> {
        let mut connection = self.connect().await?;
        let body = json!({"name": "tiny", "disk_format": "raw", "container_format": "bare"});
        let image = connection.json(Method::POST, "/image/v2/images", Some(&body)).await?;
        let id = image["id"].as_str().context("an id")?.to_owned();
        let (status, _, answer) =
            connection.send(Method::PUT, &format!("/image/v2/images/{id}/file"), vec![0; 4096]).await?;
        if status == 204 { Ok(id) } else { bail!("upload: {status} {}", String::from_utf8_lossy(&answer)) }
    }

    async fn create(&self, connection: &mut Connection, image: &str, name: &str) -> Result<String> {
        let server = json!({"server": {"name": name, "flavorRef": "42", "imageRef": image, "networks": "none"}});
        let answer = connection.json(Method::POST, "/compute/v2.1/servers", Some(&server)).await?;
        Ok(answer["server"]["id"].as_str().context("an id")?.to_owned())
    }

    async fn count(&self) -> Result<usize> {
        let status = self.connect().await?.json(Method::GET, "/luc/v1/status", None).await?;
        Ok(usize::try_from(status["servers"].as_u64().unwrap_or(0))?)
    }

    async fn all_active(&self, count: usize) -> Result<()> {
        let mut connection = self.connect().await?;
        wait("all servers to be ACTIVE", async || {
            let status = "/compute/v2.1/servers?status=ACTIVE&limit=1000";
            let mut found = 0;
            let mut path = status.to_owned();
            loop {
                let page = connection.json(Method::GET, &path, None).await?;
                let servers = page["servers"].as_array().cloned().unwrap_or_default();
                found += servers.len();
                match (servers.last(), page["servers_links"].is_array()) {
                    (Some(last), true) => path = format!("{status}&marker={}", last["id"].as_str().unwrap_or_default()),
                    _ => return Ok(found >= count),
                }
            }
        })
        .await
    }

    fn resident(&self) -> Result<u64> {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.process.id()))?;
        Ok(statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096)
    }

    async fn restart(&mut self) -> Result<Duration> {
        self.process.kill()?;
        self.process.wait()?;
        let started = Instant::now();
        self.process = serve(&self.config)?;
        self.healthy().await?;
        Ok(started.elapsed())
    }
}

/// Times of creates, one after the other.
async fn creates(site: &Site, image: &str, count: usize) -> Result<Times> {
    let mut connection = site.connect().await?;
    let mut times = Vec::with_capacity(count);
    for n in 0..count {
        let started = Instant::now();
        let id = site.create(&mut connection, image, &format!("t{n}")).await?;
        times.push(started.elapsed());
        // Idle means idle: the agent's work for the last server is not part of the next request.
        let _ = id;
        tokio::time::sleep(Duration::from_millis(8)).await;
    }
    let mut ids = connection.json(Method::GET, "/compute/v2.1/servers?name=^t&limit=1000", None).await?;
    for server in ids["servers"].as_array_mut().into_iter().flatten() {
        let id = server["id"].as_str().unwrap_or_default().to_owned();
        connection.send(Method::DELETE, &format!("/compute/v2.1/servers/{id}"), Vec::new()).await?;
    }
    wait("deleted servers to go", async || {
        let left = connection.json(Method::GET, "/compute/v2.1/servers?name=^t", None).await?;
        Ok(left["servers"].as_array().is_some_and(Vec::is_empty))
    })
    .await?;
    Ok(Times::of(times))
}

async fn to_active(site: &Site, image: &str, count: usize) -> Result<Times> {
    let mut connection = site.connect().await?;
    let mut times = Vec::new();
    for n in 0..count {
        let started = Instant::now();
        let id = site.create(&mut connection, image, &format!("a{n}")).await?;
        loop {
            let server = connection.json(Method::GET, &format!("/compute/v2.1/servers/{id}"), None).await?;
            if server["server"]["status"] == "ACTIVE" {
                break;
            }
            if started.elapsed() > Duration::from_secs(30) {
                bail!("{server}");
            }
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
        times.push(started.elapsed());
    }
    Ok(Times::of(times))
}

async fn times(site: &Site, path: &str, count: usize) -> Result<Times> {
    let mut connection = site.connect().await?;
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let started = Instant::now();
        let (status, _, _) = connection.send(Method::GET, path, Vec::new()).await?;
        times.push(started.elapsed());
        if status != 200 {
            bail!("{path}: {status}");
        }
    }
    Ok(Times::of(times))
}

/// Creates `count` servers with 16 clients.
async fn many(site: &Site, image: &str, count: usize) -> Result<()> {
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..16 {
        let mut connection = site.connect().await?;
        let share = count / 16 + usize::from(client < count % 16);
        let server =
            json!({"server": {"name": format!("m{client}"), "flavorRef": "42", "imageRef": image, "networks": "none"}});
        clients.spawn(async move {
            for _ in 0..share {
                connection.json(Method::POST, "/compute/v2.1/servers", Some(&server)).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(done) = clients.join_next().await {
        done??;
    }
    Ok(())
}

async fn parallel_gets(site: &Site, id: &str, clients: usize, time: Duration) -> Result<u64> {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..clients {
        let mut connection = site.connect().await?;
        let path = format!("/compute/v2.1/servers/{id}");
        tasks.spawn(async move {
            let started = Instant::now();
            let mut count = 0_u64;
            while started.elapsed() < time {
                connection.send(Method::GET, &path, Vec::new()).await?;
                count += 1;
            }
            Ok::<_, anyhow::Error>(count)
        });
    }
    let mut sum = 0;
    while let Some(count) = tasks.join_next().await {
        sum += count??;
    }
    Ok(sum / time.as_secs().max(1))
}

/// How long after its answer at one site a user is found at another.
async fn visible_after(from: &Site, at: &Site, count: usize) -> Result<Times> {
    let (mut writer, mut reader) = (from.connect().await?, at.connect().await?);
    let mut times = Vec::new();
    for n in 0..count {
        let user = json!({"user": {"name": format!("visible-{n}")}});
        let created = writer.json(Method::POST, "/identity/v3/users", Some(&user)).await?;
        let written = Instant::now();
        let path = format!("/identity/v3/users/{}", created["user"]["id"].as_str().unwrap_or_default());
        loop {
            let (status, _, _) = reader.send(Method::GET, &path, Vec::new()).await?;
            if status == 200 {
                break;
            }
            if written.elapsed() > Duration::from_secs(10) {
                bail!("never visible");
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        times.push(written.elapsed());
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    Ok(Times::of(times))
}

/// Waits until all sites agree.
async fn settle(sites: &[Site]) -> Result<()> {
    let mut connections = Vec::new();
    for site in sites {
        connections.push(site.connect().await?);
    }
    wait("all sites to agree", async || {
        let mut digests = Vec::new();
        for connection in &mut connections {
            digests.push(connection.json(Method::GET, "/luc/v1/digest", None).await?["digest"].clone());
        }
        Ok(digests.windows(2).all(|pair| pair.first() == pair.last()))
    })
    .await
}

async fn wait(what: &str, mut done: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    while !done().await? {
        if started.elapsed() > Duration::from_secs(120) {
            bail!("waited 120 s for {what}");
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(())
}
