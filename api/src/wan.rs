//! A small WAN on one machine, for the demo and the tests: UDP relays that can cut sites off and delay packets.
//!
//! Each site listens on a loopback address of its own and tells others the address of the relay before it. The relay
//! knows a packet's origin by its source address, keeps one socket for each, so that answers find their way back, and
//! drops what goes to or comes from a site that is cut off.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Largest UDP packet.
const PACKET: usize = 65_535;
/// Packets of one direction that may be on their way.
const QUEUE: usize = 8_192;
/// Origins that one relay serves at most.
const ORIGINS: usize = 64;

/// What the WAN does to packets. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Wan {
    rules: Arc<RwLock<Rules>>,
}

#[derive(Debug, Default)]
struct Rules {
    /// Sites, by their loopback addresses, that nothing reaches or leaves.
    cut: BTreeSet<IpAddr>,
    /// How long a packet takes from one site to another.
    delay: Duration,
}

impl Wan {
    /// Cuts a site off from all others.
    pub fn cut(&self, site: IpAddr) {
        self.rules.write().cut.insert(site);
    }

    /// Ends all cuts.
    pub fn heal(&self) {
        self.rules.write().cut.clear();
    }

    /// Sets the one-way delay between sites.
    pub fn set_delay(&self, delay: Duration) {
        self.rules.write().delay = delay;
    }

    /// What happens to a packet between two sites: dropped, or delayed.
    fn passes(&self, one: IpAddr, other: IpAddr) -> Option<Duration> {
        let rules = self.rules.read();
        (!rules.cut.contains(&one) && !rules.cut.contains(&other)).then_some(rules.delay)
    }

    /// Starts the relay before a site: packets to `listen` go on to `site`. It ends with the runtime.
    ///
    /// # Errors
    /// What the system says when the address cannot be used.
    pub async fn relay(&self, listen: SocketAddr, site: SocketAddr) -> std::io::Result<()> {
        let front = Arc::new(UdpSocket::bind(listen).await?);
        let wan = self.clone();
        tokio::spawn(async move {
            let mut backs: HashMap<SocketAddr, Line> = HashMap::new();
            let mut packet = vec![0; PACKET];
            loop {
                let Ok((size, origin)) = front.recv_from(&mut packet).await else { continue };
                if !backs.contains_key(&origin) {
                    if backs.len() >= ORIGINS {
                        backs.clear();
                    }
                    let Ok(back) = UdpSocket::bind((listen.ip(), 0)).await else { continue };
                    let back = Arc::new(back);
                    backs.insert(origin, line(back.clone(), site));
                    tokio::spawn(wan.clone().answers(front.clone(), back, site, origin));
                }
                let Some(to_site) = backs.get(&origin) else { continue };
                if let Some(delay) = wan.passes(origin.ip(), site.ip()) {
                    let _ = to_site.try_send((Instant::now() + delay, packet.get(..size).unwrap_or_default().to_vec()));
                }
            }
        });
        Ok(())
    }

    async fn answers(self, front: Arc<UdpSocket>, back: Arc<UdpSocket>, site: SocketAddr, origin: SocketAddr) {
        let mut packet = vec![0; PACKET];
        let to_origin = line(front, origin);
        loop {
            // An origin that was silent for long has gone; it gets a new socket if it comes back.
            let received = tokio::time::timeout(Duration::from_secs(60), back.recv_from(&mut packet)).await;
            let Ok(received) = received else {
                if Arc::strong_count(&back) == 1 {
                    return;
                }
                continue;
            };
            let Ok((size, _)) = received else { continue };
            if let Some(delay) = self.passes(origin.ip(), site.ip()) {
                let _ = to_origin.try_send((Instant::now() + delay, packet.get(..size).unwrap_or_default().to_vec()));
            }
        }
    }
}

/// One direction of a link: packets, each with the time at which it leaves.
type Line = mpsc::Sender<(Instant, Vec<u8>)>;

/// Packets leave in the order in which they came: one that overtakes others is taken for the loss of those. What does
/// not fit into the queue is dropped, as a router does.
fn line(socket: Arc<UdpSocket>, to: SocketAddr) -> Line {
    let (line, mut packets) = mpsc::channel::<(Instant, Vec<u8>)>(QUEUE);
    tokio::spawn(async move {
        while let Some((at, packet)) = packets.recv().await {
            tokio::time::sleep_until(at).await;
            let _ = socket.send_to(&packet, to).await;
        }
    });
    line
}
