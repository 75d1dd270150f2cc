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

/// Largest UDP packet.
const PACKET: usize = 65_535;
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
            let mut backs: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
            let mut packet = vec![0; PACKET];
            loop {
                let Ok((size, origin)) = front.recv_from(&mut packet).await else { continue };
                if !backs.contains_key(&origin) {
                    if backs.len() >= ORIGINS {
                        backs.clear();
                    }
                    let Ok(back) = UdpSocket::bind((listen.ip(), 0)).await else { continue };
                    let back = Arc::new(back);
                    backs.insert(origin, back.clone());
                    tokio::spawn(wan.clone().answers(front.clone(), back, site, origin));
                }
                let Some(back) = backs.get(&origin).cloned() else { continue };
                if let Some(delay) = wan.passes(origin.ip(), site.ip()) {
                    send(back, packet.get(..size).unwrap_or_default().to_vec(), site, delay);
                }
            }
        });
        Ok(())
    }

    async fn answers(self, front: Arc<UdpSocket>, back: Arc<UdpSocket>, site: SocketAddr, origin: SocketAddr) {
        let mut packet = vec![0; PACKET];
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
                send(front.clone(), packet.get(..size).unwrap_or_default().to_vec(), origin, delay);
            }
        }
    }
}

fn send(socket: Arc<UdpSocket>, packet: Vec<u8>, to: SocketAddr, delay: Duration) {
    if delay.is_zero() {
        let _ = socket.try_send_to(&packet, to);
        return;
    }
    tokio::spawn(async move {
        tokio::time::sleep(delay).await;
        let _ = socket.send_to(&packet, to).await;
    });
}
