//! The whole agent with real virtual machines: QEMU, a libvirtd of its own, an agent in a process of its own, and both
//! of them killed.
//!
//! Needs root (for a mount namespace) and the packages of `packaging/install-deps.sh test`; where they are missing it
//! fails, because what it shows is shown by nothing else.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use luc_compute::{Agent, AgentConfig, Fetch, Images, Progress, VirtType, link};
use luc_engine::agent::{DomainState, FromAgent, Observation, Order, Statement, ToAgent, Vouched, Wanted};
use luc_engine::id::{ClaimId, CloudId, EntryId, PoolId, ReplicaId, SiteName};
use luc_engine::record::{ImageData, Power, Server, ServerFlavor, ServerImage};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use uuid::Uuid;

/// Set for the process that is to be an agent: the directory of the test.
const AGENT: &str = "LUC_TEST_AGENT";
const SERVER: Uuid = Uuid::from_u128(0x5e4e4);
const CLOUD: CloudId = CloudId(Uuid::from_u128(0xc10d));
/// Emulated machines on a busy processor take their time; nothing here is about how long.
const PATIENCE: Duration = Duration::from_secs(300);

/// A libvirtd with directories of its own, in a mount namespace of its own.
struct Libvirtd {
    dir: PathBuf,
    process: Child,
}

impl Libvirtd {
    const SETTINGS: [(&str, &str); 2] = [
        (
            "qemu.conf",
            "user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\nremember_owner = 0\nsecurity_driver = \"none\"\n\
             cgroup_controllers = []\nnamespaces = []\nstdio_handler = \"file\"\n",
        ),
        ("libvirtd.conf", "unix_sock_group = \"root\"\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n"),
    ];

    fn start(dir: &Path) -> Self {
        for name in ["etc", "run", "lib", "log", "cache"] {
            std::fs::create_dir_all(dir.join(name)).unwrap();
        }
        for (name, text) in Self::SETTINGS {
            std::fs::write(dir.join("etc").join(name), text).unwrap();
        }
        Self { dir: dir.to_owned(), process: Self::spawn(dir) }
    }

    fn spawn(dir: &Path) -> Child {
        let script = "set -e; for pair in etc:/etc/libvirt run:/run/libvirt lib:/var/lib/libvirt log:/var/log/libvirt \
                      cache:/var/cache/libvirt; do mkdir -p ${pair#*:}; mount --bind $0/${pair%%:*} ${pair#*:}; done; \
                      exec libvirtd -p $0/run/libvirtd.pid";
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", script]).arg(dir);
        let log = std::fs::File::create(dir.join("libvirtd.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.spawn().expect("unshare (util-linux) is needed")
    }

    /// Ends it without warning. The machines go on.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.process = Self::spawn(&self.dir);
    }

    /// Process ids of the machines that run here.
    fn machines(&self) -> Vec<u32> {
        let run = self.dir.join("run/qemu");
        let files = std::fs::read_dir(run).into_iter().flatten().flatten().map(|entry| entry.path());
        let pids = files.filter(|path| path.extension().is_some_and(|extension| extension == "pid"));
        let pids = pids.filter_map(|path| std::fs::read_to_string(path).ok()?.trim().parse().ok());
        pids.filter(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            line.contains("qemu-system") && line.contains(self.dir.to_str().unwrap())
        })
        .collect()
    }

    fn kill_machines(&self) {
        for pid in self.machines() {
            let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
        }
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        self.kill_machines();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn send<T: Serialize>(to: &mut OwnedWriteHalf, message: &T) -> io::Result<()> {
    let bytes = rmp_serde::to_vec(message).map_err(io::Error::other)?;
    to.write_u32(u32::try_from(bytes.len()).unwrap()).await?;
    to.write_all(&bytes).await
}

async fn receive<T: DeserializeOwned>(from: &mut OwnedReadHalf) -> io::Result<T> {
    let length = from.read_u32().await?;
    let mut bytes = vec![0; usize::try_from(length).unwrap()];
    from.read_exact(&mut bytes).await?;
    rmp_serde::from_slice(&bytes).map_err(io::Error::other)
}

struct OneImage(PathBuf);
impl Images for OneImage {
    fn fetch<'a>(&'a self, _: &'a str, _: u64, _: &'a str, _: Progress) -> Fetch<'a> {
        Box::pin(async { Ok(self.0.clone()) })
    }
}

/// What the other process does; nothing in this one.
#[tokio::test(flavor = "multi_thread")]
async fn agent_process() {
    let Some(dir) = std::env::var_os(AGENT).map(PathBuf::from) else { return };
    let uri = format!("qemu+unix:///system?socket={}", dir.join("run/libvirt-sock").display());
    let site = SiteName::new("paris").unwrap();
    let mut config = AgentConfig::new("h1", site, CLOUD, &uri, dir.join("state"));
    (config.virt_type, config.cpus, config.memory_mib) = (VirtType::Qemu, Some(8), Some(4096));
    config.disk_gib = Some(100);
    let agent = Agent::open(config).unwrap();
    let (handle, events) = link();
    let images = Arc::new(OneImage(dir.join("image.qcow2")));
    let (mut reader, mut writer) = UnixStream::connect(dir.join("agent.sock")).await.unwrap().into_split();
    tokio::spawn(agent.run(events, images, std::future::pending()));
    let (to, mut from) = handle.attach().await;
    tokio::spawn(async move {
        while let Some(message) = from.recv().await {
            send(&mut writer, &message).await.unwrap();
        }
    });
    while let Ok(message) = receive(&mut reader).await {
        to.send(message).await.unwrap();
    }
}

