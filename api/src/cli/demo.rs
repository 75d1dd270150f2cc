//! `luc demo`: three sites on this machine, each a process with its own store, keys, address and hypervisor; and a
//! story played with them, every step of it checked.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::process::{Child, Command};

use super::client::Client;
use crate::wan::Wan;

const SITES: [&str; 3] = ["paris", "lyon", "rennes"];
const PASSWORD: &str = "demo";
/// How long a real machine may take to boot, emulated, on a busy computer.
const BOOT: Duration = Duration::from_secs(180);

#[derive(Args)]
pub(super) struct DemoArgs {
    #[command(subcommand)]
    play: Option<Play>,
    /// Play the story, check every step, clean up, and exit: 0 if all went well.
    #[arg(long)]
    once: bool,
    /// Where the demo keeps everything.
    #[arg(long, default_value = "target/demo")]
    dir: PathBuf,
    /// `qemu` for real machines, `test` for libvirt's simulated hypervisor (no consoles).
    #[arg(long, value_enum, default_value = "qemu")]
    hypervisor: Hypervisor,
    /// The image to boot, qcow2.
    #[arg(long, default_value = "target/guest/luc-guest.qcow2")]
    image: PathBuf,
    /// Script that runs a libvirt daemon of its own.
    #[arg(long, default_value = "packaging/libvirt/private-libvirtd.sh")]
    libvirtd: PathBuf,
    /// One-way delay between sites, milliseconds.
    #[arg(long, default_value_t = 10)]
    delay: u64,
}

#[derive(Subcommand)]
enum Play {
    /// Cut a site off from the others.
    Cut {
        /// paris, lyon or rennes.
        site: String,
    },
    /// Mend all cuts.
    Heal,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Hypervisor {
    Qemu,
    Test,
}

pub(super) fn demo(args: &DemoArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match &args.play {
        Some(Play::Cut { site }) => runtime.block_on(tell(&args.dir, &format!("cut {site}"))),
        Some(Play::Heal) => runtime.block_on(tell(&args.dir, "heal")),
        None => runtime.block_on(run(args)),
    }
}

/// Tells the running demo something, and prints what it says.
async fn tell(dir: &Path, command: &str) -> Result<()> {
    let socket = dir.join("control.sock");
    let stream = UnixStream::connect(&socket).await;
    let mut stream =
        stream.with_context(|| format!("no demo is running in {}: start one with `make demo`", dir.display()))?;
    stream.write_all(format!("{command}\n").as_bytes()).await?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).await?;
    match answer.trim().strip_prefix("error: ") {
        Some(error) => bail!("{error}"),
        None => println!("{}", answer.trim()),
    }
    Ok(())
}

/// One site of the demo.
struct Site {
    name: &'static str,
    config: PathBuf,
    api: SocketAddr,
    quic: SocketAddr,
    relay: SocketAddr,
    libvirt_uri: String,
    /// Killed when dropped.
    processes: Vec<Child>,
}

struct Demo<'a> {
    args: &'a DemoArgs,
    dir: PathBuf,
    wan: Wan,
    sites: Vec<Site>,
}

async fn run(args: &DemoArgs) -> Result<()> {
    if args.dir.exists() {
        if UnixStream::connect(args.dir.join("control.sock")).await.is_ok() {
            bail!("a demo is already running in {}", args.dir.display());
        }
        std::fs::remove_dir_all(&args.dir).with_context(|| format!("cannot clean {}", args.dir.display()))?;
    }
    std::fs::create_dir_all(&args.dir)?;
    let dir = args.dir.canonicalize()?;
    let mut demo = Demo { args, dir, wan: Wan::default(), sites: Vec::new() };
    let played = tokio::select! {
        played = demo.play() => played,
        () = super::run::asked_to_stop() => Err(anyhow::anyhow!("interrupted")),
    };
    if played.is_ok() && !args.once {
        demo.stay_up().await;
    }
    demo.stop().await;
    match &played {
        Err(_) => eprintln!("\nThe sites' logs are in {}", demo.dir.display()),
        // Nothing is left behind but what was there before.
        Ok(()) if args.once => std::fs::remove_dir_all(&demo.dir)?,
        Ok(()) => println!("Stopped. Logs are in {}", demo.dir.display()),
    }
    played
}

