//! The switch at work: one thread that reads devices, waits for what is due and obeys orders; and beside it one that hears
//! orders and signals.

use std::io;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::mpsc;
use std::time::Instant;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::command::obey;
use super::device::{HEADER, LARGEST, Tap};
use super::line::{Nanos, SECOND};
use super::switch::{Fate, Switch};

/// Frames that are read of one device before the others have their turn.
const TURN: usize = 32;
/// The longest order, bytes.
const ORDER: u64 = 4_096;

/// What the switch is told.
enum Order {
    /// A command, and where its answer goes.
    Obey(String, oneshot::Sender<String>),
    End,
}

/// Runs until it is told to end: by a signal, or by `down` on the control socket.
///
/// # Errors
/// What the kernel says of the socket or of waiting.
pub fn run(mut switch: Switch, mut taps: Vec<Tap>, control: &Path) -> io::Result<()> {
    let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
    let (orders, queue) = mpsc::channel();
    hear(control, orders, wake.try_clone()?)?;
    // Else the kernel wakes us up to 50 µs late, to save power.
    rustix::thread::set_current_timer_slack(NonZeroU64::new(1))?;
    let (start, mut buffer) = (Instant::now(), vec![0; LARGEST]);
    loop {
        let now = since(start);
        while let Some(frame) = switch.take(now) {
            taps.get(frame.to).into_iter().for_each(|tap| tap.write(&frame.bytes));
        }
        let ready = wait(&taps, &wake, switch.next().map(|at| at.saturating_sub(since(start))))?;
        for (from, _) in ready.iter().enumerate().filter(|(_, ready)| **ready) {
            read(&mut switch, &taps, from, &mut buffer, start)?;
        }
        if rustix::io::read(&wake, &mut [0; 8]).is_ok() {
            for order in queue.try_iter() {
                match order {
                    Order::End => return Ok(()),
                    Order::Obey(line, answer) => {
                        let told = obey(&mut switch, &line, since(start));
                        let told = told.unwrap_or_else(|refused| json!({"error": refused.to_string()}));
                        let _ = answer.send(told.to_string());
                    }
                }
            }
            for (site, tap) in taps.iter_mut().enumerate() {
                let whole = !switch.is_particular(site);
                if whole != tap.is_whole() {
                    tap.set_whole(whole)?;
                }
            }
        }
    }
}

fn since(start: Instant) -> Nanos {
    Nanos::try_from(start.elapsed().as_nanos()).unwrap_or(Nanos::MAX)
}

/// Waits until a device can be read, an order has come, or the time has passed. Says which devices.
fn wait(taps: &[Tap], wake: &OwnedFd, limit: Option<Nanos>) -> io::Result<Vec<bool>> {
    let fds = taps.iter().map(AsFd::as_fd).chain([wake.as_fd()]);
    let mut fds: Vec<PollFd<'_>> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
    let limit = limit.map(|nanos| Timespec {
        tv_sec: i64::try_from(nanos / SECOND).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(nanos % SECOND).unwrap_or_default(),
    });
    match poll(&mut fds, limit.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(fds.iter().take(taps.len()).map(|fd| fd.revents().contains(PollFlags::IN)).collect())
}

/// Reads what one site has sent, a turn's worth.
fn read(switch: &mut Switch, taps: &[Tap], from: usize, buffer: &mut [u8], start: Instant) -> io::Result<()> {
    let Some(tap) = taps.get(from) else { return Ok(()) };
    for _ in 0..TURN {
        let Some(size) = tap.read(buffer)? else { return Ok(()) };
        let Some(frame) = buffer.get(..size) else { return Ok(()) };
        let Some(ethernet) = frame.get(HEADER..) else { continue };
        let now = since(start);
        for to in switch.destinations(from, ethernet) {
            if let Fate::Now(copies) = switch.put(now, from, to, frame) {
                (0..copies).for_each(|_| taps.get(to).into_iter().for_each(|tap| tap.write(frame)));
            }
        }
    }
    Ok(())
}

/// Starts the thread that hears orders and signals.
fn hear(control: &Path, orders: mpsc::Sender<Order>, wake: OwnedFd) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard = runtime.enter();
    let listener = UnixListener::bind(control)?;
    let mut ends = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?];
    drop(guard);
    let listen = async move {
        let wake = std::sync::Arc::new(wake);
        let [terminate, interrupt, hangup] = &mut ends;
        loop {
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => break,
                accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                    tokio::spawn(serve(stream, orders.clone(), wake.clone()));
                },
            }
        }
        tell(&orders, &wake, Order::End);
    };
    std::thread::Builder::new().name("control".into()).spawn(move || runtime.block_on(listen))?;
    Ok(())
}

fn tell(orders: &mpsc::Sender<Order>, wake: &OwnedFd, order: Order) {
    let _ = orders.send(order);
    let _ = rustix::io::write(wake, &1_u64.to_ne_bytes());
}

/// Answers the lines of one connection, one by one.
async fn serve(stream: UnixStream, orders: mpsc::Sender<Order>, wake: std::sync::Arc<OwnedFd>) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    loop {
        let mut line = String::new();
        if (&mut read).take(ORDER).read_line(&mut line).await? == 0 {
            return Ok(());
        }
        if line.trim() == "down" {
            tell(&orders, &wake, Order::End);
            return Ok(());
        }
        let (answer, told) = oneshot::channel();
        tell(&orders, &wake, Order::Obey(line, answer));
        let Ok(told) = told.await else { return Ok(()) };
        write.write_all(format!("{told}\n").as_bytes()).await?;
    }
}