/// The agent's process, seen from its replica.
struct Process {
    child: Child,
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    seen: BTreeMap<Uuid, Observation>,
    statements: Vec<Statement>,
    console: Option<Result<String, String>>,
    key: [u8; 32],
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    async fn start(dir: &Path, orders: Vec<Order>) -> Self {
        let socket = dir.join("agent.sock");
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "agent_process", "--nocapture"]).env(AGENT, dir);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("agent.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap();
        let (reader, writer) = listener.accept().await.unwrap().0.into_split();
        let (seen, statements, console) = Default::default();
        let mut process = Self { child, reader, writer, seen, statements, console, key: [0; 32] };
        let FromAgent::Hello(facts) = receive(&mut process.reader).await.unwrap() else { panic!("no hello") };
        if facts.pool.is_none() {
            send(&mut process.writer, &ToAgent::Pool { pool: pool(), instead_of: None }).await.unwrap();
            while !matches!(receive(&mut process.reader).await.unwrap(), FromAgent::Hello(_)) {}
        }
        assert_eq!(facts.hypervisor_type, "QEMU");
        process.key = facts.identity.agent_key;
        send(&mut process.writer, &ToAgent::Orders(orders)).await.unwrap();
        process
    }

    async fn order(&mut self, order: &Order) {
        send(&mut self.writer, &ToAgent::Order(Box::new(order.clone()))).await.unwrap();
    }

    async fn hear(&mut self) {
        match receive(&mut self.reader).await.expect("the agent's process ended") {
            FromAgent::Observed(observation) => {
                println!("{:?} {:?} {:?}", observation.state, observation.task, observation.fault);
                let hopeless = observation.fault.as_ref().is_some_and(|fault| !fault.retrying);
                assert!(!hopeless, "{:?}", observation.fault);
                self.seen.insert(observation.server, *observation);
            }
            FromAgent::Stated(statement) => self.statements.push(statement),
            FromAgent::ConsoleOutput { output, .. } => self.console = Some(output),
            FromAgent::Witnessed(_) | FromAgent::Hello(_) | FromAgent::Heartbeat(_) => {}
        }
    }

    async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let wait = async {
            while !holds(self) {
                self.hear().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}"));
    }

    async fn until_state(&mut self, server: Uuid, state: DomainState) {
        let is = |p: &Self| p.seen.get(&server).is_some_and(|seen| seen.state == state && seen.task.is_none());
        self.until(&format!("{state:?}"), is).await;
    }

    /// Reads the console until it says something; polls, because a console rings no bell.
    async fn until_console(&mut self, server: Uuid, text: &str) -> String {
        let wait = async {
            loop {
                let ask = ToAgent::Console { request: 1, server, lines: None };
                send(&mut self.writer, &ask).await.unwrap();
                while self.console.is_none() {
                    self.hear().await;
                }
                let output = self.console.take().unwrap().unwrap();
                if output.contains(text) {
                    return output;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("the console never said {text:?}"))
    }
}

fn guest(dir: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let out = root.join("target/guest");
    let status = Command::new(root.join("packaging/guest/build.sh")).arg(&out).status().unwrap();
    assert!(status.success(), "the guest cannot be built");
    std::fs::copy(out.join("luc-guest.qcow2"), dir.join("image.qcow2")).unwrap();
}

fn record() -> Server {
    let script = "#!/bin/sh\necho user-data-ran-$((6 * 7))\n";
    let data = ImageData { blob: "ab".repeat(32), site: "paris".into(), ..ImageData::default() };
    Server {
        name: "web & <co>".into(),
        hostname: "web".into(),
        flavor: ServerFlavor { vcpus: 1, ram_mib: 96, disk_gib: 1, ..ServerFlavor::default() },
        image: Some(ServerImage { disk_format: "qcow2".into(), data, ..ServerImage::default() }),
        user_data: base64::engine::general_purpose::STANDARD.encode(script),
        public_key: Some("ssh-ed25519 AAAAC3Nza me@example.org".into()),
        key_name: Some("mine".into()),
        ..Server::default()
    }
}

fn order(server: Uuid, wanted: Wanted) -> Order {
    let claim = ClaimId { entry: EntryId { author: ReplicaId(Uuid::from_u128(1)), number: 1 }, index: 0 };
    Order { server, claim, pool: pool(), epoch: 1, wanted, vouched: Vouched::Yes }
}

fn pool() -> PoolId {
    PoolId { entry: EntryId { author: ReplicaId(Uuid::from_u128(1)), number: 1 }, index: 7 }
}

fn present(server: Uuid, record: &Server) -> Order {
    order(server, Wanted::Present { server: Arc::new(record.clone()), project_name: "demo".into() })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_server_lives_through_everything_and_leaves_nothing() {
    let temporary = TempDir::new().unwrap();
    let dir = temporary.path();
    guest(dir);
    let mut libvirtd = Libvirtd::start(dir);
    let server = SERVER;
    let mut wish = record();

    // It boots, and knows who it is.
    let mut agent = Process::start(dir, vec![present(server, &wish)]).await;
    agent.until_state(server, DomainState::Running).await;
    let console = agent.until_console(server, "ready hostname=web").await;
    for line in ["user-data-ran-42", "user-data end status=0", "boots=1", "disk-mib=1024", "ssh-ed25519 AAAAC3Nza"] {
        assert!(console.contains(line), "{line} is not in {console}");
    }
    assert!(console.contains(&server.to_string()));
    let machine = libvirtd.machines();
    assert_eq!(machine.len(), 1);

    // The agent is killed, then libvirtd; the machine does not notice.
    drop(agent);
    let mut agent = Process::start(dir, vec![present(server, &wish)]).await;
    agent.until_state(server, DomainState::Running).await;
    libvirtd.kill();
    assert_eq!(libvirtd.machines(), machine);
    agent.order(&set(&mut wish, Power::Paused)).await;
    libvirtd.start_again();
    agent.until_state(server, DomainState::Paused).await;
    assert_eq!(libvirtd.machines(), machine);
    agent.order(&set(&mut wish, Power::Running)).await;
    agent.until_state(server, DomainState::Running).await;

    // Suspended to the disk, the agent killed on the way; the guest goes on where it was.
    agent.order(&set(&mut wish, Power::Suspended)).await;
    drop(agent);
    let mut agent = Process::start(dir, vec![present(server, &wish)]).await;
    agent.until_state(server, DomainState::Saved).await;
    assert!(libvirtd.machines().is_empty());
    agent.order(&set(&mut wish, Power::Running)).await;
    agent.until_state(server, DomainState::Running).await;

    // Asked to stop, the guest stops; what it wrote is there when it starts again.
    agent.order(&set(&mut wish, Power::Stopped)).await;
    agent.until_state(server, DomainState::Shutoff).await;
    let console = agent.until_console(server, "power-button").await;
    assert!(!console.contains("boots=2"), "it booted anew: {console}");
    agent.order(&set(&mut wish, Power::Running)).await;
    agent.until_console(server, "boots=2").await;
    agent.until_state(server, DomainState::Running).await;
    boots(&mut agent, server, 2).await;

    wish.soft_reboots += 1;
    agent.order(&present(server, &wish)).await;
    agent.until("a soft reboot", |agent| agent.seen[&server].soft_reboots == 1).await;
    boots(&mut agent, server, 3).await;
    wish.hard_reboots += 1;
    agent.order(&present(server, &wish)).await;
    agent.until("a hard reboot", |agent| agent.seen[&server].hard_reboots == 1).await;
    boots(&mut agent, server, 4).await;

    // What dies while it is watched is reported, and stays off until that is wanted otherwise.
    libvirtd.kill_machines();
    agent.until_state(server, DomainState::Crashed).await;
    agent.order(&set(&mut wish, Power::Running)).await;
    agent.until_state(server, DomainState::Running).await;
    boots(&mut agent, server, 5).await;

    // The host loses power: everything is gone at once, and what was wanted runs again, once.
    drop(agent);
    libvirtd.kill();
    libvirtd.kill_machines();
    libvirtd.start_again();
    let mut agent = Process::start(dir, vec![present(server, &wish)]).await;
    boots(&mut agent, server, 6).await;
    agent.until_state(server, DomainState::Running).await;
    assert_eq!(libvirtd.machines().len(), 1);

    // Deleted, the agent killed on the way: nothing is left but the promise.
    agent.order(&order(server, Wanted::Absent)).await;
    drop(agent);
    let mut agent = Process::start(dir, vec![order(server, Wanted::Absent)]).await;
    agent.until("a statement", |agent| !agent.statements.is_empty()).await;
    assert!(agent.statements[0].verify(CLOUD, &agent.key));
    assert!(libvirtd.machines().is_empty());
    for left in ["state/servers", "state/base", "lib/qemu/save", "etc/qemu"] {
        let files = std::fs::read_dir(dir.join(left)).unwrap().flatten().map(|entry| entry.path());
        let files: Vec<_> = files.filter(|path| path.is_file() || left == "state/servers").collect();
        assert!(files.is_empty(), "{files:?}");
    }
}

fn set(wish: &mut Server, power: Power) -> Order {
    (wish.power, wish.power_changes) = (power, wish.power_changes + 1);
    present(SERVER, wish)
}

/// Waits until the guest has come up for the `count`th time.
async fn boots(agent: &mut Process, server: Uuid, count: u32) {
    let wait = async {
        loop {
            let console = agent.until_console(server, &format!("boots={count}\r\n")).await;
            let last = console.rsplit("boots=").next().unwrap_or_default();
            if last.contains("ready hostname=web") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("the guest never came up {count} times"));
}