fn say(text: &str) {
    println!("{text}");
    let _ = std::io::stdout().flush();
}

impl Demo<'_> {
    async fn play(&mut self) -> Result<()> {
        say("LUC: one cloud out of three sites, with no centre.\n");
        if self.args.hypervisor == Hypervisor::Test {
            say(
                "(libvirt's simulated hypervisor: servers become ACTIVE, but nothing boots and there are no consoles)\n",
            );
        }
        self.step("Starting three sites: paris founds the cloud, lyon and rennes join it", Self::start).await?;
        let clients = self.clients().await.context("step: logging in at every site")?;
        story(self, &clients).await
    }

    async fn step<'a, F>(&'a mut self, name: &str, run: F) -> Result<()>
    where
        F: AsyncFnOnce(&'a mut Self) -> Result<()>,
    {
        let started = Instant::now();
        say(&format!("* {name} …"));
        run(self).await.with_context(|| format!("step: {name}"))?;
        say(&format!("    done in {}.{} s", started.elapsed().as_secs(), started.elapsed().subsec_millis() / 100));
        Ok(())
    }

    async fn start(&mut self) -> Result<()> {
        self.wan.set_delay(Duration::from_millis(self.args.delay));
        for (index, name) in SITES.into_iter().enumerate() {
            let number = u8::try_from(index + 1)?;
            let own = Ipv4Addr::new(127, 0, 11, number);
            let front = Ipv4Addr::new(127, 0, 12, number);
            let (api, quic, relay) = (tcp_port(own)?, udp_port(own)?, udp_port(front)?);
            let mut site = Site {
                name,
                config: self.dir.join(name).join("luc.toml"),
                api,
                quic,
                relay,
                libvirt_uri: "test:///default".into(),
                processes: Vec::new(),
            };
            std::fs::create_dir_all(self.dir.join(name))?;
            if self.args.hypervisor == Hypervisor::Qemu {
                self.start_libvirt(&mut site).await?;
            }
            self.wan.relay(relay, quic).await?;
            self.configure(&site)?;
            if index == 0 {
                std::fs::write(self.dir.join("password"), PASSWORD)?;
                let password = self.dir.join("password");
                self.luc(&site, &["init", "--site", name, "--password-file", &password.display().to_string()]).await?;
            } else {
                let paris = self.sites.first().context("paris is there")?;
                let token = self.luc(paris, &["token", "--site", name]).await?;
                self.luc(&site, &["join", token.trim()]).await?;
            }
            self.serve(&mut site)?;
            self.sites.push(site);
            self.healthy(self.sites.last().context("just pushed")?).await?;
        }
        Ok(())
    }

    /// A libvirt daemon of the site's own.
    async fn start_libvirt(&self, site: &mut Site) -> Result<()> {
        let dir = self.dir.join(site.name).join("libvirt");
        std::fs::create_dir_all(&dir)?;
        let script = self.args.libvirtd.display().to_string();
        let mut daemon = Command::new("bash");
        daemon.arg(&script).arg(&dir).arg("guard").stdin(Stdio::piped()).kill_on_drop(true);
        daemon.env("LUC_LIBVIRT_CACHE", self.dir.join("libvirt-cache"));
        let log = std::fs::File::create(self.dir.join(site.name).join("libvirtd.log"))?;
        daemon.stdout(log.try_clone()?).stderr(log);
        site.processes.push(daemon.spawn().with_context(|| format!("cannot run {script}"))?);
        let uri = Command::new("bash").arg(&script).arg(&dir).arg("uri").output().await?;
        site.libvirt_uri = String::from_utf8(uri.stdout)?.trim().to_owned();
        let socket = dir.join("run/libvirt/libvirt-sock");
        wait(Duration::from_secs(30), "libvirtd", async || Ok(socket.exists())).await
    }

    fn configure(&self, site: &Site) -> Result<()> {
        let data = self.dir.join(site.name).join("data");
        // Each site pretends to have a modest machine of its own: three share this one.
        let text = format!(
            "data_dir = {data:?}\nlisten = \"{}\"\nadvertise = [\"{}\"]\n\n[api]\nlisten = \"{}\"\n\n[agent]\n\
             name = \"{}-1\"\nlibvirt_uri = {:?}\ncpus = 2\nmemory_mib = 4096\ndisk_gib = 40\nshutdown_seconds = 20\n\n\
             [log]\nlevel = \"info\"\n",
            site.quic, site.relay, site.api, site.name, site.libvirt_uri,
        );
        std::fs::write(&site.config, text)?;
        Ok(())
    }

    /// Runs `luc` with a site's configuration, and gives what it printed.
    async fn luc(&self, site: &Site, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(std::env::current_exe()?);
        let (first, rest) = arguments.split_first().context("a command")?;
        let output = command.arg(first).arg("--config").arg(&site.config).args(rest).output().await?;
        if !output.status.success() {
            bail!("luc {first} at {}: {}", site.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    fn serve(&self, site: &mut Site) -> Result<()> {
        let log = std::fs::File::create(self.dir.join(site.name).join("luc.log"))?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("serve").arg("--config").arg(&site.config).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        // In a group of its own: Ctrl-C is for the demo, which stops its sites in order.
        command.process_group(0);
        site.processes.insert(0, command.spawn()?);
        Ok(())
    }

    async fn healthy(&self, site: &Site) -> Result<()> {
        let client = Client::new(&url(site));
        let what = format!("{} (its log is {})", site.name, self.dir.join(site.name).join("luc.log").display());
        wait(Duration::from_secs(30), &what, async || Ok(client.get("/healthz").await.is_ok())).await
    }

    async fn clients(&self) -> Result<Vec<Client>> {
        let mut clients = Vec::new();
        for site in &self.sites {
            clients.push(Client::login(&url(site), "admin", PASSWORD, "admin").await?);
        }
        let first = clients.first().context("three sites")?.clone();
        wait(Duration::from_secs(60), "the hosts of all sites", async || {
            let hosts = first.get("/luc/v1/hosts").await?;
            Ok(hosts["hosts"]
                .as_array()
                .is_some_and(|hosts| hosts.iter().filter(|host| host["state"] == "up").count() == 3))
        })
        .await?;
        Ok(clients)
    }

    async fn stay_up(&self) {
        let clouds = self.clouds_yaml();
        let path = self.dir.join("clouds.yaml");
        if let Err(error) = std::fs::write(&path, &clouds) {
            eprintln!("cannot write {}: {error}", path.display());
        }
        say("\nThe cloud stays up. Its endpoints:");
        for site in &self.sites {
            say(&format!("  {:<8} {}/identity", site.name, url(site)));
        }
        say(&format!("Administrator: user admin, password {PASSWORD}, project admin, domain Default"));
        say(&format!("\n{clouds}"));
        say(&format!("It is in {}. Try:", path.display()));
        say(&format!("  export OS_CLIENT_CONFIG_FILE={}", path.display()));
        say("  openstack --os-cloud paris server list");
        say(
            "  openstack --os-cloud lyon server create --flavor m1.nano --image guest --nic none --availability-zone rennes mine",
        );
        say("Play with the network:");
        let luc = std::env::current_exe().map_or("luc".into(), |path| path.display().to_string());
        say(&format!("  {luc} demo cut rennes\n  {luc} demo heal"));
        say(&format!(
            "  {luc} status --config {}",
            self.sites.first().map(|site| site.config.display().to_string()).unwrap_or_default()
        ));
        say("\nCtrl-C stops it.");
        tokio::select! {
            () = self.control() => {}
            () = super::run::asked_to_stop() => {}
        }
        say("\nStopping …");
    }

    fn clouds_yaml(&self) -> String {
        let cloud = |site: &Site| {
            format!(
                "  {}:\n    auth:\n      auth_url: {}/identity\n      username: admin\n      password: {PASSWORD}\n      \
                 project_name: admin\n      user_domain_id: default\n      project_domain_id: default\n    \
                 region_name: luc\n    identity_api_version: 3\n",
                site.name,
                url(site)
            )
        };
        format!("clouds:\n{}", self.sites.iter().map(cloud).collect::<String>())
    }

    /// Takes the commands of `luc demo cut` and `luc demo heal`.
    async fn control(&self) {
        let Ok(listener) = UnixListener::bind(self.dir.join("control.sock")) else {
            return std::future::pending().await;
        };
        loop {
            let Ok((stream, _)) = listener.accept().await else { continue };
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            if stream.read_line(&mut line).await.is_ok() {
                let answer = match line.trim().split_once(' ') {
                    Some(("cut", name)) => match self.sites.iter().find(|site| site.name == name) {
                        Some(site) => {
                            self.wan.cut(site.quic.ip());
                            format!("{name} is cut off from the others.")
                        }
                        None => format!("error: there is no site {name}: paris, lyon or rennes"),
                    },
                    None if line.trim() == "heal" => {
                        self.wan.heal();
                        "All sites reach each other.".into()
                    }
                    _ => "error: cut SITE, or heal".into(),
                };
                say(&format!("[{answer}]"));
                let _ = stream.get_mut().write_all(format!("{answer}\n").as_bytes()).await;
            }
        }
    }

    /// Stops the sites, then their hypervisors with everything that runs in them.
    async fn stop(&mut self) {
        for site in &mut self.sites {
            for child in &mut site.processes {
                // A guard stops its daemon when its standard input closes.
                drop(child.stdin.take());
                if let Some(pid) = child.id() {
                    let _ = Command::new("kill").arg("-TERM").arg(pid.to_string()).status().await;
                }
            }
        }
        for site in &mut self.sites {
            for child in &mut site.processes {
                if tokio::time::timeout(Duration::from_secs(15), child.wait()).await.is_err() {
                    let _ = child.kill().await;
                }
            }
        }
    }
}

/// The story.
async fn story(demo: &Demo<'_>, clients: &[Client]) -> Result<()> {
    let [paris, lyon, rennes] = clients else { bail!("three sites are needed") };
    let real = demo.args.hypervisor == Hypervisor::Qemu;
    let image = tale("Uploading an image at paris", upload(demo, paris)).await?;
    let one = tale("At paris: a server for paris", create(paris, "alice", "paris", &image)).await?;
    let two =
        tale("At paris: a server for lyon (its image goes there by itself)", create(paris, "bob", "lyon", &image))
            .await?;
    let other = tale("And one for rennes", create(paris, "erin", "rennes", &image)).await?;
    tale("All three boot", async {
        active(paris, &one).await?;
        active(lyon, &two).await?;
        active(rennes, &other).await
    })
    .await?;
    if real {
        tale("Their consoles answer, from either site: user data ran", async {
            console(lyon, &one, "LUC-DEMO alice").await?;
            console(paris, &two, "LUC-DEMO bob").await
        })
        .await?;
    }
    demo.wan.cut(demo.sites.last().context("rennes")?.quic.ip());
    say("\n  ~~ the network between rennes and the others is cut ~~\n");
    tale("paris notices", unreachable(paris, "rennes")).await?;
    tale("At paris: erin, who lives at rennes, is shown as unknown, and since when", async {
        let server = show(paris, &other).await?.context("erin is still known")?;
        let says = server["fault"]["message"].as_str().unwrap_or_default();
        say(&format!("    {says}"));
        expect(server["status"] == "UNKNOWN" && says.contains("out of reach"), "erin is not shown as unknown")
    })
    .await?;
    let three = tale("At rennes, cut off: a server for rennes", create(rennes, "carol", "rennes", &image)).await?;
    tale("It boots there, from what rennes has cached", active(rennes, &three)).await?;
    if real {
        tale("Its console answers at rennes", console(rennes, &three, "LUC-DEMO carol")).await?;
    }
    let four = tale("At paris: another server for lyon", create(paris, "dave", "lyon", &image)).await?;
    tale("At paris: bob, who lives at lyon, is deleted, and goes", async {
        paris.delete(&format!("/compute/v2.1/servers/{two}")).await?;
        gone(paris, &two).await
    })
    .await?;
    tale("At rennes: alice, who lives at paris, is deleted; and read: she is going", async {
        rennes.delete(&format!("/compute/v2.1/servers/{one}")).await?;
        let server = rennes.get(&format!("/compute/v2.1/servers/{one}")).await?;
        expect(server["server"]["OS-EXT-STS:task_state"] == "deleting", "alice is not being deleted")
    })
    .await?;
    tale("Lists are read on both sides: paris does not know carol, rennes does not know dave", async {
        let (there, here) = (names(paris).await?, names(rennes).await?);
        say(&format!("    paris:  {}\n    rennes: {}", there.join(" "), here.join(" ")));
        expect(!there.contains(&"carol".into()) && here.contains(&"carol".into()), "carol")?;
        expect(there.contains(&"dave".into()) && !here.contains(&"dave".into()), "dave")
    })
    .await?;
    demo.wan.heal();
    say("\n  ~~ the network is mended ~~\n");
    let healed = Instant::now();
    wait(Duration::from_secs(20), "equal digests", async || agree(clients).await).await.context("step: healing")?;
    let took = healed.elapsed();
    say(&format!("* All three sites have the same digest {} ms after the cut was mended", took.as_millis()));
    expect(took < Duration::from_millis(1_500), "healing took longer than a second").context("step: healing")?;
    tale("alice goes, carol and dave run", async {
        gone(paris, &one).await?;
        active(paris, &three).await?;
        active(lyon, &four).await
    })
    .await?;
    if real {
        tale("carol's console answers at paris, too", console(paris, &three, "LUC-DEMO carol")).await?;
    }
    tale("All three sites show the same servers, and capacity and quota add up", async {
        wait(Duration::from_secs(20), "equal digests", async || agree(clients).await).await?;
        let mut lists = Vec::new();
        for client in clients {
            lists.push(names(client).await?);
            let pools = client.get("/luc/v1/pools").await?;
            expect(pools["conserved"] == true, "rights do not add up")?;
            let limits = client.get("/compute/v2.1/limits").await?;
            expect(
                limits["limits"]["absolute"]["totalInstancesUsed"] == 3,
                "three servers are not what the quota counts",
            )?;
        }
        say(&format!("    {}", lists.first().map(|names| names.join(" ")).unwrap_or_default()));
        expect(lists.windows(2).all(|pair| pair.first() == pair.last()), "the lists differ")
    })
    .await?;
    say("\nThe story is over: nothing was lost, nothing was promised twice.");
    Ok(())
}

/// One step of the story.
async fn tale<T>(name: &str, step: impl Future<Output = Result<T>>) -> Result<T> {
    let started = Instant::now();
    say(&format!("* {name} …"));
    let done = step.await.with_context(|| format!("step: {name}"))?;
    let took = started.elapsed();
    say(&format!("    {}.{:03} s", took.as_secs(), took.subsec_millis()));
    Ok(done)
}

async fn upload(demo: &Demo<'_>, client: &Client) -> Result<String> {
    let bytes = match demo.args.hypervisor {
        Hypervisor::Qemu => {
            let path = &demo.args.image;
            std::fs::read(path).with_context(|| format!("cannot read the guest image {}", path.display()))?
        }
        // Nothing boots there: any disk will do.
        Hypervisor::Test => vec![0; 1 << 20],
    };
    let format = if demo.args.hypervisor == Hypervisor::Qemu { "qcow2" } else { "raw" };
    let body = json!({"name": "guest", "disk_format": format, "container_format": "bare", "visibility": "public"});
    let image = client.post("/image/v2/images", &body).await?;
    let id = image["id"].as_str().context("an image's id")?.to_owned();
    client.put_bytes(&format!("/image/v2/images/{id}/file"), bytes).await?;
    Ok(id)
}

async fn create(client: &Client, name: &str, zone: &str, image: &str) -> Result<String> {
    let script = format!("#!/bin/sh\necho LUC-DEMO {name} runs at {zone}\n");
    let user_data = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, script);
    let server = json!({"server": {
        "name": name, "flavorRef": "42", "imageRef": image, "networks": "none", "availability_zone": zone, "user_data": user_data,
    }});
    let created = client.post("/compute/v2.1/servers", &server).await?;
    Ok(created["server"]["id"].as_str().context("a server's id")?.to_owned())
}

async fn show(client: &Client, id: &str) -> Result<Option<Value>> {
    match client.get(&format!("/compute/v2.1/servers/{id}")).await {
        Ok(answer) => Ok(Some(answer["server"].clone())),
        Err(error) if error.to_string().contains("404") => Ok(None),
        Err(error) => Err(error),
    }
}

async fn active(client: &Client, id: &str) -> Result<()> {
    wait(BOOT, "ACTIVE", async || {
        let server = show(client, id).await?.unwrap_or_default();
        if server["status"] == "ERROR" {
            bail!("the server is in ERROR: {}", server["fault"]["message"]);
        }
        Ok(server["status"] == "ACTIVE" && server["OS-EXT-STS:task_state"].is_null())
    })
    .await
}

async fn gone(client: &Client, id: &str) -> Result<()> {
    wait(BOOT, "its end", async || Ok(show(client, id).await?.is_none())).await
}

async fn console(client: &Client, id: &str, wanted: &str) -> Result<()> {
    wait(BOOT, &format!("{wanted:?} on the console"), async || {
        let body = json!({"os-getConsoleOutput": {"length": 100}});
        let answer = client.post(&format!("/compute/v2.1/servers/{id}/action"), &body).await;
        let text = answer.ok().and_then(|answer| answer["output"].as_str().map(str::to_owned)).unwrap_or_default();
        if let Some(line) = text.lines().find(|line| line.contains(wanted)) {
            say(&format!("    console: {}", line.trim()));
            return Ok(true);
        }
        Ok(false)
    })
    .await
}

async fn unreachable(client: &Client, site: &str) -> Result<()> {
    wait(Duration::from_secs(15), "the cut to be seen", async || {
        let sites = client.get("/luc/v1/sites").await?;
        let found = sites["sites"].as_array().and_then(|sites| sites.iter().find(|one| one["name"] == site).cloned());
        Ok(found.is_some_and(|one| one["reachable"] == false))
    })
    .await
}

async fn names(client: &Client) -> Result<Vec<String>> {
    let servers = client.get("/compute/v2.1/servers").await?;
    let mut names: Vec<String> = servers["servers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|server| server["name"].as_str().map(str::to_owned))
        .collect();
    names.sort();
    Ok(names)
}

async fn agree(clients: &[Client]) -> Result<bool> {
    let mut digests = Vec::new();
    for client in clients {
        digests.push(client.get("/luc/v1/digest").await?["digest"].clone());
    }
    Ok(digests.windows(2).all(|pair| pair.first() == pair.last()))
}

fn expect(holds: bool, otherwise: &str) -> Result<()> {
    if holds { Ok(()) } else { bail!("{otherwise}") }
}

async fn wait(limit: Duration, what: &str, mut done: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let started = Instant::now();
    loop {
        if done().await? {
            return Ok(());
        }
        if started.elapsed() > limit {
            bail!("waited {} s for {what}", limit.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

fn url(site: &Site) -> String {
    format!("http://{}", site.api)
}

fn tcp_port(ip: Ipv4Addr) -> Result<SocketAddr> {
    Ok(std::net::TcpListener::bind((ip, 0))?.local_addr()?)
}

fn udp_port(ip: Ipv4Addr) -> Result<SocketAddr> {
    Ok(std::net::UdpSocket::bind((IpAddr::V4(ip), 0))?.local_addr()?)
}
